"""Rules of conditional steering: "if C1 or (C2 and not C3) then B1"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.features.activation_reasoning.formulas import TOKEN, And, Atom, Formula, Implies, Not, Or, Xor, parse

__all__ = ["Rule"]


@dataclass(frozen=True)
class Rule:
    """When which behaviours come into force.

    Attributes:
        condition: a formula over names of conditions.
        behaviours: names of behaviours, each once.
    """

    condition: Formula
    behaviours: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read a rule.

        Args:
            text: `if CONDITION then BEHAVIOURS`, or `CONDITION -> BEHAVIOURS`. The condition joins names by, from the
                tightest, `not`, `and`, `xor`, `or`, with brackets; the behaviours are names joined by `and` or
                commas. Names are letters, digits and `_` (inside also `.`, `:`, `-`), or anything in double quotes,
                and are read as they are; words of the language may be written in any case.

        Raises:
            InputError: what stands where, and what was expected.
        """
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"a rule is a text such as 'if C1 and not C2 then B1', not {text!r}")
        words = _words(text)
        if words and words[0][0] == "if":
            ends = [span for word, *span in words if word == "then"]
            if len(ends) != 1:
                raise InputError(f"{text!r}: expected one 'then' after 'if', found {len(ends)}")
            (start, end), begin = ends[0], words[0][2]
            for part, what in ((text[begin:start], "condition after 'if'"), (text[end:], "behaviour after 'then'")):
                if not part.strip():
                    raise InputError(f"{text!r}: there is no {what}")
            condition, behaviours = parse(text[begin:start]), parse(text[end:])
        else:
            whole = parse(text)
            if not isinstance(whole, Implies):
                raise InputError(f"{text!r}: expected 'if CONDITION then BEHAVIOUR'")
            condition, behaviours = whole.body, whole.head
        return cls(condition, _conjoined(behaviours, text))

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that it speaks of, each once."""
        return tuple(dict.fromkeys(_names(self.condition)))

    def check(self, conditions: Iterable[str], behaviours: Iterable[str]) -> None:
        """Refuse names that do not exist.

        Raises:
            UnknownNameError: the nearest spellings.
        """
        for names, known, what in (
            (self.conditions, list(conditions), "condition"),
            (self.behaviours, list(behaviours), "behaviour"),
        ):
            for name in names:
                if name not in known:
                    raise UnknownNameError(f"in the rule {str(self)!r}: {unknown(what, name, known)}")

    def holds(self, values: Mapping[str, Tensor]) -> Tensor:
        """Whether the condition holds in each row: (n,) bool, of {condition: (n,) bool}."""
        return _value(self.condition, values)

    def __str__(self) -> str:
        return f"if {self.condition} then {' and '.join(str(Atom(name)) for name in self.behaviours)}"


def _words(text: str) -> list[tuple[str, int, int]]:
    """The words without quotes, in small letters, with where they start and end."""
    return [
        (found["name"].lower(), found.start("name"), found.end("name"))
        for found in TOKEN.finditer(text)
        if found.lastgroup == "name"
    ]


def _conjoined(formula: Formula, text: str) -> tuple[str, ...]:
    parts = formula.parts if isinstance(formula, And) else (formula,)
    names = [part.name for part in parts if isinstance(part, Atom)]
    if len(names) != len(parts):
        raise InputError(f"{text!r}: behaviours are names joined by 'and', not {str(formula)!r}")
    if len(set(names)) != len(names):
        raise InputError(f"{text!r}: a behaviour is named twice")
    return tuple(names)


def _names(formula: Formula) -> list[str]:
    if isinstance(formula, Atom):
        return [formula.name]
    if isinstance(formula, Not):
        return _names(formula.part)
    if isinstance(formula, Xor):
        return _names(formula.left) + _names(formula.right)
    if isinstance(formula, Implies):
        return _names(formula.body) + _names(formula.head)
    return [name for part in formula.parts for name in _names(part)]


def _value(formula: Formula, values: Mapping[str, Tensor]) -> Tensor:
    if isinstance(formula, Atom):
        return values[formula.name]
    if isinstance(formula, Not):
        return ~_value(formula.part, values)
    if isinstance(formula, Xor):
        return _value(formula.left, values) ^ _value(formula.right, values)
    if isinstance(formula, Implies):
        return ~_value(formula.body, values) | _value(formula.head, values)
    parts = torch.stack([_value(part, values) for part in formula.parts])
    return parts.any(0) if isinstance(formula, Or) else parts.all(0)
