"""Ablating the circuits of two tasks: does each hurt its own task and spare the other?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.ablate import ablate
from actinium.circuits.patching.ablations import all_prompts
from actinium.circuits.patching.nodes import Node, named_sets
from actinium.circuits.reading.task_contrast import TaskCircuits
from actinium.circuits.reading.task_examples import (
    accuracy_among,
    chance_of,
    check_able,
    check_contrast,
    mean_of,
    rows_of,
)
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.metrics import logit_diff
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.task import Task

__all__ = ["DoubleDissociation", "double_dissociation", "selective_ablation"]

ABLATIONS = ("mean", "zero", "resample")
DRAWS = 20
"""Least number of random sets."""


class DoubleDissociation(Result):
    """Loss of two tasks when the circuit of either is taken away; see `double_dissociation`."""

    def plot(self, ax: Any = None, variable: str | None = None) -> Any:
        """Draw the loss of accuracy by circuit and task, with the range of the random sets as a line in each bar.

        Args:
            ax: matplotlib Axes to draw on; a new one if not given.
            variable: draw another variable in the way of any result.

        Returns:
            the matplotlib Axes.
        """
        if variable is not None:
            return super().plot(ax, variable)
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(6.4, 4.0), layout="constrained").subplots()
        circuits, tasks = self["circuit"].values.tolist(), self["task"].values.tolist()
        for i, task in enumerate(tasks):
            places = np.arange(len(circuits)) + 0.4 * (i - 0.5)
            ax.bar(places, self["drop"].sel(task=task).values, 0.36, label=f"loss on {task}")
            chance = self["random_drop"].sel(task=task).values
            ax.vlines(places, chance.min(1), chance.max(1), color="black")
            ax.plot(places, chance.mean(1), "k_", label="random sets (mean, range)" if not i else None)
        ax.set_xticks(range(len(circuits)), [f"circuit of {name}" for name in circuits])
        ax.axhline(0, color="grey", linewidth=0.8)
        ax.set_ylabel("loss of accuracy")
        ax.legend(fontsize="small")
        ax.set_title(f"index {float(self['index']):.3g}, p {float(self['p']):.2g}")
        return ax


def selective_ablation(
    model: Model,
    tasks: Mapping[str, Task],
    sets: Mapping[str, Sequence[Node]],
    *,
    ablation: str = "mean",
    reference: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Result:
    """Accuracy and logit difference of each task when each set of components is taken away.

    Args:
        model: a causal language model.
        tasks: tasks by name.
        sets: nodes by name; an empty set changes nothing.
        ablation: "mean", "zero" or "resample" (activations of the corrupt prompt of the pair, or of random prompts of
            the reference).
        reference: texts, Tokens or a Task; for "mean" by default the prompts of all tasks, clean and corrupt, which
            tells none of them apart.
        seed: of resampling.
        batch_size: rows run at a time, by default all.
        progress: show a progress bar.

    Returns:
        Result over set and task: `drop` (accuracy lost), `normalised_drop` (divided by the accuracy above chance),
        `accuracy` among the task's answers, `logit_diff`; over task `full_accuracy`, `full_logit_diff`, `chance`.

    Raises:
        InputError: no sets or tasks, or as `ablate`.
        SiteError: a site does not exist.
        UnknownNameError: there is no such ablation.

    Source: Fartale et al., 2025 (aim; the measures are a standard completion, see `task_selectivity`).
    """
    _check_ablation(ablation)
    if not sets or not tasks:
        raise InputError("pass sets of nodes and tasks, each by name")
    run = _Ablated(model, tasks, sets, ablation, reference, seed, batch_size, progress)
    full, values = run.measured(dict.fromkeys(tasks, logit_diff))
    data = run.lost() | {"logit_diff": (("set", "task"), values), "full_logit_diff": (("task",), full)}
    settings = {"ablation": ablation, "seed": seed, "sets": _plain(sets)}
    record = provenance(model, [(task.clean_ids, task.corrupt_ids) for task in tasks.values()], **settings)
    dataset = xr.Dataset(data, coords=run.coords)
    return Result(dataset, "selective_ablation", "recall-vs-reasoning-circuits", record)


def _check_ablation(ablation: str) -> None:
    if ablation not in ABLATIONS:
        raise UnknownNameError(unknown("ablation", str(ablation), ABLATIONS))


@dataclass(frozen=True, eq=False)
class _Ablated:
    """Runs of the clean prompts of each task without each set of components."""

    model: Model
    tasks: Mapping[str, Task]
    sets: Mapping[str, Sequence[Node]]
    ablation: str
    reference: Any
    seed: int
    batch_size: int | None
    progress: bool

    @property
    def coords(self) -> dict[str, list[str]]:
        return {"set": [str(name) for name in self.sets], "task": [str(name) for name in self.tasks]}

    def measured(self, metrics: Mapping[str, Callable[..., Tensor]]) -> tuple[np.ndarray, np.ndarray]:
        """Mean of each task's metric in the full model (task,) and without each set (set, task)."""
        filled = {str(name): list(nodes) for name, nodes in self.sets.items() if len(nodes)}
        reference = self.reference
        if self.ablation == "mean" and reference is None:
            reference = all_prompts(self.tasks.values())
        options = {"method": self.ablation, "reference": reference, "seed": self.seed, "batch_size": self.batch_size}
        whole, columns = [], []
        for name, task in self.tasks.items():
            full, by_set = mean_of(self.model, task, metrics[name], self.batch_size), {}
            if filled:
                options |= {"metric": metrics[name], "progress": self.progress}
                found = ablate(self.model, task, filled, None, **options).data
                by_set = dict(zip(found["set"].values.tolist(), found["patched"].values.tolist(), strict=True))
            whole.append(full)
            columns.append([by_set.get(str(s), full) for s in self.sets])
        return np.array(whole), np.array(columns).T

    def lost(self) -> dict[str, Any]:
        """Accuracy, what was lost of it, and what that is of the accuracy above chance."""
        full, values = self.measured({name: accuracy_among(task) for name, task in self.tasks.items()})
        chance = np.array([chance_of(task) for task in self.tasks.values()])
        by = ("set", "task")
        return {
            "drop": (by, full - values),
            "normalised_drop": (by, (full - values) / (full - chance)),
            "accuracy": (by, values),
            "full_accuracy": (("task",), full),
            "chance": (("task",), chance),
        }


