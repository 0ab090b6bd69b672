"""Whether a circuit holds all that matters (completeness) and nothing that does not (minimality)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import xarray as xr
from rich.progress import Progress
from torch import Tensor

from actinium.circuits.graph.circuit import CircuitGraph
from actinium.circuits.graph.drawing import axes_of
from actinium.circuits.graph.evaluation import judged, origin
from actinium.circuits.graph.layout import Layout
from actinium.circuits.graph.wiring import Wiring
from actinium.circuits.patching.contrast import Metric
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.core.task import Task

__all__ = ["Knockouts", "completeness", "minimality"]

WAYS = ("random", "greedy")
Sets = str | Mapping[str, Iterable[str]] | Sequence[Iterable[str]]


class Knockouts(Result):
    """The metric of circuit and model without the same parts, over `set`."""

    def plot(self, ax: Any = None, variable: str | None = None) -> Any:
        """Draw one against the other: a complete circuit has all its points on the diagonal."""
        if variable is not None:
            return super().plot(ax, variable)
        ax = axes_of(ax, (4.8, 4.4))
        circuit, model = (self.data[name].values for name in ("m_circuit", "m_model"))
        ends = [float(min(circuit.min(), model.min())), float(max(circuit.max(), model.max()))]
        ax.plot(ends, ends, color="#999999", linewidth=0.8, linestyle="--")
        ax.scatter(model, circuit, s=22)
        worst = int(abs(circuit - model).argmax())
        place = (model[worst], circuit[worst])
        ax.annotate(str(self.data["set"].values[worst]), place, (6, -9), textcoords="offset points", fontsize="x-small")
        ax.set_xlabel("metric of the model without the parts")
        ax.set_ylabel("metric of the circuit without them")
        ax.set_title(f"completeness: worst difference {float(self.data['difference'].max()):.3g}")
        return ax


def completeness(
    model: Model,
    task: Task,
    circuit: CircuitGraph,
    *,
    sets: Sets = "random",
    n: int = 20,
    probability: float = 0.5,
    seed: int = 0,
    metric: str | Metric | None = None,
    ablation: str = "resample",
    reference: Any = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Knockouts:
    """Whether circuit and model lose the same when the same parts of the circuit are ablated.

    A part is ablated by ablating every edge that leaves it.

    Args:
        model, task, circuit, metric, ablation, reference, batch_size: as in `evaluate_circuit`.
        sets: "random" (each part with the same probability); "greedy" (from nothing, always the part that moves circuit
            and model furthest apart); or sets of names of parts (by name, such as classes of heads).
        n: number of random sets, or most steps of the greedy search.
        probability: of a part to be in a random set, above 0 and below 1.
        seed: of the random sets.
        progress: show a progress bar.

    Returns:
        Knockouts over `set`: `difference` |F(C without K) - F(M without K)|, `m_circuit` and `m_model` (the two
        metrics), `size` and `parts` of K. The first set is the empty one, whose difference is that of faithfulness;
        then the sets asked for, or one for each step of the greedy search. `worst`: the largest difference.

    Raises:
        InputError: as `evaluate_circuit`; the circuit has no head or MLP; n is below 1.
        UnknownNameError: there is no such way, or a set names what is not in the circuit.

    Source: Wang et al., 2022, section 4.2.
    """
    if n < 1 or not 0 < probability < 1:
        raise InputError(f"n must be at least 1 and probability between 0 and 1, not {n} and {probability}")
    wiring, full, none = judged(model, task, circuit, metric, ablation, reference, batch_size)
    parts = _parts(circuit)
    pair = _Pair(wiring, circuit.kept)
    names: dict[str, frozenset[str]] = {"nothing": frozenset()}
    if isinstance(sets, str) and sets == "greedy":
        names |= _greedy(pair, parts, n, progress)
    elif isinstance(sets, str) and sets == "random":
        names |= _random(parts, n, probability, seed)
    else:
        names |= _given(sets, parts)
    values = pair.metrics(list(names.values()))
    difference = (values[0] - values[1]).abs()
    data: dict[str, Any] = {"difference": ("set", difference.numpy())}
    data |= {
        "m_circuit": ("set", values[0].numpy()),
        "m_model": ("set", values[1].numpy()),
        "size": ("set", [len(k) for k in names.values()]),
    }
    data["parts"] = ("set", [_label(k) for k in names.values()])
    data |= {"worst": ((), float(difference.max())), "m_full": ((), full), "m_empty": ((), none)}
    found = xr.Dataset(data, coords={"set": list(names)})
    made = origin(wiring, circuit, sets=_written(sets, names), n=n, probability=probability, seed=seed)
    return Knockouts(found, "completeness", "activation-patching-guide", made)


def minimality(
    model: Model,
    task: Task,
    circuit: CircuitGraph,
    *,
    sets: Sets = "random",
    n: int = 10,
    probability: float = 0.5,
    seed: int = 0,
    metric: str | Metric | None = None,
    ablation: str = "resample",
    reference: Any = None,
    batch_size: int | None = None,
) -> Result:
    """How much each part of the circuit changes the metric beyond what is taken away already.

    Args:
        model, task, circuit, metric, ablation, reference, batch_size: as in `evaluate_circuit`.
        sets: "random" (each part with the same probability), or sets of names of parts; beside the empty set.
        n: number of random sets.
        probability: of a part to be in a random set, above 0 and below 1.
        seed: of the random sets.

    Returns:
        Result over `node`, the heads and MLPs of the circuit: `score`, the largest over sets K of
        |F(C without K and the part) - F(C without K)| / |F(M)|; `alone`, that of the empty set; `best`, the set of the
        largest. A part that scores near 0 need not be there.

    Raises:
        InputError, UnknownNameError: as `completeness`; the metric of the model is 0.

    Source: Wang et al., 2022, section 4.3.
    """
    if n < 1 or not 0 < probability < 1:
        raise InputError(f"n must be at least 1 and probability between 0 and 1, not {n} and {probability}")
    wiring, full, none = judged(model, task, circuit, metric, ablation, reference, batch_size)
    if full == 0:
        raise InputError("the mean metric of the model is 0, and minimality is measured in parts of it")
    parts = _parts(circuit)
    if isinstance(sets, str):
        if sets != "random":
            raise UnknownNameError(unknown("way to choose sets", sets, ("random",)))
        given = _random(parts, n, probability, seed)
    else:
        given = _given(sets, parts)
    names = {"nothing": frozenset(), **given}
    pair = _Pair(wiring, circuit.kept)
    every = list({one: None for k in names.values() for v in parts for one in (k - {v}, k | {v})})
    value = dict(zip(every, pair.metrics(every, both=False)[0].tolist(), strict=True))
    change = torch.tensor([[abs(value[k | {v}] - value[k - {v}]) / abs(full) for k in names.values()] for v in parts])
    data = {
        "score": ("node", change.amax(1).numpy()),
        "alone": ("node", change[:, 0].numpy()),
        "best": ("node", [list(names)[i] for i in change.argmax(1).tolist()]),
        "m_full": ((), full),
        "m_empty": ((), none),
    }
    hints = {
        "plot": {"kind": "bar", "variables": ["score", "alone"], "ylabel": "change of the metric / that of the model"}
    }
    found = xr.Dataset(data, coords={"node": parts}, attrs=hints)
    made = origin(wiring, circuit, sets=_written(sets, names), n=n, probability=probability, seed=seed)
    return Result(found, "minimality", "activation-patching-guide", made)


class _Pair:
    """A circuit and its model, both without some parts."""

    def __init__(self, wiring: Wiring, kept: Tensor) -> None:
        self.wiring, self.kept = wiring, kept
        layout: Layout = wiring.layout
        number = {s.name: i for i, s in enumerate(layout.senders)}
        self.leaves = {name: layout.pairs[:, 0] == i for name, i in number.items()}

    def metrics(self, sets: Sequence[Iterable[str]], both: bool = True) -> Tensor:
        """(2, set) mean metric of the circuit and of the model without each set; the circuit's alone if not `both`."""
        without = torch.stack([self._left(names) for names in sets])
        masks = [self.kept & without, without] if both else [self.kept & without]
        return self.wiring.run(torch.cat(masks)).mean(1).view(len(masks), -1)

    def _left(self, names: Iterable[str]) -> Tensor:
        out = torch.ones_like(self.kept)
        for name in names:
            out &= ~self.leaves[name]
        return out


