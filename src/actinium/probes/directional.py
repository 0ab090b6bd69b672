"""Whether a model uses a direction: exchange or remove the part of the stream along it, and look at the answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from actinium.core.edits import Edit, ProjectOut, ReplaceWithin
from actinium.core.errors import InputError, SiteError, UnknownNameError, unknown
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.task import Task
from actinium.probes.directions import PAPER, Direction, unit_vector
from actinium.probes.positions import pick

__all__ = [
    "MODES",
    "answer_differences",
    "direction_effect",
    "directional_ablate",
    "directional_patch",
    "token_positions",
]

MODES = ("mean", "zero", "resample")
# Logit differences of clean and flipped runs closer than this leave the effect of a patch undefined.
SAME = 1e-4
Sides = tuple[Sequence[int], Sequence[int]]
TokenFilter = Collection[str] | Callable[[str], bool]


def token_positions(model: Model, tokens: Tokens, wanted: TokenFilter) -> Tensor:
    """Positions (n, k) of the tokens of a class in each text, filled up with positions that no text has.

    Args:
        model: gives the tokens their text.
        tokens: the texts.
        wanted: texts of tokens without spaces around them, such as {",", "."}, or a function that says which.

    Raises:
        InputError: no text has such a token.
    """
    if isinstance(wanted, str):
        raise InputError(f"tokens are given as a collection such as {{{wanted!r}}}, or as a function")
    test = wanted if callable(wanted) else set(wanted).__contains__
    rows = [
        [i for i, token in enumerate(model.to_str_tokens(ids[real])) if test(token.strip())]
        for ids, real in zip(tokens.ids, tokens.mask, strict=True)
    ]
    most = max(map(len, rows))
    if not most:
        raise InputError("no text holds a token of this class")
    nowhere = tokens.ids.shape[1]
    return torch.tensor([row + [nowhere] * (most - len(row)) for row in rows])


def answer_differences(logits: Tensor, task: Task, sides: Sides | None = None) -> Tensor:
    """Logit of the right answer minus that of the wrong one (n,), float64.

    Args:
        logits: (n, d_vocab) at the last position.
        task: its answers.
        sides: token ids that stand for each of two answers; then it is the mean over the side that holds the row's
            answer minus the mean over the other.

    Raises:
        InputError: an answer is on neither side, or a token on both.
    """
    values = logits.double().cpu()
    if sides is None:
        return (values.gather(1, task.answer_ids[:, None]) - values.gather(1, task.wrong_ids[:, None]))[:, 0]
    one, other = (torch.as_tensor(list(side)).long() for side in sides)
    if not len(one) or not len(other) or bool(torch.isin(one, other).any()):
        raise InputError("sides: two collections of token ids that have none in common")
    first = torch.isin(task.answer_ids, one)
    if not bool((first | torch.isin(task.answer_ids, other)).all()):
        raise InputError("sides: there is a row whose answer is on neither side")
    difference = values[:, one].mean(1) - values[:, other].mean(1)
    return torch.where(first, difference, -difference)


def _units(model: Model, direction: Any, sites: str | Sequence[str]) -> dict[str, Tensor]:
    """A unit direction for each site that is meant."""
    names = [site.name for site, _, _ in model.resolve(sites)]
    if isinstance(direction, Mapping):
        missing = [name for name in names if name not in direction]
        if missing:
            raise SiteError(unknown("direction for the site", missing[0], list(direction)))
        return {name: _theta(direction[name]) for name in names}
    return {name: _theta(direction) for name in names}


def _theta(direction: Any) -> Tensor:
    return direction.theta if isinstance(direction, Direction) else unit_vector(direction)


def _where(model: Model, tokens: Tokens, positions: Any, wanted: TokenFilter | None) -> Any:
    if wanted is None:
        return positions
    if positions is not None:
        raise InputError("choose positions or tokens, not both")
    return token_positions(model, tokens, wanted)


def _at(edit: Edit, where: Any) -> Edit:
    return edit if where is None else edit.at(positions=where)


def _run(model: Model, tokens: Tokens, edits: Mapping[str, Edit] | None = None) -> Tensor:
    """Logits (n, d_vocab) at each text's last token."""
    with torch.no_grad():
        if not edits:
            return pick(model.logits(tokens), tokens.mask, -1)
        with model.edit(edits):
            return pick(model.logits(tokens), tokens.mask, -1)


