"""What steering does beside what it is meant to: to other texts, other tasks and the spread of the next token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.metrics import kl
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.task import Task

__all__ = ["entropy_bits", "next_token_effects", "perplexity_ratio", "task_effects"]

Edits = Mapping[str, Any] | Sequence[tuple[str, Any]]
NORMAL_95 = 1.959963984540054


def perplexity_ratio(
    model: Model, texts: Any, edits: Edits, *, skip: int = 1, batch_size: int = 32, progress: bool = False
) -> Result:
    """Perplexity of texts under edits, over that without them.

    Args:
        model: a causal language model.
        texts: texts or tokens that have nothing to do with what the edits are meant to change.
        edits: as `model.edit` takes them.
        skip: tokens at the start of each text that are not scored: with ActAdd the positions that are added to.
        batch_size: texts in a pass.
        progress: show a progress bar.

    Returns:
        by text: `ratio`, `perplexity`, `unsteered_perplexity`, `kl` (mean over tokens of KL(unsteered || steered),
        nats) and `tokens` that were scored; over all tokens: `ratio_of_all`, and `change`, the mean difference of the
        log probabilities (nats) with its 95 % interval `change_low` to `change_high`.

    Raises:
        InputError: a text has no token to score, the model predicts no next token, or what the edits make of it is
            not finite.

    Source: Turner et al., 2023, section 4 (perplexity ratio, mean difference of log probabilities).
    """
    if skip < 1:
        raise InputError(f"skip must be 1 or more (nothing predicts the first token), not {skip}")
    tokens = scored_tokens(model, texts, skip)
    base, new, apart, count = [], [], [], []
    changes: list[Tensor] = []
    for part in shown(list(row_batches(tokens, batch_size)), "texts", progress):
        with torch.no_grad():
            before, after = (log_probabilities(model, part, e) for e in (None, edits))
        real = targets(part, skip)
        nll = [-_at_targets(q, part) for q in (before, after)]
        base += masked_means(nll[0], real)
        new += masked_means(nll[1], real)
        apart += masked_means((before.exp() * (before - after)).sum(-1), real)
        count += real.sum(1).tolist()
        changes.append((nll[0] - nll[1])[real].double())
    change = torch.cat(changes)
    check_finite(change, "the perplexity")
    half = NORMAL_95 * float(change.std()) / math.sqrt(len(change)) if len(change) > 1 else math.nan
    variables: dict[str, Any] = {
        "ratio": (("text",), np.exp(np.array(new) - np.array(base))),
        "perplexity": (("text",), np.exp(new)),
        "unsteered_perplexity": (("text",), np.exp(base)),
        "kl": (("text",), np.array(apart)),
        "tokens": (("text",), np.array(count)),
        "ratio_of_all": ((), math.exp(-float(change.mean()))),
        "change": ((), float(change.mean())),
        "change_low": ((), float(change.mean()) - half),
        "change_high": ((), float(change.mean()) + half),
    }
    data = xr.Dataset(variables, {"text": np.arange(len(tokens))}, {"plot": {"kind": "bar", "variables": ["ratio"]}})
    return Result(data, "perplexity_ratio", "actadd", provenance(model, tokens.ids, skip=skip))


def next_token_effects(model: Model, prompts: Any, edits: Edits, *, batch_size: int = 32) -> Result:
    """How far edits move the prediction behind prompts, and how sure it is.

    Args:
        model: a language model.
        prompts: texts or tokens.
        edits: as `model.edit` takes them.
        batch_size: prompts in a pass.

    Returns:
        by prompt: `kl` (KL(unsteered || steered), nats), `entropy` and `unsteered_entropy` (bits).

    Raises:
        InputError: no prompts, or what the edits make of them is not finite.
    """
    tokens = _tokens(model, prompts)
    found: list[Tensor] = []
    for part in row_batches(tokens, batch_size):
        with torch.no_grad():
            before, after = (last_logits(model, part, e) for e in (None, edits))
        none = torch.zeros(len(part), dtype=torch.long)
        found.append(torch.stack([kl(after, none, none, before), entropy_bits(after), entropy_bits(before)]).cpu())
    values = torch.cat(found, 1)
    check_finite(values, "the prediction")
    names = ("kl", "entropy", "unsteered_entropy")
    data = xr.Dataset({n: (("prompt",), v.numpy()) for n, v in zip(names, values, strict=True)})
    return Result(data.assign_coords(prompt=np.arange(len(tokens))), "next_token_effects", "caa", provenance(model))


def task_effects(
    model: Model, tasks: Task | Sequence[Task], edits: Edits, *, k: int = 1, batch_size: int = 64
) -> Result:
    """What edits do to tasks that they are not meant for.

    Args:
        model: a language model.
        tasks: one or more.
        edits: as `model.edit` takes them.
        k: of `top_k`.
        batch_size: prompts in a pass.

    Returns:
        by task: `accuracy_lost`, `accuracy` and `unsteered_accuracy` (share of rows whose answer has a higher logit
        than the wrong one), `top_k` and `unsteered_top_k` (share whose answer is among the k likeliest tokens, P@K),
        `logit_diff` and `unsteered_logit_diff` (means).

    Raises:
        InputError: no task, or k is below 1.
    """
    given = as_tasks(tasks)
    if k < 1:
        raise InputError(f"k must be 1 or more, not {k}")
    rows = []
    for task in given:
        row: dict[str, float] = {}
        for name, chosen in (("", edits), ("unsteered_", None)):
            with torch.no_grad():
                logits = torch.cat(
                    [last_logits(model, part, chosen) for part in row_batches(task.prompts(), batch_size)]
                ).cpu()
            gap = answer_gap(logits, task)
            check_finite(gap, task.name)
            row[f"{name}accuracy"] = float((gap > 0).double().mean())
            best = logits.topk(min(k, logits.shape[1])).indices
            row[f"{name}top_k"] = float((best == task.answer_ids[:, None]).any(1).double().mean())
            row[f"{name}logit_diff"] = float(gap.double().mean())
        rows.append({"accuracy_lost": row["unsteered_accuracy"] - row["accuracy"], **row})
    data = xr.Dataset(
        {name: (("task",), np.array([row[name] for row in rows])) for name in rows[0]},
        {"task": [task.name for task in given]},
        {"plot": {"kind": "bar", "variables": ["accuracy_lost"]}},
    )
    inputs = [task.clean_ids for task in given]
    return Result(data, "task_effects", "caa", provenance(model, inputs, k=k))


def entropy_bits(logits: Tensor) -> Tensor:
    """Entropy of the next token, (…,) in bits, of logits (…, d_vocab)."""
    q = torch.log_softmax(logits.float(), -1)
    return -torch.where(q.isneginf(), 0.0, q.exp() * q).sum(-1) / math.log(2)


def as_tasks(tasks: Task | Sequence[Task]) -> list[Task]:
    """Tasks with names of their own.

    Raises:
        InputError: there is none, or two have one name.
    """
    given = [tasks] if isinstance(tasks, Task) else list(tasks)
    if not given or any(not isinstance(task, Task) for task in given):
        raise InputError("give one Task or more")
    names = [task.name for task in given]
    if len(set(names)) < len(names):
        raise InputError(f"tasks need different names, got {', '.join(names)}")
    return given


def answer_gap(logits: Tensor, task: Task) -> Tensor:
    """Logit of the answer minus that of the wrong one (…, row), of logits (…, row, d_vocab), in float32."""
    right, wrong = (
        ids.to(logits.device).expand(logits.shape[:-1])[..., None] for ids in (task.answer_ids, task.wrong_ids)
    )
    return (logits.gather(-1, right) - logits.gather(-1, wrong))[..., 0].float()


def scored_tokens(model: Model, texts: Any, skip: int) -> Tokens:
    """Tokens of texts of which each has one to score.

    Raises:
        InputError: the model predicts no next token, or a text is too short.
    """
    if model.kind != "causal-lm":
        raise InputError(f"perplexity needs a causal language model; {model.name} is a {model.kind}")
    tokens = _tokens(model, texts)
    short = tokens.mask.sum(1) <= skip
    if bool(short.any()):
        row = int(short.nonzero()[0])
        raise InputError(f"text {row} has {int(tokens.mask[row].sum())} tokens, none behind the first {skip} to score")
    return tokens


def targets(tokens: Tokens, skip: int) -> Tensor:
    """(batch, pos - 1) bool: the tokens 1, 2, … of each text that are scored."""
    number = tokens.mask.long().cumsum(1) - 1
    return (tokens.mask & (number >= skip))[:, 1:]


def log_probabilities(model: Model, tokens: Tokens, edits: Edits | None) -> Tensor:
    """(batch, pos - 1, d_vocab), in nats, of what follows each token."""
    with nullcontext() if edits is None else model.edit(edits):
        return torch.log_softmax(model.logits(tokens)[:, :-1].float(), -1).cpu()


def _at_targets(q: Tensor, tokens: Tokens) -> Tensor:
    return q.gather(-1, tokens.ids[:, 1:, None].cpu())[..., 0]


def masked_means(values: Tensor, real: Tensor) -> list[float]:
    """Mean of each row over its real entries."""
    out: list[float] = (torch.where(real, values, 0.0).double().sum(1) / real.sum(1)).tolist()
    return out


def last_logits(model: Model, tokens: Tokens, edits: Edits | None) -> Tensor:
    """(batch, d_vocab) behind each text's last token."""
    with nullcontext() if edits is None else model.edit(edits):
        logits = model.logits(tokens)
    column = tokens.mask.shape[1] - 1 - tokens.mask.flip(1).int().argmax(1)
    return logits[torch.arange(len(tokens)), column.to(logits.device)]


def row_batches(tokens: Tokens, batch_size: int) -> Iterator[Tokens]:
    """Some rows at a time."""
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, not {batch_size}")
    for start in range(0, len(tokens), batch_size):
        yield tokens[slice(start, start + batch_size)]


def check_finite(values: Tensor, what: str) -> None:
    """Refuse NaN and infinite values, which too strong a vector makes."""
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"steering made {what} NaN or infinite: lower the strength, or compute in float32")


def _tokens(model: Model, inputs: Any) -> Tokens:
    tokens = model.prepare(inputs).tokens
    if tokens is None:
        raise InputError("texts or tokens are needed here")
    return tokens
