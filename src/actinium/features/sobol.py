"""Total Sobol indices: how much of a function's variance each input takes part in."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actinium.core.errors import ActiniumWarning, InputError, UnknownNameError, unknown

__all__ = ["ESTIMATORS", "SAMPLERS", "sobol_design", "sobol_importance", "sobol_total"]

Array = NDArray[np.float64]
ESTIMATORS = ("jansen", "homma", "saltelli", "janon", "glen")
SAMPLERS = ("halton", "sobol", "lhs")
CORRELATED = 30
"""Inputs beyond which a short unscrambled Halton sequence is correlated."""
LONG = 128


def sobol_design(
    dims: int, n: int = 32, sampler: str = "halton", *, scramble: bool = False, seed: int = 0
) -> NDArray[np.float64]:
    """Points of the unit cube at which a function must be known: A, B, and A with each column taken from B.

    Args:
        dims: number of inputs d.
        n: points of A.
        sampler: "halton", "sobol" (n best a power of two) or "lhs" (Latin hypercube) in 2 d dimensions; A is the first
            half of the columns.
        scramble: scramble the sequence ("halton", "sobol"). Unscrambled ones begin at 0.
        seed: of scrambling and of the Latin hypercube.

    Returns:
        (n (d + 2), d).

    Raises:
        InputError: `dims` is below 1, `n` below 2, or a Latin hypercube is to be scrambled.
        UnknownNameError: there is no such sampler.

    Source: Fel et al., 2021, section 3 (the design); Saltelli et al., 2010.
    """
    from scipy.stats import qmc

    if sampler not in SAMPLERS:
        raise UnknownNameError(unknown("sampler", str(sampler), SAMPLERS))
    if dims < 1 or n < 2:
        raise InputError(f"a design needs one input and two points or more, got {dims} and {n}")
    if sampler == "lhs" and scramble:
        raise InputError("a Latin hypercube is random as it is; leave scramble out")
    if sampler == "halton" and not scramble and dims > CORRELATED and n < LONG:
        warnings.warn(
            f"{n} points of a Halton sequence are correlated for {dims} inputs; take {LONG} or more, or scramble",
            ActiniumWarning,
            stacklevel=2,
        )
    if sampler == "lhs":
        both = qmc.LatinHypercube(2 * dims, seed=seed).random(n)
    else:
        kind = qmc.Halton if sampler == "halton" else qmc.Sobol
        both = kind(2 * dims, scramble=scramble, seed=seed).random(n)
    a, b = both[:, :dims], both[:, dims:]
    mixed = np.repeat(a[None], dims, axis=0)
    each = np.arange(dims)
    mixed[each, :, each] = b.T
    return np.concatenate([a, b, mixed.reshape(-1, dims)])


def sobol_total(outputs: Any, dims: int, estimator: str = "jansen") -> NDArray[np.float64]:
    """Total indices (..., d) from a function's values at the points of `sobol_design`.

    Only "jansen" gives exactly 0 for an input that does not matter and never a negative number. Where the values at A
    do not vary, all indices are 0 and a warning is given.

    Args:
        outputs: (..., n (d + 2)).
        dims: d.
        estimator: "jansen", "homma" and "saltelli" (the same number), "janon" or "glen".

    Raises:
        InputError: values are not finite or their number does not fit.
        UnknownNameError: there is no such estimator.

    Source: Jansen, 1999; Homma and Saltelli, 1996; Janon et al., 2014; Glen and Isaacs, 2012; Saltelli et al., 2008.
    """
    if estimator not in ESTIMATORS:
        raise UnknownNameError(unknown("estimator", str(estimator), ESTIMATORS))
    y = np.asarray(outputs)
    spacing = float(np.finfo(y.dtype).eps) if y.dtype.kind == "f" else 0.0
    y = y.astype(np.float64)
    if dims < 1 or y.ndim < 1 or y.shape[-1] % (dims + 2) or y.shape[-1] < 2 * (dims + 2):
        raise InputError(f"expected n ({dims} + 2) values of two points or more, got shape {y.shape}")
    if not np.isfinite(y).all():
        raise InputError("the function's values are not finite")
    n = y.shape[-1] // (dims + 2)
    a, c = y[..., None, :n], y[..., 2 * n :].reshape(*y.shape[:-1], dims, n)
    # Rounding alone makes values of a constant function differ in their last digits.
    still = a.std(-1) <= 4 * spacing * np.abs(a).max(-1)
    if still.any():
        warnings.warn(
            f"the values do not vary over the design in {int(still.sum())} of {still.size} rows: the indices are 0",
            ActiniumWarning,
            stacklevel=2,
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        found = _estimate(a, c, n, estimator)
    return np.where(still, 0.0, found)


def _estimate(a: Array, c: Array, n: int, estimator: str) -> Array:
    """Indices (..., d) from values at A (..., 1, n) and at the mixed points (..., d, n)."""
    mean, variance = a.mean(-1), a.var(-1, ddof=1)
    product = (a * c).mean(-1)
    found: Array
    if estimator == "jansen":
        found = ((a - c) ** 2).sum(-1) / (2 * n * variance)
    elif estimator == "homma":
        found = (variance - product + mean**2) / variance
    elif estimator == "saltelli":
        found = 1 - (product - mean**2) / variance
    elif estimator == "janon":
        middle = (a + c).mean(-1) / 2
        spread = (a**2 + c**2).sum(-1) / (2 * (n - 1)) - middle**2
        found = 1 - (product - middle**2) / spread
    else:
        spread = np.sqrt(a.var(-1) * c.var(-1))
        covariance = ((a - mean[..., None]) * (c - c.mean(-1, keepdims=True))).sum(-1) / (n - 1)
        found = np.where(spread > 0, 1 - covariance / spread, 1.0)
    return found


def sobol_importance(
    function: Callable[[Array], Any],
    dims: int,
    n: int = 32,
    *,
    sampler: str = "halton",
    estimator: str = "jansen",
    scramble: bool = False,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Total indices (d,) of a function of inputs that are uniform on the unit cube.

    Args:
        function: from points (k, d) to values (k,).
        dims, n, sampler, scramble, seed: see `sobol_design`.
        estimator: see `sobol_total`.

    Raises:
        InputError, UnknownNameError: see `sobol_design` and `sobol_total`.
    """
    points = sobol_design(dims, n, sampler, scramble=scramble, seed=seed)
    values = np.asarray(function(points))
    if values.shape != points.shape[:1]:
        raise InputError(f"the function gives one value for each of {len(points)} points, not shape {values.shape}")
    return sobol_total(values, dims, estimator)
