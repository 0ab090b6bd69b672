"""What a rule is: a condition on measured numbers, with its limits, its source, and why it matters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actinium.core.result import Result

__all__ = ["SEVERITIES", "Evidence", "Found", "Rule", "at_layers", "count_of", "spans"]

SEVERITIES = ("critical", "warning", "opportunity", "note")


@dataclass(frozen=True)
class Evidence:
    """What the rules look at.

    Attributes:
        results: what was measured, by the name of the measurement.
        layers: number of blocks.
        text: whether the sample is text.
        n: tokens, images or rows of the sample.
    """

    results: Mapping[str, Result]
    layers: int
    text: bool
    n: int

    @property
    def seen(self) -> str:
        """The sample in words, as in "never on 8192 tokens"."""
        return f"{self.n:,} {'tokens' if self.text else 'inputs'}"

    @property
    def first(self) -> str:
        """Python for the first row of the inputs."""
        return "inputs[:1]"


@dataclass(frozen=True)
class Found:
    """One thing that a rule found.

    Attributes:
        what: one sentence.
        where: layers, sites, heads, channels.
        value, unit: how big.
        look: Python that shows more, with `ac`, `model` and `inputs` defined.
        severity: if it differs from the rule's.
        why: if it differs from the rule's.
    """

    what: str
    where: str
    value: Any
    unit: str
    look: str
    severity: str | None = None
    why: str | None = None


@dataclass(frozen=True)
class Rule:
    """One row of the table of findings.

    Attributes:
        name: its key in the report.
        measurement: the measurement that it reads.
        severity: critical (the numbers or the model are broken), warning (probably not what you want),
            opportunity (something to gain), note (worth knowing).
        condition: when it fires, with `{limit}` for each of its limits.
        limits: the thresholds.
        source: where the thresholds come from.
        why: why it matters.
        find: applies it.
    """

    name: str
    measurement: str
    severity: str
    condition: str
    limits: Mapping[str, float]
    source: str
    why: str
    find: Callable[[Result, Mapping[str, float], Evidence], Iterable[Found]] = field(repr=False)

    @property
    def threshold(self) -> str:
        """The condition with its limits written in."""
        return self.condition.format(**{name: f"{value:g}" for name, value in self.limits.items()})


def spans(numbers: Sequence[int] | np.ndarray) -> str:
    """Whole numbers in words: `2-5, 7`."""
    groups: list[list[int]] = []
    for n in sorted({int(n) for n in numbers}):
        if groups and n == groups[-1][-1] + 1:
            groups[-1].append(n)
        else:
            groups.append([n])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups)


def at_layers(result: Result, chosen: Sequence[int] | np.ndarray) -> str:
    """Where: the layers or sites at these places of a result, in words."""
    places = [int(i) for i in chosen]
    if "layer" in result.data.dims and result["layer"].dtype.kind in "iu":
        numbers = [int(result["layer"].values[i]) for i in places]
        return f"layer{'s' * (len(numbers) > 1)} {spans(numbers)}"
    dim = "site" if "site" in result.data.dims else "layer"
    names = [str(result[dim].values[i]) for i in places]
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def count_of(n: int, noun: str) -> str:
    """`1 unit`, `2 units`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
