"""The clean and the corrupt run of a task: what the model is given, and how its answer is scored."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actinium.circuits.patching.corruption import GaussianNoise, corrupt_gaussian, embedded, with_embeddings
from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.inputs import Tokens
from actinium.core.metrics import get_metric
from actinium.core.model import Model
from actinium.core.recording import Recording
from actinium.core.task import Task

__all__ = [
    "DOES_THE_TASK",
    "Contrast",
    "Metric",
    "Scorer",
    "answer_share",
    "check_task",
    "contrasts",
    "last_logits",
    "sign_of",
    "warn_if_failing",
]

LOWER_IS_BETTER = ("kl", "rank")
DOES_THE_TASK = 0.7
"""Share of clean prompts on which the answer beats the wrong answer, below which a task warns."""

Metric = Callable[..., Tensor]


def check_task(model: Model, task: Task) -> None:
    """Refuse what cannot be patched from one prompt into the other.

    Raises:
        InputError: it is no task, clean and corrupt prompts differ in length, padding is not on the left, or the
            model does not give an answer after the last token.
    """
    if not isinstance(task, Task):
        raise InputError(f"expected a Task (see actinium.world.tasks and Task.from_prompts), not {type(task).__name__}")
    if not len(task.mask) or task.clean_ids.shape != task.corrupt_ids.shape or task.mask.shape != task.clean_ids.shape:
        raise InputError(
            f"clean and corrupt prompts must have the same length: clean {tuple(task.clean_ids.shape)}, corrupt "
            f"{tuple(task.corrupt_ids.shape)}, mask {tuple(task.mask.shape)}"
        )
    if not bool(task.mask[:, -1].all()) or bool((task.mask[:, :-1] & ~task.mask[:, 1:]).any()):
        raise InputError("prompts must be padded on the left: the answer is read after the last token")
    if model.kind not in ("causal-lm", "other"):
        raise InputError(f"{model.name} is a {model.kind}; patching reads the token after the prompt")


def sign_of(metric: str | Metric) -> float:
    """1 where a higher metric is better (functions of a user's own, too), -1 where a lower one is."""
    return -1.0 if metric in LOWER_IS_BETTER else 1.0


class Scorer:
    """A metric bound to rows of a task.

    Args:
        metric: its name or function.
        answer_ids, wrong_ids: (row,).
        clean_logits: (row, d_vocab), the reference of the divergence.
    """

    def __init__(self, metric: str | Metric, answer_ids: Tensor, wrong_ids: Tensor, clean_logits: Tensor) -> None:
        self.metric, self.name = get_metric(metric), metric if isinstance(metric, str) else "metric"
        self.answer_ids, self.wrong_ids, self.clean_logits = answer_ids, wrong_ids, clean_logits

    def __call__(self, logits: Tensor) -> Tensor:
        """(row, d_vocab) -> (row,) or (variant, row, d_vocab) -> (variant, row)."""
        if logits.ndim == 3:
            return torch.stack([self(one) for one in logits])
        values = self.metric(logits, self.answer_ids, self.wrong_ids, self.clean_logits)
        if not isinstance(values, Tensor) or values.shape != self.answer_ids.shape:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(f"a metric gives one value for each row, shape {tuple(self.answer_ids.shape)}, not {got}")
        return values

    def run(self, logits: Tensor, what: str) -> Tensor:
        """(row,) of one of the two runs.

        Raises:
            InputError: a value is not finite.
        """
        values = self(logits)
        if not bool(torch.isfinite(values).all()):
            row = int((~torch.isfinite(values)).nonzero()[0])
            raise InputError(f"{self.name} of the {what} run is {float(values[row])} in row {row}")
        return values


@dataclass(frozen=True, eq=False)
class Contrast:
    """A clean and a corrupt run of some rows of a task.

    Attributes:
        clean, corrupt: what the model is given.
        tokens: the tokens of the clean one.
        rows: which rows of the task.
        answer_ids, wrong_ids: (row,).
    """

    clean: Any
    corrupt: Any
    tokens: Tokens
    rows: slice
    answer_ids: Tensor
    wrong_ids: Tensor

    def ends(self, mode: str) -> tuple[Any, Any]:
        """The run that is patched, and the one whose activations it gets."""
        return (self.corrupt, self.clean) if mode == "denoise" else (self.clean, self.corrupt)


def contrasts(
    model: Model, task: Task, noise: GaussianNoise | None, seed: int, batch_size: int | None
) -> list[list[Contrast]]:
    """For each draw of the noise (or once) the contrasts of consecutive rows."""
    n = len(task)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    places = [slice(i, min(i + (batch_size or n), n)) for i in range(0, n, batch_size or n)]

    def tokens(ids: Tensor, rows: slice) -> Tokens:
        return Tokens(ids[rows], task.mask[rows], torch.arange(n)[rows])

    def contrast(rows: slice, noisy: Tensor | None) -> Contrast:
        clean = tokens(task.clean_ids, rows)
        corrupt = tokens(task.corrupt_ids, rows) if noisy is None else with_embeddings(model, clean, noisy[rows])
        return Contrast(clean, corrupt, clean, rows, task.answer_ids[rows], task.wrong_ids[rows])

    if noise is None:
        return [[contrast(rows, None) for rows in places]]
    embeds = embedded(model, task.clean_ids)
    key = task.subject if noise.tokens is None else noise.tokens
    random = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(noise.draws):
        noisy = corrupt_gaussian(embeds, key, noise.sigma, noise.k, generator=random, real=task.mask)
        out.append([contrast(rows, noisy) for rows in places])
    return out


def last_logits(model: Model, inputs: Any, sites: list[str]) -> tuple[Tensor, Recording | None]:
    """Logits after the last token (row, d_vocab), and the recording of the same pass.

    Raises:
        InputError: the model does not give logits for every position.
    """
    with torch.no_grad():
        if not sites:
            logits, rec = model.logits(inputs), None
        else:
            with model.recording(sites) as rec:
                logits = model.logits(inputs)
    if logits.ndim != 3:
        raise InputError(f"{model.name} gives logits {tuple(logits.shape)}; patching needs (batch, pos, d_vocab)")
    return logits[:, -1], rec


def answer_share(logits: Tensor, answer_ids: Tensor, wrong_ids: Tensor) -> float:
    """Share of rows (row, d_vocab) in which the answer's logit is above the wrong answer's."""
    answers, wrong = (ids.to(logits.device)[:, None] for ids in (answer_ids, wrong_ids))
    return float((logits.gather(1, answers) > logits.gather(1, wrong)).float().mean())


def warn_if_failing(clean_logits: Tensor, contrast: Contrast) -> None:
    """Warn where the behaviour to be explained is missing: clean logits (row, d_vocab) rarely prefer the answer."""
    share = answer_share(clean_logits, contrast.answer_ids, contrast.wrong_ids)
    if share < DOES_THE_TASK:
        warnings.warn(
            f"the model prefers the answer to the wrong answer in only {share:.0%} of the clean prompts; patching "
            "shows how a behaviour comes about only where it is there",
            ActiniumWarning,
            stacklevel=7,
        )
