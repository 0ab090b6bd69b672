"""The fixed facts of the small world: who lives where, what lies where, and what follows from it.

Nothing here depends on a training seed, so a claim about a model of this world can be checked against the
truth.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

from actinium.core.errors import UnknownNameError, unknown
from actinium.world.lexicon import ENTITIES, NAMES


@dataclass(frozen=True)
class Relation:
    """A relation of the world: `noun` of a subject of kind `subject` is a word of kind `answer`.

    `chain` lists the elementary relations that lead from the subject to the answer; one entry means an
    elementary fact, two or three a fact that follows from others.
    """

    noun: str
    subject: str
    answer: str
    chain: tuple[str, ...]

    @property
    def hops(self) -> int:
        """Number of elementary facts that the answer rests on."""
        return len(self.chain)


_ELEMENTARY = {
    ("person", "city"): "city",
    ("person", "job"): "job",
    ("person", "pet"): "pet",
    ("city", "country"): "country",
    ("city", "river"): "river",
    ("city", "flag"): "colour",
    ("city", "dish"): "dish",
    ("city", "festival"): "festival",
    ("country", "capital"): "city",
    ("country", "language"): "language",
    ("job", "tool"): "tool",
    ("job", "workplace"): "workplace",
    ("job", "coat"): "colour",
    ("pet", "sound"): "sound",
    ("pet", "feed"): "feed",
}


def _relations() -> dict[tuple[str, str], Relation]:
    found = {
        (subject, noun): Relation(noun, subject, answer, (noun,)) for (subject, noun), answer in _ELEMENTARY.items()
    }
    for subject in ("city", "person"):
        for first in [r for r in found.values() if r.subject == subject]:
            for then in [r for r in found.values() if r.subject == first.answer]:
                key = (subject, then.noun)
                if key not in found and first.answer != subject and then.answer != "person":
                    found[key] = Relation(then.noun, subject, then.answer, first.chain + then.chain)
    return found


RELATIONS: dict[tuple[str, str], Relation] = _relations()
"""(kind of subject, noun) -> Relation, elementary ones and those that follow from them."""


def _order(words: tuple[str, ...], key: str) -> list[str]:
    """Order words by a hash of the key, the same on every machine."""
    return sorted(words, key=lambda word: hashlib.sha256(f"{key}|{word}".encode()).digest())


_ALIGNED = ("language", "tool", "workplace", "sound", "feed")
"""Answers that belong to their subjects by position in the word lists: a farmer's tool is the rake."""


def _spread(subjects: tuple[str, ...], answers: tuple[str, ...], key: str) -> dict[str, str]:
    """Give every subject an answer so that the answers are used equally often."""
    shuffled = _order(subjects, key)
    return {subject: answers[i % len(answers)] for i, subject in enumerate(shuffled)}


@cache
def elementary() -> dict[tuple[str, str], str]:
    """All elementary facts: (noun, subject) -> answer."""
    kinds = {"person": NAMES, **ENTITIES}
    facts: dict[tuple[str, str], str] = {}
    for (subject, noun), answer in _ELEMENTARY.items():
        if noun == "capital":
            continue
        if noun in _ALIGNED:
            given = dict(zip(kinds[subject], ENTITIES[answer], strict=True))
        else:
            given = _spread(kinds[subject], ENTITIES[answer], f"{subject} {noun}")
        facts |= {(noun, who): what for who, what in given.items()}
    for country in ENTITIES["country"]:
        own = tuple(city for city in ENTITIES["city"] if facts["country", city] == country)
        facts["capital", country] = _order(own, "capital")[0]
    return facts


@cache
def kind(subject: str) -> str:
    """Kind of a subject: `person`, `city`, `country`, `job` or `pet`.

    Raises:
        UnknownNameError: the word is no subject of this world.
    """
    if subject in NAMES:
        return "person"
    for name in ("city", "country", "job", "pet"):
        if subject in ENTITIES[name]:
            return name
    everyone = [*NAMES, *(word for name in ("city", "country", "job", "pet") for word in ENTITIES[name])]
    raise UnknownNameError(unknown("person or thing of the world", subject, everyone))


def relations(subject: str, hops: int | None = None) -> list[Relation]:
    """Relations that hold for a subject, in a fixed order, optionally only those of so many hops."""
    what = kind(subject)
    return [r for r in RELATIONS.values() if r.subject == what and hops in (None, r.hops)]


def relation(subject: str, noun: str) -> Relation:
    """The relation that a noun names for this subject.

    Raises:
        UnknownNameError: the subject or the noun is unknown.
    """
    what = kind(subject)
    if (what, noun) not in RELATIONS:
        raise UnknownNameError(unknown(f"relation of a {what}", noun, [r.noun for r in relations(subject)]))
    return RELATIONS[what, noun]


def path(subject: str, noun: str) -> list[str]:
    """Subject, everything on the way, and the answer, for example person, city, country, capital."""
    steps = [subject]
    for step in relation(subject, noun).chain:
        steps.append(elementary()[step, steps[-1]])
    return steps


def fact(subject: str, noun: str) -> str:
    """The true answer to "the `noun` of `subject`".

    Args:
        subject: a person, city, country, job or pet, for example "Ann".
        noun: a relation noun, for example "city" or, over two hops, "country".

    Returns:
        The answer, one word.

    Raises:
        UnknownNameError: the subject or the noun is unknown.
    """
    return path(subject, noun)[-1]


def who(noun: str, answer: str) -> list[str]:
    """People of whom `fact(person, noun) == answer`."""
    return [name for name in NAMES if fact(name, noun) == answer]
