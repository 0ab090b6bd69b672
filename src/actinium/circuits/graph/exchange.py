"""Graphs in the formats of others: networkx, the data of a page, and the JSON of EAP-IG and of the MIB benchmark."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actinium.circuits.graph.layout import Layout, Receiver
from actinium.core.errors import InputError, LoadError

if TYPE_CHECKING:
    from actinium.circuits.graph.circuit import CircuitGraph

__all__ = ["networkx_graph", "page_data", "read_benchmark", "write_benchmark"]

FORMAT = "actinium-circuit/1"
# A number that JSON can hold and that ranks where infinity does.
LARGEST = float(torch.finfo(torch.float32).max)


def _targets(layout: Layout, receiver: Receiver) -> list[str]:
    """The parts that an input belongs to: one, or the heads that share keys and values."""
    if receiver.kind not in ("k", "v") or receiver.head is None:
        return [receiver.node]
    group = layout.n_heads // layout.kv_heads
    return [f"a{receiver.layer}.h{receiver.head * group + i}" for i in range(group)]


def _kept(circuit: CircuitGraph, everything: bool = False) -> Iterator[tuple[str, str, Receiver, float, bool]]:
    """Name, sender, receiver, score and choice of each edge that is kept."""
    layout = circuit.layout
    rows = zip(layout.edges, layout.pairs.tolist(), circuit.scores.tolist(), circuit.kept.tolist(), strict=True)
    for name, (s, r), score, kept in rows:
        if kept or everything:
            yield name, layout.senders[s].name, layout.receivers[r], score, kept


def networkx_graph(circuit: CircuitGraph, level: str) -> Any:
    """The kept edges between parts ("part", "node") or with inputs as nodes ("input")."""
    import networkx as nx

    layout, there = circuit.layout, set(circuit.nodes)
    graph = nx.MultiDiGraph() if level == "part" else nx.DiGraph()
    for s in layout.senders:
        if s.name in there:
            graph.add_node(s.name, kind=s.kind, layer=s.layer, head=s.head)
    if "logits" in there:
        graph.add_node("logits", kind="logits", layer=layout.n_layers, head=None)
    for name, sender, receiver, score, _ in _kept(circuit):
        if level == "input":
            kind = "input of a head" if receiver.kind in "qkv" else receiver.kind
            graph.add_node(receiver.name, kind=kind, layer=receiver.layer, head=receiver.head)
            graph.add_edge(sender, receiver.name, score=score, name=name)
            if receiver.kind in "qkv":
                graph.add_edges_from((receiver.name, t) for t in _targets(layout, receiver) if t in there)
            continue
        for target in _targets(layout, receiver):
            if target not in there:
                continue
            if level == "part":
                graph.add_edge(sender, target, key=receiver.kind, score=score, name=name)
            elif graph.has_edge(sender, target):
                graph[sender][target]["score"] += score
                graph[sender][target]["inputs"] += receiver.kind
            else:
                graph.add_edge(sender, target, score=score, inputs=receiver.kind)
    return graph


def page_data(circuit: CircuitGraph, everything: bool) -> dict[str, Any]:
    """Nodes and edges as plain values; the keys are those of `CircuitGraph.json`."""
    layout, there = circuit.layout, set(circuit.nodes)
    top = 2 * layout.n_layers + 1
    nodes = []
    for s in layout.senders:
        x = 0.5 if s.head is None else (s.head + 1) / (layout.n_heads + 1)
        y = 0 if s.kind == "input" else 2 * s.layer + (1 if s.kind == "head" else 2)
        nodes.append({"id": s.name, "kind": s.kind, "layer": s.layer, "head": s.head, "x": x, "y": y / top})
    nodes.append({"id": "logits", "kind": "logits", "layer": layout.n_layers, "head": None, "x": 0.5, "y": 1.0})
    edges = [
        {
            "id": name,
            "source": sender,
            "target": target,
            "input": receiver.kind,
            "score": score if math.isfinite(score) else None,
            "kept": kept,
        }
        for name, sender, receiver, score, kept in _kept(circuit, everything)
        for target in _targets(layout, receiver)
    ]
    names = ("n_layers", "n_heads", "kv_heads", "parallel")
    return {
        "format": FORMAT,
        "method": circuit.method,
        "paper": circuit.paper,
        "layout": dict(zip(names, layout.sizes, strict=True)),
        "nodes": [node | {"kept": node["id"] in there} for node in nodes],
        "edges": edges,
    }


def write_benchmark(circuit: CircuitGraph, path: str | os.PathLike[str], d_model: int) -> Path:
    """Write what `eap.graph.Graph.from_json` reads."""
    path, layout, there = Path(path), circuit.layout, set(circuit.nodes)
    cfg = {
        "n_layers": layout.n_layers,
        "n_heads": layout.n_heads,
        "parallel_attn_mlp": layout.parallel,
        "d_model": d_model,
    }
    nodes = {s.name: {"in_graph": s.name in there} for s in layout.senders} | {"logits": {"in_graph": True}}
    edges = {}
    for _, sender, receiver, score, kept in _kept(circuit, True):
        for target in _targets(layout, receiver):
            name = f"{sender}->{target}" + (f"<{receiver.kind}>" if receiver.kind in "qkv" else "")
            edges[name] = {"score": max(min(score, LARGEST), -LARGEST), "in_graph": kept}
    try:
        path.write_text(json.dumps({"cfg": cfg, "nodes": nodes, "edges": edges}), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    return path


def read_benchmark(path: str | os.PathLike[str]) -> tuple[Layout, Tensor, Tensor]:
    """Layout, scores (edge,) and choice (edge,) of a file that `eap.graph.Graph.to_json` wrote."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        cfg = found["cfg"]
        layout = Layout(cfg["n_layers"], cfg["n_heads"], parallel=bool(cfg["parallel_attn_mlp"]))
        edges = found["edges"]
        strange = set(edges) - set(layout.index)
        if strange:
            raise LoadError(f"{path}: {min(strange)!r} is no edge of {layout}")
        missing = [name for name in layout.edges if name not in edges]
        if missing:
            raise LoadError(f"{path}: the edge {missing[0]!r} is missing")
        # A file with several circuits instead of scores has the choice only.
        scores = torch.tensor([float(edges[n].get("score", edges[n]["in_graph"])) for n in layout.edges])
        kept = torch.tensor([bool(edges[n]["in_graph"]) for n in layout.edges])
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"{path} is no graph of EAP-IG in JSON: {type(error).__name__} {error}") from error
    return layout, scores, kept
