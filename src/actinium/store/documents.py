"""What activations are made from: one stream of documents over every kind of data, which can start anywhere."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError, MissingExtraError, unknown
from actinium.core.provenance import fingerprint

__all__ = ["Documents", "read_documents"]

IMAGE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TEXT_FILES = (".txt", ".md", ".text")
TABLE_FILES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
TEXT_COLUMNS = ("text", "content", "document", "sentence", "prompt")
ID_COLUMNS = ("input_ids", "tokens", "token_ids")


@dataclass(frozen=True)
class Documents:
    """A stream of documents.

    Attributes:
        kind: "text" (str), "tokens" (1-D int64 tensors), "images" (PIL images) or "arrays" (tensors of one shape).
        name: what the data are called.
        fingerprint: SHA-256 of what identifies them.
        size: how many there are, None where nobody knows before the end.
        read: the documents from number `start` on, in order.
    """

    kind: str
    name: str
    fingerprint: str
    size: int | None
    read: Callable[[int], Iterator[Any]]


def read_documents(data: Any, column: str | None = None) -> Documents:
    """Open any kind of data as a stream of documents.

    Args:
        data: texts; a file of text (a document per line, or per paragraph where blank lines part them), JSONL, CSV,
            Parquet or .npy; a folder of images, or of text and such tables; a `datasets.Dataset`
            or `IterableDataset`; lists of token ids; a tensor or array (integers (rows, pos) are token ids, floats
            (rows, …) what the module's forward takes); a `DataLoader` that does not shuffle, whose batches are
            tensors, texts or dicts with such a column.
        column: the column of a table that holds the texts, token ids or images; found by its name or type by
            default.

    Raises:
        InputError: no documents, another type, a missing column (those that exist are named), unreadable files.
        MissingExtraError: the library that reads this kind of file is not installed.
    """
    if isinstance(data, str | os.PathLike):
        return _from_path(data, column)
    if isinstance(data, Tensor) or (hasattr(data, "__array__") and not hasattr(data, "mode")):
        return _from_array(torch.as_tensor(data), "array")
    if isinstance(data, torch.utils.data.DataLoader):
        return _from_loader(data, column)
    if hasattr(data, "features") and hasattr(data, "take"):
        return _from_dataset(data, column)
    if isinstance(data, Sequence):
        return _from_list(data)
    raise InputError(
        f"cannot read documents from a {type(data).__name__}; pass texts, a file or folder, a datasets.Dataset, "
        "token ids, an array, or a DataLoader"
    )


# Files --------------------------------------------------------------------------------------------------------


def _from_path(data: str | os.PathLike[str], column: str | None) -> Documents:
    path = Path(data)
    try:
        there = path.exists()
    except (OSError, ValueError):  # a long text is no path
        there = False
    if not there:
        raise InputError(f"no file or folder {str(data)!r}; for one text pass [text]")
    if path.is_file():
        return _from_files([path], path.name, column)
    found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    images = [p for p in found if p.suffix.lower() in IMAGE_FILES]
    if images:
        return _from_images(images, path.name)
    chosen = [p for p in found if p.suffix.lower() in (*TEXT_FILES, *TABLE_FILES)]
    if chosen:
        return _from_files(chosen, path.name, column)
    raise InputError(f"the folder {str(path)!r} holds no images, text, JSONL, CSV or Parquet files")


def _identity(paths: list[Path]) -> str:
    """Of names, sizes and contents; of a file over 64 MB its first and last 32 MB are read."""
    digest, half = hashlib.sha256(), 2**25
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(half))
            if size > half:
                file.seek(max(half, size - half))
                digest.update(file.read(half))
    return digest.hexdigest()


def _from_images(paths: list[Path], name: str) -> Documents:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtraError("pillow", "vision") from None

    def read(start: int) -> Iterator[Any]:
        for path in paths[start:]:
            try:
                with Image.open(path) as image:
                    yield image.convert("RGB")
            except (UnidentifiedImageError, OSError) as error:
                raise InputError(f"cannot read the image {str(path)!r}: {error}") from None

    return Documents("images", f"folder {name}", _identity(paths), len(paths), read)


def _from_files(paths: list[Path], name: str, column: str | None) -> Documents:
    if paths[0].suffix.lower() == ".npy":
        return _from_npy(paths[0])
    readers = [_reader(path, column) for path in paths]
    try:
        first = next((d for reader in readers for d in reader()), None)
    except OSError as error:
        raise InputError(f"cannot read {name!r}: {error.strerror or error}") from None
    if first is None:
        raise InputError(f"{name!r} holds no documents")

    def read(start: int) -> Iterator[Any]:
        return itertools.islice((d for reader in readers for d in reader()), start, None)

    return Documents("text" if isinstance(first, str) else "tokens", name, _identity(paths), None, read)


def _reader(path: Path, column: str | None) -> Callable[[], Iterator[Any]]:
    ending = path.suffix.lower()
    if ending == ".parquet":
        return lambda: _parquet(path, column)
    if ending in (".jsonl", ".ndjson"):
        return lambda: _jsonl(path, column)
    if ending in (".csv", ".tsv"):
        return lambda: _csv(path, column, "\t" if ending == ".tsv" else ",")
    if ending in (".npz", ".pt", ".pth", ".pkl", ".bin", ".safetensors", ".zip", ".gz"):
        raise InputError(f"cannot read documents from {path.name!r}; pass text, JSONL, CSV, Parquet or .npy")
    return lambda: _text(path)


def _text(path: Path) -> Iterator[str]:
    """Paragraphs where blank lines separate them, else lines; read line by line."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            by_paragraph = _has_paragraphs(path)
            held: list[str] = []
            for line in map(str.strip, file):
                if not by_paragraph and line:
                    yield line
                elif line:
                    held.append(line)
                elif held:
                    yield "\n".join(held)
                    held = []
            if held:
                yield "\n".join(held)
    except UnicodeDecodeError as error:
        raise InputError(f"{str(path)!r} is not UTF-8 text (byte {error.start}: {error.reason})") from None


def _has_paragraphs(path: Path) -> bool:
    """Whether a blank line stands between two others."""
    seen = blank = False
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if line.strip():
                if blank:
                    return True
                seen = True
            else:
                blank = seen
    return False


def _jsonl(path: Path, column: str | None) -> Iterator[Any]:
    chosen = column
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path.name}, line {number} is not JSON: {error}") from None
            if isinstance(row, str) and column is None:
                yield row
                continue
            if not isinstance(row, dict):
                raise InputError(f"{path.name}, line {number} holds a {type(row).__name__}, not an object")
            chosen = chosen or _column(row, path.name)
            if chosen not in row:
                raise InputError(f"{path.name}, line {number}: {unknown('column', chosen, row)}")
            yield _checked(row[chosen], f"{path.name}, line {number}")


