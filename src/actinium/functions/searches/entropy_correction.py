"""Entropy of an activation function's output, the function with the highest one, and corrections that lower it.

    ac.functions.output_entropy(torch.sigmoid)                        # -0.193 nats, for standard normal inputs
    worst = ac.functions.worst_activation(samples, 0.0, 1.0)          # their distribution function
    better = ac.functions.eafo_correction(torch.sigmoid, "normal", grid)
    better.f_new(0.5 * better.largest_eps)                            # of lower entropy, as a module

Source: Sun, Wu et al., 2024, arXiv 2405.12954.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from actinium.core.elementwise_function import elementwise
from actinium.core.errors import InputError, unknown
from actinium.core.evaluation import evaluating
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.functions.exchange.replacement import find_activations
from actinium.functions.searches.input_density import (
    Density,
    MonotoneCurve,
    density_of,
    kernel_density,
    sample_values,
)
from actinium.functions.shape_analysis import derivatives

__all__ = [
    "DynamicEAFO",
    "EntropyCorrection",
    "eafo_correction",
    "layer_entropies",
    "output_entropy",
    "worst_activation",
]

Function = Callable[[Tensor], Tensor]
METHODS = ("analytic", "vasicek")
NOTHING = 1e-12
"""Where a density is lower, a slope may be rounded to 0."""
WHOLE = 1e-3
"""How far the integral of a density may be from 1."""


def output_entropy(
    fn: Function, p: str | Density | Any = "normal", method: str = "analytic", n: int = 20000, seed: int = 0
) -> float:
    """Differential entropy of fn(X) in nats.

    Args:
        fn: elementwise function, or module (taken as it is in evaluation).
        p: of X: "normal" (standard), "half-normal", a `Density`, or samples.
        method: "analytic" (H[X] + E log |f'(X)|, of a function that only rises or only falls; H[X] of samples is
            estimated) or "vasicek" (from the spacings of output values; of any function).
        n, seed: "vasicek" of a density draws so many values.

    Raises:
        InputError: fn is not elementwise; it turns or is flat ("analytic"), or a value comes up again and again
            ("vasicek"); then part of the output is an atom, whose differential entropy is -inf.

    Source: Sun et al., 2024, section 3; Vasicek, 1976.
    """
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    fn = elementwise(fn).fn
    known = isinstance(p, str | Density)
    if method == "vasicek":
        x = _draws(density_of(p), n, seed) if known else sample_values(p)
        with torch.no_grad():
            return _vasicek(fn(x).double().numpy())
    if not known:
        values = sample_values(p).numpy()
        slope = derivatives(fn, values)[1]
        _refuse_turns(values, slope)
        return _vasicek(values) + float(np.log(np.abs(slope)).mean())
    density = density_of(p)
    x, weights = density.nodes()
    mass = density.pdf(torch.from_numpy(x)).numpy()
    some = mass > NOTHING
    slope = derivatives(fn, x)[1]
    _refuse_turns(x[some], slope[some])
    use = (mass > 0) & (slope != 0)
    terms = mass[use] * (np.log(np.abs(slope[use])) - np.log(mass[use]))
    return float((weights[use] * terms).sum())


def worst_activation(samples: str | Density | Any, lo: float = 0.0, hi: float = 1.0) -> nn.Module:
    """The rising function onto lo..hi whose output has the highest entropy: the scaled distribution function of X.

    Args:
        samples: of the input; or "normal", "half-normal", a `Density`, whose distribution function is then exact.
        lo, hi: values towards -inf and +inf.

    Raises:
        InputError: lo is not below hi, or the samples have no density.

    Source: Sun et al., 2024, section 3 (worst activation function with boundary conditions).
    """
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise InputError(f"the range needs a lower end below the upper one, not {lo} and {hi}")
    if isinstance(samples, str | Density):
        return _Distribution(density_of(samples), lo, hi)
    values, counts = np.unique(sample_values(samples).numpy(), return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2) / counts.sum()
    return MonotoneCurve(values, lo + (hi - lo) * ranks, flat=True)


class _Distribution(nn.Module):
    """A scaled distribution function."""

    def __init__(self, density: Density, lo: float, hi: float) -> None:
        super().__init__()
        self.density, self.lo, self.hi = density, lo, hi

    def forward(self, x: Tensor) -> Tensor:
        return (self.lo + (self.hi - self.lo) * self.density.cdf(x.double())).to(x.dtype)


@dataclass(frozen=True)
class EntropyCorrection:
    """The direction in which the inverse of a function moves so that the entropy of the output falls fastest.

    Args:
        grid: (n,) inputs x.
        outputs: (n,) u = f(x).
        eta: (n,) at u; the new inverse is y(u) + eps eta(u).
        largest_eps: below it the new inverse rises everywhere, from it on it does not; inf where there is no such.
    """

    grid: np.ndarray
    outputs: np.ndarray
    eta: np.ndarray
    largest_eps: float
    name: str = field(default="f", compare=False)

    def f_new(self, eps: float) -> MonotoneCurve:
        """The corrected function, which goes on as a line beyond the grid.

        Args:
            eps: length of the step; negative ones raise the entropy.

        Raises:
            InputError: the new inverse does not rise everywhere; the largest eps is said.
        """
        inverse = self.grid + eps * self.eta
        if not math.isfinite(eps) or not (np.diff(inverse) > 0).all():
            raise InputError(
                f"with eps = {eps:g} the inverse does not rise everywhere; eps has to be below {self.largest_eps:g}"
            )
        return MonotoneCurve(inverse, self.outputs)

    @property
    def result(self) -> Result:
        """By x: "output", "eta", and "change" = -f'(x) eta, by which f changes for each unit of a small eps."""
        change = -np.gradient(self.outputs, self.grid) * self.eta
        data = xr.Dataset(
            {"eta": ("x", self.eta), "change": ("x", change), "output": ("x", self.outputs)},
            {"x": self.grid},
            {"plot": {"kind": "line", "variables": ["eta", "change"], "ylabel": self.name}},
        )
        return Result(data, "eafo_correction", "eafo-crrelu", provenance(function=self.name, n=len(self.grid)))


