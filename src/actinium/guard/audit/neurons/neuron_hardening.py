"""Against guards that hang on few neurons: how concentrated the weights are, and dropout while the guard is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.concentration import gini as gini_of
from actinium.core.edit import Edit, Where
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.guard.audit.neurons.safety_neurons import SafetyNeurons

__all__ = ["concentration", "gini", "neuron_dropout", "participation_ratio"]

PAPER = "neurostrike-audit"


def _sizes(weights: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    values = np.asarray(weights.detach().cpu() if isinstance(weights, Tensor) else weights, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(f"weights are finite numbers (f,), not of shape {values.shape}")
    return np.maximum(values, 0)


def participation_ratio(weights: Any) -> float:
    """(sum w+)^2 / sum (w+)^2 of positive weights: k for k equal ones, 0 where there is none.

    Args:
        weights: (f,); those below 0 count as 0.

    Raises:
        InputError: not finite, or not of one dimension.
    """
    w = _sizes(weights)
    return float(w.sum() ** 2 / (w**2).sum()) if w.any() else 0.0


def gini(weights: Any) -> float:
    """Gini coefficient of positive weights: 0 where all are equal, 1 - 1/f where one holds everything.

    Args:
        weights: (f,); those below 0 count as 0. NaN where none is above.

    Raises:
        InputError: not finite, or not of one dimension.

    Source: Gini, 1912.
    """
    return gini_of(_sizes(weights))


def concentration(neurons: SafetyNeurons) -> Result:
    """How concentrated the probe's positive weights are; a guard that is spread out has a low Gini coefficient.

    Args:
        neurons: what was found.

    Returns:
        Result over site: `gini`, `participation_ratio`, and `share`, the participation ratio over the number of
        neurons.
    """
    sites = list(neurons.weights)
    ratio = np.array([participation_ratio(neurons.weights[s]) for s in sites])
    width = np.array([len(neurons.weights[s]) for s in sites])
    found = {"gini": np.array([gini(neurons.weights[s]) for s in sites]), "participation_ratio": ratio}
    data = xr.Dataset({k: ("site", v) for k, v in (found | {"share": ratio / width}).items()}, coords={"site": sites})
    return Result(data, "concentration", PAPER, provenance(None, neurons.weights))


class _Drop(Edit):
    """Zeros at units of a row, each with a probability of its own draw in every pass."""

    def __init__(self, p: float, random: torch.Generator) -> None:
        super().__init__()
        self.p, self.random = p, random

    def change(self, x: Tensor, where: Where) -> Tensor:
        shape = (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])
        return x * (torch.rand(shape, generator=self.random) >= self.p).to(x)


@contextmanager
def neuron_dropout(
    model: Model, neurons: SafetyNeurons | Mapping[str, Any], p: float = 0.5, seed: int = 0
) -> Iterator[Model]:
    """Take out safety neurons at random while a guard is trained, so that it comes to stand on others too.

    Each neuron of each row of a batch is zero at all tokens with probability p, drawn anew in every pass; what is left
    is not scaled up, as it is not by an ablation either. Train the module as usual within the block.

    Args:
        model: the model in training.
        neurons: those found, or {site: indices}.
        p: probability, from 0 to 1.
        seed: of the draws.

    Raises:
        InputError: p is out of range, or an index is beyond a site's size.
    """
    if not 0 <= p <= 1:
        raise InputError(f"p is a probability, not {p}")
    named = neurons.indices if isinstance(neurons, SafetyNeurons) else neurons
    random = torch.Generator().manual_seed(seed)
    edits = {site: _Drop(p, random).at(units=[int(u) for u in units]) for site, units in named.items() if len(units)}
    with model.edit(edits) if edits else nullcontext():
        yield model
