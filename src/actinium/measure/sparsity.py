"""Activation sparsity: the share of units that are at work at each position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.reducers import Context, feature_rows
from actinium.core.result import Result
from actinium.measure.streaming import as_result, choose, padded, ready, stream

__all__ = ["activation_ratio", "activation_sparsity", "fat_sparsity", "topk_sparsity"]


def activation_ratio(a: Tensor, eps: float = 0.0) -> float:
    """Share of the entries of `a` with a magnitude above `eps`; sparsity is 1 minus this."""
    if a.numel() == 0:
        raise InputError("the activation ratio of no values is not defined")
    return float((a.abs() > eps).double().mean())


def fat_sparsity(a: Tensor, eps: float) -> Tensor:
    """`a` with the entries below a fixed threshold set to zero, |a| < eps.

    Source: FAT-eps in Luo et al., 2024.
    """
    if eps < 0:
        raise InputError(f"eps must not be negative, got {eps}")
    return torch.where(a.abs() < eps, 0.0, a)


def topk_sparsity(a: Tensor, ratio: float) -> Tensor:
    """`a` with all but the largest magnitudes of each row set to zero.

    Args:
        a: (..., units).
        ratio: share of the units to keep, rounded to a number k of them. Ties go to the lower index.

    Returns:
        same shape.

    Raises:
        InputError: ratio outside [0, 1].

    Source: Li et al., 2023, The lazy neuron phenomenon (per position); Luo et al., 2024 (baseline).
    """
    if not 0 <= ratio <= 1:
        raise InputError(f"ratio must be in [0, 1], got {ratio}")
    k = round(ratio * a.shape[-1])
    if k == 0:
        return torch.zeros_like(a)
    size = a.abs()
    smallest = size.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, ties = size > smallest, size == smallest
    kept = above | (ties & (ties.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
    return torch.where(kept, a, 0.0)


class KeptUnits:
    """Share of the units above `eps`: at each position, of each unit, and anywhere in a row."""

    wants_context: ClassVar[bool] = True

    def __init__(self, eps: float = 0.0) -> None:
        self.eps = eps
        self.units = torch.zeros(())
        self.count = 0
        self.per_row: list[Tensor] = []
        self.union: list[float] = []

    def update(self, values: Tensor, context: Context) -> None:
        rows, which, _ = feature_rows(values, context)
        on = rows.abs() > self.eps
        self.units = self.units + on.sum(0).cpu()
        self.count += len(rows)
        shares = on.float().mean(1).cpu()
        for row in range(len(values)):
            mine = which == row
            self.per_row.append(shares[mine.cpu()])
            self.union.append(float(on[mine].any(0).float().mean()))

    def result(self) -> KeptUnits:
        if not self.count:
            raise InputError("no positions were recorded")
        return self

    @property
    def ratio(self) -> float:
        """Mean over positions and units."""
        return float(self.units.double().mean() / self.count)


def activation_sparsity(
    model: Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    eps: float = 0.0,
    batch_size: int | None = 8,
    progress: bool = False,
) -> Result:
    """Share of the units at work, by layer, position and unit.

    Args:
        model: the model.
        inputs: texts, tokens or images.
        at: sites; the output of each block's non-linearity (of a gated MLP: the gated product) by default,
            without blocks every non-linearity.
        eps: a unit is at work where its magnitude is above this. With 0 only exact zeros count as sparse,
            which smooth non-linearities do not have; see `ppl_p_sparsity` for those.
        batch_size: rows per pass.
        progress: show a progress bar.

    Returns:
        by layer: `ratio` (mean share of the units), `sparsity` (1 - ratio), `ratio_std`, `ratio_min`,
        `ratio_max` over positions, `union` (share of the units at work anywhere in a row, mean over rows); by
        layer and unit: `frequency`.

    Raises:
        InputError, SiteError: nothing to read.

    Source: Li et al., 2023, The lazy neuron phenomenon.
    """
    if eps < 0:
        raise InputError(f"eps must not be negative, got {eps}")
    inputs, layers = ready(model, inputs), choose(model, "mlp.post", at)
    found: list[KeptUnits] = stream(model, inputs, layers, KeptUnits(eps), batch_size, progress)
    positions = [torch.cat(f.per_row).double() for f in found]
    one = (layers.dim,)
    ratio = np.array([f.ratio for f in found])
    variables: dict[str, Any] = {
        "ratio": (one, ratio),
        "sparsity": (one, 1 - ratio),
        "ratio_std": (one, [float(p.std(correction=0)) for p in positions]),
        "ratio_min": (one, [float(p.min()) for p in positions]),
        "ratio_max": (one, [float(p.max()) for p in positions]),
        "union": (one, [float(np.mean(f.union)) for f in found]),
        "frequency": ((layers.dim, "unit"), padded([f.units.double() / f.count for f in found])),
    }
    hints = {"variables": ["ratio", "union"], "ylabel": "share of units"}
    return as_result(
        model,
        inputs,
        "activation_sparsity",
        variables,
        layers.coords,
        paper="sparsing-law",
        plot=hints,
        at=layers.names,
        eps=eps,
    )
