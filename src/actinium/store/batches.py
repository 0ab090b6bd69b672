"""Batches for training: shuffled over the whole store, and resumable to the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.store.reader import Reader, Rows
from actinium.store.selection import Selection

__all__ = ["Batches", "order"]

BLOCK, BUFFER = 256, 1 << 18


def order(
    selection: Selection, size: int, seed: int, epoch: int, block: int, buffer: int, shuffle: bool = True
) -> Iterator[tuple[Rows, Rows | None]]:
    """Rows of the store, batch by batch, for one epoch; the last batch may be short.

    The rows are cut into blocks of neighbours, and the blocks are permuted. A pool takes them up in this order; when
    it holds `buffer` rows it is permuted, half of it is given out, and it is filled again. A store of at most
    `buffer` rows is permuted exactly; so is any store with `block=1`.

    Args:
        selection: the rows.
        size: rows in a batch.
        seed, epoch: of the permutation.
        block: rows that lie together on the disk.
        buffer: rows in the pool.
        shuffle: if False the rows come in their order.

    Yields:
        The rows of a batch (n,), and the blocks (m, 2) that will be needed soon, each time some were taken up.
    """
    if not shuffle:
        total = len(selection)
        for start in range(0, total, size):
            yield selection.of(np.arange(start, min(start + size, total), dtype=np.int64)), None
        return
    source = np.random.Generator(np.random.Philox(key=[seed % 2**64, epoch]))
    blocks = selection.blocks(block)
    blocks = blocks[source.permutation(len(blocks))]
    lengths = np.cumsum(blocks[:, 1] - blocks[:, 0])
    pool, rest, taken = np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    while taken < len(blocks) or len(pool):
        have = int(lengths[taken - 1]) if taken else 0
        stop = max(int(np.searchsorted(lengths, have + max(1, buffer - len(pool)), "right")), taken + 1)
        fresh = blocks[taken:stop]
        taken = min(stop, len(blocks))
        pool = np.concatenate([pool, _rows(fresh)])
        source.shuffle(pool)
        out = pool if taken == len(blocks) else pool[: max(len(pool) // 2, 1)]
        pool = pool[len(out) :]
        ready, soon = np.concatenate([rest, out]), fresh if len(fresh) else None
        whole = len(ready) // size * size
        for start in range(0, whole, size):
            yield ready[start : start + size], soon
            soon = None
        rest = ready[whole:]
    if len(rest):
        yield rest, None


def _rows(blocks: Rows) -> Rows:
    """The rows of ranges (n, 2), one after the other."""
    lengths = blocks[:, 1] - blocks[:, 0]
    begins = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(blocks[:, 0] - begins, lengths)


class Batches:
    """An iterable over the rows of one or several sites; each pass over it is another epoch.

    Made by `Store.batches`. Its state is that of the training loop that reads it: batches that were prepared ahead
    but not yet given out do not count.
    """

    def __init__(
        self,
        readers: Mapping[str, Reader],
        selection: Selection,
        mark: str,
        single: bool,
        size: int,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        device: Any,
        dtype: torch.dtype | None,
        workers: int,
        with_rows: bool,
        block: int,
        buffer: int,
    ) -> None:
        for name, value, least in (("size", size, 1), ("workers", workers, 0), ("block", block, 1)):
            if value < least:
                raise InputError(f"{name} must be at least {least}, not {value}")
        if buffer < size:
            raise InputError(f"buffer ({buffer} rows) must hold at least one batch of {size}")
        self._readers, self._selection, self._mark, self._single = readers, selection, mark, single
        self.size, self.shuffle, self.seed, self.drop_last = size, shuffle, seed, drop_last
        self.device, self.dtype = None if device is None else torch.device(device), dtype
        self.workers, self.with_rows, self.block, self.buffer = workers, with_rows, block, buffer
        self.epoch = self.batch = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        rows = len(self._selection)
        return rows // self.size if self.drop_last else -(-rows // self.size)

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands; plain numbers and texts."""
        return {
            **{name: getattr(self, name) for name in ("epoch", "batch", "size", "shuffle", "seed", "drop_last")},
            "block": self.block,
            "buffer": self.buffer,
            "store": self._mark,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another iteration over the same rows stood.

        Raises:
            InputError: it was over another store or with other settings.
        """
        mine = self.state_dict()
        if set(state) != set(mine):
            raise InputError(f"this is not the state of an iteration over a store: {sorted(state)}")
        for name, value in mine.items():
            if name not in ("epoch", "batch") and state[name] != value:
                raise InputError(f"the state was saved with another {name} ({state[name]}, now {value})")
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])

    def __iter__(self) -> Iterator[Any]:
        """The batches of this epoch that are left: tensors (size, …), {site: tensor} for several sites.

        With `with_rows`, pairs of the rows' numbers in the store (size,) and that.
        """
        wanted = self._wanted()
        if not self.workers:
            for rows in wanted:
                yield self._delivered(rows, self._read(rows))
        else:
            yield from self._ahead(wanted)
        self.epoch, self.batch = self.epoch + 1, 0

    def _wanted(self) -> Iterator[Rows]:
        args = (self._selection, self.size, self.seed, self.epoch, self.block, self.buffer, self.shuffle)
        for number, (rows, soon) in enumerate(order(*args)):
            if number < self.batch:
                continue
            if soon is not None:
                self._prefetch(soon)
            if len(rows) == self.size or not self.drop_last:
                yield rows

    def _prefetch(self, blocks: Rows) -> None:
        for reader in self._readers.values():
            for start, stop in blocks.tolist():
                reader.prefetch(start, stop)

    def _ahead(self, wanted: Iterator[Rows]) -> Iterator[Any]:
        with ThreadPoolExecutor(self.workers, "actinium-store-reader") as pool:
            waiting: deque[tuple[Rows, Future[dict[str, Tensor]]]] = deque()
            try:
                for rows in wanted:
                    waiting.append((rows, pool.submit(self._read, rows)))
                    if len(waiting) > self.workers + 1:
                        first, future = waiting.popleft()
                        yield self._delivered(first, future.result())
                while waiting:
                    first, future = waiting.popleft()
                    yield self._delivered(first, future.result())
            finally:
                for _, future in waiting:
                    future.cancel()

    def _read(self, rows: Rows) -> dict[str, Tensor]:
        out = {}
        contiguous = len(rows) > 0 and int(rows[-1]) - int(rows[0]) == len(rows) - 1 and not self.shuffle
        for name, reader in self._readers.items():
            if contiguous:
                value = reader.span(int(rows[0]), int(rows[-1]) + 1)
                value = value if self.dtype is None else value.to(self.dtype)
            else:
                value = reader.gather(rows, self.dtype)
            if self.device is not None and self.device.type == "cuda":
                value = value.pin_memory()
            out[name] = value
        return out

    def _delivered(self, rows: Rows, values: dict[str, Tensor]) -> Any:
        self.batch += 1
        if self.device is not None:
            values = {name: value.to(self.device, non_blocking=True) for name, value in values.items()}
        found: Any = next(iter(values.values())) if self._single else values
        return (torch.from_numpy(rows), found) if self.with_rows else found
