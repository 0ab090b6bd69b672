"""Activation transport operators: linear maps from the activations of one layer to those of a later one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError, MissingExtraError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.core.rows import as_rows

__all__ = ["ALPHAS", "METHODS", "TransportOperator", "paired", "whitening"]

METHODS = ("ridge", "ols", "lasso", "elasticnet", "identity", "zero", "mean")
ALPHAS = {
    "ridge": (0.1, 1.0, 10.0, 100.0, 1000.0, 2000.0, 5000.0, 10000.0),
    "lasso": (0.01, 0.1, 1.0, 10.0, 100.0),
    "elasticnet": (0.1, 1.0, 10.0, 100.0),
}
"""Penalties tried by cross-validation; ridge adds alpha |T|^2 to the summed squares, the others alpha to the mean."""
TENSORS = ("matrix_", "bias_", "x_mean_", "y_mean_", "x_cov_", "y_cov_")
CLIP = 1e-12
"""Eigenvalues of a covariance below this are raised to it before its inverse root is taken."""


def paired(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Rows of two layers, float64.

    Raises:
        InputError: another number of rows, or values that are not finite.
    """
    a, b = (as_rows(rows, what, dtype=torch.float64).cpu() for what, rows in (("X", x), ("Y", y)))
    if len(a) != len(b):
        raise InputError(f"X has {len(a)} rows and Y {len(b)}; row i of both must be the same token")
    return a, b


def whitening(covariance: Tensor, ridge: float = 0.0) -> Tensor:
    """Symmetric inverse root of a covariance (d, d), with eigenvalues clipped at 1e-12 after `ridge` is added."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    root: Tensor = (vectors * (values + ridge).clamp_min(CLIP).rsqrt()) @ vectors.T
    return root


def _root(covariance: Tensor) -> Tensor:
    """Inverse of `whitening`."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    root: Tensor = (vectors * values.clamp_min(CLIP).sqrt()) @ vectors.T
    return root


