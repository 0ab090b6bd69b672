"""The linear map that reads a site, whichever way its module keeps the weight."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = ["is_linear", "weight_after"]


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map: `nn.Linear`, or GPT-2's `Conv1D`."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def weight_after(model: Model, site: str) -> Tensor:
    """Weight (d_out, d_in) of the linear map whose input a site is, without graph; a view of the parameter.

    Args:
        model: the model.
        site: such as `blocks.{i}.mlp.post` (the down projection), `blocks.{i}.attn.z` (W_O, heads side by side), or
            `module_in:<path of a linear map>`.

    Raises:
        InputError: the site is not the input of one linear map, or its weight is offloaded or quantised.
        SiteError: the site does not exist.
    """
    found = model.resolve(site)
    if len(found) != 1:
        raise InputError(f"{site!r} means {len(found)} sites; a linear map reads one")
    ((known, tap, _),) = found
    if tap.kind != "input" or not is_linear(tap.module):
        raise InputError(
            f"{known.name} is not the input of a linear map; take 'blocks.*.mlp.post', 'blocks.*.attn.z' or "
            "'module_in:<linear>'"
        )
    kept: Any = tap.module.weight
    weight: Tensor = kept.detach()
    if weight.is_meta or not weight.is_floating_point():
        raise InputError(f"the weight after {known.name} is not in memory as numbers ({weight.device}, {weight.dtype})")
    # Conv1D keeps (in, out), Linear (out, in).
    return weight.T if type(tap.module).__name__ == "Conv1D" else weight
