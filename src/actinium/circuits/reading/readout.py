"""What every part of a model writes at one position, and the directions along which logits read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actinium.circuits.patching.contrast import check_task
from actinium.circuits.patching.norms import ScaleWatch
from actinium.core import replay
from actinium.core.errors import InputError
from actinium.core.maps import is_linear, weight_after
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["Writes", "check_readout", "head_weights", "readout_directions", "writes"]

# Share of the stream's norm that its recorded parts may miss, above which they are not its parts.
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Writes:
    """The residual stream at the last token of each prompt, taken apart.

    Attributes:
        names: of the parts: "embed", "a0.h3", "a0.bias" or "a0", "m0".
        layers: block of each part, -1 for the embedding.
        values: (part, row, d_model); they add up to `stream`.
        stream: (row, d_model) that enters the final norm.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    values: Tensor
    stream: Tensor


def head_weights(model: Model, layer: int) -> tuple[Tensor, Tensor | None] | None:
    """What the heads of a block write with: weights (head, d_head, d_model) and bias (d_model,).

    None where what the heads write passes through more than one linear map before it reaches the stream.
    """
    site = f"blocks.{layer}.attn.z"
    if not model.has(site):
        return None
    ((_, tap, _),) = model.resolve(site)
    if tap.kind != "input" or not is_linear(tap.module):
        return None
    bias: Any = getattr(tap.module, "bias", None)
    heads = weight_after(model, site).T.unflatten(0, (model.n_heads, -1))
    return heads, None if bias is None else bias.detach()


def writes(model: Model, inputs: Any, heads: bool = True) -> Writes:
    """Run the prompts and take the stream at their last token apart.

    Args:
        model: a decoder whose blocks are known.
        inputs: texts or tokens.
        heads: one part for each head (and for the bias of attention), instead of one for attention as a whole.

    Raises:
        InputError: the recorded parts do not add up to the stream (blocks that scale or norm it in between).
    """
    tower = model.tower
    last = len(tower.blocks) - 1
    parts = [p for p in ("attn.z", "attn.out", "mixer.out", "mlp.out") if model.has(f"blocks.*.{p}")]
    sites = ["blocks.0.resid_pre", f"blocks.{last}.resid_post", *(f"blocks.*.{part}" for part in parts)]
    with torch.no_grad():
        rec = model.record(inputs, sites, positions=[-1])
    names, layers, values = ["embed"], [-1], [rec["blocks.0.resid_pre"][:, 0]]

    def add(name: str, layer: int, value: Tensor) -> None:
        names.append(name)
        layers.append(layer)
        values.append(value)

    for layer in range(last + 1):
        own = {part: rec[f"blocks.{layer}.{part}"][:, 0] for part in parts if f"blocks.{layer}.{part}" in rec.sites}
        mixed = own.get("attn.out", own.get("mixer.out"))
        split = _by_head(model, layer, own["attn.z"], mixed) if heads and "attn.z" in own else None
        if split is not None:
            each, bias = split
            for head, value in enumerate(each.unbind(1)):
                add(f"a{layer}.h{head}", layer, value)
            if bias is not None:
                add(f"a{layer}.bias", layer, bias.expand_as(values[0]))
        elif mixed is not None:
            add(f"a{layer}", layer, mixed)
        if "mlp.out" in own:
            add(f"m{layer}", layer, own["mlp.out"])
    stream, stacked = rec[f"blocks.{last}.resid_post"][:, 0], torch.stack(values)
    missing = float((stacked.double().sum(0) - stream).norm() / stream.double().norm())
    if missing > TOLERANCE:
        raise InputError(
            f"what the parts of {model.name} write adds up to its stream but for {missing:.1%}: it is scaled or normed "
            "in between, so there is no direct effect of a part"
        )
    return Writes(tuple(names), tuple(layers), stacked, stream)


def _by_head(model: Model, layer: int, z: Tensor, out: Tensor | None) -> tuple[Tensor, Tensor | None] | None:
    """(row, head, d_model) of z (row, head, d_head), and the bias; None where they are not what attention writes."""
    found = head_weights(model, layer)
    if found is None:
        return None
    weight, bias = found
    each = torch.einsum("rhe,hed->rhd", z, weight.to(z))
    whole = each.sum(1) if bias is None else each.sum(1) + bias.to(z)
    if out is None or float((whole - out).norm()) > TOLERANCE * float(out.norm()):
        return None
    return each, None if bias is None else bias.to(z)


def readout_directions(model: Model, stream: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Directions along which logits read the stream when the final norm's scale is held, and what biases add.

    logit = <stream, direction> + constant. Where a model caps its logits, they are those before the cap.

    Args:
        model: the model.
        stream: (row, d_model) that enters the final norm.
        tokens: (row, k) or (k,) token ids.

    Returns:
        Directions (row, k, d_model), and constants (row, k).

    Raises:
        InputError: the model has no unembedding that is known, or a token does not exist.
    """
    ids = tokens.expand(len(stream), -1).to(stream.device) if tokens.ndim == 1 else tokens.to(stream.device)
    x = stream.detach().clone().requires_grad_()
    with torch.enable_grad(), ScaleWatch(torch.detach):
        logits = replay.tail(model, x)
    cap = getattr(model.config, "final_logit_softcapping", None)
    if not bool(((ids >= 0) & (ids < logits.shape[-1])).all()):
        raise InputError(f"tokens go from 0 to {logits.shape[-1] - 1}")
    with torch.enable_grad():
        picked = logits.gather(1, ids)
        picked = cap * torch.atanh(picked / cap) if cap else picked
        found = [torch.autograd.grad(one.sum(), x, retain_graph=True)[0] for one in picked.unbind(1)]
    directions = torch.stack(found, 1)
    return directions, picked.detach() - torch.einsum("rd,rkd->rk", x.detach(), directions)


def check_readout(model: Model, task: Task) -> None:
    """Refuse a task or a model whose last logits cannot be taken apart.

    Raises:
        InputError: as `check_task`; the model is no decoder whose blocks are known.
    """
    check_task(model, task)
    if not model.n_layers or not isinstance(getattr(model.module, "get_output_embeddings", lambda: None)(), nn.Module):
        raise InputError(f"{model.name} has no blocks and unembedding that we know, so nothing is written directly")
