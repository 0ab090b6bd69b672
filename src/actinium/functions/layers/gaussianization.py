"""How far activations are from independent normal ones, before and after maps that are to make them so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import stats
from torch import Tensor

from actinium.core.errors import InputError, MissingExtraError, unknown
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_rows
from actinium.functions.layers.divisive_normalisation import GDNDensity

__all__ = ["gaussianization_report"]

BINS = 10
Map = Callable[[np.ndarray], np.ndarray]


def gaussianization_report(
    acts: Any,
    maps: Sequence[str] = ("none", "pca", "zca", "ica", "radial", "gdn"),
    *,
    seed: int = 0,
    steps: int = 700,
    progress: bool = False,
) -> Result:
    """Marginals and dependence of rows after maps, each fitted to a random half and measured on the other.

    Args:
        acts: rows (n, d) of 2 or more entries.
        maps: "none" (standardised), "pca" (scaled principal components), "zca" (whitened in place), "ica" (independent
            components whose marginals are made normal), "radial" (whitened, with lengths made those of normal rows) and
            "gdn" (`GDNDensity`).
        seed: of the halves and fits.
        steps: of the GDN's fit.
        progress: show a progress bar.

    Returns:
        by map: "information" (mean mutual information of pairs in nats, from ranks in 10 x 10 cells, less what
        independent pairs of as many rows have; equal values get ranks at random), "square_correlation" (mean absolute
        correlation of squares of pairs), "kurtosis" (mean absolute excess kurtosis), "skew" (mean absolute); by map and
        cell of the first entry, "conditional_std" of the second, for the pair whose squares correlate most.

    Raises:
        InputError: NaN, one entry, fewer than 20 d rows, an entry that does not vary, or an unknown map.
        MissingExtraError: scikit-learn is not installed, with "ica".

    Source: what Balle et al., 2015, section 3 compare.
    """
    x = as_rows(acts, "acts", dtype=torch.float64)
    n, d = x.shape
    if d < 2 or n < 20 * d:
        raise InputError(f"rows of two entries or more are needed, 20 for each entry; got shape {tuple(x.shape)}")
    strange = [m for m in maps if m not in FITS]
    if strange or not maps:
        raise InputError(unknown("map", strange[0], list(FITS)) if strange else "no map is given")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    first, second = x[order[: n // 2]], x[order[n // 2 :]]
    for half in (first, second):
        same = (half == half[0]).all(0)
        if bool(same.any()):
            raise InputError(f"entry {int(same.int().argmax())} has one value in half of the rows; leave it out")
    found = [
        _measured(FITS[m](first, seed, steps)(second.numpy()), seed)
        for m in shown(list(maps), "gaussianization", progress)
    ]
    data: dict[str, Any] = {key: ("map", [f[key] for f in found]) for key in found[0] if key != "conditional_std"}
    data["conditional_std"] = (("map", "cell"), [f["conditional_std"] for f in found])
    hints = {"kind": "bar", "variables": ["information"], "ylabel": "mutual information of pairs (nats)"}
    about = provenance(inputs=x, seed=seed, maps=list(maps), steps=steps)
    return Result(xr.Dataset(data, {"map": list(maps)}, {"plot": hints}), "gaussianization_report", "gdn", about)


def _measured(y: np.ndarray, seed: int) -> dict[str, Any]:
    n, d = y.shape
    y = (y - y.mean(0)) / y.std(0)
    squares = np.corrcoef(y**2, rowvar=False)
    pairs = np.triu_indices(d, 1)
    # In the order of the rows, equal values of two entries would have equal ranks: zeros of ReLU would look dependent.
    drawn = np.random.default_rng(seed).random(y.shape)
    ranks = np.lexsort((drawn, y), axis=0).argsort(0) + 1
    cells = np.floor(ranks * (BINS / (n + 1))).astype(int)
    information = np.mean([_information(cells[:, i], cells[:, j]) for i, j in zip(*pairs, strict=True)])
    worst = int(np.abs(squares[pairs]).argmax())
    i, j = pairs[0][worst], pairs[1][worst]
    return {
        "information": float(information - (BINS - 1) ** 2 / (2 * n)),
        "square_correlation": float(np.abs(squares[pairs]).mean()),
        "kurtosis": float(np.abs(stats.kurtosis(y)).mean()),
        "skew": float(np.abs(stats.skew(y)).mean()),
        "conditional_std": [float(y[cells[:, i] == c, j].std()) for c in range(BINS)],
    }


def _information(a: np.ndarray, b: np.ndarray) -> float:
    joint = np.bincount(a * BINS + b, minlength=BINS**2).reshape(BINS, BINS) / len(a)
    apart = joint.sum(1, keepdims=True) * joint.sum(0)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / apart[there])).sum())


def _standardised(x: Tensor, seed: int, steps: int) -> Map:
    mean, scale = x.mean(0).numpy(), x.std(0).clamp(min=1e-12).numpy()
    return lambda y: (y - mean) / scale


def _components(x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviations of principal components, and these in columns."""
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    if float(values[0]) <= 1e-10 * float(values[-1]):
        raise InputError("the rows lie in fewer dimensions than they have entries; project them first")
    return mean.numpy(), values.sqrt().numpy(), vectors.numpy()


def _pca(x: Tensor, seed: int, steps: int) -> Map:
    mean, scale, vectors = _components(x)
    return lambda y: (y - mean) @ vectors / scale


def _zca(x: Tensor, seed: int, steps: int) -> Map:
    mean, scale, vectors = _components(x)
    return lambda y: (y - mean) @ (vectors / scale) @ vectors.T


def _ica(x: Tensor, seed: int, steps: int) -> Map:
    try:
        from sklearn.decomposition import FastICA
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None
    white = _pca(x, seed, steps)
    inside = white(x.numpy())
    ica = FastICA(whiten="unit-variance", random_state=seed, max_iter=1000, tol=1e-3).fit(inside)
    known = np.sort(ica.transform(inside), axis=0)
    normal = stats.norm.ppf((np.arange(len(known)) + 0.5) / len(known))

    def apply(y: np.ndarray) -> np.ndarray:
        parts = ica.transform(white(y))
        return np.stack([np.interp(parts[:, k], known[:, k], normal) for k in range(parts.shape[1])], 1)

    return apply


def _radial(x: Tensor, seed: int, steps: int) -> Map:
    white = _zca(x, seed, steps)
    known = np.sort(np.linalg.norm(white(x.numpy()), axis=1))
    wanted = stats.chi.ppf((np.arange(len(known)) + 0.5) / len(known), x.shape[1])

    def apply(y: np.ndarray) -> np.ndarray:
        rows = white(y)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        scaled: np.ndarray = rows / np.maximum(length, 1e-300) * np.interp(length, known, wanted)
        return scaled

    return apply


def _gdn(x: Tensor, seed: int, steps: int) -> Map:
    density = GDNDensity(x.shape[1], steps=steps, seed=seed).fit(x)
    return lambda y: density.transform(y).numpy()


FITS: dict[str, Callable[[Tensor, int, int], Map]] = {
    "none": _standardised,
    "pca": _pca,
    "zca": _zca,
    "ica": _ica,
    "radial": _radial,
    "gdn": _gdn,
}
