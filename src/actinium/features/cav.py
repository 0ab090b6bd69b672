"""Concept activation vectors: the direction of a site that points from counter-examples to examples of a concept."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError, MissingExtraError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.core.rows import as_examples

__all__ = ["CAV", "METHODS", "POOLS", "pooled", "relative_cav"]

METHODS = ("sgd", "logistic", "mean_diff", "lda")
POOLS = ("none", "mean")
PENALTIES = {"sgd": 0.01, "logistic": 1.0}
"""Weight of the squared norm where `alpha` is not given."""


def pooled(values: Tensor, pool: str, total: bool = False) -> Tensor:
    """Rows with one value for each channel or each entry.

    Args:
        values: (n, d), (n, pos, d) or (n, channel, height, width).
        pool: "mean" takes the mean over positions, or over height and width; "none" flattens.
        total: the sum in place of the mean (for gradients: the change when every position moves).

    Returns:
        (n, m).

    Raises:
        InputError: another number of dimensions.
        UnknownNameError: there is no such pooling.
    """
    if pool not in POOLS:
        raise UnknownNameError(unknown("pooling", str(pool), POOLS))
    if pool == "none" or values.ndim == 2:
        return values.flatten(1)
    if values.ndim not in (3, 4):
        raise InputError(
            f"cannot pool shape {tuple(values.shape)}; expected (n, pos, d) or (n, channel, height, width)"
        )
    over = (1,) if values.ndim == 3 else (2, 3)
    return values.sum(over) if total else values.mean(over)


class CAV(SavedEstimator):
    """The unit vector of a linear classifier that tells examples of a concept from counter-examples.

    Both sets are cut to the size of the smaller one (its first rows), and a share of each is held out for the accuracy.
    The same rows of both sets are held out, so that row i of one may be a changed copy of row i of the other.

    Args:
        method: "sgd" (linear classifier with hinge loss), "logistic", "mean_diff" (difference of the two means, the
            pattern-CAV of balanced sets) or "lda" (that difference times the inverse covariance within the classes).
        pool: "none", or "mean" over height and width of (n, channel, height, width), or positions of (n, pos, d).
        alpha: penalty on the squared norm ("sgd": 0.01, "logistic": 1 by default), or the shrinkage of the covariance
            from 0 to 1 ("lda": that of Ledoit and Wolf by default).
        test_share: share of each set that is held out.
        seed: of the split and of the classifier.

    Attributes:
        vector_: (m,) float64 of unit length, towards the concept.
        norm_: length of the classifier's weight vector.
        bias_: of the classifier.
        accuracy_: held-out accuracy: "all", "concept" and "negative".
        shape_: shape of one activation as it was given.
        rows_: rows of each set that were used.

    Source: Kim et al., 2018, section 3.2; Pahde et al., 2022 (mean_diff).
    """

    fitted = "vector_"
    saved_as = "concept activation vector"

    def __init__(
        self,
        method: str = "sgd",
        *,
        pool: str = "none",
        alpha: float | None = None,
        test_share: float = 0.33,
        seed: int = 0,
    ) -> None:
        self.method, self.pool, self.alpha = method, pool, alpha
        self.test_share, self.seed = test_share, seed

    def fit(self, concept: Any, negative: Any) -> Self:
        """Learn the vector.

        Args:
            concept: activations (n, ...) of examples.
            negative: activations (k, ...) of counter-examples, of the same shape.

        Raises:
            InputError: a set has fewer than two rows, shapes differ, values are not finite, a setting is out of range,
                or the sets cannot be told apart at all.
            UnknownNameError: there is no such method or pooling.
            MissingExtraError: scikit-learn is needed and not installed.
        """
        self._check()
        given = {"the concept's activations": concept, "the negative activations": negative}
        sets = [as_examples(values, what, dtype=torch.float64).cpu() for what, values in given.items()]
        if sets[0].shape[1:] != sets[1].shape[1:]:
            raise InputError(
                f"activations of the concept have shape {tuple(sets[0].shape[1:])}, the negative ones "
                f"{tuple(sets[1].shape[1:])}"
            )
        rows = min(map(len, sets))
        if rows < 2:
            raise InputError(f"each set needs two examples or more, got {len(sets[0])} and {len(sets[1])}")
        held = min(rows - 1, int(np.ceil(self.test_share * rows)))
        order = np.random.default_rng(self.seed).permutation(rows)
        x, y = (pooled(s[:rows], self.pool).numpy() for s in sets)
        test, train = order[:held], order[held:]
        weight, bias = self._direction(x[train], y[train])
        norm = float(np.linalg.norm(weight))
        if not norm > 0 or not np.isfinite(norm):
            raise InputError("no direction tells the concept from its counter-examples: are both sets the same?")
        right = [float((x[test] @ weight + bias > 0).mean()), float((y[test] @ weight + bias <= 0).mean())]
        self.accuracy_ = {"all": sum(right) / 2, "concept": right[0], "negative": right[1]}
        self.vector_ = torch.from_numpy(weight / norm)
        self.norm_, self.bias_ = norm, float(bias)
        self.shape_, self.rows_ = tuple(sets[0].shape[1:]), rows
        return self

    def _check(self) -> None:
        if self.method not in METHODS:
            raise UnknownNameError(unknown("method", str(self.method), METHODS))
        if self.pool not in POOLS:
            raise UnknownNameError(unknown("pooling", str(self.pool), POOLS))
        if not 0 < self.test_share < 1:
            raise InputError(f"test_share lies between 0 and 1, not {self.test_share}")
        if self.alpha is None:
            return
        if self.method == "mean_diff":
            raise InputError("a difference of means has no penalty; leave alpha out")
        if not self.alpha > 0 or (self.method == "lda" and self.alpha > 1):
            raise InputError(f"alpha must be above 0 (and at most 1 for lda), not {self.alpha}")

    def _direction(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Weight (m,) and bias from as many rows (n, m) of the concept as of the negatives."""
        if self.method in ("mean_diff", "lda"):
            weight = x.mean(0) - y.mean(0)
            if self.method == "lda":
                weight = _within_inverse(np.concatenate([x - x.mean(0), y - y.mean(0)]), weight, self.alpha)
            return weight, float(-weight @ (x.mean(0) + y.mean(0)) / 2)
        try:
            from sklearn.linear_model import LogisticRegression, SGDClassifier
        except ImportError:
            raise MissingExtraError("scikit-learn", "learn") from None
        alpha = PENALTIES[self.method] if self.alpha is None else self.alpha
        if self.method == "sgd":
            one = SGDClassifier(alpha=alpha, max_iter=1000, tol=1e-3, random_state=self.seed)
        else:
            one = LogisticRegression(C=1 / alpha, tol=1e-8, max_iter=10_000)
        labels = np.repeat([1, 0], [len(x), len(y)])
        one.fit(np.concatenate([x, y]), labels)
        return np.array(one.coef_[0], dtype=np.float64), float(one.intercept_[0])

    def _row(self, values: Any, total: bool = False) -> Tensor:
        self.check_fitted()
        given = torch.as_tensor(values).detach().double().cpu()
        if given.ndim < 2:
            raise InputError(f"expected activations (n, ...), got shape {tuple(given.shape)}")
        rows = pooled(given, self.pool, total)
        if rows.shape[1] != len(self.vector_):
            raise InputError(f"this vector has {len(self.vector_)} entries, got activations {tuple(given.shape)}")
        return rows

    def decision_function(self, activations: Any) -> Tensor:
        """(n,) distance of the classifier: above 0 on the concept's side.

        Raises:
            InputError: `fit` was not called, or the shape differs.
        """
        return self.norm_ * (self._row(activations) @ self.vector_) + self.bias_

    def cosine(self, activations: Any) -> Tensor:
        """(n,) cosine of each activation and the vector, to sort examples by.

        Raises:
            InputError: as `decision_function`.
        """
        return torch.nn.functional.cosine_similarity(self._row(activations), self.vector_[None])

    def sensitivity(self, gradients: Any) -> Tensor:
        """(n,) directional derivatives along the vector, from gradients (n, ...) at the site.

        With pooling, every position moves along the vector, divided by none: gradients are summed over positions.

        Raises:
            InputError: as `decision_function`.
        """
        return self._row(gradients, total=True) @ self.vector_

    def perturb(self, activations: Any, alpha: float) -> Tensor:
        """Activations (n, ...) moved by `alpha` along the vector, at every position where it was pooled.

        Raises:
            InputError: as `decision_function`.
        """
        self._row(activations)
        given = torch.as_tensor(activations)
        step = (alpha * self.vector_).to(given)
        if self.pool == "none":
            return given + step.view(given.shape[1:])
        return given + (step[:, None, None] if given.ndim == 4 else step)

    def _state(self) -> State:
        plain = {"norm": self.norm_, "bias": self.bias_, "accuracy": self.accuracy_, "rows": self.rows_}
        return {"vector": self.vector_}, {"fitted": plain | {"shape": list(self.shape_)}}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        plain = about["fitted"]
        self.vector_, self.norm_, self.bias_ = tensors["vector"], plain["norm"], plain["bias"]
        self.accuracy_, self.rows_, self.shape_ = plain["accuracy"], plain["rows"], tuple(plain["shape"])


