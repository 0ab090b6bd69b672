"""Moments of the activations at each site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.reducers import Moments
from actinium.core.result import Result
from actinium.measure.streaming import as_result, choose, padded, ready, stream

__all__ = ["activation_moments", "excess_kurtosis"]


def excess_kurtosis(values: Tensor, dim: int | None = None) -> Tensor:
    """Fourth central moment over the squared variance, minus 3; 0 for a normal distribution.

    Args:
        values: any shape.
        dim: the dimension to take it along; all entries together if None.

    Returns:
        float64, NaN where the variance is zero.

    Raises:
        InputError: `values` is empty.
    """
    if values.numel() == 0:
        raise InputError("the kurtosis of no values is not defined")
    x = values.double().flatten() if dim is None else values.double()
    along = 0 if dim is None else dim
    d2 = (x - x.mean(along, keepdim=True)) ** 2
    return (d2 * d2).mean(along) / d2.mean(along) ** 2 - 3


def activation_moments(
    model: Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    batch_size: int | None = 8,
    progress: bool = False,
) -> Result:
    """Mean, spread, skewness and excess kurtosis of each site and of each of its features.

    Args:
        model: the model.
        inputs: texts, tokens or images.
        at: sites; the residual stream after each block by default.
        batch_size: rows per pass.
        progress: show a progress bar.

    Returns:
        by layer: `kurtosis`, `skewness`, `mean`, `std`, `min`, `max` over all entries; `nan` and `inf` counts
        (such values are left out of the rest); by layer and feature: `feature_mean`, `feature_std`,
        `feature_kurtosis`.

    Raises:
        InputError, SiteError: nothing to read.

    Source: streaming sums of Pebay, 2008.
    """
    inputs, layers = ready(model, inputs), choose(model, "resid_post", at)
    found = stream(model, inputs, layers, Moments(), batch_size, progress)
    pooled = [f.pooled for f in found]
    one = (layers.dim,)
    two = (layers.dim, "feature")
    variables: dict[str, Any] = {
        "kurtosis": (one, [float(p.kurtosis) for p in pooled]),
        "skewness": (one, [float(p.skewness) for p in pooled]),
        "mean": (one, [float(p.mean) for p in pooled]),
        "std": (one, [float(p.var) ** 0.5 for p in pooled]),
        "min": (one, [_finite(p.min) for p in pooled]),
        "max": (one, [_finite(p.max) for p in pooled]),
        "count": (one, [int(p.count) for p in pooled]),
        "nan": (one, [int(p.nan) for p in pooled]),
        "inf": (one, [int(p.inf) for p in pooled]),
        "feature_mean": (two, padded([f.mean for f in found])),
        "feature_std": (two, padded([f.var.sqrt() for f in found])),
        "feature_kurtosis": (two, padded([f.kurtosis for f in found])),
    }
    hints = {"variables": ["kurtosis"], "ylabel": "excess kurtosis"}
    return as_result(model, inputs, "activation_moments", variables, layers.coords, plot=hints, at=layers.names)


def _finite(value: Tensor) -> float:
    """NaN for the extreme of no values."""
    return float(torch.where(value.isfinite(), value, torch.nan))
