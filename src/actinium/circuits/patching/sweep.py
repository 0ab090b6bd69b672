"""Run sets of patches: record the two runs, put one's activations into the other, score every patched run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.ablations import ABLATIONS, ActivationNoise, Directional
from actinium.circuits.patching.contrast import (
    Contrast,
    Metric,
    Scorer,
    check_task,
    contrasts,
    sign_of,
)
from actinium.circuits.patching.corruption import GaussianNoise
from actinium.circuits.patching.effects import Effects, Runs, effect_of, mean_over
from actinium.circuits.patching.nodes import NodeSets
from actinium.circuits.patching.partial import Interrupted, Ledger
from actinium.circuits.patching.runs import Edits, RunPair, source_edit
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.metrics import get_metric
from actinium.core.model import Model
from actinium.core.provenance import fingerprint, provenance
from actinium.core.recording import Recording
from actinium.core.task import Task

__all__ = ["MODES", "Edits", "RunPair", "Sweep", "averaged", "result_of", "source_edit"]

MODES = ("denoise", "noise")


@dataclass(eq=False)
class Sweep:
    """What is put where, and how it is scored.

    Args:
        model: a causal language model, or a module from tokens (batch, pos) to logits (batch, pos, d_vocab).
        task: prompt pairs.
        mode: "denoise" or "noise".
        ablation: "resample", "zero", "mean", "gaussian", a `GaussianNoise`, an `ActivationNoise` or a `Directional`.
        metric: name or function; the task's own if None.
        reference: what a mean is taken over, or other prompts to resample from.
        per_position: keep a mean for each position.
        seed: of noise and resampling.
        batch_size: rows at a time.
        progress: show a progress bar.
        resume: a file that keeps finished patches, and from which a stopped sweep goes on.

    Raises:
        InputError, UnknownNameError: what is asked for cannot be done; before anything runs.
    """

    model: Model
    task: Task
    mode: str = "denoise"
    ablation: str | GaussianNoise | ActivationNoise | Directional = "resample"
    metric: str | Metric | None = None
    reference: Any = None
    per_position: bool = False
    seed: int = 0
    batch_size: int | None = None
    progress: bool = False
    resume: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        self.stopped, self.draw, self.ledger = False, 0, None
        check_task(self.model, self.task)
        self.metric = self.task.metric if self.metric is None else self.metric
        get_metric(self.metric)
        if self.mode not in MODES:
            raise UnknownNameError(unknown("mode", str(self.mode), MODES))
        if isinstance(self.ablation, GaussianNoise):
            self.noise: GaussianNoise | None = self.ablation
        elif isinstance(self.ablation, ActivationNoise | Directional):
            self.noise = None
        elif self.ablation in ABLATIONS:
            self.noise = GaussianNoise() if self.ablation == "gaussian" else None
        else:
            raise UnknownNameError(unknown("ablation", str(self.ablation), ABLATIONS))
        self._check_reference()

    @property
    def kind(self) -> str:
        """Name of the ablation."""
        if isinstance(self.ablation, ActivationNoise):
            return "activation noise"
        if isinstance(self.ablation, Directional):
            return "directional"
        return "gaussian" if self.noise is not None else str(self.ablation)

    @property
    def paired(self) -> bool:
        """Whether activations come from the other run of the pair."""
        return self.kind in ("resample", "gaussian") and self.reference is None

    def _check_reference(self) -> None:
        alone = ("zero", "mean", "activation noise", "directional")
        if self.kind in alone and self.mode == "denoise":
            raise InputError(f'{self.kind} ablation takes away and cannot restore; use mode="noise"')
        if self.kind == "mean" and self.reference is None:
            raise InputError("mean ablation needs a reference set: reference=texts, Tokens or a Task")
        if self.kind in (*alone[:1], *alone[2:], "gaussian") and self.reference is not None:
            raise InputError(f"{self.kind} ablation uses no reference")
        if self.per_position and self.kind != "mean":
            raise InputError('per_position belongs to ablation="mean"')
        if self.kind == "resample" and self.reference is not None and self.mode == "denoise":
            raise InputError('resampling from other prompts takes away and cannot restore; use mode="noise"')
        given = self.reference
        if isinstance(given, Task):
            given = given.prompts()
        self._reference = None if given is None else self.model.prepare(given)
        if self._reference is not None and (self.per_position or self.kind == "resample"):
            tokens, mask = self._reference.tokens, self.task.mask
            if tokens is None or tokens.mask.shape[1] != mask.shape[1] or not bool(tokens.mask.all() and mask.all()):
                raise InputError(
                    "activations of other prompts, position by position, need prompts of one length in the task and "
                    "in the reference"
                )

    @property
    def chosen(self) -> Tensor:
        """(row,) the reference prompt that each row gets its activations from; never its own place in the list."""
        assert self._reference is not None
        n, rows = self._reference.size, len(self.task)
        random = torch.Generator().manual_seed(self.seed)
        if n == rows > 1:
            return (torch.arange(n) + torch.randint(1, n, (n,), generator=random)) % n
        return torch.randint(n, (rows,), generator=random)

    def run(self, nodes: NodeSets) -> Runs:
        """Score every set of nodes.

        Raises:
            InputError: an edit does not fit its site, or the metric of one of the two runs is not finite.
        """
        kept = None
        if self.resume is not None:
            self._open(nodes)
        if self._reference is not None:
            kept = self.model.record(self._reference, nodes.sites, batch_size=self.batch_size)
        return averaged(self, nodes, lambda contrast: self._rows(contrast, nodes, kept))

    def _open(self, nodes: NodeSets) -> None:
        """Find what an earlier run of the same sweep has kept."""
        task, metric = self.task, self.metric
        noise = vars(self.ablation) if isinstance(self.ablation, GaussianNoise | ActivationNoise | Directional) else {}
        about = (
            self.model.fingerprint(),
            (task.clean_ids, task.corrupt_ids, task.mask, task.answer_ids, task.wrong_ids),
            [[(n.site, n.positions, n.heads, n.units) for n in each] for each in nodes.sets],
            (self.mode, self.kind, noise, self.seed, self.per_position),
            metric if isinstance(metric, str) else getattr(metric, "__qualname__", "metric"),
            None if self._reference is None else dict(self._reference.arguments),
        )
        assert self.resume is not None
        self.ledger = Ledger(self.resume, fingerprint(about), (self.draws, len(nodes.sets), len(task)))

    @property
    def drawn(self) -> int:
        """Seed of the noise of the draw in hand."""
        return self.seed * 1_000_003 + self.draw

    @property
    def draws(self) -> int:
        """Independent draws of the noise; 1 without any."""
        noise = self.ablation if isinstance(self.ablation, ActivationNoise) else self.noise
        return noise.draws if noise is not None else 1

    def finish(self, effects: Effects) -> Effects:
        """The effects, unless the sweep was stopped.

        Raises:
            Interrupted: it was; the error holds the effects of what was finished.
        """
        if not self.stopped:
            return effects
        rows, total = int(effects.provenance["rows"]), len(self.task)
        what = f"{rows} of {total} rows" if rows < total else "the nodes that were reached"
        where = "in .partial" if self.ledger is None else f"in .partial; the same call goes on from {self.ledger.path}"
        raise Interrupted(f"the effects of {what} are kept {where}", effects)

    def _rows(self, contrast: Contrast, nodes: NodeSets, kept: Recording | None) -> tuple[Tensor, Tensor, Tensor]:
        noisy = isinstance(self.ablation, ActivationNoise)
        pair = RunPair(self, contrast, nodes.sites if self.paired else [], nodes.sites if noisy else None)
        edits = Edits(self, pair, contrast.rows, kept)
        patched = pair.replay([edits.of(each) for each in nodes.sets])
        return pair.clean, pair.corrupt, patched

    def score(self, contrast: Contrast, clean_logits: Tensor) -> Scorer:
        """The metric for the rows of a contrast."""
        assert self.metric is not None
        return Scorer(self.metric, contrast.answer_ids, contrast.wrong_ids, clean_logits)


def averaged(sweep: Sweep, nodes: NodeSets, score: Callable[[Contrast], tuple[Tensor, Tensor, Tensor]]) -> Runs:
    """Rows of all batches side by side, and the mean over draws of the noise.

    Args:
        sweep: gives the batches and draws.
        nodes: what is patched.
        score: clean and corrupt metric (row,) and patched ones (set, row) of a batch.
    """
    draws = []
    drawn = contrasts(sweep.model, sweep.task, sweep.noise, sweep.seed, sweep.batch_size)
    for number, draw in enumerate(drawn * (sweep.draws // len(drawn))):
        sweep.draw = number
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for contrast in draw:
            try:
                found = score(contrast)
            except KeyboardInterrupt:
                if not parts and not draws:
                    raise
                sweep.stopped = True
                break
            if not sweep.stopped or not (parts or draws):
                parts.append(found)
            if sweep.stopped:
                break
        # Of a draw that was stopped the finished rows are worth keeping only where no whole draw is.
        if not sweep.stopped or not draws:
            draws.append([torch.cat(values, -1) for values in zip(*parts, strict=True)])
        if sweep.stopped:
            break
    clean, corrupt, patched = (torch.stack(values).mean(0) for values in zip(*draws, strict=True))
    present = None if nodes.present is None else nodes.present[:, : len(clean)]
    return Runs(clean, corrupt, patched, present, sweep.mode)


def result_of(
    sweep: Sweep, nodes: NodeSets, runs: Runs, made_by: str, normalise: bool, by_row: bool, paper: str, **settings: Any
) -> Effects:
    """The labelled effects of a sweep."""
    metric = sweep.metric if isinstance(sweep.metric, str) else getattr(sweep.metric, "__name__", "metric")
    effect = effect_of(runs, normalise, metric, sign_of(sweep.metric or ""))
    shape, dims = nodes.shape, nodes.dims
    patched = mean_over(runs.patched, runs.present, len(runs.patched))
    data: dict[str, Any] = {
        "effect": (dims, effect.reshape(shape).numpy()),
        "patched": (dims, patched.reshape(shape).numpy()),
        "m_clean": ((), float(runs.clean.mean())),
        "m_corrupt": ((), float(runs.corrupt.mean())),
    }
    if runs.present is not None:
        data["n_rows"] = (dims, runs.present.sum(1).reshape(shape).numpy())
    if by_row:
        data["patched_by_row"] = ((*dims, "row"), runs.patched.reshape(*shape, -1).numpy())
        data["clean_by_row"] = (("row",), runs.clean.numpy())
        data["corrupt_by_row"] = (("row",), runs.corrupt.numpy())
    about = {"mode": sweep.mode, "ablation": sweep.kind, "metric": metric, "normalise": normalise, "seed": sweep.seed}
    task = sweep.task
    inputs = {
        "clean": task.clean_ids,
        "corrupt": task.corrupt_ids,
        "mask": task.mask,
        "answers": task.answer_ids,
        "wrong": task.wrong_ids,
    }
    if sweep.noise is not None:
        settings["noise"] = {"k": sweep.noise.k, "sigma": sweep.noise.sigma, "draws": sweep.noise.draws}
    record = provenance(sweep.model, inputs, **{**about, **settings}) | {"rows": len(runs.clean)}
    return Effects(xr.Dataset(data, coords=nodes.coords, attrs=about), made_by, paper, record)