def _plain(sets: Mapping[str, Sequence[Node]]) -> dict[str, Any]:
    return {str(name): [(n.site, n.positions, n.heads, n.units) for n in nodes] for name, nodes in sets.items()}


def double_dissociation(
    model: Model,
    tasks: Mapping[str, Task],
    circuits: TaskCircuits | Mapping[str, Sequence[Node]],
    *,
    ablation: str = "mean",
    reference: Any = None,
    n_random: int = DRAWS,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> DoubleDissociation:
    """Whether the circuit of each of two tasks hurts that task more than the other, against random sets.

    DD = [drop_A(C_A) - drop_B(C_A)] + [drop_B(C_B) - drop_A(C_B)], with the accuracy lost on held-out prompts. A random
    set has as many heads (neurons) of each site as the circuit; of whole sites it has as many of the same kind, in any
    layers. The circuit itself may be drawn.

    Args:
        model: a causal language model.
        tasks: the two tasks, with prompts on which the circuits were not chosen.
        circuits: nodes by the same names: what `TaskContrast.circuits` gives (which knows its prompts), or your own.
        ablation, reference, batch_size, progress: as in `selective_ablation`.
        n_random: pairs of random sets, 20 or more.
        seed: of the random sets and of resampling.

    Returns:
        DoubleDissociation: `drop` and `normalised_drop` over circuit and task, `random_drop` over circuit, draw and
        task; `index` (DD), `p` = (1 + number of random pairs whose DD is not below) / (1 + n_random), and for
        normalised drops `normalised_index`, `normalised_p`; `circuit_p` over circuit, for each bracket of DD alone.

    Raises:
        InputError: prompts that the circuits were chosen on, fewer than 20 examples or random sets, a task within 10
            points of chance, or circuits for other tasks.
        SiteError, UnknownNameError: as `selective_ablation`.

    Source: Fartale et al., 2025 (aim; the index and its test are a standard completion, see `task_selectivity`).
    """
    names = check_contrast(tasks)
    _check_ablation(ablation)
    if n_random < DRAWS:
        raise InputError(f"n_random must be at least {DRAWS}, not {n_random}: p cannot be below 1 / (1 + n_random)")
    if {str(name) for name in circuits} != set(names):
        raise InputError(f"circuits are needed for the tasks {names}, not for {[str(name) for name in circuits]}")
    if isinstance(circuits, TaskCircuits) and circuits.rows & rows_of(tasks):
        shared = len(circuits.rows & rows_of(tasks))
        raise InputError(
            f"{shared} prompts are among those on which the circuits were chosen; test on others (split_tasks gives "
            "two parts without a prompt in common)"
        )
    chosen = {name: list(circuits[name]) for name in names}
    for name, nodes in chosen.items():
        if nodes:
            (chosen[name],) = named_sets(model, tasks[name], {name: nodes}).sets
    check_able(model, tasks, batch_size)
    random = np.random.default_rng(seed)
    sets: dict[str, list[Node]] = dict(chosen)
    for draw in range(n_random):
        sets |= {f"{name} random {draw}": matched_set(model, chosen[name], random) for name in names}
    run = _Ablated(model, tasks, sets, ablation, reference, seed, batch_size, progress)
    lost = xr.Dataset(run.lost(), coords=run.coords)
    record = provenance(
        model,
        [(task.clean_ids, task.corrupt_ids) for task in tasks.values()],
        seed,
        ablation=ablation,
        n_random=n_random,
        circuits=_plain(chosen),
    )
    data = _indices(lost, names, n_random)
    return DoubleDissociation(data, "double_dissociation", "recall-vs-reasoning-circuits", record)


def matched_set(model: Model, nodes: Sequence[Node], random: np.random.Generator) -> list[Node]:
    """A random set with as many components of each site as the given one.

    Args:
        model: the model.
        nodes: with plain site names.
        random: source of the draw.
    """
    out: list[Node] = []
    for part in ("heads", "units", None):
        groups: dict[tuple[str, int], list[Node]] = {}
        for node in nodes:
            kind = "heads" if node.heads is not None else "units" if node.units is not None else None
            if kind == part:
                ((site, _, _),) = model.resolve(node.site)
                key = node.site if part else f"{site.stack}.{site.part}"
                groups.setdefault((key, id(node.positions)), []).append(node)
        for (key, _), group in groups.items():
            if part is None:
                same = [s.name for s in model.sites() if f"{s.stack}.{s.part}" == key]
                picked = random.choice(same, min(len(group), len(same)), replace=False)
                out += [replace(group[0], site=str(name)) for name in picked]
                continue
            ((site, _, _),) = model.resolve(key)
            size = site.sizes[site.dims[-1] if part == "units" else "head" if "head" in site.dims else "kv_head"]
            count = len({int(i) for node in group for i in np.ravel(getattr(node, part))})
            picked = sorted(random.choice(size, count, replace=False).tolist())
            out.append(replace(group[0], **{part: picked}))
    return out


def _indices(lost: xr.Dataset, names: list[str], n_random: int) -> xr.Dataset:
    """The index of double dissociation, and that of each pair of random sets."""
    data: dict[str, Any] = {}
    sign = np.array([[1.0, -1.0], [-1.0, 1.0]])
    for prefix in ("", "normalised_"):
        values = lost[f"{prefix}drop"]
        own = np.stack([values.sel(set=name).values for name in names])
        drawn = np.stack([[values.sel(set=f"{name} random {i}").values for i in range(n_random)] for name in names])
        brackets, chance = (own * sign).sum(1), (drawn * sign[:, None]).sum(2)
        data[f"{prefix}drop"] = (("circuit", "task"), own)
        data[f"{prefix}random_drop"] = (("circuit", "draw", "task"), drawn)
        data[f"{prefix}index"] = ((), float(brackets.sum()))
        data[f"{prefix}random_index"] = (("draw",), chance.sum(0))
        data[f"{prefix}p"] = ((), _share(chance.sum(0), brackets.sum()))
        data[f"{prefix}circuit_p"] = (("circuit",), np.array([_share(chance[i], brackets[i]) for i in range(2)]))
    data |= {name: lost[name] for name in ("full_accuracy", "chance")}
    return xr.Dataset(data, coords={"circuit": names, "task": names})


def _share(chance: np.ndarray, found: float) -> float:
    """p value of a number among random ones; sums of the same drops may differ by rounding."""
    return (1 + int((chance >= found - 1e-9).sum())) / (1 + len(chance))
