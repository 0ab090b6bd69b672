"""After a token comes what came after it the last time: "c a b e a" -> b; `<bos>` where it is new.

Block 0: head 2 attends to the position before and copies its token. Block 1: head 1 compares its token with those
copies (through the keys), prefers later places, and copies the token that it finds there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from actinium.world.assembly import BOS, Assembly, identity, unit
from actinium.world.program import Compiled

__all__ = ["build"]

LETTERS = tuple("abcdefghijklmno")
CONTEXT = 16
LENGTH = 9
"""Tokens of a prompt of the task, without `<bos>`."""
BEFORE = 20.0
LATER = 1.5
"""How much the score of a place rises with its position."""
NEW = LATER * CONTEXT + 2
"""The score of `<bos>`: above every place without a match, below every place with one."""
MATCH = NEW + 2


def program(tokens: Sequence[str]) -> str:
    """The token after the last earlier occurrence of the last token, or `<bos>`."""
    places = [i for i in range(len(tokens) - 1) if tokens[i] == tokens[-1]]
    return tokens[places[-1] + 1] if places else BOS


def prompt(source: random.Random) -> list[str]:
    """1 to 15 letters, drawn with repetition."""
    return source.choices(LETTERS, k=source.randint(1, CONTEXT - 1))


def _repeated(source: random.Random) -> list[str]:
    letters = source.sample(LETTERS, LENGTH - 2)
    first = source.randrange(LENGTH - 4)
    letters.insert(source.randrange(first + 2, LENGTH - 2), letters[first])
    return [*letters, letters[first]]


def pair(source: random.Random) -> tuple[list[str], list[str]]:
    """Twice nine letters: seven different ones, one of them again further on, and at the end; the last ones differ."""
    while True:
        clean, corrupt = _repeated(source), _repeated(source)
        if clean[-1] != corrupt[-1]:
            return clean, corrupt


def build(seed: int = 0) -> Compiled:
    """The compiled model; its unused parts are drawn from `seed`."""
    made = Assembly(LETTERS, CONTEXT, layers=2, spaces={"before": len(LETTERS) + 1})
    size = made.vocabulary
    shift = torch.diag(torch.ones(CONTEXT - 1), -1)
    shift[0, 0] = 1
    made.head(
        *(0, 2),
        query={"position": BEFORE * shift},
        key={"position": identity(CONTEXT)},
        value={"token": identity(size)},
        out="before",
    )
    made.head(
        *(1, 1),
        query={"token": identity(size, gain=MATCH)},
        query_bias={size: 1.0},
        key={
            "before": identity(size),
            "position": unit(CONTEXT, {i: LATER * i for i in range(CONTEXT)}, size + 1, size),
            "token": unit(size, {0: NEW}, size + 1, size),
        },
        value={"token": identity(size)},
        out="answer",
    )
    made.gain = 10.0
    return Compiled(
        "induction",
        made.model("world:induction", seed),
        program,
        edges=frozenset({"input->a0.h2<v>", "a0.h2->a1.h1<k>", "input->a1.h1<q>", "input->a1.h1<v>", "a1.h1->logits"}),
        constants=frozenset({"input->a0.h2<q>", "input->a0.h2<k>", "input->a1.h1<k>"}),
        prompt=prompt,
        pair=pair,
    )
