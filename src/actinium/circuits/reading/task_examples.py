"""What tasks must be to be contrasted, and statistics over their examples."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from actinium.circuits.patching.contrast import last_logits
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = [
    "accuracy_among",
    "chance_of",
    "check_able",
    "check_contrast",
    "draws",
    "mean_of",
    "rows_of",
    "split_tasks",
    "welch",
]

EXAMPLES = 20
"""Least number of examples of a task."""
MARGIN = 0.1
"""How far above chance the model must be on each task."""


def check_contrast(tasks: Mapping[str, Task]) -> list[str]:
    """Names of two tasks.

    Raises:
        InputError: another number of tasks, something that is none, or one with fewer than 20 examples.
    """
    if not isinstance(tasks, Mapping) or len(tasks) != 2:
        got = f"{len(tasks)} of them" if isinstance(tasks, Mapping) else type(tasks).__name__
        raise InputError(f"two tasks are contrasted, {{name: Task, name: Task}}, not {got}")
    for name, task in tasks.items():
        if not isinstance(task, Task):
            raise InputError(f"{name}: expected a Task, not {type(task).__name__}")
        if len(task) < EXAMPLES:
            raise InputError(f"{name} has {len(task)} examples; at least {EXAMPLES} are needed for an interval")
    return [str(name) for name in tasks]


def _among(task: Task) -> Tensor:
    """(answer,) answers and wrong answers of a task."""
    return torch.cat([task.answer_ids, task.wrong_ids]).unique()


def chance_of(task: Task) -> float:
    """Accuracy of a guess among the answers of a task."""
    return 1 / len(_among(task))


def accuracy_among(task: Task) -> Callable[..., Tensor]:
    """A metric: 1 where no answer (or wrong answer) of the task has a higher logit than the right one, else 0."""
    among = _among(task)

    def accuracy(logits: Tensor, answer_ids: Tensor, wrong_ids: Tensor, reference: Tensor | None = None) -> Tensor:
        values = logits[:, among.to(logits.device)]
        own = logits.gather(1, answer_ids.to(logits.device)[:, None])
        return (values <= own).all(1).float()

    return accuracy


def mean_of(model: Model, task: Task, metric: Callable[..., Tensor], batch_size: int | None = None) -> float:
    """Mean of a metric over the clean prompts of a task."""
    size, parts = batch_size or len(task), []
    for start in range(0, len(task), size):
        part = task[start : start + size]
        logits, _ = last_logits(model, part.prompts(), [])
        parts.append(metric(logits, part.answer_ids, part.wrong_ids).cpu().double())
    return float(torch.cat(parts).mean())


def check_able(model: Model, tasks: Mapping[str, Task], batch_size: int | None = None) -> dict[str, float]:
    """Accuracy of the model on the clean prompts of each task, among its answers.

    Raises:
        InputError: it is less than 10 points above chance.
    """
    out = {}
    for name, task in tasks.items():
        found, chance = mean_of(model, task, accuracy_among(task), batch_size), chance_of(task)
        if found < chance + MARGIN:
            raise InputError(
                f"{name}: the model gives the right answer in {found:.0%} of the prompts, where chance is "
                f"{chance:.0%}; a task that it does not do has no circuit"
            )
        out[str(name)] = found
    return out


def _mark(ids: Tensor, real: Tensor) -> str:
    return hashlib.blake2b(str(ids[real].tolist()).encode(), digest_size=8).hexdigest()


def rows_of(tasks: Mapping[str, Task]) -> set[str]:
    """Marks of the clean prompts, by which the same one is known again."""
    return {_mark(*row) for task in tasks.values() for row in zip(task.clean_ids, task.mask, strict=True)}


def split_tasks(
    tasks: Mapping[str, Task], share: float = 0.5, seed: int = 0
) -> tuple[dict[str, Task], dict[str, Task]]:
    """Two parts of each task, one to choose components on and one to test them on, with no clean prompt in common.

    Args:
        tasks: by name.
        share: of the different clean prompts in the first part.
        seed: of the draw.

    Returns:
        the tasks of the first and of the second part.

    Raises:
        InputError: the share is not between 0 and 1, or leaves one part without a prompt.
    """
    if not 0 < share < 1:
        raise InputError(f"share is between 0 and 1, not {share}")
    random, first, seen = np.random.default_rng(seed), set(), set()
    for name, task in tasks.items():
        # A prompt that stands in two tasks is in the same part of both.
        marks = sorted(rows_of({name: task}) - seen)
        order = random.permutation(len(marks))
        first |= {marks[i] for i in order[: round(len(marks) * share)]}
        seen |= set(marks)
    parts: tuple[dict[str, Task], dict[str, Task]] = ({}, {})
    for name, task in tasks.items():
        inside = [_mark(*row) in first for row in zip(task.clean_ids, task.mask, strict=True)]
        if all(inside) or not any(inside):
            raise InputError(f"{name}: one part has no prompt; give more prompts or another share")
        for part, wanted in zip(parts, (True, False), strict=True):
            part[name] = task[[i for i, there in enumerate(inside) if there == wanted]]
    return parts


def draws(name: str, n: int, resamples: int, seed: int) -> np.ndarray:
    """(resample, item) how often each item is drawn; a task's draws go with its name, not with its place."""
    source = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return source.multinomial(n, np.full(n, 1 / n), size=resamples)


def welch(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """p values (column,) of Welch's test of the means of (row, column); 1 where nothing varies and nothing differs."""
    flat = (np.ptp(one, 0) == 0) & (np.ptp(other, 0) == 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.asarray(stats.ttest_ind(one, other, axis=0, equal_var=False).pvalue)
    return np.where(flat, np.where(one[0] == other[0], 1.0, 0.0), p)
