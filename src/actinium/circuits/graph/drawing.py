"""The drawing of a circuit: rows of parts from the input up to the logits, with edges between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from actinium.circuits.graph.exchange import networkx_graph
from actinium.core.errors import InputError

if TYPE_CHECKING:
    from actinium.circuits.graph.circuit import CircuitGraph

__all__ = ["axes_of", "draw"]

# Colours that people with any colour vision tell apart.
COLOURS = {"q": "#0072B2", "k": "#E69F00", "v": "#009E73", "mlp": "#7F7F7F", "logits": "#7F7F7F"}
NAMES = {"q": "query", "k": "key", "v": "value", "mlp": "MLP, logits"}
FILL = {"input": "#EEEEEE", "head": "#DCEBF7", "mlp": "#FBE8D3", "logits": "#EEEEEE"}
THIN, WIDE = 0.5, 4.5


def axes_of(ax: Any, size: tuple[float, float]) -> Any:
    """The Axes given, or those of a new figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots() if ax is None else ax


def _places(graph: Any) -> dict[str, tuple[float, float]]:
    """(x, y) of each node: a row for the heads and one for the MLP of a layer, rows without a node left out."""
    row = {
        name: -1.0 if d["kind"] == "input" else 2.0 * d["layer"] + (d["kind"] == "mlp")
        for name, d in graph.nodes(data=True)
    }
    heights = {value: i for i, value in enumerate(sorted(set(row.values())))}
    rows: dict[int, list[str]] = {}
    for name, value in row.items():
        rows.setdefault(heights[value], []).append(name)
    x = {name: i - (len(names) - 1) / 2 for names in rows.values() for i, name in enumerate(names)}
    for names in (rows[height] for height in sorted(rows)):
        # Heads stand above what they read, so that fewer lines cross.
        centre = {n: np.mean([x[s] for s in graph.predecessors(n)] or [x[n]]) for n in names}
        for i, name in enumerate(sorted(names, key=lambda n: (centre[n], x[n]))):
            # Rows are shifted against each other: a line between two rows does not run through the row between them.
            x[name] = i - (len(names) - 1) / 2 + 0.18 * (-1) ** heights[row[name]]
    return {name: (x[name], float(heights[row[name]])) for name in row}


def draw(circuit: CircuitGraph, ax: Any, limit: int) -> Any:
    """Draw the `limit` strongest kept edges; see `CircuitGraph.plot`.

    Raises:
        InputError: no edge is kept.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyArrowPatch

    if not circuit.n_kept:
        raise InputError("the circuit keeps no edge, so there is nothing to draw")
    shown = circuit
    if circuit.n_kept > limit:
        size = circuit.scores.abs().where(circuit.kept, circuit.scores.new_tensor(-1.0))
        chosen = size.sort(descending=True, stable=True).indices[: max(limit, 1)]
        kept = circuit.kept.new_zeros(circuit.layout.n_edges)
        kept[chosen] = True
        shown = circuit.with_kept(kept)
    graph = networkx_graph(shown, "part")
    places = _places(graph)
    xs, ys = np.array(list(places.values())).T
    ax = axes_of(ax, (max(6.0, float(np.ptp(xs)) + 2.5), max(4.0, 0.75 * float(np.ptp(ys)) + 1.5)))
    finite = [abs(d["score"]) for *_, d in graph.edges(data=True) if np.isfinite(d["score"])]
    largest = max(finite, default=0.0) or 1.0
    for source, target, kind, d in sorted(graph.edges(keys=True, data=True), key=lambda e: abs(e[3]["score"])):
        share = min(abs(d["score"]) / largest, 1.0)
        bend = {"q": 0.10, "k": 0.0, "v": -0.10}.get(kind, 0.05)
        style = {"color": COLOURS[kind], "linewidth": THIN + (WIDE - THIN) * share, "alpha": 0.35 + 0.6 * share}
        arrow = FancyArrowPatch(
            places[source], places[target], arrowstyle="-|>", mutation_scale=7, shrinkA=11, shrinkB=11, **style
        )
        arrow.set_connectionstyle("arc3", rad=bend)
        ax.add_patch(arrow)
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.3", "facecolor": FILL[graph.nodes[name]["kind"]], "edgecolor": "#444444"}
        ax.text(x, y, name, ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    kinds = [
        k for k in NAMES if any(key == k or (k == "mlp" and key == "logits") for *_, key in graph.edges(keys=True))
    ]
    lines = [Line2D([], [], color=COLOURS[k], linewidth=2.5, label=NAMES[k]) for k in kinds]
    ax.legend(
        handles=lines, title="edge into", fontsize="small", title_fontsize="small", loc="upper left", frameon=False
    )
    ax.set_xlim(xs.min() - 1.4, xs.max() + 0.8)
    ax.set_ylim(ys.min() - 0.6, ys.max() + 0.6)
    ax.set_axis_off()
    ax.set_title(_heading(circuit, shown.n_kept), fontsize="medium")
    return ax


def _heading(circuit: CircuitGraph, drawn: int) -> str:
    few = f"the strongest {drawn} of " if drawn < circuit.n_kept else ""
    return f"{circuit.method}: {few}{circuit.n_kept:,} of {circuit.layout.n_edges:,} edges"
