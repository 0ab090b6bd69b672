"""What mean-field theory predicts, measured: variance, correlation and gradients by layer of any module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result

__all__ = ["Decay", "fit_decay", "measure_propagation"]

PAPER = "edge-of-chaos"
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAWS = ("exponential", "1/l", "1/l^2")


@dataclass(frozen=True)
class Decay:
    """The law that fits a fall of 1 - c over layers best.

    Attributes:
        law: "exponential", "1/l" or "1/l^2".
        parameter: the depth scale of the exponential; the coefficient of the power of l.
        errors: by law, root mean square error of log(1 - c).
    """

    law: str
    parameter: float
    errors: dict[str, float]


def measure_propagation(
    model: Model | nn.Module, a: Any, b: Any, at: str | Sequence[str] | None = None, *, seed: int = 0
) -> Result:
    """Second moments, correlations of pairs and gradients of pre-activations by layer.

    The model runs in the mode it is in, and is left as it was, running statistics included.

    Args:
        model: a Model or a module.
        a, b: two batches of inputs: row i of one and row i of the other are a pair.
        at: sites in order of depth; the outputs of all linear and convolutional modules by default.
        seed: of the direction whose gradient is taken: that of a random projection of the last site.

    Returns:
        Result over layer: `q` mean square of a unit, over units, rows and both batches; `c` mean cosine of pairs,
        without centring as in the theory; `c_sd`, its standard deviation over pairs; `gradient` mean square of the
        gradient at a unit; `gradient_ratio` its value there over that one layer above (chi1 in theory), NaN at the
        last; `site`.

    Raises:
        InputError: fewer than two layers, batches that differ in rows, or activations that are not finite or all zero.
        SiteError: no such site.

    Source: Schoenholz et al., 2017, section 3; Hayou et al., 2019, equations 3 and 4.
    """
    model = model if isinstance(model, Model) else Model(model)
    names = _sites(model, at)
    kept = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    try:
        with torch.enable_grad():
            one, two = (model.record(x, names, grad=True) for x in (a, b))
    finally:
        # Batch normalisation in training mode counts what passes.
        for name, value in kept.items():
            model.module.get_buffer(name).data.copy_(value)
    rows = []
    last = one[names[-1]]
    random = torch.Generator().manual_seed(seed)
    direction = torch.randn(last.shape, generator=random, dtype=torch.float64).to(last)
    slopes = torch.autograd.grad((last * direction).sum(), [one[n] for n in names], allow_unused=True)
    for name, slope in zip(names, slopes, strict=True):
        x, y = (r[name].detach().double().flatten(1) for r in (one, two))
        if x.shape != y.shape:
            raise InputError(f"the batches differ at {name}: {tuple(x.shape)} and {tuple(y.shape)}")
        if not bool(x.isfinite().all() and y.isfinite().all()):
            raise InputError(f"activations at {name} are not finite")
        lengths = x.norm(dim=1) * y.norm(dim=1)
        if float(lengths.min()) == 0:
            raise InputError(f"activations at {name} are zero: there is no correlation")
        cosine = (x * y).sum(1) / lengths
        q = float(0.5 * ((x**2).mean() + (y**2).mean()))
        gradient = float("nan") if slope is None else float((slope.double() ** 2).mean())
        rows.append((q, float(cosine.mean()), float(cosine.std(correction=0)), gradient))
    q, c, sd, gradient = (np.array(v) for v in zip(*rows, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.append(gradient[:-1] / gradient[1:], np.nan)
    data = {"q": q, "c": c, "c_sd": sd, "gradient": gradient, "gradient_ratio": ratio, "site": np.array(names)}
    hints = {"plot": {"variables": ["q", "c"]}}
    record = provenance(model, [_plain(a), _plain(b)], seed=seed, at=names)
    dataset = xr.Dataset({k: ("layer", v) for k, v in data.items()}, {"layer": np.arange(1, len(names) + 1)}, hints)
    return Result(dataset, "measure_propagation", PAPER, record)


def fit_decay(c: Any, skip: int | None = None) -> Decay:
    """Which law the distance of correlations from 1 follows.

    Straight lines are fitted to log(1 - c), 1 / (1 - c) and 1 / sqrt(1 - c) over layers: an exponential, 1 / l and
    1 / l^2, each with a free offset; their errors are compared on log(1 - c).

    Args:
        c: correlations by layer (n,), below 1.
        skip: first layers that are left out; a third of them by default.

    Raises:
        InputError: fewer than four layers remain, or a correlation is 1 or more.
    """
    values = np.asarray(c.detach().cpu() if isinstance(c, Tensor) else c, dtype=float)
    first = len(values) // 3 if skip is None else skip
    layers, gap = np.arange(len(values))[first:].astype(float), 1 - values[first:]
    if values.ndim != 1 or len(gap) < 4:
        raise InputError("a decay is fitted to four layers or more")
    if not np.isfinite(gap).all() or gap.min() <= 0:
        raise InputError("correlations below 1 are needed: at 1 nothing is left to decay")
    errors: dict[str, float] = {}
    parameters: dict[str, float] = {}
    for law in LAWS:
        slope, log_fit = _line(layers, gap, law)
        errors[law] = float(np.sqrt(np.mean((log_fit - np.log(gap)) ** 2)))
        if law == "exponential":
            parameters[law] = -1 / slope if slope != 0 else float("inf")
        else:
            parameters[law] = slope ** (-1 if law == "1/l" else -2) if slope != 0 else float("inf")
    best = min(errors, key=lambda k: errors[k])
    return Decay(best, float(parameters[best]), errors)


def _line(layers: NDArray[np.float64], gap: NDArray[np.float64], law: str) -> tuple[float, NDArray[np.float64]]:
    """Slope of the line, and the logarithm of 1 - c that it says; infinite where the line leaves the law's domain."""
    y = {"exponential": np.log(gap), "1/l": 1 / gap, "1/l^2": gap**-0.5}[law]
    # Errors of log(1 - c) count alike, so those of a power are weighed by its inverse.
    weight = np.ones_like(y) if law == "exponential" else 1 / y
    slope, start = np.polyfit(layers, y, 1, w=weight)
    line = start + slope * layers
    if law == "exponential":
        return float(slope), line
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = (-1 if law == "1/l" else -2) * np.log(line)
    return float(slope), np.where(np.isfinite(logs), logs, np.inf)


def _sites(model: Model, at: str | Sequence[str] | None) -> list[str]:
    if at is None:
        chosen: Any = [f"module:{n}" for n, m in model.module.named_modules() if isinstance(m, LAYERS) and n]
        if not chosen:
            raise InputError("the model has no linear or convolutional layers; give sites")
    else:
        chosen = at
    names = [site.name for site, _, _ in model.resolve(chosen)]
    if len(names) < 2:
        raise InputError(f"two layers or more are needed, got {names}")
    return names


def _plain(inputs: Any) -> Any:
    return inputs if isinstance(inputs, Tensor | np.ndarray | str | list) else repr(type(inputs))
