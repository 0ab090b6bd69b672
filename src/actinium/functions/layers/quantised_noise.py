"""Activations, weights and gradients in hardware of few levels and with noise, and activations between ReLU and GELU.

    ac.functions.ReducePrecision(15)                                # 4 bits: 15 levels per unit
    ac.functions.GaussianNoise(leakage=0.3, precision=15)           # 3 in 10 values leave their level
    ac.functions.gradient_error("relu", precision=15, std=0.02)["mean_sq"]

Source: Shah and Youngblood, 2024, arXiv 2402.02593; the order in a layer is that of its code (GeLUReLUInterpolation).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from actinium.core.elementwise_function import elementwise
from actinium.core.errors import InputError, unknown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.functions.gates import gelu, silu
from actinium.functions.registry import functional as named

__all__ = [
    "AnalogLinear",
    "GaussianNoise",
    "InterpolatedActivation",
    "ReducePrecision",
    "StochasticReducePrecision",
    "gradient_error",
    "interpolated",
    "leakage_of",
    "std_of",
]

Noise = Callable[[Tensor], Tensor]


def interpolated(x: Tensor, i: float, scale: float = 1.0, alpha: float = 0.0, smooth: str = "gelu") -> Tensor:
    """R(x) + i (G(x) - R(x)) with R the (leaky) ReLU and G(x) = x Phi(s x) or x sigmoid(s x).

    Args:
        x: of any shape.
        i: 0 is R, 1 is G.
        scale: the s.
        alpha: slope of R below 0; it is also R's derivative at 0.
        smooth: "gelu" or "silu".
    """
    # Without a slope not as alpha x, which is NaN at -inf.
    rectified = torch.where(x > 0, x, alpha * x) if alpha else x.relu()
    # (s x) Phi(s x) / s is x Phi(s x), in the form that is 0 and not NaN at -inf.
    soft = (gelu if smooth == "gelu" else silu)(scale * x) / scale
    # At its ends the other part is left out: 0 times infinity is NaN.
    return (1 - i) * rectified + i * soft if 0 < i < 1 else soft if i else rectified


class InterpolatedActivation(nn.Module):
    """Between ReLU and GELU (or SiLU): f = R + i (G - R). Gated: a f(b) of the halves of a dimension.

    Args:
        i: 0 is ReLU, 1 is GELU or SiLU; gated, ReGLU and GeGLU.
        smooth: "gelu" or "silu".
        scale: s of G(x) = x Phi(s x) or x sigmoid(s x), above 0.
        negative_slope: slope of R below 0, from 0 to 1.
        gated: halve dimension `dim` into a and b.
        dim: of the halves.

    Raises:
        InputError: i is outside of 0..1, or another setting has no such value; at the call: no floating-point tensor,
            or an odd number of entries to halve.
    """

    def __init__(
        self,
        i: float = 0.5,
        smooth: str = "gelu",
        scale: float = 1.0,
        negative_slope: float = 0.0,
        gated: bool = False,
        dim: int = -1,
    ) -> None:
        super().__init__()
        if not 0 <= i <= 1 or not 0 <= negative_slope <= 1:
            raise InputError(f"i and negative_slope lie between 0 and 1, got {i} and {negative_slope}")
        if smooth not in ("gelu", "silu"):
            raise InputError(unknown("smooth function", str(smooth), ["gelu", "silu"]))
        if not 0 < scale < math.inf:
            raise InputError(f"the scale is a number above 0, got {scale}")
        self.i, self.smooth, self.scale, self.negative_slope = i, smooth, scale, negative_slope
        self.gated, self.dim = gated, dim

    def forward(self, x: Tensor) -> Tensor:
        """The function of a tensor: its shape, or half of it along `dim` if gated."""
        _check(x, type(self).__name__)
        if not self.gated:
            return self._respond(x)
        if not -x.ndim <= self.dim < x.ndim or x.shape[self.dim] % 2:
            raise InputError(f"dimension {self.dim} of a tensor of shape {tuple(x.shape)} has no two halves")
        a, b = x.chunk(2, self.dim)
        return a * self._respond(b)

    def _respond(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return interpolated(wide, self.i, self.scale, self.negative_slope, self.smooth).to(x.dtype)

    def extra_repr(self) -> str:
        """Settings."""
        return f"i={self.i:g}, smooth={self.smooth!r}, scale={self.scale:g}, negative_slope={self.negative_slope:g}"


class _Straight(torch.autograd.Function):
    """y forward, and y's gradient to x backward."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return slope, None


def _check(x: Any, what: str) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{what} takes a floating-point tensor, not {kind}")


