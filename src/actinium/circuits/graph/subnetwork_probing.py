"""Subnetwork probing: a mask over edges or parts, learnt by gradient descent against its own size."""

from __future__ import annotations

import math
from typing import Any

import torch
import xarray as xr
from rich.progress import track
from torch import Tensor

from actinium.circuits.graph.circuit import CircuitGraph, pruned, task_provenance
from actinium.circuits.graph.edge_attribution import check_gradient
from actinium.circuits.graph.edge_gradients import check_finite
from actinium.circuits.graph.layout import Layout
from actinium.circuits.graph.wiring import Wiring
from actinium.circuits.patching.contrast import Metric, check_task, sign_of
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["hard_concrete", "subnetwork_probing"]

LEVELS = ("edge", "node")
# The hard concrete distribution: gates are stretched to this interval and clipped to [0, 1].
LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
START = 0.9
"""Gate at the start."""


def hard_concrete(log_alpha: Tensor, noise: Tensor | None = None) -> Tensor:
    """Gates in [0, 1] of the hard concrete distribution, 0 and 1 included.

    Args:
        log_alpha: location of each gate.
        noise: uniform in (0, 1), of the same shape; without it the gates of the distribution's middle.

    Source: Louizos et al., 2018, equations 10 and 11; Cao et al., 2021.
    """
    raw = log_alpha if noise is None else (noise.log() - (-noise).log1p() + log_alpha) / TEMPERATURE
    return (raw.sigmoid() * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """Probability that a gate is above 0 (Louizos et al., 2018, equation 12)."""
    return (log_alpha - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()


def subnetwork_probing(
    model: Model,
    task: Task,
    *,
    level: str = "edge",
    penalty: float = 10.0,
    lr: float = 0.1,
    epochs: int = 20,
    metric: str | Metric = "kl",
    ablation: str = "resample",
    reference: Any = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> CircuitGraph:
    """Learn a gate for each edge (or part) that keeps the metric while as few as possible are open.

    Adam minimises metric + penalty * mean probability that a gate is open, over draws of the gates. A gate of 0
    ablates, one between 0 and 1 does so in part. The metric enters as one to be minimised: divergence as it is, all
    others with their sign changed.

    Args:
        model: a pre-norm decoder; it is not changed.
        task: prompt pairs.
        level: "edge", or "node": one gate for all edges that leave a part.
        penalty: weight of the share of open gates, in units of the metric, 0 or more.
        lr: learning rate.
        epochs: passes over the prompts.
        metric, ablation, reference: as in `Wiring`.
        batch_size: rows of one update.
        seed: of the gates that are drawn.
        progress: show a progress bar.

    Returns:
        CircuitGraph: `score` is the probability that an edge's gate is open, `kept` are the edges whose gate is above
        1/2 in the middle of its distribution (with gates of parts, those of them on a path to the logits); `loss`,
        `metric` and `open_share` over `update`.

    Raises:
        InputError: a setting is out of range, the metric has no gradient, or a gradient is not finite; as `Wiring`.
        UnknownNameError: there is no such level or metric.

    Source: Cao et al., 2021; Conmy et al., 2023, section 4 (on edges, against corrupt activations).
    """
    check_task(model, task)
    if level not in LEVELS:
        raise UnknownNameError(unknown("level", str(level), LEVELS))
    check_gradient(metric)
    if not (penalty >= 0 and lr > 0 and epochs >= 1 and batch_size >= 1):
        raise InputError("penalty is 0 or more, lr above 0, epochs and batch_size 1 or more")
    options = {"metric": metric, "ablation": ablation, "reference": reference}
    wirings = [Wiring(model, task[i : i + batch_size], **options) for i in range(0, len(task), batch_size)]
    layout = Layout.of(model)
    senders = layout.pairs[:, 0]
    middle = (START - LOW) / (HIGH - LOW)
    count = layout.n_edges if level == "edge" else len(layout.senders)
    log_alpha = torch.full((count,), math.log(middle / (1 - middle)), dtype=torch.float64, requires_grad=True)
    adam, random = torch.optim.Adam([log_alpha], lr=lr), torch.Generator().manual_seed(seed)
    sign, history = -sign_of(metric), []
    updates = [wiring for _ in range(epochs) for wiring in wirings]
    for wiring in track(updates, description="subnetwork_probing", disable=not progress, transient=True):
        noise = torch.rand(count, generator=random, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        gates = hard_concrete(log_alpha, noise)
        value = sign * wiring.run(gates if level == "edge" else gates[senders]).mean()
        share = open_probability(log_alpha).mean()
        loss = value + penalty * share
        (log_alpha.grad,) = torch.autograd.grad(loss, log_alpha)
        check_finite("the gates", log_alpha.grad)
        adam.step()
        history.append([float(loss.detach()), sign * float(value.detach()), float(share.detach())])
    final = log_alpha.detach()
    kept = hard_concrete(final) > 0.5
    score = open_probability(final)
    if level == "node":
        # Edges into a part whose gate is closed lead nowhere.
        kept, score = pruned(layout, kept[senders]), score[senders]
    about = {"level": level, "penalty": penalty, "lr": lr, "epochs": epochs, "batch_size": batch_size}
    made = task_provenance(model, task, seed=seed, **options, **about)
    columns = zip(("loss", "metric", "open_share"), zip(*history, strict=True), strict=True)
    more = {name: xr.DataArray(list(values), dims=("update",)) for name, values in columns}
    return CircuitGraph(layout, score, kept, method="subnetwork_probing", paper="acdc", provenance=made, more=more)
