"""Has p or q been said: "a p b" -> yes, "a b" -> no.

Block 0: head 0 looks for p, head 2 for q; MLP 0 says yes when either, or both, have found it. Where both were said,
one head is enough, and neither matters alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from actinium.world.assembly import Assembly, unit
from actinium.world.compiled.both import CONTEXT, FIND, LETTERS, NONE, pair, prompt
from actinium.world.program import Compiled

__all__ = ["build"]

LOW, HIGH = 0.25, 0.75
"""Between these what was found counts in part, above them in full."""


def program(tokens: Sequence[str]) -> str:
    """yes or no."""
    return "yes" if {"p", "q"} & set(tokens) else "no"


def build(seed: int = 0) -> Compiled:
    """The compiled model; its unused parts are drawn from `seed`."""
    made = Assembly(("p", "q", *LETTERS, "no", "yes"), CONTEXT, layers=2, spaces={"p": 1, "q": 1})
    size = made.vocabulary
    for head, letter in ((0, "p"), (2, "q")):
        made.head(
            *(0, head),
            query_bias={0: 1.0},
            key={"token": unit(size, {made.ids[letter]: FIND, 0: NONE})},
            value={"token": unit(size, {made.ids[letter]: 1})},
            out=letter,
        )
    slope = 1 / (HIGH - LOW)
    step = torch.zeros(2, size)
    step[:, made.ids["yes"]] = torch.tensor([slope, -slope])
    reads = torch.ones(1, 2)
    made.relu(0, {"p": reads, "q": reads}, torch.tensor([-LOW, -HIGH]), {"answer": step})
    made.gain = 10.0
    made.constant[made.ids["no"]] = 0.5
    paths = [{f"input->a0.h{head}<k>", f"input->a0.h{head}<v>", f"a0.h{head}->m0"} for head in (0, 2)]
    return Compiled(
        "either",
        made.model("world:either", seed),
        program,
        edges=frozenset({*paths[0], *paths[1], "m0->logits"}),
        constants=frozenset(),
        prompt=prompt,
        pair=pair,
        redundant=tuple(frozenset(path) for path in paths),
    )
