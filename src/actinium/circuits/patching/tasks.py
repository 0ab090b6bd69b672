"""Which of the shipped tasks a model can be patched on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from actinium.circuits.patching.contrast import DOES_THE_TASK, answer_share, last_logits
from actinium.circuits.patching.repetition import repeated_names, repeated_tokens
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.task import Task
from actinium.world import tasks

__all__ = ["named_task", "suitable_tasks"]

WORLD: dict[str, Callable[..., Task]] = {
    "ioi": tasks.ioi,
    "greater_than": tasks.greater_than,
    "facts": tasks.facts,
    "two_hop": tasks.two_hop,
    "sentiment": tasks.sentiment,
    "arithmetic": tasks.arithmetic,
    "multiple_choice": tasks.multiple_choice,
    "refusal": tasks.refusal,
}
REPETITION: dict[str, Callable[..., Task]] = {"repeated_names": repeated_names, "repeated_tokens": repeated_tokens}


def named_task(model: Model, name: str, n: int = 64, seed: int = 0) -> Task:
    """A task by its name, or of a file.

    Args:
        model: a causal language model with a tokenizer.
        name: one of `actinium.world.tasks` or of repetition, or the path of a JSONL or CSV file (see `Task.from_file`).
        n: rows; of a file the first ones.
        seed: of the draw.

    Raises:
        UnknownNameError: it is neither a task nor a file.
        InputError: the tokenizer does not fit, or the file is malformed.
    """
    known = {**WORLD, **REPETITION}
    if name in known:
        return known[name](model, n=n, seed=seed)
    if not Path(name).is_file():
        raise UnknownNameError(f"{unknown('task', name, known)} (nor is it a file of prompt pairs)")
    return Task.from_file(model.tokenizer, name)[:n]


def suitable_tasks(
    model: Model, names: Sequence[str] = tuple(WORLD), n: int = 64, seed: int = 0, least: float = DOES_THE_TASK
) -> dict[str, Task]:
    """The tasks that fit a model's tokenizer and that it does; tasks of repetition where none of the named ones fits.

    Args:
        model: a causal language model.
        names: tasks of `actinium.world.tasks` and of repetition to try.
        n: most rows of each.
        seed: of their draw.
        least: share of clean prompts on which the answer must beat the wrong answer.

    Returns:
        Tasks by name; none where the model does none.

    Raises:
        UnknownNameError: there is no such task.
    """
    known = {**WORLD, **REPETITION}
    for name in names:
        if name not in known:
            raise UnknownNameError(unknown("task", name, known))
    fitting = _fitting(model, {name: known[name] for name in names}, n, seed)
    if not fitting:
        fitting = _fitting(model, REPETITION, n, seed)
    return {name: task for name, task in fitting.items() if _share(model, task) >= least}


def _fitting(model: Model, makers: dict[str, Callable[..., Task]], n: int, seed: int) -> dict[str, Task]:
    out: dict[str, Task] = {}
    for name, make in makers.items():
        try:
            out[name] = make(model, n=n, seed=seed)
        except InputError:
            continue
    return out


def _share(model: Model, task: Task) -> float:
    """Share of clean prompts on which the answer beats the wrong answer."""
    logits, _ = last_logits(model, task.prompts(), [])
    return answer_share(logits, task.answer_ids, task.wrong_ids)
