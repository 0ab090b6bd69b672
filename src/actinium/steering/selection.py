"""Which site and which strength to steer with: a sweep over both, on prompts that did not make the vector."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.edits import Edit, Scale
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.journal import Journal
from actinium.core.metrics import kl
from actinium.core.model import Model
from actinium.core.passes import Positions
from actinium.core.progress import shown
from actinium.core.provenance import fingerprint, provenance
from actinium.core.task import Task
from actinium.steering.application import relative_strength, steer, steering_edits
from actinium.steering.held_out import check_held_out
from actinium.steering.side_effects import (
    answer_gap,
    as_tasks,
    check_finite,
    entropy_bits,
    last_logits,
    log_probabilities,
    row_batches,
    scored_tokens,
    targets,
)
from actinium.steering.sweep_result import Sweep
from actinium.steering.vector import SteeringVector

__all__ = ["Matches", "SweepStopped", "sweep"]

Judge = Callable[[str], float]
TEXT_POSITIONS: dict[str, Positions | None] = {
    "all": None,
    "last": None,
    "new": slice(1, None),
    "prompt": slice(0, 1),
}
"""Positions of steering -> those in a text that is read as if the model had written it behind its first token."""


@dataclass(frozen=True)
class Matches:
    """A judge: whether a regular expression is found in what was written.

    Args:
        pattern: the expression.

    Raises:
        InputError: it is no regular expression.
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise InputError(f"{self.pattern!r} is no regular expression: {error}") from None

    def __call__(self, text: str) -> bool:
        """Look for the expression."""
        return re.search(self.pattern, text) is not None


class SweepStopped(KeyboardInterrupt):
    """A sweep was stopped.

    Attributes:
        partial: what was found until then, NaN elsewhere.
    """

    def __init__(self, message: str, partial: Sweep) -> None:
        super().__init__(message)
        self.partial = partial


