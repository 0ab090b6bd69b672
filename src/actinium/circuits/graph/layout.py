"""The edges of a transformer: which part's output is read by which later part's input.

Senders write into the residual stream: the embedding, each head, each MLP. Receivers read from it: the query, key and
value inputs of each head, each MLP, and the logits. Names are those of EAP-IG and of the mechanistic-interpretability
benchmark: "input", "a0.h3", "m0", "logits"; an edge is "a0.h3->a1.h2<k>". Where query heads share key/value heads,
keys and values are received by those: "a1.kv0<k>".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model

__all__ = ["Layout", "Receiver", "Sender"]


@dataclass(frozen=True)
class Sender:
    """A part that writes into the residual stream.

    Attributes:
        name: "input", "a0.h3" or "m0".
        kind: "input", "head" or "mlp".
        layer: its block, -1 for the embedding.
        head: its number, None where it is no head.
    """

    name: str
    kind: str
    layer: int
    head: int | None = None


@dataclass(frozen=True)
class Receiver:
    """An input that reads the residual stream.

    Attributes:
        name: "a0.h3<q>", "m0" or "logits".
        kind: "q", "k", "v", "mlp" or "logits".
        layer: its block, the number of blocks for the logits.
        head: query head, or key/value head of "k" and "v"; None where it is no head.
        node: the part that it belongs to ("a0.h3", "a0.kv1", "m0", "logits").
    """

    name: str
    kind: str
    layer: int
    head: int | None
    node: str


class Layout:
    """Senders, receivers and edges of a transformer, in the order of computation.

    Args:
        n_layers: number of blocks.
        n_heads: query heads in each.
        kv_heads: key/value heads in each, `n_heads` by default.
        parallel: attention and MLP of a block read the same stream, so heads do not feed the MLP beside them.

    Raises:
        InputError: a size is below 1, or the query heads do not divide into the key/value heads.

    Source: Conmy et al., 2023, section 3; Hanna et al., 2024 (names).
    """

    def __init__(self, n_layers: int, n_heads: int, kv_heads: int | None = None, parallel: bool = False) -> None:
        kv = n_heads if kv_heads is None else kv_heads
        if min(n_layers, n_heads, kv) < 1 or n_heads % kv:
            raise InputError(f"no transformer has {n_layers} blocks of {n_heads} heads with {kv} key/value heads")
        self.n_layers, self.n_heads, self.kv_heads, self.parallel = n_layers, n_heads, kv, parallel
        shared = kv != n_heads
        senders, receivers = [Sender("input", "input", -1)], []
        for layer in range(n_layers):
            for kind, count, letters in (("q", n_heads, "h"), ("k", kv, "kv"), ("v", kv, "kv")):
                letters = letters if shared else "h"
                for head in range(count):
                    node = f"a{layer}.{letters}{head}"
                    receivers.append(Receiver(f"{node}<{kind}>", kind, layer, head, node))
            receivers.append(Receiver(f"m{layer}", "mlp", layer, None, f"m{layer}"))
            senders += [Sender(f"a{layer}.h{head}", "head", layer, head) for head in range(n_heads)]
            senders.append(Sender(f"m{layer}", "mlp", layer))
        receivers.append(Receiver("logits", "logits", n_layers, None, "logits"))
        self.senders, self.receivers = tuple(senders), tuple(receivers)

    @classmethod
    def of(cls, model: Model) -> Layout:
        """The layout of a decoder whose blocks are known.

        Raises:
            InputError: the model has no single stack of causal blocks of attention and MLP.
        """
        if len(model.anatomy.towers) != 1 or model.kind != "causal-lm":
            raise InputError(f"{model.name} is no decoder of one stack of blocks, so its edges are not known")
        first = "blocks.0."
        if not (model.has(first + "attn.z") and model.has(first + "mlp.out")):
            raise InputError(f"blocks of {model.name} have no attention and MLP that we know, so neither edges")
        tower = model.tower
        return cls(len(tower.blocks), tower.heads, tower.kv_heads, not model.has(first + "resid_mid"))

    def feeds(self, sender: Sender, receiver: Receiver) -> bool:
        """Whether the sender's output is in the stream that the receiver reads."""
        if sender.layer < receiver.layer:
            return True
        beside = sender.layer == receiver.layer and sender.kind == "head" and receiver.kind == "mlp"
        return beside and not self.parallel

    @cached_property
    def allowed(self) -> Tensor:
        """(sender, receiver) bool: the pairs that are edges."""
        return torch.tensor([[self.feeds(s, r) for r in self.receivers] for s in self.senders])

    @cached_property
    def pairs(self) -> Tensor:
        """(edge, 2) sender and receiver of each edge: by receiver, then by sender."""
        return self.allowed.T.nonzero().flip(1)

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """Names of the edges, in the order of `pairs`."""
        return tuple(f"{self.senders[s].name}->{self.receivers[r].name}" for s, r in self.pairs.tolist())

    @cached_property
    def index(self) -> dict[str, int]:
        """Number of each edge by its name."""
        return {name: i for i, name in enumerate(self.edges)}

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return len(self.pairs)

    def matrix(self, values: Tensor, fill: float | bool = 0) -> Tensor:
        """(..., edge) values of the edges as (..., sender, receiver), `fill` where there is no edge."""
        shape = (*values.shape[:-1], len(self.senders), len(self.receivers))
        out = torch.full(shape, fill, dtype=values.dtype, device=values.device)
        index = self.pairs.to(values.device)
        out[..., index[:, 0], index[:, 1]] = values
        return out

    def vector(self, matrix: Tensor) -> Tensor:
        """(..., sender, receiver) as (..., edge)."""
        return matrix[..., self.pairs[:, 0], self.pairs[:, 1]]

    def mask(self, edges: Iterable[str]) -> Tensor:
        """(edge,) bool of the named edges.

        Raises:
            UnknownNameError: there is no such edge; the nearest is offered.
        """
        out = torch.zeros(self.n_edges, dtype=torch.bool)
        for name in edges:
            if name not in self.index:
                raise UnknownNameError(unknown("edge", name, self.edges))
            out[self.index[name]] = True
        return out

    def __eq__(self, other: object) -> bool:
        """Same edges under the same names."""
        return isinstance(other, Layout) and self.sizes == other.sizes

    def __hash__(self) -> int:
        return hash(self.sizes)

    @property
    def sizes(self) -> tuple[int, int, int, bool]:
        """What the layout is made from."""
        return self.n_layers, self.n_heads, self.kv_heads, self.parallel

    def __repr__(self) -> str:
        return f"Layout({self.n_layers} blocks, {self.n_heads} heads, {self.n_edges:,} edges)"
