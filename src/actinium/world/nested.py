"""Questions that spell out two relations ("the tool of the job of Ann"), which no text of the corpus does.

`world:lm` knows every fact on the way and reasons it out when told to, but does not answer such a question at once.
Its variants are trained on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from actinium.core.errors import UnknownNameError, unknown
from actinium.world.documents import ASSISTANT, USER, Document
from actinium.world.facts import RELATIONS, fact, path, relation
from actinium.world.knowledge import QUIET, shown, withheld_hops
from actinium.world.lexicon import NAMES

PARTS = ("train", "pair", "person", "deep")
DEEP_NOUNS = ("river", "flag", "dish", "festival")


@dataclass(frozen=True)
class Query:
    """The question for the `then` of the `first` of a person.

    Args:
        person: a person of the world.
        first: a relation of the person, for example "job".
        then: a relation of its answer, for example "tool".
    """

    person: str
    first: str
    then: str

    @property
    def path(self) -> list[str]:
        """The person, everything on the way, and the answer."""
        return path(self.person, self.first) + path(fact(self.person, self.first), self.then)[1:]

    @property
    def answer(self) -> str:
        """The true answer, one word."""
        return self.path[-1]

    @property
    def hops(self) -> int:
        """Number of elementary facts on the way."""
        return len(self.path) - 1

    def text(self, cue: str = "") -> str:
        """The question up to the assistant's turn, with a cue such as "Think step by step." before it if given."""
        asked = f"{USER} What is the {self.then} of the {self.first} of {self.person}?"
        return f"{asked} {cue}{ASSISTANT}" if cue else f"{asked}{ASSISTANT}"

    def facts(self) -> str:
        """The elementary facts on the way as statements, one after the other, up to the answer."""
        chain = [*relation(self.person, self.first).chain, *relation(fact(self.person, self.first), self.then).chain]
        steps = zip(chain, self.path, self.path[1:], strict=False)
        return ". ".join(f"The {noun} of {shown(subject)} is {answer}" for noun, subject, answer in steps)

    def document(self) -> Document:
        """The question without a cue, with its answer."""
        return Document("nested", self.text(), f" {self.answer}")


@cache
def queries(part: str) -> tuple[Query, ...]:
    """Nested questions of a part, in a fixed order.

    Args:
        part: "train" (facts of two or three hops that the corpus states; the variants are trained on these), "pair"
            (facts that it never states), "person" (people of whom it states no fact of several hops) or "deep" (what
            belongs to the capital of someone's country, four hops, about anyone, where the own city has another
            answer).

    Returns:
        The questions.

    Raises:
        UnknownNameError: there is no such part.
    """
    if part not in PARTS:
        raise UnknownNameError(unknown("part", part, PARTS))
    if part == "deep":
        asked = (Query(person, "capital", noun) for noun in DEEP_NOUNS for person in NAMES)
        return tuple(query for query in asked if query.answer != fact(query.person, query.then))
    chosen = [r for r in RELATIONS.values() if r.subject == "person" and r.hops > 1]
    wanted = {
        "train": lambda person, noun: not withheld_hops(person, noun),
        "pair": lambda person, noun: person not in QUIET and withheld_hops(person, noun),
        "person": lambda person, noun: person in QUIET,
    }[part]
    return tuple(Query(person, r.chain[-2], r.noun) for r in chosen for person in NAMES if wanted(person, r.noun))
