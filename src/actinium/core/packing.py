"""Replay by tokens: the changed positions of all variants side by side in one sequence.

A block of a transformer mixes positions only in its attention. So the tokens of every variant, from its first changed
position on, are packed into one row, and the unmodified block runs on it once; the attention function, which the
library lets us supply, gives each variant its own keys and values, those of earlier positions from the base run.
Of the last block only the positions that are read are needed: it runs once up to its keys and values for all tokens,
and whole for the positions read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core import attention, replay, taps
from actinium.core.edits import Where
from actinium.core.replay import Engine, Variant
from actinium.core.taps import Program
from actinium.core.tiling import ENTRY, TOKENS, Segment, program_of

__all__ = ["PackingEngine"]


class _KeysKnown(BaseException):
    """Leaves a block once its attention was handed keys and values."""


class Group:
    """Variants that first change at the same column.

    Attributes:
        column: that column.
        variants: in the order in which they joined.
        hidden: (variant, batch, n, d_model), the stream from that column on.
    """

    def __init__(self, column: int) -> None:
        self.column = column
        self.variants: list[Variant] = []
        self.hidden: Tensor | None = None

    def join(self, variants: list[Variant], streams: list[Tensor]) -> None:
        """Add variants with the streams (batch, n, d_model) that enter their first block."""
        self.variants.extend(variants)
        new = torch.stack(streams)
        self.hidden = new if self.hidden is None else torch.cat([self.hidden, new])


class Run:
    """Consecutive variants of one group within a packed row.

    Attributes:
        group: the group.
        first, count: which of its variants.
        offset: first token in the packed row.
        columns: (batch, n) columns of the tokens if they are not all from the group's column on.
        keys, values: those of all columns from the group's column on, if they are known already:
            (count * batch, kv_head, n, d_head).
    """

    def __init__(self, group: Group, first: int, count: int, offset: int) -> None:
        self.group, self.first, self.count, self.offset = group, first, count, offset
        self.columns: Tensor | None = None
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def variants(self) -> list[Variant]:
        """The variants of the run."""
        return self.group.variants[self.first : self.first + self.count]

    @property
    def hidden(self) -> Tensor:
        """(count, batch, n, d_model)."""
        assert self.group.hidden is not None
        return self.group.hidden[self.first : self.first + self.count]


class PackingEngine(Engine):
    """Runs only changed positions; for models that use the library's attention interface."""

    positions = True

    def run(self, variants: list[Variant], tick: Callable[[], None]) -> Tensor:
        """Walk the blocks upward on packed tokens."""
        tower = self.model.tower
        last = len(tower.blocks) - 1
        groups: dict[int, Group] = {}
        read: dict[int, Tensor] = {}
        for layer in range(min(v.start for v in variants), last + 1):
            self._join(variants, layer, groups)
            if layer < last:
                for runs in self._chunks(list(groups.values())):
                    self._block(layer, runs)
            tick()
        if groups:
            whole = [g for g in groups.values() if g.hidden is not None]
            for group in whole:
                read.update(self._last(group))
        for variant in variants:
            if variant.start == last + 1:
                read[variant.index] = self._pick(self.entered(variant), variant.column)
        tick()
        order = torch.stack([read[v.index] for v in variants])
        return self._logits(order, variants)

    def _join(self, variants: list[Variant], layer: int, groups: dict[int, Group]) -> None:
        new: dict[int, list[Variant]] = {}
        for variant in variants:
            if variant.start == layer and variant.column < self.base.hidden[0].shape[1]:
                new.setdefault(variant.column, []).append(variant)
        for column, joining in new.items():
            groups.setdefault(column, Group(column)).join(joining, [self.entered(v) for v in joining])
        # Streams changed above a variant's first block.
        for group in groups.values():
            for i, variant in enumerate(group.variants):
                for change in variant.inside.get(layer, ()):
                    if change.site.part in ENTRY:
                        assert group.hidden is not None
                        where = Where(change.site, self.base.now, group.column)
                        group.hidden[i] = change.edit(group.hidden[i], where)

    def _chunks(self, groups: list[Group]) -> list[list[Run]]:
        """Runs of variants, together about `TOKENS` tokens in each chunk."""
        chunks: list[list[Run]] = [[]]
        load = 0
        for group in groups:
            assert group.hidden is not None
            each = group.hidden.shape[1] * group.hidden.shape[2]
            first, total = 0, len(group.variants)
            while first < total:
                room = max(1, (TOKENS - load) // each) if load < TOKENS else 0
                if not room or (load and each > TOKENS - load):
                    chunks.append([])
                    load = 0
                    continue
                count = min(room, total - first)
                chunks[-1].append(Run(group, first, count, load))
                load += count * each
                first += count
        return chunks

    def _block(self, layer: int, runs: list[Run]) -> None:
        packed = torch.cat([r.hidden.flatten(0, 2) for r in runs])[None]
        out = self._call(layer, runs, packed)[0]
        for run in runs:
            shape = run.hidden.shape
            size = run.hidden[..., 0].numel()
            assert run.group.hidden is not None
            run.group.hidden[run.first : run.first + run.count] = out[run.offset : run.offset + size].view(shape)

    def _call(self, layer: int, runs: list[Run], packed: Tensor, keys_only: bool = False) -> Tensor:
        """One block on packed tokens (1, token, d_model)."""
        block = self.model.tower.blocks[layer]
        args, kwargs = self.base.calls[layer]
        args = tuple(self._gathered(a, runs) for a in args)
        kwargs = {k: self._gathered(v, runs) for k, v in kwargs.items()}
        segments = []
        for run in runs:
            n = run.hidden.shape[2]
            for i, variant in enumerate(run.variants):
                segments.append(Segment(variant, run.offset + i * self.base.now.batch * n, self.base.now.batch, n))
        changes = program_of(segments, layer, self.base.now, skip=attention.PARTS)
        for tap in self._attention_tap(layer):
            changes.modules.setdefault(tap.key, tap)
        function = _PackedAttention(self, layer, runs, keys_only)
        with self.model.running(changes, nested=True), attention.supply(function):
            out = taps.first_tensor(block(packed, *args, **kwargs))
        assert out is not None
        return out

    def _attention_tap(self, layer: int) -> list[taps.Tap]:
        return [self.model.anatomy.taps[f"blocks.{layer}.attn.q"]]

    def _columns_of(self, run: Run) -> Tensor:
        """(batch, n) columns of a run's tokens."""
        if run.columns is not None:
            return run.columns
        n = run.hidden.shape[2]
        return torch.arange(run.group.column, run.group.column + n, device=run.hidden.device).expand(
            self.base.now.batch, n
        )

    def _gathered(self, value: Any, runs: list[Run]) -> Any:
        """An argument of the block, for the packed tokens: what has positions is gathered, masks are dropped."""
        if isinstance(value, tuple):
            return tuple(self._gathered(v, runs) for v in value)
        batch, n = self.base.now.batch, self.base.hidden[0].shape[1]
        if not isinstance(value, Tensor):
            return None if hasattr(value, "get_seq_length") else value
        if value.ndim == 4:
            return None
        if value.ndim == 1 and value.shape[0] == n:
            return torch.cat([self._columns_of(r)[0].repeat(r.count * batch) for r in runs])
        if value.ndim < 2 or value.shape[1] != n:
            return value
        rows = value.expand(batch, *value.shape[1:])
        pieces = []
        for run in runs:
            columns = self._columns_of(run).to(value.device)
            index = columns.view(*columns.shape, *[1] * (value.ndim - 2)).expand(*columns.shape, *value.shape[2:])
            picked = rows.gather(1, index)
            pieces.append(picked[None].expand(run.count, *picked.shape).flatten(0, 2))
        return torch.cat(pieces)[None]

    def _last(self, group: Group) -> dict[int, Tensor]:
        """The stream after the last block at the columns read: by variant, (batch, k, d_model)."""
        last = len(self.model.tower.blocks) - 1
        out: dict[int, Tensor] = {}
        assert group.hidden is not None
        rest: list[int] = []
        for i, variant in enumerate(group.variants):
            above_last = variant.inside.get(last + 1, ())
            if above_last or any(c.site.part not in ENTRY for c in variant.inside.get(last, ())):
                alone = Group(group.column)
                alone.join([variant], [group.hidden[i]])
                for runs in self._chunks([alone]):
                    self._block(last, runs)
                assert alone.hidden is not None
                stream = alone.hidden[0]
                for change in above_last:
                    stream = change.edit(stream, Where(change.site, self.base.now, group.column))
                out[variant.index] = self._pick(stream, group.column)
            else:
                rest.append(i)
        if rest:
            plain = Group(group.column)
            plain.variants = [group.variants[i] for i in rest]
            plain.hidden = group.hidden[rest]
            for runs in self._chunks([plain]):
                for run in runs:
                    run.offset = 0
                    self._read(run, out)
        return out

    def _read(self, run: Run, out: dict[int, Tensor]) -> None:
        """The last block for one run: keys and values of all its tokens, the rest only where it is read."""
        last, base = len(self.model.tower.blocks) - 1, self.base
        streams = run.hidden
        with suppress(_KeysKnown):
            self._call(last, [run], streams.flatten(0, 2)[None], keys_only=True)
        place = (base.columns - run.group.column).clamp_min(0)
        index = place[None, :, :, None].expand(run.count, *place.shape, streams.shape[-1])
        small = Group(run.group.column)
        small.variants, small.hidden = run.variants, streams.gather(2, index)
        part = Run(small, 0, run.count, 0)
        part.columns = place + run.group.column
        part.keys, part.values = run.keys, run.values
        result = self._call(last, [part], small.hidden.flatten(0, 2)[None])[0].view(small.hidden.shape)
        for i, variant in enumerate(run.variants):
            out[variant.index] = result[i]

    def _pick(self, stream: Tensor, column: int) -> Tensor:
        """Columns that are read from a stream that starts at `column`."""
        place = (self.base.columns - column).clamp_min(0)
        return stream.gather(1, place[:, :, None].expand(-1, -1, stream.shape[-1]))

    def _logits(self, read: Tensor, variants: list[Variant]) -> Tensor:
        out = replay.tail(self.model, read.flatten(0, 1)).view(*read.shape[:3], -1)
        # A column before the first change is as it was.
        for i, variant in enumerate(variants):
            before = self.base.columns < variant.column
            if bool(before.any()):
                out[i] = torch.where(before[:, :, None], self.base.logits, out[i])
        return out


class _PackedAttention:
    """Attention of packed tokens: each run attends to its own keys and to those of the base run before it."""

    def __init__(self, engine: PackingEngine, layer: int, runs: list[Run], keys_only: bool) -> None:
        self.engine, self.layer, self.runs, self.keys_only = engine, layer, runs, keys_only

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        pieces = []
        for run in self.runs:
            n = run.hidden.shape[2]
            size = run.count * self.engine.base.now.batch * n
            place = slice(run.offset, run.offset + size)
            q, k, v = (_rows(t[0, :, place], n) for t in (query, key, value))
            if self.keys_only:
                run.keys, run.values = k, v
                continue
            k, v = (run.keys, run.values) if run.keys is not None and run.values is not None else (k, v)
            pieces.append(self._run(module, run, q, k, v))
        if self.keys_only:
            raise _KeysKnown
        # (row, n, head, d_head) back into one packed row.
        return torch.cat([p.flatten(0, 1) for p in pieces])[None], None

    def _run(self, module: nn.Module, run: Run, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        base = self.engine.base
        old_k, old_v, mask, kwargs, name = base.attention[id(module)]
        column, batch = run.group.column, base.now.batch
        if column:
            k, v = (torch.cat([o[:, :, :column].repeat(run.count, 1, 1, 1), t], 2) for o, t in ((old_k, k), (old_v, v)))
        rows = self._mask(mask, run, k, module, name)
        changed = [i for i, x in enumerate(run.variants) if self._changes(x)]
        if not changed:
            return attention.library_attention(name, module, q, k, v, rows, **kwargs)[0]
        out = []
        for i, variant in enumerate(run.variants):
            mine = slice(i * batch, (i + 1) * batch)
            out.append(self._variant(module, variant, q[mine], k[mine], v[mine], rows, column))
        return torch.cat(out)

    def _changes(self, variant: Variant) -> list[replay.Change]:
        return [c for c in variant.inside.get(self.layer, ()) if c.tap.kind == "attention"]

    def _variant(
        self,
        module: nn.Module,
        variant: Variant,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        column: int,
    ) -> Tensor:
        base = self.engine.base
        _, _, _, kwargs, name = base.attention[id(module)]
        mask = mask[: base.now.batch] if mask is not None and mask.shape[0] > 1 else mask
        program = Program()
        for change in self._changes(variant):
            start = 0 if change.tap.part in ("k", "v") else column
            where = Where(change.site, base.now, start)
            program.add(change.tap, partial(change.edit, where=where))
        # The same path as an edited forward: the points hand over q, k, v, scores and pattern of this variant alone.
        with attention.supply(None), self.engine.model.running(program, nested=True):
            return attention.watched(name)(module, q, k, v, mask, **kwargs)[0]

    def _mask(self, mask: Tensor | None, run: Run, k: Tensor, module: nn.Module, name: str) -> Tensor | None:
        """The rows of the base run's mask that belong to the run's tokens: (rows or 1, 1, n, key)."""
        columns = self.engine._columns_of(run)
        total = k.shape[2]
        if mask is None:
            keys = torch.arange(total, device=k.device)
            allowed = keys[None, None, None] <= columns[:, None, :, None].to(k.device)
            if name == "eager":
                low = torch.finfo(k.dtype).min
                allowed = torch.zeros(allowed.shape, dtype=k.dtype, device=k.device).masked_fill(~allowed, low)
            picked = allowed
        else:
            whole = mask[..., :total].expand(columns.shape[0], *mask.shape[1:3], total)
            index = columns[:, None, :, None].to(mask.device).expand(-1, whole.shape[1], -1, total)
            picked = whole.gather(2, index)
        if picked.shape[0] > 1 and bool((picked == picked[:1]).all()):
            picked = picked[:1]
        if picked.shape[0] == 1 and run.count >= 1:
            return picked
        return picked.repeat(run.count, 1, 1, 1)


def _rows(packed: Tensor, n: int) -> Tensor:
    """(head, token, d_head) of one run -> (row, head, n, d_head)."""
    heads, _, size = packed.shape
    return packed.reshape(heads, -1, n, size).transpose(0, 1)
