"""A store of activations, opened for reading."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError, SiteError, unknown
from actinium.core.sites import Site
from actinium.store.address import Address
from actinium.store.batches import BLOCK, Batches
from actinium.store.manifest import Manifest
from actinium.store.ranking import Cache, direction_of, key_of, largest
from actinium.store.reader import Activations, Files, Reader, as_numbers
from actinium.store.selection import Selection
from actinium.store.statistics import Statistics, statistics
from actinium.store.streams import reduced
from actinium.store.table import COLUMNS
from actinium.store.tables import Place, Tables
from actinium.store.verify import problems

if TYPE_CHECKING:
    import pandas

__all__ = ["Store", "open"]


class Store:
    """Activations on disk: one row for each token, the same rows at every site.

    Args:
        path: a folder or address.
        verify: compare the SHA-256 of each file when it is first used.
        storage_options: what the file system of the address takes.
        cache: folder for files that are fetched from another machine; a temporary one by default.

    Attributes:
        manifest: what the store is made of.
        sites: names of its sites.

    Raises:
        StoreError: there is no store, it is damaged, or of a newer format.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Address,
        *,
        verify: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        cache: str | Path | None = None,
    ) -> None:
        self.address = path if isinstance(path, Address) else Address(path, storage_options)
        self.manifest = Manifest.load(self.address)
        self.files = Files(self.address, verify, cache)
        self._tables = Tables(self.files, self.manifest)
        self._readers = {s.name: Reader(self.files, self.manifest, s) for s in self.manifest.sites}
        self._selection = Selection.all(self.manifest.rows)

    def _view(self, selection: Selection) -> Store:
        new = object.__new__(Store)
        new.__dict__.update(self.__dict__, _selection=selection)
        return new

    # What it is -----------------------------------------------------------------------------------------------

    @property
    def sites(self) -> list[str]:
        """Names of the sites."""
        return list(self._readers)

    @property
    def complete(self) -> bool:
        """Whether all of the data were recorded; else `create` goes on."""
        return self.manifest.complete

    def __len__(self) -> int:
        """Rows at each site."""
        return len(self._selection)

    def __contains__(self, site: object) -> bool:
        return site in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the manifest, which holds the checksums of all files."""
        return hashlib.sha256(self.manifest.text()).hexdigest()

    @property
    def rounding_error(self) -> dict[str, float]:
        """By site of an int8 store: root mean square of the rounding error over that of the values."""
        out = {}
        for site in self.manifest.sites:
            sums = [shard.error[site.name] for shard in self.manifest.shards if site.name in shard.error]
            total = sum(s for _, s in sums)
            if sums:
                out[site.name] = (sum(e for e, _ in sums) / total) ** 0.5 if total else 0.0
        return out

    def __repr__(self) -> str:
        kinds = ", ".join(f"{s.name} ({' '.join(map(str, s.shape))}, {s.dtype})" for s in self.manifest.sites[:4])
        more = f" and {len(self.manifest.sites) - 4} more" if len(self.manifest.sites) > 4 else ""
        state = "" if self.complete else ", not finished"
        return f"Store({self.address}: {len(self):,} rows of {kinds}{more}{state})"

    def _reader(self, site: str | Site) -> Reader:
        name = site.name if isinstance(site, Site) else site
        if name not in self._readers:
            raise SiteError(unknown("site in this store:", str(name), self._readers))
        return self._readers[name]

    # Rows -----------------------------------------------------------------------------------------------------

    def __getitem__(self, site: str | Site) -> Activations:
        """All rows of a site, read where they are indexed.

        Raises:
            SiteError: it is not in the store; the nearest names are offered.
        """
        return Activations(self._reader(site), self._selection)

    def rows(self, site: str | Site, indices: Any) -> Tensor:
        """Rows of a site by number (n,): values (n, …).

        Raises:
            SiteError: no such site.
            InputError: a number out of range.
        """
        return self[site][as_numbers(indices, len(self))]

    def batches(
        self,
        site: str | Site | Sequence[str | Site],
        size: int = 2048,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        workers: int = 2,
        with_rows: bool = False,
        block: int = BLOCK,
        buffer: int | None = None,
    ) -> Batches:
        """Batches of rows; each pass over them is an epoch of its own order.

        Args:
            site: one site, for tensors (size, …), or several, for {site: tensor} of the same rows.
            size: rows in a batch.
            shuffle: over the whole store: blocks of `block` rows are drawn at random, and batches from a mixture of
                `buffer` rows of them. A store of at most `buffer` rows, or any with `block=1`, is permuted exactly.
                If False, the rows come in order.
            seed: of the order.
            drop_last: leave out the last batch if it is short.
            device, dtype: where and as what to give the values; the store's type by default (float32 for int8).
            workers: threads that read ahead; 0 reads when a batch is asked for.
            with_rows: give (rows, values), with the number of each row in the whole store.
            block, buffer: see `shuffle`; a buffer of 65,536 rows by default, or of a quarter of a gigabyte if less.

        Returns:
            An iterable with `len`, `state_dict` and `load_state_dict`.

        Raises:
            SiteError, InputError: no such site, or sizes that cannot be.
        """
        single = isinstance(site, str | Site)
        wanted = [site] if isinstance(site, str | Site) else list(site)
        if not wanted:
            raise InputError("name at least one site")
        readers = {r.site.name: r for r in map(self._reader, wanted)}
        mark = f"{self.fingerprint}:{self._selection.mark}"
        return Batches(
            readers,
            self._selection,
            mark,
            single,
            size,
            shuffle,
            seed,
            drop_last,
            device,
            dtype,
            workers,
            with_rows,
            block,
            buffer,
        )

    # Where rows come from -------------------------------------------------------------------------------------

    def context(self, row: int, before: int = 20, after: int = 5) -> Place:
        """A row with the tokens around it in its window, as far as they were stored.

        Raises:
            InputError: a number out of range.
        """
        (number,) = self._selection.of(np.array([row], dtype=np.int64))
        return self._tables.context(int(number), before, after)

    def column(self, name: str) -> np.ndarray:
        """One column of the tables (row, sequence, slot, document, position, token) for the rows shown, int64.

        Raises:
            InputError: another column.
        """
        if name not in COLUMNS:
            raise InputError(unknown("column", name, COLUMNS))
        return self._tables.column(name)[self._selection.of(np.arange(len(self), dtype=np.int64))]

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Token ids of rows `start` to `stop`, -1 without tokens."""
        return self._tables.of(self._selection.of(np.arange(start, stop, dtype=np.int64)))["token"]

    def decode(self, ids: Sequence[int]) -> list[str]:
        """Each token as text; nothing where the store holds no tokenizer."""
        return self._tables.decode(list(ids))

    def query(self, sql: str) -> pandas.DataFrame:
        """Ask DuckDB about the whole store's rows: a table `rows` (row, sequence, slot, document, position, token).

        Raises:
            InputError: DuckDB refuses the question.
        """
        return self._tables.query(sql)

    def top(
        self, site: str | Site, unit_or_direction: Any, k: int = 10, *, before: int = 20, after: int = 5
    ) -> pandas.DataFrame:
        """The rows with the largest values of a unit, or of the product with a direction.

        Exact: all rows are read, once; the answer is kept beside the store (`cache.duckdb`, local stores).

        Args:
            site: the site.
            unit_or_direction: number of a unit of the flattened row, its indices as a tuple, or a direction with as
                many entries as a row.
            k: how many.
            before, after: tokens of context.

        Returns:
            columns row (number in the whole store), value, document, position, token, context; largest first.

        Raises:
            SiteError, InputError: no such site or unit, a direction of another size.
        """
        import pandas

        if k < 1:
            raise InputError(f"k must be at least 1, not {k}")
        reader = self._reader(site)
        wanted = direction_of(reader.site.shape, unit_or_direction)
        local = self.address.local
        cache = Cache(local / "cache.duckdb" if local is not None else None)
        key = key_of(self.fingerprint, reader.site.name, self._selection, wanted)
        found = cache.get(key, k)
        if found is None:
            found = largest(reader, self._selection, wanted, k)
            cache.put(key, k, *found)
        rows, values = found
        table = self._tables.of(rows)
        contexts = [str(self._tables.context(int(row), before, after)) for row in rows]
        return pandas.DataFrame(
            {
                "row": rows,
                "value": values,
                "document": table["document"],
                "position": table["position"],
                "token": table["token"],
                "context": contexts,
            }
        )

    def split(self, train: float = 0.9, seed: int = 0) -> tuple[Store, Store]:
        """Two views with different documents.

        Args:
            train: share of the documents in the first.
            seed: of the draw.

        Raises:
            InputError: a share outside (0, 1), or fewer than two documents.
        """
        if not 0 < train < 1:
            raise InputError(f"train must be between 0 and 1, not {train}")
        documents = self._tables.column("document")
        mine = np.zeros(len(documents), dtype=bool)
        for start, stop in self._selection.ranges:
            mine[start:stop] = True
        found = np.unique(documents[mine])
        if len(found) < 2:
            raise InputError(f"a split needs two documents; there is {len(found)}")
        count = min(max(1, round(train * len(found))), len(found) - 1)
        chosen = np.random.default_rng(seed).permutation(found)[:count]
        first = np.isin(documents, chosen)
        return self._view(Selection.where(mine & first)), self._view(Selection.where(mine & ~first))

    # Statistics -----------------------------------------------------------------------------------------------

    def stats(self, site: str | Site) -> Statistics:
        """Mean and covariance of a site over all rows (heads and their features together), kept with the store.

        Raises:
            SiteError: no such site.
        """
        return statistics(self.address, self.fingerprint, self._reader(site), self._selection)

    def reduce(self, site: str | Site, reduce: Any, *, progress: bool = False) -> Any:
        """Run a streaming reducer, or {name: reducer}, over a site, as `Model.record(reduce=...)` does over inputs.

        Returns:
            The reducer's result, or results by name.

        Raises:
            SiteError: no such site.
            InputError: not a reducer.
        """
        return reduced(self._reader(site), self._tables, self._selection, reduce, progress)

    # Other forms ----------------------------------------------------------------------------------------------

    def to_numpy(self, site: str | Site) -> np.ndarray:
        """All rows of a site as an array (bfloat16 as float32); of one local shard it is the mapped file itself."""
        return np.asarray(self[site])

    def to_zarr(self, path: str | os.PathLike[str], sites: Sequence[str] | None = None) -> None:
        """Write sites to a Zarr group, with the tables of the rows; see `actinium.store.export`."""
        from actinium.store.export import to_zarr

        to_zarr(self, path, sites)

    def to_torch_dataset(self, site: str | Site) -> torch.utils.data.Dataset[Tensor]:
        """A map-style dataset whose entries are rows, for a `DataLoader` with any number of workers."""
        from actinium.store.export import StoreDataset

        return StoreDataset(self, self._reader(site).site.name)

    def verify(self, progress: bool = False) -> list[str]:
        """Read every file and compare it with the manifest: a line for each that is missing or damaged."""
        return problems(self.address, self.manifest, progress)


open = Store
