"""NaN and infinite values: in the weights, and the first place of the forward pass where they appear."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.measure.streaming import ready

__all__ = ["not_finite"]


class _Count:
    """Values, NaN values and infinite values."""

    def __init__(self) -> None:
        self.count = self.nan = self.inf = 0

    def update(self, values: Tensor) -> None:
        self.count += values.numel()
        self.nan += int(values.isnan().sum())
        self.inf += int(values.isinf().sum())

    def result(self) -> tuple[int, int, int]:
        return self.count, self.nan, self.inf


def not_finite(model: Model, inputs: Any, modules: dict[str, int], batch_size: int) -> Result:
    """Count NaN and infinite values along the forward pass.

    Args:
        model: the model. With blocks, the residual stream after each and the logits are read, and every site of
            the first block that holds such values; without, the output of every module that has no children.
        inputs: what `record` takes.
        modules: paths of the modules that run, in that order, with how often.
        batch_size: rows per pass.

    Returns:
        by site, in the order of computation: `nan`, `inf`, `count`; by weight: `weight_nan`, `weight_inf` (only
        of weights that have some).
    """
    prepared = ready(model, inputs)
    coarse = _coarse(model, modules)
    found = _counts(model, prepared, coarse, batch_size)
    bad = next((name for name in coarse if sum(found[name][1:])), None)
    fine = _before(model, coarse, bad) if bad is not None and model.n_layers else []
    if fine:
        found |= _counts(model, prepared, fine, batch_size)
    order = [s.name for s in model.sites() if s.name in found] if model.n_layers else coarse
    weights = {
        name: (int(p.isnan().sum()), int(p.isinf().sum()))
        for name, p in model.module.named_parameters()
        if p.is_floating_point() and not bool(torch.isfinite(p).all())
    }
    variables = {
        "nan": (("site",), [found[name][1] for name in order]),
        "inf": (("site",), [found[name][2] for name in order]),
        "count": (("site",), [found[name][0] for name in order]),
        "weight_nan": (("weight",), np.array([n for n, _ in weights.values()], dtype=int)),
        "weight_inf": (("weight",), np.array([n for _, n in weights.values()], dtype=int)),
    }
    coords = {"site": order, "weight": np.array(list(weights), dtype=str)}
    return Result(xr.Dataset(variables, coords), "report.not_finite", None, provenance(model, prepared, at=order))


def _coarse(model: Model, modules: dict[str, int]) -> list[str]:
    if model.n_layers:
        wanted = ("embed", "resid_post", "logits")
        return [s.name for s in model.sites() if s.part in wanted]
    return [f"module:{path}" for path in modules]


def _before(model: Model, coarse: list[str], bad: str) -> list[str]:
    """Sites between the last finite one that was read and the first that is not.

    Scores are left out: masked ones are minus infinity by design.
    """
    names = [s.name for s in model.sites()]
    place = coarse.index(bad)
    start = names.index(coarse[place - 1]) + 1 if place else 0
    parts = {s.name: s.part for s in model.sites()}
    return [n for n in names[start : names.index(bad)] if not parts[n].endswith("scores")]


def _counts(model: Model, inputs: Any, names: list[str], batch_size: int) -> dict[str, tuple[int, int, int]]:
    rec = model.record(inputs, names, reduce=_Count(), batch_size=batch_size)
    return {name: rec[name] for name in names}
