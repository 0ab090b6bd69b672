"""Streaming mean, moments and covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.reducing import check_width, pieces

__all__ = ["Covariance", "CovarianceResult", "Mean", "Moments", "MomentsResult"]


class Mean:
    """Mean of each feature; `result()` is a float64 tensor (features,)."""

    def __init__(self) -> None:
        self.count: Tensor | None = None
        self.total = torch.zeros(0)

    def update(self, values: Tensor) -> None:
        """Take in `values` (n, features)."""
        for piece in pieces(values):
            x = piece.double()
            finite = x.isfinite()
            count, total = finite.sum(0), torch.where(finite, x, 0.0).sum(0)
            check_width(None if self.count is None else len(self.count), piece)
            if self.count is None:
                self.count, self.total = count, total
            else:
                self.count, self.total = self.count + count, self.total + total

    def merge(self, other: Mean) -> Self:
        """Take in what another reducer has seen."""
        if self.count is None:
            self.count, self.total = other.count, other.total
        elif other.count is not None:
            self.count, self.total = self.count + other.count, self.total + other.total
        return self

    def result(self) -> Tensor:
        """Mean of each feature (features,); NaN where no finite value was seen."""
        if self.count is None:
            raise InputError("no values were recorded")
        return self.total / self.count


@dataclass(frozen=True)
class MomentsResult:
    """Moments of each feature over n values (population moments: divided by n).

    Attributes:
        count: finite values seen; nan, inf: values of that kind, kept out of the rest.
        mean, var, skewness, kurtosis: kurtosis is the excess over 3; NaN where the variance is zero.
        min, max: extremes of the finite values.
        pooled: the same over all features together (scalars); None when this is the pooled one.
    """

    count: Tensor
    nan: Tensor
    inf: Tensor
    mean: Tensor
    var: Tensor
    skewness: Tensor
    kurtosis: Tensor
    min: Tensor
    max: Tensor
    pooled: MomentsResult | None = None


@dataclass
class _Sums:
    """Count, mean and the sums of the second to fourth power of the deviations from it."""

    n: Tensor
    mean: Tensor
    m2: Tensor
    m3: Tensor
    m4: Tensor

    @classmethod
    def of(cls, x: Tensor, finite: Tensor) -> _Sums:
        n = finite.sum(0).double()
        mean = torch.where(finite, x, 0.0).sum(0) / n.clamp(min=1)
        d = torch.where(finite, x - mean, 0.0)
        d2 = d * d
        return cls(n, mean, d2.sum(0), (d2 * d).sum(0), (d2 * d2).sum(0))

    def shifted(self, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three sums of powers about another `mean`."""
        d = self.mean - mean
        m2 = self.m2 + self.n * d**2
        m3 = self.m3 + 3 * d * self.m2 + self.n * d**3
        m4 = self.m4 + 4 * d * self.m3 + 6 * d**2 * self.m2 + self.n * d**4
        return m2, m3, m4

    def plus(self, other: _Sums) -> _Sums:
        n = self.n + other.n
        # Written as an update of the older mean: a weighted sum of two means loses digits when they are
        # close.
        mean = self.mean + (other.mean - self.mean) * other.n / n.clamp(min=1)
        a, b = self.shifted(mean), other.shifted(mean)
        return _Sums(n, mean, a[0] + b[0], a[1] + b[1], a[2] + b[2])

    def pooled(self) -> _Sums:
        n = self.n.sum()
        mean = (self.mean * self.n).sum() / n.clamp(min=1)
        m2, m3, m4 = self.shifted(mean)
        return _Sums(n, mean, m2.sum(), m3.sum(), m4.sum())


