"""Outlier channels: features of the residual stream far larger than the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.model import Model
from actinium.core.reducers import Moments
from actinium.core.result import Result
from actinium.measure.streaming import as_result, choose, padded, ready, stream

__all__ = ["channel_kurtosis", "channel_ratio", "outlier_channels"]


class _ShareAbove:
    """Share of the positions at which each feature is at least `limit` in magnitude."""

    def __init__(self, limit: float) -> None:
        self.limit, self.count, self.n = limit, torch.zeros(()), 0

    def update(self, values: Tensor) -> None:
        self.count = self.count + (values.abs() >= self.limit).sum(0)
        self.n += len(values)

    def result(self) -> Tensor:
        return self.count.cpu().double() / self.n


def channel_ratio(rms: Tensor) -> Tensor:
    """Each channel's root mean square over the median channel's; (channels,) in and out.

    Where the median channel is silent, the ratio of any other is infinite and of a silent one NaN.
    """
    return rms.double() / rms.double().nanmedian()


def channel_kurtosis(rms: Tensor) -> Tensor:
    """Fourth power over squared second power of the channels' root mean squares, averaged over channels.

    It is 1 when all channels are alike and the number of channels when one holds everything.

    Args:
        rms: (channels,).

    Returns:
        a float64 scalar.

    Source: He et al., 2024, Understanding and Minimising Outlier Features in Neural Network Training.
    """
    s2 = rms.double() ** 2
    s2 = s2[s2.isfinite()]
    return (s2**2).mean() / s2.mean() ** 2


def outlier_channels(
    model: Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    ratio: float = 6.0,
    magnitude: float = 6.0,
    layer_share: float = 0.25,
    position_share: float = 0.06,
    batch_size: int | None = 8,
    progress: bool = False,
) -> Result:
    """Channels whose root mean square stands out, and those that are outliers by LLM.int8()'s rule.

    Args:
        model: the model.
        inputs: texts, tokens or images.
        at: sites; the residual stream after each block by default.
        ratio: a channel is an outlier of a layer from this multiple of the median channel's root mean square
            on.
        magnitude: LLM.int8(): a channel is systematic when |x| reaches this ...
        layer_share: ... in at least this share of the layers ...
        position_share: ... at at least this share of the positions.
        batch_size: rows per pass.
        progress: show a progress bar.

    Returns:
        by layer and channel: `ratio`, `rms`, `share` (of positions with |x| >= magnitude), `outlier`, `peak`
        (largest distance from the layer's mean in standard deviations); by layer: `kurtosis` (of the channels),
        `n_outliers`; by channel: `systematic`.

    Raises:
        InputError, SiteError: nothing to read.

    Source: Dettmers et al., 2022, LLM.int8(), section 4; Bondarenko et al., 2021 (six standard deviations); He
    et al., 2024 (kurtosis). The rule on the ratio is ours.
    """
    inputs, layers = ready(model, inputs), choose(model, "resid_post", at)
    reducers = {"moments": Moments(), "share": _ShareAbove(magnitude)}
    found = stream(model, inputs, layers, reducers, batch_size, progress)
    moments = [f["moments"] for f in found]
    rms = [(m.var + m.mean**2).sqrt() for m in moments]
    ratios = padded([channel_ratio(r) for r in rms])
    shares = padded([f["share"] for f in found])
    outlier = ratios >= ratio
    two, one = (layers.dim, "channel"), (layers.dim,)
    variables: dict[str, Any] = {
        "ratio": (two, ratios),
        "rms": (two, padded(rms)),
        "share": (two, shares),
        "outlier": (two, outlier),
        "peak": (two, padded([_peak(m) for m in moments])),
        "kurtosis": (one, [float(channel_kurtosis(r)) for r in rms]),
        "n_outliers": (one, outlier.sum(1)),
        "systematic": (("channel",), (np.nan_to_num(shares) >= position_share).mean(0) >= layer_share),
    }
    return as_result(
        model,
        inputs,
        "outlier_channels",
        variables,
        layers.coords,
        at=layers.names,
        ratio=ratio,
        magnitude=magnitude,
        layer_share=layer_share,
        position_share=position_share,
    )


def _peak(moments: Any) -> Tensor:
    """Largest distance of each channel's values from the layer's mean, in its standard deviations."""
    mean, std = moments.pooled.mean, moments.pooled.var.sqrt()
    peak: Tensor = torch.maximum((moments.max - mean).abs(), (moments.min - mean).abs()) / std
    return peak
