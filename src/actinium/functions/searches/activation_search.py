"""Search for activation functions: of every expression, by evolution, or by a controller that is trained (see there).

child = ac.functions.TaskChild("digits", epochs=4, depth=2, width=32)
found = ac.functions.exhaustive_search(child, budget=40, file="search.jsonl")
found.table()                             # ranked; a stopped search goes on from its file
found.compare(5, seeds=range(5))          # the best again, on data that the search did not see

Source: Ramachandran, Zoph and Le, 2017, arXiv 1710.05941, section 2; evolution: Real et al., 2019, arXiv 1802.01548.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import nn

from actinium.core.errors import InputError
from actinium.core.estimator import Estimator
from actinium.core.progress import shown
from actinium.functions.comparison.comparison_tasks import ComparisonTask, task
from actinium.functions.searches.activation_expression import ActivationExpression
from actinium.functions.searches.expression_operations import BINARY, UNARY
from actinium.functions.searches.search_results import Child, Judge, SearchResult, SearchTrial, score_of
from actinium.functions.searches.search_space import SearchSpace

__all__ = ["EvolutionaryActivationSearch", "TaskChild", "exhaustive_search"]

WHOLE = SearchSpace()
LOOKS = 50
"""A search ends after so many looks for each child of its budget: what it proposes is then mostly known."""


class TaskChild:
    """The score of a function: of a small network that is trained with it on a part of a task's training data.

    All functions get the same initial weights and the same batches. The score is measured on the held-out rest of the
    training data; the task's test data stay unseen. Where lower is better it is negated.

    Args:
        on: name of a task (see `task`), or a `ComparisonTask`.
        seeds: of weights and batches; the score is the mean.
        held_out: share of the training data on which is scored.
        settings: of a task that is given by its name.

    Raises:
        InputError: no seeds, a share out of 0..1, or settings for a task of one's own.
    """

    def __init__(
        self, on: str | ComparisonTask = "digits", seeds: Sequence[int] = (0,), held_out: float = 0.2, **settings: Any
    ) -> None:
        if not len(seeds) or not 0 < held_out < 1:
            raise InputError(
                f"one seed or more and a share between 0 and 1 are needed, not {list(seeds)} and {held_out}"
            )
        if settings and not isinstance(on, str):
            raise InputError("settings are for tasks that are given by name")
        whole = task(on, **settings) if isinstance(on, str) else on
        x, y = whole.train
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        last = max(1, round(held_out * len(x)))
        if last >= len(x):
            raise InputError(f"{len(x)} rows cannot be split into training and held-out ones")
        kept, rest = order[:-last], order[-last:]
        self.task = dataclasses.replace(whole, train=(x[kept], y[kept]), test=(x[rest], y[rest]))
        self.seeds = tuple(seeds)
        self.facts = {
            "task": whole.name, "epochs": whole.epochs, "batch_size": whole.batch_size, "rate": whole.rate,
            "rows": len(x), "held_out": held_out, "seeds": list(seeds), "settings": settings,
        }  # fmt: skip

    def __call__(self, activation: Callable[[], nn.Module]) -> float:
        """The score with modules of a factory; NaN where the loss is not finite."""
        return sum(self._score(activation, seed) for seed in self.seeds) / len(self.seeds)

    def _score(self, activation: Callable[[], nn.Module], seed: int) -> float:
        on = self.task
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            weights = on.build(nn.ReLU).state_dict()
            torch.manual_seed(seed)
            net = on.build(activation)
            # A function that draws parameters of its own would shift all weights that are drawn after it.
            net.load_state_dict(weights, strict=False)
        optimiser = torch.optim.Adam(net.parameters(), lr=on.rate)
        source = torch.Generator().manual_seed(seed)
        for _ in range(on.epochs):
            for x, y in on.batches(source):
                loss = on.loss(net(x), y)
                if not math.isfinite(float(loss.detach())):
                    return math.nan
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimiser.step()
        with torch.no_grad():
            outputs = net.eval()(on.test[0])
        if not bool(outputs.isfinite().all()):
            return math.nan
        return on.score(outputs, on.test[1]) * (1 if on.higher_is_better else -1)


def exhaustive_search(
    child: Child,
    unary: Sequence[str] = UNARY,
    binary: Sequence[str] = BINARY,
    n_units: int = 1,
    budget: int | None = None,
    jobs: int = 1,
    *,
    safe: bool = False,
    seed: int = 0,
    file: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> SearchResult:
    """Train a child with every expression of a space, or with a random sample of it.

    Expressions that are equal, constant, the identity, or not finite on -5..5 get no child.

    Args:
        child: from a factory of modules to a score, higher being better; such as a `TaskChild`.
        unary, binary: names of the functions of the space.
        n_units: number of core units; one or two for a search of all.
        budget: how many children; all, if not given. A larger one trains the same first.
        jobs: number of processes that train children.
        safe: use roots of the absolute value and denominators that keep their distance from 0 (see `SearchSpace`).
        seed: of the order in which the space is sampled.
        file: JSON lines with every score; a search that finds its own goes on from there.
        progress: show a progress bar.

    Raises:
        UnknownNameError: a function is not known.
        InputError: budget or jobs are below 1, no child gave a finite score, or the file cannot be written.
        LoadError: the file holds another search, or is damaged.
    """
    if (budget is not None and budget < 1) or jobs < 1:
        raise InputError(f"budget and jobs are one or more, not {budget} and {jobs}")
    space = SearchSpace(tuple(unary), tuple(binary), n_units, safe)
    judge = Judge("exhaustive", space, child, file, {"seed": seed})
    chosen: dict[str, ActivationExpression] = {}
    members = space.members(None if budget is None else seed)
    for tokens in shown(members, "expressions", progress and budget is None):
        found = judge.look(tokens)
        if isinstance(found, ActivationExpression):
            chosen.setdefault(found.canonical_key(), found)
        if budget is not None and len(chosen) == budget:
            break
    new = [e for e in chosen.values() if judge.kept(e) is None]
    scores = _scores(child, new, jobs)
    for expression in shown(chosen.values(), "children", progress):
        judge.enter(expression, judge.kept(expression) or next(scores))
    return judge.finish()


def _scores(child: Child, expressions: list[ActivationExpression], jobs: int) -> Iterator[SearchTrial]:
    """Trials in the order of the expressions."""
    if jobs == 1 or len(expressions) < 2:
        yield from (score_of(child, e) for e in expressions)
        return
    # Where processes can be forked, a child needs not be one that can be pickled.
    start = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    with ProcessPoolExecutor(jobs, multiprocessing.get_context(start), _take, (child,)) as pool:
        yield from pool.map(_score_here, map(str, expressions))


_CHILD: list[Child] = []
"""In a process of `jobs`: the child."""


def _take(child: Child) -> None:
    torch.set_num_threads(1)  # as many processes as cores; and threads do not survive a fork
    _CHILD[:] = [child]


def _score_here(text: str) -> SearchTrial:
    return score_of(_CHILD[0], ActivationExpression.from_string(text))


class EvolutionaryActivationSearch(Estimator):
    """Search by ageing evolution: the best of some takes the place of the oldest one, with one token changed.

    Args:
        space: what is searched.
        population: how many members live at a time.
        tournament: how many of them, drawn at random, compete to be the parent.
        seed: of all draws.

    Attributes:
        result_: a `SearchResult`.

    Source: Real et al., 2019, algorithm 1; tokens are those of Ramachandran et al., 2017.
    """

    fitted = "result_"

    def __init__(self, space: SearchSpace = WHOLE, population: int = 16, tournament: int = 4, seed: int = 0) -> None:
        self.space, self.population, self.tournament, self.seed = space, population, tournament, seed

    def fit(
        self, child: Child, budget: int, file: str | os.PathLike[str] | None = None, *, progress: bool = False
    ) -> EvolutionaryActivationSearch:
        """Search until so many children were trained, or 50 times as many members were looked at.

        Args:
            child: from a factory of modules to a score, higher being better.
            budget: how many children.
            file: JSON lines with every score; a search that finds its own goes on from there.
            progress: show a progress bar.

        Raises:
            InputError: sizes or budget below 1, a tournament larger than the population, or no finite score.
            LoadError: the file holds another search, or is damaged.
        """
        if budget < 1 or not 1 <= self.tournament <= self.population:
            raise InputError(
                f"budget and tournament are one or more, and the population is no smaller than the tournament; got "
                f"{budget}, {self.tournament} and {self.population}"
            )
        settings = {"seed": self.seed, "population": self.population, "tournament": self.tournament}
        judge = Judge("evolution", self.space, child, file, settings)
        source = random.Random(self.seed)
        alive: deque[tuple[float, tuple[int, ...]]] = deque(maxlen=self.population)
        for _ in shown(range(budget), "children", progress):
            while judge.draws < LOOKS * budget:
                tokens = self._next(alive, source)
                found = judge.look(tokens)
                new = isinstance(found, ActivationExpression)
                trial = judge.judge(found) if isinstance(found, ActivationExpression) else found
                if not trial.reason:
                    alive.append((trial.score, tokens))
                if new:
                    break
        self.result_ = judge.finish()
        return self

    def _next(self, alive: Sequence[tuple[float, tuple[int, ...]]], source: random.Random) -> tuple[int, ...]:
        if len(alive) < self.population:
            return self.space.random(source)
        return self.space.neighbour(max(source.sample(list(alive), self.tournament))[1], source)
