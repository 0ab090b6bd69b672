"""The space that is searched: core units, and all expressions that are composed of some.

ac.functions.SearchSpace().size           # 6250 expressions of one core unit

Source: Ramachandran, Zoph and Le, 2017, arXiv 1710.05941, section 2.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.functions.searches.activation_expression import INPUT, ActivationExpression, Node, made_safe
from actinium.functions.searches.expression_operations import BINARY, UNARY

__all__ = ["CoreUnit", "SearchSpace"]


@dataclass(frozen=True)
class CoreUnit:
    """binary(left(x1), right(x2)): what expressions of the space are composed of.

    Args:
        left, right: names in UNARY.
        binary: name in BINARY.

    Raises:
        UnknownNameError: a name is none of these.
    """

    left: str
    right: str
    binary: str

    def __post_init__(self) -> None:
        for name, known, what in (
            (self.left, UNARY, "unary"),
            (self.right, UNARY, "unary"),
            (self.binary, BINARY, "binary"),
        ):
            if name not in known:
                raise UnknownNameError(unknown(f"{what} function", name, known))

    def of(
        self, x1: ActivationExpression | None = None, x2: ActivationExpression | None = None
    ) -> ActivationExpression:
        """The unit of two expressions; of the input where none is given."""
        first, second = (INPUT if x is None else x.root for x in (x1, x2))
        args = tuple(
            arg if name == "x" else Node(name, (arg,)) for name, arg in ((self.left, first), (self.right, second))
        )
        return ActivationExpression(Node(self.binary, args))


@dataclass(frozen=True)
class SearchSpace:
    """All expressions of a number of core units.

    A member is a tuple of tokens: left, right and binary function of the first unit; for each further unit two more
    before them, which choose its inputs x1 and x2 (0 is the input x, i the output of unit i). The last unit's output is
    the function.

    Args:
        unary, binary: names of the functions that may be used.
        n_units: number of core units.
        safe: roots of the absolute value, denominators that keep their distance from 0.

    Raises:
        UnknownNameError: a function is not known.
        InputError: there are no functions, one is named twice, or there are no units.
    """

    unary: tuple[str, ...] = UNARY
    binary: tuple[str, ...] = BINARY
    n_units: int = 1
    safe: bool = False

    def __post_init__(self) -> None:
        for field, known in (("unary", UNARY), ("binary", BINARY)):
            names = tuple(getattr(self, field))
            object.__setattr__(self, field, names)
            if not names or len(set(names)) < len(names):
                raise InputError(f"{field} functions are one or more different names, not {list(names)}")
            for name in names:
                if name not in known:
                    raise UnknownNameError(unknown(f"{field} function", name, known))
        if self.n_units < 1:
            raise InputError(f"n_units is one or more, not {self.n_units}")

    @property
    def steps(self) -> tuple[tuple[str, int], ...]:
        """What is chosen at each step ("input", "unary" or "binary") and among how many."""
        found: list[tuple[str, int]] = []
        for unit in range(self.n_units):
            found += [("input", unit + 1)] * 2 if unit else []
            found += [("unary", len(self.unary))] * 2 + [("binary", len(self.binary))]
        return tuple(found)

    @property
    def size(self) -> int:
        """Number of members, those that are equal counted by themselves."""
        return math.prod(n for _, n in self.steps)

    def decode(self, tokens: Sequence[int]) -> ActivationExpression:
        """The expression of a member.

        Raises:
            InputError: there are not as many tokens as steps, or one is out of range.
        """
        if len(tokens) != len(self.steps) or any(not 0 <= t < n for t, (_, n) in zip(tokens, self.steps, strict=True)):
            raise InputError(f"tokens of this space are below {[n for _, n in self.steps]}, not {list(tokens)}")
        given = iter(tokens)
        made: list[ActivationExpression | None] = [None]
        for unit in range(self.n_units):
            x1, x2 = (made[next(given)], made[next(given)]) if unit else (None, None)
            left, right, binary = self.unary[next(given)], self.unary[next(given)], self.binary[next(given)]
            made.append(CoreUnit(left, right, binary).of(x1, x2))
        last = made[-1]
        assert last is not None
        return ActivationExpression(made_safe(last.root)) if self.safe else last

    def tokens_at(self, index: int) -> tuple[int, ...]:
        """The member number `index`, of `size`."""
        found = []
        for _, n in reversed(self.steps):
            index, token = divmod(index, n)
            found.append(token)
        return tuple(reversed(found))

    def members(self, seed: int | None = None) -> Iterator[tuple[int, ...]]:
        """Every member once, in order, or with a seed in a random one."""
        if seed is None:
            yield from map(self.tokens_at, range(self.size))
            return
        source = random.Random(seed)
        # A permutation that is drawn as it is read: the size of two units is in the hundreds of millions.
        moved: dict[int, int] = {}
        for i in range(self.size):
            j = source.randrange(i, self.size)
            index = moved.get(j, j)
            moved[j] = moved.pop(i, i)
            yield self.tokens_at(index)

    def random(self, source: random.Random) -> tuple[int, ...]:
        """A member, each with the same probability."""
        return tuple(source.randrange(n) for _, n in self.steps)

    def neighbour(self, tokens: Sequence[int], source: random.Random) -> tuple[int, ...]:
        """A member that differs in one token.

        Raises:
            InputError: the space has one member.
        """
        free = [i for i, (_, n) in enumerate(self.steps) if n > 1]
        if not free:
            raise InputError("a space of one member has no neighbours")
        place = source.choice(free)
        token = source.randrange(self.steps[place][1] - 1)
        changed = list(tokens)
        changed[place] = token + (token >= tokens[place])
        return tuple(changed)
