"""Interactions between the features of neighbouring cuts, and how many features and edges a behaviour needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.subspaces.local_interaction_basis import LocalInteractionBasis, features
from actinium.circuits.subspaces.sections import sections_of
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.result import Result

__all__ = ["InteractionGraph", "edge_ablation", "interaction_graph", "node_ablation"]

RULES = ("gradient", "gauss-legendre", "trapezoid")
Score = Callable[[Tensor], float]


class InteractionGraph:
    """Strengths of the edges between the features of neighbouring cuts.

    Attributes:
        edges: for each section (k', k): from feature j of a cut to feature i of the next.
    """

    def __init__(self, edges: list[Tensor]) -> None:
        self.edges = edges

    def to_networkx(self, constant: bool = False, centered: bool = True) -> nx.DiGraph:
        """Nodes (cut, feature) and edges with their strength as `weight`.

        Args:
            constant: keep the constant's feature.
            centered: the basis keeps the constant first.
        """
        first = 1 if centered and not constant else 0
        graph = nx.DiGraph()
        for cut, strengths in enumerate(self.edges):
            for j in range(first, strengths.shape[1]):
                for i in range(first, strengths.shape[0]):
                    graph.add_edge((cut, j), (cut + 1, i), weight=float(strengths[i, j]))
        return graph

    def modules(self, seed: int = 0, centered: bool = True) -> tuple[list[set[tuple[int, int]]], float]:
        """Communities of features by Louvain's method on the strengths, and their modularity.

        Source: Bushnaq et al., 2024, section 3.5; Blondel et al., 2008.
        """
        graph = self.to_networkx(centered=centered).to_undirected()
        found = nx.community.louvain_communities(graph, weight="weight", seed=seed)
        return found, float(nx.community.modularity(graph, found, weight="weight"))

    def needed(self, share: float, centered: bool = True) -> int:
        """Smallest number of edges that hold a share of the total strength, the constant's left out."""
        if not 0 < share <= 1:
            raise InputError(f"a share lies above 0 and at most at 1, not {share}")
        first = int(centered)
        flat = torch.cat([e[first:, first:].flatten() for e in self.edges]).sort(descending=True).values
        total = flat.cumsum(0)
        return int((total < share * total[-1]).sum()) + 1


def interaction_graph(
    basis: LocalInteractionBasis, network: Any, x: Tensor, *, rule: str = "gauss-legendre", n: int = 5
) -> InteractionGraph:
    """Mean squared integrated gradients of each feature on each feature of the next cut.

    The gradients are integrated along the line from nothing to a sample's features; off it a section runs on the
    projection on the kept features, biases scaled along.

    Args:
        basis: fitted.
        network: the sections that it was fitted on.
        x: activations (n, d) or (n, pos, d) at the first cut.
        rule: "gradient" (at the sample itself), "gauss-legendre" (n + 1 nodes) or "trapezoid" (n + 1 points in
            [eps, 1 - eps], eps = 1e-3 / (n + 1); with n = 0 the middle).
        n: points of the rule.

    Returns:
        InteractionGraph.

    Raises:
        InputError: the basis is not fitted or does not fit the network.
        UnknownNameError: there is no such rule.

    Source: Bushnaq et al., 2024, section 3.4.
    """
    if rule not in RULES:
        raise UnknownNameError(unknown("rule", rule, RULES))
    if n < 0:
        raise InputError(f"a rule has 0 points or more, not {n}")
    sections = sections_of(network)
    if getattr(basis, "n_cuts_", 0) != len(sections) + 1:
        raise InputError(f"the basis has {getattr(basis, 'n_cuts_', 0)} cuts, {len(sections)} sections want one more")
    places, weights = _rule(rule, n)
    found, f = [], x.detach()
    for cut, section in enumerate(sections):
        now = basis.transform(f, cut)
        back, after = basis.C_pinv_[cut].to(now), basis.C_[cut + 1].to(f)
        total: Tensor | None = None
        for place, weight in zip(places, weights, strict=True):
            point = (place * now).requires_grad_()
            with torch.enable_grad():
                out = features(section, (point @ back).to(f), after).double()
            slopes = _by_output(out, point)  # (i, n, t, s, j) with a sum over s to come
            part = weight * torch.einsum("intsj,nsj->intj", slopes, _three(now))
            total = part if total is None else total + part
        assert total is not None
        found.append(total.pow(2).mean((1, 2)).detach())
        with torch.no_grad():
            f = section(f)
    return InteractionGraph(found)


def _three(f: Tensor) -> Tensor:
    """(n, k) as (n, 1, k)."""
    return f[:, None] if f.ndim == 2 else f


def _by_output(out: Tensor, point: Tensor) -> Tensor:
    """(i, n, t, s, j): derivative of feature i at position t with respect to feature j at position s."""
    rows = _three(out)
    slopes = []
    for i in range(rows.shape[-1]):
        each = [
            _three(torch.autograd.grad(rows[:, t, i].sum(), point, retain_graph=True)[0]) for t in range(rows.shape[1])
        ]
        slopes.append(torch.stack(each, 1))
    return torch.stack(slopes)


def _rule(name: str, n: int) -> tuple[list[float], list[float]]:
    """Points in [0, 1] and their weights."""
    if name == "gradient":
        return [1.0], [1.0]
    if name == "gauss-legendre":
        nodes, weights = np.polynomial.legendre.leggauss(n + 1)
        return [float(v) for v in (nodes + 1) / 2], [float(w) for w in weights / 2]
    if n == 0:
        return [0.5], [1.0]
    eps = 1e-3 / (n + 1)
    return [float(v) for v in np.linspace(eps, 1 - eps, n + 1)], [0.5 / n, *[1 / n] * (n - 1), 0.5 / n]


def node_ablation(
    basis: LocalInteractionBasis, network: Any, x: Tensor, score: Score, cut: int, ks: Sequence[int] | None = None
) -> Result:
    """Score of the network's output when only the first k features of a cut are kept.

    Args:
        basis: fitted.
        network: its sections.
        x: activations at the first cut.
        score: from the output of the last section to a number.
        cut: where features are dropped.
        ks: numbers of features (the constant, where centred, counts as the first); all by default.

    Returns:
        Result over k: `score`; `full`, that of the network as it is.

    Raises:
        InputError: a k is beyond the number of features, or the cut does not exist.

    Source: Bushnaq et al., 2024, section 4.1.
    """
    sections = sections_of(network)
    with torch.no_grad():
        cuts = [x]
        for section in sections:
            cuts.append(section(cuts[-1]))
        found = basis.transform(cuts[cut], cut) if cut < len(cuts) else None
        if found is None or cut == len(sections):
            raise InputError(f"features are dropped at cuts 0 to {len(sections) - 1}, not {cut}")
        most = found.shape[-1]
        wanted = list(range(int(basis.center), most + 1)) if ks is None else [int(k) for k in ks]
        if not wanted or any(not 0 <= k <= most for k in wanted):
            raise InputError(f"k goes from 0 to {most}: {wanted}")
        values = []
        for k in wanted:
            out = basis.inverse_transform(torch.where(torch.arange(most) < k, found, 0.0), cut).to(x)
            for section in sections[cut:]:
                out = section(out)
            values.append(score(out))
    data = {"score": (("k",), np.array(values)), "full": ((), score(cuts[-1]))}
    hints = {"plot": {"variables": ["score"]}}
    about = {"cut": cut, "basis": basis.get_params()}
    return Result(
        xr.Dataset(data, coords={"k": wanted}, attrs=hints), "node_ablation", "local-interaction-basis", about
    )


def edge_ablation(
    basis: LocalInteractionBasis,
    network: Any,
    x: Tensor,
    graph: InteractionGraph,
    score: Score,
    section: int,
    counts: Sequence[int],
) -> Result:
    """Score of the network's output when the features after one section see only its strongest edges.

    Every feature of the next cut is computed anew from the features that have a kept edge to it, the others at 0.

    Args:
        basis, network, x, score: as in `node_ablation`.
        graph: strengths, of the same basis.
        section: which one.
        counts: numbers of edges kept.

    Returns:
        Result over edges: `score`; `full`.

    Raises:
        InputError: there is no such section, or a count is negative.

    Source: Bushnaq et al., 2024, section 4.1.
    """
    sections = sections_of(network)
    if not 0 <= section < len(sections) or not counts or min(counts) < 0:
        raise InputError(f"sections go from 0 to {len(sections) - 1} and counts from 0: {section}, {list(counts)}")
    strengths = graph.edges[section]
    order = strengths.flatten().argsort(descending=True, stable=True)
    with torch.no_grad():
        f = x
        for one in sections[:section]:
            f = one(f)
        now = basis.transform(f, section)
        end = sections[section](f)
        for one in sections[section + 1 :]:
            end = one(end)
        values = []
        for count in counts:
            kept = torch.zeros(strengths.numel(), dtype=torch.bool)
            kept[order[:count]] = True
            out = _sparse(basis, sections[section], section, now, kept.view(strengths.shape), f)
            for one in sections[section + 1 :]:
                out = one(out)
            values.append(score(out))
    data = {"score": (("edges",), np.array(values)), "full": ((), score(end))}
    about = {"section": section, "basis": basis.get_params()}
    hints = {"plot": {"variables": ["score"]}}
    dataset = xr.Dataset(data, coords={"edges": [int(c) for c in counts]}, attrs=hints)
    return Result(dataset, "edge_ablation", "local-interaction-basis", about)


def _sparse(basis: LocalInteractionBasis, section: Any, place: int, now: Tensor, kept: Tensor, like: Tensor) -> Tensor:
    """Activations after a section of which each feature saw only the features with a kept edge to it."""
    back, after = basis.C_pinv_[place].to(now), basis.C_[place + 1].to(like)
    columns = []
    for i, row in enumerate(kept):
        augmented = (torch.where(row, now, 0.0) @ back).to(like)
        columns.append(features(section, augmented, after[:, i : i + 1]))
    return basis.inverse_transform(torch.cat(columns, -1), place + 1).to(like)