def directional_ablate(
    model: Model,
    inputs: Any,
    direction: Any,
    sites: str | Sequence[str],
    *,
    positions: Any = None,
    tokens: TokenFilter | None = None,
    mode: str = "mean",
    reference: Any = None,
    seed: int = 0,
) -> Tensor:
    """Logits at the last token when the part along a direction is replaced: x - (x . theta) theta + mu theta.

    Args:
        model: a causal language model.
        inputs: texts or tokens.
        direction: `Direction`, (d,), or one for each site by name.
        sites: names and patterns; the part is replaced at each.
        positions: token positions (0 first, -1 last), or (n, k) others in each text; None for all.
        tokens: instead of positions, the class of tokens: a collection of texts such as {",", "."}, or a function.
        mode: "mean" (mu is the mean projection at the site, over the positions that are replaced), "zero" (mu = 0),
            or "resample" (mu is another projection at every position, drawn from the same ones).
        reference: texts or tokens that mu is taken from, best with both sides in equal numbers; the inputs themselves
            by default.
        seed: of the draws of "resample".

    Returns:
        (n, d_vocab).

    Raises:
        InputError: the direction is zero or does not fit, or no text has such a token.
        UnknownNameError: there is no such mode.
        SiteError: a site does not exist.

    Source: Tigges et al., 2023.
    """
    ready = _tokens(model, inputs)
    units = _units(model, direction, sites)
    where = _where(model, ready, positions, tokens)
    source = ready if reference is None else _tokens(model, reference)
    place = where if reference is None else _where(model, source, positions, tokens)
    seen = _seen(model, source, units, place, mode)
    return _run(model, ready, _ablation(ready, units, where, seen, mode, seed))


def _tokens(model: Model, inputs: Any) -> Tokens:
    tokens = model.prepare(inputs).tokens
    if tokens is None:
        raise InputError("expected texts or token ids")
    return tokens


def _seen(model: Model, tokens: Tokens, units: Mapping[str, Tensor], where: Any, mode: str) -> dict[str, Tensor]:
    """By site the activations (m, d) of the texts at the chosen positions; none are needed for zeros."""
    if mode not in MODES:
        raise UnknownNameError(unknown("mode", str(mode), MODES))
    if mode == "zero":
        return {}
    rec = model.record(tokens, list(units))
    chosen = _chosen(tokens, where)
    for name, theta in units.items():
        shape = tuple(rec[name].shape)
        if len(shape) != 3 or shape[-1] != len(theta):
            raise InputError(f"{name}: activations of shape {shape} do not fit a direction of {len(theta)}")
    return {name: rec[name].cpu()[chosen].double() for name in units}


def _chosen(tokens: Tokens, where: Any) -> Tensor:
    """Which columns (n, column) hold the positions, bool."""
    if where is None:
        return tokens.mask
    out = torch.zeros_like(tokens.mask)
    start = tokens.mask.int().argmax(1)
    for row, length in enumerate(tokens.mask.sum(1).tolist()):
        if isinstance(where, slice):
            places = range(length)[where]
        else:
            given = torch.as_tensor(where)
            given = given[row] if given.ndim == 2 else given.reshape(-1)
            places = [p + length if p < 0 else p for p in given.tolist()]
        out[row, [int(start[row]) + p for p in places if 0 <= p < length]] = True
    return out


