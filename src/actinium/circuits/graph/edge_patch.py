"""The effect of ablating each edge by itself, measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import xarray as xr
from rich.progress import Progress

from actinium.circuits.graph.circuit import CircuitGraph, task_provenance
from actinium.circuits.graph.wiring import MEMORY, Wiring
from actinium.circuits.patching.contrast import Metric
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["edge_patch"]

# Edges in one call of the wiring.
PIECE = 256


def edge_patch(
    model: Model,
    task: Task,
    edges: Iterable[str] | None = None,
    *,
    metric: str | Metric | None = None,
    ablation: str = "resample",
    reference: Any = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    progress: bool = False,
) -> CircuitGraph:
    """m(edge ablated) - m(full model) of each edge ablated alone, averaged over the prompts.

    Edges into one part run side by side, and only what lies above it is computed.

    Args:
        model: a pre-norm decoder; it is not changed.
        task: prompt pairs, padded on the left.
        edges: names of those that are measured, all by default.
        metric: name or function; the task's own by default.
        ablation, reference, batch_size, memory: as in `Wiring`.
        progress: show a progress bar.

    Returns:
        CircuitGraph: `score` is the effect, 0 of edges that were not measured; `kept` are those that were. `m_clean`
        and `m_corrupt` are the mean metric of the two runs.

    Raises:
        InputError: a value is not finite; no edge is named; as `Wiring`.
        UnknownNameError: there is no such edge.

    Source: Conmy et al., 2023, section 2; "exact" in Hanna et al., 2024.
    """
    wiring = Wiring(
        model, task, ablation=ablation, reference=reference, metric=metric, batch_size=batch_size, memory=memory
    )
    layout = wiring.layout
    chosen = torch.ones(layout.n_edges, dtype=torch.bool) if edges is None else layout.mask(edges)
    numbers = chosen.nonzero().flatten().tolist()
    if not numbers:
        raise InputError("no edge is named")
    score = torch.zeros(layout.n_edges, dtype=torch.float64)
    with Progress(transient=True, disable=not progress) as bar:
        for first in bar.track(range(0, len(numbers), PIECE), description="edge_patch"):
            some = numbers[first : first + PIECE]
            kept = torch.ones(len(some), layout.n_edges, dtype=torch.bool)
            kept[range(len(some)), some] = False
            score[some] = (wiring.run(kept) - wiring.clean).mean(1)
    if not bool(torch.isfinite(score).all()):
        edge = int((~torch.isfinite(score)).nonzero()[0])
        raise InputError(f"the metric without {layout.edges[edge]} is not finite")
    record = task_provenance(model, task, metric=wiring.metric, ablation=ablation, reference=reference)
    more = {
        "m_clean": xr.DataArray(float(wiring.clean.mean())),
        "m_corrupt": xr.DataArray(float(wiring.corrupt.mean())),
    }
    return CircuitGraph(layout, score, chosen, method="edge_patch", paper="acdc", provenance=record, more=more)
