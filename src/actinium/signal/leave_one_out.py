"""How far one record changes what a Gaussian process says: memorisation, leakage and influence in closed form."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.estimator import Estimator
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_rows

__all__ = ["LOOD", "loo_leakage", "loo_memorization", "optimize_query"]

PAPER = "lood"
KINDS = ("kl", "mean")
# Smallest eigenvalue of a predictive covariance, as a share of the largest, below which jitter is added.
RANK = 1e-10
# Jitter beyond this share of the noise would change the divergence itself.
DISTORTS = 0.01

Kernel = Callable[[Tensor, Tensor], Tensor]


class LOOD(Estimator):
    """Leave-one-out distinguishability of a Gaussian process with a kernel and observation noise.

    With D the data without some records S and D' the data with them, the distance between the two predictive
    distributions of the latent function at queries Q is measured in two ways: by mean, 1/2 ||mu_D(Q) - mu_D'(Q)||^2,
    and by KL(f|D (Q) || f|D' (Q)). Several outputs are independent processes with one kernel: their distances add up.

        lood = LOOD(RBF(1.0), noise=0.01).fit(X, y)
        lood.memorization().argmax()            # the record that the process remembers most
        lood.optimize_query(7)                  # where an attacker would ask to learn of record 7

    An audit of a model and data of one's own.

    Args:
        kernel: (n1, d), (n2, d) -> (n1, n2), such as `RBF`, `NNGPKernel` or `analytic_ntk_relu`.
        noise: variance sigma^2 of the labels around the function, above 0.

    Attributes:
        X_: (n, d); y_: (n, c).
        precision_: (K + sigma^2 I)^-1 of all records, (n, n).

    Source: Ye, Borovykh, Hayou and Shokri, 2023, section 3; Rasmussen and Williams, 2006, section 5.4.2 (leaving one
    out without refitting).
    """

    fitted = "precision_"

    def __init__(self, kernel: Kernel, noise: float = 0.01) -> None:
        self.kernel = kernel
        self.noise = noise

    def fit(self, X: Any, y: Any) -> Self:
        """Condition on the records.

        Args:
            X: records (n, d).
            y: labels (n,) or (n, c) as numbers: -1 and 1, or one-hot less its mean.

        Raises:
            InputError: noise is not above 0, numbers of rows differ, values are not finite, or the kernel is not
                positive semi-definite.
        """
        if not (np.isfinite(self.noise) and self.noise > 0):
            raise InputError(f"noise is a variance above 0 (without it the divergence is infinite), got {self.noise}")
        x = as_rows(X, "X", flat=False, dtype=torch.float64).cpu()
        columns = _labels(y, len(x))
        self.X_, self.y_ = x, columns
        self.kernel_ = self._symmetric(x)
        self.precision_ = _inverse(self.kernel_, self.noise)
        return self

    def memorization(self) -> Tensor:
        """Mean distance (n,) at each record between the process without it and with it."""
        residual, variance = self._left_out()
        change = (variance / (variance + self.noise))[:, None] * residual
        return (change**2).sum(1) / 2

    def leakage(self) -> Tensor:
        """KL divergence (n,) at each record between the process without it and with it."""
        residual, variance = self._left_out()
        # The variance with the record is v s / (v + s): written so that nothing is divided by v, which may be 0.
        ratio = variance / self.noise
        spread = self.y_.shape[1] * (ratio - torch.log1p(ratio))
        return (spread + ratio / (variance + self.noise) * (residual**2).sum(1)) / 2

    def influence(self, i: int, Q: Any) -> Tensor:
        """Mean distance (q,) at each query (q, d) between the process without record i and with it.

        Raises:
            InputError: there is no such record, or queries of another width.
        """
        change = self._joined([i]).mean_change(self._queries(Q))
        return (change**2).sum(1) / 2

    def lood(self, Q: Any, S_x: Any, S_y: Any, kind: str = "kl") -> float:
        """Distance at all queries together between the process of the fitted records and that with S besides.

        Args:
            Q: queries (q, d).
            S_x, S_y: records (s, d) that are added, and their labels (s,) or (s, c).
            kind: "kl" or "mean".

        Raises:
            InputError: shapes do not fit, or more queries than the covariance between them has rank.

        Warns:
            ActiniumWarning: a record is in the data already, or jitter was needed, and how much.
        """
        _known(kind)
        self.check_fitted()
        x = as_rows(S_x, "S_x", self.X_.shape[1], flat=False, dtype=torch.float64).cpu()
        y = _labels(S_y, len(x))
        if y.shape[1] != self.y_.shape[1]:
            raise InputError(f"S_y has {y.shape[1]} outputs, the labels of the data have {self.y_.shape[1]}")
        if any(bool((record == self.X_).all(1).any()) for record in x):
            warnings.warn("a record of S is in the data already: it joins a second time", ActiniumWarning, stacklevel=2)
        joined = _Joined(self.kernel, self.noise, self.X_, self.y_, self.precision_, x, y)
        queries = self._queries(Q)
        if kind == "mean":
            return float((joined.mean_change(queries) ** 2).sum() / 2)
        value, jitter = joined.kl(queries[None])
        if jitter > 0:
            warnings.warn(
                f"the covariance of the queries is singular to rounding: jitter {jitter:.3g} was added beside noise"
                f" {self.noise:.3g}",
                ActiniumWarning,
                stacklevel=2,
            )
        return float(value[0])

    def optimize_query(
        self,
        index: int | Sequence[int],
        init: Any = None,
        *,
        kind: str = "kl",
        steps: int = 1500,
        lr: float = 0.02,
        starts: int = 3,
        seed: int = 0,
        progress: bool = False,
    ) -> Result:
        """Ascend to the queries at which the process differs most with and without some records (Adam).

        As many queries as records are sought together. The surface has several maxima, hence several starts.

        Args:
            index: one record or several, each once.
            init: starts (starts, q, d), or one (q, d); by default drawn around the mean of the data with its standard
                deviation in each feature.
            kind: "kl" or "mean", the distance that is made large.
            steps, lr: of Adam.
            starts: how many are drawn.
            seed: of the drawing.
            progress: show a progress bar.

        Returns:
            over start: `value`; over start and record: `distance` from each record to the query that is closest to it
            (in the pairing with the least sum) and `similarity`, their cosine; over start, record and feature: `query`;
            over step: `history`, the value on the way from the start that ends highest; `best`, that start; `jitter`.

        Raises:
            InputError: no such record, init of another shape, or a kernel through which no gradient comes.

        Source: Ye et al., 2023, section 4 (the maximiser of the KL divergence for one record is the record).
        """
        _known(kind)
        records = np.ravel(index).tolist()
        joined = self._joined(records)
        q = self._starts(init, len(records), starts, seed).requires_grad_()
        if steps < 1 or lr <= 0:
            raise InputError(f"steps is 1 or more and lr above 0, got {steps} and {lr}")
        _differentiable(self.kernel, q)
        adam, history, jitter = torch.optim.Adam([q], lr=lr), [], 0.0
        for _ in shown(range(steps), "query", progress):
            value, added = joined.distance(q, kind)
            (grad,) = torch.autograd.grad(-value.sum(), q)
            if not bool(torch.isfinite(grad).all()):
                raise InputError(f"the gradient of {self.kernel!r} is not finite at a query")
            q.grad = grad
            adam.step()
            history.append(value.detach())
            jitter = max(jitter, added)
        found = q.detach()
        value = joined.distance(found, kind)[0]
        return self._optimized(found, value, torch.stack(history), records, jitter, kind, lr=lr, seed=seed)

    def _optimized(
        self, q: Tensor, value: Tensor, history: Tensor, records: list[int], jitter: float, kind: str, **how: Any
    ) -> Result:
        from scipy.optimize import linear_sum_assignment

        target = self.X_[records]
        paired = []
        for one in q:
            rows, columns = linear_sum_assignment(torch.cdist(target, one).numpy())
            paired.append(one[columns[rows.argsort()]])
        pairs = torch.stack(paired)
        best = int(value.argmax())
        data = {
            "value": ("start", value.numpy()),
            "distance": (("start", "record"), (pairs - target).norm(dim=2).numpy()),
            "similarity": (("start", "record"), torch.cosine_similarity(pairs, target[None], dim=2).numpy()),
            "query": (("start", "record", "feature"), pairs.numpy()),
            "history": ("step", history[:, best].numpy()),
            "best": best,
            "jitter": jitter,
        }
        record = provenance(inputs=[self.X_, self.y_], kernel=repr(self.kernel), noise=self.noise, kind=kind, **how)
        hints = {"plot": {"variables": ["history"], "ylabel": f"distance ({kind})"}}
        return Result(xr.Dataset(data, {"record": records}, hints), "optimize_query", PAPER, record)

    def _left_out(self) -> tuple[Tensor, Tensor]:
        """Residual (n, c) and latent variance (n,) of each record under the process without it."""
        self.check_fitted()
        diagonal = self.precision_.diagonal()
        # Rounding can take a variance of 0 below it.
        return (self.precision_ @ self.y_) / diagonal[:, None], (1 / diagonal - self.noise).clamp(min=0)

    def _joined(self, records: Sequence[int]) -> _Joined:
        """The process without some of the records, and these as what joins it."""
        self.check_fitted()
        n = len(self.X_)
        try:
            order = torch.tensor([operator.index(i) for i in records], dtype=torch.long)
        except TypeError:
            raise InputError(f"records are numbered by integers, got {records}") from None
        if not len(order) or len(order.unique()) != len(order) or int(order.min()) < 0 or int(order.max()) >= n:
            raise InputError(f"expected different records from 0 to {n - 1}, got {order.tolist()}")
        kept = torch.ones(n, dtype=torch.bool)
        kept[order] = False
        # Leaving rows out of the inverse of a matrix: a Schur complement, no new inversion.
        p = self.precision_
        left, cross = p[kept][:, kept], p[kept][:, ~kept]
        without = left - cross @ torch.linalg.solve(p[~kept][:, ~kept], cross.T)
        return _Joined(self.kernel, self.noise, self.X_[kept], self.y_[kept], without, self.X_[order], self.y_[order])

    def _queries(self, Q: Any) -> Tensor:
        return as_rows(Q, "Q", self.X_.shape[1], flat=False, dtype=torch.float64).cpu()

    def _starts(self, init: Any, count: int, starts: int, seed: int) -> Tensor:
        d = self.X_.shape[1]
        if init is not None:
            q = torch.as_tensor(init).detach().cpu().double().clone()
            q = q[None] if q.ndim == 2 else q
            if q.ndim != 3 or q.shape[1:] != (count, d) or not len(q) or not bool(torch.isfinite(q).all()):
                raise InputError(f"init: expected finite (starts, {count}, {d}), got shape {tuple(q.shape)}")
            return q
        if starts < 1:
            raise InputError(f"starts is 1 or more, got {starts}")
        random = torch.Generator().manual_seed(seed)
        noise = torch.randn(starts, count, d, generator=random, dtype=torch.float64)
        return self.X_.mean(0) + noise * self.X_.std(0, correction=0)

    def _symmetric(self, x: Tensor) -> Tensor:
        k = self.kernel(x, x).detach().double()
        if k.shape != (len(x), len(x)) or not bool(torch.isfinite(k).all()):
            raise InputError(f"the kernel gives shape {tuple(k.shape)} for {len(x)} records, or NaN or infinite values")
        return (k + k.T) / 2


class _Joined:
    """A process of records X and the same with records S besides: differences at queries, by the update of S alone."""

    def __init__(
        self, kernel: Kernel, noise: float, x: Tensor, y: Tensor, precision: Tensor, s_x: Tensor, s_y: Tensor
    ) -> None:
        self.kernel, self.noise, self.precision = kernel, noise, precision
        self.all, self.n = torch.cat([x, s_x]), len(x)
        k_sx, k_ss = kernel(s_x, self.all).detach().double().tensor_split([self.n], dim=1)
        self.carried = precision @ k_sx.T
        variance = k_ss - k_sx @ self.carried
        self.inverse = _inverse((variance + variance.T) / 2, noise)
        self.weights = self.inverse @ (s_y - k_sx @ (precision @ y))
        self.outputs = y.shape[1]

    def _covariances(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """K(Q, X), and the covariance of the process at Q and S."""
        k_qx, k_qs = self.kernel(q, self.all).double().tensor_split([self.n], dim=1)
        return k_qx, k_qs - k_qx @ self.carried

    def mean_change(self, q: Tensor) -> Tensor:
        """mu_D'(Q) - mu_D(Q), (q, c)."""
        return self._covariances(q)[1] @ self.weights

    def distance(self, q: Tensor, kind: str) -> tuple[Tensor, float]:
        """Distance (b,) of each of b groups of queries (b, q, d), and the jitter that it took."""
        if kind == "kl":
            return self.kl(q)
        change = self.mean_change(q.flatten(0, 1)).reshape(*q.shape[:2], -1)
        return (change**2).sum((1, 2)) / 2, 0.0

    def kl(self, q: Tensor) -> tuple[Tensor, float]:
        """KL divergence (b,) of each of b groups of queries (b, q, d), and the jitter that it took."""
        b, m = q.shape[:2]
        flat = q.flatten(0, 1)
        k_qx, cross = self._covariances(flat)
        change = (cross @ self.weights).reshape(b, m, -1)
        # Blocks on the diagonal; one call for all groups costs less than one for each.
        own = self.kernel(flat, flat).double().reshape(b, m, b, m).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        k_qx, cross = k_qx.reshape(b, m, -1), cross.reshape(b, m, -1)
        before = own - k_qx @ self.precision @ k_qx.mT
        after = before - cross @ self.inverse @ cross.mT
        if m > 1:
            jitter = _jitter(after.detach(), self.noise)
            eye = jitter * torch.eye(m, dtype=before.dtype)
            return _gaussian_kl(change, before + eye, after + eye, self.outputs), jitter
        old, new = before[:, 0, 0], after[:, 0, 0]
        if not bool((new > 0).all()):
            raise InputError("the predictive variance at a query is zero to rounding; give more noise")
        spread = torch.log(new / old) + old / new - 1
        return (self.outputs * spread + (change[:, 0] ** 2).sum(1) / new) / 2, 0.0


def _gaussian_kl(change: Tensor, before: Tensor, after: Tensor, outputs: int) -> Tensor:
    """KL (b,) of N(0, before) from N(change, after) for each output: change (b, q, c), covariances (b, q, q)."""
    old, new = torch.linalg.cholesky(before), torch.linalg.cholesky(after)
    logs = 2 * (new.diagonal(dim1=1, dim2=2).log().sum(1) - old.diagonal(dim1=1, dim2=2).log().sum(1))
    trace = (torch.linalg.solve_triangular(new, old, upper=False) ** 2).sum((1, 2))
    shift = (torch.linalg.solve_triangular(new, change, upper=False) ** 2).sum((1, 2))
    return (outputs * (logs + trace - before.shape[1]) + shift) / 2


def _jitter(covariance: Tensor, noise: float) -> float:
    """What the diagonals (b, q, q) need so that all can be inverted.

    Raises:
        InputError: it would be of the size of the noise.
    """
    values = torch.linalg.eigvalsh((covariance + covariance.mT) / 2)
    needed = float((RANK * values[:, -1].clamp(min=0) - values[:, 0]).max())
    if needed > DISTORTS * noise:
        raise InputError(
            f"{covariance.shape[1]} queries have a covariance of lower rank: jitter {needed:.3g} would be needed, too"
            f" much beside noise {noise:.3g}; ask at fewer queries or raise the noise"
        )
    return max(needed, 0.0)


def _inverse(k: Tensor, noise: float) -> Tensor:
    factor, bad = torch.linalg.cholesky_ex(k + noise * torch.eye(len(k), dtype=k.dtype))
    if int(bad):
        raise InputError("the kernel is not positive semi-definite: K + noise I has no Cholesky factor")
    return torch.cholesky_inverse(factor)


def _labels(y: Any, n: int) -> Tensor:
    """Labels as columns (n, c)."""
    try:
        columns = torch.as_tensor(y).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"labels: expected numbers (n,) or (n, c), not {type(y).__name__}") from None
    if columns.ndim not in (1, 2) or len(columns) != n or not columns.numel():
        raise InputError(f"labels: expected (n,) or (n, c) for {n} records, got shape {tuple(columns.shape)}")
    if not bool(torch.isfinite(columns).all()):
        raise InputError("labels hold NaN or infinite values")
    return columns[:, None] if columns.ndim == 1 else columns


def _known(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")


def _differentiable(kernel: Kernel, q: Tensor) -> None:
    if not kernel(q[0], q[0].detach()).requires_grad:
        raise InputError(
            f"no gradient comes through {kernel!r}, so no query can be sought; use RBF, ReLUKernel or analytic_ntk_relu"
        )


def loo_memorization(kernel: Kernel, X: Any, y: Any, noise: float = 0.01) -> Tensor:
    """Memorisation (n,) of each record: `LOOD(kernel, noise).fit(X, y).memorization()`."""
    return LOOD(kernel, noise).fit(X, y).memorization()


def loo_leakage(kernel: Kernel, X: Any, y: Any, noise: float = 0.01) -> Tensor:
    """Leakage (n,) of each record: `LOOD(kernel, noise).fit(X, y).leakage()`."""
    return LOOD(kernel, noise).fit(X, y).leakage()


def optimize_query(
    kernel: Kernel, X: Any, y: Any, index: int | Sequence[int], noise: float = 0.01, **options: Any
) -> Result:
    """Queries that tell most of some records: `LOOD(kernel, noise).fit(X, y).optimize_query(index, **options)`."""
    return LOOD(kernel, noise).fit(X, y).optimize_query(index, **options)
