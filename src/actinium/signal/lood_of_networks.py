"""How far records change what trained networks say, estimated from many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from actinium.core.errors import InputError
from actinium.core.intervals import area_under_roc
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result

__all__ = ["empirical_lood"]

PAPER = "lood"
Floats = NDArray[np.float64]
Data = tuple[Any, Any]
Train = Callable[[Any, Any, int], Callable[[Any], Any]]


def empirical_lood(
    train_fn: Train,
    D: Data,
    S: Data,
    Q: Any,
    n_models: int = 16,
    *,
    paired: bool = False,
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Leave-one-out distinguishability of a training algorithm, from models trained with and without some records.

    The outputs at each query are taken to be Gaussian over models, outputs of one query independent. An audit of a
    model and data of one's own: training is repeated 2 n_models times.

    Args:
        train_fn: takes X, y and a seed; gives a function from queries to outputs (q,) or (q, c).
        D: inputs X (n, …) and labels y (n, …).
        S: the records that join, in the same form.
        Q: queries (q, …).
        n_models: models for each of the two data sets, 4 or more.
        paired: train on both data sets with the same seeds. What a seed does alike in both then falls out of the
            difference of means, which is estimated better.
        bootstrap: resamplings of the models (of pairs where they are paired).
        level: coverage of the percentile intervals.
        seed: the first of the models' seeds, and that of the resampling.
        progress: show a progress bar.

    Returns:
        over query: `mean` (1/2 ||difference of means||^2) and `kl` (KL of the outputs without S from those with S, in
        nats), each with `_low` and `_high`; `mean_corrected`, less what the spread of the models adds to it on average;
        `kl_null`, the mean KL of models that were dealt to the two sets at random: few models make the KL of equal
        distributions positive; `auc`, of telling models that saw S from those that did not by the likelihood ratio
        of their outputs, with Gaussians fitted to one half of the models and judged on the other (at Q = S, a
        membership inference). Over query, output, set and model: `outputs`.

    Raises:
        InputError: fewer than four models, sets that do not fit together, or outputs that are not finite, of varying
            shape, or the same for every seed (the divergence between two points is infinite).

    Source: Ye et al., 2023, sections 3 and 5; Carlini et al., 2022 (likelihood ratio of Gaussians).
    """
    if n_models < 4 or bootstrap < 1 or not 0 < level < 1:
        raise InputError(
            f"expected n_models >= 4, bootstrap >= 1 and level in (0, 1), got {n_models}, {bootstrap}, {level}"
        )
    with_s = _union(D, S)
    out = _outputs(train_fn, (D, with_s), Q, n_models, paired, seed, progress)
    random = np.random.default_rng(seed)
    draws = [_resampled(out, random, paired) for _ in range(bootstrap)]
    edges = ((1 - level) / 2, (1 + level) / 2)
    data: dict[str, Any] = {}
    for name, measure in (("mean", _mean_distance), ("kl", _kl)):
        drawn = np.array([measure(d) for d in draws])
        low, high = np.nanquantile(drawn, edges, axis=0)
        data |= {name: ("query", measure(out)), f"{name}_low": ("query", low), f"{name}_high": ("query", high)}
    spread = (out[1] - out[0]).var(0, ddof=1) if paired else out.var(1, ddof=1).sum(0)
    data["mean_corrected"] = ("query", _mean_distance(out) - spread.sum(1) / (2 * n_models))
    data["kl_null"] = ("query", np.mean([_kl(_dealt(out, random)) for _ in range(min(bootstrap, 200))], axis=0))
    data["auc"] = ("query", _auc(out))
    data["outputs"] = (("set", "model", "query", "output"), out)
    coords = {"set": ["without", "with"]}
    settings = {"n_models": n_models, "paired": paired, "bootstrap": bootstrap, "level": level, "train": train_fn}
    record = provenance(inputs=[*D, *S, Q], seed=seed, **settings)
    hints = {"plot": {"variables": ["kl", "kl_low", "kl_high", "kl_null"], "ylabel": "KL divergence (nats)"}}
    return Result(xr.Dataset(data, coords, hints), "empirical_lood", PAPER, record)


