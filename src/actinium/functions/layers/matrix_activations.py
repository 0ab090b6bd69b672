"""Trainable matrix activations: y -> A(y) y with a diagonal or tri-diagonal A of step functions.

unit = ac.functions.TridiagonalMatrixActivation(64, breakpoints=20, lo=-3, hi=3)    # starts as ReLU
unit.matrix(y)                                                                      # A(y), (batch, 64, 64)
unit.plot_table()                                                                   # interval and slope of each neuron
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, unknown
from actinium.functions.dimensions import place_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "TMAF",
    "BandedMatrixActivation",
    "DiagonalMatrixActivation",
    "TridiagonalMatrixActivation",
    "quantile_breakpoints",
]

SHARING = ("neuron", "layer")
STARTS = ("relu", "identity", "random")
NOISE = 0.1
"""Standard deviation around ReLU's slopes of a random start."""


class BandedMatrixActivation(nn.Module):
    """sigma_i = sum_o t_{o,i}(y_{i+o}) y_{i+o} over fixed offsets o, where t_{o,i} is constant between break points.

    Each factor depends on the coordinate that it multiplies, so that sigma is a sum of functions of one coordinate
    each; neighbours outside of the vector count as 0. Intervals are open on the left and closed on the right. The
    derivative with respect to y is the factor: jumps of t_j - t_{j-1} at break points other than 0 make sigma itself
    jump (`jumps`), which the gradient does not see. Intervals that no input visits are not learnt: put a normalisation
    before, or break points at quantiles (`quantile_breakpoints`). Entries at the ends of the band whose neighbour does
    not exist are not used.

    Args:
        num_features: units n of `dim`; None where one set of factors serves all units.
        breakpoints: how many, evenly from lo to hi, or which (m,). 0 is added where it is missing.
        lo, hi: where evenly spaced ones begin and end.
        share: "neuron" (factors for each unit) or "layer" (one set for all).
        dim: dimension of the units; 1 for the channels of a convolution.
        init: "relu", "identity", or "random" (around ReLU, and around 0 off the diagonal).
        offsets: which neighbours; 0 is the coordinate itself. Those of the class if not given.

    Raises:
        InputError: break points are not finite, not rising, or twice the same; a size is below 1; sharing, start or
            offsets are unknown.

    Source: Liu, Cao, Li and Zikatanov, 2021.
    """

    offsets: tuple[int, ...] = (0,)

    def __init__(
        self,
        num_features: int | None = None,
        breakpoints: Tensor | int = 20,
        lo: float = -1.0,
        hi: float = 1.0,
        share: str = "neuron",
        dim: int = -1,
        init: str = "relu",
        *,
        offsets: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        offsets = self.offsets if offsets is None else tuple(offsets)
        for value, known, what in ((share, SHARING, "sharing"), (init, STARTS, "start")):
            if value not in known:
                raise InputError(unknown(what, value, list(known)))
        if not offsets or len(set(offsets)) < len(offsets):
            raise InputError(f"a band has different offsets, one or more, not {offsets}")
        if num_features is None and share == "neuron":
            raise InputError('factors for each neuron need num_features; share="layer" does without')
        if num_features is not None and num_features < 1:
            raise InputError(f"num_features is 1 or more, not {num_features}")
        self.num_features, self.offsets, self.share, self.dim = num_features, offsets, share, dim
        self.points: Tensor
        self.register_buffer("points", _points(breakpoints, lo, hi))
        rows = num_features if share == "neuron" and num_features is not None else 1
        ends = torch.cat([self.points, torch.tensor([torch.inf])])
        slopes = torch.zeros(len(offsets), rows, len(ends))
        if 0 in offsets:
            slopes[offsets.index(0)] = 1.0 if init == "identity" else (ends > 0).float()
        if init == "random":
            slopes += NOISE * torch.randn_like(slopes)
        self.slopes = nn.Parameter(slopes)

    def forward(self, y: Tensor) -> Tensor:
        """A(y) y along `dim`, in the same shape.

        Raises:
            InputError: it is no floating-point tensor, has another number of units, or holds NaN.
        """
        rows = self._rows(y)
        bins = self._bins(rows)
        out = torch.zeros_like(rows)
        for k, offset in enumerate(self.offsets):
            moved = _neighbour(rows, offset)
            out = out + self._factors(k, _neighbour(bins, offset)).to(rows.dtype) * moved
        return out.to(y.dtype).movedim(-1, self.dim)

    def matrix(self, y: Tensor) -> Tensor:
        """A(y) of vectors (batch, n): (batch, n, n); of half precision in float32, in which `forward` multiplies.

        Raises:
            InputError: as in `forward`, or y is no batch of vectors.
        """
        if y.ndim != 2:
            raise InputError(f"A(y) is made for vectors (batch, units), not for {tuple(y.shape)}")
        rows = self._rows(y)
        bins, n = self._bins(rows), rows.shape[1]
        out = torch.zeros(len(rows), n, n, dtype=rows.dtype, device=rows.device)
        for k, offset in enumerate(self.offsets):
            i = torch.arange(n, device=rows.device)
            i = i[(i + offset >= 0) & (i + offset < n)]
            out[:, i, i + offset] = self._factors(k, _neighbour(bins, offset)).to(rows.dtype)[:, i]
        return out

    def jumps(self) -> Tensor:
        """Heights (offset, neuron, m) of the jumps at the break points; their squares are a penalty for training."""
        return self.slopes.diff(dim=-1) * self.points

    def plot_table(self) -> pd.DataFrame:
        """One row for each offset, neuron and interval: columns offset, neuron, low, high and slope."""
        import pandas as pd

        ends = [-float("inf"), *self.points.tolist(), float("inf")]
        table = self.slopes.detach().cpu().tolist()
        rows = [
            (offset, i, ends[j], ends[j + 1], slope)
            for offset, part in zip(self.offsets, table, strict=True)
            for i, row in enumerate(part)
            for j, slope in enumerate(row)
        ]
        return pd.DataFrame(rows, columns=["offset", "neuron", "low", "high", "slope"])

    @torch.no_grad()
    def fit_to(self, target: Callable[[Tensor], Tensor], lo: float = -3.0, hi: float = 3.0) -> None:
        """Take the diagonal factors that are nearest to a function in mean square, and none off the diagonal.

        Args:
            target: function or module.
            lo, hi: the interval, of which 6001 points are taken; factors of intervals outside of it stay as they are.

        Raises:
            InputError: the interval is empty, or there is no diagonal.
        """
        if not lo < hi or 0 not in self.offsets:
            raise InputError(f"a fit needs an interval and a diagonal, not {lo:g}..{hi:g} and offsets {self.offsets}")
        x = torch.linspace(lo, hi, 6001, dtype=torch.float64)
        like = next(target.parameters(), x) if isinstance(target, nn.Module) else x
        wanted = target(x.to(like.device, like.dtype)[:, None])[:, 0].double().cpu()
        bins = torch.bucketize(x, self.points.double().cpu())
        empty = torch.zeros(self.slopes.shape[-1], dtype=torch.float64)
        power, product = (empty.index_add(0, bins, v) for v in (x.square(), x * wanted))
        k = self.offsets.index(0)
        found = torch.where(power > 0, product / power.clamp(min=1e-300), self.slopes[k, 0].double().cpu())
        self.slopes.zero_()
        self.slopes[k] = found.to(self.slopes)

    def _rows(self, y: Tensor) -> Tensor:
        """The units in the last dimension, in float32 or wider."""
        if not isinstance(y, Tensor) or not y.is_floating_point():
            what = f"a tensor of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise InputError(f"{type(self).__name__} takes a floating-point tensor, not {what}")
        size = y.shape[place_of(self.dim, y)] if y.numel() else self.num_features
        if self.num_features is not None and size != self.num_features:
            raise InputError(f"{self.num_features} units are expected in dimension {self.dim} of {tuple(y.shape)}")
        if bool(y.isnan().any()):
            raise InputError("NaN lies in no interval")
        rows = y.movedim(self.dim, -1)
        return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows

    def _bins(self, y: Tensor) -> Tensor:
        """Number of the interval of each value: those of (s_{j-1}, s_j] have j."""
        return torch.bucketize(y.detach().contiguous(), self.points.to(y.dtype))

    def _factors(self, k: int, bins: Tensor) -> Tensor:
        """Entries of the table of an offset for bins (..., n)."""
        table = self.slopes[k]
        if len(table) == 1:
            return table[0][bins]
        return table[torch.arange(len(table), device=bins.device), bins]

    def extra_repr(self) -> str:
        """Units, intervals, sharing and dimension."""
        return f"{self.num_features}, intervals={self.slopes.shape[-1]}, share={self.share!r}, dim={self.dim}"


class DiagonalMatrixActivation(BandedMatrixActivation):
    """sigma_i = t_i(y_i) y_i: ReLU with slopes 0 and 1 on the two sides of 0, PReLU with any slopes.

    Args:
        num_features, breakpoints, lo, hi, share, dim, init: as in `BandedMatrixActivation`.

    Raises:
        InputError: as there.

    Source: Liu, Cao, Li and Zikatanov, 2021.
    """

    offsets = (0,)


TMAF = DiagonalMatrixActivation


class TridiagonalMatrixActivation(BandedMatrixActivation):
    """sigma_i = t_i(y_i) y_i + u_i(y_{i+1}) y_{i+1} + v_i(y_{i-1}) y_{i-1}; u and v start at 0.

    Args:
        num_features, breakpoints, lo, hi, share, dim, init: as in `BandedMatrixActivation`.

    Raises:
        InputError: as there.

    Source: Liu, Cao, Li and Zikatanov, 2021.
    """

    offsets = (0, 1, -1)


def quantile_breakpoints(y: Tensor, count: int) -> Tensor:
    """Break points between which equally many pre-activations lie, and 0.

    Args:
        y: pre-activations of any shape.
        count: how many, 0 not counted.

    Raises:
        InputError: the count is below 1, or y is empty or not finite.
    """
    values = y.detach().double().flatten().cpu()
    if count < 1 or not len(values) or not bool(values.isfinite().all()):
        raise InputError(f"break points need finite pre-activations and a count of 1 or more, not {count}")
    # torch.quantile takes 16 million values at most.
    ranked = values.sort().values
    at = torch.linspace(0, 1, count + 2, dtype=torch.float64)[1:-1] * (len(ranked) - 1)
    return torch.cat([ranked[at.round().long()], torch.zeros(1, dtype=torch.float64)]).unique()


def _points(breakpoints: Tensor | int, lo: float, hi: float) -> Tensor:
    if isinstance(breakpoints, int):
        if breakpoints < 1 or not lo < hi:
            raise InputError(f"break points are one or more from lo to hi, not {breakpoints} from {lo} to {hi}")
        ends = (lo, hi) if breakpoints > 1 else ((lo + hi) / 2,) * 2
        found = torch.linspace(*ends, breakpoints, dtype=torch.float64)
        # The middle of an odd number of them is 0 but for rounding.
        found = torch.where(found.abs() < 1e-12 * (hi - lo), 0.0, found)
    else:
        found = torch.as_tensor(breakpoints, dtype=torch.float64).detach().cpu()
        if found.ndim != 1 or not len(found) or not bool(found.isfinite().all()):
            raise InputError(f"break points are finite numbers (m,), not {tuple(found.shape)}")
        if bool((found.diff() <= 0).any()):
            raise InputError("break points rise, and none is there twice")
    return torch.cat([found, torch.zeros(1, dtype=torch.float64)]).unique().to(torch.get_default_dtype())


def _neighbour(y: Tensor, offset: int) -> Tensor:
    """y_{i + offset} in the place of y_i; 0 where there is none."""
    n = y.shape[-1]
    if offset == 0:
        return y
    if abs(offset) >= n:
        return torch.zeros_like(y)
    kept = y[..., max(0, offset) : n + min(0, offset)]
    return nn.functional.pad(kept, (max(0, -offset), max(0, offset)))
