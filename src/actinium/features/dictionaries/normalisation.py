"""What is done to activations before they are encoded, and undone afterwards."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["CONSTANT", "NORMALISATIONS", "constant_scale", "geometric_median", "normalised"]

CONSTANT = ("mean_norm", "mean_square")
"""Normalisations by one number for all rows, which can be folded into the weights."""
NORMALISATIONS = ("none", *CONSTANT, "norm", "layer_norm")
EPS = 1e-5


def constant_scale(x: Tensor, how: str) -> float:
    """The number by which activations (n, d) are multiplied: sqrt(d) / mean norm, or 1 / root of the mean square norm.

    Raises:
        InputError: all activations are zero.
    """
    norms = x.double().norm(dim=-1)
    size = float(norms.mean()) / x.shape[-1] ** 0.5 if how == "mean_norm" else float(norms.square().mean()) ** 0.5
    if not size > 0:
        raise InputError("all activations are zero, so they cannot be normalised")
    return 1.0 / size


def normalised(x: Tensor, how: str, scale: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Activations (n, d) as they are encoded, and what undoes it on a reconstruction."""
    if how == "none":
        return x, lambda y: y
    if how in CONSTANT:
        return x * scale, lambda y: y / scale
    if how == "norm":
        size = x.norm(dim=-1, keepdim=True).clamp_min(EPS) / x.shape[-1] ** 0.5
        return x / size, lambda y: y * size
    # Divided by std + eps and multiplied by std alone, as in the files of other libraries.
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    return (x - mean) / (std + EPS), lambda y: y * std + mean


def geometric_median(x: Tensor, steps: int = 100, tolerance: float = 1e-5) -> Tensor:
    """The point (d,) with the least mean distance to rows (n, d), by Weiszfeld's iteration."""
    x = x.double()
    point = x.mean(0)
    for _ in range(steps):
        weights = 1.0 / (x - point).norm(dim=1).clamp_min(1e-10)
        new = (weights[:, None] * x).sum(0) / weights.sum()
        moved = float((new - point).norm()) / max(float(point.norm()), 1e-12)
        point = new
        if moved < tolerance:
            break
    return point.float()
