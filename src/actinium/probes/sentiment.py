"""Where a concept stands in a text: projections of its tokens, and whether neutral tokens summarise it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.edits import Replace
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.task import Task
from actinium.probes.directional import (
    Sides,
    TokenFilter,
    answer_differences,
    directional_patch,
    token_positions,
)
from actinium.probes.directions import PAPER, Direction, unit_vector
from actinium.probes.positions import pick

__all__ = ["PUNCTUATION", "summarization_score", "token_projection"]

PUNCTUATION = frozenset({",", ".", ";", ":", "!", "?"})
KEYS_AND_VALUES = ("blocks.*.attn.k", "blocks.*.attn.v")


def token_projection(
    model: Model,
    inputs: Any,
    direction: Any,
    site: str,
    *,
    lexicon: Mapping[str, int] | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> Result:
    """How far each token of texts lies along a direction.

    Args:
        model: a model with a tokenizer.
        inputs: texts or tokens.
        direction: `Direction`, whose threshold counts, or (d,).
        site: name of one site with positions.
        lexicon: words (as tokens without spaces around them, in lower case) that are known to be positive (1) or
            negative (-1).
        batch_size: texts in a pass.
        progress: show a progress bar.

    Returns:
        Result over token, in the order of the texts: `projection` (x . theta + bias), `text`, `row`, `position`; with
        a lexicon also `precision`, the share of its tokens whose sign is right, `precision_positive`,
        `precision_negative` (NaN where there is none) and `found`, their number.

    Raises:
        InputError: the site has no positions, the direction does not fit, or no token is in the lexicon.
        SiteError: the site does not exist.

    Source: Tigges et al., 2023.
    """
    theta, bias = (direction.theta, direction.bias) if isinstance(direction, Direction) else (unit_vector(direction), 0)
    rec = model.record(inputs, site, batch_size=batch_size, progress=progress)
    values, real = rec[site], rec.mask
    if real is None or rec.tokens is None or values.ndim != 3 or values.shape[-1] != len(theta):
        raise InputError(f"{site}: activations of shape {tuple(values.shape)} do not fit a direction of {len(theta)}")
    projected = (values.double().cpu() @ theta + bias)[real]
    texts = [token for ids, mask in zip(rec.tokens, real, strict=True) for token in model.to_str_tokens(ids[mask])]
    rows, _ = real.nonzero(as_tuple=True)
    data: dict[str, Any] = {
        "projection": (("token",), projected.numpy()),
        "text": (("token",), np.array(texts)),
        "row": (("token",), rows.numpy()),
        "position": (("token",), ((real.cumsum(1) - 1)[real]).numpy()),
    }
    if lexicon is not None:
        data |= _precision(projected, texts, lexicon)
    record = provenance(model, [rec.tokens, real, theta], site=site, bias=float(bias), lexicon=dict(lexicon or {}))
    return Result(xr.Dataset(data, attrs={"plot": {"variables": ["projection"]}}), "token_projection", PAPER, record)


def _precision(projected: Tensor, texts: list[str], lexicon: Mapping[str, int]) -> dict[str, Any]:
    if any(sign not in (1, -1) for sign in lexicon.values()):
        raise InputError("lexicon: every word is positive (1) or negative (-1)")
    known = torch.tensor([lexicon.get(text.strip().lower(), 0) for text in texts])
    if not bool((known != 0).any()):
        raise InputError("no token of the texts is in the lexicon")
    right = (projected.sign() == known).double()
    each = {name: right[known == sign] for name, sign in (("positive", 1), ("negative", -1))}
    shares = {f"precision_{name}": ((), float(r.mean()) if len(r) else float("nan")) for name, r in each.items()}
    return {"precision": ((), float(right[known != 0].mean())), **shares, "found": ((), int((known != 0).sum()))}


def summarization_score(
    model: Model,
    task: Task,
    direction: Any,
    sites: str | Sequence[str],
    *,
    neutral: TokenFilter = PUNCTUATION,
    sides: Sides | None = None,
) -> Result:
    """How much of a concept's effect goes through neutral tokens, such as commas and full stops.

    Two measures, with effects from 0 (none) to 1 (a full flip) as in `directional_patch`. Along the direction: it is
    patched at the neutral tokens alone, at the valenced ones (where clean and flipped prompts differ) alone, and at
    both. With whole activations (the freeze experiment): keys and values of the neutral tokens come from the flipped
    run while all else is clean (`carried`), or from the clean run while all else is flipped (`without`).

    Args:
        model: a causal language model.
        task: clean and flipped prompts. The last token is never neutral.
        direction: as in `directional_patch`.
        sites: as there.
        neutral: the class of neutral tokens; those that differ between clean and flipped prompts are left out.
        sides: token ids that stand for each of two answers.

    Returns:
        Result of the numbers `neutral`, `valenced`, `both`, `share` = neutral / (neutral + valenced) (NaN where both
        are zero or of different sign), `carried` and `without`.

    Raises:
        InputError: no prompt has a neutral token, prompts do not differ, or as `directional_patch`.
        SiteError: a site does not exist.

    Source: Tigges et al., 2023.
    """
    subject = task.subject
    if not bool(subject.any()):
        raise InputError("clean and flipped prompts do not differ")
    where = _neutral(model, task, neutral)
    valenced = _positions_of(subject, task.mask)
    both = torch.cat([where, valenced], 1)
    found = {
        name: float(directional_patch(model, task, direction, sites, positions=place, sides=sides)["effect"])
        for name, place in (("neutral", where), ("valenced", valenced), ("both", both))
    }
    one, other = found["neutral"], found["valenced"]
    found["share"] = one / (one + other) if one * other >= 0 and one + other != 0 else float("nan")
    found |= _frozen(model, task, where, sides)
    record = provenance(model, [task.clean_ids, task.corrupt_ids], sites=sites, neutral=where, direction=direction)
    return Result(xr.Dataset({k: ((), v) for k, v in found.items()}), "summarization_score", PAPER, record)


def _neutral(model: Model, task: Task, neutral: TokenFilter) -> Tensor:
    """Positions (n, k) of the neutral tokens that are no subject and not the last."""
    places = token_positions(model, task.prompts(), neutral)
    length = task.mask.sum(1, keepdim=True)
    nowhere = task.mask.shape[1]
    first = task.mask.int().argmax(1, keepdim=True)
    inside = places < length - 1
    column = torch.where(inside, places + first, 0)
    kept = inside & ~task.subject.gather(1, column)
    if not bool(kept.any()):
        raise InputError("no prompt has a neutral token before its last one")
    return torch.where(kept, places, nowhere)


def _positions_of(flags: Tensor, mask: Tensor) -> Tensor:
    """Token positions (n, k) where flags (n, column) stand, filled up with positions that no text has."""
    first, nowhere = mask.int().argmax(1), mask.shape[1]
    rows = [(row.nonzero()[:, 0] - start).tolist() for row, start in zip(flags, first, strict=True)]
    most = max(map(len, rows))
    return torch.tensor([row + [nowhere] * (most - len(row)) for row in rows])


def _frozen(model: Model, task: Task, where: Tensor, sides: Sides | None) -> dict[str, float]:
    """Effects of keys and values at the neutral tokens, from the other run."""
    runs = [task.prompts(flip) for flip in (False, True)]
    held = [model.record(run, list(KEYS_AND_VALUES)) for run in runs]
    differences = []
    for run, other in ((runs[0], None), (runs[1], None), (runs[0], held[1]), (runs[1], held[0])):
        edits = {name: Replace(other[name]).at(positions=where) for name in other.sites} if other else None
        with torch.no_grad():
            if edits is None:
                logits = model.logits(run)
            else:
                with model.edit(edits):
                    logits = model.logits(run)
        differences.append(float(answer_differences(pick(logits, run.mask, -1), task, sides).mean()))
    clean, flipped, carried, without = differences
    return {"carried": (carried - clean) / (flipped - clean), "without": (without - clean) / (flipped - clean)}
