"""Laws of how the activation ratio moves with training data and with the shape of the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

from actinium.core.errors import InputError
from actinium.core.estimator import Estimator

__all__ = ["LAWS", "SparsingLaw", "WidthDepthLaw"]

Array = np.ndarray


def _relu(d: Array, alpha: float, b: float, c: float, a0: float) -> Array:
    return np.exp(-c * d**alpha + b) + a0


def _silu(d: Array, alpha: float, c: float, a0: float) -> Array:
    return a0 - c * d**-alpha


def _logarithm(d: Array, a: float, b: float) -> Array:
    return a * np.log(d) + b


LAWS: dict[str, tuple[Callable[..., Array], tuple[str, ...]]] = {
    "relu": (_relu, ("alpha", "b", "c", "a0")),
    "silu": (_silu, ("alpha", "c", "a0")),
    "logarithm": (_logarithm, ("a", "b")),
}


class SparsingLaw(Estimator):
    """Activation ratio A as a function of the training tokens D, in billions.

    "relu": A = exp(-c D^alpha + b) + A0, decreasing. "silu": A = A0 - c D^-alpha, increasing. "logarithm":
    A = a ln D + b, to compare with; it has no limit.

    Args:
        law: one of the three.

    Attributes:
        params_: the parameters by name.
        limit_: A0, the ratio for unlimited data (None for the logarithm).
        mae_, mse_: mean absolute and mean squared error of the fit.

    Source: Luo et al., 2024, Sparsing Law.
    """

    fitted = "params_"

    def __init__(self, law: str = "relu") -> None:
        self.law = law

    def fit(self, tokens: Any, ratio: Any) -> Self:
        """Fit by least squares.

        Args:
            tokens: training tokens in billions (n,), positive.
            ratio: activation ratio (n,), from 0 to 1.

        Raises:
            InputError: unknown law, fewer points than parameters, values out of range, or no convergence.
        """
        if self.law not in LAWS:
            raise InputError(f"law is one of {', '.join(LAWS)}, got {self.law!r}")
        function, names = LAWS[self.law]
        d, y = np.asarray(tokens, dtype=float), np.asarray(ratio, dtype=float)
        if d.shape != y.shape or d.ndim != 1 or len(d) < len(names):
            raise InputError(
                f"expected {len(names)} points or more, two vectors of one length, got {d.shape}, {y.shape}"
            )
        if not (np.isfinite(d).all() and (d > 0).all() and np.isfinite(y).all() and ((y >= 0) & (y <= 1)).all()):
            raise InputError("expected positive token numbers and ratios from 0 to 1")
        best: tuple[float, Array] | None = None
        for start in self._starts(d, y):
            try:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore", OptimizeWarning)
                    found, _ = curve_fit(function, d, y, p0=start, maxfev=20000, ftol=1e-14, xtol=1e-14)
                    error = float(np.mean((function(d, *found) - y) ** 2))
            except (RuntimeError, ValueError):
                continue
            if np.isfinite(error) and (best is None or error < best[0]):
                best = (error, found)
        if best is None:
            raise InputError(f"the {self.law} law did not converge on these points")
        self.params_ = dict(zip(names, map(float, best[1]), strict=True))
        self.limit_ = self.params_.get("a0")
        self.mse_ = best[0]
        self.mae_ = float(np.mean(np.abs(self.predict(d) - y)))
        return self

    def predict(self, tokens: Any) -> Array:
        """Ratio after training on so many billions of tokens.

        Raises:
            InputError: `fit` was not called.
        """
        self.check_fitted()
        return LAWS[self.law][0](np.asarray(tokens, dtype=float), *self.params_.values())

    def _starts(self, d: Array, y: Array) -> list[list[float]]:
        """Starting points: for fixed exponents the laws are linear in the rest, which is solved exactly."""
        if self.law == "logarithm":
            return [[float(v) for v in np.polyfit(np.log(d), y, 1)]]
        starts: list[tuple[float, list[float]]] = []
        for alpha in (0.1, 0.25, 0.5, 1.0, 1.5, 2.5):
            for c in (1.0,) if self.law == "silu" else np.geomspace(0.03, 10.0, 8) / d.max() ** alpha * 2:
                shape = -(d**-alpha) if self.law == "silu" else np.exp(-c * d**alpha)
                design = np.stack([shape, np.ones_like(d)], 1)
                (scale, level), *_ = np.linalg.lstsq(design, y, rcond=None)
                error = float(np.mean((design @ [scale, level] - y) ** 2))
                if self.law == "silu":
                    starts.append((error, [alpha, float(scale), float(level)]))
                elif scale > 0:
                    starts.append((error, [alpha, float(np.log(scale)), float(c), float(level)]))
        return [start for _, start in sorted(starts, key=lambda s: s[0])[:6]]


class WidthDepthLaw(Estimator):
    """Limit ratio as a function of width over depth: linear up to a bottleneck, constant beyond.

    A0 = slope * min(x, bottleneck) + intercept with x = d_model / n_layers.

    Attributes:
        slope_, intercept_, bottleneck_: the parameters; the bottleneck is the largest x where none shows.
        mse_: mean squared error of the fit.

    Source: Luo et al., 2024, abstract (the linear part and the bottleneck); the constant beyond it is ours.
    """

    fitted = "slope_"

    def fit(self, width_over_depth: Any, ratio: Any) -> Self:
        """Fit by least squares over every bottleneck between the points.

        Args:
            width_over_depth: d_model / n_layers (n,), n >= 3.
            ratio: limit ratios (n,).

        Raises:
            InputError: fewer than three points, or values that are not finite.
        """
        x, y = np.asarray(width_over_depth, dtype=float), np.asarray(ratio, dtype=float)
        if x.shape != y.shape or x.ndim != 1 or len(np.unique(x)) < 3 or not np.isfinite([x, y]).all():
            raise InputError(f"expected three different points or more, all finite, got {x.shape}, {y.shape}")
        best = (np.inf, 0.0, 0.0, 0.0)
        for bottleneck in np.linspace(*np.unique(x)[[1, -1]], 512):
            design = np.stack([np.minimum(x, bottleneck), np.ones_like(x)], 1)
            (slope, level), *_ = np.linalg.lstsq(design, y, rcond=None)
            error = float(np.mean((design @ [slope, level] - y) ** 2))
            best = min(best, (error, float(slope), float(level), float(bottleneck)))
        self.mse_, self.slope_, self.intercept_, self.bottleneck_ = best
        return self

    def predict(self, width_over_depth: Any) -> Array:
        """Limit ratio of models of this width over depth.

        Raises:
            InputError: `fit` was not called.
        """
        self.check_fitted()
        return self.slope_ * np.minimum(np.asarray(width_over_depth, dtype=float), self.bottleneck_) + self.intercept_