def _csv(path: Path, column: str | None, delimiter: str) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter)
        for number, row in enumerate(rows, 1):
            chosen = column or _column(row, path.name)
            if row.get(chosen) is None:
                raise InputError(f"{path.name}, row {number}: {unknown('column', chosen, [c for c in row if c])}")
            yield _checked(row[chosen], f"{path.name}, row {number}")


def _parquet(path: Path, column: str | None) -> Iterator[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("pyarrow", "store") from None
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"cannot read the Parquet file {str(path)!r}: {error}") from None
    names = file.schema_arrow.names
    chosen = column or next((c for c in (*TEXT_COLUMNS, *ID_COLUMNS) if c in names), None)
    if chosen is None:
        chosen = next((f.name for f in file.schema_arrow if pa.types.is_string(f.type)), None)
    if chosen is None or chosen not in names:
        raise InputError(unknown(f"column of texts in {path.name}:", str(chosen), names))
    number = 0
    for batch in file.iter_batches(1024, columns=[chosen]):
        for value in batch.column(0).to_pylist():
            yield _checked(value, f"{path.name}, row {number}")
            number += 1


def _column(row: dict[str, Any], where: str) -> str:
    """The column of texts, token ids or images of a row."""
    for name in (*TEXT_COLUMNS, *ID_COLUMNS):
        if name in row:
            return name
    for name, value in row.items():
        if isinstance(value, str) or hasattr(value, "convert"):
            return name
    raise InputError(f"{where} has no column of texts; its columns are {', '.join(map(repr, row))}; pass column=")


def _checked(value: Any, where: str) -> Any:
    """A document as text, token ids or an image."""
    if isinstance(value, str) or hasattr(value, "convert"):
        return value
    if isinstance(value, Tensor) and not value.is_floating_point() and value.ndim == 1:
        return value.long()
    if isinstance(value, Sequence | np.ndarray) and len(value) and all(isinstance(t, int | np.integer) for t in value):
        return torch.as_tensor(np.asarray(value), dtype=torch.long)
    raise InputError(f"{where} holds {type(value).__name__}, expected a text, an image or a list of token ids")


# Objects ------------------------------------------------------------------------------------------------------


def _kind(first: Any) -> str:
    return "text" if isinstance(first, str) else "tokens" if isinstance(first, Tensor) else "images"


