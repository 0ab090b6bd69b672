"""What a person sees while a store is made."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from torch import Tensor

from actinium.store.codec import row_bytes
from actinium.store.documents import Documents
from actinium.store.manifest import Manifest, Shard
from actinium.store.windows import Block

__all__ = ["Meter"]


class Meter:
    """A bar with tokens per second, bytes written and the time left, over the documents or the tokens wanted.

    Args:
        documents: the data; their number, if it is known, is the whole.
        manifest: of the store, with what is there already.
        shown: whether anything is shown.
    """

    def __init__(self, documents: Documents, manifest: Manifest, shown: bool) -> None:
        self.shown, self.limit = shown, manifest.layout.max_tokens
        self.by_tokens = self.limit is not None
        self.size = documents.size
        self.tokens = sum(s.tokens for s in manifest.shards)
        self.bytes = sum(f.bytes for s in manifest.shards for f in s.sites)
        self.row_bytes = sum(row_bytes(s.shape, s.dtype) for s in manifest.sites)
        self.documents = manifest.next.document
        self.unit = "tokens" if documents.kind in ("text", "tokens") else "items"
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self.shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("recording"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[rate]} {task.fields[unit]}/s"),
                TextColumn("{task.fields[written]} written"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=self.limit or self.size, rate="-", written="0 B", unit=self.unit)
            self._bar.start()
        self._begun = self.tokens
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def passed(self, block: Block, windows: int, batch: list[Tensor]) -> None:
        """A pass of so many windows has been computed."""
        if block.mask is not None:
            self.tokens += len(batch[0])
        else:
            self.tokens += min(windows, block.windows)
        if block.documents is None:
            self.documents += min(windows, block.windows)
        else:
            self.documents = block.next.document
        self._show()

    def did(self, shard: Shard) -> None:
        """A whole block has been computed elsewhere."""
        self.tokens += shard.tokens
        self.documents = max(self.documents, shard.next.document)
        self._show()

    def shard(self, shard: Shard) -> None:
        """A shard has been written."""
        self.bytes += sum(f.bytes for f in shard.sites)
        self._show()

    def _show(self) -> None:
        if self._bar is None:
            return
        elapsed = self._bar.tasks[0].elapsed or 0.0
        rate = f"{(self.tokens - self._begun) / elapsed:,.0f}" if elapsed > 0 else "-"
        done = min(self.tokens, self.limit) if self.limit is not None else self.documents
        self._bar.update(self._task, completed=done, rate=rate, written=_bytes(self.bytes))


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
