"""Head importance (HISP): parts ranked by how far the other run's output would move the metric, to first order."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.graph.circuit import CircuitGraph, belongs, task_provenance
from actinium.circuits.graph.edge_attribution import ZERO_AT_CLEAN, check_gradient
from actinium.circuits.graph.edge_gradients import Reader, check_finite
from actinium.circuits.patching.contrast import Contrast, Metric, Scorer, check_task, contrasts
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["head_importance"]


def head_importance(
    model: Model,
    task: Task,
    *,
    metric: str | Metric | None = None,
    normalise: bool = False,
    batch_size: int | None = None,
) -> CircuitGraph:
    """Importance of every head and MLP, and of an edge as the smaller one of the two parts that it joins.

    The importance of a part is the mean over prompts of |<a(x') - a(x), dm/da(x)>|, with a its output in the clean run
    x and the corrupt one x'. So the circuit of a threshold has the edges between the parts above it.

    Args:
        model: a pre-norm decoder; it is not changed.
        task: prompt pairs.
        metric: name or function; the task's own by default.
        normalise: divide by the root of the summed squares over the parts of a block.
        batch_size: rows in a pass, all by default.

    Returns:
        CircuitGraph with every edge kept; the input and the logits count as infinitely important. `importance` holds
        that of each sender over `part`, of the input what was measured.

    Raises:
        InputError: the model's edges are not known, or the metric has no gradient in the clean run.
        UnknownNameError: there is no such metric.

    Source: Michel et al., 2019, equation 2; Conmy et al., 2023, section 4 and appendix (against corrupt activations).
    """
    check_task(model, task)
    chosen = task.metric if metric is None else metric
    check_gradient(chosen)
    if chosen == "kl":
        raise InputError(f"{ZERO_AT_CLEAN}; use logit_diff")
    reader = Reader(model)
    (batches,) = contrasts(model, task, None, 0, batch_size)
    layout = reader.layout
    importance = torch.cat([_rows(reader, contrast, chosen) for contrast in batches], 1).mean(1)
    if normalise:
        blocks = importance[1:].view(layout.n_layers, -1)
        importance[1:] = (blocks / blocks.norm(dim=1, keepdim=True).clamp_min(1e-30)).flatten()
    ranked = importance.clone()
    ranked[0] = torch.inf
    into = torch.where(belongs(layout), ranked[:, None], 0.0).amax(0)
    into[-1] = torch.inf
    scores = torch.minimum(ranked[:, None], into[None])
    made = task_provenance(model, task, metric=chosen, normalise=normalise)
    names = [s.name for s in layout.senders]
    more: dict[str, Any] = {"importance": xr.DataArray(importance.numpy(), coords={"part": names}, dims=("part",))}
    return CircuitGraph(layout, scores, method="head_importance", paper="acdc", provenance=made, more=more)


def _rows(reader: Reader, contrast: Contrast, metric: Any) -> Tensor:
    """(sender, row) float64."""
    own, other = reader.run(contrast.clean, grad=True), reader.run(contrast.corrupt).parts
    score = Scorer(metric, contrast.answer_ids, contrast.wrong_ids, own.logits.detach())
    score.run(own.logits.detach(), "clean")
    places = list(own.written)
    found = torch.autograd.grad(score(own.logits).sum(), [own.written[p] for p in places], allow_unused=True)
    gradient = dict(zip(places, found, strict=True))
    real = contrast.tokens.mask.to(own.logits.device)

    def product(place: str, a: Tensor, b: Tensor) -> Tensor:
        g = gradient[place]
        g = torch.zeros_like(a) if g is None else g.reshape(a.shape)
        check_finite(place, g)
        values = ((b - a).double() * g.double()).sum(-1)
        values = torch.where(real.view(*real.shape, *[1] * (values.ndim - 2)), values, 0.0)
        return values.sum(1).abs()

    out = [product("start", own.parts.start, other.start)[None]]
    for i, pairs in enumerate(zip(own.parts.heads, other.heads, own.parts.mlps, other.mlps, strict=True)):
        out += [product(f"heads {i}", *pairs[:2]).T, product(f"mlp {i}", *pairs[2:])[None]]
    return torch.cat(out).cpu()