def _whole(precision: Any) -> int:
    if isinstance(precision, bool) or not isinstance(precision, int | float) or precision != precision // 1:
        raise InputError(f"precision is the number of levels per unit, a whole number from 1 on, not {precision!r}")
    if not 1 <= precision < math.inf:
        raise InputError(f"precision is 1 level per unit or more (2^bits - 1), got {precision}")
    return int(precision)


class _Levels(nn.Module):
    """Base of roundings to multiples of 1/p, whose gradient is that of the identity."""

    def __init__(self, precision: int) -> None:
        super().__init__()
        self.precision = _whole(precision)

    def forward(self, x: Tensor) -> Tensor:
        """x in the nearest levels, in its shape and type; the gradient passes straight through."""
        _check(x, type(self).__name__)
        with torch.no_grad():
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            y = (wide.sign() * self.levels((wide * self.precision).abs()) / self.precision).to(x.dtype)
        straight: Tensor = _Straight.apply(x, y)
        return straight

    def levels(self, g: Tensor) -> Tensor:
        """Whole numbers for the magnitudes |x| p."""
        raise TypeError(f"{type(self).__name__} must define levels()")

    def extra_repr(self) -> str:
        """Number of levels."""
        return f"precision={self.precision}"


class ReducePrecision(_Levels):
    """Rounding to p levels per unit: sign(x) ceil(|x p| - d) / p. Half a level goes towards 0 where d is 1/2.

    Args:
        precision: p, levels per unit: 2^bits - 1.
        divide: d, where between two levels the upper one begins.

    Raises:
        InputError: precision is no whole number from 1 on, or divide is outside of 0..1.
    """

    def __init__(self, precision: int, divide: float = 0.5) -> None:
        super().__init__(precision)
        if not 0 <= divide <= 1:
            raise InputError(f"divide lies between 0 and 1, got {divide}")
        self.divide = divide

    def levels(self, g: Tensor) -> Tensor:
        """ceil(g - d)."""
        return torch.ceil(g - self.divide)


class StochasticReducePrecision(_Levels):
    """Rounding to p levels per unit, up with the probability of the remainder: its mean is x. Drawn at each call.

    Args:
        precision: p, levels per unit: 2^bits - 1.

    Raises:
        InputError: precision is no whole number from 1 on.
    """

    def levels(self, g: Tensor) -> Tensor:
        """floor(g), or one more with probability g - floor(g)."""
        low = g.floor()
        return low + (torch.rand_like(g) < g - low)


def std_of(leakage: float, precision: float) -> float:
    """Standard deviation of noise that moves a value by more than half a level with probability `leakage`.

    Raises:
        InputError: leakage is not inside of 0..1, or precision is not above 0.
    """
    if not 0 < leakage < 1 or not 0 < precision < math.inf:
        raise InputError(f"leakage lies inside of 0..1 and precision above 0, got {leakage} and {precision}")
    from scipy.special import erfcinv

    return 1 / (2 * math.sqrt(2) * precision * float(erfcinv(leakage)))


def leakage_of(std: float, precision: float) -> float:
    """Probability that noise of a standard deviation moves a value by more than half a level.

    Raises:
        InputError: std or precision is not above 0.
    """
    if not 0 < std < math.inf or not 0 < precision < math.inf:
        raise InputError(f"std and precision are above 0, got {std} and {precision}")
    return math.erfc(1 / (2 * math.sqrt(2) * std * precision))


