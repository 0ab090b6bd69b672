"""Solving an arrangement puzzle as a person does: one conclusion at a time, from as few clues as possible."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.probes.puzzle_clues import Knowledge, PuzzleClue, Space

__all__ = ["Deduction", "eliminate"]

FIRST = ("at", "not_at", "any")


@dataclass(frozen=True)
class Deduction:
    """A conclusion and what it follows from.

    Args:
        claim: the conclusion.
        clues: numbers from 1 of the clues it needs.
        steps: numbers from 1 of the earlier conclusions it needs.
    """

    claim: PuzzleClue
    clues: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()


def eliminate(space: Space, clues: Sequence[PuzzleClue], seed: int = 0, first: str = "at") -> list[Deduction]:
    """A chain of conclusions that ends where one arrangement is left.

    Each is new (it does not follow from the conclusions before it alone), places an entity or excludes a slot, and
    follows from the earlier conclusions and as few clues as any would need: one if possible, else two, and so on. Among
    these the seed chooses. What is cited is minimal: without any of the cited clues and steps the claim would not
    follow.

    Args:
        space: all arrangements.
        clues: clues that leave one arrangement.
        seed: of the choice between possible conclusions.
        first: which of these are preferred, "at" (placements, which makes short chains), "not_at" (exclusions, which
            makes small steps) or "any".

    Raises:
        InputError: the clues do not leave exactly one arrangement, or there are too many arrangements to list.
        UnknownNameError: no such preference.
    """
    if first not in FIRST:
        raise UnknownNameError(unknown("preference", str(first), FIRST))
    end = Knowledge.of(space, clues)
    if end.count() != 1:
        raise InputError(f"the clues leave {end.count()} arrangements; a chain needs one")
    claims = [claim for relation in ("at", "not_at") for claim in space.clues(relation) if end.entails(claim)]
    random = Random(seed)
    stated, chain = Knowledge.of(space), list[Deduction]()
    while stated.bits != end.bits:
        claim, used = _next(stated, clues, claims, random, first)
        chain.append(Deduction(claim, used, _needed(space, chain, [clues[i - 1] for i in used], claim)))
        stated = stated.add(claim)
    return chain


def _next(
    stated: Knowledge, clues: Sequence[PuzzleClue], claims: Sequence[PuzzleClue], random: Random, first: str
) -> tuple[PuzzleClue, tuple[int, ...]]:
    """A new claim from as few clues as possible, with their numbers."""
    for size in range(1, len(clues) + 1):
        found: list[tuple[PuzzleClue, tuple[int, ...]]] = []
        for used in itertools.combinations(range(len(clues)), size):
            state = stated
            for i in used:
                state = state.add(clues[i])
            if state.bits != stated.bits:
                numbers = tuple(i + 1 for i in used)
                found += [(c, numbers) for c in claims if state.entails(c) and not stated.entails(c)]
        if found:
            preferred = [pair for pair in found if pair[0].relation == first]
            return random.choice(preferred or found)
    raise AssertionError("all clues together entail the placement of every entity")


def _needed(
    space: Space, chain: Sequence[Deduction], clues: Sequence[PuzzleClue], claim: PuzzleClue
) -> tuple[int, ...]:
    """Numbers of the earlier steps without any of which the claim would not follow from the clues; oldest go first."""
    kept = list(range(len(chain)))
    for step in range(len(chain)):
        rest = [i for i in kept if i != step]
        if Knowledge.of(space, [*clues, *(chain[i].claim for i in rest)]).entails(claim):
            kept = rest
    return tuple(i + 1 for i in kept)
