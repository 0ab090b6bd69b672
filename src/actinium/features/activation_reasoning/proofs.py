"""Inferences between literals: what they reach from facts, and the proofs of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from actinium.features.activation_reasoning.formulas import Literal

__all__ = ["Answer", "Clause", "Inference", "Proof", "against", "fixpoint", "inferences", "relevant", "satisfied"]


@dataclass(frozen=True)
class Inference:
    """From all premises to a literal, by a rule or a disjunctive fact."""

    premises: frozenset[Literal]
    head: Literal
    by: str


@dataclass(frozen=True)
class Clause:
    """If the body holds, one of the head's literals does."""

    body: frozenset[Literal]
    head: frozenset[Literal]
    by: str


def inferences(clause: frozenset[Literal], body: frozenset[Literal], by: str) -> Iterable[Inference]:
    """From the body to each literal of a clause, once all others are refuted."""
    for literal in sorted(clause):
        yield Inference(body | {against(other) for other in clause if other != literal}, literal, by)


def against(literal: Literal) -> Literal:
    """The opposite literal."""
    return literal[0], not literal[1]


@dataclass(frozen=True)
class Proof:
    """Why something holds.

    Attributes:
        conclusion: what is proved.
        by: the rule or disjunction it follows by; "fact" where it was given; "query" and "contradiction" join proofs.
        premises: proofs of what that needs.
    """

    conclusion: str
    by: str
    premises: tuple[Proof, ...] = ()

    def _distinct(self) -> dict[tuple[str, str], Proof]:
        found: dict[tuple[str, str], Proof] = {}
        for premise in self.premises:
            found |= premise._distinct()
        return found | {(self.conclusion, self.by): self}

    @property
    def steps(self) -> int:
        """Number of inferences, each once."""
        return sum(by not in ("fact", "query", "contradiction") for _, by in self._distinct())

    def lines(self) -> list[str]:
        """One line for each fact and each inference, premises before what follows from them."""
        return [
            f"{p.conclusion}  [{p.by}]"
            if not p.premises
            else f"{p.conclusion}  [{p.by}] from {', '.join(q.conclusion for q in p.premises)}"
            for p in self._distinct().values()
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class Answer(NamedTuple):
    """True, False or None (undecided or contradictory), and the proof of that; None where there is no proof."""

    value: bool | None
    proof: Proof | None


def satisfied(premises: frozenset[Literal], holds: set[Literal] | frozenset[Literal], failure: bool) -> bool:
    """Whether all premises hold; under failure `not a` holds where a does not."""
    if failure:
        return all(((name, True) in holds) == asserted for name, asserted in premises)
    return premises <= holds


def fixpoint(
    given: frozenset[Literal], order: Sequence[Sequence[Inference]], failure: bool
) -> tuple[set[Literal], dict[Literal, Inference]]:
    """What follows, stratum by stratum, and the first inference that gave each literal."""
    holds, sources = set(given), {}
    for stratum in order:
        waiting, found = list(stratum), True
        while found:
            found, left = False, []
            for i in waiting:
                if i.head in holds:
                    continue
                if satisfied(i.premises, holds, failure):
                    holds.add(i.head)
                    sources[i.head] = i
                    found = True
                else:
                    left.append(i)
            waiting = left
    return holds, sources


def relevant(goals: Iterable[Literal], steps: Sequence[Inference]) -> list[Inference]:
    """The steps by which goals, or what they need, can be reached."""
    to: dict[Literal, list[Inference]] = {}
    for i in steps:
        to.setdefault(i.head, []).append(i)
    waiting, seen = list(goals), set(goals)
    chosen: dict[Inference, None] = {}
    while waiting:
        for i in to.get(waiting.pop(), ()):
            chosen[i] = None
            waiting += i.premises - seen
            seen |= i.premises
    return [i for i in steps if i in chosen]
