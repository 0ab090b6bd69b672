"""How a model lays out numbers: helices, the surface that components draw, and what each component stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from actinium.core.errors import InputError
from actinium.core.result import Result

__all__ = [
    "Components",
    "Helix",
    "components",
    "concept_alignment",
    "fit_helix",
    "latent_topography",
    "pc_ablation_curve",
]

Floats = NDArray[np.float64]
LEAST = 8
PAPER = "neurons-to-neutrons"


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components.

    Attributes:
        mean: (d,).
        axes: (k, d), orthonormal, largest variance first; the entry of each that is largest in size is positive.
        scores: (n, k).
        share: (k,) of the variance.
    """

    mean: Floats
    axes: Floats
    scores: Floats
    share: Floats


@dataclass(frozen=True, eq=False)
class Helix:
    """A helix p(n) = centre + rotation (pitch n, r cos(w n + phase), r sin(w n + phase)), r = radius + growth n.

    Attributes:
        w: radians per number.
        pitch, radius, growth, phase: see above.
        rotation: (3, 3).
        centre: (3,).
        r2: share of the points' variance that it explains.
    """

    w: float
    pitch: float
    radius: float
    growth: float
    phase: float
    rotation: Floats
    centre: Floats
    r2: float

    def at(self, n: ArrayLike) -> Floats:
        """Points (m, 3) of numbers (m,)."""
        number = np.asarray(n, dtype=np.float64)
        r, angle = self.radius + self.growth * number, self.w * number + self.phase
        return np.stack([self.pitch * number, r * np.cos(angle), r * np.sin(angle)], -1) @ self.rotation.T + self.centre


def _matrix(values: ArrayLike, what: str) -> Floats:
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)
    if array.ndim != 2 or len(array) < 2 or not np.isfinite(array).all():
        raise InputError(f"{what}: expected finite numbers (n, d) with n >= 2, not {array.shape}")
    return array


def components(values: ArrayLike, k: int | None = None) -> Components:
    """Principal components of rows (n, d).

    Args:
        values: numbers.
        k: how many, by default all that have variance.

    Raises:
        InputError: values are not finite numbers (n, d), or `k` is above their rank.
    """
    x = _matrix(values, "components")
    mean = x.mean(0)
    _, sizes, axes = np.linalg.svd(x - mean, full_matrices=False)
    rank = int((sizes > sizes.max(initial=0.0) * 1e-10).sum())
    if k is not None and not 1 <= k <= rank:
        raise InputError(f"k goes from 1 to the rank {rank}, not {k}")
    kept = rank if k is None else k
    axes = axes[:kept]
    axes = axes * np.sign(axes[np.arange(kept), np.abs(axes).argmax(1)])[:, None]
    return Components(mean, axes, (x - mean) @ axes.T, sizes[:kept] ** 2 / (sizes**2).sum())


def fit_helix(points: ArrayLike, n: ArrayLike, w: float | None = None) -> Helix:
    """Least-squares helix through points, one for each number.

    The frequency is searched on a grid (as fine as the numbers' range allows, up to half a turn a number), then all
    parameters are fitted together.

    Args:
        points: (m, 3), for example the first three principal components of number embeddings.
        n: numbers (m,), not all alike.
        w: start of the frequency instead of the search, in radians per number.

    Returns:
        Helix.

    Raises:
        InputError: there are fewer than 8 points, they are not finite (m, 3), or the numbers do not fit.

    Source: Kitouni et al., 2024, section 3.2.
    """
    p, number = _matrix(points, "fit_helix"), np.asarray(n, dtype=np.float64)
    if len(p) < LEAST or p.shape[1] != 3 or number.shape != (len(p),) or np.ptp(number) == 0:
        raise InputError(f"a helix needs {LEAST} points (m, 3) or more and their numbers (m,), not {p.shape}")
    centred = p - p.mean(0)
    total = float((centred**2).sum())
    if total == 0:
        raise InputError("all points are one")
    step = np.pi / (8 * np.ptp(number))
    grid = np.arange(2 * step, np.pi + step, step) if w is None else np.array([w])
    starts = sorted(grid, key=lambda g: _loose(centred, number, float(g)))[: 5 if w is None else 1]
    found = min((_fitted(p, number, float(g)) for g in starts), key=lambda each: float(each.cost))
    x = found.x
    r2 = 1 - 2 * float(found.cost) / total
    rotation = Rotation.from_rotvec(x[5:8]).as_matrix()
    return Helix(*(float(v) for v in x[:5]), rotation=rotation, centre=x[8:11], r2=r2)


