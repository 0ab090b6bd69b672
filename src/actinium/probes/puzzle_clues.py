"""Clues of arrangement puzzles: the relations, when each is true, and which arrangements a set of clues leaves."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from actinium.core.errors import InputError, UnknownNameError, unknown

__all__ = ["MOST_WORLDS", "RELATIONS", "Knowledge", "PuzzleClue", "Relation", "Space", "truth"]

# 8!: a bitmask of more arrangements than these is refused.
MOST_WORLDS = math.factorial(8)


@dataclass(frozen=True)
class Relation:
    """A kind of clue.

    Args:
        arity: number of entities.
        number: what its number means: "" (it has none), "slot" or "distance".
        holds: truth from the slots of the entities (integers from 1, or arrays of them), the number, and n.
        alike: entities from this index on may change places without changing the truth; None where order matters.
        negation: the relation that is true where this one is false, between entities of one attribute.
        across: whether it only makes sense between entities of two attributes.
    """

    arity: int
    number: str
    holds: Callable[[Sequence[Any], Any, int], Any]
    alike: int | None = None
    negation: str = ""
    across: bool = False


RELATIONS: dict[str, Relation] = {
    "at": Relation(1, "slot", lambda p, k, n: p[0] == k, negation="not_at"),
    "not_at": Relation(1, "slot", lambda p, k, n: p[0] != k, negation="at"),
    "left_of": Relation(2, "", lambda p, k, n: p[0] < p[1], negation="right_of"),
    "right_of": Relation(2, "", lambda p, k, n: p[0] > p[1], negation="left_of"),
    "adjacent": Relation(2, "", lambda p, k, n: abs(p[0] - p[1]) == 1, 0, "not_adjacent"),
    "not_adjacent": Relation(2, "", lambda p, k, n: abs(p[0] - p[1]) != 1, 0, "adjacent"),
    "between": Relation(3, "", lambda p, k, n: (p[1] - p[0]) * (p[2] - p[0]) < 0, 1),
    "distance": Relation(2, "distance", lambda p, k, n: abs(p[0] - p[1]) == k, 0),
    "end": Relation(1, "", lambda p, k, n: (p[0] == 1) | (p[0] == n)),
    "same": Relation(2, "", lambda p, k, n: p[0] == p[1], 0, "not_same", across=True),
    "not_same": Relation(2, "", lambda p, k, n: p[0] != p[1], 0, "same", across=True),
}


@dataclass(frozen=True)
class PuzzleClue:
    """A statement about where entities stand; claims of steps are of the same kind.

    Args:
        relation: a name in `RELATIONS`. between(X, Y, Z): X stands strictly between Y and Z, not necessarily next to
            them; left_of: in a slot with a smaller number, not necessarily the next one.
        entities: the entities in the order in which the relation names them.
        number: a slot from 1, or a distance; None for relations without a number.
    """

    relation: str
    entities: tuple[str, ...]
    number: int | None = None

    def __str__(self) -> str:
        parts = [*self.entities, *([] if self.number is None else [str(self.number)])]
        return f"{self.relation}({', '.join(parts)})"


@dataclass(frozen=True)
class Space:
    """All arrangements of the entities: one permutation of the slots for each attribute.

    Args:
        attributes: the entities of each attribute, all of the same number n.

    Raises:
        InputError: attributes differ in size, an entity occurs twice, or there are fewer than two slots.
    """

    attributes: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        sizes = {len(values) for values in self.attributes}
        if len(sizes) != 1 or min(sizes) < 2:
            raise InputError(f"every attribute needs the same number of entities, two or more; got {sorted(sizes)}")
        if len(set(self.entities)) != len(self.entities):
            raise InputError(f"an entity occurs twice in {', '.join(self.entities)}")

    @property
    def n(self) -> int:
        """Number of slots."""
        return len(self.attributes[0])

    @property
    def entities(self) -> tuple[str, ...]:
        """The entities of all attributes."""
        return tuple(itertools.chain.from_iterable(self.attributes))

    @property
    def worlds(self) -> int:
        """Number of arrangements, (n!) ** attributes."""
        return math.factorial(self.n) ** len(self.attributes)

    def index(self, entity: str) -> int:
        """Place of an entity in `entities`.

        Raises:
            UnknownNameError: there is no such entity.
        """
        if entity not in self.entities:
            raise UnknownNameError(unknown("entity", entity, self.entities))
        return self.entities.index(entity)

    def check(self, clue: PuzzleClue) -> None:
        """Refuse a clue that says nothing about these entities.

        Raises:
            InputError: wrong number of entities, one named twice, or a slot or distance that does not exist.
            UnknownNameError: no such relation or entity.
        """
        if clue.relation not in RELATIONS:
            raise UnknownNameError(unknown("relation", str(clue.relation), RELATIONS))
        relation = RELATIONS[clue.relation]
        places = [self.index(entity) for entity in clue.entities]
        if len(places) != relation.arity or len(set(places)) != len(places):
            raise InputError(f"{clue}: {clue.relation} takes {relation.arity} different entities")
        if relation.across and len({place // self.n for place in places}) < 2:
            raise InputError(f"{clue}: {clue.relation} takes entities of two attributes")
        most = {"": None, "slot": self.n, "distance": self.n - 1}[relation.number]
        if most is None and clue.number is not None:
            raise InputError(f"{clue}: {clue.relation} takes no number")
        if most is not None and (not isinstance(clue.number, int) or not 1 <= clue.number <= most):
            raise InputError(f"{clue}: the {relation.number} must be a whole number from 1 to {most}")

    def clues(self, relation: str) -> Iterator[PuzzleClue]:
        """Every clue of one relation, once: without those that only name symmetric entities in another order."""
        kind = RELATIONS[relation]
        numbers: Iterable[int | None] = {
            "": [None],
            "slot": range(1, self.n + 1),
            "distance": range(1, self.n),
        }[kind.number]
        for places in itertools.permutations(range(len(self.entities)), kind.arity):
            if kind.alike is not None and list(places[kind.alike :]) != sorted(places[kind.alike :]):
                continue
            if kind.across and len({place // self.n for place in places}) < 2:
                continue
            for number in numbers:
                yield PuzzleClue(relation, tuple(self.entities[place] for place in places), number)

    def holds(self, clue: PuzzleClue, slots: Sequence[int]) -> bool:
        """Whether a clue is true when each entity, in the order of `entities`, stands in the given slot (from 1)."""
        where = [slots[self.index(entity)] for entity in clue.entities]
        return bool(RELATIONS[clue.relation].holds(where, clue.number, self.n))


@functools.lru_cache(maxsize=16)
def _slots(n: int, attributes: int) -> NDArray[np.int8]:
    """Slot from 1 of every entity in every arrangement, (arrangement, entity)."""
    one = np.array(list(itertools.permutations(range(1, n + 1))), dtype=np.int8)
    every = one
    for _ in range(attributes - 1):
        every = np.concatenate([np.repeat(every, len(one), 0), np.tile(one, (len(every), 1))], 1)
    return every


@functools.lru_cache(maxsize=100_000)
def _bits(n: int, attributes: int, relation: str, places: tuple[int, ...], number: int | None) -> int:
    slots = _slots(n, attributes)
    true = RELATIONS[relation].holds([slots[:, place] for place in places], number, n)
    return int.from_bytes(np.packbits(true, bitorder="little").tobytes(), "little")


def truth(space: Space, clue: PuzzleClue) -> int:
    """The arrangements in which a clue is true, as a bitmask: bit i for the i-th arrangement.

    Raises:
        InputError: there are more arrangements than MOST_WORLDS, or the clue does not fit the space.
        UnknownNameError: no such relation or entity.
    """
    if space.worlds > MOST_WORLDS:
        raise InputError(
            f"{space.worlds:,} arrangements are too many to list (at most {MOST_WORLDS:,}, 8 slots with one "
            "attribute); use method='search'"
        )
    space.check(clue)
    places = tuple(space.index(entity) for entity in clue.entities)
    return _bits(space.n, len(space.attributes), clue.relation, places, clue.number)


@dataclass(frozen=True)
class Knowledge:
    """The arrangements that some clues leave possible, as a bitmask.

    Args:
        space: all arrangements.
        bits: bit i is set where the i-th arrangement is possible.

    Source: Atanas and Liu, 2025 (puzzles whose steps are checked); the bitmask is ours.
    """

    space: Space
    bits: int

    @classmethod
    def of(cls, space: Space, clues: Iterable[PuzzleClue] = ()) -> Self:
        """What the clues leave; without clues everything.

        Raises:
            InputError: too many arrangements to list, or a clue does not fit.
        """
        if space.worlds > MOST_WORLDS:
            truth(space, PuzzleClue("at", (space.entities[0],), 1))
        bits = (1 << space.worlds) - 1
        for clue in clues:
            bits &= truth(space, clue)
        return cls(space, bits)

    def add(self, clue: PuzzleClue) -> Self:
        """What is left when a clue is known too."""
        return type(self)(self.space, self.bits & truth(self.space, clue))

    def entails(self, claim: PuzzleClue) -> bool:
        """Whether a claim is true in all possible arrangements (in none of them everything is)."""
        return not self.bits & ~truth(self.space, claim)

    def contradicts(self, claim: PuzzleClue) -> bool:
        """Whether a claim is false in all possible arrangements."""
        return not self.bits & truth(self.space, claim)

    def count(self, limit: int = MOST_WORLDS) -> int:
        """Number of possible arrangements, counted up to `limit`."""
        return min(self.bits.bit_count(), limit)

    def first(self) -> tuple[int, ...] | None:
        """The first possible arrangement: the slot from 1 of each entity; None where nothing is possible."""
        if not self.bits:
            return None
        lowest = (self.bits & -self.bits).bit_length() - 1
        return tuple(int(slot) for slot in _slots(self.space.n, len(self.space.attributes))[lowest])
