"""Principal components, independent components, NMF and k-means as dictionaries of directions with one interface."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError, MissingExtraError
from actinium.core.fitted import SavedEstimator, State
from actinium.core.rows import as_rows

__all__ = ["ICA", "NMF", "PCA", "KMeans"]

Floats = NDArray[np.float64]
# Singular values below this share of the largest are rounding: single-precision activations have no more digits.
RANK = 1e-6


class _Decomposition(SavedEstimator):
    """Activations as codes times directions: X (n, d) ~ mean + codes (n, K) @ components (K, d).

    A subclass fits `components_` and `mean_` (zero where nothing is centred) and gives codes.
    """

    fitted = "components_"
    components_: Tensor
    mean_: Tensor
    n_components: int
    # What else `fit` found and `save` has to keep, by attribute.
    more: tuple[str, ...] = ()

    def fit(self, activations: Any) -> Self:
        """Find the directions.

        Args:
            activations: (n, d), or (…, d) of which every row counts.

        Raises:
            InputError: values that are not finite or do not vary, or more components than the data have rank.
            MissingExtraError: scikit-learn is not installed.
        """
        rows = as_rows(activations, dtype=torch.float64).cpu().numpy()
        if not rows.std(0).any():
            raise InputError("the activations are the same at every row: there is nothing to decompose")
        most, what = self._most(rows)
        if not 1 <= self.n_components <= most:
            raise InputError(f"n_components must be from 1 to {most}, {what}; got {self.n_components}")
        self._solve(rows)
        return self

    def transform(self, activations: Any) -> Tensor:
        """Codes (n, K) of rows (n, d), float64.

        Raises:
            InputError: `fit` was not called, another width, or values that are not finite.
        """
        self.check_fitted()
        return self._codes(as_rows(activations, width=self.components_.shape[1], dtype=torch.float64).cpu())

    def inverse_transform(self, codes: Any) -> Tensor:
        """Rows (n, d) that codes (n, K) stand for, float64.

        Raises:
            InputError: `fit` was not called, or another number of components.
        """
        self.check_fitted()
        rows = as_rows(codes, "codes", len(self.components_), dtype=torch.float64).cpu()
        return rows @ self.components_ + self.mean_

    def directions(self) -> Tensor:
        """The components (K, d) at unit length."""
        self.check_fitted()
        return torch.nn.functional.normalize(self.components_, dim=1)

    def _state(self) -> State:
        return {name: getattr(self, name) for name in ("components_", "mean_", *self.more)}, {}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        for name in ("components_", "mean_", *self.more):
            setattr(self, name, tensors[name])

    def _most(self, rows: Floats) -> tuple[int, str]:
        """Largest number of components, and of what it is the number."""
        sizes = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
        return int((sizes > RANK * sizes[0]).sum()), f"the rank of the centred activations {rows.shape}"

    def _solve(self, rows: Floats) -> None:
        raise TypeError(f"{type(self).__name__} must define _solve()")

    def _codes(self, rows: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define _codes()")


class PCA(_Decomposition):
    """Directions of largest variance, orthonormal; codes are the projections of the centred rows.

    Args:
        n_components: K, at most the rank of the centred activations.

    Attributes:
        components_: (K, d), largest variance first.
        mean_: (d,).
        variance_ratio_: (K,) share of the variance along each.

    Source: Hotelling, 1933; scikit-learn's PCA with a full decomposition.
    """

    more = ("variance_ratio_",)

    def __init__(self, n_components: int = 10) -> None:
        self.n_components = n_components

    def _solve(self, rows: Floats) -> None:
        found = _sklearn("decomposition").PCA(self.n_components, svd_solver="full").fit(rows)
        self.components_, self.mean_ = _tensor(found.components_), _tensor(found.mean_)
        self.variance_ratio_ = _tensor(found.explained_variance_ratio_)

    def _codes(self, rows: Tensor) -> Tensor:
        return (rows - self.mean_) @ self.components_.T


class ICA(_Decomposition):
    """Directions whose codes are as independent as possible.

    The components are the columns of the mixing matrix, what a source adds to the activations; codes come from the
    unmixing matrix, since the directions are not orthogonal. Codes have variance 1; order and sign mean nothing.

    Args:
        n_components: K, at most the rank of the centred activations.
        max_iter: most steps of FastICA.
        tol: change of the unmixing matrix at which it stops.
        seed: of the first unmixing matrix.

    Attributes:
        components_: (K, d).
        unmixing_: (K, d).
        mean_: (d,).

    Source: Hyvärinen and Oja, 2000; scikit-learn's FastICA.
    """

    more = ("unmixing_",)

    def __init__(self, n_components: int = 10, *, max_iter: int = 500, tol: float = 1e-4, seed: int = 0) -> None:
        self.n_components, self.max_iter, self.tol, self.seed = n_components, max_iter, tol, seed

    def _solve(self, rows: Floats) -> None:
        model = _sklearn("decomposition").FastICA(
            self.n_components,
            whiten="unit-variance",
            max_iter=self.max_iter,
            tol=self.tol,
            random_state=self.seed,
        )
        _converged(model, rows)
        self.components_, self.unmixing_ = _tensor(model.mixing_.T), _tensor(model.components_)
        self.mean_ = _tensor(model.mean_)

    def _codes(self, rows: Tensor) -> Tensor:
        return (rows - self.mean_) @ self.unmixing_.T


class NMF(_Decomposition):
    """Non-negative directions with non-negative codes, for activations that are never negative (after ReLU).

    Args:
        n_components: K, at most n and at most d.
        max_iter: most iterations of coordinate descent.
        tol: tolerance of its stopping condition.
        seed: of the first factors.

    Attributes:
        components_: (K, d), non-negative.
        mean_: (d,) zeros: nothing is centred.

    Source: Lee and Seung, 1999; Cichocki and Phan, 2009 (coordinate descent), scikit-learn's NMF.
    """

    def __init__(self, n_components: int = 10, *, max_iter: int = 400, tol: float = 1e-4, seed: int = 0) -> None:
        self.n_components, self.max_iter, self.tol, self.seed = n_components, max_iter, tol, seed

    def _most(self, rows: Floats) -> tuple[int, str]:
        if (rows < 0).any():
            raise InputError(
                "NMF needs activations that are never negative, and these are (GELU and SiLU give such); use SemiNMF"
            )
        return min(rows.shape), f"the smaller side of the activations {rows.shape}"

    def _options(self) -> dict[str, Any]:
        return {"init": "random", "max_iter": self.max_iter, "tol": self.tol, "random_state": self.seed}

    def _solve(self, rows: Floats) -> None:
        model = _sklearn("decomposition").NMF(self.n_components, **self._options())
        _converged(model, rows)
        self.components_ = _tensor(model.components_)
        self.mean_ = torch.zeros(rows.shape[1], dtype=torch.float64)

    def _codes(self, rows: Tensor) -> Tensor:
        if bool((rows < 0).any()):
            raise InputError("NMF reads activations that are never negative")
        solve = _sklearn("decomposition").non_negative_factorization
        codes, _, _ = solve(rows.numpy(), H=self.components_.numpy(), update_H=False, **self._options())
        return _tensor(codes)


class KMeans(_Decomposition):
    """Centres of clusters; a code is 1 at the nearest centre and 0 elsewhere.

    Args:
        n_components: K, number of clusters, at most the number of different rows.
        restarts: runs from other first centres, of which the best is kept.
        max_iter: most steps of a run.
        seed: of the first centres.

    Attributes:
        components_: (K, d) the centres.
        mean_: (d,) zeros: nothing is centred.

    Source: Lloyd, 1982; Arthur and Vassilvitskii, 2007 (first centres), scikit-learn's KMeans.
    """

    def __init__(self, n_components: int = 10, *, restarts: int = 3, max_iter: int = 300, seed: int = 0) -> None:
        self.n_components, self.restarts, self.max_iter, self.seed = n_components, restarts, max_iter, seed

    def _most(self, rows: Floats) -> tuple[int, str]:
        return len(np.unique(rows, axis=0)), "the number of different rows"

    def _solve(self, rows: Floats) -> None:
        kmeans = _sklearn("cluster").KMeans
        found = kmeans(self.n_components, n_init=self.restarts, max_iter=self.max_iter, random_state=self.seed)
        self.components_ = _tensor(found.fit(rows).cluster_centers_)
        self.mean_ = torch.zeros(rows.shape[1], dtype=torch.float64)

    def _codes(self, rows: Tensor) -> Tensor:
        nearest = torch.cdist(rows, self.components_).argmin(1)
        return torch.nn.functional.one_hot(nearest, len(self.components_)).double()


def _sklearn(part: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"sklearn.{part}")
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None


def _converged(model: Any, rows: Floats) -> None:
    """Fit a model of scikit-learn; that it stopped too early is said in our own warning."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(rows)
    for one in said:
        if issubclass(one.category, ConvergenceWarning):
            name = type(model).__name__
            text = f"{name} stopped after max_iter={model.max_iter} steps without converging"
            warnings.warn(text, ActiniumWarning, stacklevel=4)
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64))
