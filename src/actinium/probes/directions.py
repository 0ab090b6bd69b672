"""One direction for a binary concept, found in several ways, and how far the ways agree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError, MissingExtraError, UnknownNameError, unknown
from actinium.core.fitted import opened, write_fitted
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.probes.rows import as_classes, as_rows

__all__ = ["METHODS", "Direction", "direction_agreement", "find_direction", "unit_vector"]

Floats = NDArray[np.float64]
METHODS = ("mean_diff", "k_means", "logistic", "pca", "random")
SUPERVISED = ("mean_diff", "logistic")
PAPER = "sentiment-direction"
KIND = "direction"


@dataclass(frozen=True, eq=False)
class Direction:
    """A unit direction of an activation space with the threshold that parts the two sides.

    Args:
        theta: (d,), made unit length.
        bias: projections x . theta + bias above 0 are on the positive side.
        method: how it was found.
        info: what the method has to say about it, such as the share of the variance.

    Raises:
        InputError: theta is no finite vector, or zero.
    """

    theta: Tensor
    bias: float = 0.0
    method: str = "given"
    info: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "theta", unit_vector(self.theta))

    def project(self, x: Any) -> Tensor:
        """Projections x . theta of activations (…, d), float64 (…)."""
        values = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
        if values.shape[-1] != len(self.theta):
            raise InputError(f"activations have {values.shape[-1]} entries, the direction {len(self.theta)}")
        return values.detach().cpu().double() @ self.theta

    def predict(self, x: Any) -> Tensor:
        """Whether activations (…, d) lie on the positive side, bool (…)."""
        return self.project(x) + self.bias > 0

    def score(self, x: Any, labels: Any) -> float:
        """Accuracy on activations (n, d) with labels (n,) of two values; the larger is the positive side.

        Raises:
            InputError: shapes do not fit.
        """
        rows = as_rows(x)
        return float(np.mean(self.predict(rows).numpy() == (as_classes(labels, len(rows), two=True)[1] == 1)))

    def cosine(self, other: Direction) -> float:
        """Cosine with another direction."""
        return float(self.theta @ other.theta)

    def __neg__(self) -> Direction:
        """The same line, with its sides exchanged."""
        return Direction(-self.theta, -self.bias, self.method, self.info)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one safetensors file."""
        settings = {"bias": self.bias, "method": self.method, "info": dict(self.info)}
        return write_fitted(path, KIND, {"theta": self.theta}, settings)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged, or holds something else.
        """
        with opened(path, KIND) as (about, tensors):
            return cls(tensors["theta"], **about["settings"])


def unit_vector(vector: Any) -> Tensor:
    """A vector (d,) made unit length, float64.

    Raises:
        InputError: another shape, values that are not finite, or zero.
    """
    given = vector.detach().cpu() if isinstance(vector, Tensor) else torch.as_tensor(np.asarray(vector))
    given = given.double()
    if given.ndim != 1 or not len(given) or not bool(torch.isfinite(given).all()):
        raise InputError(f"a direction is a finite vector (d,), not of shape {tuple(given.shape)}")
    size = given.norm()
    if not float(size) > 1e-12:
        raise InputError("the direction is zero")
    # A vector that is unit length already keeps its bits, so that what was saved comes back the same.
    return given.clone() if abs(float(size) - 1) < 1e-15 else given / size


def find_direction(acts: Any, labels: Any = None, method: str = "mean_diff", seed: int = 0) -> Direction:
    """One unit direction that tells two sides apart.

    A direction that is learned from a model's answers (distributed alignment search) needs the model: see
    `patching_direction`.

    Args:
        acts: activations (n, d), best of both sides in equal numbers and all at one kind of position: where these are
            mixed, the directions without labels find the positions.
        labels: (n,), two values; the larger is the positive side. "mean_diff" and "logistic" need them. The others
            find a line without them, and labels merely turn it; without labels its largest entry is positive.
        method: "mean_diff" (difference of the class means), "k_means" (difference of the centroids of two clusters),
            "logistic" (weights of a logistic regression, liblinear with C = 1, whose intercept is penalised, too),
            "pca" (first principal component), or "random".
        seed: of the clusters' starts and of "random".

    Returns:
        Direction; its threshold lies midway between the means (or centroids), of "pca" and "random" at the mean of
        the activations (with labels: midway between their means), of "logistic" where the probability is one half.

    Raises:
        InputError: shapes do not fit, values are not finite, labels are missing or of one class, or nothing varies.
        UnknownNameError: there is no such method.
        MissingExtraError: scikit-learn is not installed ("k_means", "logistic").

    Source: Tigges et al., 2023.
    """
    if method == "das":
        raise InputError("a direction by alignment search is learned from a model: use ac.probes.patching_direction")
    if method not in METHODS:
        raise UnknownNameError(unknown("method", str(method), METHODS))
    x = as_rows(acts)
    if len(x) < 2 or not (x != x[0]).any():
        raise InputError("all activations are the same: there is no direction in them")
    sides = None if labels is None else as_classes(labels, len(x), two=True)[1]
    if sides is None and method in SUPERVISED:
        raise InputError(f"{method!r} needs labels; without them use k_means or pca")
    info: dict[str, float] = {}
    if method == "mean_diff":
        theta, middle = _between(x, sides)
    elif method == "k_means":
        theta, middle, info = _clusters(x, seed)
    elif method == "logistic":
        return _logistic(x, sides)
    else:
        theta, middle, info = _component(x) if method == "pca" else _random(x, seed)
        if sides is not None:
            middle = _between(x, sides)[1]
    unit = unit_vector(theta)
    if sides is not None and method not in SUPERVISED:
        gap = x[sides == 1].mean(0) - x[sides == 0].mean(0)
        unit = unit if float(unit @ torch.from_numpy(gap)) >= 0 else -unit
    elif sides is None:
        unit = unit * unit[unit.abs().argmax()].sign()
    return Direction(unit, -float(unit @ torch.from_numpy(np.array(middle))), method, info)


def _between(x: Floats, sides: Any) -> tuple[Floats, Floats]:
    up, down = x[sides == 1].mean(0), x[sides == 0].mean(0)
    return up - down, (up + down) / 2


def _clusters(x: Floats, seed: int) -> tuple[Floats, Floats, dict[str, float]]:
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None
    found = KMeans(2, n_init=10, random_state=seed).fit(x)
    one, other = found.cluster_centers_
    total = float(((x - x.mean(0)) ** 2).sum())
    return one - other, (one + other) / 2, {"explained": 1 - float(found.inertia_) / total}


def _component(x: Floats) -> tuple[Floats, Floats, dict[str, float]]:
    _, sizes, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return axes[0], x.mean(0), {"explained": float(sizes[0] ** 2 / (sizes**2).sum())}


def _random(x: Floats, seed: int) -> tuple[Floats, Floats, dict[str, float]]:
    return np.random.default_rng(seed).normal(size=x.shape[1]), x.mean(0), {}


def _logistic(x: Floats, sides: Any) -> Direction:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None
    found = LogisticRegression(solver="liblinear", C=1.0, random_state=0, max_iter=1000).fit(x, sides)
    size = float(np.linalg.norm(found.coef_[0]))
    if not size > 0:
        raise InputError("the logistic regression found no direction: its weights are zero")
    return Direction(torch.from_numpy(found.coef_[0]), float(found.intercept_[0]) / size, "logistic")


def direction_agreement(directions: Mapping[str, Direction | Any]) -> Result:
    """Cosines of every two directions.

    Args:
        directions: by name, two or more of one width; `Direction` or (d,).

    Returns:
        Result over direction and other: `cosine` (absolute, 0 to 1) and `signed`.

    Raises:
        InputError: there are fewer than two, or widths differ.

    Source: Tigges et al., 2023.
    """
    units = {name: d.theta if isinstance(d, Direction) else unit_vector(d) for name, d in directions.items()}
    if len(units) < 2 or len({len(u) for u in units.values()}) != 1:
        raise InputError(f"expected two directions or more of one width, got {[len(u) for u in units.values()]}")
    matrix = torch.stack(list(units.values()))
    signed = (matrix @ matrix.T).numpy()
    data = {"cosine": (("direction", "other"), np.abs(signed)), "signed": (("direction", "other"), signed)}
    coords = {"direction": list(units), "other": list(units)}
    return Result(xr.Dataset(data, coords=coords), "direction_agreement", PAPER, provenance(inputs=units))