def _ablation(
    ready: Tokens, units: Mapping[str, Tensor], where: Any, seen: Mapping[str, Tensor], mode: str, seed: int
) -> dict[str, Edit]:
    """Edits of the texts `ready` at `where`; mu comes from the activations `seen` in the reference."""
    if mode == "zero":
        return {name: _at(ProjectOut(theta), where) for name, theta in units.items()}
    random = torch.Generator().manual_seed(seed)
    edits: dict[str, Edit] = {}
    for name, theta in units.items():
        pool = seen[name] @ theta
        if mode == "mean":
            value = pool.mean() * theta
        else:
            drawn = pool[torch.randint(len(pool), ready.ids.shape, generator=random)]
            value = drawn[..., None] * theta
        edits[name] = _at(ReplaceWithin(value.float(), theta.float()), where)
    return edits


def directional_patch(
    model: Model,
    task: Task,
    direction: Any,
    sites: str | Sequence[str],
    *,
    positions: Any = None,
    tokens: TokenFilter | None = None,
    sides: Sides | None = None,
) -> Result:
    """Effect of giving the clean run the flipped run's part along a direction: x + ((x_flip - x) . theta) theta.

    Args:
        model: a causal language model.
        task: clean prompts, and flipped ones (corrupt) that have the other answer.
        direction, sites, positions, tokens: as in `directional_ablate`.
        sides: token ids that stand for each of two answers; see `answer_differences`.

    Returns:
        Result over row: `clean`, `flipped` and `patched` (logit differences of the clean prompt's answers, in nats);
        and `effect` = (mean patched - mean clean) / (mean flipped - mean clean), 0 without effect and 1 for a full
        flip; `official` = 1 - effect, as in the paper's code; `changed`, the share of rows whose answer changes.

    Raises:
        InputError: clean and flipped logit differences are the same, so that no effect is defined; or as
            `directional_ablate`.
        SiteError: a site does not exist.

    Source: Tigges et al., 2023.
    """
    ends = [answer_differences(_run(model, task.prompts(flip)), task, sides) for flip in (False, True)]
    gap = float((ends[1] - ends[0]).mean())
    if abs(gap) < SAME:
        raise InputError("clean and flipped prompts have the same logit difference: the effect is not defined")
    units = _units(model, direction, sites)
    where = _where(model, task.prompts(), positions, tokens)
    source = model.record(task.prompts(corrupt=True), list(units))
    edits = {name: _at(ReplaceWithin(source[name], theta.float()), where) for name, theta in units.items()}
    patched = answer_differences(_run(model, task.prompts(), edits), task, sides)
    effect = float((patched - ends[0]).mean()) / gap
    data = {
        "clean": (("row",), ends[0].numpy()),
        "flipped": (("row",), ends[1].numpy()),
        "patched": (("row",), patched.numpy()),
        "effect": ((), effect),
        "official": ((), 1 - effect),
        "changed": ((), float(((patched > 0) != (ends[0] > 0)).double().mean())),
    }
    record = provenance(
        model, [task.clean_ids, task.corrupt_ids, units], sites=list(units), positions=where, sides=sides
    )
    return Result(xr.Dataset(data), "directional_patch", PAPER, record)


