"""Edge attribution: the effect of ablating each edge estimated from gradients, for all edges in a few passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import xarray as xr
from rich.progress import Progress, track
from torch import Tensor

from actinium.circuits.graph.circuit import CircuitGraph, task_provenance
from actinium.circuits.graph.edge_gradients import Parts, Reader, Run, check_finite, exact
from actinium.circuits.graph.edge_patch import edge_patch
from actinium.circuits.graph.layout import Layout
from actinium.circuits.graph.wiring import ABLATIONS, Wiring
from actinium.circuits.patching.contrast import Contrast, Metric, Scorer, check_task, contrasts
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.metrics import get_metric
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["ZERO_AT_CLEAN", "check_gradient", "edge_attribution"]

METHODS = ("eap", "eap-ig-inputs", "eap-ig-activations", "clean-corrupted", "mask-gradient", "exact")
INTEGRATED = ("eap-ig-inputs", "eap-ig-activations", "mask-gradient")
WITHOUT_GRADIENT = ("rank", "accuracy")
ZERO_AT_CLEAN = "the divergence from the clean run has gradient 0 in that run, so every score would be 0"
# Most numbers that the tensors of one pass may hold (4 bytes each).
IN_FLIGHT = 2**28


def edge_attribution(
    model: Model,
    task: Task,
    *,
    method: str = "eap",
    steps: int = 5,
    metric: str | Metric | None = None,
    ablation: str = "resample",
    reference: Any = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> CircuitGraph:
    """An estimate of m(edge ablated) - m(full model) for every edge, averaged over the prompts.

    The score of an edge is <a' - a, dm/d input of the receiver>, with a the sender's output in the clean run and a'
    what takes its place; the methods differ in where the gradient is taken.

    Args:
        model: a pre-norm decoder; it is not changed.
        task: prompt pairs.
        method: "eap" (the clean run: two forward passes and a backward one); "eap-ig-inputs" (mean over `steps` points
            between the corrupt and the clean embeddings, the clean end left out); "eap-ig-activations" (mean over
            `steps` points, the clean end included, for the embedding, each block's heads and each MLP in turn);
            "clean-corrupted" (mean of the two runs); "mask-gradient" (mean over `steps` + 1 points from nothing to
            everything ablated, with the mask on every edge; with `steps=0` equal to "eap"); "exact" (each edge ablated
            by itself: as many passes as edges).
        steps: points of the integrated methods, 1 or more (0 or more for "mask-gradient").
        metric: name or function; the task's own by default.
        ablation: "resample" (the corrupt run's activations), "zero" or "mean". The input is the stream that enters the
            first block.
        reference: of the mean: texts, Tokens or a Task.
        batch_size: rows in a pass; by default as many as fit into about 1 GB.
        progress: show a progress bar.

    Returns:
        CircuitGraph with every edge kept, and `m_clean` and `m_corrupt`: the mean metric of the two runs (without the
        corrupt one where nothing runs it).

    Raises:
        InputError: the model's edges are not known; the metric has no gradient, or none at the point where it is taken
            (the divergence from the clean run in that run); a method that knows the corrupt run only gets another
            ablation; a gradient is not finite.
        UnknownNameError: there is no such method, ablation or metric.

    Source: Syed et al., 2023 (EAP); Hanna et al., 2024 (EAP-IG); Conmy et al., 2023 (edges).
    """
    check_task(model, task)
    chosen = task.metric if metric is None else metric
    _check(method, steps, chosen, ablation, reference)
    about = {"method": method, "metric": chosen, "ablation": ablation, "reference": reference}
    if method in INTEGRATED:
        about["steps"] = steps
    if method == "exact":
        found = edge_patch(
            model, task, metric=chosen, ablation=ablation, reference=reference, batch_size=batch_size, progress=progress
        )
        scores, more = found.scores, {name: float(found[name]) for name in ("m_clean", "m_corrupt")}
    elif method == "mask-gradient":
        wiring = Wiring(model, task, metric=chosen, ablation=ablation, reference=reference, batch_size=batch_size)
        scores, more = _mask_gradient(wiring, steps, progress)
    else:
        scores, more = _Attribution(model, task, method, steps, chosen, ablation, reference).run(batch_size, progress)
    made = task_provenance(model, task, **about)
    more = {name: xr.DataArray(value) for name, value in more.items()}
    return CircuitGraph(Layout.of(model), scores, method=method, paper="acdc", provenance=made, more=more)


def check_gradient(metric: Any) -> None:
    """Refuse metrics that are constant almost everywhere.

    Raises:
        InputError: it is one.
        UnknownNameError: there is no such metric.
    """
    get_metric(metric)
    if metric in WITHOUT_GRADIENT:
        raise InputError(f"{metric} has no gradient; use logit_diff, logprob or prob")


def _check(method: str, steps: int, metric: Any, ablation: str, reference: Any) -> None:
    if method not in METHODS:
        raise UnknownNameError(unknown("method", str(method), METHODS))
    if ablation not in ABLATIONS:
        raise UnknownNameError(unknown("ablation", str(ablation), ABLATIONS))
    if method != "exact":
        check_gradient(metric)
    least = 0 if method == "mask-gradient" else 1
    if steps < least:
        raise InputError(f"steps must be at least {least}, not {steps}")
    if metric == "kl" and (method == "eap" or (method == "mask-gradient" and not steps)):
        raise InputError(f'{ZERO_AT_CLEAN}; use logit_diff, or method="eap-ig-inputs"')
    if ablation != "resample" and method in ("eap-ig-inputs", "clean-corrupted"):
        raise InputError(f'{method} takes gradients in the corrupt run, so ablation is "resample", not "{ablation}"')
    if (ablation == "mean") != (reference is not None):
        raise InputError('ablation="mean" needs a reference set (texts, Tokens or a Task), and nothing else takes one')


class _Attribution:
    """The passes of the methods that need no wiring."""

    def __init__(
        self, model: Model, task: Task, method: str, steps: int, metric: Any, ablation: str, reference: Any
    ) -> None:
        self.reader, self.task = Reader(model), task
        self.method, self.steps, self.metric, self.ablation = method, steps, metric, ablation
        self.mean = self._means(reference) if ablation == "mean" else None
        layout = self.reader.layout
        self.total = torch.zeros(len(layout.senders), len(layout.receivers), dtype=torch.float64, device=model.device)
        self.values: dict[str, list[Tensor]] = {"m_clean": [], "m_corrupt": []}

    def run(self, batch_size: int | None, progress: bool) -> tuple[Tensor, dict[str, float]]:
        """Scores (sender, receiver), and the mean metric of the two runs."""
        model, task = self.reader.model, self.task
        (batches,) = contrasts(model, task, None, 0, self._rows() if batch_size is None else batch_size)
        with Progress(transient=True, disable=not progress) as bar:
            for contrast in bar.track(batches, description=self.method):
                self._batch(contrast)
        means = {name: float(torch.cat(each).double().mean()) for name, each in self.values.items() if each}
        return self.total / len(task), means

    def _size(self) -> int:
        """Numbers that a pass over one row holds, roughly."""
        tower, layout = self.reader.model.tower, self.reader.layout
        pos = self.task.mask.shape[1]
        block = 12 * tower.d_model + 4 * (tower.d_mlp or 4 * tower.d_model) + 2 * layout.n_heads * pos
        return pos * (layout.n_layers * block + 3 * layout.n_heads * tower.d_model)

    def _rows(self) -> int:
        """Rows of a batch: differences of all senders and one pass fit."""
        written = len(self.reader.layout.senders) * self.task.mask.shape[1] * self.reader.model.d_model
        return max(1, IN_FLIGHT // (written + self._size()))

    def _batch(self, contrast: Contrast) -> None:
        """Add the scores of some rows."""
        clean, rows = contrast.clean, len(contrast.clean)
        eap = self.method in ("eap", "clean-corrupted")
        own = self.reader.run(clean, grad=eap)
        score = Scorer(self.metric, contrast.answer_ids, contrast.wrong_ids, own.logits.detach())
        self.values["m_clean"].append(score.run(own.logits.detach(), "clean").cpu())
        if self.method == "eap-ig-inputs":
            self._inputs(contrast, own, score)
            return
        other = self._other(contrast, own, score)
        step = self._step(contrast, other.parts, own.parts)
        if eap:
            share = 1.0 if self.method == "eap" else 0.5
            self._add(own, score, step, share)
            if self.method == "clean-corrupted":
                self._add(other, score, step, share)
            return
        groups = ["start", *(f"{kind} {i}" for i in range(self.reader.layout.n_layers) for kind in ("heads", "mlp"))]
        for group in groups:
            ends = _part(own.parts, group), _part(other.parts, group)
            for points in self._points(range(1, self.steps + 1), rows):
                held = {group: self._between(*ends, points)}
                run = self.reader.run(clean, held=held, grad=True, repeat=len(points))
                self._add(run, score, step, 1 / (self.steps * len(groups)))

    def _inputs(self, contrast: Contrast, own: Run, score: Scorer) -> None:
        """Points between the corrupt embeddings (the corrupt run itself) and the clean ones."""
        rows = len(contrast.clean)
        step = None
        start = self.reader.start(contrast.corrupt)
        for points in self._points(range(self.steps), rows):
            held = {"start": self._between(own.parts.start, start, points)}
            run = self.reader.run(contrast.clean, held=held, grad=True, repeat=len(points))
            if step is None:
                self.values["m_corrupt"].append(score.run(run.logits[:rows].detach(), "corrupt").cpu())
                step = self._step(contrast, run.parts[:rows], own.parts)
            self._add(run, score, step, 1 / self.steps)

    def _step(self, contrast: Contrast, other: Parts, own: Parts) -> Tensor:
        """(sender, row, column, d_model): what ablation changes in what is written, from the first changed column."""
        first = 0
        if self.ablation == "resample":
            differ = ((contrast.clean.ids != contrast.corrupt.ids) & contrast.clean.mask).any(0)
            first = int(differ.int().argmax())
        return self.reader.differences(other.map(torch.sub, own), contrast.tokens.mask, first)

    def _between(self, own: Tensor, other: Tensor, points: list[int]) -> Tensor:
        """Points on the line from the other run's activations to the run's own, as rows below each other."""
        return torch.cat([other + k / self.steps * (own - other) for k in points])

    def _points(self, points: range, rows: int) -> Iterator[list[int]]:
        """As many points in one pass as fit beside each other."""
        n = max(1, IN_FLIGHT // (self._size() * rows))
        for first in range(0, len(points), n):
            yield list(points[first : first + n])

    def _other(self, contrast: Contrast, own: Run, score: Scorer) -> Run:
        """What takes the place of the clean run's activations."""
        if self.ablation == "resample":
            run = self.reader.run(contrast.corrupt, grad=self.method == "clean-corrupted")
            self.values["m_corrupt"].append(score.run(run.logits.detach(), "corrupt").cpu())
            return run
        if self.mean is None:
            return Run(own.logits, own.parts.map(lambda a, _: torch.zeros_like(a), own.parts))
        return Run(own.logits, own.parts.map(lambda a, mean: mean.expand_as(a), self.mean))

    def _means(self, reference: Any) -> Parts:
        """Mean of each part over the real positions of the reference, (1, 1, ...)."""
        given = reference
        if isinstance(given, Task):
            given = given.prompts()
        tokens = self.reader.model.prepare(given).tokens
        if tokens is None:
            raise InputError("the reference of a mean is texts, Tokens or a Task")
        parts, real = self.reader.run(tokens).parts, tokens.mask.to(self.reader.model.device)
        return parts.map(lambda a, _: a[real].to(exact(a)).mean(0)[None, None].to(a.dtype), parts)

    def _add(self, run: Run, score: Scorer, step: Tensor, share: float) -> None:
        copies = run.logits.shape[0] // step.shape[1]
        logits = run.logits.unflatten(0, (copies, -1))
        value = torch.stack([score(each).sum() for each in logits]).sum()
        self.reader.add_scores(run, value, step, self.total, share)


def _part(parts: Parts, group: str) -> Tensor:
    """The tensor of "start", "heads 3" or "mlp 3"."""
    kind, _, layer = group.partition(" ")
    return parts.start if kind == "start" else {"heads": parts.heads, "mlp": parts.mlps}[kind][int(layer)]


def _mask_gradient(wiring: Wiring, steps: int, progress: bool) -> tuple[Tensor, dict[str, float]]:
    """Scores (edge,): the metric's mean slope along the ablation of each edge while all are ablated together."""
    full = torch.ones(wiring.layout.n_edges, dtype=torch.float64)
    total = torch.zeros_like(full)
    for k in track(range(steps + 1), description="mask-gradient", disable=not progress, transient=True):
        kept = (full * (1 - k / steps if steps else 1.0)).requires_grad_()
        with torch.enable_grad():
            value = wiring.run(kept).mean()
            (found,) = torch.autograd.grad(value, kept)
        check_finite("an edge's mask", found)
        total -= found
    return total / (steps + 1), {"m_clean": float(wiring.clean.mean()), "m_corrupt": float(wiring.corrupt.mean())}
