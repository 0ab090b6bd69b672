"""Did training change what a model stores or how it processes queries: similarity on statements against questions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.compare.layerwise import PAPER, centred, check_pair, pair_provenance, similarity
from actinium.compare.pooled_states import pooled_states, same_tokens
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.core.statistics import benjamini_hochberg, bootstrap_interval, sign_test, signed_rank

__all__ = ["fact_query_gap", "same_length"]

ROUNDING = 1e-12
TESTS = {"wilcoxon": signed_rank, "sign": sign_test}


def fact_query_gap(
    a: Model,
    b: Model,
    facts: Sequence[str],
    queries: Sequence[str],
    *,
    pool: str = "last",
    measure: str = "cosine",
    suffix: str | None = None,
    unrelated: Sequence[str] | None = None,
    test: str = "wilcoxon",
    n: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
) -> Result:
    """Similarity of two models on statements of facts, on questions for them, and the difference.

    Statement i and question i are about the same fact. The last token of a statement is its content and that of a
    question a template: a gap is one of facts and queries only if it is there with a `suffix` as well, and with
    statements and questions of one length (`same_length`).

    Args:
        a, b: language models of equal depth and width, usually before and after training.
        facts: statements.
        queries: questions.
        pool: "last" or "mean", see `layerwise_similarity`.
        measure: "cosine" or "procrustes".
        suffix: put behind every text, so that all end in the same tokens; "mean" leaves these out.
        unrelated: other texts, as a control.
        test: of the gap at each layer: "wilcoxon" (signed ranks) or "sign".
        n: resamples of the pairs for the intervals (95 %).
        seed: of the resampling.
        batch_size: texts in a pass.

    Returns:
        by layer (0 is the output of the embedding, the last one is before the final norm): `facts` and `queries`, the
        mean similarity; `gap`, their difference, with `gap_low`, `gap_high`, `p_value` and `q_value` (false discovery
        rate over layers); `area`, the mean gap over layers, with its interval; by layer and item `facts_each` and
        `queries_each`. All of them again with `_centred`, each model's mean over all texts subtracted. `cka_facts`,
        `cka_queries`: linear CKA over the texts of a set. `unrelated` (and `_centred`) where given. NaN where centring
        leaves nothing, as at the embedding of a common suffix.

    Raises:
        InputError: lists of different length, fewer than two pairs, a suffix that does not end all texts in the same
            token, CKA (it has no value for a pair), and what `layerwise_similarity` refuses.
        UnknownNameError: no such pool, measure or test.

    Source: Zhang, Kaniselvan, Mireshghallah, 2025, the analysis of representations of facts and queries.
    """
    check_pair(a, b, measure)
    if measure == "cka":
        raise InputError("CKA has no value for a pair of texts; fact_query_gap gives it beside cosine or procrustes")
    if test not in TESTS:
        raise UnknownNameError(unknown("test", test, TESTS))
    if a.n_layers != b.n_layers:
        raise InputError(f"{a.name} has {a.n_layers} blocks, {b.name} has {b.n_layers}; the gap needs equal depth")
    sets = _texts(facts, queries, unrelated, suffix)
    tokens = {name: same_tokens(a, b, texts) for name, texts in sets.items()}
    extra = 0 if suffix is None else _common_ending(tokens, suffix)
    states = [
        {name: pooled_states(model, t, pool, batch_size, extra) for name, t in tokens.items()} for model in (a, b)
    ]
    each = _similarities(states, measure)
    data = xr.Dataset(coords={"layer": np.arange(a.n_layers + 1), "item": np.arange(len(facts))})
    for kind in ("", "_centred"):
        _fill(data, {name: values for name, values in each.items() if name.endswith("_centred") == bool(kind)}, kind)
        _compare(data, kind, test, n, seed)
    for name in ("facts", "queries"):
        data[f"cka_{name}"] = ("layer", similarity(states[0][name], states[1][name], "cka"))
    shown = ["facts", "queries", "facts_centred", "queries_centred"]
    data.attrs["plot"] = {"variables": shown, "ylabel": f"{measure}, {pool} token" if pool == "last" else measure}
    settings = {"pool": pool, "measure": measure, "suffix": suffix, "test": test, "n": n}
    record = pair_provenance(a, b, {name: t.ids for name, t in tokens.items()}, seed, **settings)
    return Result(data, "fact_query_gap", PAPER, record)


def same_length(model: Model, facts: Sequence[str], queries: Sequence[str], tolerance: int = 0) -> list[int]:
    """Which pairs of statement and question have as many tokens.

    Args:
        model: its tokenizer counts.
        facts, queries: statements and questions, paired.
        tolerance: largest difference.

    Returns:
        indices of the pairs.

    Raises:
        InputError: lists of different length, or no such pair.
    """
    if len(facts) != len(queries):
        raise InputError(f"{len(facts)} facts and {len(queries)} queries are not paired")
    counts = [same_tokens(model, model, list(texts)).mask.sum(1) for texts in (facts, queries)]
    away = (counts[0] - counts[1]).abs()
    found: list[int] = (away <= tolerance).nonzero().flatten().tolist()
    if not found:
        raise InputError(f"no pair has as many tokens; the nearest differ by {int(away.min())}, pass tolerance=")
    return found


def _texts(
    facts: Sequence[str], queries: Sequence[str], unrelated: Sequence[str] | None, suffix: str | None
) -> dict[str, list[str]]:
    """The sets of texts, with the suffix behind each."""
    if isinstance(facts, str) or isinstance(queries, str) or len(facts) != len(queries):
        shown = " and ".join("one text" if isinstance(x, str) else f"{len(x)} texts" for x in (facts, queries))
        raise InputError(f"facts and queries are lists of equal length, paired by place; got {shown}")
    if len(facts) < 2:
        raise InputError("the gap needs two pairs or more")
    sets = {"facts": facts, "queries": queries} | ({} if unrelated is None else {"unrelated": unrelated})
    return {name: [text + (suffix or "") for text in texts] for name, texts in sets.items()}


def _common_ending(tokens: dict[str, Tokens], suffix: str) -> int:
    """Number of tokens at the end that all texts share."""
    rows = [row[mask] for t in tokens.values() for row, mask in zip(t.ids, t.mask, strict=True)]
    shortest = min(map(len, rows))
    ends = torch.stack([row[len(row) - shortest :] for row in rows])
    differ = (ends != ends[0]).any(0).nonzero()
    common = shortest - 1 - int(differ[-1]) if len(differ) else shortest
    if not common:
        raise InputError(f"the suffix {suffix!r} does not end all texts in the same token; try one that starts anew")
    return common


def _similarities(states: list[dict[str, Tensor]], measure: str) -> dict[str, np.ndarray]:
    """(layer, item) similarities of each set, raw and centred over all sets together; one map for all of them."""
    sizes = {name: s.shape[1] for name, s in states[0].items()}
    x, y = (torch.cat(list(one.values()), 1) for one in states)
    raw = similarity(x, y, measure)
    away = similarity(centred(x), centred(y), measure, (x, y))
    ends = np.cumsum(list(sizes.values()))[:-1]
    parts = dict(zip(sizes, np.split(raw, ends, 1), strict=True))
    return parts | {f"{n}_centred": part for n, part in zip(sizes, np.split(away, ends, 1), strict=True)}


def _fill(data: xr.Dataset, each: dict[str, np.ndarray], kind: str) -> None:
    for name, values in each.items():
        data[name] = ("layer", values.mean(1))
        if not name.startswith("unrelated"):
            data[f"{name.removesuffix('_centred')}_each{kind}"] = (("layer", "item"), values)


def _compare(data: xr.Dataset, kind: str, test: str, n: int, seed: int) -> None:
    """The gap of one kind with intervals, tests and area, written into the result."""
    pairs = (data[f"facts_each{kind}"] - data[f"queries_each{kind}"]).transpose("item", "layer").values
    # Equal states have cosines that differ from 1 by rounding, which a test of signs or ranks would take for a gap.
    pairs = np.where(abs(pairs) < ROUNDING, 0.0, pairs)
    low, high = bootstrap_interval(pairs, n=n, seed=seed)
    defined = np.isfinite(pairs).all(0)
    p = np.full(len(defined), np.nan)
    p[defined] = TESTS[test](pairs[:, defined])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no layer may be left
        area = np.nanmean(pairs, 1)
    ends = bootstrap_interval(area, n=n, seed=seed)
    columns = {"gap": pairs.mean(0), "gap_low": low, "gap_high": high, "p_value": p, "q_value": benjamini_hochberg(p)}
    for name, values in columns.items():
        data[name + kind] = ("layer", values)
    for name, value in (("area", area.mean()), ("area_low", ends[0]), ("area_high", ends[1])):
        data[name + kind] = ((), value)
