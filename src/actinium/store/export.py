"""Stores in other forms: Zarr, and datasets of PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError

if TYPE_CHECKING:
    from actinium.store.store import Store

__all__ = ["StoreDataset", "to_zarr"]

ROWS = 16384  # in a chunk


def to_zarr(store: Store, path: str | os.PathLike[str], sites: Sequence[str] | None = None) -> None:
    """Write sites and the columns that say where rows come from to a Zarr group, which xarray opens.

    Each site is an array (row, …) with the names of its dimensions; bfloat16 and int8 become float32. The columns of
    the tables (row,) stand beside them.

    Raises:
        InputError: something lies at the path.
        SiteError: a site is not in the store.
    """
    import zarr

    if os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)):
        raise InputError(f"{os.fspath(path)!r} exists; choose another path")
    wanted = [store[name] for name in sites or store.sites]
    names = list(sites or store.sites)
    group = zarr.open_group(os.fspath(path), mode="w")
    group.attrs.update({"model": store.manifest.origin.model, "data": store.manifest.origin.data})
    for name, source in zip(names, wanted, strict=True):
        kind = "float16" if source.dtype == torch.float16 else "float32"
        chunks = (min(ROWS, max(1, len(source))), *source.shape[1:])
        dims = ["row", *(f"{d}:{name}" if len(names) > 1 else d for d in source.dims[1:])]
        # The names of sites hold a colon, which is no trouble, or a slash, which would nest.
        array = group.create_array(
            name.replace("/", "%2F"), shape=tuple(source.shape), chunks=chunks, dtype=kind, dimension_names=dims
        )
        for start in range(0, len(source), ROWS):
            part = source[start : start + ROWS]
            array[start : start + len(part)] = part.to(getattr(torch, kind)).numpy()
    rows = store._selection.of(np.arange(len(store), dtype=np.int64))
    for name, column in store._tables.of(rows).items():
        array = group.create_array(name, shape=column.shape, dtype="int64", dimension_names=["row"])
        array[:] = column


class StoreDataset(torch.utils.data.Dataset[Tensor]):
    """Rows of one site as entries; a `DataLoader` fetches a whole batch in one read.

    Args:
        store: an open store or a view of one.
        site: which site.
    """

    def __init__(self, store: Store, site: str) -> None:
        self.store, self.site = store, site

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Tensor:
        return self.store[self.site][index]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """The rows with these numbers."""
        return list(self.store.rows(self.site, indices).unbind(0))

    def __getstate__(self) -> dict[str, Any]:
        # Maps and locks do not go to another process; it opens the store again.
        return {"address": self.store.address, "site": self.site, "selection": self.store._selection}

    def __setstate__(self, state: dict[str, Any]) -> None:
        from actinium.store.store import Store

        self.store, self.site = Store(state["address"])._view(state["selection"]), state["site"]
