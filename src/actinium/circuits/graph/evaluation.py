"""How faithful a circuit is: the model run with every other edge ablated, at one size and over sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.graph.circuit import CircuitGraph, task_provenance
from actinium.circuits.graph.drawing import axes_of
from actinium.circuits.graph.layout import Layout
from actinium.circuits.graph.wiring import Wiring
from actinium.circuits.patching.contrast import Metric, sign_of
from actinium.circuits.patching.effects import gap_is_nothing
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.core.task import Task

__all__ = ["FRACTIONS", "CircuitCurve", "circuit_curve", "evaluate_circuit", "judged", "origin"]

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges at which the mechanistic-interpretability benchmark looks."""
WAYS = ("top", "greedy")


def judged(
    model: Model,
    task: Task,
    circuit: CircuitGraph,
    metric: str | Metric | None,
    ablation: str,
    reference: Any,
    batch_size: int | None,
) -> tuple[Wiring, float, float]:
    """The wiring that a circuit is judged on, and the mean metric with all edges and with none.

    Raises:
        InputError: the circuit is one of another model, or the metric does not tell all edges from none.
    """
    if not isinstance(circuit, CircuitGraph):
        raise InputError(f"expected a CircuitGraph, not {type(circuit).__name__}")
    layout = Layout.of(model)
    if circuit.layout != layout:
        raise InputError(f"the circuit is one of {circuit.layout!r}, and {model.name} has {layout!r}")
    wiring = Wiring(model, task, metric=metric, ablation=ablation, reference=reference, batch_size=batch_size)
    none = wiring.run(torch.zeros(layout.n_edges))[0]
    if gap_is_nothing(wiring.clean, none):
        raise InputError(
            f"the mean metric is {float(wiring.clean.mean()):.4g} with all edges and {float(none.mean()):.4g} with "
            "none, so there is nothing to be faithful to; try another metric or ablation"
        )
    return wiring, float(wiring.clean.mean()), float(none.mean())


def origin(wiring: Wiring, circuit: CircuitGraph, **settings: Any) -> dict[str, Any]:
    """Provenance of what is measured about a circuit."""
    about = {"metric": wiring.metric, "ablation": wiring.ablation, "reference": wiring.reference}
    about |= {"circuit": circuit.method, "kept": circuit.kept, "scores": circuit.scores}
    return task_provenance(wiring.model, wiring.task, **about, **settings)


def evaluate_circuit(
    model: Model,
    task: Task,
    circuit: CircuitGraph,
    *,
    metric: str | Metric | None = None,
    ablation: str = "resample",
    reference: Any = None,
    batch_size: int | None = None,
) -> Result:
    """The metric with only the circuit's edges kept, beside that with all and with none.

    Args:
        model: a pre-norm decoder.
        task: prompt pairs.
        circuit: its kept edges; they are not pruned.
        metric, ablation, reference, batch_size: as in `Wiring`.

    Returns:
        Result: `faithfulness` (m_circuit - m_empty) / (m_full - m_empty), with means over the prompts; `m_circuit`,
        `m_full`, `m_empty`; `gap` |m_full - m_circuit|; `n_edges` kept and their share of all, `edge_share`; and by row
        `circuit_by_row`, `full_by_row`.

    Raises:
        InputError: the circuit is one of another model; the metric does not tell all edges from none; as `Wiring`.

    Source: Wang et al., 2022, section 4.1 (faithfulness); Heimersheim and Nanda, 2024; Hanna et al., 2024.
    """
    wiring, full, none = judged(model, task, circuit, metric, ablation, reference, batch_size)
    rows = wiring.run(circuit.kept)[0]
    value = float(rows.mean())
    data: dict[str, Any] = {
        "faithfulness": ((), (value - none) / (full - none)),
        "m_circuit": ((), value),
        "m_full": ((), full),
        "m_empty": ((), none),
        "gap": ((), abs(full - value)),
        "n_edges": ((), circuit.n_kept),
        "edge_share": ((), circuit.n_kept / circuit.layout.n_edges),
        "circuit_by_row": (("row",), rows.numpy()),
        "full_by_row": (("row",), wiring.clean.numpy()),
    }
    hints = {"plot": {"variables": ["m_full", "m_circuit", "m_empty"]}}
    found = xr.Dataset(data, attrs=hints)
    return Result(found, "evaluate_circuit", "activation-patching-guide", origin(wiring, circuit))