def eafo_correction(fn: Function, density: str | Density | Any, grid: Any) -> EntropyCorrection:
    """The entropy-lowering correction of a rising function.

    With y the inverse of f and p the density of the input, eta = -(p'(y) y' + p(y) y'' / y'), which is
    -d/dx (p(x) / f'(x)) at x = y(u).

    Args:
        fn: elementwise function, rising on the grid.
        density: of the input: "normal", "half-normal", a `Density`, a callable of float64 tensors, or values on the
            grid. For samples see `kernel_density`.
        grid: (n,) rising inputs that cover the density.

    Raises:
        InputError: fewer than 5 points or they do not rise; fn is not elementwise or does not rise; the density is
            negative or its integral over the grid is not 1 to 1e-3.

    Source: Sun et al., 2024, section 3.
    """
    x = np.asarray(torch.as_tensor(grid).detach().cpu(), dtype=np.float64)
    if x.ndim != 1 or len(x) < 5 or not np.isfinite(x).all() or not (np.diff(x) > 0).all():
        raise InputError("a grid is a vector of 5 rising numbers or more")
    known = elementwise(fn)
    mass, rise = _density_on(x, density)
    total = float(np.trapezoid(mass, x))
    if not (mass >= 0).all() or abs(total - 1) > WHOLE:
        raise InputError(
            f"a density is nowhere negative and its integral over the grid is 1; this one's is {total:.4g}"
        )
    u, slope, bend = derivatives(known.fn, x, 2)
    if not (slope > 0).all() or not (np.diff(u) > 0).all():
        bad = float(x[np.argmin(slope)])
        raise InputError(
            f"the function does not rise at x = {bad:.4g}, so that it has no inverse; leave such parts out of the grid"
        )
    eta = -(rise / slope - mass * bend / slope**2)
    falls = np.diff(eta) < 0
    largest = float((np.diff(x)[falls] / -np.diff(eta)[falls]).min()) if falls.any() else math.inf
    return EntropyCorrection(x, u, eta, largest, known.name)


