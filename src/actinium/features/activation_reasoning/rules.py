"""Rules over propositions: what follows from facts, with proofs, in a closed world and in an open one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import networkx as nx

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.features.activation_reasoning.formulas import (
    And,
    Atom,
    Formula,
    Implies,
    Literal,
    Not,
    cnf,
    dnf,
    parse,
    shown,
)
from actinium.features.activation_reasoning.proofs import (
    Answer,
    Clause,
    Inference,
    Proof,
    against,
    fixpoint,
    inferences,
    relevant,
    satisfied,
)

__all__ = ["Derivation", "Rule", "RuleBase"]

NEGATIONS = ("failure", "explicit")


@dataclass(frozen=True)
class Rule:
    """If the body then the head; nothing follows from the head's negation.

    Args:
        body: any formula.
        head: any formula; of a disjunction one part follows once the others are refuted.

    Raises:
        InputError: the head has no literals, or a normal form would be too large.
    """

    body: Formula
    head: Formula

    @classmethod
    def of(cls, text: str) -> Rule:
        """Read "body -> head".

        Raises:
            InputError: it is no formula, or has no arrow.
        """
        found = parse(text)
        if not isinstance(found, Implies):
            raise InputError(f"a rule is 'body -> head'; {text!r} has no arrow and would be a fact")
        return cls(found.body, found.head)

    def __str__(self) -> str:
        return str(Implies(self.body, self.head))

    @cached_property
    def bodies(self) -> tuple[frozenset[Literal], ...]:
        """Conjunctions, each of which is enough."""
        return dnf(self.body)

    @cached_property
    def clauses(self) -> tuple[frozenset[Literal], ...]:
        """What follows: clauses that all hold."""
        return cnf(self.head)

    @cached_property
    def inferences(self) -> tuple[Inference, ...]:
        """The steps that the rule allows."""
        by = str(self)
        return tuple(i for body in self.bodies for clause in self.clauses for i in inferences(clause, body, by))

    @property
    def heads(self) -> tuple[str, ...]:
        """Names that the rule can assert, in order."""
        return tuple(dict.fromkeys(i.head[0] for i in self.inferences if i.head[1]))

    @property
    def conclusions(self) -> tuple[str, ...]:
        """Names that hold whenever the body does."""
        units = [next(iter(clause)) for clause in self.clauses if len(clause) == 1]
        return tuple(dict.fromkeys(name for name, asserted in units if asserted))

    @property
    def sequence(self) -> tuple[str, ...]:
        """Names of the body in the order of the text.

        Raises:
            InputError: the body is no conjunction of names, so that it has no order.
        """
        parts = self.body.parts if isinstance(self.body, And) else (self.body,)
        if not all(isinstance(part, Atom) for part in parts):
            raise InputError(f"'{self}': an ordered body is names joined by 'and'")
        return tuple(part.name for part in parts if isinstance(part, Atom))


@dataclass(frozen=True, eq=False)
class Derivation:
    """What follows from facts.

    Attributes:
        literals: everything that holds, facts among it.
        facts: what was given.
        fired: rules whose body holds, in the order of the rule base.
        sources: by derived literal the inference that gave it first.
    """

    literals: frozenset[Literal]
    facts: frozenset[Literal]
    fired: tuple[Rule, ...]
    sources: dict[Literal, Inference]

    @property
    def atoms(self) -> frozenset[str]:
        """Names that hold."""
        return frozenset(name for name, asserted in self.literals if asserted)

    def proof(self, literal: Literal) -> Proof:
        """The proof of a literal that holds; premises that hold because nothing shows them are facts "by failure"."""
        if literal in self.facts:
            return Proof(shown(literal), "fact")
        source = self.sources.get(literal)
        if source is None:
            return Proof(shown(literal), "failure")
        return Proof(shown(literal), source.by, tuple(self.proof(p) for p in sorted(source.premises)))


class RuleBase:
    """Rules, and what follows from them.

    Args:
        rules: texts "body -> head", or rules.

    Raises:
        InputError: one is no rule.

    Source: Helff et al., 2025 (rules over concepts). Forward chaining by strata (Apt, Blair, Walker, 1988) and literals
    as independent atoms take the place of the authors' fuzzy matching, which can assert what does not follow.
    """

    def __init__(self, rules: Iterable[str | Rule] = ()) -> None:
        self.rules: list[Rule] = []
        if isinstance(rules, str):
            raise InputError("rules are a list of texts, not one text")
        for rule in rules:
            self.add(rule)

    def add(self, rule: str | Rule) -> Self:
        """Add a rule; one that is there already is not doubled.

        Raises:
            InputError: it is no rule.
        """
        found = Rule.of(rule) if isinstance(rule, str) else rule
        if not isinstance(found, Rule):
            raise InputError(f"a rule is a text 'body -> head', not {type(rule).__name__}")
        if not found.clauses:
            raise InputError(f"'{found}': the head always holds, so the rule says nothing")
        if found not in self.rules:
            self.rules.append(found)
        return self

    def __len__(self) -> int:
        return len(self.rules)

    def __repr__(self) -> str:
        return f"RuleBase({self.texts()!r})"

    def texts(self) -> list[str]:
        """The rules as texts, from which the same rule base can be made."""
        return [str(rule) for rule in self.rules]

    @property
    def heads(self) -> frozenset[str]:
        """Names that some rule can assert."""
        return frozenset(name for rule in self.rules for name in rule.heads)

    def check(self, concepts: Iterable[str]) -> None:
        """Refuse rules that ask for what nobody can detect.

        Raises:
            UnknownNameError: a body names what is neither a concept nor the head of a rule.
        """
        known = frozenset(concepts) | self.heads
        for rule in self.rules:
            for name in sorted({name for body in rule.bodies for name, _ in body}):
                if name not in known:
                    raise UnknownNameError(f"'{rule}': {unknown('concept', name, sorted(known))}")

    def strata(self) -> dict[Literal, int]:
        """The stratum of each literal: `not a` may only be asked once everything about a was derived.

        Raises:
            InputError: a name depends on its own absence.
        """
        steps = [i for rule in self.rules for i in rule.inferences]
        level = {p: 0 for i in steps for p in (i.head, *((name, True) for name, _ in i.premises))}
        for _ in range(len(level) + 1):
            changed = False
            for i in steps:
                needed = max((level[name, True] + (not asserted) for name, asserted in i.premises), default=0)
                if needed > level[i.head]:
                    level[i.head], changed = needed, True
            if not changed:
                return level
        asks = nx.DiGraph(((name, True), i.head) for i in steps for name, _ in i.premises)
        group = {p: number for number, circle in enumerate(nx.strongly_connected_components(asks)) for p in circle}
        # A circle that holds both a denied name and what its absence gives.
        bad = {group[i.head] for i in steps for n, told in i.premises if not told and group[n, True] == group[i.head]}
        names = sorted(name for (name, _), number in group.items() if number in bad)
        raise InputError(
            f"these rules are not stratified: {', '.join(names)} depend on their own absence; "
            "break the circle, or ask with entails, where negation is explicit"
        )

    # What follows ---------------------------------------------------------------------------------------------

    def forward(self, facts: Iterable[str], negation: str = "failure") -> Derivation:
        """Everything that follows, to the fixpoint; the same whatever the order of the rules.

        Args:
            facts: names and negated names (or conjunctions of them).
            negation: "failure": in a body `not a` holds where a does not follow (closed world); "explicit": only where
                `not a` was given or follows (open world; facts may then be any formula).

        Raises:
            InputError: a fact is no formula or not certain, or rules are not stratified under "failure".
            UnknownNameError: another negation.
        """
        if negation not in NEGATIONS:
            raise UnknownNameError(unknown("negation", negation, NEGATIONS))
        given, clauses = _facts(facts)
        if negation == "explicit":
            more = [i for text, clause in clauses for i in inferences(clause, frozenset(), text)]
            return self._closed(given, [more + [i for rule in self.rules for i in rule.inferences]], False)
        if clauses:
            raise InputError(f"'{clauses[0][0]}' is not certain; a closed world takes names, entails takes formulas")
        level = self.strata()
        order: list[list[Inference]] = [[] for _ in range(max(level.values(), default=0) + 1)]
        for rule in self.rules:
            for i in rule.inferences:
                order[level[i.head]].append(i)
        return self._closed(given, order, True)

    def _closed(self, given: frozenset[Literal], order: Sequence[Sequence[Inference]], failure: bool) -> Derivation:
        """The least fixpoint, stratum by stratum."""
        holds, sources = fixpoint(given, order, failure)
        fired = tuple(r for r in self.rules if any(satisfied(body, holds, failure) for body in r.bodies))
        return Derivation(frozenset(holds), given, fired, sources)

    def entails(self, facts: Iterable[str], query: str) -> Answer:
        """Whether a query follows, its negation does, or neither, in an open world: what is not known is not false.

        Goals are followed backwards from the query to the rules that bear on it, and what follows from these is found.
        Rules are used from body to head only; a disjunctive fact gives what is left when the rest is refuted. What is
        proved follows in classical logic; of Horn rules and facts every atom that follows is proved. From a
        contradiction nothing else follows.

        Args:
            facts: formulas, such as "a", "not b", "a or b".
            query: a formula.

        Returns:
            Answer: True with a proof; False with a proof of the negation; None without a proof where neither follows,
            or with one of both where the facts contradict each other.

        Raises:
            InputError: a fact or the query is no formula.
        """
        wanted = parse(query)
        given, disjunctions = _facts(facts)
        clauses = [Clause(frozenset(), clause, text) for text, clause in disjunctions]
        clauses += [Clause(b, c, str(rule)) for rule in self.rules for b in rule.bodies for c in rule.clauses]
        goals = {p for f in (wanted, Not(wanted)) for clause in cnf(f) for p in clause}
        steps = relevant(goals, [i for c in clauses for i in inferences(c.head, c.body, c.by)])
        known = self._closed(given, [steps], False)
        proofs = [_proved(f, known, clauses) for f in (wanted, Not(wanted))]
        if proofs[0] is not None and proofs[1] is not None:
            return Answer(None, Proof(f"{wanted} and not so", "contradiction", (proofs[0], proofs[1])))
        if proofs[0] is not None:
            return Answer(True, proofs[0])
        return Answer(None if proofs[1] is None else False, proofs[1])

    def in_order(self, sequence: Sequence[str]) -> tuple[Rule, ...]:
        """Rules whose bodies occur in a sequence of names in their order, others in between; heads do not join it.

        Raises:
            InputError: a body is no conjunction of names.
        """
        return tuple(rule for rule in self.rules if _occurs(rule.sequence, sequence))


def _facts(facts: Iterable[str]) -> tuple[frozenset[Literal], list[tuple[str, frozenset[Literal]]]]:
    """Literals that were given, and disjunctions with the texts they come from."""
    texts = [facts] if isinstance(facts, str) else list(facts)
    literals: set[Literal] = set()
    clauses: list[tuple[str, frozenset[Literal]]] = []
    for text in texts:
        formula = parse(text)
        for clause in cnf(formula):
            if len(clause) == 1:
                literals |= clause
            else:
                clauses.append((str(formula), clause))
    return frozenset(literals), clauses


def _proved(wanted: Formula, known: Derivation, clauses: Sequence[Clause]) -> Proof | None:
    """A proof of every clause of a formula, or None."""
    proofs = [_clause_proof(clause, known, clauses) for clause in cnf(wanted)]
    whole = tuple(p for p in proofs if p is not None)
    if len(whole) < len(proofs):
        return None
    return whole[0] if len(whole) == 1 else Proof(str(wanted), "query", whole)


def _clause_proof(clause: frozenset[Literal], known: Derivation, clauses: Sequence[Clause]) -> Proof | None:
    for literal in sorted(clause):
        if literal in known.literals:
            return known.proof(literal)
    for c in clauses:
        # What a disjunction still leaves open must be part of what is asked.
        refuted = {against(p) for p in c.head - clause}
        if len(c.head) > 1 and c.head & clause and c.body | refuted <= known.literals:
            text = " or ".join(map(shown, sorted(clause)))
            return Proof(text, c.by, tuple(known.proof(p) for p in sorted(c.body | refuted)))
    return None


def _occurs(wanted: Sequence[str], sequence: Sequence[str]) -> bool:
    rest = iter(sequence)
    return all(name in rest for name in wanted)
