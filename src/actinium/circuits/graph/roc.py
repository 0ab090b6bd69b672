"""How well scores or found circuits tell the edges of a known circuit from the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.graph.circuit import CircuitGraph
from actinium.circuits.graph.drawing import axes_of
from actinium.circuits.graph.layout import Layout
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.result import Result

__all__ = ["CircuitRoc", "circuit_roc"]

LEVELS = ("edge", "node")


class CircuitRoc(Result):
    """Rates of true and false edges (or nodes) over `point`, and the area `auc` under them."""

    def plot(self, ax: Any = None, variable: str | None = None) -> Any:
        """Draw the curve beside the diagonal of chance."""
        if variable is not None:
            return super().plot(ax, variable)
        ax = axes_of(ax, (4.6, 4.2))
        step = {"drawstyle": "steps-post"} if self.data.attrs["staircase"] else {}
        ax.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle="--")
        ax.plot(self.data["fpr"].values, self.data["tpr"].values, marker="o", markersize=3, **step)
        level = self.data.attrs["level"]
        ax.set_xlabel(f"false {level}s found / false {level}s")
        ax.set_ylabel(f"true {level}s found / true {level}s")
        ax.set_title(f"{self.data.attrs['circuit']}: AUC {float(self.data['auc']):.3f}")
        return ax


def circuit_roc(
    found: CircuitGraph | Sequence[CircuitGraph],
    truth: CircuitGraph | Iterable[str],
    *,
    level: str = "edge",
    staircase: bool = False,
    ignore: Iterable[str] = (),
) -> CircuitRoc:
    """Rates of true and of false edges found, from the strictest choice to the laxest.

    Args:
        found: scores, of which each threshold of |score| is a point; or circuits, each a point by what it keeps.
        truth: the known circuit: a graph (what it keeps) or names of edges (of nodes at that level).
        level: "edge" or "node" (heads and MLPs, scored as in `CircuitGraph.nodes_only`).
        staircase: the area under steps through the best points only, each kept until the next is reached, as sets that
            do not contain each other deserve; by default trapezoids.
        ignore: names that count neither as true nor as false.

    Returns:
        CircuitRoc: `fpr` and `tpr` over `point`, from (0, 0) to (1, 1), and `auc`.

    Raises:
        InputError: graphs of several layouts, or a truth that holds everything or nothing.
        UnknownNameError: there is no such level, edge or node.

    Source: Conmy et al., 2023, section 4.2; pessimistic area: their code.
    """
    if level not in LEVELS:
        raise UnknownNameError(unknown("level", str(level), LEVELS))
    graphs = [found] if isinstance(found, CircuitGraph) else list(found)
    if not graphs or any(not isinstance(g, CircuitGraph) or g.layout != graphs[0].layout for g in graphs):
        raise InputError("expected a CircuitGraph, or several of one layout")
    layout = graphs[0].layout
    names = layout.edges if level == "edge" else tuple(s.name for s in layout.senders[1:])
    true = _members(names, _names(truth, layout, level), level)
    counts = ~_members(names, ignore, level)
    positive, negative = int((true & counts).sum()), int((~true & counts).sum())
    if not positive or not negative:
        raise InputError(f"the truth holds {positive} {level}s and lacks {negative}; a curve needs both")
    if isinstance(found, CircuitGraph):
        score = torch.as_tensor(_values(found, level, "score")).abs()
        sets = [score >= t for t in score[counts].unique().flip(0)]
    else:
        sets = [torch.as_tensor(_values(g, level, "kept")) for g in graphs]
    points = {(0, 0), (negative, positive)} | {_hits(s & counts, true) for s in sets}
    false_found, true_found = np.array(sorted(points)).T
    if staircase:
        true_found = np.maximum.accumulate(true_found)
    heights = true_found[:-1] if staircase else (true_found[1:] + true_found[:-1]) / 2
    # From counts, so that a perfect curve has an area of exactly 1.
    auc = float((np.diff(false_found) * heights).sum()) / (positive * negative)
    data = {"fpr": ("point", false_found / negative), "tpr": ("point", true_found / positive), "auc": ((), auc)}
    about = {"level": level, "staircase": staircase, "circuit": graphs[0].method}
    return CircuitRoc(xr.Dataset(data, attrs=about), "circuit_roc", "acdc", graphs[0].provenance)


def _names(truth: Any, layout: Layout, level: str) -> Iterable[str]:
    if not isinstance(truth, CircuitGraph):
        return (name for name in truth if level == "edge" or name not in ("input", "logits"))
    if truth.layout != layout:
        raise InputError(f"the truth is one of {truth.layout!r}, the circuits of {layout!r}")
    return truth.edges if level == "edge" else set(truth.nodes) - {"input", "logits"}


def _members(names: Sequence[str], wanted: Iterable[str], level: str) -> Tensor:
    index = {name: i for i, name in enumerate(names)}
    out = torch.zeros(len(names), dtype=torch.bool)
    for name in wanted:
        if name not in index:
            raise UnknownNameError(unknown(level, str(name), names))
        out[index[name]] = True
    return out


def _values(graph: CircuitGraph, level: str, variable: str) -> np.ndarray:
    if level == "edge":
        return graph[variable].values
    # Without the input, which stands first, and the logits, which stand last.
    return graph.nodes_only()[variable].values[1:-1]


def _hits(chosen: Tensor, true: Tensor) -> tuple[int, int]:
    """Numbers of false and of true ones chosen."""
    hits = int((chosen & true).sum())
    return int(chosen.sum()) - hits, hits
