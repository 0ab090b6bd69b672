"""Run sets of patches: record the two runs, put one's activations into the other, score every patched run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.contrast import (
    Contrast,
    Metric,
    Scorer,
    check_task,
    contrasts,
    last_logits,
    sign_of,
    warn_if_failing,
)
from actinium.circuits.patching.corruption import GaussianNoise
from actinium.circuits.patching.effects import Effects, Runs, effect_of, mean_over
from actinium.circuits.patching.nodes import Node, NodeSets
from actinium.core.edits import Edit, Mean, Replace, Where, Zero
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.inputs import Tokens
from actinium.core.metrics import get_metric
from actinium.core.model import Model
from actinium.core.passes import Pass
from actinium.core.provenance import provenance
from actinium.core.recording import Recording
from actinium.core.task import Task

__all__ = ["ABLATIONS", "MODES", "Edits", "RunPair", "Sweep", "averaged", "result_of", "source_edit"]

MODES = ("denoise", "noise")
ABLATIONS = ("resample", "zero", "mean", "gaussian")


@dataclass(eq=False)
class Sweep:
    """What is put where, and how it is scored.

    Args:
        model: a causal language model, or a module from tokens (batch, pos) to logits (batch, pos, d_vocab).
        task: prompt pairs.
        mode: "denoise" or "noise".
        ablation: "resample", "zero", "mean", "gaussian" or a `GaussianNoise`.
        metric: name or function; the task's own if None.
        reference: what a mean is taken over, or other prompts to resample from.
        per_position: keep a mean for each position.
        seed: of noise and resampling.
        batch_size: rows at a time.
        progress: show a progress bar.

    Raises:
        InputError, UnknownNameError: what is asked for cannot be done; before anything runs.
    """

    model: Model
    task: Task
    mode: str = "denoise"
    ablation: str | GaussianNoise = "resample"
    metric: str | Metric | None = None
    reference: Any = None
    per_position: bool = False
    seed: int = 0
    batch_size: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        check_task(self.model, self.task)
        self.metric = self.task.metric if self.metric is None else self.metric
        get_metric(self.metric)
        if self.mode not in MODES:
            raise UnknownNameError(unknown("mode", str(self.mode), MODES))
        if isinstance(self.ablation, GaussianNoise):
            self.noise: GaussianNoise | None = self.ablation
        elif self.ablation in ABLATIONS:
            self.noise = GaussianNoise() if self.ablation == "gaussian" else None
        else:
            raise UnknownNameError(unknown("ablation", str(self.ablation), ABLATIONS))
        self._check_reference()

    @property
    def kind(self) -> str:
        """Name of the ablation."""
        return "gaussian" if self.noise is not None else str(self.ablation)

    @property
    def paired(self) -> bool:
        """Whether activations come from the other run of the pair."""
        return self.kind in ("resample", "gaussian") and self.reference is None

    def _check_reference(self) -> None:
        if self.kind in ("zero", "mean") and self.mode == "denoise":
            raise InputError(f'{self.kind} ablation takes away and cannot restore; use mode="noise"')
        if self.kind == "mean" and self.reference is None:
            raise InputError("mean ablation needs a reference set: reference=texts, Tokens or a Task")
        if self.kind in ("zero", "gaussian") and self.reference is not None:
            raise InputError(f"{self.kind} ablation uses no reference")
        if self.per_position and self.kind != "mean":
            raise InputError('per_position belongs to ablation="mean"')
        if self.kind == "resample" and self.reference is not None and self.mode == "denoise":
            raise InputError('resampling from other prompts takes away and cannot restore; use mode="noise"')
        given = self.reference
        if isinstance(given, Task):
            given = Tokens(given.clean_ids, given.mask, torch.arange(len(given)))
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
        if self._reference is not None:
            kept = self.model.record(self._reference, nodes.sites, batch_size=self.batch_size)
        return averaged(self, nodes, lambda contrast: self._rows(contrast, nodes, kept))

    def _rows(self, contrast: Contrast, nodes: NodeSets, kept: Recording | None) -> tuple[Tensor, Tensor, Tensor]:
        pair = RunPair(self, contrast, nodes.sites if self.paired else [])
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
    for draw in contrasts(sweep.model, sweep.task, sweep.noise, sweep.seed, sweep.batch_size):
        parts = [score(contrast) for contrast in draw]
        draws.append([torch.cat(values, -1) for values in zip(*parts, strict=True)])
    clean, corrupt, patched = (torch.stack(values).mean(0) for values in zip(*draws, strict=True))
    return Runs(clean, corrupt, patched, nodes.present, sweep.mode)


class RunPair:
    """The two runs of a contrast, recorded and scored.

    Attributes:
        inputs: of the run that is patched.
        own, other: recordings of that run and of the one whose activations it gets, None where nothing is recorded.
        clean, corrupt, base: (row,) float64, the metric of the two runs and of the one that is patched.
    """

    def __init__(self, sweep: Sweep, contrast: Contrast, sites: list[str], own_sites: list[str] | None = None) -> None:
        self.sweep, self.tokens = sweep, contrast.tokens
        self.inputs, source = contrast.ends(sweep.mode)
        other_logits, self.other = last_logits(sweep.model, source, sites)
        own_logits, self.own = last_logits(sweep.model, self.inputs, sites if own_sites is None else own_sites)
        denoise = sweep.mode == "denoise"
        clean, corrupt = (other_logits, own_logits) if denoise else (own_logits, other_logits)
        warn_if_failing(clean, contrast)
        self.score = sweep.score(contrast, clean)
        self.clean = self.score.run(clean, "clean").cpu().double()
        self.corrupt = self.score.run(corrupt, "corrupt").cpu().double()
        self.base = self.corrupt if denoise else self.clean

    def replay(self, variants: list[list[tuple[str, Edit]]]) -> Tensor:
        """(variant, row) float64: the metric under each variant's edits, and of the run itself where it has none."""
        out = self.base.expand(len(variants), -1).clone()
        running = [i for i, variant in enumerate(variants) if variant]
        if running:
            values = self.sweep.model.replay(
                self.inputs,
                [_by_site(variants[i]) for i in running],
                metric=self.score,
                progress=self.sweep.progress,
            )
            out[running] = values.cpu().double()
        return out