@dataclass(eq=False)
class Measured:
    """What is measured at each cell, and on what.

    Attributes are arguments of `sweep`; `choices`, `tasks`, `prompts` and `texts` are empty or None where not given;
    `plain_ends` keeps the unsteered logits behind the prompts.
    """

    model: Model
    vector: SteeringVector
    choices: Task | None
    prompts: list[str]
    judge: Judge | None
    texts: Tokens | None
    tasks: list[Task]
    options: dict[str, Any]
    max_new_tokens: int
    batch_size: int
    transfer: bool
    plain_ends: Tensor | None = None

    def cells(self, site: str, strengths: Sequence[float]) -> dict[tuple[str, float], dict[str, float]]:
        """The measures at a site of some strengths."""
        columns: dict[str, Tensor] = {}
        replayed = [self.choices, *self.tasks] if self.choices is not None else list(self.tasks)
        variants = [self.edits(site, s, **self.options) or {site: Scale(1.0)} for s in strengths]
        if self.prompts and self.judge is not None:
            columns["success"] = self.success(site, strengths)
        for task in replayed:
            gap = self.replayed(task.prompts(), variants, lambda z, rows, task=task: answer_gap(z, task[rows]))
            check_finite(gap, f"{task.name} at {site}")
            if task is self.choices:
                columns["logit_diff"] = gap.double().mean(1)
                columns["choice_score"] = torch.sigmoid(gap.double()).mean(1)
            else:
                columns[f"accuracy:{task.name}"] = (gap > 0).double().mean(1)
        ends = _ends(self)
        if self.plain_ends is None:
            with torch.no_grad():
                self.plain_ends = torch.cat(
                    [last_logits(self.model, p, None) for p in row_batches(ends, self.batch_size)]
                )
        plain = self.plain_ends
        spread = self.replayed(ends, variants, lambda z, rows: _spread(z, plain[rows]))
        check_finite(spread, f"the prediction at {site}")
        columns["kl"], columns["entropy"] = spread.double().mean(1).unbind(-1)
        if self.texts is not None:
            columns["perplexity_ratio"], columns["text_kl"] = self.text_effects(site, strengths)
        return {(site, s): {k: float(v[i]) for k, v in columns.items()} for i, s in enumerate(strengths)}

    def replayed(
        self, tokens: Tokens, variants: Sequence[dict[str, Edit]], read: Callable[[Tensor, slice], Tensor]
    ) -> Tensor:
        """What is read of the next token's logits, (variant, row, …), of some rows of the prompts at a time."""
        parts = []
        for start in range(0, len(tokens), self.batch_size):
            rows = slice(start, start + self.batch_size)
            parts.append(self.model.replay(tokens[rows], variants, metric=lambda z, rows=rows: read(z, rows)))
        return torch.cat(parts, 1)

    def success(self, site: str, strengths: Sequence[float]) -> Tensor:
        """Mean verdict (strength,) on what the model writes: rows of one pass have strengths of their own."""
        assert self.judge is not None
        n = len(self.prompts)
        written: list[str] = []
        for plain in (True, False):
            some = [s for s in strengths if (s == 0) == plain]
            texts, each = self.prompts * len(some), torch.tensor(some).repeat_interleave(n)
            for start in range(0, len(texts), self.batch_size):
                rows = slice(start, start + self.batch_size)
                with nullcontext() if plain else self.steered(site, each[rows]):
                    written += self.model.generate(texts[rows], max_new_tokens=self.max_new_tokens, do_sample=False)
        found = torch.tensor([float(self.judge(text)) for text in written], dtype=torch.float64)
        if not bool(torch.isfinite(found).all()):
            raise InputError("the judge gave NaN or an infinite verdict")
        order = sorted(range(len(strengths)), key=lambda i: strengths[i] != 0)
        means = torch.empty(len(strengths), dtype=torch.float64)
        means[order] = found.view(len(strengths), n).mean(1)
        return means

    def steered(self, site: str, strength: Tensor) -> AbstractContextManager[Model]:
        """The block in which each row has its own strength."""
        return steer(self.model, self.vector, strength, sites=site, transfer=self.transfer, **self.options)

    def edits(self, site: str, strength: float, **options: Any) -> dict[str, Edit]:
        """Edits at a site; none for strength 0, which is the unsteered model whatever the operator."""
        return steering_edits(self.vector, strength, sites=site, **options) if strength else {}

    def text_effects(self, site: str, strengths: Sequence[float]) -> Tensor:
        """(2, strength): perplexity ratio over all scored tokens, and mean KL per token in nats."""
        assert self.texts is not None
        options = dict(self.options)
        positions = options["positions"]
        options["positions"] = TEXT_POSITIONS.get(positions, positions) if isinstance(positions, str) else positions
        edits = [self.edits(site, s, **options) for s in strengths]
        change, apart, count = torch.zeros(len(edits)).double(), torch.zeros(len(edits)).double(), 0
        for part in row_batches(self.texts, self.batch_size):
            real = targets(part, 1)
            wanted = part.ids[:, 1:, None].cpu()
            with torch.no_grad():
                before = log_probabilities(self.model, part, None)
                for i, edit in enumerate(edits):
                    after = log_probabilities(self.model, part, edit) if edit else before
                    moved = (before - after).gather(-1, wanted)[..., 0]
                    change[i] += moved[real].double().sum()
                    apart[i] += (before.exp() * (before - after)).sum(-1)[real].double().sum()
            count += int(real.sum())
        check_finite(change, f"the perplexity at {site}")
        return torch.stack([(change / count).exp(), apart / count])