def _design(number: Floats, w: float) -> Floats:
    angle = w * number
    return np.stack([np.ones_like(number), number, np.cos(angle), np.sin(angle)], 1)


def _loose(p: Floats, number: Floats, w: float) -> float:
    """Squared error of the best line and circle of a frequency, sheared as they may be."""
    design = _design(number, w)
    return float(((p - design @ np.linalg.lstsq(design, p, rcond=None)[0]) ** 2).sum())


def _fitted(p: Floats, number: Floats, w: float) -> Any:
    """All parameters from a start: w, pitch, radius, growth, phase, rotation (3), centre (3)."""
    start, line, cos, sin = np.linalg.lstsq(_design(number, w), p, rcond=None)[0]
    pitch = float(np.linalg.norm(line))
    axis = line / pitch if pitch > 1e-12 else np.cross(cos, sin) / max(float(np.linalg.norm(np.cross(cos, sin))), 1e-12)
    flat = cos - (cos @ axis) * axis
    one = flat / max(float(np.linalg.norm(flat)), 1e-12)
    two = np.cross(axis, one)
    radius = (float(np.linalg.norm(cos)) + float(np.linalg.norm(sin))) / 2
    frame = np.linalg.qr(np.stack([axis, one, two], 1))[0]
    frame *= np.sign((frame * np.stack([axis, one, two], 1)).sum(0))
    # A helix that turns the other way is one with the opposite frequency.
    turn = 1.0 if float(sin @ two) >= 0 else -1.0
    guess = np.concatenate([[turn * w, pitch, radius, 0.0, 0.0], Rotation.from_matrix(frame).as_rotvec(), start])

    def residual(x: Floats) -> Floats:
        r, angle = x[2] + x[3] * number, x[0] * number + x[4]
        local = np.stack([x[1] * number, r * np.cos(angle), r * np.sin(angle)], 1)
        return np.asarray((local @ Rotation.from_rotvec(x[5:8]).as_matrix().T + x[8:11] - p).ravel())

    return least_squares(residual, guess, x_scale="jac", max_nfev=400)


def pc_ablation_curve(
    activations: ArrayLike,
    readout: Callable[[Floats], ArrayLike],
    target: ArrayLike,
    ks: Sequence[int] | None = None,
) -> Result:
    """Root mean square error of a read-out that sees the first k principal components of the activations.

    Args:
        activations: (n, h), for example those that enter the last linear map.
        readout: from activations (n, h) to predictions (n,).
        target: (n,), in the predictions' units.
        ks: numbers of components, 0 for the mean alone; by default 0 to 10 and the rank.

    Returns:
        Result over k: `rms`; and over component: `share` of the variance.

    Raises:
        InputError: shapes do not fit, or a k is above the rank.

    Source: Kitouni et al., 2024, section 4.1.
    """
    x, wanted = _matrix(activations, "pc_ablation_curve"), np.asarray(target, dtype=np.float64)
    if wanted.shape != (len(x),):
        raise InputError(f"target: expected one number for each of {len(x)} rows, not {wanted.shape}")
    found = components(x)
    rank = len(found.share)
    counts = sorted({*range(min(10, rank) + 1), rank}) if ks is None else [int(k) for k in ks]
    if not counts or any(not 0 <= k <= rank for k in counts):
        raise InputError(f"k goes from 0 to the rank {rank}, not {counts}")
    errors = []
    for k in counts:
        kept = found.mean + found.scores[:, :k] @ found.axes[:k]
        errors.append(float(np.sqrt(np.mean((_read(readout, kept) - wanted) ** 2))))
    data = {"rms": (("k",), errors), "share": (("component",), found.share)}
    hints = {"plot": {"variables": ["rms"], "yscale": "log"}}
    coords = {"k": counts, "component": np.arange(1, rank + 1)}
    return Result(xr.Dataset(data, coords=coords, attrs=hints), "pc_ablation_curve", PAPER)


def _read(readout: Callable[[Floats], ArrayLike], values: Floats) -> Floats:
    out: Any = readout(values)
    out = np.asarray(out.detach().cpu() if hasattr(out, "detach") else out, dtype=np.float64)
    if out.shape != (len(values),):
        raise InputError(f"a read-out gives one number for each of {len(values)} rows, not {out.shape}")
    return out


