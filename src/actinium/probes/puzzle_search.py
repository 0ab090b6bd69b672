"""Constraint propagation and search: what clues leave possible where the arrangements are too many to list."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from actinium.core.errors import UnknownNameError, unknown
from actinium.probes.puzzle_clues import RELATIONS, Knowledge, PuzzleClue, Space

__all__ = ["METHODS", "SearchKnowledge", "knowledge"]

METHODS = ("auto", "bitmask", "search")
# 6!: with more arrangements "auto" searches.
LISTED = 720
Domains = tuple[int, ...]


@dataclass(frozen=True)
class SearchKnowledge:
    """The arrangements that some clues leave possible, found by search; it answers what `Knowledge` answers.

    Args:
        space: all arrangements.
        known: clues, each with the truth value that it has.
    """

    space: Space
    known: tuple[tuple[PuzzleClue, bool], ...] = ()

    @classmethod
    def of(cls, space: Space, clues: Iterable[PuzzleClue] = ()) -> Self:
        """What the clues leave.

        Raises:
            InputError: a clue does not fit the space.
        """
        clues = tuple(clues)
        for clue in clues:
            space.check(clue)
        return cls(space, tuple((clue, True) for clue in clues))

    def add(self, clue: PuzzleClue) -> Self:
        """What is left when a clue is known too."""
        self.space.check(clue)
        return type(self)(self.space, (*self.known, (clue, True)))

    def entails(self, claim: PuzzleClue) -> bool:
        """Whether a claim is true in all possible arrangements (in none of them everything is)."""
        self.space.check(claim)
        return not any(True for _ in _solutions(self.space, (*self.known, (claim, False))))

    def contradicts(self, claim: PuzzleClue) -> bool:
        """Whether a claim is false in all possible arrangements."""
        self.space.check(claim)
        return not any(True for _ in _solutions(self.space, (*self.known, (claim, True))))

    def count(self, limit: int = 2) -> int:
        """Number of possible arrangements, counted up to `limit`."""
        return sum(1 for _ in itertools.islice(_solutions(self.space, self.known), limit))

    def first(self) -> tuple[int, ...] | None:
        """One possible arrangement: the slot from 1 of each entity; None where nothing is possible."""
        return next(_solutions(self.space, self.known), None)


def knowledge(space: Space, clues: Iterable[PuzzleClue] = (), method: str = "auto") -> Knowledge | SearchKnowledge:
    """What clues leave possible.

    Args:
        space: all arrangements.
        clues: what is known.
        method: "bitmask" lists the arrangements, "search" propagates and searches, "auto" lists up to 720 of them.

    Raises:
        InputError: more than 8! arrangements and method "bitmask", or a clue does not fit.
        UnknownNameError: no such method.
    """
    if method not in METHODS:
        raise UnknownNameError(unknown("method", str(method), METHODS))
    if method == "search" or (method == "auto" and space.worlds > LISTED):
        return SearchKnowledge.of(space, clues)
    return Knowledge.of(space, clues)


def _solutions(space: Space, known: tuple[tuple[PuzzleClue, bool], ...]) -> Iterator[tuple[int, ...]]:
    """Every arrangement in which the clues have their truth values."""
    constraints = [(tuple(space.index(e) for e in clue.entities), clue, value) for clue, value in known]
    everything = (1 << space.n) - 1
    stack: list[Domains] = [(everything,) * len(space.entities)]
    while stack:
        domains = _propagate(space, constraints, stack.pop())
        if domains is None:
            continue
        open_ = [i for i, domain in enumerate(domains) if domain.bit_count() > 1]
        if not open_:
            yield tuple(domain.bit_length() for domain in domains)
            continue
        choice = min(open_, key=lambda i: domains[i].bit_count())
        for slot in reversed(_values(domains[choice])):
            stack.append((*domains[:choice], 1 << (slot - 1), *domains[choice + 1 :]))


def _values(domain: int) -> list[int]:
    return [slot for slot in range(1, domain.bit_length() + 1) if domain >> (slot - 1) & 1]


def _propagate(
    space: Space, constraints: list[tuple[tuple[int, ...], PuzzleClue, bool]], domains: Domains
) -> Domains | None:
    """Drop slots that no arrangement can use, until nothing changes; None where an entity has none left."""
    while True:
        before = domains
        reduced = _all_different(space, domains)
        if reduced is None:
            return None
        domains = reduced
        for places, clue, value in constraints:
            supported = [0] * len(places)
            holds = RELATIONS[clue.relation].holds
            for slots in itertools.product(*(_values(domains[place]) for place in places)):
                if bool(holds(slots, clue.number, space.n)) == value:
                    for i, slot in enumerate(slots):
                        supported[i] |= 1 << (slot - 1)
            if not all(supported):
                return None
            changed = list(domains)
            for place, domain in zip(places, supported, strict=True):
                changed[place] = domain
            domains = tuple(changed)
        if domains == before:
            return domains


def _all_different(space: Space, domains: Domains) -> Domains | None:
    """Within each attribute: a slot that is taken is no one else's, and a slot that only one can take is theirs."""
    out = list(domains)
    for first in range(0, len(domains), space.n):
        group = range(first, first + space.n)
        for i in group:
            if out[i].bit_count() == 1:
                for j in group:
                    if j != i:
                        out[j] &= ~out[i]
        for slot in range(space.n):
            able = [i for i in group if out[i] >> slot & 1]
            if not able:
                return None
            if len(able) == 1:
                out[able[0]] = 1 << slot
        if not all(out[i] for i in group):
            return None
    return tuple(out)
