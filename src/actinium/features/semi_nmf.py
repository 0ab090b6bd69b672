"""Semi-nonnegative matrix factorisation: features of signed activations that are sparse groups of neurons."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError, MissingExtraError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.core.progress import shown
from actinium.core.rows import as_rows

__all__ = ["SemiNMF"]

INITS = ("random", "knn", "svd")
# The ridge of the features' step, the smallest first activation and the term that keeps the update's denominator from
# zero, as in the authors' program.
RIDGE, POSITIVE, SMALL = 1e-6, 1e-6, 1e-6
# Steps of k-means for init="knn".
KMEANS_STEPS = 15
# A feature whose activations and neurons have no more than this share of the data's norm is dead.
DEAD = 1e-7


class SemiNMF(SavedEstimator):
    """Factorises activations X (n, d) into G C: activations G >= 0 (n, K) of features C (K, d) of either sign.

    G's column k is how active feature k is at each row (token); C's row k is what it adds to the neurons. With
    `sparsity` only the largest entries of each feature are kept, which is what identifies features: without, other
    factorisations fit as well. The constants of the update suit activations of the order of 1.

    Args:
        n_components: K, number of features.
        sparsity: share of the d neurons that each feature keeps (rounded up), or None for all.
        init: first activations: "random" (uniform), "knn" (clusters of k-means; needs scikit-learn), or "svd"
            (positive parts of the left singular vectors). The first step finds the features that go with them.
        max_iter: most iterations.
        tol: a fall of the squared error below this does not count as an improvement (absolute).
        patience: iterations without an improvement after which fitting stops.
        seed: of the first activations.

    Attributes:
        components_: (K, d) features, of the iteration with the smallest error.
        activations_: (n, K) their activations at the rows that were fitted, columns of unit length.
        loss_curve_: (iterations,) squared error after each iteration. It need not fall with `sparsity`.
        n_iter_: number of iterations.

    Source: Shafran, Geiger, Geva, 2025; Ding, Li, Jordan, 2010 (the updates).
    """

    fitted = "components_"
    saved_as = "semi-NMF"

    def __init__(
        self,
        n_components: int = 100,
        *,
        sparsity: float | None = 0.01,
        init: str = "random",
        max_iter: int = 500,
        tol: float = 1e-4,
        patience: int = 100,
        seed: int = 0,
    ) -> None:
        self.n_components, self.sparsity, self.init = n_components, sparsity, init
        self.max_iter, self.tol, self.patience, self.seed = max_iter, tol, patience, seed

    def fit(self, activations: Any, *, progress: bool = False) -> Self:
        """Find features of activations.

        Args:
            activations: (n, d), or (…, d) of which every row counts; leave out padding and special tokens (see
                `token_rows`).
            progress: show a progress bar.

        Raises:
            InputError: values that are not finite or all zero, K above n or d, or a setting out of range.
            UnknownNameError: there is no such init.
            MissingExtraError: init="knn" without scikit-learn.
        """
        rows = as_rows(activations)
        self._check(rows)
        keep = None if self.sparsity is None else math.ceil(self.sparsity * rows.shape[1])
        codes = self._start(rows)
        best, reference, waited = math.inf, math.inf, 0
        losses: list[float] = []
        found = codes, codes
        for _ in shown(range(self.max_iter), "factorising", progress):
            features = _features(rows, codes, keep)
            size = codes.norm(dim=0).clamp_min(1e-8)
            codes, features = codes / size, features * size[:, None]
            codes = _updated(rows @ features.T, features @ features.T, codes)
            loss = float((rows - codes @ features).square().sum())
            losses.append(loss)
            if loss < best:
                best, found = loss, (codes, features)
            # Small improvements add up against the error at which the wait began.
            waited = 0 if loss < reference - self.tol else waited + 1
            reference = loss if waited == 0 else reference
            if waited >= self.patience:
                break
        self.activations_, self.components_ = found
        self.loss_curve_: NDArray[np.float64] = np.array(losses)
        self.n_iter_ = len(losses)
        self._warn_of_dead(rows)
        return self

    def _check(self, rows: Tensor) -> None:
        n, d = rows.shape
        if self.init not in INITS:
            raise UnknownNameError(unknown("init", str(self.init), INITS))
        if not 1 <= self.n_components <= min(n, d):
            raise InputError(
                f"n_components must be from 1 to {min(n, d)} for activations {(n, d)}, got {self.n_components}"
            )
        if self.sparsity is not None and not 0 < self.sparsity <= 1:
            raise InputError(f"sparsity is a share of the neurons above 0 and at most 1, or None; got {self.sparsity}")
        if self.max_iter < 1 or self.patience < 1 or not self.tol >= 0:
            raise InputError(
                f"expected max_iter >= 1, patience >= 1 and tol >= 0, got {self.max_iter}, {self.patience}, {self.tol}"
            )
        if not bool(rows.any()):
            raise InputError("the activations are all zero: there is nothing to factorise")

    def _start(self, rows: Tensor) -> Tensor:
        """First activations (n, K), all positive: the updates leave a zero at zero."""
        k = self.n_components
        if self.init == "random":
            drawn = torch.rand(len(rows), k, generator=torch.Generator().manual_seed(self.seed), dtype=rows.dtype)
            return drawn.clamp_min(POSITIVE).to(rows.device)
        if self.init == "svd":
            left, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
            return (left[:, :k] * sizes[:k].sqrt()).clamp_min(POSITIVE)
        try:
            from sklearn.cluster import KMeans
        except ImportError:
            raise MissingExtraError("scikit-learn", "learn") from None
        clusters = KMeans(k, init="random", n_init=1, max_iter=KMEANS_STEPS, random_state=self.seed)
        with warnings.catch_warnings():
            # Fewer different rows than clusters: the features of the empty ones die, which is said at the end.
            warnings.simplefilter("ignore")
            found = clusters.fit_predict(rows.cpu().numpy())
        labels = torch.from_numpy(found).long().to(rows.device)
        return torch.nn.functional.one_hot(labels, k).to(rows.dtype).clamp_min(POSITIVE)

    def _warn_of_dead(self, rows: Tensor) -> None:
        parts = self.activations_.norm(dim=0) * self.components_.norm(dim=1)
        dead = int((parts <= DEAD * rows.norm()).sum())
        if dead:
            warnings.warn(
                f"{dead} of {len(parts)} features died: they are active nowhere", ActiniumWarning, stacklevel=3
            )

    def transform(self, activations: Any, *, max_iter: int = 200) -> Tensor:
        """Activations (n, K) of the fitted features: the update of G alone, from a positive start.

        Args:
            activations: (n, d) or (…, d).
            max_iter: updates.

        Raises:
            InputError: `fit` was not called, another width, or values that are not finite.
        """
        self.check_fitted()
        if max_iter < 1:
            raise InputError(f"max_iter must be at least 1, got {max_iter}")
        rows = as_rows(activations, width=self.components_.shape[1]).to(self.components_)
        return nonnegative_codes(rows, self.components_, max_iter)

    def inverse_transform(self, codes: Any) -> Tensor:
        """Activations (n, d) that feature activations (n, K) add up to.

        Raises:
            InputError: `fit` was not called, or another number of features.
        """
        self.check_fitted()
        return as_rows(codes, "codes", len(self.components_)).to(self.components_) @ self.components_

    def directions(self) -> Tensor:
        """The features (K, d) at unit length; a feature without neurons stays zero."""
        self.check_fitted()
        return torch.nn.functional.normalize(self.components_, dim=1)

    def top_tokens(self, k: int, tokens: Sequence[str], n: int = 10) -> list[tuple[str, float]]:
        """The tokens at which feature k is most active, with its activations.

        Args:
            k: the feature.
            tokens: one text for each row that was fitted, such as `TokenRows.words` or contexts.
            n: how many.

        Raises:
            InputError: `fit` was not called, there is no such feature, or another number of tokens.
        """
        self.check_fitted()
        if len(tokens) != len(self.activations_):
            raise InputError(f"expected a text for each of {len(self.activations_)} rows, got {len(tokens)}")
        best = self.activations_[:, self._known(k)].topk(min(n, len(tokens)))
        return [(tokens[int(i)], float(v)) for v, i in zip(best.values, best.indices, strict=True)]

    def top_neurons(self, k: int, n: int = 10) -> list[tuple[int, float]]:
        """The neurons with the largest weights in feature k, with the weights; those of weight zero are left out.

        Raises:
            InputError: `fit` was not called, or there is no such feature.
        """
        self.check_fitted()
        weights = self.components_[self._known(k)]
        order = weights.abs().topk(min(n, len(weights))).indices
        return [(int(i), float(weights[i])) for i in order if float(weights[i])]

    def _known(self, k: int) -> int:
        if not 0 <= k < len(self.components_):
            raise InputError(f"features go from 0 to {len(self.components_) - 1}, not {k}")
        return k

    def _state(self) -> State:
        tensors = {"components": self.components_, "activations": self.activations_}
        return tensors | {"loss_curve": torch.from_numpy(self.loss_curve_)}, {}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.components_, self.activations_ = tensors["components"], tensors["activations"]
        self.loss_curve_ = tensors["loss_curve"].numpy()
        self.n_iter_ = len(self.loss_curve_)


def nonnegative_codes(rows: Tensor, features: Tensor, updates: int) -> Tensor:
    """Activations (n, K) >= 0 of fixed features (K, d) at rows (n, d), by multiplicative updates."""
    product, gram = rows @ features.T, features @ features.T
    ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    codes = torch.linalg.solve(gram + ridge, product.T).T.clamp_min(POSITIVE)
    for _ in range(updates):
        codes = _updated(product, gram, codes)
    return codes


def _features(rows: Tensor, codes: Tensor, keep: int | None) -> Tensor:
    """Least squares features (K, d) for activations (n, K), of which the `keep` largest entries stay."""
    # In float64, where the ridge is above the rounding of codes that are alike.
    wide = codes.double()
    gram = wide.T @ wide
    gram.diagonal().add_(RIDGE)
    features: Tensor = torch.linalg.solve(gram, (codes.T @ rows).double()).to(rows)
    if keep is None or keep >= features.shape[1]:
        return features
    largest = features.abs().topk(keep, dim=1).indices
    return torch.zeros_like(features).scatter(1, largest, features.gather(1, largest))


def _updated(product: Tensor, gram: Tensor, codes: Tensor) -> Tensor:
    """One multiplicative update of activations: `product` is X C^T, `gram` is C C^T."""
    up = product.clamp_min(0) + codes @ (-gram).clamp_min(0)
    down = (-product).clamp_min(0) + codes @ gram.clamp_min(0) + SMALL
    new: Tensor = codes * (up / down).sqrt()
    return new
