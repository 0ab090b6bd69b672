"""CETT: how much of a feed-forward layer's output is lost when its smallest contributions are left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from actinium.core.edits import Fn
from actinium.core.errors import InputError
from actinium.core.maps import weight_after as down_projection
from actinium.core.model import Model
from actinium.measure.streaming import Layers, choose, ready, real_rows

__all__ = ["CettCurve", "apply_thresholds", "cett", "cett_thresholds", "down_projection", "output_magnitude"]

CANDIDATES = 65536
TOP = 0.99
# Positions whose truncated outputs are computed at the same time.
POSITIONS = 1024


def output_magnitude(a: Tensor, w: Tensor) -> Tensor:
    """Length of what each unit adds to the output, |a_j| * ||w_j||.

    Args:
        a: activations (n, units).
        w: down projection (d, units); column j is the unit's output vector.

    Returns:
        (n, units) float32.

    Source: Luo et al., 2024.
    """
    if a.ndim != 2 or w.ndim != 2 or a.shape[1] != w.shape[1]:
        raise InputError(f"expected (n, units) and (d, units), got {tuple(a.shape)} and {tuple(w.shape)}")
    return a.float().abs() * w.float().norm(dim=0)


class CettCurve:
    """CETT of one layer as a function of the threshold.

    Args:
        a: activations (n, units) of the unedited model, padding left out.
        w: down projection (d, units).

    Attributes:
        candidates: 65 536 equally spaced thresholds, from the smallest output magnitude to the 0.99 quantile
            (of every k-th entry, k = entries // 65 536).
        skipped: positions whose whole output is zero; they have no relative error.

    Raises:
        InputError: shapes do not fit, nothing is finite, or every output is zero.

    Source: Luo et al., 2024; the search over candidates as in the authors' code.
    """

    def __init__(self, a: Tensor, w: Tensor) -> None:
        n = output_magnitude(a, w)
        if not bool(n.isfinite().all()):
            raise InputError("the activations or weights hold NaN or infinite values")
        self.w = w.float()
        size = (a.float() @ self.w.T).norm(dim=1)
        self.skipped = int((size == 0).sum())
        if self.skipped == len(size):
            raise InputError("every output of this layer is zero")
        self.a, self.n, self.size = a.float()[size > 0], n[size > 0], size[size > 0]
        every = self.n.flatten()[:: max(1, self.n.numel() // CANDIDATES)]
        low, high = float(self.n.min()), float(torch.quantile(every, TOP))
        self.candidates = torch.linspace(low, max(low, high), CANDIDATES, dtype=torch.float64)
        self._known: dict[int, float] = {}

    def __call__(self, tau: float) -> float:
        """Mean over positions of ||sum over units with n_j < tau of a_j w_j|| / ||y||."""
        total = 0.0
        for rows in torch.arange(len(self.a)).split(POSITIONS):
            lost = torch.where(self.n[rows] < tau, self.a[rows], 0.0) @ self.w.T
            total += float((lost.norm(dim=1) / self.size[rows]).double().sum())
        return total / len(self.a)

    def _at(self, index: int) -> float:
        if index not in self._known:
            self._known[index] = self(float(self.candidates[index]))
        return self._known[index]

    def threshold(self, c: float) -> float:
        """The largest candidate, by bisection, whose CETT is at most `c`; the smallest loses nothing.

        Raises:
            InputError: c is negative.
        """
        if not c >= 0:
            raise InputError(f"CETT is compared with c >= 0, got {c}")
        # What earlier searches computed narrows this one.
        good = max((i for i, v in self._known.items() if v <= c), default=0)
        bad = min((i for i, v in self._known.items() if v > c and i > good), default=CANDIDATES)
        while bad - good > 1:
            middle = (good + bad) // 2
            if self._at(middle) <= c:
                good = middle
            else:
                bad = middle
        return float(self.candidates[good])


def cett(a: Tensor, w: Tensor, tau: float) -> float:
    """Cumulative error of tail truncation: mean relative length of what units with |a_j| ||w_j|| < tau add.

    Args:
        a: activations (n, units).
        w: down projection (d, units).
        tau: threshold on the output magnitude.

    Returns:
        0 for tau = 0, 1 for an infinite tau.

    Raises:
        InputError: as for `CettCurve`.

    Source: Luo et al., 2024.
    """
    return CettCurve(a, w)(tau)


def cett_curves(
    model: Model, inputs: Any, at: str | Sequence[str] | None = None, *, max_positions: int = 4096
) -> tuple[Layers, dict[str, CettCurve]]:
    """The CETT curve of every feed-forward layer, on at most `max_positions` evenly spread positions.

    Memory: layers * positions * units float32 numbers, twice.
    """
    prepared, layers = ready(model, inputs), choose(model, "mlp.post", at)
    weights = {name: down_projection(model, name) for name in layers.names}
    curves = {}
    for name, weight in weights.items():
        a = real_rows(model.record(prepared, name), name)
        if len(a) > max_positions:
            a = a[torch.linspace(0, len(a) - 1, max_positions).long()]
        curves[name] = CettCurve(a, weight.to(a.device))
    return layers, curves


def cett_thresholds(
    model: Model, inputs: Any, c: float, at: str | Sequence[str] | None = None, *, max_positions: int = 4096
) -> dict[str, float]:
    """For each feed-forward layer the largest threshold on the output magnitude with CETT at most `c`.

    Args:
        model: the model.
        inputs: calibration texts, tokens or images.
        c: the error allowed, from 0 to 1.
        at: sites read by linear maps; each block's `mlp.post` by default.
        max_positions: calibrate on so many positions.

    Returns:
        by site name; for `apply_thresholds`.

    Raises:
        InputError, SiteError: no feed-forward layer, or c is negative.

    Source: Luo et al., 2024.
    """
    _, curves = cett_curves(model, inputs, at, max_positions=max_positions)
    return {name: curve.threshold(c) for name, curve in curves.items()}


@contextmanager
def apply_thresholds(model: Model, thresholds: Mapping[str, float]) -> Iterator[Model]:
    """For the block, set every activation to zero whose output magnitude is below its layer's threshold.

    Args:
        model: the model.
        thresholds: by site name; a_j becomes zero where |a_j| < tau / ||w_j||, strictly.

    Raises:
        InputError, SiteError: a site is not the input of a linear map, or a threshold is negative.
    """
    if negative := [name for name, tau in thresholds.items() if not tau >= 0]:
        raise InputError(f"thresholds must not be negative: {', '.join(negative)}")
    with model.edit({name: Fn(_truncation(down_projection(model, name), tau)) for name, tau in thresholds.items()}):
        yield model


def _truncation(w: Tensor, tau: float) -> Any:
    lengths = w.float().norm(dim=0)

    def truncate(a: Tensor) -> Tensor:
        # n_j = |a_j| ||w_j|| is compared, not |a_j| with a quotient, so that the rule is that of the
        # calibration.
        return torch.where(a.float().abs() * lengths.to(a.device) < tau, 0.0, a)

    return truncate