def sweep(
    model: Model,
    vector: SteeringVector,
    strengths: Sequence[float],
    *,
    sites: str | Sequence[str] | None = None,
    choices: Task | None = None,
    prompts: Sequence[str] = (),
    judge: Judge | None = None,
    texts: Any = None,
    tasks: Task | Sequence[Task] = (),
    made_from: Sequence[str] | None = None,
    operator: str = "add",
    positions: Positions | str | None = "all",
    reference: Mapping[str, Any] | None = None,
    max_new_tokens: int = 20,
    batch_size: int = 64,
    transfer: bool = False,
    path: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Sweep:
    """Steer at one site after the other, at each strength, and measure what it does.

    Scores of the next token are replayed (only what the vector changes is computed); texts are generated greedily, all
    strengths of a site side by side. Strength 0 is always measured: it is the unsteered model, whatever the operator.

    Args:
        model: a causal language model.
        vector: with a direction at each site.
        strengths: one or more.
        sites: names and patterns among those of the vector; by default all where it is not zero.
        choices: held-out prompts whose answer matches the behaviour and whose wrong one does not.
        prompts: held-out prompts to write on from.
        judge: called with each new text (without its prompt); gives a number or a bool, higher is better.
        texts: texts or tokens of other kinds, whose perplexity should stay; read as if the model had written them.
        tasks: other skills.
        made_from: the texts that made the vector, where the vector itself does not say (`made["texts"]`).
        operator, positions, reference: as in `steer`; strength 0 stands for the unsteered model with "affine", too.
        max_new_tokens: length of generated texts.
        batch_size: rows in a pass.
        transfer: allow a vector that was made on another model.
        path: a file that keeps finished cells; the same call goes on from it, and may add strengths and sites. What
            was judged is known by the judge's name (or settings, of a dataclass), which a lambda has not.
        progress: show a progress bar.

    Returns:
        Sweep over site and strength, of what the arguments allow: `success` (mean verdict), `logit_diff` and
        `choice_score` (see `ab_probability`), `kl` (KL(unsteered || steered) of the token behind the prompts, nats),
        `entropy` (of that token, bits), `perplexity_ratio` and `text_kl` (per token, nats) of the texts, `accuracy`
        and `accuracy_lost` by task and `worst_accuracy_lost`; and `relative_norm`, |strength v| over the mean length
        of the activations.

    Raises:
        InputError: nothing to measure on, no strengths, a prompt that also made the vector, a strength that makes
            NaN, or a lambda as judge together with `path`; and as `steer`.
        SweepStopped: stopped by Ctrl-C; `partial` holds what was found, and `path` lets the same call go on.

    Source: Rimsky et al., 2024, sections 4 to 6 (sweep over layers and multipliers).
    """
    given = _strengths(strengths)
    chosen = vector if sites is None else vector.only(sites)
    chosen.check(model, transfer)
    # At a site where the texts did not differ there is nothing to add.
    sites = [site for site in chosen.sites if bool((chosen[site] != 0).any())]
    held = _check(chosen, choices, prompts, judge, made_from)
    if path is not None and "<lambda>" in getattr(judge, "__qualname__", ""):
        raise InputError("a file of cells is kept under the judge's name: give a named function, or steering.Matches")
    options: dict[str, Any] = {"operator": operator, "positions": positions, "reference": reference}
    # Arguments that do not go together are refused before anything runs.
    steering_edits(chosen, next((s for s in given if s), 1.0), **options)
    others = as_tasks(tasks) if isinstance(tasks, Task) or len(tasks) else []
    read = None if texts is None else scored_tokens(model, texts, 1)
    measured = Measured(
        model, vector, choices, list(prompts), judge, read, others, options, max_new_tokens, batch_size, transfer
    )
    inputs = _inputs(measured)
    about = provenance(
        model,
        inputs,
        operator=operator,
        positions=str(positions),
        reference=reference,
        judge=judge,
        max_new_tokens=max_new_tokens,
        held_out=held,
    )
    head = {key: fingerprint(str(about[key])) for key in ("model", "inputs", "settings")}
    file = Journal(path, "sweep", head)
    cells = {(row["site"], row["strength"]): row["values"] for row in file.rows}
    rows = len(prompts) if judge is not None else 1
    size = max(1, batch_size // max(1, rows))
    pieces = [
        (site, left[i : i + size])
        for site in sites
        for left in [[s for s in given if (site, s) not in cells]]
        for i in range(0, len(left), size)
    ]
    done = 0
    try:
        for site, some in shown(pieces, "steering", progress):
            found = measured.cells(site, some)
            cells |= found
            for (_, strength), values in found.items():
                file.add({"site": site, "strength": strength, "values": values})
            done += 1
    except KeyboardInterrupt:
        if not cells:
            raise
        where = "in .partial" if path is None else f"in .partial; the same call goes on from {path}"
        message = f"{done} of {len(pieces)} parts of the sweep were done and are kept {where}"
        raise SweepStopped(message, _result(measured, given, cells, about, sites)) from None
    return _result(measured, given, cells, about, sites)


def _strengths(strengths: Sequence[float]) -> list[float]:
    given = sorted({0.0, *(float(s) for s in strengths)})
    if len(given) < 2 or not np.isfinite(given).all():
        raise InputError(f"expected one finite strength or more beside 0, got {list(strengths)}")
    return given


def _check(
    vector: SteeringVector,
    choices: Task | None,
    prompts: Sequence[str],
    judge: Judge | None,
    made_from: Sequence[str] | None,
) -> str:
    if isinstance(prompts, str):
        raise InputError("prompts: give a list, not one text")
    if choices is None and not prompts:
        raise InputError("a sweep needs prompts that it measures on: pass choices, or prompts and a judge")
    if choices is None and judge is None:
        raise InputError("prompts alone say nothing of success: pass a judge of what is written, or choices")
    if judge is not None and not prompts:
        raise InputError("the judge needs prompts to write on from")
    return check_held_out([*prompts, *([] if choices is None else choices.clean)], vector.made, made_from)


def _inputs(measured: Measured) -> dict[str, Any]:
    """Everything that the measures depend on."""
    tasks = {f"task:{t.name}": t for t in measured.tasks}
    if measured.choices is not None:
        tasks["choices"] = measured.choices
    return {
        "directions": dict(measured.vector.directions),
        "prompts": measured.prompts,
        "texts": None if measured.texts is None else measured.texts.ids,
        **{name: [t.clean_ids, t.mask, t.answer_ids, t.wrong_ids] for name, t in tasks.items()},
    }


def _ends(measured: Measured) -> Tokens:
    """The prompts whose next token is looked at: those to write on from, else those of the choices."""
    if measured.prompts:
        tokens = measured.model.prepare(measured.prompts).tokens
        assert tokens is not None
        return tokens
    assert measured.choices is not None
    return measured.choices.prompts()


def _spread(logits: Tensor, base: Tensor) -> Tensor:
    """(n, batch, 2): KL(base || each) in nats and entropy in bits, of logits (n, batch, d_vocab)."""
    none = torch.zeros(len(base), dtype=torch.long)
    return torch.stack([torch.stack([kl(one, none, none, base), entropy_bits(one)], -1) for one in logits])


def _result(
    measured: Measured,
    strengths: list[float],
    cells: dict[tuple[str, float], dict[str, float]],
    about: dict[str, Any],
    sites: list[str],
) -> Sweep:
    """The grid, NaN where a cell was not reached."""
    rows = [[cells.get((site, s), {}) for s in strengths] for site in sites]
    names = list(dict.fromkeys(name for row in rows for cell in row for name in cell))
    grid = {name: np.array([[cell.get(name, np.nan) for cell in row] for row in rows]) for name in names}
    dims = ("site", "strength")
    variables: dict[str, Any] = {name: (dims, grid[name]) for name in names if ":" not in name}
    coords: dict[str, Any] = {"site": sites, "strength": strengths}
    if measured.tasks:
        accuracy = np.stack([grid[f"accuracy:{t.name}"] for t in measured.tasks])
        # Every site has a cell of strength 0, and what was measured there is the unsteered model.
        plain = accuracy[:, :, strengths.index(0.0)]
        lost = np.nanmax(plain, 1)[:, None, None] - accuracy
        variables["worst_accuracy_lost"] = (dims, lost.max(0))
        variables["accuracy"] = (("task", *dims), accuracy)
        variables["accuracy_lost"] = (("task", *dims), lost)
        coords["task"] = [t.name for t in measured.tasks]
    unit = relative_strength(measured.model, measured.vector.only(sites), _ends(measured))
    variables["relative_norm"] = (dims, np.outer([unit[site] for site in sites], np.abs(strengths)))
    data = xr.Dataset(variables, coords, {"plot": {"x": "strength", "y": "site"}})
    return Sweep(data, "sweep", "caa", about)
