"""Components that serve one task more than another: causal scores on two tasks, and their difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.effects import Effects, gap_is_nothing
from actinium.circuits.patching.nodes import Node, node_sets
from actinium.circuits.patching.patch import patch
from actinium.circuits.reading.task_examples import check_able, check_contrast, draws, rows_of, welch
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.statistics import benjamini_hochberg
from actinium.core.task import Task

__all__ = ["TaskCircuits", "TaskContrast", "task_selectivity"]

SHARES = {"head": 0.05, "kv_head": 0.05, "unit": 0.01}
"""Default size of a circuit as a share of all components, by what a component is; of whole sites a tenth."""


@dataclass(frozen=True)
class TaskCircuits(Mapping[str, list[Node]]):
    """Components by the task that they serve.

    Args:
        nodes: components of each task.
        rows: marks of the prompts on which they were chosen; a test on any of these is refused.
    """

    nodes: Mapping[str, list[Node]]
    rows: frozenset[str] = field(default_factory=frozenset)

    def __getitem__(self, name: str) -> list[Node]:
        return self.nodes[name]

    def __iter__(self) -> Any:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


class TaskContrast(Effects):
    """Scores of components on two tasks and their difference; see `task_selectivity` and `neuron_selectivity`."""

    def plot(self, ax: Any = None, variable: str | None = None) -> Any:
        """Draw the selectivity.

        Args:
            ax: matplotlib Axes to draw on; a new one if not given.
            variable: what to draw instead.

        Returns:
            the matplotlib Axes.
        """
        return super().plot(ax, variable or "selectivity")

    def heading(self) -> str:
        """Method and tasks."""
        one, other = self.data.attrs["tasks"]
        return f"{self.method}: {one} (above 0) or {other} (below 0)"

    def circuits(self, k: int | None = None, share: float | None = None) -> TaskCircuits:
        """The most selective components of each task, of those whose interval lies on its side of 0.

        Args:
            k: number of components for each task, at least 1.
            share: instead of k, a share of all components, at least one of them; by default 5 % of heads, 1 % of
                neurons and 10 % of whole sites.

        Returns:
            TaskCircuits: at most k nodes a task, fewer (or none) where fewer are selective.

        Raises:
            InputError: k below 1, a share outside 0 and 1, or both.
        """
        values = self["selectivity"]
        kind = next((str(d) for d in values.dims if d in SHARES), "")
        if k is not None and share is not None:
            raise InputError("give k or share, not both")
        if share is not None and not 0 < share <= 1:
            raise InputError(f"share is above 0 and at most 1, not {share}")
        if k is None:
            k = max(1, int((SHARES.get(kind, 0.1) if share is None else share) * values.size))
        if k < 1:
            raise InputError(f"a circuit has k = 1 component or more, not {k}")
        nodes = self._nodes(kind)
        out = {}
        for name, sign, bound in zip(self.data.attrs["tasks"], (1, -1), ("low", "high"), strict=True):
            scores, ends = sign * values.values.ravel(), sign * self[bound].values.ravel()
            order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")
            out[name] = [nodes[i] for i in order if ends[i] > 0][:k]
        return TaskCircuits(out, frozenset(self.data.attrs["rows"]))

    def _nodes(self, kind: str) -> list[Node]:
        """Nodes in the order of the flat selectivity."""
        sites = [str(name) for name in self["site_name"].values.ravel()]
        if not kind:
            return [Node(site) for site in sites]
        # Heads and neurons are the last axis.
        labels = np.tile(self[kind].values, len(sites) // self[kind].size).tolist()
        part = "units" if kind == "unit" else "heads"
        return [Node(site, **{part: [label]}) for site, label in zip(sites, labels, strict=True)]


def task_selectivity(
    model: Model,
    tasks: Mapping[str, Task],
    at: Any = "blocks.*.attn.z",
    over: str | None = None,
    *,
    metric: str | Callable[..., Tensor] = "logit_diff",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> TaskContrast:
    """How much more each component restores the behaviour of one task than that of another.

    The score s_T(c) of a component is its denoising effect on task T (see `patch`), normalised by the difference of the
    clean and the corrupt run; its selectivity is S = s_A - s_B. What the paper computes is not public: the abstract
    names the aim. The score, the interval, the test and the correction here are a standard completion.

    Args:
        model: a causal language model.
        tasks: two tasks by name, A and B, with prompts of similar length and form.
        at, over: components, as in `patch`; over is "head" by default where all sites have heads, else "layer".
        metric, batch_size, progress: as in `patch`.
        resamples: of the bootstrap over examples (of numerator and denominator together).
        level: of its interval.
        seed: of the resampling.

    Returns:
        TaskContrast over components: `selectivity`, `low` and `high` (interval), `p` (two-sided Welch test over the
        examples' scores) and `q` (p adjusted for the false discovery rate); `score` over task and components;
        `accuracy` of each task among its answers. `circuits()` picks components.

    Raises:
        InputError: not two tasks, fewer than 20 examples, prompts of a pair that differ in length, a task within 10
            points of chance, or one whose two runs do not differ.
        SiteError, UnknownNameError: as `patch`.

    Source: Fartale et al., 2025 (aim; see above); Efron and Tibshirani, 1993; Benjamini and Hochberg, 1995.
    """
    names = check_contrast(tasks)
    if resamples < 1 or not 0 < level < 1:
        raise InputError(f"expected a resample or more and a level between 0 and 1, got {resamples} and {level}")
    accuracies = check_able(model, tasks, batch_size)
    if over is None:
        over = "head" if all({"head", "kv_head"} & set(site.dims) for site in model.sites(at)) else "layer"
    nodes = node_sets(model, tasks[names[0]], at, over)
    if nodes.present is not None or "pos" in nodes.dims:
        raise InputError("components are sites, heads or neurons over all positions: over is 'layer', 'head' or 'unit'")
    changes, gaps = {}, {}
    for name in names:
        settings = {"metric": metric, "batch_size": batch_size, "progress": progress}
        changes[name], gaps[name] = _restored(model, tasks[name], at, over, name, settings)
    data = _contrasted(names, changes, gaps, nodes.shape, nodes.dims, resamples, level, seed)
    data["accuracy"] = (("task",), [accuracies[name] for name in names])
    data["site_name"] = (nodes.dims, np.array([each[0].site for each in nodes.sets]).reshape(nodes.shape))
    about = {"tasks": names, "rows": sorted(rows_of(tasks)), "level": level}
    record = provenance(
        model,
        [(tasks[n].clean_ids, tasks[n].corrupt_ids) for n in names],
        seed,
        at=at,
        over=over,
        metric=metric,
        resamples=resamples,
        level=level,
        tasks=names,
    )
    coords = {**nodes.coords, "task": names}
    return TaskContrast(
        xr.Dataset(data, coords=coords, attrs=about), "task_selectivity", "recall-vs-reasoning-circuits", record
    )


def _restored(
    model: Model, task: Task, at: Any, over: str, name: str, settings: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """What each component restores (row, component) of the difference of the two runs (row,)."""
    found = patch(model, task, at, over, normalise=False, by_row=True, **settings).data
    clean, corrupt = found["clean_by_row"].values, found["corrupt_by_row"].values
    if gap_is_nothing(torch.from_numpy(clean), torch.from_numpy(corrupt)):
        raise InputError(f"{name}: the metric is the same in clean and corrupt prompts, so no score exists")
    return found["patched_by_row"].values.reshape(-1, len(clean)).T - corrupt[:, None], clean - corrupt


def _contrasted(
    names: Sequence[str],
    changes: Mapping[str, np.ndarray],
    gaps: Mapping[str, np.ndarray],
    shape: tuple[int, ...],
    dims: tuple[str, ...],
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """Scores, their difference, its interval and test; changes are (row, component), gaps (row,)."""
    scores, drawn, examples = [], [], []
    for name in names:
        counts = draws(name, len(gaps[name]), resamples, seed)
        scores.append(changes[name].mean(0) / gaps[name].mean())
        drawn.append((counts @ changes[name]) / (counts @ gaps[name])[:, None])
        examples.append(changes[name] / gaps[name].mean())
    low, high = np.quantile(drawn[0] - drawn[1], [(1 - level) / 2, (1 + level) / 2], axis=0)
    p = welch(examples[0], examples[1])
    single = {"selectivity": scores[0] - scores[1], "low": low, "high": high, "p": p, "q": benjamini_hochberg(p)}
    data: dict[str, Any] = {name: (dims, value.reshape(shape)) for name, value in single.items()}
    data["score"] = (("task", *dims), np.stack(scores).reshape(2, *shape))
    return data
