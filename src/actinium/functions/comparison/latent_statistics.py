"""What an activation function does to slopes, to the variance of what layers hand on, and to the weights learnt."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.evaluation import evaluating
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.reducers import Moments
from actinium.core.result import Result
from actinium.functions.exchange.replacement import find_activations
from actinium.functions.registry import spec
from actinium.functions.shape_analysis import derivatives

__all__ = ["differential_entropy", "gate_slope_profile", "latent_variance", "weight_distribution"]

Floats = NDArray[np.float64]
Function = Callable[[Tensor], Tensor]
NEAR = 1e-5
"""Around 0 the slope of a gate f(x) / x is read from the second derivative, where a quotient would lose its digits."""
KINK = 1e-6
"""Difference of the slopes on both sides of 0 from which on there is a kink."""
NORMAL = np.linspace(-12.0, 12.0, 1 << 15 | 1)
"""Grid of the integrals over a standard normal; 0, where kinks are, is one of its points."""


def gate_slope_profile(
    functions: Sequence[str] | Mapping[str, Function], lo: float = -5.0, hi: float = 5.0, n: int = 1001
) -> Result:
    """Slopes and gates of functions that are x times a gate, and what they make of a standard normal.

    Args:
        functions: names in the catalogue, or elementwise functions by name.
        lo, hi, n: the grid.

    Returns:
        by function: `slope_at_zero` (NaN at a kink), `largest_slope` and `smallest_slope` of the grid; `asymmetry`, the
        largest |gate(x) + gate(-x) - 1| where both are on the grid; `mean`, `variance` and `gain` = 1 / sqrt(E f^2) for
        standard normal inputs; by function and x: `value`, `slope` (of the function), `gate` = f(x) / x (at 0 the
        slope) and `gate_slope`.

    Raises:
        InputError: no functions, an empty interval, or a function that is not elementwise, not finite, or not 0 at 0.
        UnknownNameError: there is no function of a name.

    Source: Das et al., 2025, arXiv 2502.03654.
    """
    if isinstance(functions, str) or not functions:
        raise InputError("functions are a list of names, or functions by name")
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi) or n < 3:
        raise InputError(f"an interval needs a lower end below the upper one and 3 points, not {lo:g}..{hi:g} with {n}")
    held = dict(functions) if isinstance(functions, Mapping) else {name: spec(name) for name in functions}
    x = np.linspace(lo, hi, n)
    found = [_profile(name, _wide(f), x) for name, f in held.items()]
    on_grid = ("value", "slope", "gate", "gate_slope")
    data = xr.Dataset(
        {
            k: (("function", "x") if k in on_grid else ("function",), np.array([row[k] for row in found]))
            for k in found[0]
        },
        {"function": list(held), "x": x},
        {"plot": {"kind": "bar", "variables": ["slope_at_zero", "largest_slope", "variance"], "ylabel": "value"}},
    )
    return Result(data, "gate_slope_profile", "golu", provenance(functions=list(held), grid=[lo, hi, n]))


def _wide(f: Function) -> Function:
    return copy.deepcopy(f).double().eval() if isinstance(f, nn.Module) else f


def _profile(name: str, f: Function, x: Floats) -> dict[str, Any]:
    with torch.no_grad():
        found: Any = f(torch.tensor(x))
    if not isinstance(found, Tensor) or found.shape != x.shape or not bool(found.isfinite().all()):
        raise InputError(f"{name} is not an elementwise function that is finite from {x[0]:g} to {x[-1]:g}")
    value, slope, bend = derivatives(f, x, 2)
    at, sides = derivatives(f, np.array([0.0]))[0], derivatives(f, np.array([-1e-9, 1e-9]))[1]
    if abs(float(at[0])) > KINK:
        raise InputError(f"{name} is {float(at[0]):g} at 0, so it is not x times a gate that is finite")
    zero = float(sides.mean()) if abs(sides[1] - sides[0]) <= KINK else math.nan
    near = np.abs(x) < NEAR
    over = np.where(near, 1.0, x)
    gate = np.where(near, zero, value / over)
    mirrored = gate + np.interp(-x, x, gate, left=math.nan, right=math.nan) - 1
    density = np.exp(-(NORMAL**2) / 2) / math.sqrt(2 * math.pi)
    y = derivatives(f, NORMAL, 0)[0]
    mean, second = (float(np.trapezoid(density * y**k, NORMAL)) for k in (1, 2))
    return {
        "slope_at_zero": zero,
        "largest_slope": float(slope.max()),
        "smallest_slope": float(slope.min()),
        "asymmetry": float(np.nanmax(np.abs(mirrored))) if np.isfinite(mirrored).any() else math.nan,
        "mean": mean,
        "variance": second - mean**2,
        "gain": second**-0.5 if second > 0 else math.inf,
        "value": value,
        "slope": slope,
        "gate": gate,
        "gate_slope": np.where(near, bend / 2 if math.isfinite(zero) else math.nan, (slope * x - value) / over**2),
    }


def latent_variance(
    model: nn.Module | Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    batch_size: int | None = 64,
    progress: bool = False,
) -> Result:
    """How much what layers hand on varies over inputs and positions.

    Args:
        model: the network.
        inputs: texts, tokens, images or a tensor of examples.
        at: sites; every activation function that is a module by default. A module that is called several times is one
            site, and has to have one width; `module:<path>#0` is its first call.
        batch_size: rows per pass.
        progress: show a progress bar.

    Returns:
        by site: `mean_var` and `mean_std`, means over channels of the variance and of the standard deviation;
        `pooled_var`, the variance of all values together, to which differences of the channels' means add; `count`
        (values of a channel) and `dropped` (values that are NaN or infinite, kept out of the rest).

    Raises:
        InputError: there are no activation modules (name sites with `at`), or no inputs.
        SiteError: a site does not exist.

    Source: Das et al., 2025, arXiv 2502.03654.
    """
    known = model if isinstance(model, Model) else Model(model)
    sites = [f"module:{name}" for name in find_activations(known.module)] if at is None else at
    with evaluating(known.module):
        read = known.record(inputs, sites, reduce=Moments(), batch_size=batch_size, progress=progress)
    rows: dict[str, list[float]] = {k: [] for k in ("mean_var", "mean_std", "pooled_var", "count", "dropped")}
    for found in read.values.values():
        pooled = found.pooled
        rows["mean_var"].append(float(found.var.nanmean()))
        rows["mean_std"].append(float(found.var.sqrt().nanmean()))
        rows["pooled_var"].append(float(pooled.var))
        rows["count"].append(int(found.count.max()))
        rows["dropped"].append(int(pooled.nan + pooled.inf))
    data = xr.Dataset(
        {k: ("site", np.array(v)) for k, v in rows.items()},
        {"site": list(read.values)},
        {"plot": {"kind": "bar", "variables": ["mean_var"], "ylabel": "mean variance of channels"}},
    )
    return Result(data, "latent_variance", "golu", provenance(known, at=list(read.values), count=rows["count"]))


def differential_entropy(values: Tensor | Floats) -> float:
    """Differential entropy in nats of a sample, from a histogram.

    Bins are as wide as Scott's rule says, and at least a sixteenth of the standard deviation, so that numbers of few
    digits (bfloat16) do not fall into one point; the bias of counts is corrected.

    Args:
        values: of any shape, 16 or more.

    Returns:
        the entropy; -inf where nothing varies.

    Raises:
        InputError: there are fewer values, or some are not finite.

    Source: Scott, 1979 (width of bins); Miller, 1955 (bias).
    """
    v = torch.as_tensor(values).detach().flatten().double()
    if len(v) < 16 or not bool(v.isfinite().all()):
        raise InputError(f"an entropy needs 16 finite values or more, got {len(v)}")
    sd = float(v.std())
    if sd <= 1e-12 * float(v.abs().max()):
        return -math.inf
    width = sd * max(1 / 16, 3.49 * len(v) ** (-1 / 3))
    counts = ((v - v.mean()) / width).floor().long().unique(return_counts=True)[1].double()
    p = counts / len(v)
    return float(torch.special.entr(p).sum()) + (len(p) - 1) / (2 * len(v)) + math.log(width)


def weight_distribution(model: nn.Module | Model) -> Result:
    """How the weights of each layer are spread.

    Args:
        model: the network.

    Returns:
        by weight of two dimensions or more: `std`, `kurtosis` (excess over 3), `entropy` (differential, in nats: larger
        for what is broader), `count`.

    Raises:
        InputError: there are no weights of 16 numbers or more, or some are not in memory or not finite.

    Source: Das et al., 2025, arXiv 2502.03654.
    """
    module = model.module if isinstance(model, Model) else model
    if not isinstance(module, nn.Module):
        raise InputError(f"expected a network (a module or a Model), not {type(model).__name__}")
    weights = {n: p for n, p in module.named_parameters() if p.ndim > 1 and p.is_floating_point() and p.numel() >= 16}
    if not weights:
        raise InputError(f"{type(module).__name__} has no weights of two dimensions and 16 numbers or more")
    rows: dict[str, list[float]] = {k: [] for k in ("std", "kurtosis", "entropy", "count")}
    for name, p in weights.items():
        if p.is_meta or not bool(p.isfinite().all()):
            raise InputError(f"{name} is not in memory, or holds values that are not finite")
        moments = Moments()
        moments.update(p.detach().reshape(-1, 1))
        found = moments.result()
        rows["std"].append(float(found.var.sqrt()))
        rows["kurtosis"].append(float(found.kurtosis))
        rows["entropy"].append(differential_entropy(p))
        rows["count"].append(p.numel())
    data = xr.Dataset(
        {k: ("weight", np.array(v)) for k, v in rows.items()},
        {"weight": list(weights)},
        {"plot": {"kind": "bar", "variables": ["std"], "ylabel": "standard deviation of weights"}},
    )
    known = model if isinstance(model, Model) else None
    return Result(data, "weight_distribution", "golu", provenance(known, weights=list(weights)))
