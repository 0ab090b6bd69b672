"""Units that never fire, and units that always do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.measure.streaming import Layers, as_result, choose, padded, ready, stream

__all__ = ["dead_units", "firing_frequency", "saturated_share", "saturated_units"]


def firing_frequency(values: Tensor, eps: float = 0.0) -> Tensor:
    """Share of the rows (n, units) at which each unit's magnitude is above `eps`: (units,) float64."""
    if values.ndim != 2 or len(values) == 0:
        raise InputError(f"expected (n, units) with n >= 1, got {tuple(values.shape)}")
    return (values.abs() > eps).double().mean(0)


def saturated_share(values: Tensor, low: float, high: float, tol: float = 0.05) -> Tensor:
    """Share of the rows (n, units) at which each unit is within `tol` of a bound.

    Args:
        values: outputs of a bounded non-linearity, (n, units).
        low, high: its bounds, for example -1 and 1 for tanh.
        tol: distance from a bound that counts, as a share of high - low.

    Returns:
        (units,) float64.

    Raises:
        InputError: no rows, or low >= high.

    Source: Rakitianskaia and Engelbrecht, 2015 (share of outputs near the asymptotes).
    """
    if values.ndim != 2 or len(values) == 0 or low >= high:
        raise InputError(f"expected (n, units) with n >= 1 and low < high, got {tuple(values.shape)}, {low}, {high}")
    near = tol * (high - low)
    return ((values <= low + near) | (values >= high - near)).double().mean(0)


class _Share:
    """Share of the positions at which a unit satisfies a test, and its largest magnitude."""

    def __init__(self, low: float, high: float, outside: bool) -> None:
        self.low, self.high, self.outside = low, high, outside
        self.count = self.peak = torch.zeros(())
        self.n = 0

    def update(self, values: Tensor) -> None:
        hit = (values < self.low) | (values > self.high) if self.outside else values > self.high
        self.count = self.count + hit.sum(0)
        if len(values):
            self.peak = torch.maximum(self.peak.to(values.device), values.abs().amax(0))
        self.n += len(values)

    def result(self) -> tuple[Tensor, Tensor]:
        return self.count.cpu().double() / self.n, self.peak.cpu().double()


def dead_units(
    model: Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    eps: float = 0.0,
    min_share: float = 0.001,
    quiet: float = 0.01,
    batch_size: int | None = 8,
    progress: bool = False,
) -> Result:
    """How often each unit fires, and which ones (almost) never do.

    Args:
        model: the model.
        inputs: texts, tokens or images; a share of 0.001 needs some thousand positions to be seen.
        at: sites; the output of each block's non-linearity (input of the down projection) by default, without
            blocks every non-linearity.
        eps: a unit fires where its magnitude is above this; 0 suits ReLU, whose zeros are exact.
        min_share: a unit that fires at a smaller share of the positions is dead.
        quiet: a unit whose largest magnitude is below this share of its layer's median one is quiet. This
            tells silent units of smooth non-linearities, which are never exactly zero.
        batch_size: rows per pass.
        progress: show a progress bar.

    Returns:
        by layer: `dead` and `quiet` (shares of the units), `units`; by layer and unit: `frequency`, `peak`.

    Raises:
        InputError, SiteError: nothing to read.

    Source: Luo et al., 2024, Sparsing Law (dead: activated on less than 0.1 % of the tokens). `quiet` is ours.
    """
    inputs, layers = ready(model, inputs), choose(model, "mlp.post", at)
    found = stream(model, inputs, layers, _Share(-eps, eps, outside=True), batch_size, progress)
    frequency, peaks = [f for f, _ in found], [p for _, p in found]
    one, two = (layers.dim,), (layers.dim, "unit")
    variables: dict[str, Any] = {
        "dead": (one, [float((f < min_share).double().mean()) for f in frequency]),
        "quiet": (one, [float((p < quiet * p.nanmedian()).double().mean()) for p in peaks]),
        "units": (one, [len(f) for f in frequency]),
        "frequency": (two, padded(frequency)),
        "peak": (two, padded(peaks)),
    }
    hints = {"variables": ["dead", "quiet"], "kind": "bar", "ylabel": "share of units"}
    return as_result(
        model,
        inputs,
        "dead_units",
        variables,
        layers.coords,
        paper="sparsing-law",
        plot=hints,
        at=layers.names,
        eps=eps,
        min_share=min_share,
        quiet=quiet,
    )


def saturated_units(
    model: Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    tol: float = 0.05,
    min_share: float | None = None,
    batch_size: int | None = 8,
    progress: bool = False,
) -> Result:
    """Units that are always on (rectifiers), or always near a bound (tanh, sigmoid).

    Args:
        model: the model.
        inputs: texts, tokens or images.
        at: sites. Without bounds: what goes into the non-linearity, by default each block's `mlp.gate` (gated
            MLP) or `mlp.pre`. With bounds: what comes out of it.
        bounds: (low, high) of a bounded non-linearity. None for ReLU and its smooth relatives: a unit whose
            input is positive everywhere is a linear unit.
        tol: distance from a bound that counts as saturated, as a share of high - low.
        min_share: a unit is saturated from this share of the positions on; 0.999 without bounds, 0.95 with
            them.
        batch_size: rows per pass.
        progress: show a progress bar.

    Returns:
        by layer: `saturated` (share of the units), `units`; by layer and unit: `share` of the positions.

    Raises:
        InputError, SiteError: nothing to read, or bounds that are not low < high.

    Source: Rakitianskaia and Engelbrecht, 2015, for bounded non-linearities. The limits are ours.
    """
    if bounds is not None and not bounds[0] < bounds[1]:
        raise InputError(f"bounds must be (low, high) with low < high, got {bounds}")
    inputs = ready(model, inputs)
    layers = _before_non_linearity(model) if at is None and bounds is None else choose(model, "mlp.post", at)
    if bounds is None:
        limit, test = 0.999, _Share(0.0, 0.0, outside=False)
    else:
        near = tol * (bounds[1] - bounds[0])
        # `_Share` counts strictly outside; a value exactly at the edge of the band counts as saturated too.
        low, high = np.nextafter(bounds[0] + near, np.inf), np.nextafter(bounds[1] - near, -np.inf)
        limit, test = 0.95, _Share(float(low), float(high), outside=True)
    limit = limit if min_share is None else min_share
    found = [share for share, _ in stream(model, inputs, layers, test, batch_size, progress)]
    variables: dict[str, Any] = {
        "saturated": ((layers.dim,), [float((s >= limit).double().mean()) for s in found]),
        "units": ((layers.dim,), [len(s) for s in found]),
        "share": ((layers.dim, "unit"), padded(found)),
    }
    hints = {"variables": ["saturated"], "kind": "bar", "ylabel": "share of units"}
    return as_result(
        model,
        inputs,
        "saturated_units",
        variables,
        layers.coords,
        plot=hints,
        at=layers.names,
        bounds=bounds,
        tol=tol,
        min_share=limit,
    )


def _before_non_linearity(model: Model) -> Layers:
    """Inputs of the non-linearities: gates of gated MLPs, else `mlp.pre`, else of the modules themselves."""
    parts = {s.part for s in model.sites() if s.layer is not None}
    if parts:
        return choose(model, "mlp.gate" if "mlp.gate" in parts else "mlp.pre")
    names = [name.replace("module:", "module_in:", 1) for name in choose(model, "mlp.post").names]
    return Layers(names, "site", names)
