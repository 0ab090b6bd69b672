"""ACDC: take away, from the logits downwards, every edge whose loss the metric bears."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from rich.progress import Progress
from torch import Tensor

from actinium.circuits.graph.circuit import CircuitGraph, task_provenance
from actinium.circuits.graph.visits import Visit, reaching, visits
from actinium.circuits.graph.wiring import MEMORY, Wiring
from actinium.circuits.patching.contrast import Metric, sign_of
from actinium.circuits.patching.partial import Interrupted, Ledger
from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.model import Model
from actinium.core.provenance import fingerprint
from actinium.core.task import Task

__all__ = ["acdc"]

# Decisions tried ahead: at the start of a visit, and at most.
FIRST, AHEAD = 8, 64
# Recent decisions of a visit from which the next one is guessed.
RECENT = 8
REMOVED, KEPT, UNHEARD = 1, 2, 3


def acdc(
    model: Model,
    task: Task,
    tau: float | Sequence[float],
    *,
    metric: str | Metric = "kl",
    ablation: str = "resample",
    reference: Any = None,
    absolute: bool = False,
    whole_inputs: bool = False,
    order: Sequence[str] | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    progress: bool = False,
    resume: str | os.PathLike[str] | None = None,
) -> CircuitGraph:
    """The edges that remain when every edge is taken away whose loss worsens the metric by less than tau.

    Receivers are visited from the logits downwards. Each of their edges is ablated, and stays so if the metric,
    compared with its value before, grows by less than tau. Receivers that nothing kept reads lose their edges
    unmeasured. The metric is minimised: divergence and rank as they are, all others with their sign changed.

    Decisions are those of one edge after the other. Several are tried ahead in one batch; what follows a wrong guess is
    thrown away, and only what lies above the receiver is run.

    Args:
        model: a pre-norm decoder; it is not changed.
        task: prompt pairs, padded on the left.
        tau: threshold, in units of the metric, 0 or more; or several, each of which is run from the whole graph.
        metric: name or function, averaged over the prompts; by default the divergence from the clean run, in nats.
        ablation, reference, batch_size, memory: as in `Wiring`.
        absolute: compare the size of the change with tau, so that edges whose loss improves the metric are kept too.
        whole_inputs: try to ablate queries, keys and values as wholes before their edges, as the authors' code does.
        order: names of all receivers or of all edges, in the order in which they are visited; by default from the last
            to the first. The circuit depends on it.
        progress: show a progress bar.
        resume: a file (safetensors) that keeps the decisions; the same call goes on from it.

    Returns:
        CircuitGraph: `kept` edges, those of the largest tau if there are several; `score` is the smallest tau at which
        an edge is taken away, infinite if none. Further variables over (tau, edge), or (edge) for one tau: `effect`,
        the change of the minimised metric when the edge was tried, NaN where it was not; `step`, the number of the
        decision. Over (tau): `metric_kept` and `metric_full`, the metric itself; `evaluations`, the number of runs.

    Raises:
        InputError: tau is negative or NaN; an order does not hold every edge; a metric is not a number or not one for
            each row; as `Wiring`.
        Interrupted: stopped by Ctrl-C; `partial` holds the graph so far, undecided edges kept.

    Source: Conmy et al., 2023, algorithm 1.
    """
    taus = _taus(tau)
    wiring = Wiring(
        model, task, ablation=ablation, reference=reference, metric=metric, batch_size=batch_size, memory=memory
    )
    plan = visits(wiring.layout, order, whole_inputs)
    _warn_if_better_without(wiring)
    about = {"ablation": ablation, "reference": reference, "absolute": absolute, "whole_inputs": whole_inputs}
    about |= {"metric": metric, "order": None if order is None else list(order)}
    record = task_provenance(model, task, tau=taus, **about)
    steps = sum(len(visit.steps) for visit in plan)
    ledger = None if resume is None else Ledger(resume, fingerprint([record]), (len(taus), 2, steps))
    runs: list[_Search] = []
    with Progress(transient=True, disable=not progress) as bar:
        try:
            for i, one in enumerate(taus):
                search = _Search(wiring, plan, one, absolute, runs[-1] if runs else None, _Log(ledger, i))
                runs.append(search)
                search.run(bar)
        except KeyboardInterrupt:
            where = "in .partial" if ledger is None else f"in .partial; the same call goes on from {ledger.path}"
            raise Interrupted(f"the edges decided so far are kept {where}", _graph(wiring, runs, record)) from None
    return _graph(wiring, runs, record)


def _taus(tau: float | Sequence[float]) -> list[float]:
    try:
        found = sorted({float(t) for t in (tau if isinstance(tau, Sequence | np.ndarray | Tensor) else [tau])})
    except (TypeError, ValueError):
        raise InputError(f"tau is a number or a sequence of numbers, not {tau!r}") from None
    if not found or not all(t >= 0 for t in found):
        raise InputError(f"tau must be at least 0, not {tau}")
    return found


def _warn_if_better_without(wiring: Wiring) -> None:
    """Where ablating everything improves the metric, its direction or the task is probably wrong."""
    sign = -sign_of(wiring.metric)
    full, empty = (sign * m.mean() for m in (wiring.clean, wiring.run(torch.zeros(wiring.layout.n_edges))))
    if float(empty) < float(full):
        warnings.warn(
            f"with every edge ablated the metric is better ({float(sign * empty):.4g}) than that of the model "
            f"({float(sign * full):.4g}); a function counts as better where it is higher",
            ActiniumWarning,
            stacklevel=3,
        )


def _graph(wiring: Wiring, runs: list[_Search], record: dict[str, Any]) -> CircuitGraph:
    layout, sign = wiring.layout, -sign_of(wiring.metric)
    scores = np.full(layout.n_edges, np.inf)
    for run in reversed(runs):
        scores[~run.mask] = run.tau
    taus = [r.tau for r in runs]
    each = {"effect": [r.effect for r in runs], "step": [r.step for r in runs]}
    more: dict[str, Any]
    if len(runs) == 1:
        more = {name: value for name, (value,) in each.items()}
    else:
        each["kept_at"] = [r.mask for r in runs]
        more = {name: xr.DataArray(np.stack(values), dims=("tau", "edge")) for name, values in each.items()}
    totals = {
        "metric_kept": [sign * r.current for r in runs],
        "metric_full": [sign * r.full for r in runs],
        "evaluations": [r.evaluations for r in runs],
    }
    more |= {name: xr.DataArray(values, dims=("tau",), coords={"tau": taus}) for name, values in totals.items()}
    return CircuitGraph(layout, scores, runs[-1].mask, method="acdc", paper="acdc", provenance=record, more=more)


class _Log:
    """Decisions of one tau, and where they are kept."""

    def __init__(self, ledger: Ledger | None, number: int) -> None:
        self.ledger, self.number = ledger, number
        self.values = None if ledger is None else ledger.values[number]

    def known(self, step: int) -> tuple[int, float] | None:
        """Decision and value of a step that was decided before."""
        if self.values is None or bool(self.values[0, step].isnan()):
            return None
        return int(self.values[0, step]), float(self.values[1, step])

    def add(self, step: int, decision: int, value: float) -> None:
        """Note a decision; `write` keeps it."""
        if self.values is not None:
            self.values[:, step] = torch.tensor([decision, value], dtype=torch.float64)

    def write(self) -> None:
        """Write the file."""
        if self.ledger is not None and self.values is not None:
            self.ledger.keep(self.number, slice(None), [0, 1], self.values.clone())


@dataclass(eq=False)
class _Search:
    """One run of the algorithm.

    Attributes:
        before: the run of the next smaller tau, from which decisions are guessed.
        mask: (edge,) the edges kept so far.
        effect, step: (edge,) change of the metric when it was tried, and number of the decision, -1 before it.
        full, current: the minimised metric of the whole graph and of the edges kept so far.
        evaluations: number of variants run.
    """

    wiring: Wiring
    plan: tuple[Visit, ...]
    tau: float
    absolute: bool
    before: _Search | None
    log: _Log

    def __post_init__(self) -> None:
        layout = self.wiring.layout
        self.sign = -sign_of(self.wiring.metric)
        self.mask = np.ones(layout.n_edges, dtype=bool)
        self.effect = np.full(layout.n_edges, np.nan)
        self.step = np.full(layout.n_edges, -1)
        self.decisions: list[int] = [0] * sum(len(visit.steps) for visit in self.plan)
        self.full = self.current = float(self.sign * self.wiring.clean.mean())
        self.evaluations, self.ahead = 0, FIRST

    def run(self, bar: Progress) -> None:
        """Decide about every edge."""
        shown, first = bar.add_task(f"tau {self.tau:g}", total=len(self.decisions)), 0
        try:
            for visit in self.plan:
                self._visit(visit, first, lambda n, first=first: bar.update(shown, completed=first + n))
                first += len(visit.steps)
                self.log.write()
        except KeyboardInterrupt:
            self.log.write()
            raise

    def _visit(self, visit: Visit, first: int, tick: Callable[[int], None]) -> None:
        layout = self.wiring.layout
        heard = reaching(layout, torch.from_numpy(self.mask))[layout.pairs[:, 1]].tolist()
        for at, edges in enumerate(visit.steps):
            # No decision of this visit changes what is heard: its inputs do not feed one another.
            if not heard[edges[0]]:
                self._decide(first + at, edges, UNHEARD, self.current)
        self._hold(visit.stage)
        self.ahead = min(self.ahead, FIRST)
        recent: list[bool] = []
        at = 0
        while at < len(visit.steps):
            edges = visit.steps[at]
            known = self.log.known(first + at)
            if not any(self.mask[e] for e in edges):
                at += 1
            elif known is not None:
                self._decide(first + at, edges, *known)
                recent.append(known[0] == REMOVED)
                at += 1
            else:
                at = self._ahead(visit, first, at, recent)
            tick(at)

    def _hold(self, stage: int) -> None:
        """What lies below is run once, unless the run that is held has the same edges there."""
        wiring = self.wiring
        mask = torch.from_numpy(self.mask)
        differs = mask != wiring.held.cpu()
        if bool((differs & (wiring.stage < stage)).any()):
            wiring.hold(mask)

    def _ahead(self, visit: Visit, first: int, at: int, recent: list[bool]) -> int:
        """Try the next decisions in one batch; returns the first step that is not decided.

        Each variant takes away its own edges and those of the decisions before it as they are guessed; the variants
        after a wrong guess say nothing.
        """
        masks, tried, mask = [], [], self.mask
        for step in range(at, len(visit.steps)):
            edges = visit.steps[step]
            if not any(mask[e] for e in edges):
                continue
            without = mask.copy()
            without[list(edges)] = False
            guess = self._guess(first + step, recent)
            masks.append(without)
            tried.append((step, edges, guess))
            mask = without if guess else mask
            if len(masks) == self.ahead:
                break
        values = (self.sign * self.wiring.run(torch.from_numpy(np.stack(masks))).mean(1)).tolist()
        self.evaluations += len(values)
        for n, ((step, edges, guess), value) in enumerate(zip(tried, values, strict=True)):
            change = value - self.current
            if change != change:
                raise InputError(
                    f"{self.wiring.metric} is {value} without {self.wiring.layout.edges[edges[0]]}; it must be a number"
                )
            removed = (abs(change) if self.absolute else change) < self.tau
            self._decide(first + step, edges, REMOVED if removed else KEPT, value)
            recent.append(removed)
            if removed != guess:
                self.ahead = max(1, n + 1)
                return step + 1
        self.ahead = min(2 * self.ahead, AHEAD)
        return tried[-1][0] + 1

    def _guess(self, step: int, recent: list[bool]) -> bool:
        """Whether a step probably takes its edges away: as with the smaller tau, or as most of the last ones."""
        if self.before is not None and self.before.decisions[step]:
            return self.before.decisions[step] == REMOVED
        last = recent[-RECENT:]
        return 2 * sum(last) >= len(last)

    def _decide(self, step: int, edges: tuple[int, ...], decision: int, value: float) -> None:
        self.decisions[step] = decision
        self.log.add(step, decision, value)
        taken = [e for e in edges if self.mask[e]]
        if decision != UNHEARD:
            self.effect[taken] = value - self.current
        if decision != KEPT:
            self.mask[taken] = False
            self.current = value
        self.step[taken] = step
