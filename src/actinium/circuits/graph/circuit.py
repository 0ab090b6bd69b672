"""A circuit: the edges of a transformer with a score each, and which of them are kept."""

from __future__ import annotations

import heapq
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.graph.layout import Layout
from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.task import Task

__all__ = ["CircuitGraph", "belongs", "pruned", "task_provenance"]

LEVELS = ("part", "input", "node")


@cache
def belongs(layout: Layout) -> Tensor:
    """(sender, receiver) bool: the receiver is an input of the sender's own part; shared keys and values of all."""
    group = layout.n_heads // layout.kv_heads

    def own(sender: Any, receiver: Any) -> bool:
        if sender.layer != receiver.layer or sender.kind == "input":
            return False
        if sender.kind == "mlp" or receiver.kind == "mlp":
            return sender.kind == receiver.kind
        head = sender.head if receiver.kind == "q" else sender.head // group
        return receiver.kind in "qkv" and receiver.head == head

    return torch.tensor([[own(s, r) for r in layout.receivers] for s in layout.senders])


def task_provenance(model: Model, task: Task, **settings: Any) -> dict[str, Any]:
    """The record of what was run on a task's prompts; see `actinium.core.provenance`."""
    inputs = {"clean": task.clean_ids, "corrupt": task.corrupt_ids, "mask": task.mask}
    inputs |= {"answers": task.answer_ids, "wrong": task.wrong_ids}
    return provenance(model, inputs, **settings)


def pruned(layout: Layout, kept: Tensor) -> Tensor:
    """(edge,) bool: the edges of `kept` that lie on a path from the input to the logits.

    Source: Conmy et al., 2023, appendix; Hanna et al., 2024 (prune).
    """
    matrix, own = layout.matrix(kept, False), belongs(layout)
    while True:
        fed = (own & matrix.any(0)).any(1)
        fed[0] = True
        alive = fed & matrix.any(1)
        reads = (own & alive[:, None]).any(0)
        reads[-1] = True
        smaller = matrix & alive[:, None] & reads
        if torch.equal(smaller, matrix):
            return layout.vector(matrix)
        matrix = smaller


