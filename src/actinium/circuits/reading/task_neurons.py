"""Neurons that fire for one task more than for another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from actinium.circuits.patching.nodes import node_sets
from actinium.circuits.reading.task_contrast import TaskContrast
from actinium.circuits.reading.task_examples import check_able, check_contrast, draws, rows_of, welch
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.statistics import benjamini_hochberg
from actinium.core.task import Task

__all__ = ["neuron_selectivity", "selectivity_index"]

EPS = 1e-12
# Numbers in one block of the bootstrap.
BLOCK = 2**22


def selectivity_index(one: Any, other: Any) -> np.ndarray:
    """(a - b) / (|a| + |b| + eps) of two mean activations, between -1 and 1.

    Args:
        one, other: means, of any shape.
    """
    a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    return (a - b) / (np.abs(a) + np.abs(b) + EPS)


def neuron_selectivity(
    model: Model,
    tasks: Mapping[str, Task],
    at: Any = "blocks.*.mlp.post",
    *,
    control: Task | None = None,
    tau: float = 0.0,
    fdr: float = 0.05,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    batch_size: int | None = None,
) -> TaskContrast:
    """How differently each neuron is active at the last token of the prompts of two tasks.

    The formula of the paper is not public; d', the index, the test and the correction here are a standard completion.

    Args:
        model: a causal language model.
        tasks: two tasks by name, A and B.
        at: sites with units; at mlp.post of a gated MLP a neuron's activation is the product that enters the down
            projection, at mlp.gate what enters the non-linearity.
        control: a third task, on which selective neurons are looked at again.
        tau: a neuron fires where its activation is above it.
        fdr: false discovery rate below which a neuron counts as selective.
        resamples, level, seed: as in `task_selectivity`.
        batch_size: rows run at a time, by default all.

    Returns:
        TaskContrast over layer (or part and layer, or site) and unit: `selectivity` is d' = (mu_A - mu_B) /
        sqrt((var_A + var_B) / 2), with `low` and `high`; `index`, see `selectivity_index`; `p` (two-sided Welch test)
        and `q`; `mean` and `rate` (share of prompts on which it fires) over task. With a control `polysemantic`:
        neurons selective for A (or B) that are also more active on the control than on the other task, at the same
        rate of false discoveries; `polysemanticity` is their share of the selective ones (NaN without any).

    Raises:
        InputError: not two tasks, fewer than 20 examples, a task within 10 points of chance, a rate outside 0 and 1, or
            sites without units.
        SiteError: a site does not exist.

    Source: Fartale et al., 2025 (aim; see above); Benjamini and Hochberg, 1995.
    """
    names = check_contrast(tasks)
    if not 0 < fdr < 1 or not 0 < level < 1 or resamples < 1:
        raise InputError(f"fdr and level are between 0 and 1 and resamples at least 1, not {fdr}, {level}, {resamples}")
    every = {**tasks, **({"control": control} if control is not None else {})}
    accuracies = check_able(model, every, batch_size)
    nodes = node_sets(model, tasks[names[0]], at, "unit")
    one, other = (_activations(model, tasks[name], nodes.sites, batch_size) for name in names)
    p = welch(one, other)
    q = benjamini_hochberg(p)
    low, high = _interval(one, other, names, resamples, level, seed)
    single = {"selectivity": d_prime(one, other), "low": low, "high": high, "p": p, "q": q}
    single["index"] = selectivity_index(one.mean(0), other.mean(0))
    single["site_name"] = np.repeat(np.array(nodes.sites), len(nodes.sets) // len(nodes.sites))
    data: dict[str, Any] = {}
    if control is not None:
        third = _activations(model, control, nodes.sites, batch_size)
        mixed = _also(one, other, third, q < fdr, fdr)
        single["polysemantic"] = mixed
        data["polysemanticity"] = ((), float(mixed.sum() / (q < fdr).sum()) if (q < fdr).any() else float("nan"))
    data = {name: (nodes.dims, value.reshape(nodes.shape)) for name, value in single.items()} | data
    both = {"mean": [one.mean(0), other.mean(0)], "rate": [(one > tau).mean(0), (other > tau).mean(0)]}
    data |= {name: (("task", *nodes.dims), np.stack(v).reshape(2, *nodes.shape)) for name, v in both.items()}
    data["accuracy"] = (("task",), [accuracies[name] for name in names])
    about = {"tasks": names, "rows": sorted(rows_of(tasks)), "level": level, "fdr": fdr, "tau": tau}
    inputs = {name: task.clean_ids for name, task in every.items()}
    record = provenance(model, inputs, seed, at=at, tau=tau, fdr=fdr, resamples=resamples, level=level, tasks=names)
    dataset = xr.Dataset(data, coords={**nodes.coords, "task": names}, attrs=about)
    return TaskContrast(dataset, "neuron_selectivity", "recall-vs-reasoning-circuits", record)


def _activations(model: Model, task: Task, sites: list[str], batch_size: int | None) -> np.ndarray:
    """(row, neuron) float64 at the last token."""
    rec = model.record(task.prompts(), sites, positions=[-1], batch_size=batch_size)
    return np.concatenate([rec[site].detach().cpu().double()[:, -1].numpy() for site in sites], 1)


def d_prime(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(mu_A - mu_B) / sqrt((var_A + var_B) / 2) of (row, neuron); infinite where nothing varies and means differ."""
    return _ratio(one.mean(0) - other.mean(0), (one.var(0, ddof=1) + other.var(0, ddof=1)) / 2)


def _ratio(difference: np.ndarray, variance: np.ndarray) -> np.ndarray:
    spread = np.sqrt(np.maximum(variance, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / spread)


def _interval(
    one: np.ndarray, other: np.ndarray, names: list[str], resamples: int, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of d' over resampled prompts, some neurons at a time."""
    counts = [draws(name, len(x), resamples, seed) for name, x in zip(names, (one, other), strict=True)]
    width = max(1, BLOCK // resamples)
    ends = []
    for start in range(0, one.shape[1], width):
        means, variances = [], []
        for count, x in zip(counts, (one, other), strict=True):
            # Centred first, so that the difference of the two sums keeps its digits.
            centre = x.mean(0)[None, start : start + width]
            block, n = x[:, start : start + width] - centre, len(x)
            mean = count @ block / n
            means.append(mean + centre)
            variances.append((count @ block**2 / n - mean**2) * n / (n - 1))
        drawn = _ratio(means[0] - means[1], (variances[0] + variances[1]) / 2)
        ends.append(np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0))
    low, high = np.concatenate(ends, 1)
    return low, high


def _also(one: np.ndarray, other: np.ndarray, third: np.ndarray, selective: np.ndarray, fdr: float) -> np.ndarray:
    """Which selective neurons are more active on the third task than on the one that they are not selective for."""
    prefers_one = one.mean(0) > other.mean(0)
    p = np.where(prefers_one, welch(third, other), welch(third, one))
    base = np.where(prefers_one, other.mean(0), one.mean(0))
    q = benjamini_hochberg(np.where(selective, p, np.nan))
    return selective & (np.nan_to_num(q, nan=1.0) < fdr) & (third.mean(0) > base)