class TransportOperator(SavedEstimator):
    """The map y = T x + b from activations of one place to those of another.

    Args:
        method: "ridge", "ols", "lasso" or "elasticnet" (scikit-learn), or a baseline: "identity" (y = x), "zero"
            (y = 0), "mean" (y is the mean of the training rows).
        alpha: the penalty, or "cv" for the one of `alphas` with the best R2 in cross-validation.
        alphas: penalties to try; those of `ALPHAS` by default.
        folds: of the cross-validation, made of neighbouring rows, so that a text is mostly within one.
        l1_ratio: share of the absolute penalty in the elastic net.

    Attributes:
        matrix_: T (d_y, d_x), float64.
        bias_: b (d_y,).
        alpha_: the penalty used; 0 without one.
        cv_: mean R2 of each penalty tried, by penalty; empty without cross-validation.
        x_mean_, y_mean_: of the training rows.
        x_cov_, y_cov_: their covariances, divided by the number of rows: (d_x, d_x) and (d_y, d_y).
        rows_: number of training rows.
        rank_: rank of T where it was truncated, else None.

    Source: Szablewski and Masiak, 2025, section 3.
    """

    fitted = "matrix_"
    saved_as = "transport operator"

    def __init__(
        self,
        method: str = "ridge",
        alpha: float | str = "cv",
        alphas: Sequence[float] | None = None,
        folds: int = 5,
        l1_ratio: float = 0.1,
    ) -> None:
        self.method, self.alpha, self.alphas = method, alpha, alphas
        self.folds, self.l1_ratio = folds, l1_ratio

    def fit(self, x: Any, y: Any) -> Self:
        """Fit on rows of both places.

        Args:
            x: (n, d_x) tensor, array, or activations of a store.
            y: (n, d_y), the same tokens.

        Raises:
            InputError: shapes do not fit, values are not finite, a setting is out of range.
            UnknownNameError: there is no such method.
            MissingExtraError: scikit-learn is needed and not installed.
        """
        self._check()
        a, b = paired(x, y)
        if self.method == "identity" and a.shape[1] != b.shape[1]:
            raise InputError(f"the identity needs equal widths, got {a.shape[1]} and {b.shape[1]}")
        free = self.method == "ols" or (self.method == "ridge" and self.alpha == 0)
        if free and len(a) <= a.shape[1]:
            warnings.warn(
                f"{len(a)} rows do not determine a map from {a.shape[1]} dimensions; the one of least norm is taken",
                ActiniumWarning,
                stacklevel=2,
            )
        self.rows_ = len(a)
        self.rank_: int | None = None
        self.x_mean_, self.y_mean_ = a.mean(0), b.mean(0)
        x0, y0 = a - self.x_mean_, b - self.y_mean_
        self.x_cov_, self.y_cov_ = x0.T @ x0 / len(a), y0.T @ y0 / len(a)
        self.cv_: dict[float, float] = {}
        self.alpha_ = 0.0 if self.method not in ALPHAS else self._alpha(a, b)
        self.matrix_ = self._matrix(x0, y0)
        self.bias_ = self.y_mean_ - self.matrix_ @ self.x_mean_
        if self.method in ("identity", "zero"):
            self.bias_ = torch.zeros_like(self.bias_)
        return self

    def _check(self) -> None:
        if self.method not in METHODS:
            raise UnknownNameError(unknown("method", str(self.method), METHODS))
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool) and self.alpha >= 0
        if not number and self.alpha != "cv":
            raise InputError(f'alpha is "cv" or a number of 0 or more, not {self.alpha!r}')
        if self.alphas is not None and (not len(self.alphas) or any(not a >= 0 for a in self.alphas)):
            raise InputError(f"alphas are numbers of 0 or more, got {self.alphas}")
        if self.folds < 2 or not 0 <= self.l1_ratio <= 1:
            raise InputError(f"expected folds >= 2 and l1_ratio from 0 to 1, got {self.folds} and {self.l1_ratio}")

    def _alpha(self, x: Tensor, y: Tensor) -> float:
        """The penalty that was given, or the best one by cross-validation."""
        if self.alpha != "cv":
            return float(self.alpha)
        if len(x) < 2 * self.folds:
            raise InputError(f"{self.folds} folds need {2 * self.folds} rows or more, got {len(x)}")
        tried = [float(a) for a in (ALPHAS[self.method] if self.alphas is None else self.alphas)]
        scores = torch.zeros(len(tried), dtype=torch.float64)
        x, y = x - x.mean(0), y - y.mean(0)
        products = x.T @ torch.cat([x, y], 1)
        for held in torch.arange(len(x)).tensor_split(self.folds):
            kept = torch.ones(len(x), dtype=torch.bool)
            kept[held] = False
            x_mean, y_mean = x[kept].mean(0), y[kept].mean(0)
            if self.method == "ridge":
                # The products of the rows that are kept are those of all rows without the held ones.
                without = products - x[held].T @ torch.cat([x[held], y[held]], 1)
                means = torch.outer(x_mean, torch.cat([x_mean, y_mean])) * int(kept.sum())
                within = without - means
                maps = _ridge(within[:, : x.shape[1]], within[:, x.shape[1] :], tried)
            else:
                maps = [self._sparse(x[kept] - x_mean, y[kept] - y_mean, a) for a in tried]
            for i, matrix in enumerate(maps):
                scores[i] += r2(y[held], (x[held] - x_mean) @ matrix.T + y_mean) / self.folds
        self.cv_ = dict(zip(tried, scores.tolist(), strict=True))
        return tried[int(scores.argmax())]

    def _matrix(self, x0: Tensor, y0: Tensor) -> Tensor:
        """T (d_y, d_x) from centred rows."""
        if self.method == "ridge":
            return _ridge(x0.T @ x0, x0.T @ y0, [self.alpha_])[0]
        if self.method == "ols":
            found: Tensor = torch.linalg.lstsq(x0, y0, driver="gelsd").solution.T
            return found
        if self.method == "identity":
            return torch.eye(x0.shape[1], dtype=torch.float64)
        if self.method in ("zero", "mean"):
            return torch.zeros(y0.shape[1], x0.shape[1], dtype=torch.float64)
        return self._sparse(x0, y0, self.alpha_)

    def _sparse(self, x0: Tensor, y0: Tensor, alpha: float) -> Tensor:
        try:
            from sklearn.linear_model import ElasticNet, Lasso
        except ImportError:
            raise MissingExtraError("scikit-learn", "learn") from None
        options = {"alpha": alpha, "fit_intercept": False, "max_iter": 5000, "tol": 1e-3}
        one = Lasso(**options) if self.method == "lasso" else ElasticNet(l1_ratio=self.l1_ratio, **options)
        found = one.fit(x0.numpy(), y0.numpy()).coef_
        return torch.as_tensor(np.atleast_2d(found), dtype=torch.float64)

    def predict(self, x: Any) -> Tensor:
        """T x + b of activations (…, d_x): (…, d_y), in their type.

        Raises:
            InputError: `fit` was not called, or the width differs.
        """
        matrix = self._fitted()
        given = torch.as_tensor(x)
        if given.shape[-1:] != matrix.shape[1:]:
            raise InputError(f"the operator maps from {matrix.shape[1]} dimensions, got shape {tuple(given.shape)}")
        kind = given.dtype if given.is_floating_point() else torch.float64
        t, b = matrix.to(given.device, kind), self.bias_.to(given.device, kind)
        return given.to(kind) @ t.T + b

    def score(self, x: Any, y: Any, weighting: str = "uniform") -> float:
        """R2 of the prediction on rows (n, d_x) and (n, d_y).

        Args:
            x, y: rows.
            weighting: "uniform" (mean of each output's R2) or "variance" (of all squares together).

        Raises:
            InputError: shapes do not fit.
            UnknownNameError: there is no such weighting.
        """
        a, b = paired(x, y)
        return r2(b, self.predict(a), weighting)

    def truncate(self, rank: int, optimal: bool = False) -> TransportOperator:
        """The operator of a lower rank.

        Args:
            rank: 1 to the smaller width.
            optimal: keep the directions of Y that are predicted best in the metric in which Y is white (reduced-rank
                regression), instead of the largest singular values of T.

        Returns:
            A fitted operator; its bias makes the mean training residual zero.

        Raises:
            InputError: `fit` was not called, or the rank is out of range.

        Source: Szablewski and Masiak, 2025, section 3; Izenman, 1975 (reduced-rank regression).
        """
        matrix = self._fitted()
        if not 1 <= rank <= min(matrix.shape):
            raise InputError(f"rank must be from 1 to {min(matrix.shape)}, got {rank}")
        out = copy.copy(self)
        if optimal:
            # The fitted values' covariance in white coordinates, with the penalty that the fit had.
            white = whitening(self.y_cov_)
            penalty = self.alpha_ / self.rows_ if self.method == "ridge" else 0.0
            wide = white @ matrix
            inner = self.x_cov_ + penalty * torch.eye(len(self.x_cov_), dtype=torch.float64)
            vectors = torch.linalg.eigh(wide @ inner @ wide.T)[1][:, -rank:]
            out.matrix_ = _root(self.y_cov_) @ vectors @ (vectors.T @ wide)
        else:
            u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
            out.matrix_ = (u[:, :rank] * s[:rank]) @ vh[:rank]
        out.bias_ = self.y_mean_ - out.matrix_ @ self.x_mean_
        out.rank_ = rank
        return out

    def null(self) -> TransportOperator:
        """The operator's answer to an input of zero: y = b whatever x."""
        out = copy.copy(self)
        out.matrix_ = torch.zeros_like(self._fitted())
        return out

    def _fitted(self) -> Tensor:
        self.check_fitted()
        return self.matrix_

    def _settings(self) -> dict[str, Any]:
        return self.get_params() | {"alphas": None if self.alphas is None else [float(a) for a in self.alphas]}

    def _state(self) -> State:
        fitted = {"alpha": self.alpha_, "rows": self.rows_, "rank": self.rank_, "cv": list(self.cv_.items())}
        return {name: getattr(self, name) for name in TENSORS}, {"fitted": fitted}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        for name in TENSORS:
            setattr(self, name, tensors[name])
        fitted = about["fitted"]
        self.alpha_, self.rows_, self.rank_ = fitted["alpha"], fitted["rows"], fitted["rank"]
        self.cv_ = {float(alpha): float(value) for alpha, value in fitted["cv"]}


