"""Approximations of activations: sparsity by magnitude, smoothing before quantisation, piecewise polynomials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.rounding import round_to_nearest

__all__ = [
    "PiecewisePolynomial",
    "best_clip",
    "magnitude_quantile",
    "smooth_quantize",
    "smoothing_scales",
    "sparsify",
]


def magnitude_quantile(values: Tensor, p: float) -> float:
    """The threshold t of which floor(p N) of N entries have a smaller magnitude (fewer where entries are equal).

    Args:
        values: any shape.
        p: share, from 0 to below 1.

    Raises:
        InputError: p out of range, no values, or values that are not finite.

    Source: Liu et al., 2025, TEAL; Lee et al., 2024, CATS (thresholds per tensor from calibration).
    """
    if not 0 <= p < 1:
        raise InputError(f"the share of zeros is at least 0 and below 1, not {p}")
    size = values.detach().flatten().abs().double()
    if not len(size) or not bool(torch.isfinite(size).all()):
        raise InputError("a quantile needs finite values")
    return float(size.kthvalue(int(p * len(size)) + 1).values)


def sparsify(values: Tensor, p: float, threshold: float | None = None) -> Tensor:
    """Zeros where the magnitude is small.

    Args:
        values: (..., d).
        p: share of zeros; without a threshold the floor(p d) smallest entries of each token.
        threshold: instead, zeros where |a| < threshold (of `magnitude_quantile`).

    Raises:
        InputError: p out of range.
    """
    if not 0 <= p < 1:
        raise InputError(f"the share of zeros is at least 0 and below 1, not {p}")
    if threshold is not None:
        return torch.where(values.abs() < threshold, 0.0, values)
    k = int(p * values.shape[-1])
    if k == 0:
        return values
    smallest = values.abs().topk(k, dim=-1, largest=False, sorted=False).indices
    return values.masked_fill(torch.zeros_like(values, dtype=torch.bool).scatter(-1, smallest, True), 0.0)


def smoothing_scales(inputs: Tensor, weights: Tensor, alpha: float = 0.5) -> Tensor:
    """Scales s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), by which channels are divided before they are quantised.

    Args:
        inputs: (..., d) activations of calibration.
        weights: (out, d), those of all maps that read them.
        alpha: from 0 (all the difficulty stays) to 1.

    Returns:
        (d,); 1 where a channel or its weights are zero.

    Raises:
        InputError: alpha out of range, or sizes differ.

    Source: Xiao et al., 2023, SmoothQuant, equation 4.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is from 0 to 1, not {alpha}")
    if inputs.shape[-1] != weights.shape[-1]:
        raise InputError(f"activations of width {inputs.shape[-1]} and weights of width {weights.shape[-1]}")
    x, w = (t.detach().float().reshape(-1, t.shape[-1]).abs().amax(0) for t in (inputs, weights))
    scales = x**alpha / w ** (1 - alpha)
    return torch.where((x > 0) & (w > 0), scales, 1.0)


def smooth_quantize(
    values: Tensor,
    bits: int,
    *,
    per: str = "token",
    symmetric: bool = True,
    scales: Tensor | None = None,
    clip: float = 1.0,
) -> Tensor:
    """Quantisation and back, of channels that were divided by scales, which the next map's weights would hold.

    Args:
        values: (..., d).
        bits: from 2; 16 and more give the values as they are.
        per: "token" (one scale for each) or "tensor".
        symmetric, clip: see `core.rounding.round_to_nearest`.
        scales: (d,) of `smoothing_scales`, or None.
    """
    if bits >= 16:
        return values
    x = values if scales is None else values / scales.to(values)
    dims = -1 if per == "token" else tuple(range(x.ndim))
    x = round_to_nearest(x, bits, dims, symmetric=symmetric, clip=clip)
    return x if scales is None else x * scales.to(x)


def best_clip(values: Tensor, bits: int, **options: Any) -> float:
    """The share of the range, from 0.5 to 1 in steps of 0.05, that loses least of squares in quantisation.

    A search on a grid takes the place of OmniQuant's learning of the same number by gradients.

    Args:
        values: (n, d) of calibration.
        bits: from 2.
        **options: of `smooth_quantize`.

    Source: Shao et al., 2024, OmniQuant, section 3.2 (the number that is learned there).
    """
    shares = [1 - 0.05 * i for i in range(11)]
    changed = [smooth_quantize(values, bits, clip=share, **options) for share in shares]
    errors = [float((one - values).double().square().sum()) for one in changed]
    return shares[int(np.argmin(errors))]


class PiecewisePolynomial:
    """A function on [low, high] as polynomials on pieces of equal length, each through Chebyshev points.

    Args:
        function: from float64 (n,) to the same.
        low, high: ends of the interval, finite.
        degree: of each polynomial, from 1.
        pieces: number of them, from 1.
        outside: "relu" (zero below, identity above, as for SiLU and GELU), "zero" (zero below, the value at `high`
            above, as for exp) or "edge" (the values at the ends).

    Raises:
        InputError: the interval or a number is out of range, or the function is not finite on it.

    Source: Zhang et al., 2025 (the family of approximations of private inference).
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        low: float,
        high: float,
        degree: int = 3,
        pieces: int = 8,
        outside: str = "relu",
    ) -> None:
        if not (np.isfinite([low, high]).all() and low < high):
            raise InputError(f"a polynomial needs an interval that rises, not [{low}, {high}]")
        if degree < 1 or degree != int(degree) or pieces < 1:
            raise InputError(f"expected a degree and a number of pieces from 1, not {degree} and {pieces}")
        if outside not in ("relu", "zero", "edge"):
            raise InputError(f"outside is 'relu', 'zero' or 'edge', not {outside!r}")
        self.low, self.high, self.outside, self.pieces = float(low), float(high), outside, int(pieces)
        n = int(degree) + 1
        points = np.cos((2 * np.arange(n) + 1) * np.pi / (2 * n))
        self.width = (self.high - self.low) / self.pieces
        at = self.low + self.width * (np.arange(self.pieces)[:, None] + (points + 1) / 2)
        with torch.no_grad():
            known = function(torch.tensor(at).flatten()).reshape(at.shape).numpy()
        if not np.isfinite(known).all():
            raise InputError(f"the function is not finite on [{low}, {high}]")
        self.coefficients = torch.tensor(np.linalg.solve(np.vander(points, increasing=True), known.T).T)

    def __call__(self, x: Tensor) -> Tensor:
        """The approximation at x, of its shape and type."""
        inside = x.clamp(self.low, self.high)
        place = (inside - self.low) / self.width
        piece = place.detach().floor().long().clamp(0, self.pieces - 1)
        t = 2 * (place - piece) - 1
        table = self.coefficients.to(x)
        out = table[:, -1][piece]
        for power in range(table.shape[1] - 2, -1, -1):
            out = out * t + table[:, power][piece]
        if self.outside != "edge":
            out = torch.where(x < self.low, 0.0, out)
        return torch.where(x > self.high, x, out) if self.outside == "relu" else out
