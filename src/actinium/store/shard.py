"""One file of a shard: written as it comes, read by mapping it into memory."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import StoreError
from actinium.store.codec import TORCH, Encoded, as_bytes, row_bytes
from actinium.store.manifest import File, StoredSite

__all__ = ["MappedShard", "ShardFile", "checked_header"]

NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "int8": "I8"}
VALUES, SCALES = "values", "scales"


def header_of(site: StoredSite, rows: int) -> bytes:
    """The safetensors header of a file: its length, then JSON padded with spaces to a multiple of 8 bytes."""
    size = rows * int(np.prod(site.shape)) * TORCH[site.dtype].itemsize
    entries: dict[str, Any] = {
        VALUES: {"dtype": NAMES[site.dtype], "shape": [rows, *site.shape], "data_offsets": [0, size]}
    }
    if site.dtype == "int8":
        entries[SCALES] = {"dtype": "F32", "shape": [rows], "data_offsets": [size, size + 4 * rows]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class ShardFile:
    """A file that is being written, whose number of rows is known.

    Args:
        path: where.
        name: its name in the store.
        site: what it holds.
        rows: how many rows will come.
    """

    def __init__(self, path: Path, name: str, site: StoredSite, rows: int) -> None:
        self.name, self.site, self.rows, self.seen = name, site, rows, 0
        self.saturated = self.not_finite = 0
        self.error = (0.0, 0.0)
        self._digest, self._scales, self._bytes = hashlib.sha256(), [], 0
        self._file: BinaryIO = path.open("wb")
        self._put(header_of(site, rows))

    def _put(self, data: Any) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)

    def append(self, encoded: Encoded) -> None:
        """Write some rows."""
        self._put(as_bytes(encoded.values).data)
        if encoded.scales is not None:
            self._scales.append(encoded.scales.contiguous())
        self.seen += len(encoded.values)
        self.saturated += encoded.saturated
        self.not_finite += encoded.not_finite
        if encoded.error is not None:
            self.error = (self.error[0] + encoded.error[0], self.error[1] + encoded.error[1])

    def finish(self) -> File:
        """Close it and describe it.

        Raises:
            StoreError: another number of rows than announced has come.
        """
        if self.seen != self.rows:
            self.close()
            raise StoreError(f"{self.site.name}: {self.seen} rows came for a shard of {self.rows}")
        for scales in self._scales:
            self._put(as_bytes(scales).data)
        self.close()
        return File(name=self.name, bytes=self._bytes, sha256=self._digest.hexdigest())

    def close(self) -> None:
        """Close it, finished or not."""
        self._file.close()


def checked_header(head: bytes, total: int, site: StoredSite, rows: int, where: str) -> int:
    """Compare the beginning of a file with what the manifest says, and return where its numbers begin.

    Args:
        head: the first bytes of the file, at least as many as the header of such a file has.
        total: size of the file in bytes.
        site, rows: what the manifest says.
        where: how the file is called in messages.

    Raises:
        StoreError: the file is cut off, damaged, or holds something else.
    """
    mend = "remove it and run the same create again, or restore it from a copy"
    expected = header_of(site, rows)
    size = len(expected) + rows * row_bytes(site.shape, site.dtype)
    if total < size:
        raise StoreError(f"{where} is cut off: {total} bytes, {size} expected; {mend}")
    if total > size or bytes(head[: len(expected)]) != expected:
        raise StoreError(f"{where} is damaged: it does not begin as its manifest entry says; {mend}")
    return len(expected)


class MappedShard:
    """A local shard file in memory, without a copy. What is written to it stays in this process.

    Args:
        path: the file.
        site, rows: what the manifest says of it.

    Attributes:
        values: (rows, …) in the store's type.
        scales: (rows,) float32 for int8, else None.
        raw: (rows, bytes) the same values as bytes.

    Raises:
        StoreError: as `checked_header`.
    """

    def __init__(self, path: Path, site: StoredSite, rows: int) -> None:
        self.path = path
        head = len(header_of(site, rows))
        try:
            self._file = path.open("rb")  # closed when nothing uses the shard any more
            total = os.fstat(self._file.fileno()).st_size
            if total:
                self.map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise StoreError(f"{path} is missing; run the same create again, or restore it from a copy") from None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from None
        begin = checked_header(self.map[:head] if total else b"", total, site, rows, str(path))
        self.begin = begin
        data = memoryview(self.map)[begin:]
        self.values, self.scales = split(data, site, rows)
        width = int(np.prod(site.shape)) * TORCH[site.dtype].itemsize
        self.raw = (
            np.frombuffer(data[: rows * width], np.uint8).reshape(rows, width)
            if rows
            else np.empty((0, width), np.uint8)
        )

    def announce(self, start: int, stop: int) -> None:
        """Say that rows will be read soon, so that the disk can work on many at a time."""
        if hasattr(os, "posix_fadvise"):
            width = self.raw.shape[1]
            at, length = self.begin + start * width, (stop - start) * width
            os.posix_fadvise(self._file.fileno(), at, length, os.POSIX_FADV_WILLNEED)

    def read(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """Copy the bytes of rows into `out` (rows, width).

        Raises:
            StoreError: the file has become shorter.
        """
        width = self.raw.shape[1]
        view, at = memoryview(out).cast("B"), self.begin + start * width
        while len(view):
            done = os.preadv(self._file.fileno(), [view], at)
            if not done:
                raise StoreError(f"{self.path} is cut off; remove it and run the same create again, or restore it")
            view, at = view[done:], at + done


def split(data: Any, site: StoredSite, rows: int) -> tuple[Tensor, Tensor | None]:
    """The values and the scales in the bytes of a file after its header."""
    if not rows:
        scales = torch.empty(0) if site.dtype == "int8" else None
        return torch.empty((0, *site.shape), dtype=TORCH[site.dtype]), scales
    count = rows * int(np.prod(site.shape))
    values = torch.frombuffer(data, dtype=TORCH[site.dtype], count=count).view(rows, *site.shape)
    if site.dtype != "int8":
        return values, None
    # Copied: 4-byte numbers behind an odd number of bytes are not aligned.
    scales = torch.from_numpy(np.frombuffer(data, "<f4", rows, count).copy())
    return values, scales
