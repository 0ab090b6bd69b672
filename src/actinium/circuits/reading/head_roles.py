"""Roles of attention heads: previous token, duplicate token, induction, copying, and moving the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.readout import held_readout
from actinium.circuits.patching.repetition import start_ids, word_ids
from actinium.circuits.reading.readout import check_readout, head_weights
from actinium.core.errors import InputError, SiteError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.recording import Recording
from actinium.core.result import Result
from actinium.core.task import Task

__all__ = ["head_roles"]


def head_roles(
    model: Model, task: Task | None = None, *, n: int = 16, length: int = 16, top: int = 5, seed: int = 0
) -> Result:
    """Score of every head for each role, on random tokens that are repeated once: "a b c a b c".

    Args:
        model: a decoder with attention patterns.
        task: prompts for the role of a name mover; without it that role is left out.
        n: sequences.
        length: different tokens in each, 3 or more.
        top: a head copies a token that is among so many highest logits of what it writes.
        seed: of the tokens.

    Returns:
        Result over layer and head, each score between 0 and 1: `previous_token`, mean attention to the token before;
        `duplicate_token`, from the second occurrence to the first; `induction`, from the second occurrence to the token
        after the first; `copying`, share of the positions of the second half at which the token that is attended most
        is among the `top` logits of the head's own output (the final norm's scale held). With a task also
        `name_mover`: share of its prompts at whose last token the head attends more to the answer than to the wrong
        answer and copies it (0 where the answer is not in the prompt).

    Raises:
        InputError: the sequences do not fit the context or the vocabulary; the model has no heads whose output is
            known; as `patch` for a task.

    Source: Elhage et al., 2021; Olsson et al., 2022, section on per-head scores; Wang et al., 2022, section 3.
    """
    if not model.has("blocks.*.attn.pattern"):
        raise SiteError(f"{model.name} has no attention patterns, so its heads have no roles that can be read off them")
    if n < 1 or length < 3 or top < 1:
        raise InputError(f"n and top must be at least 1 and length at least 3, not {n}, {top} and {length}")
    if task is not None:
        check_readout(model, task)
    ids, start = _sequences(model, n, length, seed)
    rec = _recorded(model, ids)
    patterns = torch.stack([rec[f"blocks.{i}.attn.pattern"] for i in range(model.n_layers)])
    second = torch.arange(start + length, start + 2 * length)
    rows = patterns[:, :, :, second]
    scores = {
        "previous_token": patterns.diagonal(-1, dim1=-2, dim2=-1)[..., start:].mean((1, 3)),
        "duplicate_token": _along(rows, second - length),
        "induction": _along(rows, second - length + 1),
        "copying": _copying(model, ids, rows, rec, second, top),
    }
    if task is not None:
        scores["name_mover"] = _movers(model, task, top)
    data = {name: (("layer", "head"), value.double().numpy()) for name, value in scores.items()}
    coords = {"layer": list(range(model.n_layers)), "head": list(range(model.n_heads))}
    about = provenance(model, {"ids": ids}, n=n, length=length, top=top, seed=seed, task=task.name if task else None)
    hints = {"plot": {"variables": ["induction"]}}
    return Result(xr.Dataset(data, coords=coords, attrs=hints), "head_roles", provenance=about)


def _sequences(model: Model, n: int, length: int, seed: int) -> tuple[Tensor, int]:
    """(n, pos) ids of repeated random tokens, and where the first of them stands."""
    start = start_ids(model)
    if model.context is not None and 2 * length + len(start) > model.context:
        raise InputError(f"twice {length} tokens do not fit the context of {model.context}")
    words, random = word_ids(model, length), torch.Generator().manual_seed(seed)
    rows = torch.stack([words[torch.randperm(len(words), generator=random)[:length]] for _ in range(n)])
    return torch.cat([torch.tensor(start).expand(n, -1).long(), rows, rows], 1), len(start)


def _recorded(model: Model, inputs: Any) -> Recording:
    """Patterns and values of all heads, and the final stream."""
    with torch.no_grad():
        return model.record(inputs, ["blocks.*.attn.pattern", "blocks.*.attn.z", _final(model)])


def _final(model: Model) -> str:
    return f"blocks.{model.n_layers - 1}.resid_post"


def _highest(model: Model, rec: Recording, positions: Any, top: int) -> Iterator[list[Tensor]]:
    """For each layer and head (row, pos, top): the highest logits of what it writes there, the final norm held."""
    stream = rec[_final(model)][:, positions]
    read = held_readout(model, stream)
    silent = read(torch.zeros_like(stream))
    for layer in range(model.n_layers):
        found = head_weights(model, layer)
        if found is None:
            raise InputError(f"what the heads of {model.name} write is not known, so neither what they copy")
        z = rec[f"blocks.{layer}.attn.z"][:, positions]
        weights = found[0].to(z)
        yield [(read(z[:, :, head] @ weights[head]) - silent).topk(top, -1).indices.cpu() for head in range(z.shape[2])]


def _along(rows: Tensor, keys: Tensor) -> Tensor:
    """(layer, head) mean of (layer, row, head, query, key) at one key for each query."""
    index = keys.view(-1, 1).expand(*rows.shape[:-1], 1)
    return rows.gather(-1, index).mean((1, 3, 4))


def _copying(model: Model, ids: Tensor, rows: Tensor, rec: Recording, second: Tensor, top: int) -> Tensor:
    """(layer, head) share of queries whose most attended token is among the highest logits of the head's output."""
    attended = rows.argmax(-1)  # (layer, row, head, query)
    batch = torch.arange(len(ids)).view(1, -1, 1, 1)
    tokens = ids[batch, attended.cpu()]
    return torch.stack(
        [
            torch.stack([(b == tokens[layer, :, h, :, None]).any(-1).double().mean() for h, b in enumerate(best)])
            for layer, best in enumerate(_highest(model, rec, second, top))
        ]
    )


def _movers(model: Model, task: Task, top: int) -> Tensor:
    """(layer, head) share of prompts at whose end the head attends to the answer and copies it."""
    rec = _recorded(model, task.prompts())
    names = _candidates(task)
    rows = torch.stack([rec[f"blocks.{i}.attn.pattern"][:, :, -1] for i in range(model.n_layers)]).cpu()
    rows = rows.masked_fill(~names[None, :, None], -1.0)  # (layer, row, head, key)
    place = rows.argmax(-1)
    token = task.clean_ids[torch.arange(len(task)).view(1, -1, 1), place]
    right = (token == task.answer_ids.view(1, -1, 1)) & names.any(1).view(1, -1, 1)
    found = []
    for layer, best in enumerate(_highest(model, rec, slice(-1, None), top)):
        copied = torch.stack([(b[:, 0] == task.answer_ids[:, None]).any(-1) for b in best], 1)
        found.append((right[layer] & copied).double().mean(0))
    return torch.stack(found)


def _candidates(task: Task) -> Tensor:
    """(row, pos) bool: the places of each prompt that hold its answer or its wrong answer."""
    ids = task.clean_ids
    return ((ids == task.answer_ids[:, None]) | (ids == task.wrong_ids[:, None])) & task.mask
