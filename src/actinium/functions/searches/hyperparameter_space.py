"""The ranges that settings are drawn from, and each setting's place in its range, from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from actinium.core.errors import InputError

__all__ = ["ODYSSEY_SPACE", "Choice", "Interval", "as_space"]

SCALES = ("linear", "log", "log_complement")
EDGE = 1e-9
"""How far beyond a bound, relative to the range, a value may be by rounding."""


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`.

    The range of whole numbers reaches from half below the smallest to half above the largest, so that on a linear scale
    each of them has the same share.

    Attributes:
        low: smallest value.
        high: largest value.
        scale: what is uniform: the value ("linear"), its logarithm ("log"), or that of 1 - value ("log_complement").
        integer: values are whole.

    Raises:
        InputError: bounds that are not finite and rising or that have no logarithm, or an unknown scale.
    """

    low: float
    high: float
    scale: str = "linear"
    integer: bool = False

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise InputError(f"scale is one of {', '.join(SCALES)}, not {self.scale!r}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(f"expected finite bounds with low < high, got {self.low} and {self.high}")
        least = {"linear": math.inf, "log": self.low, "log_complement": 1 - self.high}[self.scale]
        if least <= 0:
            raise InputError(f"the range {self.low} to {self.high} has no {self.scale} scale")
        if self.integer and (self.low != int(self.low) or self.high != int(self.high)):
            raise InputError(f"the bounds of whole numbers are whole, got {self.low} and {self.high}")

    def place(self, values: Any, name: str = "a setting") -> np.ndarray:
        """Where values stand, from 0 at the lower end of the range to 1 at the upper one.

        Raises:
            InputError: a value is no number, not finite or out of bounds.
        """
        x = _numbers(values, name)
        slack = EDGE * (self.high - self.low)
        outside = (x < self.low - slack) | (x > self.high + slack)
        if outside.any():
            raise InputError(f"{name}: {x[outside][0]:g} is not in {self.low:g} to {self.high:g}")
        low, high = self._ends()
        return (self._scaled(x.clip(self.low, self.high)) - low) / (high - low)

    def value(self, places: Any) -> np.ndarray:
        """The values that stand at places from 0 to 1; whole ones are the nearest."""
        low, high = self._ends()
        t = low + np.asarray(places, np.float64) * (high - low)
        x = t if self.scale == "linear" else np.exp(t) if self.scale == "log" else 1 - np.exp(t)
        return (x.round() if self.integer else x).clip(self.low, self.high)

    def _ends(self) -> np.ndarray:
        beyond = 0.5 if self.integer else 0.0
        return self._scaled(np.array([self.low - beyond, self.high + beyond]))

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        if self.scale == "linear":
            return x
        return np.log(x) if self.scale == "log" else np.log1p(-x)


@dataclass(frozen=True)
class Choice:
    """One of several values, each as likely as the others.

    Attributes:
        values: text, numbers or booleans, all different.

    Raises:
        InputError: fewer than two values, the same one twice, or lists among them.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        try:
            different = set(self.values)
        except TypeError:
            raise InputError(f"a choice is of text, numbers or booleans, got {list(self.values)}") from None
        if len(self.values) < 2 or len(different) < len(self.values):
            raise InputError(f"a choice is of two or more different values, got {list(self.values)}")

    def place(self, values: Any, name: str = "a setting") -> np.ndarray:
        """Where values stand: in the middle of equal parts of 0 to 1.

        Raises:
            InputError: a value is none of these.
        """
        of = {v: (i + 0.5) / len(self.values) for i, v in enumerate(self.values)}
        # An array of 1 and "auto" would hold text alone.
        listed = values if isinstance(values, list | tuple) else np.asarray(values).ravel()
        given = [v.item() if isinstance(v, np.generic) else v for v in listed]
        strange = [v for v in given if not isinstance(v, Hashable) or v not in of]
        if strange:
            raise InputError(f"{name}: {strange[0]!r} is none of {list(self.values)}")
        return np.array([of[v] for v in given])

    def value(self, places: Any) -> np.ndarray:
        """The values whose parts of 0 to 1 hold the places."""
        at = (np.asarray(places, np.float64) * len(self.values)).astype(int).clip(0, len(self.values) - 1)
        return np.array([self.values[i] for i in at.ravel()], dtype=object).reshape(at.shape)


Space = dict[str, Interval | Choice]
ODYSSEY_SPACE: Mapping[str, Interval | Choice] = MappingProxyType(
    {
        "hidden": Interval(20, 200, "log", integer=True),
        "lr": Interval(1e-6, 1e-2, "log"),
        "momentum": Interval(0.0, 0.99, "log_complement"),
        "noise": Interval(0.0, 1.0),
    }
)
"""The ranges of Greff et al., 2015, section 3.4."""


def as_space(space: Mapping[str, Any]) -> Space:
    """A space whose ranges may be given as plain values: (low, high[, scale]) tuples, mappings, lists of choices.

    Raises:
        InputError: no settings, or what describes no range.
    """
    if not isinstance(space, Mapping) or not space:
        raise InputError("a space is a mapping from names of settings to their ranges, with one or more of them")
    return {str(name): _range_of(str(name), given) for name, given in space.items()}


def plain_space(space: Mapping[str, Any]) -> dict[str, Any]:
    """The space as JSON can hold it and `as_space` reads it."""
    return {
        name: list(kind.values) if isinstance(kind, Choice) else asdict(kind) for name, kind in as_space(space).items()
    }


def _range_of(name: str, given: Any) -> Interval | Choice:
    try:
        if isinstance(given, Interval | Choice):
            return given
        if isinstance(given, Mapping):
            return Interval(**given)
        if isinstance(given, tuple):
            return Interval(*given)
        if isinstance(given, Sequence) and not isinstance(given, str):
            return Choice(tuple(given))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except TypeError:
        pass
    raise InputError(f"{name}: expected an Interval, a Choice, (low, high, scale) or a list of values, got {given!r}")


def _numbers(values: Any, name: str) -> np.ndarray:
    try:
        x = np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected numbers") from None
    if not np.isfinite(x).all():
        raise InputError(f"{name} holds NaN or infinite values")
    return x