class GaussianNoise(nn.Module):
    """x + std e with fresh normal e at each call, in evaluation too. Two of the three settings give the third.

    Args:
        std: standard deviation of the noise.
        leakage: probability that it moves a value by more than half a level.
        precision: levels per unit; any number above 0.

    Raises:
        InputError: not two of the three are given, or one has no such value.
    """

    def __init__(
        self, std: float | None = None, leakage: float | None = None, precision: float | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        given = {"std": std, "leakage": leakage, "precision": precision}
        if sum(v is not None for v in given.values()) != 2:
            raise InputError(f"exactly two of std, leakage and precision are given, not {given}")
        if std is None:
            std = std_of(leakage, precision)  # type: ignore[arg-type]
        elif leakage is None:
            leakage = leakage_of(std, precision)  # type: ignore[arg-type]
        else:
            precision = std_of(leakage, std)  # the formula has the product of both, so that each gives the other
        self.std, self.leakage, self.precision = std, leakage, precision

    def forward(self, x: Tensor) -> Tensor:
        """x with noise, in its shape and type."""
        _check(x, "GaussianNoise")
        return x + self.std * torch.randn_like(x)

    def extra_repr(self) -> str:
        """All three settings."""
        return f"std={self.std:.4g}, leakage={self.leakage:.4g}, precision={self.precision:.4g}"


class AnalogLinear(nn.Module):
    """A linear or convolutional layer between converters: input and weights through clamp, levels and noise, output
    through noise, clamp and levels, then the activation. The clamp is to -1..1; its gradient is 0 outside.

    Args:
        layer: what is wrapped, such as nn.Linear or nn.Conv2d; its parameters (biases too) are learnt as before.
        precision: levels per unit, 2^bits - 1.
        leakage, std: of the noise, one of the two or none (no noise).
        divide: of `ReducePrecision`.
        stochastic: round with `StochasticReducePrecision`.
        activation: what follows; None at the output of a network.

    Raises:
        InputError: a setting has no such value, or the layer has no parameters.
    """

    def __init__(
        self,
        layer: nn.Module,
        precision: int,
        *,
        leakage: float | None = None,
        std: float | None = None,
        divide: float = 0.5,
        stochastic: bool = False,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(layer, nn.Module) or not any(True for _ in layer.parameters()):
            raise InputError(f"a layer with weights is needed, such as nn.Linear, not {type(layer).__name__}")
        levels = StochasticReducePrecision(precision) if stochastic else ReducePrecision(precision, divide)
        noise = _noise(std, leakage, precision) or nn.Identity()
        self.layer, self.activation = layer, activation
        self.enter = nn.Sequential(nn.Hardtanh(), levels, noise)
        self.leave = nn.Sequential(noise, nn.Hardtanh(), levels)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, (as the layer)."""
        weights = {name: self.enter(p) for name, p in self.layer.named_parameters()}
        y = self.leave(torch.func.functional_call(self.layer, weights, (self.enter(x),)))
        out: Tensor = y if self.activation is None else self.activation(y)
        return out


def _noise(std: float | None, leakage: float | None, precision: int | None) -> GaussianNoise | None:
    """Noise of a standard deviation or a leakage; None where neither is given."""
    if std is None and leakage is None:
        return None
    if std is not None and leakage is not None:
        raise InputError("one of leakage and std is given: with the precision each follows from the other")
    # The noise needs no levels where its size is given; the leakage is then that of levels of 1.
    return GaussianNoise(std, leakage, 1 if precision is None and std is not None else precision)


def gradient_error(
    fn: str | Noise,
    precision: int | None,
    leakage: float | None = None,
    std: float | None = None,
    radius: float = 0.02,
    n: int = 100_000,
    seed: int = 0,
    *,
    bins: int = 40,
) -> Result:
    """How far the derivative of a function at a rounded and noisy input is from that at the clean one.

    Args:
        fn: name of an elementwise function of the catalogue, or such a function or module (its parameters are kept as
            they are).
        precision: levels per unit of the rounding; None for none.
        leakage, std: of the noise, one of the two or none.
        radius: inputs are uniform in -radius..radius.
        n: number of inputs.
        seed: of inputs and noise.
        bins: of the curve.

    Returns:
        "curve" (mean squared error by input x), "mean_sq" and "mean_abs" over all inputs.

    Raises:
        InputError: a setting has no such value, or the function is not elementwise.

    Source: Shah and Youngblood, 2024; the derivative is taken where the hardware takes it, at the noisy input.
    """
    if not 0 < radius < math.inf or not 1 <= bins <= n:
        raise InputError(f"radius is above 0, and n is as large as bins or larger, got {radius}, {n} and {bins}")
    rounded = nn.Identity() if precision is None else ReducePrecision(precision)
    noise = _noise(std, leakage, precision)
    size = noise.std if noise else 0.0
    random = torch.Generator().manual_seed(seed)
    x = (torch.rand(n, generator=random, dtype=torch.float64) * 2 - 1) * radius
    noisy = rounded(x) + size * torch.randn(n, generator=random, dtype=torch.float64)
    function = elementwise(named(fn) if isinstance(fn, str) else fn).fn
    error = _slope(function, x) - _slope(function, noisy)
    place = ((x + radius) * (bins / (2 * radius))).long().clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins)
    curve = torch.bincount(place, error.square(), bins) / count
    centres = (torch.arange(bins, dtype=torch.float64) + 0.5) * (2 * radius / bins) - radius
    data = xr.Dataset(
        {
            "curve": ("x", curve.numpy()),
            "mean_sq": float(error.square().mean()),
            "mean_abs": float(error.abs().mean()),
        },
        {"x": centres.numpy()},
        {"plot": {"variables": ["curve"], "ylabel": "squared error of the derivative"}},
    )
    name = fn if isinstance(fn, str) else getattr(fn, "__name__", type(fn).__name__)
    about = provenance(seed=seed, function=name, precision=precision, std=size, radius=radius, n=n)
    return Result(data, "gradient_error", "smooth-activations-noise", about)


def _slope(function: Noise, x: Tensor) -> Tensor:
    at = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        y = function(at)
        if not y.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(y.sum(), at)[0]
