"""Some rows of a task run with some edges ablated: what every sender writes, and the logits that come of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actinium.circuits.graph.block_runs import BlockRun, Calls
from actinium.circuits.graph.layout import Layout
from actinium.core import replay
from actinium.core.model import Model

__all__ = ["State", "WiredRows", "stages"]


def stages(layout: Layout) -> Tensor:
    """(edge,) int64: 2 l for edges into the attention of block l, 2 l + 1 into its MLP, 2 n_layers into the logits."""
    number = {"mlp": 1}
    each = torch.tensor([2 * r.layer + number.get(r.kind, 0) for r in layout.receivers])
    return each[layout.pairs[:, 1]]


@dataclass(eq=False)
class State:
    """What senders write in a run, less what takes its place where an edge is ablated.

    Attributes:
        kept: (edge,) of the run.
        below: (sender, row * n * d_model) of the senders below the last block, at the last n columns.
        last: (sender, row * d_model) of all senders at the last column.
    """

    kept: Tensor
    below: Tensor
    last: Tensor


class _Written:
    """Outputs of the senders so far: shared by all variants below the first changed input, then one for each."""

    def __init__(self, shared: Tensor, variants: int, senders: int) -> None:
        self.shared, self.variants, self.senders = shared, variants, senders
        self.own: Tensor | None = None
        self.count = 0
        self.listed: list[Tensor] = []

    def add(self, values: Tensor, ablated: Tensor | None) -> None:
        """(variant, sender, numbers) of the next senders."""
        n = values.shape[1]
        if torch.is_grad_enabled():
            self.listed.append(values if ablated is None else values - ablated)
        else:
            if self.own is None:
                self.own = values.new_empty(self.variants, self.senders - len(self.shared), values.shape[2])
            place = self.own[:, self.count : self.count + n]
            if ablated is None:
                place.copy_(values)
            else:
                torch.sub(values, ablated, out=place)
        self.count += n

    def alone(self) -> Tensor | None:
        """(variant, sender, numbers) of the senders that differ between variants."""
        if not self.count:
            return None
        if torch.is_grad_enabled():
            self.listed = [torch.cat(self.listed, 1)]
            return self.listed[0]
        assert self.own is not None
        return self.own[:, : self.count]

    def inputs(self, mask: Tensor, base: Tensor) -> Tensor:
        """(variant, receiver, sender) -> (receiver, variant, numbers): what each receiver reads."""
        variants, receivers, senders = mask.shape
        # Beside a parallel MLP stand heads of its own block, which it does not read.
        n = min(len(self.shared), senders)
        flat = mask[:, :, :n].transpose(0, 1).reshape(-1, n)
        out = torch.addmm(base.expand(len(flat), -1), flat, self.shared[:n]).view(receivers, variants, -1)
        own = self.alone()
        if own is None or senders == n:
            return out
        own = own[:, : senders - n]
        # Written over the other sum: the product of each variant is its own, so the receivers stand second here.
        added = torch.bmm(mask[:, :, n:], own).transpose(0, 1)
        return out + added if torch.is_grad_enabled() else out.add_(added)

    def narrowed(self, out: _Written, rows: int, width: int) -> _Written:
        """Put the last column of what each variant wrote into `out`."""
        own = self.alone()
        if own is not None:
            out.add(own.unflatten(2, (rows, -1, width))[:, :, :, -1].flatten(2), None)
        return out


class WiredRows:
    """Some rows of a task and the runs that edges are taken from.

    Args:
        model: the model.
        layout: its edges.
        blocks: its blocks.
        calls: the clean run of these rows.
        first: the first column that can differ between runs; the ones before it are not run again.
        dtype: of sums over senders.
    """

    def __init__(
        self, model: Model, layout: Layout, blocks: tuple[BlockRun, ...], calls: Calls, first: int, dtype: torch.dtype
    ) -> None:
        self.model, self.layout, self.blocks, self.calls, self.dtype = model, layout, blocks, calls, dtype
        self.rows, self.pos, self.width = calls.start.shape
        self.first, self.n = first, self.pos - first
        self.below = [1 + i * (layout.n_heads + 1) for i in range(layout.n_layers + 1)]
        self.ablated: Tensor | None = None
        self.ablated_last: Tensor | None = None
        self.set_ablated(None)

    # What takes the place of an ablated edge --------------------------------------------------------------------

    def set_ablated(self, values: State | None) -> None:
        """What ablated edges carry: nothing, or what the senders wrote in another run of these rows."""
        self.ablated = None if values is None else values.below
        self.ablated_last = None if values is None else values.last
        bias = torch.zeros(self.width, dtype=self.dtype, device=self.calls.start.device)
        heads = 0 if self.layout.parallel else self.layout.n_heads
        self.bases: list[tuple[Tensor, Tensor]] = []
        for i, block in enumerate(self.blocks):
            after = bias if block.out_bias is None else bias + block.out_bias.to(bias)
            final = i == self.layout.n_layers - 1
            attention = self._base(self.below[i], bias, False)
            mlp = self._base(self.below[i] + heads, bias if self.layout.parallel else after, final)
            self.bases.append((attention, mlp))
            bias = after
        self.base_logits = self._base(self.below[-1], bias, True)

    def _base(self, senders: int, bias: Tensor, last: bool) -> Tensor:
        """What an input reads with every edge ablated, at the columns that are run or at the last one."""
        source = self.ablated_last if last else self.ablated
        out = bias.repeat(self.rows * (1 if last else self.n))
        return out if source is None else out + source[:senders].sum(0)

    # Running ----------------------------------------------------------------------------------------------------

    def start(self, start: Tensor) -> Tensor:
        """(1, row * n * d_model) of a stream (row, pos, d_model) that enters the first block, less the ablated one."""
        value = start[:, self.first :].to(self.dtype).reshape(1, -1)
        return value if self.ablated is None else value - self.ablated[:1]

    def walk(self, kept: Tensor, state: State, stage: int) -> tuple[Tensor, _Written, _Written]:
        """Logits of variants, each with its own edges.

        Args:
            kept: (variant, edge).
            state: a run that has the same edges below `stage`.
            stage: the first input that differs, see `stages`.
        Returns:
            (variant, row, d_vocab), and what the senders wrote below the last block and at the last column.
        """
        layers, edges = self.layout.n_layers, _Edges(self.layout, kept)
        layer, part = divmod(stage, 2)
        final = layers - 1
        count = self.below[layer] + part * self.layout.n_heads
        narrow = layer > final or (layer == final and part == 1)
        below = _Written(state.below[: min(count, self.below[final])], len(kept), self.below[final])
        last = _Written(state.last[:count], len(kept), self.below[-1])
        written = last if narrow else below
        for i in range(layer, layers):
            if i > layer or not part:
                y = self._queries(i, edges, written)
                if i == final:
                    written = below.narrowed(last, self.rows, self.width)
                written.add(self._heads(i, y, len(kept)), self._ablated(i, 0))
            x = written.inputs(edges.mlp(i), self.bases[i][1])
            x = x.view(len(kept) * self.rows, -1, self.width)
            out = self.blocks[i].mlp(x, self.calls, len(kept)).to(self.dtype)
            written.add(out.reshape(len(kept), 1, -1), self._ablated(i, 1))
        read = last.inputs(edges.logits(), self.base_logits).view(len(kept), self.rows, self.width)
        logits = replay.tail(self.model, read.to(self.calls.start.dtype))
        return logits, below, last

    def _ablated(self, layer: int, part: int) -> Tensor | None:
        """What takes the place of the heads (0) or the MLP (1) of a block, at the columns that are run."""
        if self.ablated is None or self.ablated_last is None:
            return None
        first = self.below[layer] + part * self.layout.n_heads
        source = self.ablated_last if layer == self.layout.n_layers - 1 else self.ablated
        return source[first : first + (1 if part else self.layout.n_heads)]

    def _queries(self, layer: int, edges: _Edges, written: _Written) -> Tensor:
        """(receiver, variant * row * n, d_head) queries, keys and values of a block."""
        block, mask, base = self.blocks[layer], edges.attention(layer), self.bases[layer][0]
        variants = len(mask)
        if variants > 1 and not written.count and not torch.is_grad_enabled():
            # Below, all variants are one; so are the inputs whose edges they agree in.
            same = (mask == mask[:1]).flatten(2).all(2).all(0)
            if bool(same.any()):
                return self._split(block, mask, base, written, same)
        return self._project(block, mask, base, written, slice(None))

    def _split(self, block: BlockRun, mask: Tensor, base: Tensor, written: _Written, same: Tensor) -> Tensor:
        one, each = same.nonzero().flatten(), (~same).nonzero().flatten()
        y = self._project(block, mask[:1, one], base, written, one)
        out = y.new_empty(len(same), len(mask), *y.shape[1:])
        out[one] = y[:, None]
        if len(each):
            out[each] = self._project(block, mask[:, each], base, written, each).view(
                len(each), len(mask), *y.shape[1:]
            )
        return out.flatten(1, 2)

    def _project(
        self, block: BlockRun, mask: Tensor, base: Tensor, written: _Written, receivers: Tensor | slice
    ) -> Tensor:
        x = written.inputs(mask, base)
        return block.project(x.view(len(x), -1, self.width), receivers)

    def _heads(self, layer: int, y: Tensor, variants: int) -> Tensor:
        """(variant, head, numbers): what the heads of a block write, at the last column in the last block."""
        block = self.blocks[layer]
        z = block.heads(y, self.calls, variants, self.pos)
        z = z[:, -1:] if layer == self.layout.n_layers - 1 else z[:, self.first :]
        out = block.written(z.reshape(-1, *z.shape[2:]), self.dtype)
        return out.view(len(out), variants, -1).transpose(0, 1)

    def state(self, kept: Tensor, start: Tensor) -> tuple[State, Tensor]:
        """What the senders write with edges (edge,) kept, and the logits (row, d_vocab).

        Args:
            kept: (edge,).
            start: (row, pos, d_model) the stream that enters the first block.
        """
        first = self.start(start)
        at_end = first.view(1, self.rows, self.n, self.width)[:, :, -1].reshape(1, -1)
        logits, below, last = self.walk(kept[None], State(kept, first, at_end), 0)
        whole = [first if w is below else at_end for w in (below, last)]
        joined = [
            torch.cat([s, own[0]]) if (own := w.alone()) is not None else s
            for s, w in zip(whole, (below, last), strict=True)
        ]
        return State(kept, *joined), logits[0]


class _Edges:
    """The masks of each receiver, as the edges stand by receiver and then by sender."""

    def __init__(self, layout: Layout, kept: Tensor) -> None:
        self.layout, self.kept = layout, kept
        self.attend = layout.n_heads + 2 * layout.kv_heads
        self.first = [0]
        for i in range(layout.n_layers):
            self.first.append(self.first[-1] + self.attend * self._below(i) + self._mlp(i))

    def _below(self, layer: int) -> int:
        return 1 + layer * (self.layout.n_heads + 1)

    def _mlp(self, layer: int) -> int:
        return self._below(layer) + (0 if self.layout.parallel else self.layout.n_heads)

    def attention(self, layer: int) -> Tensor:
        """(variant, receiver, sender)."""
        first, n = self.first[layer], self._below(layer)
        return self.kept[:, first : first + self.attend * n].unflatten(1, (self.attend, n))

    def mlp(self, layer: int) -> Tensor:
        """(variant, 1, sender)."""
        first = self.first[layer] + self.attend * self._below(layer)
        return self.kept[:, None, first : first + self._mlp(layer)]

    def logits(self) -> Tensor:
        """(variant, 1, sender)."""
        return self.kept[:, None, self.first[-1] :]
