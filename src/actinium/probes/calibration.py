"""How far probabilities can be trusted: calibration errors, scores, reliability curves, and two ways to mend them."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, softmax
from scipy.stats import rankdata
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.core.intervals import area_under_roc
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.probes.rows import as_classes, as_vector, tensor_of

__all__ = [
    "PlattScaling",
    "TemperatureScaling",
    "auroc",
    "brier",
    "calibration_error",
    "nll",
    "reliability",
]

Floats = NDArray[np.float64]
BINNINGS = ("width", "mass")
# Temperatures beyond these have no minimum inside: all answers right (to 0), or worse than chance (to infinity).
TEMPERATURES = (1e-3, 1e3)


def _checked(probabilities: Any, labels: Any) -> tuple[Floats, NDArray[np.int64]]:
    """Probabilities (n,) of the label 1, or (n, k), and labels as numbers of classes."""
    given = probabilities.detach().cpu().double() if isinstance(probabilities, Tensor) else probabilities
    p = np.asarray(given, dtype=np.float64)
    if p.ndim not in (1, 2) or not p.size or (p.ndim == 2 and p.shape[1] < 2):
        raise InputError(f"probabilities: expected (n,) or (n, k) with k >= 2, got shape {p.shape}")
    if not np.isfinite(p).all() or p.min() < -1e-9 or p.max() > 1 + 1e-9:
        raise InputError("probabilities must lie from 0 to 1; logits and scores are turned into them first")
    if p.ndim == 2 and not np.allclose(p.sum(1), 1, atol=1e-4):
        raise InputError("probabilities of a row must sum to 1")
    y = as_vector(labels, "labels", len(p))
    top = 1 if p.ndim == 1 else p.shape[1] - 1
    if not (y == np.round(y)).all() or y.min() < 0 or y.max() > top:
        raise InputError(f"labels must be whole numbers from 0 to {top} (columns of the probabilities)")
    return np.clip(p, 0, 1), y.astype(np.int64)


def _confidences(p: Floats, y: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """What is said and what happened: p and y of two classes, else the top probability and whether it is right."""
    if p.ndim == 1:
        return p, y.astype(np.float64)
    return p.max(1), (p.argmax(1) == y).astype(np.float64)


def brier(probabilities: Any, labels: Any) -> float:
    """Mean squared distance of probabilities from what happened.

    Args:
        probabilities: (n,) of the label 1, or (n, k).
        labels: (n,) 0 or 1, or columns of the probabilities.

    Returns:
        mean (p - y)^2 for (n,), from 0 to 1; for (n, k) the sum over classes, from 0 to 2.

    Raises:
        InputError: shapes or values do not fit.

    Source: Brier, 1950.
    """
    p, y = _checked(probabilities, labels)
    if p.ndim == 1:
        return float(np.mean((p - y) ** 2))
    return float(np.mean(((p - np.eye(p.shape[1])[y]) ** 2).sum(1)))


def nll(probabilities: Any, labels: Any) -> float:
    """Mean negative log likelihood of the labels, in nats; infinite where what happened had no probability.

    Args:
        probabilities, labels: as in `brier`.

    Raises:
        InputError: shapes or values do not fit.
    """
    p, y = _checked(probabilities, labels)
    chosen = np.where(y == 1, p, 1 - p) if p.ndim == 1 else p[np.arange(len(p)), y]
    with np.errstate(divide="ignore"):
        return float(-np.log(chosen).mean())


def auroc(scores: Any, labels: Any) -> float:
    """Area under the ROC curve: how often a row of the larger label scores above one of the other, ties one half.

    Args:
        scores: (n,), of any scale; or (n, k), one column for each class, of which the one-against-rest areas are
            averaged.
        labels: (n,) classes, as many as there are columns.

    Raises:
        InputError: shapes do not fit, values are not finite, or a class is missing.
    """
    given = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)
    if given.ndim not in (1, 2) or not np.isfinite(given).all():
        raise InputError(f"scores: expected finite numbers (n,) or (n, k), got shape {given.shape}")
    classes, y = as_classes(labels, len(given), two=given.ndim == 1)
    if given.ndim == 1:
        return area_under_roc(given, y == 1)
    if given.shape[1] != len(classes):
        raise InputError(f"{given.shape[1]} columns of scores, and labels of {len(classes)} classes")
    return float(np.mean([area_under_roc(given[:, c], y == c) for c in range(len(classes))]))


def _bins(confidence: Floats, bins: int, by: str) -> NDArray[np.int64]:
    """Number of each row's bin."""
    if by not in BINNINGS:
        raise UnknownNameError(unknown("binning", str(by), BINNINGS))
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise InputError(f"bins must be 1 or more, got {bins!r}")
    if by == "width":
        # Bins are open below and closed above, but for the first, which holds 0 as well.
        return np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(np.int64)
    # Equal probabilities stay in one bin, so that the result does not depend on the order of the rows.
    return np.minimum((rankdata(confidence, "min") - 1) * bins // len(confidence), bins - 1).astype(np.int64)


def reliability(probabilities: Any, labels: Any, *, bins: int = 15, by: str = "width") -> Result:
    """What happened at each level of confidence.

    Args:
        probabilities: (n,) of the label 1, whose calibration is that of this probability; or (n, k), where it is that
            of the largest.
        labels: (n,) 0 or 1, or columns of the probabilities.
        bins: how many.
        by: "width" (bins of equal width from 0 to 1) or "mass" (of as equal numbers of rows as ties allow).

    Returns:
        Result over the bins that hold rows: `observed` (share that happened), `confidence` (mean probability),
        `count`; and the numbers `ece` (mean |observed - confidence| over rows), `mce` (its largest), `bias` (mean
        confidence - mean observed).

    Raises:
        InputError: shapes or values do not fit.
        UnknownNameError: there is no such binning.

    Source: Naeini et al., 2015, and Guo et al., 2017, equations 2 to 5 (equal width); Nguyen and O'Connor, 2015
    (equal mass).
    """
    p, y = _checked(probabilities, labels)
    confidence, happened = _confidences(p, y)
    of = _bins(confidence, bins, by)
    used, number = np.unique(of, return_inverse=True)
    count = np.bincount(number)
    said, seen = (np.bincount(number, weights=v) / count for v in (confidence, happened))
    gap = np.abs(seen - said)
    data = xr.Dataset(
        {
            "observed": (("bin",), seen),
            "confidence": (("bin",), said),
            "count": (("bin",), count),
            "ece": ((), float((gap * count).sum() / len(p))),
            "mce": ((), float(gap.max())),
            "bias": ((), float(confidence.mean() - happened.mean())),
        },
        coords={"bin": used},
        attrs={"plot": {"variables": ["observed", "confidence"], "ylabel": "share and mean probability"}},
    )
    return Result(data, "reliability", provenance=provenance(inputs=[p, y], bins=bins, by=by))


def calibration_error(probabilities: Any, labels: Any, *, bins: int = 15, by: str = "width") -> float:
    """Expected calibration error (ECE): the mean distance of confidence and what happened, over bins.

    Args:
        probabilities, labels, bins, by: as in `reliability`.

    Raises:
        InputError: shapes or values do not fit.
        UnknownNameError: there is no such binning.
    """
    return float(reliability(probabilities, labels, bins=bins, by=by)["ece"])


class TemperatureScaling(SavedEstimator):
    """Divides logits by one number, chosen for the likelihood of held-out labels; the ranking stays.

    Attributes:
        temperature_: above 1 where the logits were too confident.

    Source: Guo et al., 2017, section 4.2.
    """

    fitted = "temperature_"
    saved_as = "temperature scaling"

    def fit(self, logits: Any, labels: Any) -> Self:
        """Choose the temperature.

        Args:
            logits: (n, k), or (n,) of two classes (that of the label 1); of rows that training has not seen.
            labels: (n,) 0 or 1, or columns of the logits.

        Raises:
            InputError: shapes or values do not fit, or no temperature from 0.001 to 1000 is best: all labels agree
                with the logits, or they are worse than chance.
        """
        z = _logits(logits)
        _, y = _checked(np.full(len(z), 0.5) if z.ndim == 1 else np.full(z.shape, 1 / z.shape[1]), labels)

        def slope(inverse: float) -> float:
            # Of the loss, which is convex in the inverse temperature.
            scaled = z * inverse
            if z.ndim == 1:
                return float(((expit(scaled) - y) * z).mean())
            return float(((softmax(scaled, 1) * z).sum(1) - z[np.arange(len(y)), y]).mean())

        low, high = (1 / t for t in reversed(TEMPERATURES))
        if not slope(low) < 0 < slope(high):
            raise InputError(
                "no temperature is best: every label agrees with the logits (then take more data), or the logits are "
                "worse than chance"
            )
        self.temperature_ = 1 / float(brentq(slope, low, high, xtol=1e-12))
        return self

    def predict_proba(self, logits: Any) -> Floats:
        """Probabilities: (n, k), or of logits (n,) those of the label 1.

        Raises:
            InputError: not fitted, or shapes do not fit.
        """
        self.check_fitted()
        z = _logits(logits) / self.temperature_
        return np.asarray(expit(z) if z.ndim == 1 else softmax(z, 1))

    def _state(self) -> State:
        return {"values": tensor_of(np.array([self.temperature_]))}, {}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        (self.temperature_,) = tensors["values"].tolist()


class PlattScaling(SavedEstimator):
    """Logistic regression of labels on one score: p = sigmoid(a s + b), with Platt's smoothed targets.

    Attributes:
        slope_, offset_: a and b.

    Source: Platt, 1999; Lin, Lin and Weng, 2007 (targets (N+ + 1) / (N+ + 2) and 1 / (N- + 2)).
    """

    fitted = "slope_"
    saved_as = "Platt scaling"

    def fit(self, scores: Any, labels: Any) -> Self:
        """Fit slope and offset.

        Args:
            scores: (n,), of rows that training has not seen.
            labels: (n,), two classes.

        Raises:
            InputError: shapes do not fit, values are not finite, scores do not vary, or there is one class only.
        """
        s = as_vector(scores, "scores")
        _, y = as_classes(labels, len(s), two=True)
        spread = float(s.std())
        if not spread > 0:
            raise InputError("all scores are the same number")
        # In units of the scores' own spread, so that steps of the solver fit any scale.
        z = (s - s.mean()) / spread
        up, down = int(y.sum()), int((1 - y).sum())
        target = np.where(y == 1, (up + 1) / (up + 2), 1 / (down + 2))

        def loss(ab: Floats) -> tuple[float, Floats]:
            value = ab[0] * z + ab[1]
            error = expit(value) - target
            return float((np.logaddexp(0, value) - target * value).sum()), np.array([error @ z, error.sum()])

        a, b = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8}).x
        self.slope_ = float(a / spread)
        self.offset_ = float(b - a * s.mean() / spread)
        return self

    def predict_proba(self, scores: Any) -> Floats:
        """(n,) probability of the larger label.

        Raises:
            InputError: not fitted, or shapes do not fit.
        """
        self.check_fitted()
        return np.asarray(expit(self.slope_ * as_vector(scores, "scores") + self.offset_))

    def _state(self) -> State:
        return {"values": tensor_of(np.array([self.slope_, self.offset_]))}, {}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.slope_, self.offset_ = tensors["values"].tolist()


def _logits(logits: Any) -> Floats:
    given = logits.detach().cpu().double() if isinstance(logits, Tensor) else logits
    z = np.asarray(given, dtype=np.float64)
    if z.ndim not in (1, 2) or not z.size or not np.isfinite(z).all() or (z.ndim == 2 and z.shape[1] < 2):
        raise InputError(f"logits: expected finite numbers (n,) or (n, k) with k >= 2, got shape {z.shape}")
    return z
