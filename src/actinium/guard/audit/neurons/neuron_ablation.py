"""Neurons put to zero while a model runs, and how far two models share theirs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import spearmanr
from torch import Tensor

from actinium.core.edits import Edit, Zero
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.guard.audit.neurons.neuron_sites import neuron_layers
from actinium.guard.audit.neurons.safety_neurons import SafetyNeurons

__all__ = ["ablate_neurons", "neuron_overlap", "strongest_neurons"]

PAPER = "neurostrike-audit"


def strongest_neurons(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """The neurons of largest score, as many at each site as `counts` says: {site: (k,)}."""
    return {name: scores[name].topk(k).indices.sort().values for name, k in counts.items()}


def neuron_edits(
    neurons: SafetyNeurons | Mapping[str, Any], blocks: Iterable[int] | None = None, layers: Mapping[str, int] = {}
) -> dict[str, Edit]:
    """{site: edit that puts zeros at its neurons}, of sites that have any and lie in `blocks` (all by default)."""
    named = neurons.indices if isinstance(neurons, SafetyNeurons) else neurons
    where = neurons.layers if isinstance(neurons, SafetyNeurons) else layers
    wanted = None if blocks is None else set(blocks)
    out: dict[str, Edit] = {}
    for name, units in named.items():
        listed = [int(u) for u in units]
        if listed and (wanted is None or where[name] in wanted):
            out[name] = Zero().at(units=listed)
    return out


@contextmanager
def ablate_neurons(
    model: Model, neurons: SafetyNeurons | Mapping[str, Any], blocks: Iterable[int] | None = None
) -> Iterator[Model]:
    """Put zeros at neurons, for all tokens, in every call within the block; then everything is as before.

    With act(0) = 0 (SiLU, GELU, ReLU) a zeroed gate takes its neuron out of the sum, as zeros in the column of the down
    projection would.

    Args:
        model: the model.
        neurons: those found, or {site: indices}; none means no change, to the last bit.
        blocks: ablate in these blocks only, such as `range(i + 1)` for the first to the i-th.

    Raises:
        InputError: an index is beyond a site's size.
        SiteError: a site does not exist.

    Source: Wu et al., 2026, NeuroStrike, white-box step 2.
    """
    given = isinstance(neurons, SafetyNeurons) or blocks is None or not neurons
    where = {} if given else neuron_layers(model, list(neurons))
    edits = neuron_edits(neurons, blocks, where)
    with model.edit(edits) if edits else nullcontext():
        yield model


def neuron_overlap(parent: SafetyNeurons, child: SafetyNeurons) -> Result:
    """How far two models of one architecture, such as a model and its fine-tuned child, share their neurons.

    Args:
        parent, child: neurons found at the same sites.

    Returns:
        Result over site: `jaccard` of the chosen neurons (NaN where neither has any), `spearman` of the probe weights,
        and the numbers chosen: `parent`, `child`, `both`.

    Raises:
        InputError: the sites or their sizes differ.

    Source: Wu et al., 2026, NeuroStrike (transfer to fine-tuned and distilled models).
    """
    sizes = [{name: len(w) for name, w in one.weights.items()} for one in (parent, child)]
    if sizes[0] != sizes[1]:
        raise InputError("neurons can be compared between models with the same sites and widths only")
    table: dict[str, list[float]] = {name: [] for name in ("jaccard", "spearman", "parent", "child", "both")}
    for name, w in parent.weights.items():
        one, other = (set(n.indices[name].tolist()) for n in (parent, child))
        union = len(one | other)
        table["jaccard"].append(len(one & other) / union if union else float("nan"))
        table["spearman"].append(float(spearmanr(w, child.weights[name]).statistic))
        for key, value in (("parent", len(one)), ("child", len(other)), ("both", len(one & other))):
            table[key].append(value)
    data = xr.Dataset({k: ("site", np.asarray(v)) for k, v in table.items()}, coords={"site": list(sizes[0])})
    record = provenance(None, [parent.weights, parent.indices, child.weights, child.indices])
    return Result(data, "neuron_overlap", PAPER, record)
