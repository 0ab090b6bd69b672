"""Random search that goes on where it was stopped, and the comparison of the best runs of several."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.journal import Journal
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.functions.searches.hyperparameter_space import as_space, plain_space

__all__ = ["compare_best", "random_search"]


def random_search(
    space: Mapping[str, Any],
    objective: Callable[[dict[str, Any], int], float],
    trials: int,
    seed: int = 0,
    path: str | os.PathLike[str] | None = None,
    *,
    progress: bool = False,
) -> Result:
    """Run an experiment at settings that are drawn from their ranges.

    The settings of a trial depend on `seed` and its number alone, so that a search that was stopped goes on as if it
    had not been, and one of more trials begins with those of one of fewer.

    Args:
        space: the range of each setting; see `as_space`.
        objective: called with the settings by name and a seed for the trial, returns the outcome. One that is not
            finite (a run that diverged) is kept as NaN.
        trials: how many.
        seed: of settings and trials.
        path: a file of one line for each trial that is done, written as they end and read where it exists.
        progress: show a progress bar.

    Returns:
        by trial: `outcome` and each setting.

    Raises:
        InputError: the space has no settings or one named outcome or trial, no trials, or the file cannot be written.
        LoadError: the file holds another search, or is damaged.

    Source: Bergstra and Bengio, 2012; Greff et al., 2015, section 3.4.
    """
    ranges = as_space(space)
    reserved = {"outcome", "trial"} & set(ranges)
    if reserved:
        raise InputError(f"a setting cannot be called {sorted(reserved)[0]}")
    if trials < 1:
        raise InputError(f"trials must be above 0, got {trials}")
    head = {"search": 2, "seed": seed, "space": plain_space(space)}
    file = Journal(path, "search", head)
    done = {row["trial"]: math.nan if row["outcome"] is None else row["outcome"] for row in file.rows}
    drawn = [_draw(ranges, seed, number) for number in range(trials)]
    for number in shown(range(trials), "trials", progress):
        if number in done:
            continue
        outcome = float(objective(dict(drawn[number]), _seed_of(seed, number)))
        done[number] = outcome if math.isfinite(outcome) else math.nan
        file.add({"trial": number, "outcome": outcome if math.isfinite(outcome) else None})
    outcomes = [done[number] for number in range(trials)]
    values = {name: _column([settings[name] for settings in drawn]) for name in ranges}
    data = xr.Dataset(
        {"outcome": (("trial",), outcomes)} | {name: (("trial",), column) for name, column in values.items()},
        coords={"trial": np.arange(trials)},
        attrs={"plot": {"variables": ["outcome"]}},
    )
    return Result(data, "random_search", "lstm-odyssey", provenance(seed=seed, space=head["space"], trials=trials))


def compare_best(
    outcomes: Mapping[str, Sequence[float]], reference: str, share: float = 0.1, level: float = 0.05
) -> Result:
    """Compare the lowest outcomes of searches with those of one of them, by Welch's t-test.

    Args:
        outcomes: of each search, lower being better; NaN is a run that failed and ranks last.
        reference: the name of the search that the others are compared with.
        share: share of the trials that are the best ones.
        level: p-values below are called significant; they are not corrected for the number of searches.

    Returns:
        by search: `mean` and `std` of the best outcomes, `count` of them, `p_value` (NaN for the reference),
        `significant`.

    Raises:
        InputError: a share or level out of (0, 1], or fewer than two best outcomes that are finite.
        UnknownNameError: the reference is none of the searches.

    Source: Greff et al., 2015, section 4.1.
    """
    from scipy.stats import ttest_ind

    if not 0 < share <= 1 or not 0 < level < 1:
        raise InputError(f"expected share in (0, 1] and level in (0, 1), got {share} and {level}")
    if reference not in outcomes:
        raise UnknownNameError(unknown("search", reference, outcomes))
    best: dict[str, np.ndarray] = {}
    for name, values in outcomes.items():
        x = np.asarray(values, np.float64).ravel()
        best[name] = np.sort(x)[: max(2, round(share * len(x)))]  # NaN comes last
        if len(best[name]) < 2 or not np.isfinite(best[name]).all():
            raise InputError(f"{name}: the best {share:.0%} of {len(x)} outcomes are not two or more finite numbers")
    p = [
        np.nan if name == reference else float(ttest_ind(x, best[reference], equal_var=False).pvalue)
        for name, x in best.items()
    ]
    data = xr.Dataset(
        {
            "mean": (("search",), [float(x.mean()) for x in best.values()]),
            "std": (("search",), [float(x.std(ddof=1)) for x in best.values()]),
            "count": (("search",), [len(x) for x in best.values()]),
            "p_value": (("search",), p),
            "significant": (("search",), np.array(p) < level),
        },
        coords={"search": list(best)},
        attrs={"plot": {"variables": ["mean"], "kind": "bar", "ylabel": "outcome"}},
    )
    about = provenance(inputs={k: np.asarray(v) for k, v in outcomes.items()}, reference=reference, share=share)
    return Result(data, "compare_best", "lstm-odyssey", about)


def _draw(ranges: Mapping[str, Any], seed: int, number: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, number])
    settings = {}
    for name, kind in ranges.items():
        value = kind.value(rng.random())
        value = value.item() if isinstance(value, np.ndarray | np.generic) else value
        settings[name] = int(value) if getattr(kind, "integer", False) else value
    return settings


def _column(values: list[Any]) -> np.ndarray:
    # An array of 1 and "auto" would hold text alone.
    return np.array(values, dtype=object if len({type(v) for v in values}) > 1 else None)


def _seed_of(seed: int, number: int) -> int:
    """A seed for the trial itself, from another stream than its settings."""
    return int(np.random.default_rng([seed, number, 1]).integers(2**31))