def _by_site(edits: list[tuple[str, Edit]]) -> dict[str, list[Edit]]:
    out: dict[str, list[Edit]] = {}
    for site, edit in edits:
        out.setdefault(site, []).append(edit)
    return out


class Edits:
    """From sets of nodes to the edits of a variant."""

    def __init__(self, sweep: Sweep, pair: RunPair, rows: slice, kept: Recording | None = None) -> None:
        self.sweep, self.pair, self.kept, self.rows = sweep, pair, kept, rows
        mask = pair.tokens.mask
        left = None if bool(mask.all()) else mask.int().argmax(1)
        self.now = Pass(len(mask), 0, mask.shape[1], left, mask.sum(1))
        self.made: dict[str, Edit] = {}
        self.differ: dict[tuple[str, bool], Tensor] = {}

    def of(self, nodes: list[Node]) -> list[tuple[str, Edit]]:
        """Edits of a set of nodes; none if the two runs have all of its activations in common, to the last bit."""
        edits = [(node.site, node.restrict(self._edit(node.site), self.rows)) for node in nodes]
        same = self.pair.other is not None and not any(
            self._differs(node, edit) for node, (_, edit) in zip(nodes, edits, strict=True)
        )
        return [] if same else edits

    def _edit(self, site: str) -> Edit:
        if site not in self.made:
            self.made[site] = self._make(site)
        return self.made[site]

    def _make(self, site: str) -> Edit:
        if self.pair.other is not None:
            return source_edit(self.pair.other, site)
        if self.sweep.kind == "zero":
            return Zero()
        assert self.kept is not None
        if self.sweep.kind == "resample":
            return Replace(self.kept[site][self.sweep.chosen[self.rows]])
        taken = Mean(self.kept, per_position=self.sweep.per_position)
        ((known, _, _),) = self.sweep.model.resolve(site)
        taken.check(known)
        # Handed on as a tensor, so that the mean is taken once and not for each node.
        return Mean(taken.mean, per_position=self.sweep.per_position)

    def _differs(self, node: Node, edit: Edit) -> bool:
        """Whether the two runs differ anywhere within the node."""
        by_unit = node.units is not None
        key = node.site, by_unit
        assert self.pair.own is not None and self.pair.other is not None
        if key not in self.differ:
            changed = self.pair.own[node.site] != self.pair.other[node.site]
            if by_unit:
                changed = changed.flatten(0, -2).any(0)
            self.differ[key] = changed.any(-1, keepdim=True) if changed.ndim > 1 else changed
        changed = self.differ[key]
        if by_unit:
            return bool(changed[edit.units].any())
        ((site, _, _),) = self.sweep.model.resolve(node.site)
        return bool((edit.mask(changed, Where(site, self.now, 0)) & changed).any())


def source_edit(rec: Recording, site: str) -> Edit:
    """Put in the recorded activations of a site."""
    value = rec[site]
    if site.endswith("attn.scores"):
        # What the mask rules out is minus infinity, which an edit refuses; the lowest number has the same softmax.
        value = value.clamp_min(torch.finfo(value.dtype).min)
    return Replace(value)


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
    record = provenance(sweep.model, inputs, **{**about, **settings})
    return Effects(xr.Dataset(data, coords=nodes.coords, attrs=about), made_by, paper, record)
