"""The work itself: blocks of windows through the model, and a writer beside it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from actinium.store.address import Address
from actinium.store.codec import encode
from actinium.store.documents import Documents
from actinium.store.manifest import File, Manifest, Shard, StoredSite, folder_of
from actinium.store.progress import Meter
from actinium.store.recorder import Recorder
from actinium.store.shard import ShardFile
from actinium.store.table import write_table
from actinium.store.windows import Block, blocks

__all__ = ["run", "write_shard"]

WAITING = 2  # passes that may wait for the writer


def run(
    address: Address,
    manifest: Manifest,
    recorder: Recorder,
    documents: Documents,
    engine: str,
    workers: int,
    progress: bool,
    alive: Callable[[], None],
) -> Manifest:
    """Write the shards that are missing, and the manifest after each of them.

    Raises:
        KeyboardInterrupt: interrupted; it says what was kept.
        StoreError: the store cannot be written.
    """
    layout, done = manifest.layout, len(manifest.shards)
    taken = sum(shard.tokens for shard in manifest.shards)
    with Meter(documents, manifest, progress) as meter:
        found = blocks(documents, recorder.model.tokenizer, layout, manifest.next, done, taken)
        found = _numbered(found, recorder, manifest.rows)
        if engine == "ray":
            from actinium.store.ray_engine import shards

            finished = shards(address, manifest, recorder, found, workers, meter)
        else:
            finished = _local(address, manifest.sites, recorder, found, meter)
        try:
            for shard in finished:
                manifest = manifest.model_copy(update={"shards": [*manifest.shards, shard]})
                manifest.save(address)
                alive()
                meter.shard(shard)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{manifest.rows:,} rows in {len(manifest.shards)} shards are kept at {address}; "
                "the same call goes on from there"
            ) from None
    manifest = manifest.model_copy(update={"complete": True})
    manifest.save(address)
    return manifest


def _numbered(found: Iterator[Block], recorder: Recorder, first_row: int) -> Iterator[Block]:
    """Blocks that know the number of their first row."""
    for block in found:
        block.first_row = first_row
        first_row += recorder.rows(block)
        yield block


def write_shard(
    address: Address,
    sites: list[StoredSite],
    recorder: Recorder,
    block: Block,
    batches: Iterator[list[Tensor]],
) -> Shard:
    """Write the files of one block; they appear when all of them are whole.

    Args:
        address: the store.
        sites: what is kept.
        recorder: tells how many rows to expect.
        block: the windows.
        batches: rows of each site, pass by pass.

    Returns:
        The shard's entry in the manifest.
    """
    rows = recorder.rows(block)
    files: list[ShardFile] = []
    with ExitStack() as stack:
        for site in sites:
            name = f"sites/{folder_of(site.name)}/{block.number:06d}.safetensors"
            path = stack.enter_context(address.staged(name))
            file = ShardFile(path, name, site, rows)
            stack.callback(file.close)
            files.append(file)
        for batch in batches:
            _append(files, batch)
        entries = [file.finish() for file in files]
        table = write_table(address, block, recorder)
    return _entry(block, rows, entries, table, files)


def _append(files: list[ShardFile], batch: list[Tensor]) -> None:
    for file, rows in zip(files, batch, strict=True):
        file.append(encode(rows, file.site.dtype))


def _entry(block: Block, rows: int, entries: list[File], table: File, files: list[ShardFile]) -> Shard:
    tokens = block.windows if block.mask is None else int(block.mask.sum())
    return Shard(
        rows=rows,
        windows=block.windows,
        tokens=tokens,
        sites=entries,
        table=table,
        next=block.next,
        saturated={f.site.name: f.saturated for f in files if f.saturated},
        not_finite={f.site.name: f.not_finite for f in files if f.not_finite},
        error={f.site.name: f.error for f in files if f.site.dtype == "int8"},
    )


class _Stopped(Exception):
    """The computing side has stopped; what the writer has begun is dropped."""


def _local(
    address: Address,
    sites: list[StoredSite],
    recorder: Recorder,
    found: Iterator[Block],
    meter: Meter,
) -> Iterator[Shard]:
    """Shards as they are finished, computed here while a thread beside it writes."""
    layout, device = recorder.layout, recorder.model.device
    writer = _Writer(address, sites, recorder)
    try:
        for block in found:
            writer.put(block)
            for batch in recorder.batches(block):
                event = None
                if device.type == "cuda":
                    event = torch.cuda.Event()
                    event.record()
                writer.put((batch, event))
                meter.passed(block, layout.batch_size, batch)
                yield from writer.finished()
        writer.put(None)
        writer.join()
        yield from writer.finished()
    finally:
        writer.stop()


class _Writer:
    """A thread that writes what it is given, at most `WAITING` passes behind."""

    def __init__(self, address: Address, sites: list[StoredSite], recorder: Recorder) -> None:
        self.address, self.sites, self.recorder = address, sites, recorder
        self.incoming: queue.Queue[Any] = queue.Queue(WAITING)
        self.done: queue.SimpleQueue[Shard] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self.stopped = False
        self.held: Any = None
        self.thread = threading.Thread(target=self._run, name="actinium-store-writer", daemon=True)
        self.thread.start()

    def _get(self) -> Any:
        while True:
            try:
                return self.incoming.get(timeout=0.1)
            except queue.Empty:
                if self.stopped:
                    raise _Stopped from None

    def _run(self) -> None:
        try:
            block = self._get()
            while block is not None:
                shard = write_shard(self.address, self.sites, self.recorder, block, self._batches())
                self.done.put(shard)
                block = self.held
        except _Stopped:
            pass
        except BaseException as error:
            self.error = error

    def _batches(self) -> Iterator[list[Tensor]]:
        """The passes of one block; what follows them (the next block, or the end) is held."""
        while isinstance(item := self._get(), tuple):
            batch, event = item
            if event is not None:
                event.synchronize()
            yield batch
        self.held = item

    def put(self, item: Any) -> None:
        """Hand something over; waits while the writer is behind, raises what stopped it."""
        while True:
            if self.error is not None:
                raise self.error
            try:
                self.incoming.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def finished(self) -> Iterator[Shard]:
        """The shards written since the last call."""
        while not self.done.empty():
            yield self.done.get()

    def join(self) -> None:
        """Wait until all is written."""
        self.thread.join()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End the thread; an unfinished shard is dropped."""
        self.stopped = True
        self.thread.join()