def relative_cav(concepts: Mapping[str, Any], cav: CAV | None = None) -> dict[str, CAV]:
    """For each of several concepts the vector that tells it from the others.

    The counter-examples of a concept are the rows of the others in turn (first rows of each, then second rows, ...), so
    that the cut to equal sizes keeps all of them.

    Args:
        concepts: {name: activations (n, ...)}, two or more.
        cav: settings; it stays unfitted.

    Raises:
        InputError: fewer than two concepts, or sets that do not fit; see `CAV.fit`.

    Source: Kim et al., 2018, section 3.6.
    """
    if len(concepts) < 2:
        raise InputError(f"a relative vector needs two concepts or more, got {len(concepts)}")
    sets = {
        name: as_examples(values, f"activations of {name!r}", dtype=torch.float64).cpu()
        for name, values in concepts.items()
    }
    shapes = {tuple(s.shape[1:]) for s in sets.values()}
    if len(shapes) > 1:
        raise InputError(f"the concepts' activations differ in shape: {sorted(shapes)}")
    out = {}
    for name, own in sets.items():
        others = [s for other, s in sets.items() if other != name]
        turn = [s[i] for i in range(max(map(len, others))) for s in others if i < len(s)]
        out[name] = copy.copy(cav or CAV()).fit(own, torch.stack(turn))
    return out


def _within_inverse(
    within: NDArray[np.float64], difference: NDArray[np.float64], shrinkage: float | None
) -> NDArray[np.float64]:
    """(shrunk covariance of centred rows)^-1 times a vector, by a system of as many unknowns as rows or columns."""
    n, m = within.shape
    if shrinkage is None:
        try:
            from sklearn.covariance import ledoit_wolf_shrinkage
        except ImportError:
            raise MissingExtraError("scikit-learn", "learn") from None
        shrinkage = float(ledoit_wolf_shrinkage(within, assume_centered=True))
    # Where both sets are constant there is no covariance to divide by.
    ridge = shrinkage * float((within**2).sum()) / (n * m)
    if ridge == 0.0:
        raise InputError("lda needs rows that differ within a class and a shrinkage above 0; take mean_diff")
    share = (1 - shrinkage) / n
    if m <= n:
        found: NDArray[np.float64] = np.linalg.solve(share * within.T @ within + ridge * np.eye(m), difference)
        return found
    # (r I + s X'X)^-1 d = (d - s X' (r I + s X X')^-1 X d) / r
    inner = np.linalg.solve(ridge * np.eye(n) + share * within @ within.T, within @ difference)
    return np.asarray((difference - share * within.T @ inner) / ridge)
