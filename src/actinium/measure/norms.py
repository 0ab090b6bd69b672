"""How long the residual stream is, and how it grows with depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.reducers import Context, Moments, Quantile, feature_rows
from actinium.core.result import Result
from actinium.measure.streaming import as_result, choose, ready, stream

__all__ = ["growth_rate", "norm_growth"]


class _Norms:
    """Euclidean norms of each position: moments, median, and the mean over first positions."""

    wants_context: ClassVar[bool] = True

    def __init__(self) -> None:
        self.all, self.median, self.first = Moments(), Quantile(0.5), Moments()

    def update(self, values: Tensor, context: Context) -> None:
        rows, which, _ = feature_rows(values, context)
        norms = rows.double().norm(dim=1, keepdim=True)
        self.all.update(norms)
        self.median.update(norms)
        starts = torch.ones_like(which, dtype=torch.bool)
        starts[1:] = which[1:] != which[:-1]
        self.first.update(norms[starts])

    def result(self) -> dict[str, float]:
        moments, first = self.all.result().pooled, self.first.result().pooled
        if moments is None or first is None or int(moments.count) == 0:
            return dict.fromkeys(("mean", "std", "median", "first", "max"), np.nan)
        return {
            "mean": float(moments.mean),
            "std": float(moments.var) ** 0.5,
            "median": float(self.median.result().values[0]),
            "first": float(first.mean),
            "max": float(moments.max),
        }


def growth_rate(norms: Sequence[float] | np.ndarray) -> float:
    """Factor per layer of the exponential that fits the norms best (least squares on their logarithms).

    Args:
        norms: one positive mean norm per layer; NaN entries are left out.

    Raises:
        InputError: fewer than two positive norms.
    """
    values = np.asarray(norms, dtype=float)
    layers = np.arange(len(values))[np.isfinite(values) & (values > 0)]
    if len(layers) < 2:
        raise InputError(f"a growth rate needs two positive norms or more, got {values.tolist()}")
    return float(np.exp(np.polyfit(layers, np.log(values[layers]), 1)[0]))


def norm_growth(
    model: Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    batch_size: int | None = 8,
    progress: bool = False,
) -> Result:
    """Norm of the activation vectors at each site, and its growth from site to site.

    Args:
        model: the model.
        inputs: texts, tokens or images.
        at: sites; the residual stream after each block by default.
        batch_size: rows per pass.
        progress: show a progress bar.

    Returns:
        by layer: `mean`, `median` (within a relative 2**-7), `std` and `max` of the norms, `first` (mean at the
        first position of each row), `growth` (mean over that of the layer before); `rate`, the factor per layer
        that fits best (NaN for one layer).

    Raises:
        InputError, SiteError: nothing to read.

    Source: Heimersheim and Turner, 2023 (residual stream norms grow exponentially over the forward pass).
    """
    inputs, layers = ready(model, inputs), choose(model, "resid_post", at)
    found = stream(model, inputs, layers, _Norms(), batch_size, progress)
    one = (layers.dim,)
    variables: dict[str, Any] = {
        name: (one, np.array([f[name] for f in found])) for name in ("mean", "median", "std", "max", "first")
    }
    mean = variables["mean"][1]
    before = np.concatenate([[np.nan], mean[:-1]])
    variables["growth"] = (one, np.divide(mean, before, out=np.full_like(mean, np.nan), where=before != 0))
    positive = np.isfinite(mean) & (mean > 0)
    variables["rate"] = ((), growth_rate(mean) if positive.sum() > 1 else np.nan)
    hints = {"variables": ["mean", "median", "first"], "yscale": "log", "ylabel": "norm"}
    return as_result(model, inputs, "norm_growth", variables, layers.coords, plot=hints, at=layers.names)
