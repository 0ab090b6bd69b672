"""A shuffle over a whole store that reads the disk in long pieces: slabs of random blocks, given out in mixture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from actinium.store.reader import Reader, Rows
from actinium.store.selection import Selection

__all__ = ["PARTS", "Batch", "Fill", "Pool", "mixture", "slab_rows"]

PARTS = 4  # slabs that a batch is drawn from


@dataclass(frozen=True)
class Fill:
    """Read these ranges (n, 2) into slab `number`, one after the other."""

    number: int
    ranges: Rows


@dataclass(frozen=True)
class Batch:
    """Give out these entries of slabs, (size,) each; `rows` are their numbers in the store."""

    slabs: Rows
    places: Rows
    rows: Rows


def mixture(selection: Selection, size: int, seed: int, epoch: int, block: int, buffer: int) -> Iterator[Fill | Batch]:
    """What to read and what to give out, for one epoch.

    The rows are cut into blocks of neighbours, and the blocks are permuted. `buffer / PARTS` rows of them at a time
    fill a slab, whose rows are permuted and cut into `PARTS` shares. Each step gives out one share of each of the
    last `PARTS` slabs, permuted together. All rows at once are one slab where they fit the buffer: then the order is
    an exact permutation. A slab is last needed `PARTS` steps after it is filled, and it is asked for one step ahead.

    Args:
        selection: the rows.
        size: rows in a batch; the last may be short.
        seed, epoch: of the permutation.
        block: rows that lie together on the disk.
        buffer: rows that are mixed.
    """
    source = np.random.Generator(np.random.Philox(key=[seed % 2**64, epoch]))
    total = len(selection)
    slab_size = slab_rows(total, size, buffer)
    parts = 1 if total <= slab_size else PARTS
    slabs = _slabs(selection, block, slab_size, source)
    held: dict[int, tuple[Rows, list[Rows]]] = {}
    rest = Batch(*(np.zeros(0, np.int64) for _ in range(3)))
    count, number = -(-total // max(1, slab_size)), 0
    first = next(slabs, None)
    if first is not None:
        yield Fill(0, first)
    while number < count + parts - 1:
        if number < count:
            assert first is not None
            rows = _rows(first)
            held[number] = (rows, np.array_split(source.permutation(len(rows)), parts))
            first = next(slabs, None)
            if first is not None:
                yield Fill(number + 1, first)
        ready = [rest]
        for slab in [s for s in held if number - parts < s <= number]:
            rows, shares = held[slab]
            places = shares[number - slab]
            ready.append(Batch(np.full(len(places), slab), places, rows[places]))
        held.pop(number - parts + 1, None)
        rest = yield from _cut(ready, size, source)
        number += 1
    if len(rest.rows):
        yield rest


def slab_rows(total: int, size: int, buffer: int) -> int:
    """Rows of a slab: all of them where they fit the buffer; else a share of it that gives a batch or more a step."""
    return total if total <= buffer else min(total, max(-(-buffer // PARTS), size + PARTS))


def _slabs(selection: Selection, block: int, size: int, source: np.random.Generator) -> Iterator[Rows]:
    """Permuted blocks, `size` rows at a time, in the order of the disk."""
    blocks = selection.blocks(block)
    blocks = blocks[source.permutation(len(blocks))]
    ends = np.cumsum(blocks[:, 1] - blocks[:, 0])
    begin, cut = 0, 0  # the first block of the slab, and its rows that are given out already
    while begin < len(blocks):
        have = (int(ends[begin - 1]) if begin else 0) + cut
        last = int(np.searchsorted(ends, have + size, "left"))
        chosen = blocks[begin : last + 1].copy()
        chosen[0, 0] += cut
        over = (int(ends[last]) if last < len(blocks) else have + size) - (have + size)
        if last < len(blocks) and over > 0:
            chosen[-1, 1] -= over
            cut = int(chosen[-1, 1] - blocks[last, 0])
            begin = last
        else:
            begin, cut = last + 1, 0
        yield chosen[np.argsort(chosen[:, 0], kind="stable")]


def _cut(ready: list[Batch], size: int, source: np.random.Generator) -> Iterator[Any]:
    """Batches of the entries, what was left over before first; what is left over now is returned."""
    old, new = ready[0], ready[1:]
    fields = [np.concatenate([getattr(one, name) for one in new]) for name in ("slabs", "places", "rows")]
    order = source.permutation(len(fields[0]))
    whole = [
        np.concatenate([getattr(old, n), f[order]]) for n, f in zip(("slabs", "places", "rows"), fields, strict=True)
    ]
    full = len(whole[0]) // size * size
    for start in range(0, full, size):
        yield Batch(*(f[start : start + size] for f in whole))
    return Batch(*(f[full:] for f in whole))


def _rows(ranges: Rows) -> Rows:
    """The rows of ranges (n, 2), one after the other."""
    lengths = ranges[:, 1] - ranges[:, 0]
    begins = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(ranges[:, 0] - begins, lengths)


class Pool:
    """The slabs in memory, filled and read by threads.

    Args:
        readers: of the sites.
        slab: rows of the largest slab.
    """

    def __init__(self, readers: Mapping[str, Reader], slab: int) -> None:
        self.readers, self.slab, self.slots = readers, slab, PARTS + 2
        # Pages that are never touched take no memory, so a store of one slab has one slab.
        rows = self.slots * slab
        self.raw = {name: np.empty((rows, reader.width), np.uint8) for name, reader in readers.items()}
        self.scales = {name: torch.empty(rows) for name, reader in readers.items() if reader.scaled}
        self.emptied(None)

    def emptied(self, executor: ThreadPoolExecutor | None) -> Self:
        """The same memory, with nothing in it; `executor` fills and reads ahead, None when it is asked."""
        self.executor = executor
        self._filled: dict[int, Future[None] | None] = {}
        self._reads: dict[int, list[Future[Any]]] = {}
        return self

    def fill(self, fill: Fill) -> None:
        """Begin to read a slab, once what reads its place is done."""
        slot = fill.number % self.slots
        wait(self._reads.pop(slot, []))
        self._filled.pop(fill.number - self.slots, None)
        if self.executor is None:
            self._fill(slot, fill.ranges)
            self._filled[fill.number] = None
        else:
            self._filled[fill.number] = self.executor.submit(self._fill, slot, fill.ranges)

    def _fill(self, slot: int, ranges: Rows) -> None:
        begin = slot * self.slab
        for name, reader in self.readers.items():
            reader.copy(ranges, self.raw[name], self.scales.get(name), begin)

    def reads(self, batch: Batch, dtype: torch.dtype | None) -> Any:
        """Begin to gather a batch: a future, or without threads the values."""
        for slab in np.unique(batch.slabs):
            future = self._filled[int(slab)]
            if future is not None:
                future.result()
        if self.executor is None:
            return self._gather(batch, dtype)
        future = self.executor.submit(self._gather, batch, dtype)
        for slab in np.unique(batch.slabs):
            waiting = self._reads.setdefault(int(slab) % self.slots, [])
            waiting[:] = [f for f in waiting if not f.done()]
            waiting.append(future)
        return future

    def _gather(self, batch: Batch, dtype: torch.dtype | None) -> dict[str, Tensor]:
        at = batch.slabs % self.slots * self.slab + batch.places
        out = {}
        for name, reader in self.readers.items():
            raw = self.raw[name].take(at, axis=0, mode="clip")
            scales = self.scales[name].index_select(0, torch.from_numpy(at)) if reader.scaled else None
            out[name] = reader.values(raw, scales, dtype)
        return out