def _ridge(xx: Tensor, xy: Tensor, alphas: Sequence[float]) -> list[Tensor]:
    """T of each penalty from products of centred rows (d_x, d_x) and (d_x, d_y): one decomposition serves all."""
    values, vectors = torch.linalg.eigh((xx + xx.T) / 2)
    values, turned = values.clamp_min(0), vectors.T @ xy
    out = []
    for alpha in alphas:
        # Without a penalty, what the rows do not span stays at zero.
        least = values.max() * len(values) * torch.finfo(torch.float64).eps
        inverse = torch.where(values + alpha > least, 1 / (values + alpha), 0.0)
        out.append((vectors @ (inverse[:, None] * turned)).T)
    return out


def r2(y: Tensor, predicted: Tensor, weighting: str = "uniform") -> float:
    """Coefficient of determination over rows (n, d); outputs that do not vary are left out of the mean.

    Raises:
        InputError: shapes differ, or no output varies.
        UnknownNameError: `weighting` is not "uniform" or "variance".
    """
    if weighting not in ("uniform", "variance"):
        raise UnknownNameError(unknown("weighting", str(weighting), ("uniform", "variance")))
    if y.shape != predicted.shape:
        raise InputError(f"the operator predicts {tuple(predicted.shape)}, Y has shape {tuple(y.shape)}")
    error, total = (y - predicted).square().sum(0), (y - y.mean(0)).square().sum(0)
    varies = total > 0
    if not bool(varies.any()):
        raise InputError("Y does not vary, so nothing of its variance can be explained")
    if weighting == "variance":
        return float(1 - error.sum() / total.sum())
    return float((1 - error[varies] / total[varies]).mean())