def _shape(sums: _Sums) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance, skewness and excess kurtosis from the sums of powers; NaN where undefined."""
    mean = torch.where(sums.n > 0, sums.mean, torch.nan)
    var = sums.m2 / sums.n
    return mean, var, sums.m3 / sums.n / var**1.5, sums.m4 / sums.n / var**2 - 3


class Moments:
    """Mean, variance, skewness and excess kurtosis of each feature and of all together.

    Batches are merged with the pairwise update of the central sums, which does not cancel for values far from
    zero (Chan, Golub and LeVeque 1983; Pebay 2008 for orders three and four). Memory: nine numbers
    per feature.
    """

    def __init__(self) -> None:
        self._sums: _Sums | None = None
        self._nan = self._inf = self._min = self._max = torch.zeros(0)

    def update(self, values: Tensor) -> None:
        """Take in `values` (n, features)."""
        for piece in pieces(values):
            if len(piece) == 0:
                continue
            x = piece.double()
            finite = x.isfinite()
            part = Moments()
            part._sums = _Sums.of(x, finite)
            part._nan = x.isnan().sum(0)
            part._inf = x.isinf().sum(0)
            part._min = torch.where(finite, x, torch.inf).amin(0)
            part._max = torch.where(finite, x, -torch.inf).amax(0)
            check_width(None if self._sums is None else len(self._sums.n), piece)
            self.merge(part)

    def merge(self, other: Moments) -> Self:
        """Take in what another reducer has seen."""
        if other._sums is None:
            return self
        if self._sums is None:
            self._sums = other._sums
            self._nan, self._inf, self._min, self._max = other._nan, other._inf, other._min, other._max
            return self
        self._sums = self._sums.plus(other._sums)
        self._nan, self._inf = self._nan + other._nan, self._inf + other._inf
        self._min, self._max = torch.minimum(self._min, other._min), torch.maximum(self._max, other._max)
        return self

    def result(self) -> MomentsResult:
        """The moments of each feature; `.pooled` holds those of all features together."""
        if self._sums is None:
            raise InputError("no values were recorded")
        s = self._sums
        p = s.pooled()
        empty = s.n == 0
        low, high = (torch.where(empty, torch.nan, v) for v in (self._min, self._max))
        pooled = MomentsResult(
            p.n.long(), self._nan.sum(), self._inf.sum(), *_shape(p), self._min.amin(), self._max.amax()
        )
        return MomentsResult(s.n.long(), self._nan, self._inf, *_shape(s), low, high, pooled)


@dataclass(frozen=True)
class CovarianceResult:
    """Mean (features,), population covariance (features, features) of `count` rows; `dropped` not finite."""

    count: int
    dropped: int
    mean: Tensor
    cov: Tensor


class Covariance:
    """Mean and covariance of the features. Memory: features x features float64.

    A row with any NaN or infinite value is left out whole, so that the matrix stays positive semi-definite.
    """

    def __init__(self) -> None:
        self.count = self.dropped = 0
        self._mean: Tensor | None = None
        self._scatter = torch.zeros(0)

    def update(self, values: Tensor) -> None:
        """Take in `values` (n, features)."""
        for piece in pieces(values):
            keep = piece.isfinite().all(1)
            self.dropped += int((~keep).sum())
            x = piece[keep].double()
            if len(x) == 0:
                continue
            mean = x.mean(0)
            d = x - mean
            self._add(len(x), mean, d.T @ d)

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        if self._mean is None:
            self.count, self._mean, self._scatter = n, mean, scatter
            return
        check_width(len(self._mean), mean[None])
        total = self.count + n
        d = mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(d, d) * (self.count * n / total)
        self._mean = self._mean + d * (n / total)
        self.count = total

    def merge(self, other: Covariance) -> Self:
        """Take in what another reducer has seen."""
        self.dropped += other.dropped
        if other._mean is not None:
            self._add(other.count, other._mean, other._scatter)
        return self

    def result(self) -> CovarianceResult:
        """Mean and population covariance."""
        if self._mean is None:
            raise InputError(f"no finite row was recorded ({self.dropped} rows held NaN or infinite values)")
        return CovarianceResult(self.count, self.dropped, self._mean, self._scatter / self.count)
