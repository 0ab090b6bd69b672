"""Testing with concept activation vectors: does a concept raise a class's logit, and more than random sets do?"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import fingerprint, provenance
from actinium.core.recording import Recording
from actinium.core.result import Result
from actinium.core.rows import as_examples
from actinium.features.cav import CAV, pooled
from actinium.features.sensitivity import Target, activations_at, gradients_at, one_site

__all__ = ["ScoreTest", "random_sets", "score_test", "tcav"]

ENOUGH = 20
"""Random sets below which a warning is given: in few dimensions the scores of random vectors lie near 0 or near 1."""
PRESENT = 0.6
"""Held-out accuracy below which a concept counts as not linearly present."""


@dataclass(frozen=True)
class ScoreTest:
    """Outcome of the test of scores against random ones.

    Attributes:
        p_value: of a two-sided t-test of two samples with equal variance; NaN where it is undefined.
        significant: p below the corrected level.
        level: alpha divided by the number of tests.
    """

    p_value: float
    significant: bool
    level: float


def score_test(scores: Any, random_scores: Any, alpha: float = 0.05, tests: int = 1) -> ScoreTest:
    """Two-sided t-test of a concept's scores against those of random vectors, Bonferroni-corrected.

    Where neither sample varies the test is undefined: p is NaN and nothing is significant.

    Args:
        scores: (n,) two or more.
        random_scores: (k,) two or more.
        alpha: level of the whole family of tests.
        tests: how many tests the family has.

    Raises:
        InputError: fewer than two scores, or a level or number of tests that is senseless.

    Source: Kim et al., 2018, section 3.5.
    """
    from scipy.stats import ttest_ind

    a, b = (np.asarray(s, dtype=np.float64) for s in (scores, random_scores))
    if a.ndim != 1 or b.ndim != 1 or min(len(a), len(b)) < 2 or not np.isfinite(np.concatenate([a, b])).all():
        raise InputError(f"the test needs two finite scores or more of each kind, got {a.shape} and {b.shape}")
    if not 0 < alpha < 1 or tests < 1:
        raise InputError(f"alpha lies between 0 and 1 and there is at least one test, got {alpha} and {tests}")
    level = alpha / tests
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return ScoreTest(float("nan"), False, level)
    with warnings.catch_warnings():
        # One of the samples often is 1 throughout, which scipy would warn about; their common variance is not 0.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        p = float(ttest_ind(a, b, equal_var=True).pvalue)
    return ScoreTest(p, p < level, level)


def random_sets(pool: Any, sets: int = 20, size: int = 50, seed: int = 0) -> list[Any]:
    """Random sets of examples, each drawn without replacement from one pool; sets may share examples.

    Args:
        pool: tensor or array (n, ...), or a list of texts.
        sets: how many.
        size: examples in each.
        seed: of the draw.

    Raises:
        InputError: the pool is smaller than a set, or a number is below 1.
    """
    n = len(pool)
    if sets < 1 or not 1 <= size <= n:
        raise InputError(f"cannot draw {sets} sets of {size} from {n} examples")
    draw = np.random.default_rng(seed)
    rows = [np.sort(draw.choice(n, size, replace=False)) for _ in range(sets)]
    if isinstance(pool, Tensor):
        return [pool[torch.from_numpy(r)] for r in rows]
    if hasattr(pool, "__array__"):
        return [np.asarray(pool)[r] for r in rows]
    return [[pool[i] for i in r] for r in rows]


def tcav(
    model: Model,
    at: str | Sequence[str],
    inputs: Any,
    target: Target,
    concepts: Mapping[str, Any],
    randoms: Sequence[Any],
    *,
    cav: CAV | None = None,
    positions: int | None = None,
    counterpart: int | None = None,
    random_runs: int | None = None,
    alpha: float = 0.05,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Scores of concepts at sites, tested against the scores of vectors between random sets.

    Every concept gets one vector against each random set. Random vectors tell random set i from random set j.

    The runs of a concept share its examples, so they are not independent, and the t-test of the paper takes many a
    random set for a concept. `p_rank` does not: it puts every random set in the concept's place and counts how many
    change the logit as much. It cannot be smaller than 1 / (random sets + 1).

    Args:
        model: the model, in evaluation mode.
        at: sites, by name.
        inputs: inputs of the class that is explained.
        target: class, id of the next token, or a function from logits (n, class) to (n,).
        concepts: {name: examples}. Examples are inputs of the model, a Recording, or {site: activations (n, ...)}.
        randoms: sets of random or counter-examples of the same kinds, two or more; 20 or more are advised.
        cav: settings of the vectors, pooling included; it stays unfitted.
        positions: of text sites, the token position (0 first, -1 last); None for all.
        counterpart: number of the random set that plays the concept in the random runs; None for every ordered pair.
        random_runs: most random vectors: if there are more pairs, so many are drawn; None for all pairs.
        alpha: level of the test, divided by the number of concepts times sites.
        batch_size: rows in a pass.
        seed: of the draw of pairs.
        progress: show a progress bar.

    Returns:
        By `concept` and `site`: `score` (mean over runs), `score_std`, `p_value` (NaN: undefined), `significant`,
        `magnitude` (mean derivative along the unit vector), `p_rank` (share of random sets whose own magnitude is as
        large, the concept among them; NaN with a counterpart), `absolute` (mean size of the derivative), `accuracy`
        (held out);
        by `site`: `random_score`, `random_std`, `random_accuracy`; and the runs: `scores` (concept, site, run),
        `random_scores` (site, random_run), `sensitivity` (concept, site, run, input).

    Raises:
        InputError: fewer than two random sets, empty or unfitting sets, a class that does not exist, gradients that are
            not finite or 0 for every input.
        SiteError: a site does not exist.

    Source: Kim et al., 2018, sections 3.2 to 3.5; `p_rank` is ours.
    """
    cav = CAV() if cav is None else cav
    names = [one_site(model, site) for site in ([at] if isinstance(at, str) else list(at))]
    pairs = _pairs(len(randoms), counterpart, random_runs, seed)
    if not concepts or not names:
        raise InputError("no concepts or no sites given")
    gradients = gradients_at(model, inputs, names, target, pool=cav.pool, positions=positions, batch_size=batch_size)

    def read(examples: Any, what: str) -> dict[str, Tensor]:
        return _read(model, examples, names, cav.pool, positions, batch_size, what)

    known = {name: read(examples, f"concept {name!r}") for name, examples in concepts.items()}
    drawn = [read(examples, f"random set {i}") for i, examples in enumerate(randoms)]
    work: list[Any] = [
        (c, site, r) for c in [*known, None] for site in names for r in (range(len(drawn)) if c else pairs)
    ]
    runs: dict[tuple[str | None, str], list[tuple[Tensor, float]]] = {}
    for concept, site, pair in shown(work, "learning vectors", progress):
        first, second = (known[concept], drawn[pair]) if concept is not None else (drawn[pair[0]], drawn[pair[1]])
        one = copy.copy(cav).fit(first[site], second[site])
        runs.setdefault((concept, site), []).append((one.sensitivity(gradients[site]), one.accuracy_["all"]))
    data = _gathered(list(known), names, runs, alpha, [i for i, _ in pairs])
    _warn(data, len(randoms))
    return Result(
        data,
        "tcav",
        "tcav",
        provenance(
            model,
            model.prepare(inputs),
            seed=seed,
            at=names,
            target=target if isinstance(target, int) else getattr(target, "__qualname__", repr(target)),
            cav=cav.get_params(),
            positions=positions,
            counterpart=counterpart,
            random_runs=random_runs,
            alpha=alpha,
            concepts={name: fingerprint(values) for name, values in known.items()},
            randoms=[fingerprint(values) for values in drawn],
        ),
    )


