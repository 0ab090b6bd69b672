"""Questions with two rationales each, one in a word or two and one in full, both of which `world:lm` writes."""

from __future__ import annotations

import random
from dataclasses import dataclass

from actinium.core.errors import InputError
from actinium.world.documents import ASSISTANT, END_THINK, USER
from actinium.world.knowledge import OPEN_CUE, composed
from actinium.world.knowledge import question as asked_for
from actinium.world.knowledge import reasoning as about_fact
from actinium.world.sums import draw_sum, sum_reasoning
from actinium.world.task_rows import PATIENCE, is_held

__all__ = ["Reasoned", "pairs"]


@dataclass(frozen=True)
class Reasoned:
    """A question and two ways to its answer.

    Attributes:
        prompt: the question up to the assistant's turn.
        concise: rationale of a word or two, with its tags.
        verbose: rationale step by step, with its tags.
        answer: the true answer, which follows either of them after a space.
    """

    prompt: str
    concise: str
    verbose: str
    answer: str


def _row(prompt: str, concise: str, verbose: str) -> Reasoned:
    short, answer = concise.split(f"{END_THINK} ")
    return Reasoned(prompt, short + END_THINK, verbose.split(f"{END_THINK} ")[0] + END_THINK, answer)


def pairs(n: int = 64, seed: int = 0, split: str = "train", cue: str = OPEN_CUE) -> list[Reasoned]:
    """Different questions about facts of several hops and about sums, half of each, with both rationales.

    Args:
        n: number of questions.
        seed: seed of the draw.
        split: "train" (that `world:lm` has read reasoning about) or "heldout" (people of whom it has read no fact of
            several hops, and sums that it has not read).
        cue: what the question ends with; "Think." leaves the length of the reasoning open, "Think step by step." asks
            for the verbose one and "Think briefly." for the concise one.

    Returns:
        The questions.

    Raises:
        UnknownNameError: there is no such split.
        InputError: `n` is below 1, or the split has fewer questions.
    """
    held = is_held(split)
    if n < 1:
        raise InputError(f"at least one question was expected, got n={n}")
    source = random.Random(f"reasoning {split} {seed}")
    rows = composed("person" if held else "train")
    found: dict[str, Reasoned] = {}
    idle = 0
    while len(found) < n:
        if len(found) % 2 == 0:
            subject, relation = source.choice(rows)
            texts = (about_fact(subject, relation.noun, verbose) for verbose in (False, True))
            row = _row(asked_for(subject, relation.noun, cue), *texts)
        else:
            a, b = draw_sum(source, held)
            texts = (sum_reasoning(a, b, verbose) for verbose in (False, True))
            row = _row(f"{USER} What is {a} + {b}? {cue}{ASSISTANT}", *texts)
        idle = 0 if row.prompt not in found else idle + 1
        found[row.prompt] = row
        if idle == PATIENCE:
            raise InputError(f"the split {split!r} has about {len(found)} different questions of each kind, not {n}")
    return list(found.values())
