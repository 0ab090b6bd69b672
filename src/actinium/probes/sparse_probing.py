"""Sparse probing: how few neurons or latents are enough to read a feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from actinium.core.errors import InputError, MissingExtraError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.probes.linear import LinearProbe
from actinium.probes.rows import as_classes, as_rows, tensor_of
from actinium.probes.splits import group_folds

__all__ = ["SELECTIONS", "SparseProbe", "sparse_probe_curve"]

Floats = NDArray[np.float64]
SELECTIONS = ("mean_diff", "f_statistic", "mutual_information", "l1", "optimal")


class SparseProbe(SavedEstimator):
    """A logistic probe on the k units that tell two classes apart best.

    Args:
        k: number of units.
        selection: "mean_diff" (distance of the class means, as the units are), "f_statistic" (of an analysis of
            variance), "mutual_information" (nearest neighbours), "l1" (largest coefficients of a logistic regression
            with an L1 penalty just weak enough for k of them), or "optimal" (k = 1: the unit whose own logistic
            regression has the least loss).
        C: inverse strength of the L2 penalty of the probe, on standardised units.
        seed: of the mutual information.

    Attributes:
        units_: (k,) numbers of the units, best first.
        ranking_: (d,) what the selection ranks by, larger is better.
        probe_: the `LinearProbe` on these units.
        classes_: (2,).

    Source: Gurnee et al., 2023 (sparse probing).
    """

    fitted = "units_"
    saved_as = "sparse probe"

    def __init__(self, k: int = 1, *, selection: str = "mean_diff", C: float = 1.0, seed: int = 0) -> None:
        self.k, self.selection, self.C, self.seed = k, selection, C, seed

    def fit(self, x: Any, labels: Any) -> Self:
        """Choose the units and fit the probe.

        Args:
            x: activations of neurons or latents (n, d).
            labels: (n,), two classes.

        Raises:
            InputError: shapes do not fit, k is out of range, there are not two classes, or too few units vary.
            UnknownNameError: there is no such selection.
            MissingExtraError: scikit-learn is not installed.
        """
        rows = as_rows(x)
        self.classes_, y = as_classes(labels, len(rows), two=True)
        self._check(rows)
        self.ranking_ = _ranking(self.selection, rows, y, self.k, self.C, self.seed)
        self.units_ = np.argsort(-self.ranking_, kind="stable")[: self.k].astype(np.int64)
        self.probe_ = LinearProbe(C=self.C).fit(rows[:, self.units_], y)
        return self

    def _check(self, rows: Floats) -> None:
        if self.selection not in SELECTIONS:
            raise UnknownNameError(unknown("selection", str(self.selection), SELECTIONS))
        varying = int((rows != rows[0]).any(0).sum())
        if isinstance(self.k, bool) or not isinstance(self.k, int) or not 1 <= self.k <= varying:
            raise InputError(f"k must be from 1 to {varying}, the number of units that vary, got {self.k!r}")
        if self.selection == "optimal" and self.k != 1:
            raise InputError(f"the optimal choice is searched for k = 1 alone, got {self.k}; take another selection")

    def decision_function(self, x: Any) -> Floats:
        """Signed scores (n,), above 0 for the second class.

        Raises:
            InputError: not fitted, or the activations do not fit.
        """
        self.check_fitted()
        return self.probe_.decision_function(as_rows(x, width=len(self.ranking_))[:, self.units_])

    def predict_proba(self, x: Any) -> Floats:
        """Probabilities (n, 2) in the order of `classes_`.

        Raises:
            InputError: as `decision_function`.
        """
        positive = expit(self.decision_function(x))
        return np.stack([1 - positive, positive], 1)

    def predict(self, x: Any) -> NDArray[Any]:
        """Labels (n,).

        Raises:
            InputError: as `decision_function`.
        """
        return self.classes_[(self.decision_function(x) > 0).astype(np.int64)]

    def score(self, x: Any, labels: Any) -> float:
        """Accuracy.

        Raises:
            InputError: as `decision_function`, or labels do not fit.
        """
        found = self.predict(x)
        given = np.asarray(labels)
        if given.shape != found.shape:
            raise InputError(f"labels: expected one for each of {len(found)} rows, got shape {given.shape}")
        return float(np.mean(found == given))

    def _state(self) -> State:
        arrays = {
            "ranking": self.ranking_,
            "units": self.units_,
            "coef": self.probe_.coef_,
            "intercept": self.probe_.intercept_,
        }
        return {name: tensor_of(array) for name, array in arrays.items()}, {"classes": self.classes_.tolist()}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.classes_, self.ranking_ = np.array(about["classes"]), tensors["ranking"].numpy()
        self.units_ = tensors["units"].numpy().astype(np.int64)
        self.probe_ = LinearProbe(C=self.C)
        self.probe_.coef_, self.probe_.intercept_ = tensors["coef"].numpy(), tensors["intercept"].numpy()
        self.probe_.classes_, self.probe_.C_ = np.array([0, 1]), float(self.C)


def _ranking(selection: str, rows: Floats, y: NDArray[np.int64], k: int, C: float, seed: int) -> Floats:
    """How good each unit is (d,); units that do not vary come last."""
    varies = (rows != rows[0]).any(0)
    used = rows[:, varies]
    out = np.full(rows.shape[1], -np.inf)
    if selection == "mean_diff":
        out[varies] = np.abs(used[y == 1].mean(0) - used[y == 0].mean(0))
    elif selection == "optimal":
        out[varies] = -_single_losses(used, y, C)
    else:
        out[varies] = _library(selection, used, y, k, seed)
    return out


def _library(selection: str, used: Floats, y: NDArray[np.int64], k: int, seed: int) -> Floats:
    try:
        from sklearn.feature_selection import f_classif, mutual_info_classif
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None
    if selection == "mutual_information":
        return np.asarray(mutual_info_classif(used, y, random_state=seed))
    if selection == "f_statistic":
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.asarray(f_classif(used, y)[0])
        return np.nan_to_num(found, nan=0.0, posinf=np.finfo(np.float64).max)
    return _sparse_weights((used - used.mean(0)) / used.std(0), y, k)


def _sparse_weights(z: Floats, y: NDArray[np.int64], k: int) -> Floats:
    """Sizes of the coefficients at the strongest L1 penalty of a grid that leaves k units or more."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import l1_min_c

    start = float(l1_min_c(z, y, loss="log"))
    sizes = np.zeros(z.shape[1])
    for factor in 2.0 ** np.arange(0.25, 16, 0.5):
        model = LogisticRegression(C=start * factor, l1_ratio=1.0, solver="liblinear", random_state=0)
        sizes = np.abs(model.fit(z, y).coef_[0])
        if (sizes > 0).sum() >= k:
            break
    return sizes


