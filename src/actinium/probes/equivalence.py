"""Whether activations put statements that mean the same nearer together than statements that only look alike."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, rankdata

from actinium.core.errors import InputError
from actinium.core.provenance import fingerprint, provenance
from actinium.core.result import Result
from actinium.probes.rows import as_rows

__all__ = ["equivalence_separation", "partial_correlation", "token_overlap"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
KINDS = ("equivalent", "near", "unrelated")
# Of a vector after centring, or of ranks after partialling out: below this share only rounding is left.
NOTHING = 1e-9


def equivalence_separation(acts: Any, quadruples: Any, texts: Sequence[str] | None = None) -> Result:
    """How well cosine distance tells equivalent statements from near ones, by layer.

    Activations are centred on the mean over all statements of the layer; D(a, b) = 1 - cos(a, b). With each statement s
    go an equivalent one in other words (LE), a near one that is not equivalent (SE) and an unrelated one (U).

    Args:
        acts: (layer, statement, d), or {site: (statement, d)} as `step_activations` gives.
        quadruples: (quadruple, 4) rows of `acts`: s, LE, SE, U.
        texts: (statement,) for the correlations; of the statements alone, without what stands before them.

    Returns:
        by layer, NaN where a centred activation is zero (before the first block where all statements end alike):
        `auroc`: P(D(s, LE) < D(s', SE)) over all pairs of quadruples, ties one half;
        `paired`: the same within quadruples;
        `dprime`: (mean D(s, SE) - mean D(s, LE)) / sqrt((variance of either) / 2), NaN where nothing varies;
        `distance` by layer and kind: mean of D(s, LE), D(s, SE), D(s, U);
        with texts, `rsa`: Spearman correlation of D with "not equivalent" (0 or 1) over the six pairs of each
        quadruple, and `rsa_partial`: the same with token overlap (Jaccard) and difference of length partialled out.

    Raises:
        InputError: shapes do not fit, values are not finite, a quadruple names a statement twice or one that is not
            there, or there are fewer than two quadruples.

    Source: Atanas and Liu, 2025 (logical and semantic equivalence); the statistics are ours, after Kriegeskorte et al.,
    2008 (representational similarity).
    """
    layers = acts if isinstance(acts, Mapping) or hasattr(acts, "items") else dict(enumerate(acts))
    rows = {name: as_rows(value, f"activations of layer {name}") for name, value in layers.items()}
    if not rows:
        raise InputError("no layers given")
    n = len(next(iter(rows.values())))
    table = _quadruples(quadruples, n)
    pairs = np.array([(q[a], q[b]) for q in table for a, b in itertools.combinations(range(4), 2)])
    other = np.tile([0.0, 1.0, 1.0, 1.0, 1.0, 1.0], len(table))
    covariates = None if texts is None else _covariates(texts, pairs, n)
    found: dict[str, list[Any]] = {}
    for values in rows.values():
        if len(values) != n:
            raise InputError("the layers differ in their number of statements")
        unit = _unit(values)
        same, near, unrelated = (_distance(unit, table[:, [0, k]]) for k in (1, 2, 3))
        row = _separation(same, near) | {"distance": [float(d.mean()) for d in (same, near, unrelated)]}
        if covariates is not None:
            distance = _distance(unit, pairs)
            row |= {"rsa": partial_correlation(distance, other)}
            row |= {"rsa_partial": partial_correlation(distance, other, covariates)}
        for key, value in row.items():
            found.setdefault(key, []).append(value)
    data = xr.Dataset(coords={"layer": list(rows), "kind": list(KINDS)})
    for key, values_ in found.items():
        data[key] = (("layer", "kind") if key == "distance" else "layer", np.array(values_))
    data.attrs["plot"] = {"variables": ["auroc", "paired"], "ylabel": "P(equivalent nearer than near)"}
    inputs = fingerprint({"quadruples": table, "texts": list(texts or []), "acts": list(rows.values())})
    return Result(data, "equivalence_separation", "arrangement-puzzle", provenance(inputs=inputs))


def _quadruples(quadruples: Any, n: int) -> Ints:
    table = np.asarray(quadruples)
    if table.ndim != 2 or table.shape[1] != 4 or len(table) < 2 or table.dtype.kind not in "iu":
        raise InputError(f"expected two or more quadruples of four row numbers, got shape {table.shape}")
    if table.min() < 0 or table.max() >= n:
        raise InputError(f"quadruples name statements {table.min()} to {table.max()}, but there are 0 to {n - 1}")
    if any(len(set(row)) < 4 for row in table.tolist()):
        raise InputError("a quadruple names the same statement twice")
    return table.astype(np.int64)


def _unit(values: Floats) -> Floats:
    """Rows centred on their mean, of length one; NaN where nothing is left of one."""
    centred = values - values.mean(0)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    nothing = length <= NOTHING * np.abs(values).max()
    return np.asarray(centred / np.where(nothing, np.nan, length))


def _distance(unit: Floats, pairs: Ints) -> Floats:
    return np.asarray(1 - (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(1))


def _separation(same: Floats, near: Floats) -> dict[str, float]:
    if not np.isfinite([same, near]).all():
        return dict.fromkeys(("auroc", "paired", "dprime"), float("nan"))
    auroc = mannwhitneyu(near, same).statistic / (len(same) * len(near))
    paired = float(np.mean((same < near) + 0.5 * (same == near)))
    spread = np.sqrt((same.var(ddof=1) + near.var(ddof=1)) / 2)
    dprime = float((near.mean() - same.mean()) / spread) if spread > NOTHING else float("nan")
    return {"auroc": float(auroc), "paired": paired, "dprime": dprime}


def _covariates(texts: Sequence[str], pairs: Ints, n: int) -> Floats:
    """Token overlap and difference of length of each pair, (pair, 2)."""
    if len(texts) != n:
        raise InputError(f"{len(texts)} texts for {n} statements")
    lengths = [len(_tokens(text)) for text in texts]
    values = [(token_overlap(texts[a], texts[b]), abs(lengths[a] - lengths[b])) for a, b in pairs.tolist()]
    return np.array(values, dtype=np.float64)


def _tokens(text: str) -> list[str]:
    return text.lower().replace(".", " ").replace(",", " ").split()


def token_overlap(a: str, b: str) -> float:
    """Jaccard index of the sets of words of two texts, from 0 to 1 (two empty texts: 1)."""
    one, other = set(_tokens(a)), set(_tokens(b))
    return len(one & other) / len(one | other) if one | other else 1.0


def partial_correlation(x: Any, y: Any, covariates: Any = None) -> float:
    """Spearman correlation of two variables, with others partialled out of their ranks.

    Args:
        x, y: (n,) numbers.
        covariates: (n,) or (n, k); None for the plain correlation.

    Returns:
        correlation of what is left of the ranks after least squares on the ranks of the covariates; NaN where nothing
        is left of either, or x or y hold NaN.

    Raises:
        InputError: shapes do not fit, or there are fewer than three items.

    Source: Conover, 1999, section 5.4 (partial rank correlation).
    """
    x, y = (np.asarray(v, dtype=np.float64) for v in (x, y))
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3:
        raise InputError(f"expected two variables of three or more numbers each, got shapes {x.shape} and {y.shape}")
    if not np.isfinite([x, y]).all():
        return float("nan")
    columns = [np.ones(len(x))]
    if covariates is not None:
        table = np.asarray(covariates, dtype=np.float64).reshape(len(x), -1)
        columns += [rankdata(column) for column in table.T]
    ranks = np.stack([rankdata(x), rankdata(y)], 1)
    design = np.stack(columns, 1)
    left = ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]
    length = np.linalg.norm(left, axis=0)
    if (length <= NOTHING * np.linalg.norm(ranks, axis=0)).any():
        return float("nan")
    return float(left[:, 0] @ left[:, 1] / (length[0] * length[1]))
