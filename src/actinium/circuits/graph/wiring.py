"""A model run with some of its edges ablated: every input is the sum of what arrives along the edges that are kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from actinium.circuits.graph.block_runs import block_runs, record_calls
from actinium.circuits.graph.layout import Layout
from actinium.circuits.graph.projections import projections
from actinium.circuits.graph.wired_rows import State, WiredRows, stages
from actinium.circuits.patching.contrast import Metric, Scorer, check_task
from actinium.core import taps
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.inputs import Tokens
from actinium.core.metrics import get_metric
from actinium.core.model import Model
from actinium.core.taps import Program
from actinium.core.task import Task

__all__ = ["ABLATIONS", "Wiring"]

ABLATIONS = ("resample", "zero", "mean")
# What the wired run may differ from the model's own by, relative to the largest logit; of half precision the second.
TOLERANCE, COARSE = 1e-4, 5e-2
# Tokens of all variants in one call of a block: enough to fill the processor, few enough to stay in its caches.
TOKENS = 1024
# Bytes that runs may take by default.
MEMORY = 2**31


class Wiring:
    """The edges of a model on a task, and the metric when only some of them are kept.

    The input of a receiver is the sum over its edges of the sender's output in this run where the edge is kept and of
    what ablation puts there where it is not, plus the biases of attention's output projections, which belong to no
    edge. Kept edges carry recomputed outputs, so what is ablated below is felt above. Outputs of an MLP hold its bias,
    that of "input" is the stream that enters the first block. Edges may be kept in part (numbers from 0 to 1), and
    gradients reach them; take those with `torch.autograd.grad`, since `backward` also fills those of the weights.

    Args:
        model: a pre-norm decoder; it is not changed.
        task: prompt pairs, padded on the left. The full run is that of the clean prompts.
        ablation: what an ablated edge carries: the sender's output in the corrupt run ("resample"), nothing ("zero"),
            or its mean over the real positions of a reference ("mean").
        reference: texts, Tokens or a Task, of the mean.
        metric: name or function; the task's own by default. "kl" compares with the clean run.
        batch_size: rows side by side, all by default.
        memory: bytes that runs may take, 2 GiB by default: what is kept of the rows, and as many variants side by side
            as fit beside it.
        progress: show a progress bar over the variants of a call.

    Attributes:
        layout: senders, receivers and edges.
        clean, corrupt: (row,) float64, metric of the two runs.

    Raises:
        InputError: the model's edges are not known (post-norm blocks, encoders) or a run with all of them does not give
            its logits; the task does not fit; a metric is not finite; the memory does not suffice.
        UnknownNameError: there is no such ablation or metric.

    Source: Conmy et al., 2023, sections 2 and 3.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        *,
        ablation: str = "resample",
        reference: Any = None,
        metric: str | Metric | None = None,
        batch_size: int | None = None,
        memory: int = MEMORY,
        progress: bool = False,
    ) -> None:
        check_task(model, task)
        if ablation not in ABLATIONS:
            raise UnknownNameError(unknown("ablation", str(ablation), ABLATIONS))
        if (ablation == "mean") != (reference is not None):
            raise InputError(
                'ablation="mean" needs a reference set (texts, Tokens or a Task), and nothing else has one'
            )
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        if model.module.training:
            raise InputError(f"{model.name} is in training mode; call .eval() on the module first")
        self.model, self.task, self.ablation, self.reference = model, task, ablation, reference
        self.metric = task.metric if metric is None else metric
        get_metric(self.metric)
        self.layout = Layout.of(model)
        self.memory, self.progress = memory, progress
        self.stage = stages(self.layout)
        self.dtype = model.dtype if model.dtype == torch.float64 else torch.float32
        self._unedited()
        self._blocks = block_runs(model, self.layout, projections(model))
        self._program = Program()
        for block in self._blocks:
            block.add_to(self._program)
        n, step = len(task), batch_size or len(task)
        self._places = [slice(i, min(i + step, n)) for i in range(0, n, step)]
        self._check_memory()
        self._rows: list[WiredRows] = []
        self._held: list[State] = []
        self._starts: list[Tensor] = []
        self._scores: list[Scorer] = []
        with torch.no_grad():
            self._prepare()

    @property
    def n_rows(self) -> int:
        """Number of prompt pairs."""
        return len(self.task)

    def run(self, kept: Tensor) -> Tensor:
        """The metric with only some edges kept.

        Args:
            kept: (variant, edge) or (edge,): bool, or numbers from 0 to 1.
        Returns:
            (variant, row) float64; one variant of (edge,).

        Raises:
            InputError: the shape does not fit the edges, or there is no variant.
        """
        kept = self._checked(kept)
        with self._running():
            parts = [
                self._walked(rows, state, kept, score)
                for rows, state, score in zip(self._rows, self._held, self._scores, strict=True)
            ]
        return torch.cat(parts, 1).cpu().double()

    def logits(self, kept: Tensor) -> Tensor:
        """(variant, row, d_vocab) after the last token with only some edges kept, see `run`."""
        kept = self._checked(kept)
        with self._running():
            return torch.cat([self._walked(*each, kept) for each in zip(self._rows, self._held, strict=True)], 1)

    def hold(self, kept: Tensor) -> None:
        """Keep what senders write with these edges (edge,): later runs compute only what lies above a difference.

        At first that of the full run is held. No number depends on it but in rounding.
        """
        kept = self._checked(kept).detach()
        if len(kept) != 1:
            raise InputError(f"edges of one run are held, not of {len(kept)}")
        if torch.equal(kept[0], self._held[0].kept):
            return
        with torch.no_grad(), self._running():
            pairs = zip(self._rows, self._starts, strict=True)
            self._held = [rows.state(kept[0], start)[0] for rows, start in pairs]

    @property
    def held(self) -> Tensor:
        """(edge,) float: the edges of the run that is held."""
        return self._held[0].kept

    # Preparation ------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Record both runs of every batch and check that the wired ones give the model's logits."""
        means = self._means() if self.ablation == "mean" else None
        full = torch.ones(self.layout.n_edges, dtype=self.dtype, device=self.model.device)
        ends: list[tuple[Tensor, Tensor]] = []
        for place in self._places:
            clean, corrupt = (self._tokens(ids, place) for ids in (self.task.clean_ids, self.task.corrupt_ids))
            first = self._first(clean, corrupt)
            calls = record_calls(self.model, clean, self._blocks, first)
            rows = WiredRows(self.model, self.layout, self._blocks, calls, first, self.dtype)
            other = record_calls(self.model, corrupt, self._blocks, 0)
            with self._running():
                if self.ablation == "resample":
                    taken, logits = rows.state(full, other.start)
                    self._check(logits, other.logits, "corrupt")
                    rows.set_ablated(taken)
                elif means is not None:
                    below, last = (means.repeat(1, n) for n in (rows.rows * rows.n, rows.rows))
                    rows.set_ablated(State(full, below[: rows.below[-2]], last))
                state, logits = rows.state(full, calls.start)
            self._check(logits, calls.logits, "clean")
            score = Scorer(self.metric, self.task.answer_ids[place], self.task.wrong_ids[place], calls.logits)
            self._rows.append(rows)
            self._held.append(state)
            self._starts.append(calls.start)
            self._scores.append(score)
            ends.append((score.run(calls.logits, "clean"), score.run(other.logits, "corrupt")))
        self.clean, self.corrupt = (torch.cat(values).cpu().double() for values in zip(*ends, strict=True))

    def _tokens(self, ids: Tensor, place: slice) -> Tokens:
        return Tokens(ids[place], self.task.mask[place], torch.arange(self.n_rows)[place])

    def _first(self, clean: Tokens, corrupt: Tokens) -> int:
        """The first column in which runs can differ: a decoder's columns know nothing of later ones."""
        if self.ablation != "resample":
            return 0
        differ = ((clean.ids != corrupt.ids) & clean.mask).any(0)
        return int(differ.int().argmax()) if bool(differ.any()) else clean.mask.shape[1] - 1

    def _check(self, found: Tensor, own: Tensor, what: str) -> None:
        tolerance = TOLERANCE if torch.finfo(self.model.dtype).bits >= 32 else COARSE
        error = float((found - own).abs().max() / (own.abs().max() + 1e-30))
        if not error <= tolerance:
            raise InputError(
                f"a run of {self.model.name} put together from its edges gives other logits than the model in the "
                f"{what} run (by {error:.1g} of the largest): its architecture is not one whose edges are known"
            )

    def _means(self) -> Tensor:
        """(sender, d_model): mean of what each sender writes over real positions of the reference."""
        given = self.reference
        if isinstance(given, Task):
            given = given.prompts()
        sites = ["blocks.0.resid_pre", "blocks.*.attn.z", "blocks.*.mlp.out"]
        rec = self.model.record(given, sites)
        if rec.mask is None:
            raise InputError("the reference of a mean is texts, Tokens or a Task")

        def mean(site: str) -> Tensor:
            return rec[site][rec.mask].to(self.dtype).mean(0)

        out = [mean("blocks.0.resid_pre")[None]]
        for i, block in enumerate(self._blocks):
            out += [
                block.written(mean(f"blocks.{i}.attn.z")[None], self.dtype)[:, 0],
                mean(f"blocks.{i}.mlp.out")[None],
            ]
        return torch.cat(out)

    def _unedited(self) -> None:
        if taps.state.programs:
            raise InputError("wired runs are those of the model itself; leave `with model.edit(...)` first")

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._unedited()
        with self.model.running(self._program):
            yield

    # Memory -----------------------------------------------------------------------------------------------------

    def _bytes(self) -> tuple[int, int]:
        """Bytes that are kept of all rows, and that one variant of the largest batch takes."""
        layout, tower = self.layout, self.model.tower
        rows, pos = max(p.stop - p.start for p in self._places), self.task.mask.shape[1]
        first = 0
        if self.ablation == "resample":
            first = int(self.task.subject.any(0).int().argmax()) if bool(self.task.subject.any()) else pos - 1
        senders, size = len(layout.senders), 8 if self.dtype == torch.float64 else 4
        stored = senders * (pos - first) * tower.d_model * size * (1 if self.ablation == "zero" else 2)
        inputs = 4 * (layout.n_heads + 2 * layout.kv_heads) + 2 * layout.n_heads
        block = inputs * tower.d_model + 4 * (tower.d_mlp or 4 * tower.d_model) + 2 * layout.n_heads * pos
        run = ((senders + inputs) * tower.d_model + block) * (pos - first) * size + int(
            self.model.config.vocab_size
        ) * size
        return stored * self.n_rows, run * rows

    def _check_memory(self) -> None:
        self._sizes = stored, run = self._bytes()
        if stored + run > self.memory:
            raise InputError(
                f"{self.n_rows} prompts need about {(stored + run) / 2**20:,.0f} MiB and {self.memory / 2**20:,.0f} "
                "MiB may be used: take fewer prompts, a smaller batch_size, or more memory"
            )

    def _beside(self, rows: WiredRows) -> int:
        """Variants that run side by side."""
        stored, run = self._sizes
        fit = (self.memory - stored) // max(run, 1)
        return int(max(1, min(fit, -(-TOKENS // (rows.rows * rows.n)))))

    # Running ----------------------------------------------------------------------------------------------------

    def _checked(self, kept: Tensor) -> Tensor:
        if not isinstance(kept, Tensor) or kept.ndim not in (1, 2) or kept.shape[-1] != self.layout.n_edges:
            got = tuple(kept.shape) if isinstance(kept, Tensor) else type(kept).__name__
            raise InputError(f"expected (variant, {self.layout.n_edges}) or ({self.layout.n_edges},) edges, not {got}")
        kept = kept[None] if kept.ndim == 1 else kept
        if not len(kept):
            raise InputError("no variant given")
        if kept.dtype != torch.bool and not bool((kept.detach() >= 0).all() & (kept.detach() <= 1).all()):
            raise InputError("edges are kept by numbers from 0 to 1")
        return kept.to(self.model.device, self.dtype)

    def _walked(self, rows: WiredRows, state: State, kept: Tensor, score: Scorer | None = None) -> Tensor:
        """Logits (variant, row, d_vocab), or their metric (variant, row)."""
        grad = kept.requires_grad and torch.is_grad_enabled()
        differs = kept.detach() != state.kept
        first = torch.where(differs.any(1), self.stage.to(kept.device)[differs.int().argmax(1)], self.stage[-1])
        begin = [0] * len(kept) if grad else first.tolist()
        size = self._beside(rows)
        places = [slice(i, min(i + size, len(kept))) for i in range(0, len(kept), size)]
        out = []
        with torch.set_grad_enabled(grad):
            # Only where it is shown: rich starts a thread for a bar that is disabled, too.
            shown = self.progress and len(places) > 1
            for place in track(places, "edges", transient=True) if shown else places:
                logits, _, _ = rows.walk(kept[place], state, min(begin[place]))
                out.append(logits if score is None else score(logits))
            return torch.cat(out)