def _pairs(n: int, counterpart: int | None, most: int | None, seed: int) -> list[tuple[int, int]]:
    """Which random set is told from which."""
    if n < 2:
        raise InputError(f"the test needs two random sets or more, got {n}")
    if counterpart is not None and not 0 <= counterpart < n:
        raise InputError(f"counterpart is the number of a random set from 0 to {n - 1}, not {counterpart}")
    if most is not None and most < 2:
        raise InputError(f"the test needs two random runs or more, not {most}")
    first = range(n) if counterpart is None else [counterpart]
    pairs = [(i, j) for i in first for j in range(n) if i != j]
    if len(pairs) < 2:
        raise InputError("one random run cannot be tested against; give a third random set or no counterpart")
    if most is not None and len(pairs) > most:
        chosen = np.random.default_rng(seed).choice(len(pairs), most, replace=False)
        pairs = [pairs[i] for i in np.sort(chosen)]
    return pairs


def _read(
    model: Model, examples: Any, names: list[str], pool: str, positions: int | None, batch_size: int | None, what: str
) -> dict[str, Tensor]:
    """Activations (n, m) of a set by site, from inputs, a recording or activations."""
    values = examples.values if isinstance(examples, Recording) else examples
    if isinstance(values, Mapping) and set(names) & set(values):
        missing = [name for name in names if name not in values]
        if missing:
            raise InputError(f"{what}: no activations of {missing[0]}")
        rows = {name: as_examples(values[name], f"{what} at {name}", dtype=torch.float64).cpu() for name in names}
        return {name: pooled(each, pool) for name, each in rows.items()}
    try:
        return activations_at(model, examples, names, pool=pool, positions=positions, batch_size=batch_size)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None


