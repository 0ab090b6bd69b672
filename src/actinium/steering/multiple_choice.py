"""Questions with a letter for each answer: where to read them, and how likely the model is to give either answer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.inputs import Tokens
from actinium.core.metrics import logit_diff, logprob
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.task import Task
from actinium.steering.application import steer
from actinium.steering.held_out import check_held_out
from actinium.steering.side_effects import check_finite, last_logits
from actinium.steering.vector import SteeringVector

__all__ = ["ABPairs", "ab_pairs", "ab_probability", "answer_positions", "choice_scores"]

FIELDS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
CONFOUNDED = 0.5


def ab_probability(logits: Tensor, match_ids: Any, other_ids: Any) -> Tensor:
    """Probability of the answer that matches the behaviour, among the two: p_match / (p_match + p_other).

    Args:
        logits: (batch, d_vocab), where the answer's token is predicted.
        match_ids, other_ids: token ids (batch,), which may differ from row to row.

    Returns:
        (batch,) float32: the logistic function of the logit difference.

    Raises:
        InputError: shapes do not fit.

    Source: Rimsky et al., 2024, section 4.
    """
    match, other = (torch.as_tensor(ids).long() for ids in (match_ids, other_ids))
    return torch.sigmoid(logit_diff(logits, match, other))


@dataclass(frozen=True)
class ABPairs:
    """Questions with two answers, as texts to make a vector from and as prompts to measure it on.

    Attributes:
        positive, negative: each question with the answer that matches the behaviour, and with the other one.
        prompts: the questions up to the answer's letter, an opening bracket included.
        matching, other: the two letters of each question.
        joined: whether the letter continues the prompt without a space.
    """

    positive: list[str]
    negative: list[str]
    prompts: list[str]
    matching: list[str]
    other: list[str]
    joined: list[bool]

    def __len__(self) -> int:
        """Number of questions."""
        return len(self.prompts)

    def positions(self, model: Any) -> Tensor:
        """The token of the letter in each text of a pair, (n,), for `extract(..., position=)`.

        Args:
            model: anything with a `tokenizer`, or a tokenizer.

        Raises:
            InputError: it is not a token, or not the same one in both texts of a pair.
        """
        up = answer_positions(model, self.positive, self.matching)
        down = answer_positions(model, self.negative, self.other)
        if not torch.equal(up, down):
            row = int((up != down).nonzero()[0])
            raise InputError(f"pair {row}: the answers stand at tokens {int(up[row])} and {int(down[row])}")
        return up

    def task(self, model: Any, name: str = "choices") -> Task:
        """The prompts with the letters as answers, the matching one the right one: to score and to sweep.

        Args:
            model: anything with a `tokenizer`, or a tokenizer.
            name: of the task.

        Raises:
            InputError: a letter is not one token.
        """
        tokenizer = getattr(model, "tokenizer", model)
        return Task.from_prompts(
            tokenizer, self.prompts, self.prompts, self.matching, self.other, name=name, joined=self.joined
        )


def ab_pairs(items: Sequence[Mapping[str, str]], template: Callable[[str], str] | None = None) -> ABPairs:
    """Pairs of texts from questions with answers such as "(A)" and "(B)".

    Args:
        items: each with `question` (the choices among its words), `answer_matching_behavior` and
            `answer_not_matching_behavior`, as the files of CAA have them.
        template: what is put around a question, for example a chat template up to the assistant's turn.

    Warns:
        ActiniumWarning: a letter stands far more often for one of the two; the vector then says "answer A".

    Raises:
        InputError: no items, a field is missing, or an answer holds no letter or the two are alike.

    Source: Rimsky et al., 2024, section 3.
    """
    if not len(items):
        raise InputError("there are no questions")
    found = ABPairs([], [], [], [], [], [])
    for i, item in enumerate(items):
        missing = [name for name in FIELDS if not str(item.get(name, "")).strip()]
        if missing:
            raise InputError(f"question {i} has no {', '.join(missing)}")
        question, match, other = (item[name].strip() for name in FIELDS)
        question = question if template is None else template(question)
        ends = [re.fullmatch(r"(\W*)(\w+)(\W*)", answer) for answer in (match, other)]
        first, second = ends
        if first is None or second is None or first[2] == second[2] or first[1] != second[1]:
            raise InputError(f"question {i}: expected two answers such as '(A)' and '(B)', got {match!r} and {other!r}")
        found.positive.append(f"{question} {match}")
        found.negative.append(f"{question} {other}")
        found.prompts.append(f"{question} {first[1]}".rstrip())
        found.matching.append(first[2])
        found.other.append(second[2])
        found.joined.append(bool(first[1]))
    _warn_if_confounded(found.matching, found.other)
    return found


def answer_positions(model: Any, texts: Sequence[str], answers: Sequence[str]) -> Tensor:
    """The token (n,) of each text that carries its answer: the last one of the answer's last occurrence.

    Args:
        model: anything with a `tokenizer`, or a tokenizer.
        texts: texts that hold their answers.
        answers: as many; for example letters.

    Returns:
        (n,) int64, counted from each text's first token.

    Raises:
        InputError: a text does not hold its answer, or no token ends where the answer does.
    """
    tokenizer = getattr(model, "tokenizer", model)
    if tokenizer is None:
        raise InputError("the place of an answer is found with a tokenizer, which this model lacks")
    if len(texts) != len(answers) or not len(texts):
        raise InputError(f"{len(answers)} answers for {len(texts)} texts")
    places = []
    for i, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        start = text.rfind(answer) if answer.strip() else -1
        if start < 0:
            raise InputError(f"text {i} does not hold its answer {answer!r}")
        whole, part = (_open_ids(tokenizer, t) for t in (text, text[: start + len(answer)]))
        if whole[: len(part)] != part:
            raise InputError(f"text {i}: no token ends where the answer {answer!r} does")
        places.append(len(part) - 1)
    return torch.tensor(places)


def choice_scores(
    model: Model,
    task: Task,
    vector: SteeringVector,
    strengths: Sequence[float],
    *,
    batch_size: int = 256,
    **options: Any,
) -> Result:
    """How likely the two answers are at each strength; rows of one pass have strengths of their own.

    Args:
        model: a language model.
        task: prompts whose answer matches the behaviour and whose wrong one does not (`ABPairs.task`, or any).
        vector: to steer with.
        strengths: one or more.
        batch_size: rows (prompts times strengths) in a pass.
        **options: those of `steer`, such as operator, positions and sites.

    Returns:
        over strength and row: `score` (see `ab_probability`), `logit_diff` (match minus other), and over the whole
        vocabulary `p_match` and `p_other`; over strength: `mean_score`.

    Raises:
        InputError: no strengths, one that makes NaN, or a prompt that also made the vector; and as `steer`.

    Source: Rimsky et al., 2024, section 4.
    """
    given = torch.tensor([float(s) for s in strengths])
    if not len(given) or not bool(torch.isfinite(given).all()):
        raise InputError(f"expected one finite strength or more, got {list(strengths)}")
    held = check_held_out(task.clean, vector.made)
    tokens, n = task.prompts(), len(task)
    row = torch.arange(n).repeat(len(given))
    each = given.repeat_interleave(n)
    parts = []
    for start in range(0, len(row), batch_size):
        rows = slice(start, start + batch_size)
        chosen = row[rows]
        now = Tokens(tokens.ids[chosen], tokens.mask[chosen], torch.arange(len(chosen)))
        with steer(model, vector, each[rows], **options), torch.no_grad():
            logits = last_logits(model, now, None).float().cpu()
        right, wrong = task.answer_ids[chosen], task.wrong_ids[chosen]
        whole = [logprob(logits, ids, ids).exp() for ids in (right, wrong)]
        two = [ab_probability(logits, right, wrong), logit_diff(logits, right, wrong)]
        parts.append(torch.stack(two + whole))
    values = torch.cat(parts, 1)
    check_finite(values, "the answers")
    names = ("score", "logit_diff", "p_match", "p_other")
    grid = values.view(len(names), len(given), n).double().numpy()
    variables: dict[str, Any] = {"mean_score": (("strength",), grid[0].mean(1))}
    variables |= {name: (("strength", "row"), v) for name, v in zip(names, grid, strict=True)}
    data = xr.Dataset(variables, {"strength": given.double().numpy(), "row": np.arange(n)})
    settings: dict[str, Any] = {k: str(v) for k, v in options.items()}
    settings |= {"task": task.name, "held_out": held}
    about = provenance(model, {"prompts": tokens.ids, "vector": dict(vector.directions)}, **settings)
    return Result(data, "choice_scores", "caa", about)


def _open_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids without what a tokenizer closes a text with."""
    ids: list[int] = list(tokenizer(text)["input_ids"])
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    closing = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    return ids[:-1] if ids[-1] in closing and bare[-1:] != ids[-1:] else ids


def _warn_if_confounded(matching: list[str], other: list[str]) -> None:
    shares = {letter: (matching.count(letter) - other.count(letter)) / len(matching) for letter in {*matching, *other}}
    letter, gap = max(shares.items(), key=lambda item: (item[1], item[0]))
    if gap > CONFOUNDED:
        share = matching.count(letter) / len(matching)
        warnings.warn(
            f"the letter {letter} is the matching answer of {share:.0%} of the questions: a vector made from them says"
            f" 'answer {letter}' as much as it says the behaviour; exchange the letters in half of them",
            ActiniumWarning,
            stacklevel=3,
        )