def concept_alignment(
    activations: ArrayLike, readout: Callable[[Floats], ArrayLike], terms: Mapping[str, ArrayLike], k: int = 10
) -> Result:
    """Correlation of what each principal component adds to a prediction with terms that are known.

    Args:
        activations, readout: as in `pc_ablation_curve`.
        terms: by name (n,), for example those of the liquid-drop formula.
        k: components.

    Returns:
        Result over component and term: `correlation` (Pearson; NaN where either does not vary); `contribution`, the
        standard deviation of what the component alone adds (component); and `rms_from` over count and term: root mean
        square error, as a share of the term's standard deviation, of its linear regression on the first components
        (five-fold cross-validated).

    Raises:
        InputError: shapes do not fit, there are no terms, or k is above the rank.

    Source: Kitouni et al., 2024, section 4.2.
    """
    x = _matrix(activations, "concept_alignment")
    if not terms:
        raise InputError("terms: none given")
    columns = {name: np.asarray(value, dtype=np.float64) for name, value in terms.items()}
    wrong = [name for name, value in columns.items() if value.shape != (len(x),) or not np.isfinite(value).all()]
    if wrong:
        raise InputError(f"term {wrong[0]!r}: expected {len(x)} finite numbers, not {columns[wrong[0]].shape}")
    found = components(x, k)
    base = _read(readout, np.repeat(found.mean[None], len(x), 0))
    alone = [_read(readout, found.mean + found.scores[:, [i]] * found.axes[i]) - base for i in range(k)]
    each = np.stack(alone, 1)
    matrix = np.stack(list(columns.values()), 1)
    data = {
        "correlation": (("component", "term"), _correlations(each, matrix)),
        "contribution": (("component",), each.std(0)),
        "rms_from": (("count", "term"), _regressions(found.scores, matrix)),
    }
    coords = {"component": np.arange(1, k + 1), "term": list(columns), "count": np.arange(1, k + 1)}
    return Result(xr.Dataset(data, coords=coords), "concept_alignment", PAPER)


def _correlations(a: Floats, b: Floats) -> Floats:
    """(i, j) Pearson correlation of columns."""
    one, other = a - a.mean(0), b - b.mean(0)
    sizes = np.outer(np.linalg.norm(one, axis=0), np.linalg.norm(other, axis=0))
    return np.divide(one.T @ other, sizes, out=np.full(sizes.shape, np.nan), where=sizes > 0)


def _regressions(scores: Floats, terms: Floats, folds: int = 5) -> Floats:
    """(count, term) cross-validated error of linear regressions on the first components."""
    order = np.random.default_rng(0).permutation(len(scores))
    out = np.zeros((scores.shape[1], terms.shape[1]))
    for k in range(1, scores.shape[1] + 1):
        design = np.concatenate([np.ones((len(scores), 1)), scores[:, :k]], 1)
        errors = np.zeros_like(terms)
        for fold in np.array_split(order, folds):
            rest = np.setdiff1d(order, fold)
            errors[fold] = terms[fold] - design[fold] @ np.linalg.lstsq(design[rest], terms[rest], rcond=None)[0]
        out[k - 1] = np.sqrt((errors**2).mean(0))
    spread = terms.std(0)
    return np.divide(out, spread, out=np.full(out.shape, np.nan), where=spread > 0)


def latent_topography(
    values: ArrayLike, output: Callable[[Floats], ArrayLike], *, first: int = 1, second: int = 2, grid: int = 25
) -> Result:
    """Output of a model over the plane of two principal components, all others at their mean.

    Args:
        values: (n, d) embeddings or activations.
        output: from such rows (m, d) to numbers (m,).
        first, second: the components, from 1.
        grid: points along each, over the range of the values.

    Returns:
        Result over the two components: `output`.

    Raises:
        InputError: a component is above the rank, both are one, or the grid has fewer than two points.

    Source: Kitouni et al., 2024, section 3.3.
    """
    found = components(_matrix(values, "latent_topography"))
    rank = len(found.share)
    if first == second or not (1 <= first <= rank and 1 <= second <= rank) or grid < 2:
        raise InputError(f"two different components from 1 to {rank} and a grid of 2 or more, not {first}, {second}")
    along = [np.linspace(found.scores[:, i - 1].min(), found.scores[:, i - 1].max(), grid) for i in (first, second)]
    a, b = (g.ravel() for g in np.meshgrid(*along, indexing="ij"))
    rows = found.mean + a[:, None] * found.axes[first - 1] + b[:, None] * found.axes[second - 1]
    names = (f"component {first}", f"component {second}")
    dataset = xr.Dataset(
        {"output": (names, _read(output, rows).reshape(grid, grid))}, dict(zip(names, along, strict=True))
    )
    return Result(dataset, "latent_topography", PAPER)
