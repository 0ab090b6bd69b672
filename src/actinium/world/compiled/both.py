"""Have both p and q been said: "a p b q c" -> yes, "a p b" -> no.

Block 0: head 1 looks for p, head 3 for q. MLP 0 passes what head 1 found, MLP 1 what head 3 found, MLP 2 is their
conjunction.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from actinium.world.assembly import Assembly, unit
from actinium.world.program import Compiled

__all__ = ["build"]

LETTERS = tuple("abcdefgh")
CONTEXT = 14
LENGTH = 10
"""Tokens of a prompt of the task, without `<bos>`."""
FIND, NONE = 8.0, 4.0
"""Scores of what is looked for, and of `<bos>`, to which a head attends that does not find it."""


def program(tokens: Sequence[str]) -> str:
    """yes or no."""
    return "yes" if {"p", "q"} <= set(tokens) else "no"


def prompt(source: random.Random) -> list[str]:
    """1 to 13 letters with, at random, p and q among them."""
    tokens = source.choices(LETTERS, k=source.randint(1, CONTEXT - 1))
    for token in ("p", "q"):
        if source.random() < 0.6:
            tokens[source.randrange(len(tokens))] = token
    return tokens


def pair(source: random.Random) -> tuple[list[str], list[str]]:
    """Ten letters with both p and q, and ten with neither."""
    clean, corrupt = (source.choices(LETTERS, k=LENGTH) for _ in range(2))
    for token, place in zip("pq", source.sample(range(LENGTH), 2), strict=True):
        clean[place] = token
    return clean, corrupt


def build(seed: int = 0) -> Compiled:
    """The compiled model; its unused parts are drawn from `seed`."""
    spaces = {"p": 1, "q": 1, "first": 1, "second": 1}
    made = Assembly(("p", "q", *LETTERS, "no", "yes"), CONTEXT, layers=3, spaces=spaces)
    size = made.vocabulary
    for head, letter in ((1, "p"), (3, "q")):
        made.head(
            *(0, head),
            query_bias={0: 1.0},
            key={"token": unit(size, {made.ids[letter]: FIND, 0: NONE})},
            value={"token": unit(size, {made.ids[letter]: 1})},
            out=letter,
        )
    one = torch.ones(1, 1)
    made.relu(0, {"p": one}, torch.zeros(1), {"first": one})
    made.relu(1, {"q": one}, torch.zeros(1), {"second": one})
    made.relu(2, {"first": one, "second": one}, torch.tensor([-1.0]), {"answer": unit(size, {made.ids["yes"]: 1}).T})
    made.gain = 10.0
    made.constant[made.ids["no"]] = 0.5
    heads = {f"input->a0.h{head}<{part}>" for head in (1, 3) for part in "kv"}
    return Compiled(
        "both",
        made.model("world:both", seed),
        program,
        edges=frozenset({*heads, "a0.h1->m0", "a0.h3->m1", "m0->m2", "m1->m2", "m2->logits"}),
        constants=frozenset(),
        prompt=prompt,
        pair=pair,
    )