def _single_losses(used: Floats, y: NDArray[np.int64], C: float) -> Floats:
    """Penalised loss (d,) of the logistic regression on each standardised unit alone, by Newton's method."""
    z = (used - used.mean(0)) / used.std(0)
    a, b = np.zeros(z.shape[1]), np.zeros(z.shape[1])
    target = y[:, None]

    def loss(a: Floats, b: Floats) -> Floats:
        value = a * z + b
        return C * (np.logaddexp(0, value) - target * value).sum(0) + a * a / 2

    now = loss(a, b)
    for _ in range(60):
        p = expit(a * z + b)
        error, weight = p - target, p * (1 - p)
        ga, gb = C * (error * z).sum(0) + a, C * error.sum(0)
        haa, hab, hbb = C * (weight * z * z).sum(0) + 1, C * (weight * z).sum(0), C * weight.sum(0) + 1e-12
        determinant = haa * hbb - hab * hab
        da, db = (hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant
        # Half steps where a full one goes up.
        step = np.ones_like(a)
        for _ in range(30):
            new = loss(a - step * da, b - step * db)
            worse = ~(new <= now + 1e-12)
            if not worse.any():
                break
            step = np.where(worse, step / 2, step)
        a, b, before, now = a - step * da, b - step * db, now, new
        if np.abs(before - now).max() < 1e-11 * max(1.0, float(now.max())):
            break
    return now


def sparse_probe_curve(
    x: Any,
    labels: Any,
    ks: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    selection: str = "mean_diff",
    groups: Any = None,
    folds: int = 5,
    C: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Held-out quality of sparse probes over the number of units; units are chosen in each training part anew.

    Args:
        x: activations of neurons or latents (n, d).
        labels: (n,), two classes; the second is the feature.
        ks: numbers of units.
        selection, C: as in `SparseProbe`.
        groups: (n,) what must not stand on both sides of a fold.
        folds: of the cross-validation.
        seed: of the folds and of the selection.
        progress: show a progress bar.

    Returns:
        Result over k: `f1`, `accuracy`, `precision`, `recall` of the second class over all held-out rows, `stable`
        (mean share of the units that two folds have in common); and of all units `full_accuracy`, `full_f1`.

    Raises:
        InputError: shapes do not fit, there is no k, or one is out of range.
        UnknownNameError: there is no such selection.

    Source: Gurnee et al., 2023 (sparse probing).
    """
    rows = as_rows(x)
    _, y = as_classes(labels, len(rows), two=True)
    counts = [int(k) for k in ks]
    if not counts:
        raise InputError("ks: no number of units given")
    parts = group_folds(y, groups, folds, seed=seed)
    table: dict[str, list[float]] = {name: [] for name in ("f1", "accuracy", "precision", "recall", "stable")}
    for k in shown(counts, "sparse probes", progress):
        found = np.zeros(len(y), dtype=np.int64)
        chosen = []
        for train, test in parts:
            probe = SparseProbe(k, selection=selection, C=C, seed=seed).fit(rows[train], y[train])
            found[test] = probe.predict(rows[test])
            chosen.append(set(probe.units_.tolist()))
        for name, value in _quality(found, y).items():
            table[name].append(value)
        pairs = [len(a & b) / k for i, a in enumerate(chosen) for b in chosen[i + 1 :]]
        table["stable"].append(float(np.mean(pairs)))
    whole = np.zeros(len(y), dtype=np.int64)
    for train, test in parts:
        whole[test] = LinearProbe(C=C).fit(rows[train], y[train]).predict(rows[test])
    full = _quality(whole, y)
    data = {name: (("k",), values) for name, values in table.items()}
    hints = {"plot": {"variables": ["f1", "accuracy"], "ylabel": "held out"}}
    settings = {"ks": counts, "selection": selection, "folds": folds, "C": C}
    return Result(
        xr.Dataset(data | {"full_accuracy": ((), full["accuracy"]), "full_f1": ((), full["f1"])}, {"k": counts}, hints),
        "sparse_probe_curve",
        provenance=provenance(inputs=[rows, y], seed=seed, **settings),
    )


def _quality(found: NDArray[np.int64], y: NDArray[np.int64]) -> dict[str, float]:
    both = float(((found == 1) & (y == 1)).sum())
    said, real = float((found == 1).sum()), float((y == 1).sum())
    return {
        "f1": 2 * both / (said + real),
        "accuracy": float(np.mean(found == y)),
        "precision": both / said if said else 0.0,
        "recall": both / real,
    }
