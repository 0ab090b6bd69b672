"""Where each row comes from: a Parquet file for each shard."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import MissingExtraError
from actinium.store.address import Address
from actinium.store.manifest import File
from actinium.store.recorder import Recorder
from actinium.store.windows import Block

__all__ = ["COLUMNS", "arrow", "write_table"]

COLUMNS = ("row", "sequence", "slot", "document", "position", "token")


def arrow() -> Any:
    """The pyarrow library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "store") from None
    return pyarrow


def write_table(address: Address, block: Block, recorder: Recorder) -> File:
    """Write the table of one shard.

    Columns: `row` (number in the store), `sequence` (number of the window in the store), `slot` (place in the window
    as the model saw it), `document` (number in the data), `position` (place in the document's tokens, -1 for a first
    token that every window has; for images the patch or pixel), `token` (id; null without tokens).
    """
    pa = arrow()
    rows = recorder.rows(block)
    columns = _of_tokens(block, recorder) if block.ids is not None else _of_items(block, rows, recorder.per_window)
    columns["row"] = torch.arange(block.first_row, block.first_row + rows)
    kinds = {
        "row": pa.int64(),
        "sequence": pa.int64(),
        "slot": pa.int32(),
        "document": pa.int64(),
        "position": pa.int32(),
    }
    arrays = [pa.array(columns[name].numpy(), kind) for name, kind in kinds.items()]
    token = columns.get("token")
    arrays.append(pa.nulls(rows, pa.int32()) if token is None else pa.array(token.numpy(), pa.int32()))
    sink = pa.BufferOutputStream()
    table = pa.table(dict(zip(COLUMNS, arrays, strict=True)))
    pa.parquet.write_table(table, sink, compression="zstd", store_schema=False)
    data = sink.getvalue().to_pybytes()
    name = f"rows/{block.number:06d}.parquet"
    address.write(name, data)
    return File(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _of_tokens(block: Block, recorder: Recorder) -> dict[str, Tensor]:
    keep = block.kept(recorder.special, recorder.layout.exclude_special)
    window, slot = keep.nonzero(as_tuple=True)
    return {
        "sequence": window + block.first_window,
        "slot": slot,
        "document": block.documents[keep],  # type: ignore[index]
        "position": block.positions[keep],  # type: ignore[index]
        "token": block.ids[keep],  # type: ignore[index]
    }


def _of_items(block: Block, rows: int, per_window: int) -> dict[str, Tensor]:
    window, slot = (torch.arange(rows) // per_window), (torch.arange(rows) % per_window)
    return {
        "sequence": window + block.first_window,
        "slot": slot,
        "document": window + block.first_document,
        "position": slot,
    }
