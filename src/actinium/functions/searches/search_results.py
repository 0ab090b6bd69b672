"""What a search for activation functions tried and found, and its file, with which a stopped search goes on."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from torch import nn

from actinium.core.errors import InputError
from actinium.core.journal import Journal
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.functions.comparison.activation_comparison import compare_activations
from actinium.functions.comparison.comparison_tasks import ComparisonTask
from actinium.functions.registry import get
from actinium.functions.searches.activation_expression import ActivationExpression
from actinium.functions.searches.search_space import SearchSpace

__all__ = ["SearchResult", "SearchTrial"]

Child = Callable[[Callable[[], nn.Module]], float]


@dataclass(frozen=True)
class SearchTrial:
    """One expression that was tried.

    Args:
        expression: its text.
        key: its canonical key; "" where it was refused before.
        score: of the child network, higher being better; NaN where it failed.
        reason: why it failed, or was refused; "" where it did not.
    """

    expression: str
    key: str
    score: float
    reason: str = ""

    @property
    def trained(self) -> bool:
        """Whether a child network was trained with it."""
        return bool(self.key)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        method: "exhaustive", "rl" or "evolution".
        trials: the expressions with which a child was trained, in this order; equal ones are trained once.
        refused: expressions that were not trained: not finite, constant, or the identity.
        draws: how many members of the space were looked at, repeated and refused ones too.
        settings: of the search.
    """

    method: str
    trials: tuple[SearchTrial, ...]
    refused: tuple[SearchTrial, ...]
    draws: int
    settings: Mapping[str, Any]

    def _ranked(self) -> list[SearchTrial]:
        return sorted((t for t in self.trials if not t.reason), key=lambda t: -t.score)

    def table(self) -> pd.DataFrame:
        """Columns "rank", "expression" and "score", the best first."""
        rows = self._ranked()
        return pd.DataFrame(
            {
                "rank": range(1, len(rows) + 1),
                "expression": [t.expression for t in rows],
                "score": [t.score for t in rows],
            }
        )

    def failures(self) -> pd.DataFrame:
        """Columns "expression" and "reason": what was refused, and whose child failed."""
        rows = [*self.refused, *(t for t in self.trials if t.reason)]
        return pd.DataFrame({"expression": [t.expression for t in rows], "reason": [t.reason for t in rows]})

    def best(self, n: int = 1) -> list[ActivationExpression]:
        """The n best expressions (fewer, if fewer were found)."""
        return [ActivationExpression.from_string(t.expression) for t in self._ranked()[:n]]

    def compare(
        self,
        n: int = 5,
        on: str | ComparisonTask = "digits",
        seeds: Sequence[int] = (0, 1, 2),
        *,
        reference: str = "ReLU",
        progress: bool = False,
        **settings: Any,
    ) -> Result:
        """Train the n best again with several seeds: scores of one run differ by more than the best functions do.

        Args:
            n: how many.
            on, seeds, progress, settings: of `compare_activations`, whose Result this is.
            reference: name of the function that they are compared with.
        """
        chosen = {str(e): e.to_module for e in self.best(n)}
        return compare_activations(
            {reference: lambda: get(reference)} | chosen, on, seeds, progress=progress, **settings
        )

    @property
    def result(self) -> Result:
        """By trial: "score", "best" so far, "expression"."""
        scores = np.array([t.score for t in self.trials])
        data = xr.Dataset(
            {
                "score": ("trial", scores),
                "best": ("trial", np.fmax.accumulate(scores)),
                "expression": ("trial", [t.expression for t in self.trials]),
            },
            {"trial": np.arange(1, len(scores) + 1)},
            {"plot": {"kind": "line", "variables": ["score", "best"], "ylabel": "score of the child"}},
        )
        return Result(data, f"{self.method} search", "swish-search", provenance(**self.settings))


class Judge:
    """Decides on expressions: refuses some, remembers equal ones, trains the others, and keeps the scores in a file.

    Args:
        method, settings: what the search is; a file of another one is refused.
        space: the space.
        child: from a factory of modules to a score, higher being better.
        file: one line for each trained child; None to keep nothing.

    Raises:
        InputError: the file cannot be written.
        LoadError: the file holds another search, or is damaged.
    """

    def __init__(
        self,
        method: str,
        space: SearchSpace,
        child: Child,
        file: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.method, self.space, self.child = method, space, child
        facts = getattr(child, "facts", {})
        self.settings = {"method": method, "space": asdict(space)} | dict(settings) | {"child": dict(facts)}
        self._file = Journal(file, "search", self.settings)
        self._kept = {row["key"]: _trial(row) for row in self._file.rows}
        self._seen: dict[str, SearchTrial] = {}
        self._refused: dict[str, SearchTrial] = {}
        self._keys: dict[str, str] = {}
        self.draws = 0

    @property
    def trained(self) -> int:
        """How many different expressions got a child."""
        return len(self._seen)

    def look(self, tokens: Sequence[int]) -> SearchTrial | ActivationExpression:
        """What is known of a member: its trial, if it is refused or equal to an earlier one, else the expression."""
        self.draws += 1
        expression = self.space.decode(tokens)
        text = str(expression)
        if text in self._refused:
            return self._refused[text]
        if text in self._keys:
            return self._seen.get(self._keys[text], expression)
        problem, trivial = expression.problem(), expression.trivial()
        reason = problem or (f"it is {'the ' * (trivial == 'identity')}{trivial}" if trivial else None)
        if reason is not None:
            self._refused[text] = SearchTrial(text, "", math.nan, reason)
            return self._refused[text]
        self._keys[text] = expression.canonical_key()
        return self._seen.get(self._keys[text], expression)

    def kept(self, expression: ActivationExpression) -> SearchTrial | None:
        """The trial of an expression that the file holds."""
        return self._kept.get(expression.canonical_key())

    def judge(self, expression: ActivationExpression) -> SearchTrial:
        """The trial of an expression: from the file, or by training."""
        return self.enter(expression, self.kept(expression) or score_of(self.child, expression))

    def enter(self, expression: ActivationExpression, trial: SearchTrial) -> SearchTrial:
        """Keep a trial."""
        key = expression.canonical_key()
        self._seen[key] = trial
        if key not in self._kept:
            self._file.add(asdict(trial) | {"score": None if math.isnan(trial.score) else trial.score})
        return trial

    def finish(self) -> SearchResult:
        """The result.

        Raises:
            InputError: no child gave a finite score.
        """
        trials = tuple(self._seen.values())
        if not any(not t.reason for t in trials):
            why = f"; the first one: {trials[0].reason}" if trials else ", as every expression was refused"
            raise InputError(f"no child network gave a finite score{why}")
        return SearchResult(self.method, trials, tuple(self._refused.values()), self.draws, self.settings)


def score_of(child: Child, expression: ActivationExpression) -> SearchTrial:
    """Train a child with an expression; a failure is kept with its reason."""
    text, key = str(expression), expression.canonical_key()
    try:
        score = float(child(expression.to_module))
    except (ArithmeticError, RuntimeError, ValueError) as error:
        return SearchTrial(text, key, math.nan, f"{type(error).__name__}: {error}")
    if not math.isfinite(score):
        return SearchTrial(text, key, math.nan, "its score is not finite")
    return SearchTrial(text, key, score)


def _trial(row: Mapping[str, Any]) -> SearchTrial:
    return SearchTrial(row["expression"], row["key"], math.nan if row["score"] is None else row["score"], row["reason"])
