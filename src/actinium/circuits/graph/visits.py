"""The order in which ACDC visits edges, and which inputs still reach the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from actinium.circuits.graph.circuit import belongs
from actinium.circuits.graph.layout import Layout
from actinium.circuits.graph.wired_rows import stages
from actinium.core.errors import InputError, UnknownNameError, unknown

__all__ = ["Visit", "reaching", "visits"]

KINDS = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class Visit:
    """Consecutive decisions about inputs that do not feed one another.

    Attributes:
        stage: of the inputs, see `stages`.
        steps: the edges of each decision, taken away together.
    """

    stage: int
    steps: tuple[tuple[int, ...], ...]


def visits(layout: Layout, order: Sequence[str] | None, whole_inputs: bool) -> tuple[Visit, ...]:
    """All decisions in their order.

    Args:
        layout: the edges.
        order: names of all receivers or of all edges; by default receivers from the last to the first, and for each its
            senders from the last to the first.
        whole_inputs: decide about queries, keys and values as wholes before their edges.

    Raises:
        InputError: a name is missing or there twice.
        UnknownNameError: there is no receiver or edge of a name.
    """
    names = [r.name for r in layout.receivers]
    given = list(reversed(names)) if order is None else list(order)
    if not all(isinstance(name, str) for name in given):
        raise InputError("an order holds names of receivers or of edges")
    edges = _by_receiver(layout, given) if "->" not in "".join(given) else _named(given, layout.edges, "edge")
    stage, receiver = stages(layout).tolist(), layout.pairs[:, 1].tolist()
    out = []
    for number, group in groupby(edges, key=lambda e: stage[e]):
        chosen = list(group)
        steps: list[tuple[int, ...]] = [(edge,) for edge in chosen]
        if whole_inputs:
            steps = [*_wholes(layout, chosen, receiver), *steps]
        out.append(Visit(number, tuple(steps)))
    return tuple(out)


def _named(given: list[str], names: Sequence[str], what: str) -> list[int]:
    known = {name: i for i, name in enumerate(names)}
    for name in given:
        if name not in known:
            raise UnknownNameError(unknown(what, name, names))
    if len(given) != len(known) or len(set(given)) != len(given):
        raise InputError(f"an order names each of the {len(known):,} {what}s once; this one has {len(set(given)):,}")
    return [known[name] for name in given]


def _by_receiver(layout: Layout, given: list[str]) -> list[int]:
    number = layout.matrix(torch.arange(layout.n_edges), -1).T.flip(1)
    rows = number[_named(given, [r.name for r in layout.receivers], "receiver")]
    return rows[rows >= 0].tolist()


def _wholes(layout: Layout, chosen: list[int], receiver: list[int]) -> list[tuple[int, ...]]:
    """The edges of each attention input that are all here, in the order in which the inputs appear."""
    found: dict[int, list[int]] = {}
    for edge in chosen:
        if layout.receivers[receiver[edge]].kind in KINDS:
            found.setdefault(receiver[edge], []).append(edge)
    size = layout.allowed.sum(0).tolist()
    return [tuple(edges) for r, edges in found.items() if len(edges) == size[r]]


def reaching(layout: Layout, kept: Tensor) -> Tensor:
    """(receiver,) bool: what the receiver reads can reach the logits along kept edges (edge,)."""
    matrix, own = layout.matrix(kept, False), belongs(layout)
    reads = torch.zeros(len(layout.receivers), dtype=torch.bool)
    reads[-1] = True
    while True:
        heard = (matrix & reads).any(1)
        more = reads | (own & heard[:, None]).any(0)
        if torch.equal(more, reads):
            return reads
        reads = more