def layer_entropies(
    module: nn.Module, inputs: Any, places: Sequence[str] | None = None, limit: int = 20000, seed: int = 0
) -> Result:
    """Entropy of the outputs of a network's activation functions.

    Args:
        module: the network; it is called with `inputs` in evaluation.
        inputs: one argument, or a mapping of keywords.
        places: names of the modules; those that `find_activations` finds, if not given.
        limit, seed: of so many values of a layer, drawn at random.

    Returns:
        Result by layer: "entropy" in nats of the values that come up once (Vasicek), and "atom", the share of the
        others, such as the zeros of ReLU.

    Raises:
        InputError: there is no activation function, or no module of a name.
    """
    names = list(find_activations(module)) if places is None else list(places)
    known = dict(module.named_modules())
    for name in names:
        if name not in known:
            raise InputError(unknown("module", name, known))
    held: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [
        known[name].register_forward_hook(lambda _, __, y, name=name: held[name].append(y.detach().flatten()))
        for name in names
    ]
    try:
        with evaluating(module), torch.no_grad():
            module(**inputs) if isinstance(inputs, dict) else module(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    source = np.random.default_rng(seed)
    rows = []
    for name in names:
        values = sample_values(torch.cat(held[name])).numpy()
        values = source.choice(values, limit, replace=False) if len(values) > limit else values
        single, counts = np.unique(values, return_counts=True)
        single = single[counts == 1]
        rows.append((_vasicek(single) if len(single) >= 10 else math.nan, 1 - len(single) / len(values)))
    data = xr.Dataset(
        {"entropy": ("layer", [r[0] for r in rows]), "atom": ("layer", [r[1] for r in rows])},
        {"layer": names},
        {"plot": {"kind": "bar", "variables": ["entropy"], "ylabel": "nats"}},
    )
    return Result(data, "layer_entropies", "eafo-crrelu", provenance(layers=names, limit=limit, seed=seed))


class DynamicEAFO(nn.Module):
    """A function with a correction that follows the density of its inputs while it is trained.

    f(x) + eps (p'(x) - p(x) f''(x) / f'(x)): to first order in eps the corrected function of `eafo_correction`, so that
    eps > 0 lowers the entropy. Where f is flat the quotient counts as 0, as the paper extends ReLU's correction to
    x < 0. The density is estimated from the latest inputs, every so many calls in training; before the first time
    there is no correction.

    Args:
        fn: elementwise function that nowhere falls.
        every: calls between two estimates.
        eps: initial value of the trained factor.
        memory: how many inputs the estimate is of.
        points: of the table in which the correction is kept.

    Raises:
        InputError: every, memory or points are too small, or fn is not elementwise.

    Source: Sun et al., 2024, section 3 (dynamic optimisation).
    """

    seen: Tensor
    x: Tensor
    change: Tensor
    calls: Tensor

    def __init__(
        self, fn: Function = torch.relu, every: int = 100, eps: float = 0.01, memory: int = 2048, points: int = 129
    ) -> None:
        super().__init__()
        if every < 1 or memory < 10 or points < 5:
            raise InputError(f"every is 1, memory 10 and points 5 or more; got {every}, {memory} and {points}")
        elementwise(fn)
        self.fn, self.every, self.memory, self.points = fn, every, memory, points
        self.eps = nn.Parameter(torch.tensor(float(eps)))
        self.register_buffer("seen", torch.full((memory,), math.nan))
        self.register_buffer("x", torch.linspace(-1.0, 1.0, points))
        self.register_buffer("change", torch.zeros(points))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """The corrected function; in training its inputs are remembered."""
        if self.training:
            self._remember(x.detach())
            self.calls += 1
            if int(self.calls) % self.every == 0:
                self.estimate()
        at, table = self.x.to(x.dtype), self.change.to(x.dtype)
        place = (x - at[0]) / (at[1] - at[0])
        i = place.detach().floor().clamp(0, self.points - 2).long()
        part = (place - i).clamp(0.0, 1.0)
        inside = (x >= at[0]) & (x <= at[-1])
        change = torch.where(inside, table[i] + part * (table[i + 1] - table[i]), 0.0)
        return self.fn(x) + self.eps.to(x.dtype) * change

    def estimate(self) -> None:
        """Estimate the density of the remembered inputs, and the correction from it.

        Raises:
            InputError: too few inputs were seen, or the function falls somewhere.
        """
        values = sample_values(self.seen[~self.seen.isnan()])
        density = kernel_density(values, order=1)
        grid = np.linspace(density.lo, density.hi, self.points)
        mass, rise = _density_on(grid, density)
        _, slope, bend = derivatives(elementwise(self.fn).fn, grid, 2)
        if (slope < -NOTHING).any():
            raise InputError(
                f"the function falls at x = {float(grid[slope.argmin()]):.4g}; it has no inverse to correct"
            )
        quotient = np.divide(bend, slope, out=np.zeros_like(bend), where=slope > NOTHING)
        self.x.copy_(torch.from_numpy(grid))
        self.change.copy_(torch.from_numpy(rise - mass * quotient))

    def _remember(self, x: Tensor) -> None:
        """Exchange the oldest remembered inputs for some of x, an equal share for each call up to an estimate."""
        new = x.flatten().float()
        share = max(1, min(len(new), -(-self.memory // self.every)))
        places = torch.linspace(0, len(new) - 1, share, device=new.device).long()
        self.seen.copy_(torch.cat([self.seen, new[places]])[-self.memory :])


def _density_on(x: np.ndarray, density: Any) -> tuple[np.ndarray, np.ndarray]:
    """Values and slopes of a density on a grid."""
    if isinstance(density, str | Density):
        density = density_of(density).pdf
    if callable(density):
        values, slopes = derivatives(density, x)
        return values, slopes
    from scipy.interpolate import CubicSpline

    values = np.asarray(torch.as_tensor(density).detach().cpu(), dtype=np.float64)
    if values.shape != x.shape or not np.isfinite(values).all():
        raise InputError(f"a density on the grid has {len(x)} finite values, not those of shape {values.shape}")
    return values, CubicSpline(x, values).derivative()(x)


def _draws(density: Density, n: int, seed: int) -> Tensor:
    """Values of a density, by inverting its distribution function on a fine grid."""
    if n < 10:
        raise InputError(f"n is 10 or more, not {n}")
    grid = torch.linspace(density.lo, density.hi, 20001, dtype=torch.float64)
    uniform = np.random.default_rng(seed).random(n)
    return torch.from_numpy(np.interp(uniform, density.cdf(grid).numpy(), grid.numpy()))


def _vasicek(values: np.ndarray) -> float:
    from scipy.stats import differential_entropy

    single, counts = np.unique(values, return_counts=True)
    window = math.floor(math.sqrt(len(values)) + 0.5)
    if counts.max() > window:
        raise InputError(
            f"{counts.max() / len(values):.1%} of the outputs are {float(single[counts.argmax()]):.4g}: the "
            "differential entropy of such an atom is -inf; measure where the function is not flat"
        )
    return float(differential_entropy(values, method="vasicek"))


def _refuse_turns(x: np.ndarray, slope: np.ndarray) -> None:
    if not np.isfinite(slope).all():
        raise InputError(f"the slope of the function is not finite at x = {float(x[~np.isfinite(slope)][0]):.4g}")
    if (slope > 0).all() or (slope < 0).all():
        return
    if (slope == 0).any():
        raise InputError(
            f"the function is flat at x = {float(x[slope == 0][0]):.4g}: part of its output is an atom, whose "
            "differential entropy is -inf; measure where it is not flat"
        )
    turn = float(x[1:][np.sign(slope[1:]) != np.sign(slope[:-1])][0])
    raise InputError(f'the function turns near x = {turn:.4g}; method="vasicek" takes functions that do')
