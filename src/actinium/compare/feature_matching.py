"""Which feature of one model is which of another: the one whose activations on the same tokens correlate most."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_rows

__all__ = ["JUNK", "FeatureCorrelation", "filter_matches", "match_features_by_correlation", "top_tokens"]

PAPER = "sae-universality"
DIRECTIONS = ("B->A", "A->B")
JUNK: frozenset[str] = frozenset(
    [
        "",
        " ",
        "\n",
        "\n\n",
        "\t",
        *".,;:!?'\"()[]{}<>-_/\\|*&%$#@+=~`^",
        "<|endoftext|>",
        "<pad>",
        "<bos>",
        "<eos>",
        "<unk>",
        "<s>",
        "</s>",
    ]
)
"""Tokens without a concept of their own: space, punctuation, and those that begin, end or fill texts."""


class FeatureCorrelation:
    """Correlations of every feature of one model with every feature of another, batch by batch.

    Memory: two numbers for every pair of features, whatever the number of rows.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._active: list[Tensor] = []
        self._cross = self._both = torch.zeros(0)

    def update(self, a: Any, b: Any) -> None:
        """Take in the activations (rows, m_A) and (rows, m_B) of the same tokens.

        Raises:
            InputError: different numbers of rows, other numbers of features than before, or values that are not finite.
        """
        given = {"features of A": a, "features of B": b}
        xs = [as_rows(rows, what, flat=False, dtype=torch.float64) for what, rows in given.items()]
        if len(xs[0]) != len(xs[1]):
            raise InputError(f"the same tokens are needed: A has {len(xs[0])} rows, B {len(xs[1])}")
        if not self.count:
            self._mean = [x.new_zeros(x.shape[1]) for x in xs]
            self._squares = [x.new_zeros(x.shape[1]) for x in xs]
            self._active = [x.new_zeros(x.shape[1]) for x in xs]
            self._cross = self._both = xs[0].new_zeros(xs[0].shape[1], xs[1].shape[1])
        widths = [len(m) for m in self._mean]
        if [x.shape[1] for x in xs] != widths:
            raise InputError(f"expected {widths} features as before, got {[x.shape[1] for x in xs]}")
        rows = len(xs[0])
        total = self.count + rows
        # Deviations from the means are summed, which does not cancel where features have a large mean.
        means = [x.mean(0) for x in xs]
        shifts = [new - old for new, old in zip(means, self._mean, strict=True)]
        centred = [x - m for x, m in zip(xs, means, strict=True)]
        weight = self.count * rows / total
        self._cross = self._cross + centred[0].T @ centred[1] + torch.outer(*shifts) * weight
        self._squares = [
            s + c.square().sum(0) + d.square() * weight for s, c, d in zip(self._squares, centred, shifts, strict=True)
        ]
        self._mean = [m + d * (rows / total) for m, d in zip(self._mean, shifts, strict=True)]
        on = [(x != 0).double() for x in xs]
        self._active = [n + o.sum(0) for n, o in zip(self._active, on, strict=True)]
        self._both = self._both + on[0].T @ on[1]
        self.count = total

    def result(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Pearson correlations (m_A, m_B), rows in which both are not zero (m_A, m_B), and rows in which each is.

        Correlations with a feature that does not vary are NaN.

        Raises:
            InputError: fewer than two rows.
        """
        if self.count < 2:
            raise InputError(f"correlations need two rows or more, got {self.count}")
        spread = [torch.where(s > 1e-20 * self.count, s, torch.nan).sqrt() for s in self._squares]
        return self._cross / torch.outer(*spread), self._both, self._active


def match_features_by_correlation(
    a: Any,
    b: Any = None,
    *,
    direction: str = "B->A",
    min_coactivations: int = 10,
    min_correlation: float = 0.1,
    one_to_one: bool = False,
    mutual: bool = False,
) -> Result:
    """For each feature of one model the feature of the other that correlates most with it on the same tokens.

    Something is always found: compare what is then computed with a null (`feature_space_similarity`), and drop pairs
    that tell no concept (`filter_matches`).

    Args:
        a: activations (n, m_A) of A's features; or batches of pairs (rows, m_A) and (rows, m_B), read once.
        b: activations (n, m_B) of B's features on the same tokens; nothing if `a` gives batches.
        direction: "B->A" gives every feature of B a partner in A, of which several may have the same one; "A->B" the
            other way. The features of the smaller dictionary are those that should be given partners.
        min_coactivations: rows in which both features of a pair are not zero; rarer ones correlate by accident.
        min_correlation: pairs at or below are dropped.
        one_to_one: of several pairs with the same partner keep the one that correlates most.
        mutual: keep only pairs in which each is the other's best.

    Returns:
        Result over pair, in the order of the matched features: `correlation`, `coactivations`, `mutual`; coordinates
        `a` and `b`, the numbers of the features. `constant_a` and `constant_b` count features that did not vary and
        were left out, `unmatched` the others without a partner.

    Raises:
        InputError: different numbers of rows, values that are not finite, or no pair is left.
        UnknownNameError: there is no such direction.

    Source: Lan et al., 2024 (their correlations are smaller by the factor (n - 1) / n).
    """
    if direction not in DIRECTIONS:
        raise UnknownNameError(unknown("direction", direction, DIRECTIONS))
    if min_coactivations < 0 or not -1 <= min_correlation < 1:
        raise InputError("expected min_coactivations >= 0 and min_correlation from -1 to below 1")
    sums = FeatureCorrelation()
    for one, other in _batches(a, b):
        sums.update(one, other)
    correlations, both, _ = sums.result()
    allowed = correlations.isfinite() & (both >= min_coactivations)
    scores = torch.where(allowed, correlations, -torch.inf)
    constant = [int(correlations.isnan().all(dim).sum()) for dim in (1, 0)]
    # Rows are the features that are given partners.
    turned = scores.T if direction == "B->A" else scores
    best, partner = turned.max(1)
    source = torch.arange(len(turned), device=turned.device)
    back = turned.argmax(0)[partner] == source
    keep = best > min_correlation
    varying = len(turned) - constant[1 if direction == "B->A" else 0]
    unmatched = varying - int(keep.sum())
    if mutual:
        keep &= back
    if one_to_one:
        keep &= _strongest(best.where(keep, best.new_tensor(-torch.inf)), partner)
    if not bool(keep.any()):
        raise InputError(
            f"no pair of features correlates above {min_correlation} with {min_coactivations} common activations"
        )
    matched, partner = source[keep], partner[keep]
    pair = (partner, matched) if direction == "B->A" else (matched, partner)
    data = {"correlation": best[keep], "coactivations": both[pair].long(), "mutual": back[keep]}
    dataset = xr.Dataset(
        {name: (("pair",), value.cpu().numpy()) for name, value in data.items()}
        | {"constant_a": ((), constant[0]), "constant_b": ((), constant[1]), "unmatched": ((), unmatched)},
        {name: ("pair", value.cpu().numpy()) for name, value in zip("ab", pair, strict=True)},
        {"plot": {"kind": "bar", "variables": ["correlation"]}},
    )
    settings = {"direction": direction, "min_coactivations": min_coactivations, "min_correlation": min_correlation}
    about = provenance(None, correlations, rows=sums.count, one_to_one=one_to_one, mutual=mutual, **settings)
    return Result(dataset, "match_features_by_correlation", PAPER, about)


def _batches(a: Any, b: Any) -> Iterable[tuple[Any, Any]]:
    if b is not None:
        yield a, b
        return
    if isinstance(a, Tensor | np.ndarray):
        raise InputError("give activations of both models, or batches of pairs of them")
    for batch in a:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InputError("a batch is a pair: activations (rows, m_A) and (rows, m_B) of the same tokens")
        yield batch[0], batch[1]


def _strongest(scores: Tensor, partner: Tensor) -> Tensor:
    """Of the entries with the same partner, whether each has the highest score (the first of equal ones)."""
    order = scores.argsort(descending=True, stable=True)
    seen: set[int] = set()
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for i in order.tolist():
        if int(partner[i]) not in seen:
            seen.add(int(partner[i]))
            keep[i] = True
    return keep


def top_tokens(activations: Any, tokens: Sequence[str], n: int = 5) -> list[list[str]]:
    """The tokens at which each feature is most active, different ones, white space around them taken off.

    Args:
        activations: (rows, m) of one model's features.
        tokens: (rows,) the tokens as text.
        n: how many of each; a feature that is active on fewer has fewer, and a dead one none.

    Raises:
        InputError: another number of tokens, or n is below 1.
    """
    values = as_rows(activations, flat=False, dtype=torch.float64)
    if len(tokens) != len(values) or n < 1:
        raise InputError(f"expected a token for each of {len(values)} rows and n >= 1, got {len(tokens)} and {n}")
    words = [token.strip(" ") for token in tokens]
    out = []
    for column in values.T:
        active = column.argsort(descending=True, stable=True)[: int((column > 0).sum())]
        found: dict[str, None] = {}
        for i in active.tolist():
            found.setdefault(words[i])
            if len(found) == n:
                break
        out.append(list(found))
    return out


def filter_matches(
    matches: Result,
    tokens_a: Sequence[Sequence[str]],
    tokens_b: Sequence[Sequence[str]],
    *,
    junk: Collection[str] = JUNK,
    shared: bool = True,
    keywords: Collection[str] | None = None,
) -> Result:
    """Drop pairs of features that tell no concept, or keep those of one concept.

    Args:
        matches: of `match_features_by_correlation`.
        tokens_a, tokens_b: the top tokens of every feature of A and of B (see `top_tokens`).
        junk: a pair is dropped if one of these is among the top tokens of either.
        shared: drop pairs whose top tokens have none in common.
        keywords: keep only pairs that have one of these among the top tokens of both (a semantic subspace).

    Returns:
        the pairs that are left, none perhaps; `dropped_junk`, `dropped_unshared` and `dropped_other` count the others.

    Raises:
        InputError: a feature of the pairs has no list of tokens.

    Source: Lan et al., 2024 (five tokens; non-concept features, semantic subspaces).
    """
    a, b = (matches[name].values for name in "ab")
    if int(a.max(initial=-1)) >= len(tokens_a) or int(b.max(initial=-1)) >= len(tokens_b):
        raise InputError(f"top tokens of every feature are needed, got {len(tokens_a)} of A and {len(tokens_b)} of B")
    pairs = [(set(tokens_a[i]), set(tokens_b[j])) for i, j in zip(a, b, strict=True)]
    bad, wanted = set(junk), None if keywords is None else set(keywords)
    is_junk = np.array([bool((one | other) & bad) for one, other in pairs], dtype=bool)
    apart = np.array([shared and not one & other for one, other in pairs], dtype=bool) & ~is_junk
    off = [wanted is not None and not (one & wanted and other & wanted) for one, other in pairs]
    away = np.array(off, dtype=bool) & ~is_junk & ~apart
    data = matches.data.isel(pair=~(is_junk | apart | away))
    for name, gone in (("junk", is_junk), ("unshared", apart), ("other", away)):
        data[f"dropped_{name}"] = ((), int(gone.sum()))
    settings = {"junk": sorted(bad), "shared": shared, "keywords": None if wanted is None else sorted(wanted)}
    return Result(data, "filter_matches", PAPER, provenance(None, matches.provenance, **settings))