class CircuitGraph(Result):
    """Scores of the edges and which are kept; draws, tabulates, saves and exports itself.

    Variables over `edge` are `score`, `kept` and what a method adds. `data` has the coordinates `sender` and
    `receiver`.

    Args:
        layout: the edges.
        scores: (edge,) or (sender, receiver); what they mean is the method's affair. Infinite ones rank first.
        kept: (edge,) or (sender, receiver) bool; every edge by default.
        method: name of what made it.
        paper: slug of the paper.
        provenance: see `actinium.core.provenance`.
        more: further variables by name: (edge,) values, or arrays with dimensions of their own.

    Raises:
        InputError: sizes do not fit the layout, or a score is NaN.
    """

    def __init__(
        self,
        layout: Layout,
        scores: Any,
        kept: Any = None,
        *,
        method: str,
        paper: str | None = None,
        provenance: dict[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self.layout = layout
        score = _edges(layout, scores, "scores").double()
        if bool(score.isnan().any()):
            raise InputError(f"the score of {layout.edges[int(score.isnan().int().argmax())]} is NaN")
        chosen = torch.ones(layout.n_edges, dtype=torch.bool) if kept is None else _edges(layout, kept, "kept").bool()
        data: dict[str, Any] = {"score": ("edge", score.numpy()), "kept": ("edge", chosen.numpy())}
        for name, value in (more or {}).items():
            data[name] = value if isinstance(value, xr.DataArray) else ("edge", _edges(layout, value, name).numpy())
        ends = layout.pairs.T.tolist()
        coords = {
            "edge": list(layout.edges),
            "sender": ("edge", [layout.senders[s].name for s in ends[0]]),
            "receiver": ("edge", [layout.receivers[r].name for r in ends[1]]),
        }
        attrs = {"layout": list(layout.sizes)}
        super().__init__(xr.Dataset(data, coords=coords, attrs=attrs), method, paper, provenance or {})

    # What it holds --------------------------------------------------------------------------------------------

    @property
    def scores(self) -> Tensor:
        """(edge,) float64."""
        return torch.from_numpy(self.data["score"].values.copy())

    @property
    def kept(self) -> Tensor:
        """(edge,) bool."""
        return torch.from_numpy(self.data["kept"].values.copy())

    @property
    def n_kept(self) -> int:
        """Number of kept edges."""
        return int(self.data["kept"].sum())

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the kept edges."""
        return tuple(np.asarray(self.layout.edges, dtype=object)[self.data["kept"].values])

    @property
    def nodes(self) -> tuple[str, ...]:
        """Parts with a kept edge, in the order of computation.

        A head is there if an edge leaves it or enters an input that is its alone: keys and values that several heads
        share do not bring those in.
        """
        matrix, own = self.layout.matrix(self.kept, False), belongs(self.layout)
        alone = own & (own.sum(0) == 1)
        there = matrix.any(1) | (alone & matrix.any(0)).any(1)
        names = [s.name for s, yes in zip(self.layout.senders, there.tolist(), strict=True) if yes]
        return (*names, "logits") if bool(matrix[:, -1].any()) else tuple(names)

    def __repr__(self) -> str:
        return f"CircuitGraph({self.method}; {self.n_kept:,} of {self.layout.n_edges:,} edges, {len(self.nodes)} nodes)"

    def matrix(self, variable: str = "score") -> xr.DataArray:
        """A variable of the edges over (sender, receiver); NaN where there is no edge."""
        values = torch.as_tensor(self[variable].values).double()
        coords = {
            "sender": [s.name for s in self.layout.senders],
            "receiver": [r.name for r in self.layout.receivers],
        }
        full = self.layout.matrix(values, float("nan")).numpy()
        return xr.DataArray(full, coords=coords, dims=("sender", "receiver"), name=variable)

    def nodes_only(self) -> Result:
        """Scores and choice of whole parts.

        The score of a part is the smaller of its largest |score| of an edge in and of an edge out (the input and the
        logits have one side only): the threshold below which it has both. Parts are kept as in `nodes`.

        Returns:
            Result: `score` and `kept` over `node`.
        """
        size, own = self.layout.matrix(self.scores.abs(), 0.0), belongs(self.layout)
        out, into = size.amax(1), torch.where(own, size.amax(0), 0.0).amax(1)
        into[0] = torch.inf
        score = torch.cat([torch.minimum(out, into), size[:, -1].amax().reshape(1)])
        names = [*(s.name for s in self.layout.senders), "logits"]
        there = set(self.nodes)
        data = {"score": ("node", score.numpy()), "kept": ("node", [n in there for n in names])}
        hints = {"plot": {"kind": "bar", "variables": ["score"], "ylabel": "score"}}
        found = xr.Dataset(data, coords={"node": names}, attrs=hints)
        return Result(found, f"{self.method}, nodes", self.paper, self.provenance)

    # Choosing edges -------------------------------------------------------------------------------------------

    def with_kept(self, kept: Any) -> Self:
        """The same scores with other edges kept: (edge,) or (sender, receiver) bool, or names of edges."""
        if not isinstance(kept, Tensor | np.ndarray):
            kept = self.layout.mask(kept)
        more = {str(n): v for n, v in self.data.data_vars.items() if n not in ("score", "kept")}
        more = {n: v.values if v.dims == ("edge",) else v for n, v in more.items()}
        about = {"method": self.method, "paper": self.paper, "provenance": self.provenance, "more": more}
        return type(self)(self.layout, self.scores, kept, **about)

    def top(self, n: int, absolute: bool = True) -> Self:
        """Keep the n edges of the largest |score| (or score); of equal ones those that are computed first."""
        kept = torch.zeros(self.layout.n_edges, dtype=torch.bool)
        kept[self._order(absolute)[: self._checked(n)]] = True
        return self.with_kept(kept)

    def greedy(self, n: int, absolute: bool = True) -> Self:
        """Keep n edges from the logits downwards: always the best one into a part that is in already.

        Source: Hanna et al., 2024, section 3.
        """
        layout, own = self.layout, belongs(self.layout)
        rank = torch.empty(layout.n_edges, dtype=torch.long)
        rank[self._order(absolute)] = torch.arange(layout.n_edges)
        number = layout.matrix(torch.arange(layout.n_edges), -1)
        open_, heap = torch.zeros(len(layout.receivers), dtype=torch.bool), []
        kept = torch.zeros(layout.n_edges, dtype=torch.bool)

        def add(receivers: Tensor) -> None:
            for r in (receivers & ~open_).nonzero().flatten().tolist():
                open_[r] = True
                for e in number[:, r][layout.allowed[:, r]].tolist():
                    heapq.heappush(heap, (int(rank[e]), e))

        logits = torch.zeros_like(open_)
        logits[-1] = True
        add(logits)
        for _ in range(self._checked(n)):
            if not heap:
                break
            _, edge = heapq.heappop(heap)
            kept[edge] = True
            add(own[layout.pairs[edge, 0]])
        return self.with_kept(kept)

    def threshold(self, t: float, absolute: bool = True) -> Self:
        """Keep the edges whose |score| (or score) is at least t."""
        values = self.scores.abs() if absolute else self.scores
        return self.with_kept(values >= t)

    def prune(self) -> Self:
        """Drop, until nothing changes, kept edges of parts that nothing kept reads or that read nothing kept."""
        return self.with_kept(pruned(self.layout, self.kept))

    def _order(self, absolute: bool) -> Tensor:
        values = self.scores.abs() if absolute else self.scores
        return values.sort(descending=True, stable=True).indices

    def _checked(self, n: int) -> int:
        if not 0 <= n <= self.layout.n_edges:
            raise InputError(f"the graph has {self.layout.n_edges:,} edges, so n goes from 0 to that, not {n}")
        return n

    # Showing --------------------------------------------------------------------------------------------------

    def table(self, variable: str | None = None, *, everything: bool = False) -> pd.DataFrame:
        """One row for each kept edge, strongest first.

        Args:
            variable: another one than `score`, as in `Result.table`.
            everything: with the edges that are not kept.

        Raises:
            InputError: no such variable.
        """
        rows = super().table(variable)
        if "edge" not in rows:
            return rows
        if not everything:
            rows = rows[rows["kept"]]
        order = np.argsort(-rows["score"].abs().to_numpy(), kind="stable")
        columns = [c for c in ("edge", "sender", "receiver", "score", "kept") if c in rows]
        return rows.iloc[order][[*columns, *(c for c in rows if c not in columns)]].reset_index(drop=True)

    def plot(self, ax: Any = None, variable: str | None = None, limit: int = 100) -> Any:
        """Draw the kept edges from the input at the bottom to the logits at the top.

        Lines are as wide as |score| and coloured by the input that they enter: query, key, value or other.

        Args:
            ax: matplotlib Axes to draw on; a new one if not given.
            variable: draw this variable over sender and receiver as a heat map instead.
            limit: most edges that are drawn, strongest first.

        Returns:
            the matplotlib Axes.
        """
        from actinium.circuits.graph.drawing import draw

        if variable is None:
            return draw(self, ax, limit)
        if self[variable].dims != ("edge",):
            return super().plot(ax, variable)
        return Result(xr.Dataset({variable: self.matrix(variable)}), self.method).plot(ax)

    def svg(self, path: str | os.PathLike[str], limit: int = 100) -> Path:
        """Write the drawing of `plot` as an SVG file.

        Raises:
            InputError: the file cannot be written.
        """
        path = Path(path)
        try:
            self.plot(limit=limit).figure.savefig(path, format="svg", metadata={"Date": None})
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        return path

    def to_networkx(self, level: str = "part") -> Any:
        """The kept edges as a networkx graph, with `score` on every edge and `kind`, `layer`, `head` on every node.

        Args:
            level: "part" (a MultiDiGraph between parts, keyed by the input entered: q, k, v, mlp, logits; shared keys
                and values lead to each head of their group), "input" (a DiGraph in which queries, keys and values
                are nodes of their own) or "node" (a DiGraph with the scores of a pair of parts added up).

        Raises:
            UnknownNameError: there is no such level.
        """
        from actinium.circuits.graph.exchange import networkx_graph

        if level not in LEVELS:
            raise UnknownNameError(unknown("level", level, LEVELS))
        return networkx_graph(self, level)

    def json(self, everything: bool = False) -> dict[str, Any]:
        """Nodes with their places and edges with their scores as plain values, for a page that draws them.

        Keys: `format` ("actinium-circuit/1"), `method`, `paper`, `layout` (n_layers, n_heads, kv_heads, parallel),
        `nodes` (each `id`, `kind`, `layer`, `head`, `kept`, `x` and `y` from 0 to 1 with the input at y = 0) and
        `edges` (each `id`, `source`, `target`, `input`: q, k, v, mlp or logits, `score`, null where it is infinite, and
        `kept`; one into shared keys or values stands once for each head of the group).

        Args:
            everything: with the edges that are not kept.
        """
        from actinium.circuits.graph.exchange import page_data

        return page_data(self, everything)

    def to_benchmark(self, path: str | os.PathLike[str], d_model: int) -> Path:
        """Write the JSON file that EAP-IG and the mechanistic-interpretability benchmark (MIB) read.

        It names every head's keys and values, so an edge into shared ones is written once for each head.

        Args:
            path: the file.
            d_model: width of the residual stream, which the format notes.

        Raises:
            InputError: the file cannot be written.
        """
        from actinium.circuits.graph.exchange import write_benchmark

        return write_benchmark(self, path, d_model)

    @classmethod
    def from_benchmark(cls, path: str | os.PathLike[str]) -> Self:
        """Read a graph that EAP-IG or the benchmark wrote as JSON; scores of nodes and neurons are not read.

        Raises:
            LoadError: it is no such file.
        """
        from actinium.circuits.graph.exchange import read_benchmark

        layout, scores, kept = read_benchmark(path)
        return cls(layout, scores, kept, method="from_benchmark")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a graph that `save` wrote.

        Raises:
            LoadError: the path holds no saved graph, or it is damaged.
        """
        found = Result.load(path)
        if "layout" not in found.data.attrs or not {"score", "kept"} <= set(found.data):
            raise LoadError(f"{path} holds a result of {found.method}, not a graph")
        more = {str(n): v for n, v in found.data.data_vars.items() if n not in ("score", "kept")}
        more = {n: v.values if v.dims == ("edge",) else v for n, v in more.items()}
        made = {"method": found.method, "paper": found.paper, "provenance": found.provenance, "more": more}
        return cls(Layout(*found.data.attrs["layout"]), found["score"].values, found["kept"].values, **made)


def _edges(layout: Layout, values: Any, what: str) -> Tensor:
    """(edge,) of values given by edge or by sender and receiver."""
    given = torch.as_tensor(values).detach().cpu()
    if given.shape == layout.allowed.shape:
        return layout.vector(given)
    if given.shape != (layout.n_edges,):
        raise InputError(
            f"{what}: expected ({layout.n_edges},) or (sender, receiver) {tuple(layout.allowed.shape)}, "
            f"not {tuple(given.shape)}"
        )
    return given.clone()
