"""The letters before the bar, backwards: "a b c | c b" -> a; `<bos>` when all are said.

Block 0: head 1 finds the bar and copies its position s. MLP 0, at position p, computes the position 2 s - p - 1 of the
letter to come, one unit for each pair (p, s). Block 1: head 3 attends there (through its query) and copies the letter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from actinium.world.assembly import BOS, Assembly, identity, unit
from actinium.world.program import Compiled

__all__ = ["build"]

BAR = "|"
LETTERS = tuple("abcdefghij")
CONTEXT = 14
MOST = 6
"""Letters before the bar."""
LENGTH = 8
"""Tokens of a prompt of the task, without `<bos>`."""
FIND = 12.0


def program(tokens: Sequence[str]) -> str:
    """The letter that continues the reversal, or `<bos>` at its end."""
    bar = tokens.index(BAR)
    place = 2 * bar - len(tokens)
    return tokens[place] if place >= 0 else BOS


def _written(letters: list[str], length: int) -> list[str]:
    return [*letters, BAR, *letters[::-1]][:length]


def prompt(source: random.Random) -> list[str]:
    """1 to 6 letters, drawn with repetition, the bar, and any part of their reversal."""
    letters = source.choices(LETTERS, k=source.randint(1, MOST))
    return _written(letters, source.randint(len(letters) + 1, 2 * len(letters) + 1))


def pair(source: random.Random) -> tuple[list[str], list[str]]:
    """Two prompts of eight tokens, with 4 to 6 letters and the bar at different places."""
    counts = source.sample(range(4, MOST + 1), 2)
    clean, corrupt = (_written(source.sample(LETTERS, count), LENGTH) for count in counts)
    return clean, corrupt


def build(seed: int = 0) -> Compiled:
    """The compiled model; its unused parts are drawn from `seed`."""
    spaces = {"bar": CONTEXT, "target": CONTEXT}
    made = Assembly((BAR, *LETTERS), CONTEXT, layers=2, spaces=spaces)
    size = made.vocabulary
    made.head(
        *(0, 1),
        query_bias={0: 1.0},
        key={"token": unit(size, {made.ids[BAR]: FIND})},
        value={"position": identity(CONTEXT)},
        out="bar",
    )
    cases = [(p, s) for s in range(2, MOST + 2) for p in range(s, 2 * s)]
    own, bar, target = (torch.zeros(CONTEXT, len(cases)) for _ in range(3))
    for case, (p, s) in enumerate(cases):
        own[p, case] = bar[s, case] = target[2 * s - p - 1, case] = 1
    made.relu(0, {"position": own, "bar": bar}, torch.full((len(cases),), -1.0), {"target": target.T})
    made.head(
        *(1, 3),
        query={"target": FIND * torch.eye(CONTEXT)},
        key={"position": identity(CONTEXT)},
        value={"token": identity(size)},
        out="answer",
    )
    made.gain = 10.0
    return Compiled(
        "reverse",
        made.model("world:reverse", seed),
        program,
        edges=frozenset({"input->a0.h1<k>", "a0.h1->m0", "m0->a1.h3<q>", "input->a1.h3<v>", "a1.h3->logits"}),
        constants=frozenset({"input->a0.h1<v>", "input->m0", "input->a1.h3<k>"}),
        prompt=prompt,
        pair=pair,
    )
