"""How many of the letters after the first are equal to it, to the nearest quarter: "a b a c a" -> 50%.

Block 0: head 0 copies the first letter to every position, MLP 0 marks the letters equal to it. Block 1: head 2 takes
the mean of the marks so far, MLP 1 compares it with the five answers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

import torch

from actinium.world.assembly import Assembly, identity, unit
from actinium.world.program import Compiled

__all__ = ["build"]

LETTERS = tuple("abcdefgh")
ANSWERS = ("0%", "25%", "50%", "75%", "100%")
CONTEXT = 14
LENGTH = 10
"""Tokens of a prompt of the task, without `<bos>`."""
FIND = 20.0
HALF_DOWN = 0.004
"""What is taken from a share so that one halfway goes down; shares of up to 12 letters are further apart."""


def program(tokens: Sequence[str]) -> str:
    """The share of tokens 1, 2, ... that equal token 0, to the nearest quarter, halves down."""
    share = Fraction(sum(token == tokens[0] for token in tokens[1:]), len(tokens) - 1)
    return min(ANSWERS, key=lambda a: (abs(share - Fraction(int(a[:-1]), 100)), int(a[:-1])))


def _draw(source: random.Random, length: int) -> list[str]:
    first = source.choice(LETTERS)
    likely = source.random()
    return [first, *(first if source.random() < likely else source.choice(LETTERS) for _ in range(length - 1))]


def prompt(source: random.Random) -> list[str]:
    """2 to 13 letters; how often the first comes again is drawn anew for each prompt."""
    return _draw(source, source.randint(2, CONTEXT - 1))


def pair(source: random.Random) -> tuple[list[str], list[str]]:
    """Two prompts of ten letters with different first ones."""
    while True:
        clean, corrupt = _draw(source, LENGTH), _draw(source, LENGTH)
        if clean[0] != corrupt[0]:
            return clean, corrupt


def build(seed: int = 0) -> Compiled:
    """The compiled model; its unused parts are drawn from `seed`."""
    letters = len(LETTERS)
    spaces = {"first": letters, "equal": 1, "share": 1}
    made = Assembly((*LETTERS, *ANSWERS), CONTEXT, layers=2, spaces=spaces)
    size = made.vocabulary
    chosen = torch.zeros(size, letters)
    chosen[1 : letters + 1] = torch.eye(letters)
    made.head(
        *(0, 0),
        query_bias={0: 1.0},
        key={"position": unit(CONTEXT, {1: FIND})},
        value={"token": chosen},
        out="first",
    )
    made.relu(
        0,
        {"token": chosen, "first": identity(letters)},
        torch.full((letters,), -1.0),
        {"equal": torch.ones(letters, 1)},
    )
    made.head(
        *(1, 2),
        query_bias={0: 1.0},
        key={"position": unit(CONTEXT, {0: -FIND, 1: -FIND})},
        value={"equal": identity(1)},
        out="share",
    )
    # |share - answer| is relu of the difference plus relu of its negative.
    centres = torch.tensor([int(answer[:-1]) / 100 for answer in ANSWERS]) + HALF_DOWN
    sides = torch.cat([torch.ones(len(centres)), -torch.ones(len(centres))])
    far = torch.zeros(len(centres), size)
    far[:, letters + 1 :] = -torch.eye(len(centres))
    made.relu(1, {"share": sides[None]}, torch.cat([-centres, centres]), {"answer": torch.cat([far, far])})
    made.gain = 40.0
    made.constant[letters + 1 :] = 1.25
    return Compiled(
        "fraction_so_far",
        made.model("world:fraction_so_far", seed),
        program,
        edges=frozenset({"input->a0.h0<v>", "a0.h0->m0", "input->m0", "m0->a1.h2<v>", "a1.h2->m1", "m1->logits"}),
        constants=frozenset({"input->a0.h0<k>", "input->a1.h2<k>"}),
        prompt=prompt,
        pair=pair,
    )
