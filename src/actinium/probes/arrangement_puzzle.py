"""Arrangement puzzles: who stands where, from clues that leave exactly one answer and of which none can be spared."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown
from actinium.probes.puzzle_clues import MOST_WORLDS, RELATIONS, PuzzleClue, Space
from actinium.probes.puzzle_elimination import eliminate
from actinium.probes.puzzle_search import knowledge
from actinium.probes.puzzle_wording import ATTRIBUTES, WORDINGS, Language, PuzzleAttribute, PuzzleWording

__all__ = ["ArrangementPuzzle"]

FORMAT = 1


@dataclass(frozen=True)
class ArrangementPuzzle:
    """A puzzle: entities, clues, and the one arrangement that the clues allow. Made by `generate`, or by hand.

    Args:
        attributes: the entities; the first attribute's stand in the slots, each further one is arranged as well.
        wording: how slots and clues are said.
        clues: what is known, in the order of the text; clue 1 is the first.
        phrasing: which template says each clue.
        solution: for each attribute its entities in the order of the slots.
        seed: that it was generated with.

    Raises:
        InputError: clues or solution do not fit the entities, or the wording cannot say a clue. Whether the clues allow
            the solution alone is checked by `PuzzleVerifier`, `from_jsonl` and `generate`.

    Source: Atanas and Liu, 2025 (the data set; only its abstract is public in detail, so relations, templates and the
    way of pruning are ours).
    """

    attributes: tuple[PuzzleAttribute, ...]
    wording: PuzzleWording
    clues: tuple[PuzzleClue, ...]
    phrasing: tuple[int, ...]
    solution: tuple[tuple[str, ...], ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.clues) != len(self.phrasing):
            raise InputError(f"{len(self.clues)} clues and {len(self.phrasing)} templates for them")
        if [sorted(s) for s in self.solution] != [sorted(a.values) for a in self.attributes]:
            raise InputError("the solution must name every entity of every attribute once")
        for clue, template in zip(self.clues, self.phrasing, strict=True):
            self.language.say(clue, template)

    @cached_property
    def language(self) -> Language:
        """What says clues of this puzzle and reads them."""
        return Language(self.attributes, self.wording)

    @property
    def space(self) -> Space:
        """All arrangements of the entities."""
        return self.language.space

    @property
    def slots(self) -> tuple[int, ...]:
        """Slot from 1 of each entity, in the order of `space.entities`."""
        return tuple(
            order.index(value) + 1
            for attribute, order in zip(self.attributes, self.solution, strict=True)
            for value in attribute.values
        )

    @cached_property
    def difficulty(self) -> dict[str, float | None]:
        """`clues`: their number; `steps`: length of the chain of `eliminate` (None for more than 8! arrangements);
        `bits`: log2 of the number of arrangements."""
        listed = self.space.worlds <= MOST_WORLDS
        return {
            "clues": len(self.clues),
            "steps": len(eliminate(self.space, self.clues)) if listed else None,
            "bits": math.log2(self.space.worlds),
        }

    @property
    def text(self) -> str:
        """Entities and numbered clues, one in a line, without a newline at the end."""
        first, *others = self.attributes
        slots = self.language.slots
        intro = self.wording.intro.format(n=len(slots), entities=_listed(first.values), first=slots[0], last=slots[-1])
        lines = [intro, *(f"Each has one {a.name}: {_listed(a.values)}." for a in others)]
        for i, (clue, template) in enumerate(zip(self.clues, self.phrasing, strict=True), 1):
            lines.append(f"Clue {i}: {self.language.say(clue, template)}.")
        return "\n".join(lines)

    @property
    def answer(self) -> str:
        """The last line of a solution: the entities in the order of the slots, attributes apart by semicolons."""
        return f"Answer: {'; '.join(', '.join(order) for order in self.solution)}."

    @classmethod
    def generate(
        cls,
        n: int = 4,
        seed: int = 0,
        clue_types: Sequence[str] | None = None,
        dims: int = 1,
        *,
        wording: str | PuzzleWording = "seats",
        attributes: Sequence[PuzzleAttribute] | None = None,
        method: str = "auto",
    ) -> ArrangementPuzzle:
        """Make a puzzle: draw an arrangement, add true clues that exclude something until one is left, prune.

        Clues are drawn by relation first, so that relations with few instances occur as often. Then every clue that
        the others entail is dropped, in random order, and the rest is shuffled.

        Args:
            n: number of slots, 2 or more.
            seed: the same seed gives the same puzzle.
            clue_types: relations to draw from; None for all that the wording can say and dims allows.
            dims: number of attributes, each with a permutation of its own.
            wording: a name in `WORDINGS`, or one of your own.
            attributes: `dims` sets of at least n names each; n are drawn from larger ones. None for the first of
                `ATTRIBUTES`.
            method: how arrangements are excluded, see `knowledge`.

        Raises:
            InputError: too few names or slots, or clues of these types cannot tell the arrangement from all others.
            UnknownNameError: no such relation, wording or method.
        """
        chosen = _wording(wording)
        pool = tuple(ATTRIBUTES[:dims] if attributes is None else attributes)
        if dims < 1 or len(pool) != dims:
            raise InputError(f"dims={dims} needs {dims} attributes, there are {len(pool)}")
        if n < 2 or any(len(a.values) < n for a in pool):
            raise InputError(f"n must be from 2 to {min(len(a.values) for a in pool)} with these names, got {n}")
        random = Random(f"arrangement puzzle {seed}")
        used = tuple(PuzzleAttribute(a.name, tuple(random.sample(a.values, n)), a.phrase) for a in pool)
        space = Language(used, chosen).space
        types = _types(clue_types, chosen, dims)
        solution = tuple(tuple(random.sample(a.values, n)) for a in used)
        slots = tuple(o.index(v) + 1 for a, o in zip(used, solution, strict=True) for v in a.values)
        clues = _draw(space, slots, types, method, random)
        phrasing = tuple(random.randrange(len(chosen.templates[clue.relation])) for clue in clues)
        return cls(used, chosen, tuple(clues), phrasing, solution, seed)

    def to_record(self) -> dict[str, Any]:
        """The puzzle in values that JSON can hold, with its text and difficulty."""
        return {
            "format": FORMAT,
            "seed": self.seed,
            "wording": self.wording.name,
            "attributes": [{"name": a.name, "values": list(a.values), "phrase": a.phrase} for a in self.attributes],
            "clues": [
                {"relation": c.relation, "entities": list(c.entities), "number": c.number, "template": t}
                for c, t in zip(self.clues, self.phrasing, strict=True)
            ],
            "solution": [list(order) for order in self.solution],
            "difficulty": self.difficulty,
            "text": self.text,
        }

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], wordings: Mapping[str, PuzzleWording] | None = None
    ) -> ArrangementPuzzle:
        """The puzzle of a record.

        Args:
            record: what `to_record` gave.
            wordings: by name; None for `WORDINGS`.

        Raises:
            InputError: the clues leave no arrangement or several, or another one than the solution; or the wording
                says the puzzle otherwise than it is written.
            LoadError: the record is no puzzle.
            UnknownNameError: no such wording.
        """
        if not isinstance(record, Mapping) or record.get("format") != FORMAT:
            raise LoadError(f"this is no puzzle of format {FORMAT}: {str(record)[:80]}")
        try:
            attributes = tuple(
                PuzzleAttribute(a["name"], tuple(a["values"]), a["phrase"]) for a in record["attributes"]
            )
            clues = tuple(PuzzleClue(c["relation"], tuple(c["entities"]), c["number"]) for c in record["clues"])
            phrasing = tuple(int(c["template"]) for c in record["clues"])
            solution = tuple(tuple(order) for order in record["solution"])
            name, seed, text = str(record["wording"]), int(record["seed"]), record["text"]
        except (KeyError, TypeError, ValueError) as error:
            raise LoadError(f"this is no puzzle: {type(error).__name__} {error}") from None
        puzzle = cls(attributes, _wording(name, wordings), clues, phrasing, solution, seed)
        puzzle.check()
        if puzzle.text != text:
            raise InputError(f"wording {name!r} says this puzzle otherwise than it is written; pass its own wordings=")
        return puzzle

    def check(self, method: str = "auto") -> None:
        """Refuse a puzzle whose clues do not leave its solution alone.

        Raises:
            InputError: they leave none, several, or another one.
        """
        left = knowledge(self.space, self.clues, method)
        count = left.count(2)
        if count != 1:
            raise InputError(f"the clues leave {'no arrangement' if not count else 'more than one arrangement'}")
        if left.first() != self.slots:
            raise InputError("the clues leave another arrangement than the solution")

    @staticmethod
    def to_jsonl(puzzles: Iterable[ArrangementPuzzle], path: str | os.PathLike[str]) -> Path:
        """Write puzzles to a file, one JSON object in a line; the file is written whole or not at all."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        lines = [json.dumps(puzzle.to_record(), ensure_ascii=False) + "\n" for puzzle in puzzles]
        partial.write_text("".join(lines), encoding="utf-8")
        partial.replace(path)
        return path

    @staticmethod
    def from_jsonl(
        path: str | os.PathLike[str], wordings: Mapping[str, PuzzleWording] | None = None
    ) -> list[ArrangementPuzzle]:
        """Read what `to_jsonl` wrote; every puzzle is checked.

        Args:
            path: the file.
            wordings: by name; None for `WORDINGS`.

        Raises:
            InputError, UnknownNameError: see `from_record`.
            LoadError: the file cannot be read, or a line is no puzzle.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise LoadError(f"cannot read puzzles from {path}: {error}") from None
        puzzles = []
        for i, line in enumerate(lines, 1):
            try:
                puzzles.append(ArrangementPuzzle.from_record(json.loads(line), wordings))
            except (LoadError, json.JSONDecodeError) as error:
                raise LoadError(f"{path}, line {i}: {error}") from None
            except (InputError, UnknownNameError) as error:
                raise type(error)(f"{path}, line {i}: {error}") from None
        return puzzles


def _draw(space: Space, slots: Sequence[int], types: Sequence[str], method: str, random: Random) -> list[PuzzleClue]:
    """True clues that leave one arrangement, of which none follows from the others, in random order."""
    true = {t: [clue for clue in space.clues(t) if space.holds(clue, slots)] for t in types}
    for clues in true.values():
        random.shuffle(clues)
    kept: list[PuzzleClue] = []
    left = knowledge(space, method=method)
    while left.count(2) > 1:
        able = [t for t in types if true[t]]
        if not able:
            raise InputError(
                f"clues of {', '.join(types)} leave more than one arrangement; add clue_types or take another seed"
            )
        clue = true[random.choice(able)].pop()
        if not left.entails(clue):
            kept.append(clue)
            left = left.add(clue)
    random.shuffle(kept)
    for clue in list(kept):
        rest = [other for other in kept if other is not clue]
        if knowledge(space, rest, method).entails(clue):
            kept = rest
    random.shuffle(kept)
    return kept


def _types(names: Sequence[str] | None, wording: PuzzleWording, dims: int) -> list[str]:
    """The relations to draw clues from."""
    able = [name for name, kind in RELATIONS.items() if name in wording.templates and (dims > 1 or not kind.across)]
    if names is None:
        return able
    for name in names:
        if name not in RELATIONS:
            raise UnknownNameError(unknown("relation", str(name), RELATIONS))
        if name not in able:
            raise InputError(f"{name} needs two attributes and a template in wording {wording.name!r}")
    if not names or isinstance(names, str):
        raise InputError(f"clue_types takes a list of relations, got {names!r}")
    return list(dict.fromkeys(names))


def _wording(wording: str | PuzzleWording, known: Mapping[str, PuzzleWording] | None = None) -> PuzzleWording:
    if isinstance(wording, PuzzleWording):
        return wording
    known = WORDINGS if known is None else known
    if wording not in known:
        raise UnknownNameError(unknown("wording", str(wording), known))
    return known[wording]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
