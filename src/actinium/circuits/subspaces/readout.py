"""What reads an activation: the weights of the map that it enters, or the directions that later parts react to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from actinium.circuits.patching.contrast import check_task
from actinium.circuits.patching.nodes import Node
from actinium.circuits.subspaces.directions import at_position, gradients_at
from actinium.core.errors import InputError
from actinium.core.maps import weight_after
from actinium.core.model import Model
from actinium.core.recording import Recording
from actinium.core.task import Task

__all__ = ["reading_directions", "readout_weight"]


def readout_weight(model: Model, site: str, head: int | None = None) -> Tensor:
    """Weight of the linear map that alone reads a site: the down projection at mlp.post, W_O at attn.z.

    Args:
        model: the model.
        site: a site that is the input of a linear map (also `module_in:` of one).
        head: of a site with heads: the columns of that head.

    Returns:
        (d_out, d), float64.

    Raises:
        InputError: no linear map stands at the site, or the head is missing or not there.
        SiteError: the site does not exist.
    """
    try:
        out = weight_after(model, site).cpu().double()
    except InputError as error:
        raise InputError(f"{error}; or give readout=, for example reading_directions(...)") from None
    ((known, _, _),) = model.resolve(site)
    if "head" not in known.dims:
        if head is not None:
            raise InputError(f"{known.name} has no heads; its dimensions are {known.dims}")
        return out
    heads = known.sizes["head"]
    if head is None or not 0 <= head < heads:
        raise InputError(f"{known.name}: a read-out belongs to one head; head goes from 0 to {heads - 1}, not {head}")
    return out.view(len(out), heads, -1)[:, head]


def reading_directions(
    model: Model,
    task: Task,
    site: str,
    readers: str | Node | Sequence[str | Node] = "logits",
    *,
    position: int = -1,
    head: int | None = None,
    energy: float = 0.99,
) -> Tensor:
    """Directions of a site that later parts react to, from their gradients over both prompts of each pair.

    The directions are the principal ones of the gradients, without centring, that hold a share of their squared
    length. Where a part reads the residual stream through a norm, gradients also have a small component along the
    stream itself; `energy` below 1 leaves it out.

    Args:
        model: a causal language model.
        task: its prompts are run.
        site: where the gradients are taken.
        readers: "logits" (the logit difference of the two answers), or sites or Nodes behind the site, such as
            Node("blocks.4.attn.q", heads=2, positions=-1); every entry of them counts as a reader.
        position: token position of the gradients (0 first, -1 last).
        head: of a site with heads.
        energy: share of the squared length of all gradients, above 0 and at most 1.

    Returns:
        (m, d), float64, orthonormal, largest share first.

    Raises:
        InputError: a reader does not depend on the site, or `energy` is out of range.
        SiteError: a site does not exist.
    """
    check_task(model, task)
    if not 0 < energy <= 1:
        raise InputError(f"energy must be above 0 and at most 1, got {energy}")
    nodes = [] if isinstance(readers, str) and readers == "logits" else _nodes(model, readers)
    found = []
    for corrupt in (False, True):
        tokens = task.prompts(corrupt)

        def values(rec: Recording, logits: Tensor) -> Tensor:
            if not nodes:
                answers = torch.stack([task.answer_ids, task.wrong_ids], 1).to(logits.device)
                both = logits[:, -1].gather(1, answers)
                return both[:, 0] - both[:, 1]
            return torch.cat([_entries(rec, node, task.mask) for node in nodes], 1)

        for gradient in gradients_at(model, tokens, site, [node.site for node in nodes], values):
            found.append(at_position(gradient, task.mask, position, head).double().cpu())
    rows = torch.cat(found)
    _, size, directions = torch.linalg.svd(rows, full_matrices=False)
    if not float(size[0]) > 0:
        raise InputError(f"what is read does not depend on {site} at position {position}")
    share = size.square().cumsum(0) / size.square().sum()
    return directions[: int((share < energy - 1e-12).sum()) + 1]


def _nodes(model: Model, readers: str | Node | Sequence[str | Node]) -> list[Node]:
    items = [readers] if isinstance(readers, str | Node) else list(readers)
    nodes = [Node(item) if isinstance(item, str) else item for item in items]
    if not nodes or not all(isinstance(node, Node) for node in nodes):
        raise InputError('readers are "logits", or sites or Nodes behind the site')
    return [
        Node(site.name, node.positions, node.heads, node.units) for node in nodes for site in model.sites(node.site)
    ]


def _entries(rec: Recording, node: Node, mask: Tensor) -> Tensor:
    """Entries (row, m) of a node: at its position if it has one, else summed over positions."""
    value = rec[node.site]
    heads = [node.heads] if isinstance(node.heads, int) else node.heads
    units = [node.units] if isinstance(node.units, int) else node.units
    if heads is not None:
        value = value[:, :, list(heads)]
    if units is not None:
        value = value[..., list(units)]
    value = value.flatten(2)
    if node.positions is None:
        return value.sum(1)
    return at_position(value, mask, torch.as_tensor(node.positions), None)
