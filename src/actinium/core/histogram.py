"""Streaming histograms and quantiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.reducing import check_width, pieces

__all__ = ["Histogram", "HistogramResult", "Quantile", "QuantileResult"]


@dataclass(frozen=True)
class HistogramResult:
    """Counts of each feature (features, bins), or of all together (bins,), between `edges` (bins + 1,).

    Attributes:
        below, above: finite values outside a fixed range; nan, inf: values of that kind.
    """

    edges: Tensor
    counts: Tensor
    below: Tensor
    above: Tensor
    nan: int
    inf: int


class Histogram:
    """Counts of the values in equal bins.

    Without `range` the bin width is a power of two and the edges are its multiples; it starts as small as the
    first batch allows and doubles, joining neighbours, whenever a value would not fit. So one pass is enough,
    the counts are exact, and histograms of parts can be merged. At least half of the bins span the data.

    Args:
        bins: how many bins.
        range: (low, high) for a fixed range, both included; values outside are counted in `below` and
            `above`.
        per_feature: one histogram per feature instead of one over all.
    """

    def __init__(self, bins: int = 256, range: tuple[float, float] | None = None, per_feature: bool = False) -> None:
        if bins < 2:
            raise InputError(f"Histogram needs at least 2 bins, got {bins}")
        if range is not None and not (math.isfinite(range[0]) and range[0] < range[1] < math.inf):
            raise InputError(f"Histogram(range=...) needs finite low < high, got {range}")
        self.bins, self.range, self.per_feature = bins, range, per_feature
        self.nan = self.inf = 0
        self._counts: Tensor | None = None  # (features or 1, bins)
        self._below = self._above = torch.zeros(0)
        self._exponent: int | None = None  # width 2**exponent; the first bin is number _start of that grid
        self._start = 0

    def update(self, values: Tensor) -> None:
        """Take in `values` (n, features)."""
        for piece in pieces(values):
            x = piece.double()
            finite = x.isfinite()
            self.nan += int(x.isnan().sum())
            self.inf += int(x.isinf().sum())
            if not self.per_feature:
                x, finite = x.reshape(-1, 1), finite.reshape(-1, 1)
            if self._counts is None:
                self._counts = torch.zeros(x.shape[1], self.bins, dtype=torch.int64, device=x.device)
                self._below = self._above = self._counts.sum(1)
            check_width(len(self._counts), x)
            if not finite.any():
                continue
            index = self._index(x, finite)
            inside = finite & (index >= 0) & (index < self.bins)
            self._below = self._below + (finite & (index < 0)).sum(0)
            self._above = self._above + (finite & (index >= self.bins)).sum(0)
            offset = torch.arange(x.shape[1], device=x.device) * self.bins
            flat = (index + offset)[inside]
            self._counts = self._counts + flat.bincount(minlength=self._counts.numel()).view_as(self._counts)

    def _index(self, x: Tensor, finite: Tensor) -> Tensor:
        """Bin of each value; out of [0, bins) only for a fixed range."""
        if self.range is not None:
            low, high = self.range
            index = ((x - low) / (high - low) * self.bins).floor().nan_to_num().clamp(-1, self.bins).long()
            return torch.where(x == high, self.bins - 1, index)
        low, high = float(x[finite].min()), float(x[finite].max())
        if self._exponent is None:
            self._exponent = _finest(low, high, self.bins)
            self._start = math.floor(math.ldexp(low, -self._exponent))
        self._fit(low, high)
        scaled = torch.ldexp(torch.where(finite, x, low), torch.tensor(-self._exponent))
        return scaled.floor().long() - self._start

    def _fit(self, low: float, high: float) -> None:
        """Double the bin width until [low, high] and what was seen fit, and move the first bin there."""
        assert self._counts is not None and self._exponent is not None
        while True:
            used = self._counts.sum(0).nonzero().flatten()
            first, last = (math.floor(math.ldexp(v, -self._exponent)) for v in (low, high))
            if len(used):
                first, last = min(first, self._start + int(used[0])), max(last, self._start + int(used[-1]))
            if last - first < self.bins:
                break
            self._double()
        if first < self._start or last >= self._start + self.bins:
            moved = torch.zeros_like(self._counts)
            moved[:, used + self._start - first] = self._counts[:, used]
            self._counts, self._start = moved, first

    def _double(self) -> None:
        """Join neighbouring bins."""
        assert self._counts is not None and self._exponent is not None
        parents = (torch.arange(self.bins, device=self._counts.device) + self._start) >> 1
        start = int(parents[0])
        self._counts = torch.zeros_like(self._counts).index_add_(1, parents - start, self._counts)
        self._start, self._exponent = start, self._exponent + 1

    def merge(self, other: Histogram) -> Self:
        """Take in what another reducer with the same settings has seen."""
        if (other.bins, other.range, other.per_feature) != (self.bins, self.range, self.per_feature):
            raise InputError("only Histograms with the same settings can be merged")
        self.nan, self.inf = self.nan + other.nan, self.inf + other.inf
        if other._counts is None:
            return self
        if self._counts is None or (self.range is None and self._exponent is None):
            self._counts, self._below, self._above = other._counts.clone(), other._below, other._above
            self._exponent, self._start = other._exponent, other._start
            return self
        counts = other._counts
        if self.range is None:
            if other._exponent is None:
                return self
            assert self._exponent is not None
            while self._exponent < other._exponent:
                self._double()
            self._fit(*other._span())
            grid = (torch.arange(self.bins, device=counts.device) + other._start) >> (self._exponent - other._exponent)
            kept = counts.sum(0) > 0
            counts = torch.zeros_like(counts).index_add_(1, grid[kept] - self._start, counts[:, kept])
        self._counts = self._counts + counts
        self._below, self._above = self._below + other._below, self._above + other._above
        return self

    def _span(self) -> tuple[float, float]:
        """Lower edges of the first and last bins in use."""
        assert self._counts is not None and self._exponent is not None
        used = self._counts.sum(0).nonzero().flatten()
        low, high = self._start + int(used[0]), self._start + int(used[-1])
        return math.ldexp(low, self._exponent), math.ldexp(high, self._exponent)

    def result(self) -> HistogramResult:
        """Edges and counts."""
        if self._counts is None:
            raise InputError("no values were recorded")
        if self.range is not None:
            edges = torch.linspace(*self.range, self.bins + 1, dtype=torch.float64)
        elif self._exponent is not None:
            grid = torch.arange(self._start, self._start + self.bins + 1, dtype=torch.float64)
            edges = torch.ldexp(grid, torch.tensor(self._exponent))
        else:
            raise InputError(f"no finite values were recorded ({self.nan} NaN, {self.inf} infinite)")
        counts, below, above = self._counts, self._below, self._above
        if not self.per_feature:
            counts, below, above = counts[0], below[0], above[0]
        return HistogramResult(edges, counts, below, above, self.nan, self.inf)


def _finest(low: float, high: float, bins: int) -> int:
    """The smallest exponent for which [low, high] lies within `bins` bins of width 2**exponent."""
    span = max(high - low, max(abs(low), abs(high)) * 2.0**-20, 2.0**-900)
    exponent = math.floor(math.log2(span / bins)) - 1
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= bins:
        exponent += 1
    return exponent


@dataclass(frozen=True)
class QuantileResult:
    """Quantiles `values` at the probabilities `q`, linear between the two nearest order statistics.

    Attributes:
        exact: True after a second pass; else each value is within a relative 2**-7 of the order statistic
            (the order statistic's cell is known exactly, its place within the cell is not).
        count, nan, inf: finite values taken in, and values kept out.
    """

    q: tuple[float, ...]
    values: Tensor
    exact: bool
    count: int
    nan: int
    inf: int


def _float_keys(values: Tensor) -> Tensor:
    """Integers in [0, 2**32) in the same order as the finite float32 `values`."""
    bits = (values + 0.0).view(torch.int32).long()  # + 0.0 turns -0.0 into 0.0
    return torch.where(bits >= 0, bits + 2**31, -bits - 1)


def _float_of(keys: Tensor) -> Tensor:
    """Inverse of the order-preserving map."""
    bits = torch.where(keys >= 2**31, keys - 2**31, -keys - 1)
    return bits.to(torch.int32).view(torch.float32).double()


class Quantile:
    """Quantiles over all values together, in float32.

    One pass counts the upper 16 bits of each value in an order-preserving coding: 65 536 cells that cover
    every float32 with a relative width of 2**-7, whatever the range. `refine()` gives a reducer for a second
    pass over the same data that counts the lower 16 bits within the cells in question, after which the
    quantiles are exact.

    Args:
        q: one or more probabilities in [0, 1].
    """

    def __init__(self, q: float | Sequence[float] = 0.5) -> None:
        self.q = (q,) if isinstance(q, int | float) else tuple(q)
        if not self.q or not all(0 <= p <= 1 for p in self.q):
            raise InputError(f"Quantile takes probabilities in [0, 1], got {self.q}")
        self.nan = self.inf = 0
        self._cells = torch.zeros(2**16, dtype=torch.int64)
        self._fine: dict[int, Tensor] | None = None

    def update(self, values: Tensor) -> None:
        """Take in `values` (n, features)."""
        for piece in pieces(values):
            x = piece.float().flatten()
            finite = x.isfinite()
            keys = _float_keys(x[finite])
            cells = keys >> 16
            if self._fine is not None:
                for cell, counts in self._fine.items():
                    counts += (keys[cells == cell] & 0xFFFF).bincount(minlength=2**16).cpu()
                continue
            self.nan += int(x.isnan().sum())
            self.inf += int(x.isinf().sum())
            self._cells += cells.bincount(minlength=2**16).cpu()

    def merge(self, other: Quantile) -> Self:
        """Take in what another first-pass reducer has seen."""
        if self._fine is not None or other._fine is not None or self.q != other.q:
            raise InputError("only first-pass Quantile reducers of the same probabilities can be merged")
        self._cells += other._cells
        self.nan, self.inf = self.nan + other.nan, self.inf + other.inf
        return self

    def refine(self) -> Quantile:
        """A reducer for a second pass over the same data, whose result is exact."""
        second = Quantile(self.q)
        second._cells, second.nan, second.inf = self._cells, self.nan, self.inf
        second._fine = {self._cell(k)[0]: torch.zeros(2**16, dtype=torch.int64) for k in self._ranks()}
        return second

    def _ranks(self) -> list[int]:
        """Ranks of the order statistics that the quantiles lie between."""
        n = int(self._cells.sum())
        if n == 0:
            raise InputError(f"no finite values were recorded ({self.nan} NaN, {self.inf} infinite)")
        return [k for p in self.q for k in (math.floor(p * (n - 1)), math.ceil(p * (n - 1)))]

    def _cell(self, rank: int) -> tuple[int, int]:
        """Cell of an order statistic, and its rank within the cell."""
        upto = self._cells.cumsum(0)
        cell = int(torch.searchsorted(upto, rank, right=True))
        return cell, rank - (int(upto[cell - 1]) if cell else 0)

    def _order_statistic(self, rank: int) -> float:
        cell, within = self._cell(rank)
        if self._fine is None:
            low, high = _float_of(torch.tensor([cell << 16, (cell << 16) + 0xFFFF])).tolist()
            return float(low + (high - low) * (within + 0.5) / int(self._cells[cell]))
        lower = int(torch.searchsorted(self._fine[cell].cumsum(0), within, right=True))
        if lower == 2**16:
            raise InputError("the second pass saw fewer values than the first; refine() needs the same data again")
        return float(_float_of(torch.tensor([(cell << 16) + lower])))

    def result(self) -> QuantileResult:
        """The quantiles, exact after a second pass."""
        ranks, n = self._ranks(), int(self._cells.sum())
        values = [self._order_statistic(rank) for rank in ranks]
        weights = [p * (n - 1) - math.floor(p * (n - 1)) for p in self.q]
        mixed = [low + (high - low) * w for low, high, w in zip(values[::2], values[1::2], weights, strict=True)]
        quantiles = torch.tensor(mixed, dtype=torch.float64)
        return QuantileResult(self.q, quantiles, self._fine is not None, n, self.nan, self.inf)
