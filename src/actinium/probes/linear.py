"""Linear probes: one direction (or one for each class) that tells the labels apart."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError, MissingExtraError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.probes.rows import as_classes, as_rows, as_vector, tensor_of
from actinium.probes.splits import group_folds

__all__ = ["KINDS", "LinearProbe"]

Floats = NDArray[np.float64]
KINDS = ("logistic", "ridge", "linear_svm", "lda", "mass_mean", "mass_mean_iid", "ridge_regression")
PENALISED = ("logistic", "ridge", "linear_svm", "ridge_regression")
COVARIANT = ("lda", "mass_mean_iid")
MARGINS = ("ridge", "linear_svm")
STRENGTHS = tuple(10.0**e for e in range(-4, 5))


class LinearProbe(SavedEstimator):
    """A linear classifier of activations, or a ridge regression on numbers.

    Args:
        kind: "logistic" (L2 penalty), "ridge" (least squares on -1 and 1), "linear_svm" (squared hinge), "lda"
            (linear discriminant analysis), "mass_mean" (difference of the class means), "mass_mean_iid" (the same
            through the inverse covariance within classes), or "ridge_regression" for numbers.
        C: inverse strength of the penalty, above 0 (ridge: alpha = 1 / C). Of penalised kinds only.
        cv: folds to choose C in, by accuracy (R2 of regressions) over 1e-4, 1e-3, ... 1e4, the smallest of equals;
            None takes C as it is.
        standardise: divide each entry by its standard deviation before fitting; None does so for penalised kinds.
            Fitted values are those for the activations as they are.
        shrinkage: of the covariance towards a multiple of the identity, from 0 to 1, or "auto" (Ledoit and Wolf). Of
            "lda" and "mass_mean_iid".
        max_iter: most iterations of the solver.
        seed: of the folds, and of the solver of "linear_svm".

    Attributes:
        classes_: (k,) labels in their order; empty for a regression.
        coef_: (1, d) for two classes (towards the second) and for a regression, else (k, d).
        intercept_: (1,) or (k,).
        C_: the strength that was used.

    Source: Marks and Tegmark, 2023 (mass-mean probes; their data are balanced and centred, here the
    threshold lies midway between the means); Alain and Bengio, 2016 (linear probes).
    """

    fitted = "coef_"
    saved_as = "linear probe"

    def __init__(
        self,
        kind: str = "logistic",
        *,
        C: float = 1.0,
        cv: int | None = None,
        standardise: bool | None = None,
        shrinkage: float | str = 0.0,
        max_iter: int = 1000,
        seed: int = 0,
    ) -> None:
        self.kind, self.C, self.cv, self.standardise = kind, C, cv, standardise
        self.shrinkage, self.max_iter, self.seed = shrinkage, max_iter, seed

    @property
    def regression(self) -> bool:
        """Whether it predicts numbers."""
        return self.kind == "ridge_regression"

    def fit(self, x: Any, labels: Any, groups: Any = None) -> Self:
        """Fit.

        Args:
            x: activations (n, d).
            labels: (n,) classes, or numbers for a regression.
            groups: (n,) what must not stand on both sides while C is chosen; see `group_folds`.

        Raises:
            InputError: shapes do not fit, values are not finite, activations or labels do not vary, a setting is out
                of range, or the covariance is singular.
            UnknownNameError: there is no such kind.
            MissingExtraError: scikit-learn is not installed.
        """
        self._check()
        if groups is not None and self.cv is None:
            raise InputError("groups keep folds apart while C is chosen; without cv= nothing is")
        rows = as_rows(x)
        if self.regression:
            classes, wanted = np.array([]), as_vector(labels, "labels", len(rows))
            if np.ptp(wanted) == 0:
                raise InputError("labels are all the same number: what does not vary cannot be read")
        else:
            classes, wanted = as_classes(labels, len(rows))
        if not (rows != rows[0]).any():
            raise InputError("all activations are the same: nothing can be read from them")
        self.C_ = float(self.C) if self.cv is None else self._chosen(rows, wanted, groups)
        self.coef_, self.intercept_ = self._solved(rows, wanted, self.C_)
        self.classes_ = classes
        return self

    def _check(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError(unknown("kind of probe", str(self.kind), KINDS))
        if not (isinstance(self.C, int | float) and 0 < self.C < np.inf):
            raise InputError(f"C must be above 0, got {self.C!r}")
        if self.kind not in PENALISED and (self.C != 1.0 or self.cv is not None):
            raise InputError(f"{self.kind!r} has no penalty; C and cv are of {', '.join(PENALISED)}")
        automatic = self.shrinkage == "auto"
        if not automatic and (isinstance(self.shrinkage, str) or not 0 <= self.shrinkage <= 1):
            raise InputError(f"shrinkage must be from 0 to 1 or 'auto', got {self.shrinkage!r}")
        if self.kind not in COVARIANT and self.shrinkage != 0:
            raise InputError(f"{self.kind!r} has no covariance; shrinkage is of {', '.join(COVARIANT)}")

    def _chosen(self, rows: Floats, wanted: NDArray[Any], groups: Any) -> float:
        folds = group_folds(wanted, groups, self.cv or 0, seed=self.seed, numeric=self.regression)
        scores = []
        for strength in STRENGTHS:
            each = []
            for train, test in folds:
                coef, intercept = self._solved(rows[train], wanted[train], strength)
                each.append(self._fit_of(rows[test] @ coef.T + intercept, wanted[test]))
            scores.append(np.mean(each))
        return STRENGTHS[int(np.argmax(np.round(scores, 12)))]

    def _fit_of(self, decisions: Floats, wanted: NDArray[Any]) -> float:
        if self.regression:
            return float(1 - ((decisions[:, 0] - wanted) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum())
        return float(np.mean(_winners(decisions) == wanted))

    def _solved(self, rows: Floats, wanted: NDArray[Any], strength: float) -> tuple[Floats, Floats]:
        """Coefficients (1 or k, d) and intercepts for the activations as they are."""
        centre, scale = rows.mean(0), np.ones(rows.shape[1])
        if self.standardise or (self.standardise is None and self.kind in PENALISED):
            spread = rows.std(0)
            # What does not vary cannot be scaled; its centred value is zero and so is its coefficient.
            scale = np.where(spread > 1e-12 * max(float(spread.max()), 1e-300), spread, 1.0)
        z = (rows - centre) / scale
        if self.kind in PENALISED:
            coef, intercept = _penalised(self.kind, z, wanted, strength, self.max_iter, self.seed)
        else:
            coef, intercept = _from_means(self.kind, z, wanted, self.shrinkage)
        coef = coef / scale
        return coef, intercept - coef @ centre

    def decision_function(self, x: Any) -> Floats:
        """Signed scores (n,) for two classes (above 0: the second) and for a regression; else (n, k).

        Raises:
            InputError: not fitted, or the activations do not fit.
        """
        self.check_fitted()
        scores = as_rows(x, width=self.coef_.shape[1]) @ self.coef_.T + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, x: Any) -> NDArray[Any]:
        """Labels (n,), or numbers.

        Raises:
            InputError: as `decision_function`.
        """
        scores = self.decision_function(x)
        if self.regression:
            return scores
        return self.classes_[_winners(scores.reshape(len(scores), -1))]

    def predict_proba(self, x: Any) -> Floats:
        """Probabilities (n, k) in the order of `classes_`.

        Raises:
            InputError: as `decision_function`; or the kind has margins and no probabilities.
        """
        if self.kind in MARGINS or self.regression:
            raise InputError(f"{self.kind!r} gives no probabilities; fit ac.probes.PlattScaling on its decisions")
        scores = self.decision_function(x)
        if scores.ndim == 2:
            return np.asarray(softmax(scores, 1))
        return np.stack([expit(-scores), expit(scores)], 1)

    def score(self, x: Any, labels: Any) -> float:
        """Accuracy, or R2 of a regression.

        Raises:
            InputError: as `decision_function`, or labels do not fit.
        """
        found = self.predict(x)
        if self.regression:
            wanted = as_vector(labels, "labels", len(found))
            return float(1 - ((found - wanted) ** 2).sum() / ((wanted - wanted.mean()) ** 2).sum())
        given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        if given.shape != found.shape:
            raise InputError(f"labels: expected one for each of {len(found)} rows, got shape {given.shape}")
        return float(np.mean(found == given))

    @property
    def direction_(self) -> Tensor:
        """Unit direction (d,) float64 towards the second class (larger numbers), or (k, d), one towards each class.

        Raises:
            InputError: not fitted, or a direction is zero.
        """
        self.check_fitted()
        size = np.linalg.norm(self.coef_, axis=1, keepdims=True)
        if not (size > 0).all():
            raise InputError("the probe found no direction: its coefficients are zero")
        unit = tensor_of(self.coef_ / size)
        return unit[0] if len(unit) == 1 else unit

    def _state(self) -> State:
        tensors = {"coef": tensor_of(self.coef_), "intercept": tensor_of(self.intercept_)}
        return tensors, {"classes": self.classes_.tolist(), "strength": self.C_}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.coef_, self.intercept_ = tensors["coef"].numpy(), tensors["intercept"].numpy()
        self.classes_, self.C_ = np.array(about["classes"]), float(about["strength"])


def _winners(decisions: Floats) -> NDArray[np.int64]:
    if decisions.shape[1] == 1:
        return (decisions[:, 0] > 0).astype(np.int64)
    return decisions.argmax(1)


def _penalised(
    kind: str, z: Floats, wanted: NDArray[Any], strength: float, max_iter: int, seed: int
) -> tuple[Floats, Floats]:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
        from sklearn.svm import LinearSVC
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None
    model: Any
    if kind == "logistic":
        model = LogisticRegression(C=strength, max_iter=max_iter, tol=1e-6)
    elif kind == "linear_svm":
        # A large scale leaves the intercept, which this solver penalises, nearly free.
        model = LinearSVC(C=strength, max_iter=max_iter, random_state=seed, dual="auto", intercept_scaling=100.0)
    elif kind == "ridge":
        model = RidgeClassifier(alpha=1 / strength)
    else:
        model = Ridge(alpha=1 / strength)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(z, wanted)
    if any(issubclass(w.category, ConvergenceWarning) for w in caught):
        warnings.warn(
            f"the {kind} probe did not converge in {max_iter} iterations; raise max_iter or lower C",
            ActiniumWarning,
            stacklevel=4,
        )
    return np.atleast_2d(model.coef_).astype(np.float64), np.atleast_1d(model.intercept_).astype(np.float64)


def _from_means(kind: str, z: Floats, numbers: NDArray[np.int64], shrinkage: float | str) -> tuple[Floats, Floats]:
    """Classes by their means: the nearest one, in plain distance or in that of the covariance within classes."""
    means = np.stack([z[numbers == c].mean(0) for c in range(numbers.max() + 1)])
    coef = means
    if kind in COVARIANT:
        coef = np.linalg.solve(_covariance(z - means[numbers], shrinkage), means.T).T
    intercept = -0.5 * (coef * means).sum(1)
    if kind == "lda":
        intercept = intercept + np.log(np.bincount(numbers) / len(numbers))
    if len(means) == 2:
        return coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    return coef, intercept


def _covariance(residual: Floats, shrinkage: float | str) -> Floats:
    n, d = residual.shape
    if shrinkage == "auto":
        try:
            from sklearn.covariance import ledoit_wolf
        except ImportError:
            raise MissingExtraError("scikit-learn", "learn") from None
        return np.asarray(ledoit_wolf(residual, assume_centered=True)[0])
    amount = float(shrinkage)
    covariance = residual.T @ residual / n
    covariance = (1 - amount) * covariance + amount * np.trace(covariance) / d * np.eye(d)
    values = np.linalg.eigvalsh(covariance)
    if not values[0] > values[-1] * d * 1e-13:
        raise InputError(
            f"the covariance of {n} rows of {d} entries within classes is singular; use shrinkage='auto' or more rows"
        )
    return covariance
