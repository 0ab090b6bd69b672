"""How clues are said: slot names, sentence templates with paraphrases, entity sets; and reading sentences back."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.probes.puzzle_clues import RELATIONS, PuzzleClue, Space

__all__ = ["ATTRIBUTES", "WORDINGS", "Language", "PuzzleAttribute", "PuzzleWording"]

ENTITY_KEYS = ("x", "y", "z")
NUMBER_KEYS = {"": None, "slot": "slot", "distance": "k"}


@dataclass(frozen=True)
class PuzzleAttribute:
    """A set of entities of which each stands in a slot of its own.

    Args:
        name: what they are, such as "drink".
        values: their names, different from those of every other attribute.
        phrase: how one is spoken of, with {} for its name.

    Raises:
        InputError: fewer than two values, an empty one, one given twice, or a phrase without {}.
    """

    name: str
    values: tuple[str, ...]
    phrase: str = "{}"

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if len(self.values) < 2 or not all(isinstance(v, str) and v.strip() == v and v for v in self.values):
            raise InputError(f"attribute {self.name!r} needs two or more names, got {self.values}")
        if len({value.lower() for value in self.values}) != len(self.values):
            raise InputError(f"attribute {self.name!r} has a name twice: {', '.join(self.values)}")
        if self.phrase.count("{}") != 1:
            raise InputError(f"phrase {self.phrase!r} of attribute {self.name!r} must hold {{}} once")


ATTRIBUTES = (
    PuzzleAttribute("person", ("Ann", "Bob", "Carl", "Dora", "Eve", "Finn", "Gus", "Hal", "Ida", "Jack", "Kim", "Leo")),
    PuzzleAttribute("drink", ("tea", "milk", "water", "juice", "beer", "wine", "cocoa", "cider"), "the {} drinker"),
    PuzzleAttribute("pet", ("cat", "dog", "fish", "bird", "horse", "snake", "mouse", "goat"), "the {} owner"),
)


@dataclass(frozen=True)
class PuzzleWording:
    """How the slots are called and how each relation is said.

    Args:
        name: of the wording.
        slots: names of the slots in order, as many as the longest row needs.
        intro: first sentence, with {n}, {entities}, {first} and {last} (slot names) where they are wanted.
        templates: paraphrases of each relation, with {x}, {y}, {z} for its entities, {slot} for a slot and {k} for a
            distance. A relation that is left out cannot occur; "at" and "not_at" are needed.

    Raises:
        InputError: a template lacks a place or has one too many, or two relations are said alike.
        UnknownNameError: there is no such relation.
    """

    name: str
    slots: tuple[str, ...]
    intro: str
    templates: Mapping[str, tuple[str, ...]] = field(hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(self.slots))
        object.__setattr__(self, "templates", {k: tuple(v) for k, v in self.templates.items()})
        for relation, templates in self.templates.items():
            if relation not in RELATIONS:
                raise UnknownNameError(unknown("relation", relation, RELATIONS))
            kind = RELATIONS[relation]
            number = NUMBER_KEYS[kind.number]
            want = sorted([*ENTITY_KEYS[: kind.arity], *([number] if number else [])])
            for template in templates:
                found = sorted(key for _, key, _, _ in string.Formatter().parse(template) if key is not None)
                if found != want:
                    places = ", ".join(f"{{{key}}}" for key in want)
                    raise InputError(f"template {template!r} of {relation} must hold {places}, once each")
        if not self.templates.get("at") or not self.templates.get("not_at"):
            raise InputError(f"wording {self.name!r} needs templates of at and not_at")
        said = [re.sub(r"\{[xyz]\}", "{}", t.lower()) for ts in self.templates.values() for t in set(ts)]
        twice = sorted({t for t in said if said.count(t) > 1})
        if twice:
            raise InputError(f"wording {self.name!r} says two things alike: {', '.join(twice)}")


_SEATS = {
    "at": ("{x} is in {slot}", "{x} sits in {slot}", "{slot} is taken by {x}"),
    "not_at": ("{x} is not in {slot}", "{x} does not sit in {slot}", "{slot} is not taken by {x}"),
    "left_of": ("{x} is left of {y}", "{x} sits to the left of {y}"),
    "right_of": ("{x} is right of {y}", "{x} sits to the right of {y}"),
    "adjacent": ("{x} is next to {y}", "{x} and {y} are neighbours"),
    "not_adjacent": ("{x} is not next to {y}", "{x} and {y} are not neighbours"),
    "between": ("{x} is between {y} and {z}", "{x} sits somewhere between {y} and {z}"),
    "distance": ("{x} is {k} away from {y}", "the distance from {x} to {y} is {k}"),
    "end": ("{x} is at an end", "{x} sits at one of the ends"),
    "same": ("{x} is in the same seat as {y}", "{x} and {y} share a seat"),
    "not_same": ("{x} is not in the same seat as {y}", "{x} and {y} do not share a seat"),
}
_DAYS = {
    "at": ("{x} comes on {slot}", "{slot} is the day of {x}"),
    "not_at": ("{x} does not come on {slot}", "{slot} is not the day of {x}"),
    "left_of": ("{x} comes before {y}", "{x} is earlier than {y}"),
    "right_of": ("{x} comes after {y}", "{x} is later than {y}"),
    "adjacent": ("{x} comes a day from {y}", "{x} and {y} come on consecutive days"),
    "not_adjacent": ("{x} does not come a day from {y}", "{x} and {y} do not come on consecutive days"),
    "between": ("{x} comes between {y} and {z}", "{x} is somewhere between {y} and {z}"),
    "distance": ("{x} comes {k} away from {y}", "the distance from {x} to {y} is {k}"),
    "end": ("{x} comes on the first or the last day", "{x} comes at an end"),
    "same": ("{x} comes on the same day as {y}", "{x} and {y} share a day"),
    "not_same": ("{x} does not come on the same day as {y}", "{x} and {y} do not share a day"),
}
_SHELVES = {
    "at": ("{x} stands on {slot}", "{slot} holds {x}"),
    "not_at": ("{x} does not stand on {slot}", "{slot} does not hold {x}"),
    "left_of": ("{x} stands above {y}", "{x} is higher than {y}"),
    "right_of": ("{x} stands below {y}", "{x} is lower than {y}"),
    "adjacent": ("{x} stands one shelf from {y}", "{x} and {y} are on adjacent shelves"),
    "not_adjacent": ("{x} does not stand one shelf from {y}", "{x} and {y} are not on adjacent shelves"),
    "between": ("{x} stands between {y} and {z}", "{x} is somewhere between {y} and {z}"),
    "distance": ("{x} stands {k} away from {y}", "the distance from {x} to {y} is {k}"),
    "end": ("{x} stands at the top or the bottom", "{x} is at an end"),
    "same": ("{x} stands on the same shelf as {y}", "{x} and {y} share a shelf"),
    "not_same": ("{x} does not stand on the same shelf as {y}", "{x} and {y} do not share a shelf"),
}
_WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WORDINGS = {
    "seats": PuzzleWording(
        "seats", tuple(f"seat {i}" for i in range(1, 13)), "{entities} sit in a row from {first} to {last}.", _SEATS
    ),
    "days": PuzzleWording("days", _WEEK, "{entities} come on different days from {first} to {last}.", _DAYS),
    "shelves": PuzzleWording(
        "shelves",
        tuple(f"shelf {i}" for i in range(1, 13)),
        "{entities} stand on a rack, from {first} at the top to {last} at the bottom.",
        _SHELVES,
    ),
}


@dataclass(frozen=True)
class Language:
    """A wording over the entities of one puzzle: it says clues and reads them back.

    Args:
        attributes: the entities, n of each.
        wording: slots and templates.

    Raises:
        InputError: the wording has fewer slots than there are entities, or two names of any kind are alike.
    """

    attributes: tuple[PuzzleAttribute, ...]
    wording: PuzzleWording

    def __post_init__(self) -> None:
        n = self.space.n
        if len(self.wording.slots) < n:
            raise InputError(f"wording {self.wording.name!r} has {len(self.wording.slots)} slots, the puzzle needs {n}")
        names = [*self._entities.values(), *self.slots]
        if len({name.lower() for name in names}) != len(names):
            raise InputError(f"two entities or slots are called alike: {', '.join(names)}")

    @cached_property
    def space(self) -> Space:
        """All arrangements of the entities."""
        return Space(tuple(attribute.values for attribute in self.attributes))

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the n slots."""
        return self.wording.slots[: self.space.n]

    @cached_property
    def _entities(self) -> dict[str, str]:
        """What each entity is called in a sentence."""
        return {value: a.phrase.format(value) for a in self.attributes for value in a.values}

    def say(self, clue: PuzzleClue, template: int = 0) -> str:
        """A clue as a sentence without its full stop, with a capital.

        Args:
            clue: the clue.
            template: which paraphrase, counted around if there are fewer.

        Raises:
            InputError: the clue does not fit, or the wording has no template of its relation.
            UnknownNameError: no such relation or entity.
        """
        self.space.check(clue)
        templates = self.wording.templates.get(clue.relation)
        if not templates:
            raise InputError(f"wording {self.wording.name!r} has no template of {clue.relation}")
        places = dict(zip(ENTITY_KEYS, (self._entities[entity] for entity in clue.entities), strict=False))
        key = NUMBER_KEYS[RELATIONS[clue.relation].number]
        if key is not None and clue.number is not None:
            places[key] = self.slots[clue.number - 1] if key == "slot" else str(clue.number)
        text = templates[template % len(templates)].format(**places)
        return text[0].upper() + text[1:]

    def read(self, sentence: str) -> PuzzleClue | None:
        """The clue that a sentence says (capitals, spaces and a last full stop do not matter); None if it says none."""
        text = " ".join(sentence.split()).rstrip(". ").lower()
        for relation, pattern in self._patterns:
            match = pattern.fullmatch(text)
            if match is None:
                continue
            found = match.groupdict()
            entities = tuple(self._called[found[key]] for key in ENTITY_KEYS if key in found)
            number = self._numbered[found["slot"]] if "slot" in found else None
            number = int(found["k"]) if "k" in found else number
            clue = PuzzleClue(relation, entities, number)
            try:
                self.space.check(clue)
            except InputError:
                continue
            return clue
        return None

    @cached_property
    def _called(self) -> dict[str, str]:
        return {phrase.lower(): value for value, phrase in self._entities.items()}

    @cached_property
    def _numbered(self) -> dict[str, int]:
        return {slot.lower(): i for i, slot in enumerate(self.slots, 1)}

    @cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        """A pattern for each template of each relation."""
        entity, slot = _one_of(self._called), _one_of(self._numbered)
        parts = {**dict.fromkeys(ENTITY_KEYS, entity), "slot": slot, "k": r"\d+"}
        out = []
        for relation, templates in self.wording.templates.items():
            for template in templates:
                pattern = ""
                for literal, key, _, _ in string.Formatter().parse(template.lower()):
                    pattern += re.escape(literal)
                    pattern += "" if key is None else f"(?P<{key}>{parts[key]})"
                out.append((relation, re.compile(pattern)))
        return out


def _one_of(names: Mapping[str, object]) -> str:
    """A pattern of any of the names, longest first so that "seat 1" does not end "seat 10"."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
