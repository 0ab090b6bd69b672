"""The rows with the largest values of a unit or along a direction."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError
from actinium.store.reader import Reader, Rows
from actinium.store.selection import Selection
from actinium.store.tables import duck

if TYPE_CHECKING:
    import pandas

__all__ = ["Cache", "direction_of", "largest"]

CHUNK = 1 << 22  # values looked at together


def direction_of(site_shape: list[int], wanted: int | tuple[int, ...] | Any) -> Tensor | int:
    """The number of a unit in the flattened row, or a direction (features,).

    Raises:
        InputError: out of range, of another size, or not finite.
    """
    size = int(np.prod(site_shape))
    if isinstance(wanted, tuple) and all(isinstance(i, int | np.integer) for i in wanted):
        inside = len(wanted) == len(site_shape) and all(0 <= i < n for i, n in zip(wanted, site_shape, strict=True))
        if not inside:
            raise InputError(f"unit {wanted} is not in a row of shape {tuple(site_shape)}")
        return int(np.ravel_multi_index(wanted, site_shape))
    if isinstance(wanted, int | np.integer):
        if not -size <= wanted < size:
            raise InputError(f"unit {wanted} is out of range: a row has {size} units")
        return int(wanted) % size
    direction = torch.as_tensor(wanted).detach().cpu().float().flatten()
    if direction.numel() != size:
        raise InputError(f"the direction has {direction.numel()} entries, a row has {size}")
    if not bool(direction.isfinite().all()):
        raise InputError("the direction holds NaN or infinite values")
    return direction


def largest(reader: Reader, selection: Selection, wanted: Tensor | int, k: int) -> tuple[Rows, NDArray[np.float32]]:
    """Rows and values of the k largest, exactly, in one pass; the earlier row first among equals; NaN left out."""
    width = int(np.prod(reader.site.shape))
    rows, values = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for start, stop in selection.blocks(max(1, CHUNK // width)):
        flat = reader.span(int(start), int(stop)).flatten(1)
        found = (flat[:, wanted].float() if isinstance(wanted, int) else flat.float() @ wanted).numpy()
        # Only what can still be among the first k is sorted.
        bar = values[k - 1] if len(values) >= k else -np.inf
        near = np.flatnonzero((found > bar) if len(values) >= k else ~np.isnan(found))
        if not len(near):
            continue
        rows, values = np.concatenate([rows, start + near]), np.concatenate([values, found[near]])
        best = np.lexsort((rows, -values))[:k]
        rows, values = rows[best], values[best]
    return rows, values


class Cache:
    """What was asked before, in a DuckDB file beside the store; without one nothing is kept.

    Args:
        path: the file.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def _open(self, write: bool) -> Any:
        duckdb = duck()
        if self.path is None or (not write and not self.path.exists()):
            return None
        try:
            return duckdb.connect(str(self.path), read_only=not write)
        except duckdb.Error:  # read-only folder, another process writes, a damaged file: it is only a cache
            return None

    def get(self, key: str, k: int) -> tuple[Rows, NDArray[np.float32]] | None:
        """The k largest under a key, if at least as many were kept."""
        database = self._open(False)
        if database is None:
            return None
        with database:
            try:
                kept = database.execute("SELECT k FROM asked WHERE key = ? AND k >= ?", [key, k]).fetchone()
                if kept is None:
                    return None
                found = database.execute(
                    "SELECT row, value FROM largest WHERE key = ? AND rank < ? ORDER BY rank", [key, k]
                ).fetchnumpy()
            except duck().Error:
                return None
        return np.asarray(found["row"], np.int64), np.asarray(found["value"], np.float32)

    def put(self, key: str, k: int, rows: Rows, values: NDArray[np.float32]) -> None:
        """Keep an answer."""
        database = self._open(True)
        if database is None:
            return
        with database:
            try:
                database.execute("CREATE TABLE IF NOT EXISTS asked (key VARCHAR PRIMARY KEY, k BIGINT)")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS largest (key VARCHAR, rank BIGINT, row BIGINT, value FLOAT)"
                )
                database.begin()
                database.execute("DELETE FROM largest WHERE key = ?", [key])
                database.execute("INSERT OR REPLACE INTO asked VALUES (?, ?)", [key, k])
                entries: pandas.DataFrame = _frame(key, rows, values)
                database.execute("INSERT INTO largest SELECT key, rank, row, value FROM entries")
                del entries
                database.commit()
            except duck().Error:
                return


def _frame(key: str, rows: Rows, values: NDArray[np.float32]) -> pandas.DataFrame:
    import pandas

    return pandas.DataFrame({"key": key, "rank": np.arange(len(rows)), "row": rows, "value": values})


def key_of(store: str, site: str, selection: Selection, wanted: Tensor | int) -> str:
    """What an answer depends on: the store's files, the site, the rows and the unit or direction."""
    what = str(wanted) if isinstance(wanted, int) else hashlib.sha256(wanted.numpy().tobytes()).hexdigest()
    return f"{store}:{site}:{selection.mark}:{what}"
