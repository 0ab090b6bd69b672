"""Rows in pieces of bounded size, and the streaming reducers of `core` over them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.record import collect_reducers
from actinium.core.reducing import Context
from actinium.store.codec import row_bytes
from actinium.store.reader import Reader
from actinium.store.selection import Selection
from actinium.store.tables import Tables

__all__ = ["chunks", "reduced"]

CHUNK = 32 * 2**20  # bytes read together


def _per_chunk(reader: Reader) -> int:
    return max(1, CHUNK // row_bytes(reader.site.shape, reader.site.dtype))


def chunks(reader: Reader, selection: Selection) -> Iterator[Tensor]:
    """The rows in order, (n, …) at a time."""
    for start, stop in selection.blocks(_per_chunk(reader)):
        yield reader.span(int(start), int(stop))


def reduced(reader: Reader, tables: Tables, selection: Selection, reduce: Any, progress: bool) -> Any:
    """Results of reducers over the rows of a site; see `Store.reduce`."""
    made = collect_reducers(reduce)
    plain = [one for one in made.values() if not getattr(one, "wants_context", False)]
    placed = [one for one in made.values() if getattr(one, "wants_context", False)]
    for values in _shown(chunks(reader, selection) if plain else iter(()), len(selection), progress):
        for one in plain:
            one.update(values.flatten(1))
    for values, context in _windows(reader, tables, selection) if placed else ():
        for one in placed:
            one.update(values, context)
    results = {name: one.result() for name, one in made.items()}
    return results[""] if list(results) == [""] else results


def _shown(parts: Iterator[Tensor], total: int, progress: bool) -> Iterator[Tensor]:
    if not progress:
        yield from parts
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("reading rows", total=total)
        for part in parts:
            yield part
            bar.advance(task, len(part))


def _windows(reader: Reader, tables: Tables, selection: Selection) -> Iterator[tuple[Tensor, Context]]:
    """Windows as the model saw them, (window, pos, features), with their tokens; what was not stored is masked."""
    for number, shard in enumerate(tables.manifest.shards):
        first = int(tables.starts[number])
        mine = _inside(selection, first, first + shard.rows)
        if not len(mine):
            continue
        table = tables.shard(number)
        window, slot, token = (table[name][mine] for name in ("sequence", "slot", "token"))
        present, place = np.unique(window, return_inverse=True)
        per_pass = max(1, _per_chunk(reader) // (int(slot.max()) + 1))
        for begin in range(0, len(present), per_pass):
            chosen = np.flatnonzero((place >= begin) & (place < begin + per_pass))
            count = min(per_pass, len(present) - begin)
            size = int(slot[chosen].max()) + 1
            at = (torch.from_numpy(place[chosen] - begin), torch.from_numpy(slot[chosen].astype(np.int64)))
            rows = reader.gather(first + mine[chosen]).flatten(1)
            values = torch.zeros(count, size, rows.shape[1], dtype=rows.dtype)
            values[at] = rows
            mask = torch.zeros(count, size, dtype=torch.bool)
            mask[at] = True
            ids = None
            if bool((token[chosen] >= 0).all()):
                ids = torch.zeros(count, size, dtype=torch.long)
                ids[at] = torch.from_numpy(token[chosen].astype(np.int64))
            numbers = torch.from_numpy(present[begin : begin + count].astype(np.int64))
            yield values, Context(("batch", "pos", "feature"), mask, ids, numbers, reader.site.name)


def _inside(selection: Selection, start: int, stop: int) -> np.ndarray:
    """The selected rows among `start` to `stop`, counted from `start`."""
    if selection.whole:
        return np.arange(stop - start, dtype=np.int64)
    chosen = np.zeros(stop - start, dtype=bool)
    for a, b in selection.ranges:
        if b > start and a < stop:
            chosen[max(0, a - start) : min(stop, b) - start] = True
    return np.flatnonzero(chosen)