def _from_list(items: Sequence[Any]) -> Documents:
    if not len(items):
        raise InputError("no documents given")
    checked = [_checked(item, f"document {i}") for i, item in enumerate(items)]
    kinds = {_kind(item) for item in checked}
    if len(kinds) > 1:
        raise InputError(f"documents of several kinds: {', '.join(sorted(kinds))}")
    (kind,) = kinds
    if kind == "text" and not any(item.strip() for item in checked):
        raise InputError("all documents are empty")
    plain = [np.asarray(item) for item in checked] if kind == "images" else checked
    return Documents(kind, f"{len(items)} documents", fingerprint(plain), len(items), lambda n: iter(checked[n:]))


def _from_array(array: Tensor, name: str) -> Documents:
    if array.ndim < 1 or not array.numel():
        raise InputError(f"the {name} is empty: shape {tuple(array.shape)}")
    if array.is_floating_point():
        if array.ndim < 2:
            raise InputError(f"an array of floats has rows and at least one more dimension, not {tuple(array.shape)}")
        rows, kind = array, "arrays"
    elif array.ndim <= 2 and array.dtype not in (torch.bool,):
        rows, kind = (array if array.ndim == 2 else array[None]), "tokens"
    else:
        raise InputError(f"cannot read an array of {array.dtype} with shape {tuple(array.shape)} as documents")

    def read(start: int) -> Iterator[Any]:
        for row in rows[start:]:
            yield row.long() if kind == "tokens" else row

    return Documents(kind, name, fingerprint(array), len(rows), read)


def _from_npy(path: Path) -> Documents:
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read the array file {str(path)!r}: {error}") from None
    found = _from_array(torch.from_numpy(array), path.name)
    return Documents(found.kind, path.name, _identity([path]), found.size, found.read)


def _from_dataset(data: Any, column: str | None) -> Documents:
    first = next(iter(data.take(1)), None)
    if first is None:
        raise InputError("the dataset is empty")
    chosen = column or _column(first, "the dataset")
    if chosen not in first:
        raise InputError(unknown("column of the dataset:", chosen, first))
    kind = _kind(_checked(first[chosen], "row 0"))
    info = getattr(data, "info", None)
    name = getattr(info, "dataset_name", None) or "dataset"
    mark = getattr(data, "_fingerprint", None)
    size = len(data) if hasattr(data, "__len__") else None
    print_of = mark if mark is not None else [str(first[chosen])[:1000], name]

    def read(start: int) -> Iterator[Any]:
        for number, row in enumerate(data.skip(start), start):
            yield _checked(row[chosen], f"row {number}")

    return Documents(kind, name, fingerprint([print_of, chosen]), size, read)


def _from_loader(data: Any, column: str | None) -> Documents:
    if isinstance(data.sampler, torch.utils.data.RandomSampler):
        raise InputError(
            "this DataLoader shuffles, so that a run that is resumed would not read what it has read before; "
            "pass shuffle=False (batches are shuffled when the store is read)"
        )
    first = next(_rows_of(next(iter(data), None), column), None)
    if first is None:
        raise InputError("the DataLoader gives no documents")
    kind = "arrays" if isinstance(first, Tensor) and first.is_floating_point() else _kind(first)
    print_of = first if isinstance(first, str | Tensor) else np.asarray(first)

    def read(start: int) -> Iterator[Any]:
        return itertools.islice((d for batch in data for d in _rows_of(batch, column)), start, None)

    return Documents(kind, "DataLoader", fingerprint([print_of, column or ""]), None, read)


def _rows_of(batch: Any, column: str | None) -> Iterator[Any]:
    """The documents in a batch of a DataLoader: a tensor, texts, a dict, or a tuple whose first entry is one."""
    if batch is None:
        return
    if isinstance(batch, dict) or hasattr(batch, "input_ids"):
        batch = dict(batch)
        chosen = column or next((c for c in (*TEXT_COLUMNS, *ID_COLUMNS, "pixel_values") if c in batch), None)
        if chosen is None or chosen not in batch:
            raise InputError(unknown("column of the DataLoader:", str(chosen), batch))
        values, mask = batch[chosen], batch.get("attention_mask")
        for i, row in enumerate(values):
            real = mask is not None and isinstance(row, Tensor) and row.ndim == 1
            yield _row(row[mask[i].bool()] if real else row)
        return
    if isinstance(batch, tuple | list) and len(batch) and isinstance(batch[0], Tensor):
        batch = batch[0]
    if not isinstance(batch, Iterable):
        raise InputError(f"cannot read documents from batches of {type(batch).__name__}")
    for row in batch:
        yield _row(row)


def _row(row: Any) -> Any:
    return row if isinstance(row, Tensor) and row.is_floating_point() else _checked(row, "a batch of the DataLoader")