def _union(D: Data, S: Data) -> Data:
    """Inputs and labels of D, with those of S behind them."""
    joined = []
    for name, a, b in (("inputs", D[0], S[0]), ("labels", D[1], S[1])):
        x, y = torch.as_tensor(a), torch.as_tensor(b)
        if x.ndim < 1 or x.ndim != y.ndim or x.shape[1:] != y.shape[1:] or not len(x) or not len(y):
            raise InputError(f"{name} of D and S do not fit together: shapes {tuple(x.shape)} and {tuple(y.shape)}")
        if y.is_floating_point() and not x.is_floating_point():
            raise InputError(f"{name} of D are integers and those of S are not: they would be cut to integers")
        joined.append(torch.cat([x, y.to(x.dtype)]))
    if len(joined[0]) != len(joined[1]) or len(D[0]) != len(D[1]):
        raise InputError(f"D and S hold {len(joined[0])} inputs and {len(joined[1])} labels")
    return joined[0], joined[1]


def _outputs(
    train_fn: Train, sets: tuple[Data, Data], Q: Any, n_models: int, paired: bool, seed: int, progress: bool
) -> Floats:
    """Outputs (2, models, q, c)."""
    runs = [(s, m) for s in range(2) for m in range(n_models)]
    found: list[Floats] = []
    for s, m in shown(runs, "models", progress):
        x, y = (torch.as_tensor(part) for part in sets[s])
        predict = train_fn(x, y, seed + m + (0 if paired else s * n_models))
        out = torch.as_tensor(predict(Q)).detach().double().cpu().numpy()
        out = out[:, None] if out.ndim == 1 else out
        wrong = out.ndim != 2 or len(out) != len(Q) or (found and out.shape != found[0].shape)
        if wrong or not np.isfinite(out).all():
            raise InputError(f"a model gives shape {out.shape} at {len(Q)} queries, or values that are not finite")
        found.append(out)
    outputs = np.stack(found).reshape(2, n_models, *found[0].shape)
    if (outputs.var(1) == 0).any():
        raise InputError("the models give the same output for every seed: there is no distribution to compare")
    return outputs


def _mean_distance(out: Floats) -> Floats:
    return np.asarray(((out[1].mean(0) - out[0].mean(0)) ** 2).sum(-1) / 2)


def _kl(out: Floats) -> Floats:
    """KL (q,) of Gaussians fitted to the outputs without S from those with S; NaN where a variance is zero."""
    (m0, m1), (v0, v1) = out.mean(1), out.var(1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = (np.log(v1 / v0) + v0 / v1 - 1 + (m1 - m0) ** 2 / v1) / 2
    return np.asarray(np.where(np.isfinite(each), each, np.nan).sum(-1))


def _resampled(out: Floats, random: np.random.Generator, paired: bool) -> Floats:
    n = out.shape[1]
    first = random.integers(n, size=n)
    second = first if paired else random.integers(n, size=n)
    return np.stack([out[0, first], out[1, second]])


def _dealt(out: Floats, random: np.random.Generator) -> Floats:
    n = out.shape[1]
    return np.asarray(random.permutation(out.reshape(2 * n, *out.shape[2:])).reshape(out.shape))


def _auc(out: Floats) -> Floats:
    """Area under the ROC curve (q,) of the likelihood ratio, as the mean of both ways to halve fitting and judging."""
    half = out.shape[1] // 2
    parts = [(out[:, :half], out[:, half:]), (out[:, half:], out[:, :half])]
    return np.asarray(np.mean([_judged(fitted, judged) for fitted, judged in parts], axis=0))


def _judged(fitted: Floats, judged: Floats) -> Floats:
    mean, var = fitted.mean(1), fitted.var(1, ddof=1)
    # Halves with one value only would make every other impossible.
    var = np.maximum(var, 1e-12 * fitted.var(axis=(0, 1))[None])
    logs = [-(((judged - mean[s]) ** 2) / var[s] + np.log(var[s])) / 2 for s in range(2)]
    ratio = (logs[1] - logs[0]).sum(-1)
    seen = np.repeat([0, 1], judged.shape[1])
    return np.array([area_under_roc(ratio[:, :, i].ravel(), seen) for i in range(ratio.shape[2])])
