"""What removing latents of an attention layer changes in a model's output, the dictionary's error held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.edits import Fn
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.metrics import get_metric
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.task import Task
from actinium.features.attention_attribution import PAPER, check_layer, places_of
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.splicing import splice

__all__ = ["latent_effects"]

ERROR = "error"
Part = tuple[int, ...] | str


def latent_effects(
    model: Model,
    layer: int,
    dictionary: Dictionary,
    inputs: Any,
    latents: Sequence[int | Sequence[int]],
    *,
    positions: Sequence[int] | None = None,
    metric: str | Callable[..., Tensor] | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> Result:
    """Set latents to zero while the error term stays, and see what changes.

    Args:
        model: a causal language model.
        layer: whose attention the dictionary reads.
        dictionary: an autoencoder of `blocks.{layer}.attn.z`.
        inputs: a Task, or texts or tokens.
        latents: each a latent, or several that are removed together.
        positions: where, counted in each text (padding does not count, -1 is the last token); everywhere by default.
        metric: of a Task, as in `actinium.metrics`; its own by default. Of texts the mean next-token loss is taken.
        batch_size: rows in a pass.
        progress: show a progress bar.

    Returns:
        Result over part: `effect`, the mean change (removed minus whole) of the metric or of the loss in nats, and
        `by_row`; `whole`, its mean with the error term and all latents, which is the model's own. Parts are the given
        latents ("f3", "f3+f7"), then "error" (the dictionary's error removed at these positions).

    Raises:
        SiteError, InputError: the layer or the dictionary does not fit; a latent or position is out of range; a metric
            is given without a Task; the model does not predict the next token.

    Source: Kissane et al., 2024, causal effects with the error term held.
    """
    check_layer(model, layer, dictionary)
    if model.kind != "causal-lm":
        raise InputError(f"{model.name} is a {model.kind}; effects are read from the next token's logits")
    parts: list[Part] = [*_parts(latents, dictionary.d_sae), ERROR]
    task = inputs if isinstance(inputs, Task) else None
    if task is None and metric is not None:
        raise InputError("a metric scores the answers of a Task; without one the effect is that on the loss")
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, not {batch_size}")
    tokens = model.prepare(inputs if task is None else task.prompts()).tokens
    if tokens is None:
        raise InputError("effects are measured on texts or tokens")
    where = _where(tokens.mask, positions)
    score = _scorer(model, task, metric)
    site = f"blocks.{layer}.attn.z"
    found: list[Tensor] = []
    for a in shown(range(0, len(tokens), batch_size), "removing latents", progress):
        rows = slice(a, a + batch_size)
        batch, place = tokens[rows], where[rows].to(model.device)
        with torch.no_grad():
            with splice(model, site, dictionary):
                reference = model.logits(batch)
            values = [score(reference, batch, rows, reference)]
            for part in parts:
                with _removed(model, site, dictionary, part, place):
                    values.append(score(model.logits(batch), batch, rows, reference))
        found.append(torch.stack(values).double().cpu())
    table = torch.cat(found, 1)
    change = table[1:] - table[:1]
    names = [part if isinstance(part, str) else "+".join(f"f{i}" for i in part) for part in parts]
    data = xr.Dataset(
        {
            "effect": ("part", change.mean(1).numpy()),
            "by_row": (("part", "row"), change.numpy()),
            "whole": ((), float(table[0].mean())),
        },
        coords={"part": names, "row": np.arange(table.shape[1])},
        attrs={"plot": {"kind": "bar", "variables": ["effect"], "ylabel": "change"}},
    )
    named = "loss" if task is None else (metric or task.metric)
    about: dict[str, Any] = {
        "layer": layer,
        "parts": names,
        "positions": None if positions is None else list(positions),
    }
    about["metric"] = named if isinstance(named, str) else "metric"
    record = provenance(model, [tokens.ids, tokens.mask], dictionary=repr(dictionary), **about)
    return Result(data, "latent_effects", PAPER, record)


def _parts(latents: Sequence[int | Sequence[int]], d_sae: int) -> list[Part]:
    groups = [(int(g),) if isinstance(g, int | np.integer) else tuple(int(i) for i in g) for g in latents]
    if not groups or not all(groups):
        raise InputError("no latents are given, or a group of none")
    bad = [i for group in groups for i in group if not 0 <= i < d_sae]
    if bad:
        raise InputError(f"there is no latent {bad[0]}: the dictionary has {d_sae}")
    return list(groups)


def _where(mask: Tensor, positions: Sequence[int] | None) -> Tensor:
    """(row, pos) bool: the columns of the positions that are meant."""
    if positions is None:
        return mask
    if not len(positions):
        raise InputError("positions= names none; leave it out for all of them")
    place, _ = places_of(mask)
    where = torch.zeros_like(mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        for p in positions:
            if not -length <= p < length:
                raise InputError(f"there is no position {p} in row {row}, which has {length} tokens")
            where[row, place[row, p % length]] = True
    return where


def _scorer(model: Model, task: Task | None, metric: Any) -> Callable[[Tensor, Tokens, slice, Tensor], Tensor]:
    """(row,) number of a batch's logits."""
    if task is not None:
        if not bool(task.mask[:, -1].all()):
            raise InputError("prompts must be padded on the left: the answer is read after the last token")
        measure = get_metric(task.metric if metric is None else metric)

        def answered(logits: Tensor, batch: Tokens, rows: slice, reference: Tensor) -> Tensor:
            return measure(logits[:, -1], task.answer_ids[rows], task.wrong_ids[rows], reference[:, -1])

        return answered

    def loss(logits: Tensor, batch: Tokens, rows: slice, reference: Tensor) -> Tensor:
        wanted = (batch.mask[:, 1:] & batch.mask[:, :-1]).to(logits.device)
        if not bool(wanted.any(1).all()):
            raise InputError("the loss needs texts of two tokens or more")
        right = batch.ids[:, 1:].to(logits.device)
        each = -logits[:, :-1].float().log_softmax(-1).gather(2, right[:, :, None])[:, :, 0]
        return torch.where(wanted, each, 0.0).sum(1) / wanted.sum(1)

    return loss


@contextmanager
def _removed(model: Model, site: str, dictionary: Dictionary, part: Part, where: Tensor) -> Iterator[None]:
    """Latents at zero, or the error left out, at places (row, pos)."""
    if isinstance(part, str):

        def without_error(z: Tensor) -> Tensor:
            made = dictionary(z.flatten(2)).xhat.to(z.dtype).view(z.shape)
            return torch.where(where[:, :, None, None], made, z)

        with model.edit({site: Fn(without_error)}):
            yield
        return
    chosen = torch.tensor(part, device=where.device)

    def ablate(f: Tensor) -> Tensor:
        f = f.clone()
        f[where.flatten().nonzero(), chosen[None]] = 0.0
        return f

    with splice(model, site, dictionary, latents=ablate):
        yield
