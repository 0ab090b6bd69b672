"""Reading where rows come from: with pyarrow by number, with DuckDB by question."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actinium.core.errors import InputError, MissingExtraError, StoreError
from actinium.store.manifest import Manifest
from actinium.store.reader import Files, Rows
from actinium.store.table import COLUMNS, arrow

if TYPE_CHECKING:
    import pandas

__all__ = ["Place", "Tables", "duck"]

HELD = 8  # tables kept in memory


@dataclass(frozen=True)
class Place:
    """A row in its context.

    Attributes:
        row: its number in the store.
        document, position: where it comes from (position in the document's tokens, or patch or pixel).
        tokens: ids around it that were stored, oldest first; empty without tokens.
        index: place of the row in `tokens`.
        text: the tokens as text, each on its own; empty where the store holds no tokenizer.
    """

    row: int
    document: int
    position: int
    tokens: list[int]
    index: int
    text: list[str]

    def __str__(self) -> str:
        pieces = list(self.text)
        if not pieces:
            return f"document {self.document}, position {self.position}"
        word = pieces[self.index]
        pieces[self.index] = f"{word[: len(word) - len(word.lstrip())]}[{word.lstrip()}]"
        return "".join(pieces)


def duck() -> Any:
    """The DuckDB library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise MissingExtraError("duckdb", "store") from None
    return duckdb


class Tables:
    """The tables of all shards.

    Args:
        files: of the store.
        manifest: of the store.
    """

    def __init__(self, files: Files, manifest: Manifest) -> None:
        self.files, self.manifest = files, manifest
        self.starts: Rows = np.concatenate([[0], np.cumsum([s.rows for s in manifest.shards])]).astype(np.int64)
        self._held: OrderedDict[int, dict[str, NDArray[Any]]] = OrderedDict()
        self._words: Any = None

    def shard(self, number: int) -> dict[str, NDArray[Any]]:
        """The columns of one shard; without tokens they hold -1.

        Raises:
            StoreError: the file is missing or damaged.
        """
        found = self._held.pop(number, None)
        if found is None:
            found = self._read(number)
        self._held[number] = found
        if len(self._held) > HELD:
            self._held.popitem(last=False)
        return found

    def _read(self, number: int, columns: tuple[str, ...] = COLUMNS) -> dict[str, NDArray[Any]]:
        pa, shard = arrow(), self.manifest.shards[number]
        path = self.files.local(shard.table)
        try:
            table = pa.parquet.read_table(path, columns=list(columns), memory_map=True)
            out = {name: table[name].fill_null(-1).to_numpy() for name in columns}
        except (pa.ArrowException, OSError, KeyError) as error:
            raise StoreError(f"{self.files.address}/{shard.table.name} is damaged: {error}") from None
        if any(len(column) != shard.rows or column.dtype.kind != "i" for column in out.values()):
            raise StoreError(f"{self.files.address}/{shard.table.name} is damaged: its rows are not those expected")
        return out

    def column(self, name: str) -> NDArray[np.int64]:
        """One column of all rows, in order."""
        parts = [self._read(i, (name,))[name] for i in range(len(self.manifest.shards))]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def of(self, rows: Rows) -> dict[str, NDArray[np.int64]]:
        """The columns of some rows."""
        out = {name: np.full(len(rows), -1, np.int64) for name in COLUMNS}
        shards = np.searchsorted(self.starts, rows, "right") - 1
        for number in np.unique(shards):
            mine = shards == number
            table = self.shard(int(number))
            for name in COLUMNS:
                out[name][mine] = table[name][rows[mine] - self.starts[number]]
        return out

    def decode(self, ids: list[int]) -> list[str]:
        """Each token as text; empty where the store holds no tokenizer."""
        file = self.manifest.tokenizer
        if file is None:
            return []
        if self._words is None:
            from tokenizers import Tokenizer

            try:
                self._words = Tokenizer.from_str(self.files.local(file).read_text(encoding="utf-8"))
            except Exception as error:  # the library raises Exception itself
                raise StoreError(f"{self.files.address}/{file.name} is damaged: {error}") from None
        whole = [self._words.decode([i], skip_special_tokens=False) for i in ids]
        # A decoder may drop the space that begins a text; the token itself knows whether it had one.
        raw = [self._words.id_to_token(i) or "" for i in ids]
        return [
            f" {w}" if r[:1] in ("▁", "Ġ") and not w.startswith(" ") else w for w, r in zip(whole, raw, strict=True)
        ]

    def context(self, row: int, before: int, after: int) -> Place:
        """A row with the stored tokens around it in its window."""
        if before < 0 or after < 0:
            raise InputError(f"before and after must be at least 0, not {before} and {after}")
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        table, local = self.shard(number), row - int(self.starts[number])
        document, position = int(table["document"][local]), int(table["position"][local])
        if int(table["token"][local]) < 0:
            return Place(row, document, position, [], 0, [])
        # The rows of a window lie together, in the order of their slots.
        slot, low, high = int(table["slot"][local]), max(0, local - before), min(len(table["slot"]), local + after + 1)
        near = np.arange(low, high)
        slots = table["slot"][low:high]
        same = (
            (table["sequence"][low:high] == table["sequence"][local])
            & (slots >= slot - before)
            & (slots <= slot + after)
        )
        chosen = near[same]
        tokens = table["token"][chosen].tolist()
        index = int(np.flatnonzero(chosen == local)[0])
        return Place(row, document, position, tokens, index, self.decode(tokens))

    def query(self, sql: str) -> pandas.DataFrame:
        """Ask DuckDB; the table `rows` has the columns row, sequence, slot, document, position and token.

        Raises:
            InputError: DuckDB refuses the question; it says why.
        """
        duckdb = duck()
        paths = [str(self.files.local(shard.table)) for shard in self.manifest.shards]
        with duckdb.connect(config={"enable_external_access": True}) as database:
            try:
                database.read_parquet(paths).create_view("rows")
                return database.sql(sql).df()
            except duckdb.Error as error:
                raise InputError(f"DuckDB refuses this question: {error}") from None
