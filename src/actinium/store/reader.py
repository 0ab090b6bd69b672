"""The rows of one site, whichever shards they lie in."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import StoreError
from actinium.store.address import Address
from actinium.store.codec import TORCH, decode, row_bytes
from actinium.store.manifest import File, Manifest, StoredSite
from actinium.store.shard import MappedShard, checked_header, header_of

__all__ = ["Files", "Reader", "Rows"]

Rows = NDArray[np.int64]
OPEN = 512  # files mapped at a time
FEW = 16  # a read of less than one row in so many fetches these rows, not the whole file, from another machine


class Files:
    """Local copies of the files of a store: themselves on a local disk, else fetched once for this process.

    Args:
        address: the store.
        verify: compare the checksum of each file when it is first used.
        cache: folder for fetched files; a temporary one by default.
    """

    def __init__(self, address: Address, verify: bool, cache: str | Path | None = None) -> None:
        self.address, self.verify = address, verify
        self._folder = Path(cache) if cache is not None else None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._checked: set[str] = set()
        self._lock = threading.Lock()

    def local(self, file: File) -> Path:
        """The path of a file on this machine.

        Raises:
            StoreError: it is missing, or its checksum differs.
        """
        with self._lock:
            path = self.address.local / file.name if self.address.local is not None else self._fetched(file)
            if self.verify and file.name not in self._checked:
                if not path.exists():
                    raise StoreError(f"{self.address}/{file.name} is missing; run the same create again")
                problem = check(path, file)
                if problem:
                    raise StoreError(f"{self.address}/{problem}")
                self._checked.add(file.name)
            return path

    def has(self, file: File) -> bool:
        """Whether a file can be used without fetching it."""
        return self.address.local is not None or (self._folder is not None and self._cached(file).exists())

    def _cached(self, file: File) -> Path:
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="actinium-")
            self._folder = Path(self._temporary.name)
        return self._folder / file.sha256

    def _fetched(self, file: File) -> Path:
        path = self._cached(file)
        if not path.exists():
            data = self.address.read(file.name)
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise StoreError(f"{self.address}/{file.name} is damaged: its checksum differs; restore it from a copy")
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(data)
            partial.replace(path)
        return path


def check(path: Path, file: File) -> str | None:
    """What is wrong with a file, or None: its size and its SHA-256 are compared."""
    size = path.stat().st_size
    if size != file.bytes:
        return f"{file.name} has {size} bytes, {file.bytes} expected; restore it, or remove it and create again"
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != file.sha256:
        return f"{file.name} is damaged: its checksum differs; restore it, or remove it and create again"
    return None


class Reader:
    """Rows of one site.

    Args:
        files: of the store.
        manifest: of the store.
        site: which.

    Attributes:
        starts: (shards + 1,) number of the first row of each shard, and of all rows.
    """

    def __init__(self, files: Files, manifest: Manifest, site: StoredSite) -> None:
        self.files, self.site = files, site
        index = [s.name for s in manifest.sites].index(site.name)
        self.entries = [(shard.sites[index], shard.rows) for shard in manifest.shards]
        self.starts: Rows = np.concatenate([[0], np.cumsum([rows for _, rows in self.entries])]).astype(np.int64)
        self._open: OrderedDict[int, MappedShard] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def scaled(self) -> bool:
        """Whether rows have scales (int8)."""
        return self.site.dtype == "int8"

    @property
    def width(self) -> int:
        """Bytes of the values of a row."""
        return row_bytes(self.site.shape, self.site.dtype) - 4 * self.scaled

    @property
    def dtype(self) -> torch.dtype:
        """What values are read as: the store's type, float32 for int8."""
        return torch.float32 if self.site.dtype == "int8" else TORCH[self.site.dtype]

    def shard(self, number: int) -> MappedShard:
        """A shard in memory, mapped when it is first used."""
        with self._lock:
            found = self._open.pop(number, None)
            if found is None:
                file, rows = self.entries[number]
                found = MappedShard(self.files.local(file), self.site, rows)
            self._open[number] = found
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
            return found

    def span(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`: without a copy where they lie in one shard of a local store that is not int8."""
        first = int(np.searchsorted(self.starts, start, "right")) - 1
        parts: list[Tensor] = []
        while start < stop:
            end = min(stop, int(self.starts[first + 1]))
            if end > start:
                shard, base = self.shard(first), int(self.starts[first])
                values = shard.values[start - base : end - base]
                scales = None if shard.scales is None else shard.scales[start - base : end - base]
                parts.append(decode(values, scales))
                start = end
            first += 1
        if not parts:
            return torch.empty((0, *self.site.shape), dtype=self.dtype)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def gather(self, rows: Rows, dtype: torch.dtype | None = None) -> Tensor:
        """The rows with these numbers, in this order."""
        if not len(rows):
            return torch.empty((0, *self.site.shape), dtype=dtype or self.dtype)
        shards = np.searchsorted(self.starts, rows, "right") - 1
        order = np.argsort(shards, kind="stable")
        numbers, begins = np.unique(shards[order], return_index=True)
        raw = np.empty((len(rows), self.width), np.uint8)
        scales = torch.empty(len(rows)) if self.scaled else None
        # Bytes are copied shard by shard, and put in order where they are still in the processor's cache.
        for number, begin, end in zip(numbers, begins, [*begins[1:], len(rows)], strict=True):
            self._take(
                int(number), rows[order[begin:end]], raw[begin:end], None if scales is None else scales[begin:end]
            )
        if len(numbers) > 1:
            back = np.empty(len(rows), np.int64)
            back[order] = np.arange(len(rows))
            raw = raw.take(back, axis=0, mode="clip")
            scales = None if scales is None else scales.index_select(0, torch.from_numpy(back))
        return self.values(raw, scales, dtype)

    def values(self, raw: NDArray[np.uint8], scales: Tensor | None, dtype: torch.dtype | None) -> Tensor:
        """Rows (n, …) from their bytes (n, width) and scales (n,)."""
        kind = TORCH[self.site.dtype]
        return decode(torch.from_numpy(raw).view(-1).view(kind).view(len(raw), *self.site.shape), scales, dtype)

    def copy(self, ranges: Rows, raw: NDArray[np.uint8], scales: Tensor | None, begin: int) -> None:
        """Read ranges of rows (n, 2), one after the other, into `raw` (m, width) and `scales` (m,) from row `begin`.

        On a local disk the bytes are read, not mapped: long reads cost less than a fault for each page.

        Raises:
            StoreError: a file ends too early.
        """
        parts = list(self._pieces(ranges))
        for shard, first, last in parts:
            shard.announce(first, last)
        for shard, first, last in parts:
            end = begin + last - first
            shard.read(first, last, raw[begin:end])
            if scales is not None and shard.scales is not None:
                scales[begin:end] = shard.scales[first:last]
            begin = end

    def _pieces(self, ranges: Rows) -> Iterator[tuple[MappedShard, int, int]]:
        """The ranges (n, 2) by shard, with rows counted from its first."""
        for start, stop in ranges.tolist():
            number = int(np.searchsorted(self.starts, start, "right")) - 1
            while start < stop:
                end, base = min(stop, int(self.starts[number + 1])), int(self.starts[number])
                if end > start:
                    yield self.shard(number), start - base, end - base
                    start = end
                number += 1

    def _take(self, number: int, rows: Rows, raw: NDArray[np.uint8], scales: Tensor | None) -> None:
        """Copy rows of one shard as they are stored, and their scales."""
        file, count = self.entries[number]
        local = rows - self.starts[number]
        if not self.files.has(file) and len(rows) * FEW < count and not self.files.verify:
            self._fetch(file, count, local, raw, scales)
            return
        shard = self.shard(number)
        np.take(shard.raw, local, axis=0, out=raw, mode="clip")  # in range; only this mode writes without a buffer
        if scales is not None and shard.scales is not None:
            torch.index_select(shard.scales, 0, torch.from_numpy(local), out=scales)

    def _fetch(self, file: File, count: int, local: Rows, raw: NDArray[np.uint8], scales: Tensor | None) -> None:
        """Some rows of a file on another machine, without the rest of it."""
        site, address = self.site, self.files.address
        head = len(header_of(site, count))
        wanted, back = np.unique(local, return_inverse=True)
        width = raw.shape[1]
        spans = [(0, head)] + [(head + int(r) * width, head + int(r + 1) * width) for r in wanted]
        if scales is not None:
            base = head + count * width
            spans += [(base + 4 * int(r), base + 4 * int(r) + 4) for r in wanted]
        parts = address.ranges(file.name, spans)
        checked_header(parts[0], file.bytes, site, count, f"{address}/{file.name}")
        if any(len(part) != stop - start for part, (start, stop) in zip(parts, spans, strict=True)):
            raise StoreError(f"{address}/{file.name} is cut off; restore it from a copy")
        found = np.frombuffer(b"".join(parts[1 : len(wanted) + 1]), np.uint8).reshape(len(wanted), width)
        raw[:] = found[back]
        if scales is not None:
            numbers = np.frombuffer(b"".join(parts[len(wanted) + 1 :]), "<f4")
            scales.copy_(torch.from_numpy(numbers[back].astype(np.float32)))


class Activations:
    """All rows of a site: indexed like a tensor, read only where they are asked for.

    Attributes:
        shape: (rows, …).
        dims: names of the dimensions, "row" first.
        dtype: what the values are read as.
    """

    def __init__(self, reader: Reader, rows: Any) -> None:
        self._reader, self._rows = reader, rows
        self.shape = torch.Size([len(rows), *reader.site.shape])
        self.dims = ("row", *reader.site.dims)
        self.dtype = reader.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Any) -> Tensor:
        """Rows by number, slice, list, array or tensor of numbers, or a mask.

        A slice with step 1 inside one shard is a view of the file in memory. Writing to it changes it in this
        process only, never the file.
        """
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1 and self._rows.whole:
                return self._reader.span(start, max(start, stop))
            return self._reader.gather(self._rows.of(np.arange(start, stop, step)))
        if isinstance(index, int | np.integer):
            return self._reader.gather(self._rows.of(np.array([index])))[0]
        return self._reader.gather(self._rows.of(as_numbers(index, len(self))))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Every row as an array (bfloat16 as float32): this reads the whole site."""
        value = self[:]
        array: NDArray[Any] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        return array.astype(dtype) if dtype is not None else array

    def __repr__(self) -> str:
        return f"Activations({self._reader.site.name}: {' '.join(self.dims)} {tuple(self.shape)} {self.dtype})"


def as_numbers(index: Any, size: int) -> Rows:
    """Row numbers from a list, array, tensor or mask."""
    array = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
    if array.dtype == bool:
        if array.shape != (size,):
            raise IndexError(f"a mask of shape {array.shape} for {size} rows")
        return np.flatnonzero(array).astype(np.int64)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise IndexError(f"rows are chosen by whole numbers (n,), not {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)
