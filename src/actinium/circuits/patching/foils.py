"""The same effects against several wrong answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.contrast import check_task, last_logits
from actinium.circuits.patching.effects import Effects
from actinium.circuits.patching.patch import patch
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["across_foils", "rival_foils"]


def rival_foils(model: Model, task: Task, k: int = 3, prompts: str = "corrupt") -> dict[str, Tensor]:
    """The tokens that the model prefers besides the answer, as foils.

    Args:
        model: a causal language model.
        task: prompts with answers.
        k: number of foils for each prompt.
        prompts: "corrupt" or "clean", the run whose logits rank them.

    Returns:
        {"rival 1": (row,), ...} token ids, the highest logit first, none of them the answer.

    Raises:
        InputError: `k` is outside the vocabulary, or there are no such prompts.
    """
    check_task(model, task)
    if prompts not in ("clean", "corrupt"):
        raise InputError(f'prompts are "clean" or "corrupt", not {prompts!r}')
    logits, _ = last_logits(model, task.prompts(prompts == "corrupt"), [])
    if not 1 <= k < logits.shape[-1]:
        raise InputError(f"k goes from 1 to {logits.shape[-1] - 1}, not {k}")
    others = logits.scatter(1, task.answer_ids.to(logits.device)[:, None], -torch.inf)
    found = others.topk(k).indices.cpu()
    return {f"rival {i + 1}": found[:, i] for i in range(k)}


def across_foils(
    model: Model,
    task: Task,
    foils: Mapping[str, Any],
    at: Any = "blocks.*.resid_pre",
    over: str | None = None,
    *,
    method: Callable[..., Effects] = patch,
    **options: Any,
) -> Effects:
    """Effects against each of several wrong answers, by the logit difference unless another metric is given.

    Args:
        model, task, at, over, **options: as in `patch`, or in the method.
        foils: {name: token ids (row,), one id, or a text}; "task" is a good name for the task's own `wrong_ids`.
        method: `patch`, `attribution_patch` or `relevance_patch`.

    Returns:
        Effects: `effect` with the axis "foil" before those of the method; `mean` and `sd` over foils; `m_clean` and
        `m_corrupt` by foil.

    Raises:
        InputError: as the method; there is no foil, a foil is the answer of a row, or ids do not fit the rows.

    Source: Zhang and Nanda, 2023, section 2 (logit difference and its foil).
    """
    if not foils:
        raise InputError("no foils given; pass {name: token ids}")
    tasks = {str(name): _against(model, task, str(name), given) for name, given in foils.items()}
    runs = [method(model, one, at, over, **{"metric": "logit_diff", **options}) for one in tasks.values()]
    kept = [run.data.drop_vars([v for v in run.data.data_vars if str(v).endswith("_by_row")]) for run in runs]
    data = xr.concat(kept, xr.IndexVariable("foil", list(tasks)), data_vars="all", combine_attrs="override")
    effect = data["effect"]
    data = data.assign(mean=effect.mean("foil"), sd=effect.std("foil"))
    return Effects(data, runs[0].method, "patching-best-practices", runs[0].provenance)


def _against(model: Model, task: Task, name: str, given: Any) -> Task:
    if isinstance(given, str):
        pieces = model.tokenizer(given, add_special_tokens=False)["input_ids"] if model.tokenizer else []
        if len(pieces) != 1:
            raise InputError(f"the foil {name!r} is {len(pieces)} tokens, not one: {given!r}")
        given = pieces[0]
    ids = torch.as_tensor(given).long()
    ids = ids.expand(len(task)) if ids.ndim == 0 else ids
    if ids.shape != task.answer_ids.shape:
        raise InputError(f"the foil {name!r} has {tuple(ids.shape)} ids for {len(task)} rows")
    same = (ids == task.answer_ids).nonzero().flatten()
    if len(same):
        raise InputError(f"the foil {name!r} is the answer of row {int(same[0])}")
    wrong = [model.to_str_tokens([int(i)])[0] if model.tokenizer is not None else f" {int(i)}" for i in ids]
    return replace(task, wrong_ids=ids, wrong=wrong)