def _parts(circuit: CircuitGraph) -> list[str]:
    parts = [name for name in circuit.nodes if name not in ("input", "logits")]
    if not parts:
        raise InputError("the circuit holds no head and no MLP that could be taken away")
    return parts


def _written(sets: Sets, names: Mapping[str, frozenset[str]]) -> Any:
    """The choice of sets as a provenance keeps it."""
    return sets if isinstance(sets, str) else {name: sorted(parts) for name, parts in names.items()}


def _label(names: Iterable[str]) -> str:
    return " ".join(sorted(names)) or "nothing"


def _random(parts: Sequence[str], n: int, probability: float, seed: int) -> dict[str, frozenset[str]]:
    random = torch.Generator().manual_seed(seed)
    draws = (torch.rand(n, len(parts), generator=random) < probability).tolist()
    return {
        f"random {i}": frozenset(p for p, yes in zip(parts, draw, strict=True) if yes)
        for i, draw in enumerate(draws, 1)
    }


def _given(sets: Any, parts: Sequence[str]) -> dict[str, frozenset[str]]:
    if isinstance(sets, str):
        raise UnknownNameError(unknown("way to choose sets", sets, WAYS))
    pairs = sets.items() if isinstance(sets, Mapping) else ((None, each) for each in sets)
    out = {}
    for name, each in pairs:
        chosen = frozenset([each] if isinstance(each, str) else each)
        for part in sorted(chosen - set(parts)):
            raise UnknownNameError(unknown("part of the circuit", str(part), parts))
        out[_label(chosen) if name is None else str(name)] = chosen
    if not out:
        raise InputError("no set of parts given")
    return out


def _greedy(pair: _Pair, parts: Sequence[str], n: int, progress: bool) -> dict[str, frozenset[str]]:
    """The sets of a greedy search for the largest difference, while it grows; each is named for what it adds."""
    chosen: frozenset[str] = frozenset()
    start = pair.metrics([chosen])
    best = float((start[0] - start[1]).abs())
    out: dict[str, frozenset[str]] = {}
    with Progress(transient=True, disable=not progress) as bar:
        for _ in bar.track(range(min(n, len(parts))), description="completeness"):
            new = [p for p in parts if p not in chosen]
            values = pair.metrics([chosen | {p} for p in new])
            difference = (values[0] - values[1]).abs()
            at = int(difference.argmax())
            if float(difference[at]) <= best:
                break
            chosen, best = chosen | {new[at]}, float(difference[at])
            out[f"+ {new[at]}"] = chosen
    return out