def direction_effect(
    model: Model,
    task: Task,
    direction: Any,
    sites: str | Sequence[str],
    *,
    positions: Any = None,
    tokens: TokenFilter | None = None,
    mode: str = "mean",
    reference: Any = None,
    sides: Sides | None = None,
    debias: bool = False,
    chance: float = 0.5,
    random: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """How much of the accuracy above chance is lost without a direction, and without random ones.

    Args:
        model: a causal language model.
        task: its clean prompts and their answers; a row is right if its answer has the larger logit.
        direction, sites, positions, tokens, mode: as in `directional_ablate`.
        reference: as there; clean and corrupt prompts of the task by default.
        sides: token ids that stand for each of two answers; see `answer_differences`.
        debias: subtract the model's mean preference for one of two answers, before and after.
        chance: accuracy of guessing.
        random: random directions ablated in the same way, for comparison.
        seed: of random directions and of "resample".
        progress: show a progress bar.

    Returns:
        Result over random: `random_ablated` and `random_lost`; and `clean`, `ablated` (accuracies, 0 to 1),
        `lost_above_chance` = (clean - ablated) / (clean - chance), and the mean logit differences `clean_diff` and
        `ablated_diff`.

    Raises:
        InputError: the accuracy is not above chance, answers do not come in two kinds (debias), or as
            `directional_ablate`.
        UnknownNameError: there is no such mode.
        SiteError: a site does not exist.

    Source: Tigges et al., 2023.
    """
    if not 0 <= chance < 1 or random < 0:
        raise InputError(f"chance must be from 0 to below 1 and random 0 or more, got {chance} and {random}")
    prompts = task.prompts()
    units = _units(model, direction, sites)
    where = _where(model, prompts, positions, tokens)
    if reference is None:
        source, each = _both(task), isinstance(where, Tensor) and where.ndim == 2 and tokens is None
        place = torch.cat([where, where]) if each else _where(model, source, positions, tokens)
    else:
        source = _tokens(model, reference)
        place = _where(model, source, positions, tokens)

    seen = _seen(model, source, units, place, mode)

    def measured(directions: Mapping[str, Tensor] | None) -> tuple[float, float]:
        edits = None if directions is None else _ablation(prompts, directions, where, seen, mode, seed)
        found = answer_differences(_run(model, prompts, edits), task, sides)
        if debias:
            found = _without_bias(found, task, sides)
        return float((found > 0).double().mean()), float(found.mean())

    clean, clean_diff = measured(None)
    if not clean > chance:
        raise InputError(f"the model's accuracy {clean:.3g} is not above chance {chance:.3g}: nothing can be lost")
    ablated, ablated_diff = measured(units)
    generator = torch.Generator().manual_seed(seed)
    others = []
    for _ in shown(range(random), "directions", progress):
        drawn = unit_vector(torch.randn(len(next(iter(units.values()))), generator=generator, dtype=torch.float64))
        others.append(measured(dict.fromkeys(units, drawn))[0])
    share = 1 / (clean - chance)
    data = {
        "random_ablated": (("random",), others),
        "random_lost": (("random",), [(clean - other) * share for other in others]),
        "clean": ((), clean),
        "ablated": ((), ablated),
        "lost_above_chance": ((), (clean - ablated) * share),
        "clean_diff": ((), clean_diff),
        "ablated_diff": ((), ablated_diff),
    }
    settings = {"sites": list(units), "mode": mode, "debias": debias, "chance": chance, "random": random}
    record = provenance(model, [task.clean_ids, task.corrupt_ids, units], seed, sides=sides, **settings)
    return Result(xr.Dataset(data), "direction_effect", PAPER, record)


def _both(task: Task) -> Tokens:
    """Clean and flipped prompts together."""
    one, other = task.prompts(), task.prompts(corrupt=True)
    return Tokens(torch.cat([one.ids, other.ids]), torch.cat([one.mask, other.mask]), torch.arange(2 * len(one)))


def _without_bias(differences: Tensor, task: Task, sides: Sides | None) -> Tensor:
    """Differences from which the mean preference for the first of two answers is taken."""
    one = {int(i) for i in sides[0]} if sides else {int(task.answer_ids[0])}
    first = torch.tensor([int(i) in one for i in task.answer_ids])
    other = torch.tensor([int(i) in one for i in task.wrong_ids])
    if not bool((first != other).all()) or bool(first.all()) or not bool(first.any()):
        raise InputError("debias needs a task of two answers, each of them right in some rows")
    towards = torch.where(first, differences, -differences)
    # The mean of both sides' means, so that more rows of one side are no preference for it.
    bias = (towards[first].mean() + towards[~first].mean()) / 2
    return torch.where(first, towards - bias, -(towards - bias))
