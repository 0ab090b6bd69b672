"""Propositional formulas: their language, and the normal forms that rules are made of."""

from __future__ import annotations

import re
from dataclasses import dataclass

from actinium.core.errors import InputError

__all__ = ["And", "Atom", "Formula", "Implies", "Literal", "Not", "Or", "Xor", "cnf", "dnf", "parse", "shown"]

Literal = tuple[str, bool]
"""A name, and whether it is asserted (True) or denied."""
MOST = 2048
"""Clauses that a normal form may have."""
NAME = re.compile(r"[^\W\d]\w*(?:[.:-]\w+)*")
TOKEN = re.compile(r'\s*(?:(?P<sign>->|=>|[()~!&|^,])|(?P<name>[^\W\d]\w*(?:[.:-]\w+)*)|"(?P<quoted>[^"]+)")')
WORDS = {
    "not": ("not", "~", "!"),
    "and": ("and", "&", ","),
    "xor": ("xor", "^"),
    "or": ("or", "|"),
    "implies": ("implies", "->", "=>"),
}
SIGNS = {spelling: word for word, spellings in WORDS.items() for spelling in spellings}


@dataclass(frozen=True)
class Atom:
    """A proposition by name."""

    name: str

    def __str__(self) -> str:
        plain = NAME.fullmatch(self.name) and self.name.lower() not in SIGNS
        return self.name if plain else f'"{self.name}"'


@dataclass(frozen=True)
class Not:
    """Negation."""

    part: Formula

    def __str__(self) -> str:
        return f"not {_bracketed(self.part)}"


@dataclass(frozen=True)
class And:
    """Conjunction of two or more, in the order in which they were written."""

    parts: tuple[Formula, ...]

    def __str__(self) -> str:
        return " and ".join(map(_bracketed, self.parts))


@dataclass(frozen=True)
class Or:
    """Disjunction of two or more."""

    parts: tuple[Formula, ...]

    def __str__(self) -> str:
        return " or ".join(map(_bracketed, self.parts))


@dataclass(frozen=True)
class Xor:
    """One of two and not both."""

    left: Formula
    right: Formula

    def __str__(self) -> str:
        return f"{_bracketed(self.left)} xor {_bracketed(self.right)}"


@dataclass(frozen=True)
class Implies:
    """Material implication."""

    body: Formula
    head: Formula

    def __str__(self) -> str:
        return f"{_bracketed(self.body, And, Or, Xor)} -> {_bracketed(self.head, And, Or, Xor)}"


Formula = Atom | Not | And | Or | Xor | Implies


def _bracketed(part: Formula, *plain: type) -> str:
    return str(part) if isinstance(part, (Atom, Not, *plain)) else f"({part})"


def shown(literal: Literal) -> str:
    """A literal as text that `parse` reads."""
    name, asserted = literal
    return str(Atom(name)) if asserted else str(Not(Atom(name)))


def parse(text: str) -> Formula:
    """Read a formula.

    Args:
        text: names (letters, digits, `_`, inside also `.`, `:` and `-`; others in double quotes) joined by, from the
            tightest: `not` ~ !, `and` & `,`, `xor` ^, `or` |, `implies` -> =>. Implications group to the right,
            everything else to the left. Names are read as they are, words of the language in any case.

    Raises:
        InputError: what stands where, and what was expected.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"a formula is a text such as 'a and not b -> c', not {text!r}")
    reader = _Reader(text)
    found = reader.implication()
    if reader.tokens[reader.at][0] != "end":
        raise reader.error("'and', 'or', '->' or the end")
    return found


class _Reader:
    """Recursive descent over the tokens of a text."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.tokens: list[tuple[str, str, int]] = []
        place = 0
        while text[place:].strip():
            found = TOKEN.match(text, place)
            if found is None:
                start = place + len(text[place:]) - len(text[place:].lstrip())
                raise InputError(f"{text!r}: {text[start]!r} at {start} begins neither a name nor a connective")
            start, place = found.start(found.lastgroup or 0), found.end()
            word = found[found.lastgroup or 0]
            if found.lastgroup == "quoted":
                self.tokens.append(("name", word, start))
            elif word in "()":
                self.tokens.append((word, word, start))
            else:
                known = SIGNS.get(word.lower())
                self.tokens.append((known or "name", word, start))
        self.tokens.append(("end", "", len(text)))

    def error(self, expected: str) -> InputError:
        kind, word, place = self.tokens[self.at]
        what = "the end" if kind == "end" else f"{word!r} at {place}"
        return InputError(f"{self.text!r}: expected {expected}, found {what}")

    def took(self, kind: str) -> bool:
        if self.tokens[self.at][0] != kind:
            return False
        self.at += 1
        return True

    def implication(self) -> Formula:
        left = self.disjunction()
        return Implies(left, self.implication()) if self.took("implies") else left

    def disjunction(self) -> Formula:
        parts = [self.exclusive()]
        while self.took("or"):
            parts.append(self.exclusive())
        return Or(tuple(parts)) if len(parts) > 1 else parts[0]

    def exclusive(self) -> Formula:
        left = self.conjunction()
        while self.took("xor"):
            left = Xor(left, self.conjunction())
        return left

    def conjunction(self) -> Formula:
        parts = [self.unary()]
        while self.took("and"):
            parts.append(self.unary())
        return And(tuple(parts)) if len(parts) > 1 else parts[0]

    def unary(self) -> Formula:
        if self.took("not"):
            return Not(self.unary())
        if self.took("("):
            inside = self.implication()
            if not self.took(")"):
                raise self.error("')'")
            return inside
        word = self.tokens[self.at][1]
        if not self.took("name"):
            raise self.error("a name, 'not' or '('")
        return Atom(word)


def cnf(formula: Formula) -> tuple[frozenset[Literal], ...]:
    """Clauses, all of which hold exactly when the formula does; those that always hold are left out.

    Raises:
        InputError: there would be more than 2048.
    """
    clauses = _clauses(formula, True)
    return tuple(c for c in clauses if not any((name, not sign) in c for name, sign in c))


def dnf(formula: Formula) -> tuple[frozenset[Literal], ...]:
    """Conjunctions of literals, one of which holds exactly when the formula does.

    Raises:
        InputError: there would be more than 2048.
    """
    return tuple(frozenset((name, not sign) for name, sign in clause) for clause in cnf(Not(formula)))


def _clauses(formula: Formula, sign: bool) -> list[frozenset[Literal]]:
    """Clauses of the formula (or of its negation), each once, in the order of the text."""
    if isinstance(formula, Atom):
        return [frozenset([(formula.name, sign)])]
    if isinstance(formula, Not):
        return _clauses(formula.part, not sign)
    if isinstance(formula, Implies):
        return _clauses(Or((Not(formula.body), formula.head)), sign)
    if isinstance(formula, Xor):
        either = Or((formula.left, formula.right))
        both = Or((Not(formula.left), Not(formula.right)))
        return _clauses(And((either, both)), sign)
    parts = [_clauses(part, sign) for part in formula.parts]
    if isinstance(formula, And) == sign:
        return list(dict.fromkeys(clause for part in parts for clause in part))
    found: list[frozenset[Literal]] = [frozenset()]
    for part in parts:
        if len(found) * len(part) > MOST:
            raise InputError(f"this formula has more than {MOST} clauses; write it as several")
        found = list(dict.fromkeys(a | b for a in found for b in part))
    return found
