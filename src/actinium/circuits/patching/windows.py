"""Sliding windows of layers patched jointly, beside the sum of the single layers' effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.corruption import GaussianNoise
from actinium.circuits.patching.effects import Effects
from actinium.circuits.patching.nodes import Node, NodeSets, node_sets
from actinium.circuits.patching.sweep import Sweep, result_of
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["patch_window", "window_layers"]

EVEN = ("lower", "upper")


def window_layers(n_layers: int, width: int, even: str | None = None) -> list[list[int]]:
    """The layers of the window around each layer, clipped at both ends.

    Args:
        n_layers: number of layers.
        width: number of layers in a window, 1 or more.
        even: where a window of even width has its extra layer, "lower" or "upper".

    Raises:
        InputError: the width is below 1, or even without a rule.
        UnknownNameError: the rule is neither.
    """
    if width < 1:
        raise InputError(f"a window has a width of 1 or more, not {width}")
    if even is not None and even not in EVEN:
        raise UnknownNameError(unknown("rule for even windows", even, EVEN))
    if width % 2 == 0 and even is None:
        raise InputError(
            f'a window of {width} layers has no middle; say where the extra layer goes: even="lower" or "upper"'
        )
    below = width // 2 - (width % 2 == 0 and even == "upper")
    return [[i for i in range(at - below, at - below + width) if 0 <= i < n_layers] for at in range(n_layers)]


def patch_window(
    model: Model,
    task: Task,
    at: str | Sequence[str] = "blocks.*.mlp.out",
    widths: int | Sequence[int] = (1, 3, 5),
    *,
    over: str = "layer",
    even: str | None = None,
    mode: str = "denoise",
    ablation: str | GaussianNoise = "resample",
    metric: str | Callable[..., Tensor] | None = None,
    positions: Any = None,
    heads: int | Sequence[int] | None = None,
    reference: Any = None,
    per_position: bool = False,
    normalise: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Effects:
    """Effect of patching windows of neighbouring layers jointly, and the sum of the effects of their layers.

    Args:
        model, task, mode, ablation, metric, positions, heads, reference, per_position, normalise, seed, batch_size,
            progress: as in `patch`.
        at: one kind of site in every layer that is to count, such as "blocks.*.mlp.out" or "blocks.*.attn.out"; or
            "module:" sites in the order of their layers.
        widths: layers in a window; odd, or even with a rule.
        over: "layer" (positions patched together), "pos", "head" or "head_pos".
        even: where a window of even width has its extra layer, "lower" or "upper".

    Returns:
        Effects: `effect` (the windows) and `sum_single` over width, layer (the middle of the window) and what is swept;
        `single` over layer and what is swept; `layers`, the true number of layers in each window (fewer at the ends).

    Raises:
        InputError: as `patch`; an even width without a rule; sites that are not one kind in consecutive layers.

    Source: Zhang and Nanda, 2023, section 4.
    """
    wanted = [widths] if isinstance(widths, int) else list(widths)
    if not wanted:
        raise InputError("widths: the choice is empty")
    sweep = Sweep(model, task, mode, ablation, metric, reference, per_position, seed, batch_size, progress)
    single = node_sets(model, task, at, over, positions, heads)
    line = single.dims[0]
    if line not in ("layer", "site") or (line == "layer" and np.any(np.diff(single.coords["layer"]) != 1)):
        raise InputError(f"windows need one kind of site in consecutive layers; {at!r} means {single.sites}")
    n_layers = single.shape[0]
    grids = [window_layers(n_layers, width, even) for width in wanted]
    each = len(single.sets) // n_layers
    sets = list(single.sets)
    for grid in grids:
        for layers in grid:
            sets += [_joined(single.sets, layers, i, each) for i in range(each)]
    repeat = None if single.present is None else single.present.repeat(1 + len(wanted), 1)
    everything = NodeSets(single.dims, single.coords, sets, repeat)
    runs = sweep.run(everything)
    whole = NodeSets(
        ("width", *single.dims),
        {"width": [0, *wanted], **single.coords},
        sets,
        repeat,
    )
    found = result_of(
        sweep, whole, runs, "patch_window", normalise, False, "patching-best-practices", at=at, over=over, even=even
    )
    return sweep.finish(_arranged(found, grids, wanted))


def _joined(sets: list[list[Node]], layers: list[int], place: int, each: int) -> list[Node]:
    return [node for layer in layers for node in sets[layer * each + place]]


def _arranged(found: Effects, grids: list[list[list[int]]], widths: list[int]) -> Effects:
    """The first width of the sweep holds the single layers; it becomes variables of its own."""
    data = found.data
    alone = data["effect"].isel(width=0, drop=True)
    windows = data.isel(width=slice(1, None))
    values = torch.as_tensor(alone.values)
    sums = np.stack([np.stack([values[layers].sum(0).numpy() for layers in grid]) for grid in grids])
    out = xr.Dataset(
        {
            "effect": windows["effect"],
            "sum_single": (windows["effect"].dims, sums),
            "patched": windows["patched"],
            "single": alone,
            "layers": (("width", windows["effect"].dims[1]), [[len(layers) for layers in grid] for grid in grids]),
            "m_clean": data["m_clean"],
            "m_corrupt": data["m_corrupt"],
        },
        attrs=data.attrs,
    )
    if "n_rows" in data:
        out["n_rows"] = data["n_rows"].isel(width=0, drop=True)
    return Effects(out.assign_coords(width=widths), found.method, found.paper, found.provenance)