class CircuitCurve(Result):
    """Faithfulness over circuit sizes, with the areas `cpr` and `cmd`."""

    def plot(self, ax: Any = None, variable: str | None = None) -> Any:
        """Draw faithfulness over the share of edges, on a logarithmic axis."""
        if variable is not None:
            return super().plot(ax, variable)
        ax = axes_of(ax, (6.4, 4.0))
        shares = self.data["fraction"].values
        ax.plot(shares, self.data["faithfulness"].values, marker="o", markersize=4)
        for level in (0.0, 1.0):
            ax.axhline(level, color="#999999", linewidth=0.8, linestyle="--")
        ax.set_xscale("log")
        ax.set_xlabel("share of the edges kept")
        ax.set_ylabel("faithfulness")
        cpr, cmd = (float(self.data[name]) for name in ("cpr", "cmd"))
        ax.set_title(f"{self.data.attrs['circuit']}: CPR {cpr:.3g}, CMD {cmd:.3g}")
        return ax


def circuit_curve(
    model: Model,
    task: Task,
    circuit: CircuitGraph,
    *,
    fractions: Sequence[float] = FRACTIONS,
    select: str = "top",
    helpful: bool = False,
    prune: bool = True,
    metric: str | Metric | None = None,
    ablation: str = "resample",
    reference: Any = None,
    batch_size: int | None = None,
) -> CircuitCurve:
    """Faithfulness of the circuits that keep the best edges by score, from few to all.

    Args:
        model, task, metric, ablation, reference, batch_size: as in `evaluate_circuit`.
        circuit: its scores; what it keeps does not matter.
        fractions: shares of all edges, rising, above 0 and at most 1; numbers of edges are rounded down.
        select: "top" or "greedy" (from the logits).
        helpful: rank by how much the loss of an edge would worsen the metric instead of by |score|; the scores must
            estimate m(edge ablated) - m(full), as those of `edge_attribution` do. CPR is meant for it.
        prune: drop edges on no path from the input to the logits.

    Returns:
        CircuitCurve over `fraction`: `faithfulness`, `n_edges` (after pruning) and `m_circuit`; and the areas by
        trapezoids over the fractions, `cpr` of faithfulness (higher is better) and `cmd` of its distance from 1 (0 is
        best).

    Raises:
        InputError: as `evaluate_circuit`; the fractions are not rising or not above 0 and at most 1.
        UnknownNameError: there is no such way to select.

    Source: Mueller et al., 2025, section 3.2 (CPR and CMD); their code for the points and the trapezoids.
    """
    shares = [float(f) for f in fractions]
    if len(shares) < 2 or shares != sorted(set(shares)) or not 0 < shares[0] < shares[-1] <= 1:
        raise InputError("fractions are two or more rising numbers above 0 and at most 1")
    if select not in WAYS:
        raise UnknownNameError(unknown("way to select", str(select), WAYS))
    wiring, full, none = judged(model, task, circuit, metric, ablation, reference, batch_size)
    ranked = circuit
    if helpful:
        ranked = CircuitGraph(circuit.layout, -sign_of(wiring.metric) * circuit.scores, method=circuit.method)
    chosen = [_chosen(ranked, int(share * circuit.layout.n_edges), select, not helpful, prune) for share in shares]
    values = wiring.run(torch.stack(chosen)).mean(1)
    f = (values - none) / (full - none)
    data: dict[str, Any] = {
        "faithfulness": ("fraction", f.numpy()),
        "n_edges": ("fraction", torch.stack(chosen).sum(1).numpy()),
        "m_circuit": ("fraction", values.numpy()),
        "cpr": ((), _area(shares, f)),
        "cmd": ((), _area(shares, (1 - f).abs())),
        "m_full": ((), full),
        "m_empty": ((), none),
    }
    about = {"select": select, "helpful": helpful, "prune": prune}
    found = xr.Dataset(data, coords={"fraction": shares}, attrs={"circuit": circuit.method, **about})
    made = origin(wiring, circuit, fractions=shares, **about)
    return CircuitCurve(found, "circuit_curve", "activation-patching-guide", made)


def _chosen(circuit: CircuitGraph, n: int, select: str, absolute: bool, prune: bool) -> Tensor:
    found = circuit.top(n, absolute) if select == "top" else circuit.greedy(n, absolute)
    return found.prune().kept if prune else found.kept


def _area(x: Sequence[float], y: Tensor) -> float:
    return math.fsum((b - a) * (u + v) / 2 for a, b, u, v in zip(x, x[1:], y.tolist(), y[1:].tolist(), strict=False))
