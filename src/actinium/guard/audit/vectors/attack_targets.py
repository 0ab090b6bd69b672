"""What an attack is measured by: scores of replies, and of the next word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.guard.audit.replies import replies_to

__all__ = ["ChoiceTarget", "ReplyTarget", "Target", "target_scores"]

Floats = NDArray[np.float64]


class Target(Protocol):
    """Scores (n,) of a model on prompts, or one number for all, larger where it behaves as its owner wants.

    Where the attribute `rowwise` is true, the target runs all prompts in one call of the model with one row for each;
    then several strengths of an attack are measured in one pass.
    """

    def __call__(self, model: Model, prompts: list[str]) -> Any:
        """The scores."""


class ReplyTarget:
    """Scores of what the model writes, such as a refusal rate or the verdict of a classifier.

    Args:
        judge: from prompt and reply to a score: a number, True or False.
        max_new_tokens: most tokens of a reply.
        **options: those of transformers' `generate`, the same with and without an attack.
    """

    rowwise = True

    def __init__(self, judge: Callable[[str, str], Any], max_new_tokens: int = 16, **options: Any) -> None:
        self.judge, self.options = judge, {"max_new_tokens": max_new_tokens, **options}

    def __call__(self, model: Model, prompts: list[str]) -> Floats:
        """Scores (n,)."""
        replies = replies_to(model, prompts, **self.options)
        return np.array([float(self.judge(p, r)) for p, r in zip(prompts, replies, strict=True)])


class ChoiceTarget:
    """Probability of the clean answers among clean and misaligned ones, after each prompt (A/B match score).

    Args:
        answers: the clean and the misaligned answers, each a text or several; or a function from a prompt to such a
            pair, where the letters differ from question to question. An answer is one token, written as it continues
            the prompt, with its space.
    """

    rowwise = True

    def __init__(self, answers: Any) -> None:
        self.answers = answers

    def __call__(self, model: Model, prompts: list[str]) -> Floats:
        """Scores (n,).

        Raises:
            InputError: an answer is not one token.
        """
        tokens = model.to_tokens(prompts)
        if len(tokens) != len(prompts):
            raise InputError(f"a prompt is longer than the context of {model.context} tokens")
        with torch.no_grad():
            logits = model.logits(tokens)
        last = tokens.mask.int().sum(1) - 1
        chances = logits[torch.arange(len(prompts)), last.to(logits.device)].double().softmax(-1).cpu()
        known: dict[Any, list[list[int]]] = {}
        found = np.zeros(len(prompts))
        for i, prompt in enumerate(prompts):
            pair = self.answers(prompt) if callable(self.answers) else self.answers
            sets = [[words] if isinstance(words, str) else list(words) for words in pair]
            key = tuple(map(tuple, sets))
            ids = known.setdefault(key, [[_token(model, prompt, word) for word in words] for words in sets])
            clean, other = (float(chances[i, one].sum()) for one in ids)
            found[i] = clean / (clean + other)
        return found


def _token(model: Model, prompt: str, answer: str) -> int:
    head = list(model.tokenizer(prompt)["input_ids"])
    full = list(model.tokenizer(prompt + answer)["input_ids"])
    if full[: len(head)] != head or len(full) != len(head) + 1:
        raise InputError(f"the answer {answer!r} is not one token after the prompt {prompt!r}")
    return int(full[-1])


def target_scores(target: Target, model: Model, prompts: Sequence[str]) -> Floats:
    """Scores of a target, checked: (n,), or (1,) where it gives one number.

    Raises:
        InputError: scores of another number, or not finite.
    """
    scores = target(model, list(prompts))
    scores = scores.detach().cpu() if isinstance(scores, torch.Tensor) else scores
    values = np.atleast_1d(np.asarray(scores, np.float64))
    if values.shape not in ((1,), (len(prompts),)):
        raise InputError(f"a target gives a score for each of {len(prompts)} prompts or one, not {values.shape}")
    if not np.isfinite(values).all():
        raise InputError("a target gave a score that is NaN or infinite")
    return values
