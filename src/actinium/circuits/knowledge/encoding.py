"""Prompts as token ids, with the positions of the subject and of the last token, and the answer that is to follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actinium.circuits.knowledge.facts import FactEdit, Question, place_of
from actinium.core.errors import InputError
from actinium.core.inputs import Inputs
from actinium.core.model import Model

__all__ = ["Prompt", "PromptBatch", "answer_prompt", "edit_prompt", "prompt_of", "token_ids"]


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        ids: tokens of the prompt.
        subject: position of the last token of the subject, None where there is none.
        target: tokens of the answer.
    """

    ids: tuple[int, ...]
    subject: int | None = None
    target: tuple[int, ...] = ()

    @property
    def last(self) -> int:
        """Position of the last token."""
        return len(self.ids) - 1


def token_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Tokens of a text that is to be continued: without the token by which some tokenizers close it."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    closing = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    while len(ids) > 1 and ids[-1] in closing:
        ids.pop()
    if not ids:
        raise InputError(f"the text {text!r} has no tokens")
    return tuple(ids)


def answer_ids(tokenizer: Any, text: str, ids: tuple[int, ...], answer: str) -> tuple[int, ...]:
    """Tokens of an answer as it continues a text.

    Raises:
        InputError: the answer changes the tokens before it, or the tokenizer does not know it.
    """
    spaced = answer if answer[0].isspace() else f" {answer}"
    whole = token_ids(tokenizer, text + spaced)
    new = whole[len(ids) :]
    if whole[: len(ids)] != ids or not new:
        raise InputError(f"the answer {answer!r} does not continue the tokens of {text!r}")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in new:
        raise InputError(f"the answer {answer!r} is not in the tokenizer's vocabulary")
    return new


def prompt_of(model: Model, text: str, answer: str | None = None, end: int | None = None) -> Prompt:
    """Encode a prompt.

    Args:
        model: a model with a tokenizer.
        text: the prompt.
        answer: what is to follow.
        end: where the subject ends in the text, in characters.

    Raises:
        InputError: there is no tokenizer, or the tokens of the text change where it is cut after its subject.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer, and facts are texts; ac.load(..., tokenizer=...)")
    ids = token_ids(tokenizer, text)
    subject = None
    if end is not None:
        head = token_ids(tokenizer, text[:end])
        if ids[: len(head)] != head:
            raise InputError(f"the subject does not end with a token in {text!r}")
        subject = len(head) - 1
    return Prompt(ids, subject, answer_ids(tokenizer, text, ids, answer) if answer is not None else ())


def edit_prompt(model: Model, edit: FactEdit, context: str = "", text: str | None = None) -> Prompt:
    """The prompt of an edit, or another text about its subject, behind a context, with the new object as its answer."""
    body = edit.text if text is None else text
    if text is None and "{}" in edit.prompt:
        end: int | None = edit.prompt.index("{}") + len(edit.subject)
    else:
        end = place_of(edit.subject, body)
    start = f"{context} " if context else ""
    return prompt_of(model, start + body, edit.target_new, None if end is None else end + len(start))


def answer_prompt(model: Model, question: Question, subject: str | None = None) -> Prompt:
    """The first wording of a question with its answer; the subject's position where it stands in it."""
    text = question.phrasings[0]
    return prompt_of(model, text, question.answer, place_of(subject, text) if subject is not None else None)


class PromptBatch:
    """Prompts as one input, each followed by its answer up to the last token of that.

    Args:
        model: the model.
        prompts: the prompts; of different lengths, padded on the right.

    Attributes:
        inputs: what the model takes.
        subject, last: (row, 1) int64, positions of the subject's last token (-1 without one) and of the prompt's last.
    """

    def __init__(self, model: Model, prompts: Sequence[Prompt]) -> None:
        self.prompts = list(prompts)
        rows = [list(p.ids + p.target[:-1]) for p in self.prompts]
        longest = max(map(len, rows))
        if model.context is not None and longest > model.context:
            raise InputError(f"a prompt has {longest} tokens, and the model's context is {model.context}")
        self.inputs: Inputs = model.prepare(rows)
        self.subject = torch.tensor([[-1 if p.subject is None else p.subject] for p in self.prompts])
        self.last = torch.tensor([[p.last] for p in self.prompts])
        n = max(len(p.target) for p in self.prompts)
        self._columns = torch.tensor([[min(p.last + j, longest - 1) for j in range(n)] for p in self.prompts])
        self._targets = torch.tensor([[*p.target, *[0] * (n - len(p.target))] for p in self.prompts])
        self._real = torch.tensor([[j < len(p.target) for j in range(n)] for p in self.prompts])

    def __len__(self) -> int:
        return len(self.prompts)

    def answer_logprob(self, logits: Tensor) -> Tensor:
        """Mean log-probability of the tokens of each answer (row,), in nats.

        Args:
            logits: (row, pos, d_vocab) of the inputs.
        """
        device = logits.device
        at = self._columns.to(device)[:, :, None].expand(-1, -1, logits.shape[-1])
        logprob = torch.log_softmax(logits.gather(1, at).float(), -1)
        each = logprob.gather(-1, self._targets.to(device)[:, :, None])[..., 0]
        real = self._real.to(device)
        return torch.where(real, each, 0.0).sum(1) / real.sum(1)

    def answered(self, logits: Tensor) -> Tensor:
        """Whether every token of the answer is the most likely one (row,), bool."""
        at = self._columns.to(logits.device)[:, :, None].expand(-1, -1, logits.shape[-1])
        best = logits.gather(1, at).argmax(-1).cpu()
        return ((best == self._targets) | ~self._real).all(1)
