"""Which operators may be exchanged for what: how local attention is, and how heavy the tails of outputs are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.recording import Recording
from actinium.core.result import Result
from actinium.functions.exchange.graft_calls import Select, record_calls

__all__ = ["attention_locality", "locality_of", "operator_statistics"]

ROUNDING = 1e-2
"""How far the sum of a row of attention may be from 1: half precision sums no closer."""


def locality_of(pattern: Tensor, reach: int) -> float:
    """Share of attention that goes no further than `reach` tokens: (1/N) sum over |i - j| <= reach of A_ij.

    Args:
        pattern: (…, N, N), rows that sum to 1; the mean over what stands before is taken.
        reach: distance in tokens.

    Raises:
        InputError: another shape, no rows, rows that do not sum to 1 or are negative, or a negative reach.

    Source: Chandrasegaran, Poli et al., 2025, section 4 (L_k).
    """
    if reach < 0:
        raise InputError(f"reach must not be negative, got {reach}")
    mean = _mean_pattern(pattern)
    place = torch.arange(len(mean), device=mean.device)
    near = (place[:, None] - place).abs() <= reach
    return float(mean[near].sum() / len(mean))


def attention_locality(patterns: Recording | Mapping[str, Tensor], reaches: Sequence[int] | None = None) -> Result:
    """How local the attention of each layer is: layers of much attention near by can do with local operators.

    Args:
        patterns: attention (batch, head, N, N) or (…, N, N) by layer, as `model.record(texts, "blocks.*.attn.pattern")`
            gives it; without padding.
        reaches: distances k in tokens; by default 1, 2, 4, … below N.

    Returns:
        by layer and reach: `locality`, from 0 to 1; by reach: `uniform`, what attention that is spread evenly over all
        tokens has.

    Raises:
        InputError: no patterns, padding, or what `locality_of` refuses.

    Source: Chandrasegaran, Poli et al., 2025, section 4 (L_k).
    """
    mask = getattr(patterns, "mask", None)
    if mask is not None and not bool(mask.all()):
        raise InputError("attention to padding has no distance: record texts of one length")
    values = patterns.values if isinstance(patterns, Recording) else patterns
    if not values:
        raise InputError("there are no patterns of attention")
    means = {name: _mean_pattern(pattern) for name, pattern in values.items()}
    shortest = min(map(len, means.values()))
    if reaches is None:
        reaches = [2**i for i in range(max(1, (shortest - 1).bit_length()))]
    even = torch.full((shortest, shortest), 1 / shortest, dtype=torch.float64)
    data = xr.Dataset(
        {
            "locality": (("layer", "reach"), [[locality_of(mean, k) for k in reaches] for mean in means.values()]),
            "uniform": (("reach",), [locality_of(even, k) for k in reaches]),
        },
        coords={"layer": list(means), "reach": list(reaches)},
    )
    return Result(data, "attention_locality", "grafting", provenance(inputs=dict(values), reaches=list(reaches)))


def operator_statistics(
    model: nn.Module | Model,
    names: Sequence[str],
    batches: Iterable[Any],
    select: Mapping[str, Select] | Select = None,
    *,
    progress: bool = False,
) -> Result:
    """Mean, deviation, largest value and kurtosis of what operators give back: heavy tails speak for an L1 regression.

    Args:
        model: the network.
        names: of the operators' modules.
        batches: inputs as in `record_calls`.
        select: as in `record_calls`.
        progress: show a progress bar.

    Returns:
        by site, over all entries: `kurtosis` (3 for a normal distribution, NaN where nothing varies), `mean`, `std`,
        `largest`.

    Raises:
        InputError, SiteError: what `record_calls` refuses.

    Source: Chandrasegaran, Poli et al., 2025, section 3.2.
    """
    batches = list(batches)
    calls = record_calls(model, names, batches, select, progress=progress)
    rows: dict[str, list[float]] = {"kurtosis": [], "mean": [], "std": [], "largest": []}
    for made in calls.values():
        y = torch.cat([call.y.double().flatten() for call in made])
        centred = y - y.mean()
        variance = float((centred**2).mean())
        rows["kurtosis"].append(float((centred**4).mean()) / variance**2 if variance else np.nan)
        rows["mean"].append(float(y.mean()))
        rows["std"].append(variance**0.5)
        rows["largest"].append(float(y.abs().max()))
    data = xr.Dataset(
        {name: (("site",), values) for name, values in rows.items()},
        coords={"site": list(calls)},
        attrs={"plot": {"variables": ["kurtosis"], "kind": "bar", "ylabel": "kurtosis"}},
    )
    about = provenance(model if isinstance(model, Model) else Model(model), sites=list(calls))
    return Result(data, "operator_statistics", "grafting", about)


def _mean_pattern(pattern: Tensor) -> Tensor:
    """(N, N) in float64."""
    if not isinstance(pattern, Tensor) or pattern.ndim < 2 or pattern.shape[-1] != pattern.shape[-2]:
        shape = tuple(pattern.shape) if isinstance(pattern, Tensor) else type(pattern).__name__
        raise InputError(f"attention is (…, N, N), got {shape}")
    if not pattern.numel():
        raise InputError("attention over no tokens")
    x = pattern.detach().double()
    if not bool((x >= 0).all()) or float((x.sum(-1) - 1).abs().max()) > ROUNDING:
        raise InputError("a row of attention is not negative and sums to 1")
    return x.flatten(0, -3).mean(0) if x.ndim > 2 else x