def _gathered(
    concepts: list[str],
    sites: list[str],
    runs: Mapping[tuple[str | None, str], list[tuple[Tensor, float]]],
    alpha: float,
    first: Sequence[int],
) -> xr.Dataset:
    def table(concept: str | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        found = [runs[concept, site] for site in sites]
        return (
            np.stack([[s.numpy() for s, _ in one] for one in found]),
            np.array([[a for _, a in one] for one in found]),
        )

    random_s, random_accuracy = table(None)
    each = [table(concept) for concept in concepts]
    sensitivity, accuracy = np.stack([s for s, _ in each]), np.stack([a for _, a in each])
    scores, random_scores = (sensitivity > 0).mean(-1), (random_s > 0).mean(-1)
    tests = len(concepts) * len(sites)
    found = [
        [score_test(scores[c, s], random_scores[s], alpha, tests) for s in range(len(sites))]
        for c in range(len(concepts))
    ]
    both = ("concept", "site")
    return xr.Dataset(
        {
            "score": (both, scores.mean(-1)),
            "score_std": (both, scores.std(-1)),
            "p_value": (both, np.array([[t.p_value for t in row] for row in found])),
            "significant": (both, np.array([[t.significant for t in row] for row in found])),
            "magnitude": (both, sensitivity.mean((-1, -2))),
            "p_rank": (both, _ranked(sensitivity.mean((-1, -2)), random_s.mean(-1), np.array(first))),
            "absolute": (both, np.abs(sensitivity).mean((-1, -2))),
            "accuracy": (both, accuracy.mean(-1)),
            "random_score": ("site", random_scores.mean(-1)),
            "random_std": ("site", random_scores.std(-1)),
            "random_accuracy": ("site", random_accuracy.mean(-1)),
            "scores": ((*both, "run"), scores),
            "random_scores": (("site", "random_run"), random_scores),
            "sensitivity": ((*both, "run", "input"), sensitivity),
        },
        coords={"concept": concepts, "site": sites},
        attrs={"level": alpha / tests},
    )


def _ranked(
    magnitude: NDArray[np.float64], random_magnitude: NDArray[np.float64], first: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(concept, site) share of random sets in the concept's place, and the concept, whose magnitude is as far from 0.

    Args:
        magnitude: (concept, site).
        random_magnitude: (site, random_run).
        first: (random_run,) the set that plays the concept.
    """
    played = np.unique(first)
    if len(played) < 2:
        return np.full(magnitude.shape, np.nan)
    each = np.stack([np.abs(random_magnitude[:, first == i].mean(1)) for i in played], axis=1)
    return np.asarray(((each[None] >= np.abs(magnitude)[..., None]).sum(-1) + 1) / (len(played) + 1))


def _warn(data: xr.Dataset, sets: int) -> None:
    if sets < ENOUGH:
        warnings.warn(
            f"{sets} random sets: scores of random vectors often lie near 0 or 1, so that few of them prove little; "
            f"take {ENOUGH} or more",
            ActiniumWarning,
            stacklevel=3,
        )
    for concept in map(str, data["concept"].values):
        for site in map(str, data["site"].values):
            have = float(data["accuracy"].sel(concept=concept, site=site))
            chance = float(data["random_accuracy"].sel(site=site))
            if have < PRESENT or have <= chance:
                warnings.warn(
                    f"{concept!r} is not linearly present at {site}: held-out accuracy {have:.2f}, random sets "
                    f"{chance:.2f}; its score means little",
                    ActiniumWarning,
                    stacklevel=3,
                )
