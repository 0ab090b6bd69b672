"""Batches for training: shuffled over the whole store, and resumable to the batch."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.store.mixing import Fill, Pool, mixture, slab_rows
from actinium.store.reader import Reader, Rows
from actinium.store.selection import Selection

__all__ = ["Batches", "order"]

BLOCK, BUFFER = 64, 1 << 16
POOL = 1 << 28  # most bytes of the rows that are mixed, where the number of rows is not asked for


def order(selection: Selection, size: int, seed: int, epoch: int, shuffle: bool) -> Iterator[Rows]:
    """Rows of the store, batch by batch: an exact permutation of them for each epoch, or all in order."""
    total = len(selection)
    numbers = None
    if shuffle:
        numbers = np.random.Generator(np.random.Philox(key=[seed % 2**64, epoch])).permutation(total)
    for start in range(0, total, size):
        stop = min(start + size, total)
        yield selection.of(np.arange(start, stop, dtype=np.int64) if numbers is None else numbers[start:stop])


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
        buffer: int | None,
    ) -> None:
        for name, value, least in (("size", size, 1), ("workers", workers, 0), ("block", block, 1)):
            if value < least:
                raise InputError(f"{name} must be at least {least}, not {value}")
        if buffer is None:
            each = sum(reader.width for reader in readers.values())
            buffer = max(4 * size, min(BUFFER, POOL // each))
        if buffer < size:
            raise InputError(f"buffer ({buffer} rows) must hold at least one batch of {size}")
        self._readers, self._selection, self._mark, self._single = readers, selection, mark, single
        self.size, self.shuffle, self.seed, self.drop_last = size, shuffle, seed, drop_last
        self.device, self.dtype = None if device is None else torch.device(device), dtype
        self.workers, self.with_rows, self.block, self.buffer = workers, with_rows, block, buffer
        self.epoch = self.batch = 0
        self._pool: Pool | None = None  # its memory is kept from epoch to epoch

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
        with ThreadPoolExecutor(self.workers, "actinium-store-reader") if self.workers else nullcontext() as executor:
            mixed = self.shuffle and self.block > 1
            waiting: deque[tuple[Rows, Any]] = deque()
            try:
                for one in self._mixed(executor) if mixed else self._gathered(executor):
                    waiting.append(one)
                    if len(waiting) > (self.workers + 1 if self.workers else 0):
                        yield self._delivered(*waiting.popleft())
                while waiting:
                    yield self._delivered(*waiting.popleft())
            finally:
                for _, value in waiting:
                    if isinstance(value, Future):
                        value.cancel()
        self.epoch, self.batch = self.epoch + 1, 0

    def _gathered(self, executor: ThreadPoolExecutor | None) -> Iterator[tuple[Rows, Any]]:
        """Rows and values (or futures of them), read row by row."""
        rows_of = order(self._selection, self.size, self.seed, self.epoch, self.shuffle)
        for rows in itertools.islice(rows_of, self.batch, None):
            if len(rows) == self.size or not self.drop_last:
                yield rows, self._read(rows) if executor is None else executor.submit(self._read, rows)

    def _mixed(self, executor: ThreadPoolExecutor | None) -> Iterator[tuple[Rows, Any]]:
        """Rows and values (or futures of them), read in blocks."""
        total = len(self._selection)
        slab = slab_rows(total, self.size, self.buffer)
        if self._pool is None:
            self._pool = Pool(self._readers, slab)
        pool = self._pool.emptied(executor)
        fills: dict[int, Fill] = {}
        number, passed = 0, self.batch  # `self.batch` moves on meanwhile
        for event in mixture(self._selection, self.size, self.seed, self.epoch, self.block, self.buffer):
            if isinstance(event, Fill):
                fills[event.number] = event
                fills.pop(event.number - pool.slots, None)
                if number >= passed:
                    pool.fill(fills.pop(event.number))
                continue
            number += 1
            if number <= passed or (len(event.rows) < self.size and self.drop_last):
                continue
            for held in sorted(fills):  # what an iteration that goes on has passed over, but needs
                pool.fill(fills.pop(held))
            yield event.rows, pool.reads(event, self.dtype)

    def _read(self, rows: Rows) -> dict[str, Tensor]:
        out = {}
        contiguous = len(rows) > 0 and int(rows[-1]) - int(rows[0]) == len(rows) - 1 and not self.shuffle
        for name, reader in self._readers.items():
            if contiguous:
                value = reader.span(int(rows[0]), int(rows[-1]) + 1)
                value = value if self.dtype is None else value.to(self.dtype)
            else:
                value = reader.gather(rows, self.dtype)
            out[name] = value
        return out

    def _delivered(self, rows: Rows, found: Any) -> Any:
        values: dict[str, Tensor] = found.result() if isinstance(found, Future) else found
        self.batch += 1
        if self.device is not None:
            if self.device.type == "cuda":
                values = {name: value.pin_memory() for name, value in values.items()}
            values = {name: value.to(self.device, non_blocking=True) for name, value in values.items()}
        given: Any = next(iter(values.values())) if self._single else values
        return (torch.from_numpy(rows), given) if self.with_rows else given
