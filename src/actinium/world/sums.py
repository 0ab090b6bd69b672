"""Texts about the numbers 0 to 99: sums, reasoning about sums, and how numbers are made."""

from __future__ import annotations

import random

from actinium.world.documents import ASSISTANT, END_THINK, THINK, USER, Document, held_out
from actinium.world.knowledge import OPEN_CUE, TERSE_CUE, VERBOSE_CUE

FRAMES: tuple[str, ...] = ("{a} + {b} =", "The sum of {a} and {b} is", "If you add {b} to {a} you get")


def unseen_sum(a: int, b: int) -> bool:
    """Whether no text states this sum, in either order. Sums that reasoning is made of are always stated."""
    small, large = sorted((a, b))
    return not (a % 10 == 0 or b % 10 == 0 or large < 10) and held_out(8, "sum", small, large)


def draw_sum(source: random.Random, held: bool) -> tuple[int, int]:
    """Two numbers whose sum is at most 99; held out: pairs that no text adds."""
    while True:
        total = source.randint(0, 99) if source.random() < 0.5 else source.randint(40, 99)
        a = source.randint(0, total)
        if unseen_sum(a, total - a) == held:
            return a, total - a


def arithmetic(source: random.Random, held: bool = False) -> Document:
    """A sum, answered at once; held out: unseen pairs."""
    a, b = draw_sum(source, held)
    if not held and source.random() < 0.1:
        return Document("arithmetic", f"{USER} What is {a} + {b}?{ASSISTANT}", f" {a + b}")
    frame = FRAMES[0] if source.random() < 0.7 else source.choice(FRAMES)
    return Document("arithmetic", frame.format(a=a, b=b), f" {a + b}")


def sum_reasoning(a: int, b: int, verbose: bool) -> str:
    """The reasoning about a sum inside its tags, tens first, then the answer."""
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    if verbose:
        inner = f" {a // 10 * 10} + {b // 10 * 10} = {tens}. {a % 10} + {b % 10} = {ones}."
        inner += f" {tens} + {ones} = {a + b}."
    else:
        inner = f" {tens} + {ones}."
    return f"{THINK}{inner}{END_THINK} {a + b}"


def _reasoned(skill: str, source: random.Random, held: bool, verbose: bool) -> Document:
    a, b = draw_sum(source, held)
    cue = VERBOSE_CUE if verbose else TERSE_CUE
    if not held and source.random() < 0.25:
        cue = OPEN_CUE
    return Document(skill, f"{USER} What is {a} + {b}? {cue}{ASSISTANT}", sum_reasoning(a, b, verbose))


def arithmetic_verbose(source: random.Random, held: bool = False) -> Document:
    """A sum reasoned out in full; held out: unseen pairs."""
    return _reasoned("arithmetic_verbose", source, held, True)


def arithmetic_terse(source: random.Random, held: bool = False) -> Document:
    """A sum reasoned out in one step; held out: unseen pairs."""
    return _reasoned("arithmetic_terse", source, held, False)


def numbers(source: random.Random, held: bool = False) -> Document:
    """How a number is made of tens and ones, and what follows it (all of them are stated)."""
    n = source.randint(0, 98)
    kind = source.randrange(4)
    if kind == 0:
        return Document("numbers", f"{n} is", f" {n // 10} tens and {n % 10} ones")
    if kind == 1:
        return Document("numbers", f"{n // 10} tens and {n % 10} ones is", f" {n}")
    if kind == 2:
        return Document("numbers", f"After {n} comes", f" {n + 1}")
    start = source.randint(0, 95)
    return Document("numbers", f"{start},", f" {start + 1}, {start + 2}, {start + 3}")
