"""Causal mediation: how much of the change of an answer passes through a site, and how much passes beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.contrast import Contrast, contrasts, last_logits
from actinium.circuits.patching.effects import Effects
from actinium.circuits.patching.likelihoods import LOGGED, Reader, as_effect, check_likely, check_pairs
from actinium.circuits.patching.nodes import NodeSets, node_sets
from actinium.circuits.patching.runs import Edits, by_site
from actinium.circuits.patching.sweep import Sweep
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.recording import Recording
from actinium.core.task import Task

__all__ = ["Mediation", "causal_mediation"]


class Mediation(Effects):
    """Effects of mediators over labelled axes; see `causal_mediation`."""

    def plot(self, ax: Any = None, variable: str | None = None) -> Any:
        """Draw a heat map of log(1 + indirect effect), or of the indirect effect where its form has no such logarithm.

        Args:
            ax: matplotlib Axes to draw on; a new one if not given.
            variable: what to draw instead.

        Returns:
            the matplotlib Axes.
        """
        return super().plot(ax, variable or ("log_indirect" if "log_indirect" in self.data else "indirect"))

    def heading(self) -> str:
        """Form and total effect."""
        total = float(self.data["total"])
        return f"{self.method}, {self.data.attrs['effect']}, total effect {total:.3g}"


def causal_mediation(
    model: Model,
    task: Task,
    at: Any = ("blocks.*.mlp.out", "blocks.*.attn.out"),
    over: str | None = None,
    *,
    positions: Any = None,
    prefix: int = 0,
    effect: str = "relative",
    direct: bool = True,
    heads: int | Sequence[int] | None = None,
    units: int | Sequence[int] | None = None,
    answer_ids: Any = None,
    margin: float = 0.1,
    by_row: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
) -> Mediation:
    """Indirect, direct and total effect of exchanging one prompt for another, for each site and position.

    The clean prompt p1 has the answer r, the corrupt prompt p2 the answer r'. P are probabilities after p1. Indirect
    effect of a mediator m: P* is the run on p1 with m as it is on p2. Direct effect: the run on p2 with m as it is on
    p1. Total effect: the run on p2. They add up where the effect is linear in what is exchanged, and not in general.

    Args:
        model: a causal language model, or a module from tokens (batch, pos) to logits (batch, pos, d_vocab).
        task: pairs of prompts; where a pair has the same result, answer and wrong answer are the same token.
        at, over, heads, units: mediators, as in `patch` (over is "pos" by default; "head" at attn.pattern or attn.z,
            "unit" for single neurons); "embed" is a site like others.
        positions: as in `patch`. {name: one or several positions for each row} sweeps classes of positions: each
            position is a mediator of its own, and a class has the mean over its positions and rows. Those outside a
            prompt are left out.
        prefix: number of tokens at the start (worked examples, say) that are no mediators, where `positions` is None.
        effect: "relative": 1/2 [(P*(r') - P(r')) / P(r') + (P(r) - P*(r)) / P*(r)], at least -1; "difference": P*(r')
            - P(r'); "sum": that and P(r) - P*(r); "log": 1/2 [log P*(r') / P(r') + log P(r) / P*(r)]. Of r alone, for
            pairs of one result: "single": |P(r) - P*(r)|; "reduced": the relative form with r' = r, at least 0.
        direct: find direct effects, too (as many runs again).
        answer_ids: tokens among which the prediction is looked for; by default all answers and wrong answers.
        margin: how far above chance the model must be, on both prompts of the pairs.
        by_row: keep the effects of each row.
        batch_size: rows run at a time, by default all.
        progress: show a progress bar.

    Returns:
        Mediation: `indirect`, its median over rows `indirect_median`, `log_indirect` = log(1 + indirect), taken after
        the mean (not for the forms "difference", "sum" and "log"), `direct` and `direct_median`, over the axes of the
        sweep; `desired` and `undesired`: share of rows whose prediction becomes r', or is r no more; `total`,
        `total_median`, `total_desired`, `total_undesired`; `accuracy_clean` and `accuracy_corrupt` among the answers.
        There is no `desired` where results are the same.

    Raises:
        InputError: prompts of a pair differ in length; a two-sided form for pairs of one result; a probability that
            is divided by is below 1e-12 (use the form "log"); the model is near chance; a choice is empty or outside.
        SiteError: a site does not exist or lacks what is swept.
        UnknownNameError: there is no such form.

    Source: Stolfo et al., 2023, section 3; Vig et al., 2020, section 3 (total, direct and indirect effect).
    """
    sweep = Sweep(model, task, "noise", "resample", "prob", batch_size=batch_size, progress=progress)
    same = check_pairs(task, effect)
    classes, chosen = _classes(task, over, positions, prefix)
    nodes = node_sets(model, task, at, over, chosen, heads, units)
    among = _among(task, answer_ids)
    (batches,) = contrasts(model, task, None, 0, batch_size)
    before = _ends(sweep, batches, among)
    before.check(effect, margin)
    runs = _swept(sweep, batches, nodes, direct, before)
    runs.check_swept(effect)
    data = _summary(runs, nodes, classes, effect, same, by_row)
    settings = {"at": at, "over": over, "prefix": prefix, "heads": heads, "units": units, "answer_ids": answer_ids}
    inputs = [task.clean_ids, task.corrupt_ids, task.mask, task.answer_ids, task.wrong_ids]
    record = provenance(model, inputs, effect=effect, positions=positions, **settings)
    return Mediation(data, "causal_mediation", "arithmetic-cma", record)


def _classes(task: Task, over: str | None, positions: Any, prefix: int) -> tuple[dict[str, int] | None, Any]:
    """Number of positions of each class (None where there are no classes), and the positions to sweep."""
    if prefix and (positions is not None or over not in (None, "pos", "head_pos")):
        raise InputError("prefix leaves tokens out of a sweep over all positions; choose those you want in positions=")
    if prefix:
        lengths = task.mask.sum(1)
        shortest, longest = int(lengths.min()), int(lengths.max())
        if not 0 < prefix < shortest:
            raise InputError(f"prefix is between 0 and the shortest prompt's {shortest} tokens, not {prefix}")
        return None, list(range(prefix, longest) if shortest == longest else range(prefix - shortest, 0))
    if not isinstance(positions, Mapping):
        return None, positions
    sizes, columns = {}, {}
    for name, given in positions.items():
        value = torch.as_tensor(given)
        if value.is_floating_point() or value.dtype == torch.bool or value.ndim > 2 or not value.numel():
            raise InputError(f"positions: {name!r} must be integers, one or several for each row")
        rows = value.ndim == 1 and len(value) == len(task)
        wide = value[:, None] if rows else value if value.ndim == 2 else value.reshape(1, -1).expand(len(task), -1)
        sizes[str(name)] = wide.shape[1]
        columns |= {f"{name}#{i}": wide[:, i : i + 1] for i in range(wide.shape[1])}
    return sizes, columns


@dataclass(eq=False)
class _Runs:
    """Log-probabilities of r and r' and the prediction, last in each tensor, as `Reader` gives them.

    Attributes:
        clean, corrupt: (row, 3).
        answers, wrong: (row,) r and r'.
        among: (answer,) tokens among which predictions are.
        indirect, direct: (set, row, 3), once they are found.
    """

    clean: Tensor
    corrupt: Tensor
    answers: Tensor
    wrong: Tensor
    among: Tensor
    indirect: Tensor | None = None
    direct: Tensor | None = None

    @property
    def accuracies(self) -> tuple[float, float]:
        """Share of the clean prompts answered with r, and of the corrupt ones answered with r'."""
        right = (self.clean[:, 2] == self.answers, self.corrupt[:, 2] == self.wrong)
        return float(right[0].double().mean()), float(right[1].double().mean())

    def check(self, effect: str, margin: float) -> None:
        """Refuse a model at chance, and probabilities of the two runs that cannot be divided by."""
        chance = 1 / len(self.among)
        if min(self.accuracies) < chance + margin:
            raise InputError(
                f"of {len(self.among)} answers the model gives the right one in {self.accuracies[0]:.0%} of the clean "
                f"and {self.accuracies[1]:.0%} of the corrupt prompts, where chance is {chance:.0%}: a change of its "
                "answer would tell nothing"
            )
        check_likely(effect, self.clean, self.corrupt[None], "total")

    def check_swept(self, effect: str) -> None:
        """Refuse probabilities of patched runs that cannot be divided by."""
        for what, values in (("indirect", self.indirect), ("direct", self.direct)):
            if values is not None:
                check_likely(effect, self.clean, values, what)


def _among(task: Task, answer_ids: Any) -> Tensor:
    """(answer,) tokens among which a prediction is looked for."""
    own = torch.cat([task.answer_ids, task.wrong_ids]).unique()
    among = own if answer_ids is None else torch.as_tensor(answer_ids).long().flatten().unique()
    if len(among) < 2 or not bool(torch.isin(own, among).all()):
        raise InputError("a prediction is one of two answers or more, those of the task included; pass answer_ids")
    return among


def _ends(sweep: Sweep, batches: list[Contrast], among: Tensor) -> _Runs:
    """The two runs of every row."""
    parts = []
    for contrast in batches:
        read = Reader(contrast.answer_ids, contrast.wrong_ids, among)
        parts.append([read(last_logits(sweep.model, i, [])[0]).cpu() for i in (contrast.clean, contrast.corrupt)])
    clean, corrupt = (torch.cat(values) for values in zip(*parts, strict=True))
    return _Runs(clean, corrupt, sweep.task.answer_ids, sweep.task.wrong_ids, among)


def _swept(sweep: Sweep, batches: list[Contrast], nodes: NodeSets, direct: bool, ends: _Runs) -> _Runs:
    """The patched runs of every row."""
    found = [_batch(sweep, contrast, nodes, direct, ends) for contrast in batches]
    indirect, other = zip(*found, strict=True)
    return replace(ends, indirect=torch.cat(indirect, 1), direct=torch.cat(other, 1) if direct else None)


@dataclass(eq=False)
class _Half:
    """One run that is patched with the activations of the other, as `Edits` wants it."""

    tokens: Tokens
    own: Recording | None
    other: Recording | None


def _batch(
    sweep: Sweep, contrast: Contrast, nodes: NodeSets, direct: bool, ends: _Runs
) -> tuple[Tensor, Tensor | None]:
    """(set, row, 3) of the clean run with parts of the corrupt one, and the other way round."""
    read = Reader(contrast.answer_ids, contrast.wrong_ids, ends.among)
    one, two = (last_logits(sweep.model, inputs, nodes.sites)[1] for inputs in (contrast.clean, contrast.corrupt))

    def patched(inputs: Any, base: Tensor, own: Recording | None, other: Recording | None) -> Tensor:
        edits = Edits(sweep, _Half(contrast.tokens, own, other), contrast.rows)  # type: ignore[arg-type]
        variants = [edits.of(each) for each in nodes.sets]
        out = base.expand(len(variants), -1, -1).clone()
        running = [i for i, variant in enumerate(variants) if variant]
        if running:
            mappings = [by_site(variants[i]) for i in running]
            out[running] = sweep.model.replay(inputs, mappings, metric=read, progress=sweep.progress).cpu()
        return out

    indirect = patched(contrast.clean, ends.clean[contrast.rows], one, two)
    return indirect, patched(contrast.corrupt, ends.corrupt[contrast.rows], two, one) if direct else None


def _summary(
    runs: _Runs, nodes: NodeSets, classes: dict[str, int] | None, effect: str, same: bool, by_row: bool
) -> xr.Dataset:
    """Means and medians over rows (and over the positions of a class)."""
    assert runs.indirect is not None
    indirect = runs.indirect
    grid = _Grid(nodes, classes)
    data: dict[str, Any] = {}

    def add(name: str, values: Tensor) -> None:
        pooled = grid.pooled(values)
        data[name] = (grid.dims, np.nanmean(pooled, -1))
        data[f"{name}_median"] = (grid.dims, np.nanmedian(pooled, -1))
        if by_row:
            data[f"{name}_by_row"] = ((*grid.dims, "row"), grid.by_row(values))

    add("indirect", as_effect(effect, runs.clean, indirect))
    if effect in LOGGED:
        data["log_indirect"] = (grid.dims, np.log1p(np.maximum(data["indirect"][1], np.nextafter(-1.0, 0.0))))
    if runs.direct is not None:
        add("direct", as_effect(effect, runs.clean, runs.direct))
    total = as_effect(effect, runs.clean, runs.corrupt)
    data |= {"total": ((), float(total.mean())), "total_median": ((), float(np.median(total.numpy())))}
    said, r, other = runs.clean[:, 2], runs.answers, runs.wrong
    rates = {"undesired": lambda now: (said == r) & (now != r)}
    if not same:
        rates["desired"] = lambda now: (said != now) & (now == other)
    for name, rate in rates.items():
        data[name] = (grid.dims, np.nanmean(grid.pooled(rate(indirect[..., 2]).double()), -1))
        data[f"total_{name}"] = ((), float(rate(runs.corrupt[:, 2]).double().mean()))
    data["accuracy_clean"], data["accuracy_corrupt"] = (((), value) for value in runs.accuracies)
    if nodes.present is not None:
        data["n_rows"] = (grid.dims, np.isfinite(grid.by_row(indirect[..., 0])).sum(-1))
    return xr.Dataset(data, coords=grid.coords, attrs={"effect": effect, "answers": len(runs.among)})


class _Grid:
    """The axes of a sweep, with the positions of a class as one."""

    def __init__(self, nodes: NodeSets, classes: dict[str, int] | None) -> None:
        self.nodes, self.classes = nodes, classes
        self.dims, self.coords = nodes.dims, dict(nodes.coords)
        if classes is not None:
            self.coords["pos"] = list(classes)

    def _full(self, values: Tensor) -> np.ndarray:
        """(set, row) -> (*axes, row), NaN where a row lacks the position."""
        if self.nodes.present is not None:
            values = torch.where(self.nodes.present, values, torch.nan)
        return values.reshape(*self.nodes.shape, -1).numpy()

    def _by_class(self, values: Tensor) -> list[np.ndarray]:
        """For each class (*axes without pos, position, row); positions are the last axis before the rows."""
        assert self.classes is not None
        ends = np.cumsum(list(self.classes.values()))[:-1]
        return np.split(self._full(values), ends, axis=-2)

    def pooled(self, values: Tensor) -> np.ndarray:
        """(set, row) -> (*axes, what a mean is taken over), NaN where there is nothing."""
        if self.classes is None:
            return self._full(values)
        parts = [part.reshape(*part.shape[:-2], -1) for part in self._by_class(values)]
        size = max(part.shape[-1] for part in parts)
        out = np.full((*parts[0].shape[:-1], len(parts), size), np.nan)
        for i, part in enumerate(parts):
            out[..., i, : part.shape[-1]] = part
        return out

    def by_row(self, values: Tensor) -> np.ndarray:
        """(set, row) -> (*axes, row): the mean over the positions of a class that the row has."""
        if self.classes is None:
            return self._full(values)
        parts = []
        for part in self._by_class(values):
            there = np.isfinite(part)
            count = there.sum(-2)
            total = np.where(there, part, 0.0).sum(-2)
            parts.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
        return np.stack(parts, -2)
