"""Where approximations act: outputs of norms and of non-linearities, inputs of linear maps, attention scores."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from actinium.core.errors import InputError, SiteError
from actinium.core.model import Model

__all__ = ["approximation_sites", "block_of"]

NAMED = ("norm", "ffn", "linear", "softmax", "final_norm")
ACTIVATIONS = ("transformers.activations", "torch.nn.modules.activation")


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation, by the name of its class."""
    return "norm" in type(module).__name__.lower()


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map (GPT-2's Conv1D is one)."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_activation(module: nn.Module) -> bool:
    """Whether a module is a non-linearity without parameters that has a class of its own."""
    return type(module).__module__ in ACTIVATIONS and not isinstance(module, nn.MultiheadAttention)


def block_of(model: Model, site: str) -> int | None:
    """The block that a site lies in, None outside; of an unknown module's path, the first number in it."""
    found = re.search(r"(?:^|[.:])(\d+)(?:\.|$)", site)
    if not model.anatomy.towers:
        return int(found.group(1)) if found else None
    known, tap, _ = model.resolve(site)[0]
    if known.layer is not None:
        return known.layer
    blocks = enumerate(model.tower.blocks)
    return next((i for i, block in blocks if any(tap.module is part for part in block.modules())), None)


def approximation_sites(
    model: Model, sites: str | Sequence[str] = "norm", layers: Iterable[int] | None = None
) -> list[str]:
    """Names of the sites that approximations act on.

    Args:
        model: the model.
        sites: one or several of "norm" (outputs of the norms in blocks, those of attention's queries and keys apart),
            "final_norm" (it enters the logits, and is never among "norm"), "ffn" (output of the non-linearity of
            feed-forward layers, act(gate) in gated ones), "linear" (inputs of the linear maps in blocks), "softmax"
            (attention scores), or names and patterns of sites.
        layers: keep the sites in these blocks only.

    Raises:
        SiteError: there is none.
    """
    out: list[str] = []
    for one in [sites] if isinstance(sites, str) else sites:
        found = _named(model, one) if one in NAMED else [s.name for s in model.sites(one)]
        if not found:
            raise SiteError(f"{model.name} has no sites that we know under {one!r}; name them, as 'module:<path>'")
        out += found
    if layers is not None:
        wanted = {int(i) for i in layers}
        if not wanted:
            raise InputError("layers: the choice is empty")
        out = [name for name in out if block_of(model, name) in wanted]
        if not out:
            raise SiteError(f"{model.name} has no such sites in the blocks {sorted(wanted)}")
    if not out:
        raise SiteError("no sites given")
    return list(dict.fromkeys(out))


def _named(model: Model, name: str) -> list[str]:
    if name == "final_norm":
        return [s.name for s in model.anatomy.sites.values() if s.part == "final_norm"][-1:]
    if name == "softmax":
        return [s.name for s in model.anatomy.sites.values() if s.part == "attn.scores"]
    if not model.anatomy.towers:
        return []
    if name == "norm":
        attention = {id(t.module) for n, t in model.anatomy.taps.items() if n.endswith("attn.q")}
        return [f"module:{path}" for path, m, above in _parts(model) if is_norm(m) and not above & attention]
    if name == "linear":
        return [f"module_in:{path}" for path, m, _ in _parts(model) if is_linear(m)]
    found = [f"module:{path}" for path, m, _ in _parts(model) if is_activation(m)]
    gated = any(s.part == "mlp.gate" for s in model.anatomy.sites.values())
    if found or gated:
        return found
    # A plain layer hands the output of its non-linearity to the down projection.
    return [s.name for s in model.anatomy.sites.values() if s.part == "mlp.post"]


def _parts(model: Model) -> Iterator[tuple[str, nn.Module, set[int]]]:
    """Modules in the blocks of the tower that is read, with their paths and the identities of those they lie in."""
    names = {id(m): path for path, m in model.module.named_modules()}
    for block in model.tower.blocks:
        inside = dict(block.named_modules())
        for path, module in inside.items():
            steps = path.split(".")
            above = {id(inside[".".join(steps[:i])]) for i in range(1, len(steps))}
            if path:
                yield names[id(module)], module, above
