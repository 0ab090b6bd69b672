"""A store in the place of the model that it was made from, for measures that only read activations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.inputs import Inputs, Tokens
from actinium.core.model import Model
from actinium.core.record import collect_reducers, update_reducer
from actinium.core.recording import Recording
from actinium.core.reducing import Context
from actinium.core.sites import Site, select
from actinium.store.manifest import StoredSite
from actinium.store.store import Store

__all__ = ["StoredModel"]

_BLOCK = re.compile(r"^(?:(?P<stack>\w+)\.)?blocks\.(?P<layer>\d+)\.(?P<part>.+)$")


class StoredModel(Model):
    """Reads a store where a measure would run the model: `record` gives what was recorded.

    Its inputs are the windows of the store, `windows()`. It has no weights, so that what needs a forward pass is
    refused.

    Args:
        store: an open store.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(nn.Module(), name=store.manifest.origin.model["name"])
        self.store = store
        self._sites = {s.name: _site(s) for s in store.manifest.sites}
        column = store.column("sequence")
        self._starts = np.flatnonzero(np.diff(column, prepend=-1))
        self._stops = np.append(self._starts[1:], len(column))

    @property
    def kind(self) -> str:
        """ "stored"."""
        return "stored"

    @property
    def n_layers(self) -> int:
        """Blocks up to the last that was stored."""
        return max((s.layer + 1 for s in self._sites.values() if s.layer is not None), default=0)

    @property
    def d_model(self) -> int:
        """Width of the residual stream, 0 where it was not stored."""
        widths = [size for s in self._sites.values() for dim, size in s.sizes.items() if dim == "d_model"]
        return widths[0] if widths else 0

    @property
    def n_heads(self) -> int:
        """Number of heads, 0 where none were stored."""
        return next((s.sizes["head"] for s in self._sites.values() if "head" in s.sizes), 0)

    @property
    def dtype(self) -> torch.dtype:
        """What the values are read as."""
        return self.store[self.store.sites[0]].dtype

    def fingerprint(self) -> str:
        """That of the model that was recorded."""
        return self.store.manifest.origin.model["fingerprint"]

    def to_str_tokens(self, ids: Any) -> list[str]:
        """Each token as text, or its number where the store holds no tokenizer."""
        numbers = [int(i) for i in ids]
        return self.store.decode(numbers) or [str(i) for i in numbers]

    def sites(self, pattern: str | Sequence[str] = "**") -> list[Site]:
        """The sites of the store that a pattern names.

        Raises:
            SiteError: nothing matches.
        """
        if pattern == "**":
            return list(self._sites.values())
        given = [pattern] if isinstance(pattern, str | Site) else list(pattern)
        names = [one.name if isinstance(one, Site) else one for one in given]
        found = [name for one in names for name in select(one, self._sites, self.n_layers)]
        return [self._sites[name] for name in dict.fromkeys(found)]

    def has(self, pattern: str | Sequence[str]) -> bool:
        """Whether every name or pattern matches a stored site."""
        try:
            return bool(self.sites(pattern))
        except LookupError:
            return False

    def windows(self, most_tokens: int | None = None) -> Tokens:
        """Windows of the store as inputs, evenly spaced until they hold so many rows.

        Without tokens (images, arrays) the ids are 0.

        Raises:
            InputError: the store holds no rows.
        """
        lengths = self._stops - self._starts
        total = int(lengths.sum())
        if not total:
            raise InputError(f"{self.store.address} holds no rows yet")
        count = len(lengths)
        if most_tokens is not None and total > most_tokens:
            count = max(1, int(count * most_tokens / total))
        chosen = np.linspace(0, len(lengths) - 1, count).round().astype(np.int64)
        size = int(lengths[chosen].max())
        ids = torch.zeros(count, size, dtype=torch.long)
        mask = torch.zeros(count, size, dtype=torch.bool)
        for i, window in enumerate(chosen):
            token = self.store.tokens(int(self._starts[window]), int(self._stops[window]))
            ids[i, : len(token)] = torch.from_numpy(token).clamp(min=0)
            mask[i, : len(token)] = True
        return Tokens(ids, mask, torch.from_numpy(chosen))

    def prepare(self, inputs: Any) -> Inputs:
        """Windows of the store, all of them for None.

        Raises:
            InputError: anything else.
        """
        if isinstance(inputs, Inputs):
            return inputs
        if inputs is None:
            inputs = self.windows()
        if not isinstance(inputs, Tokens):
            raise InputError("a stored model reads its own windows: pass model.windows()")
        return Inputs({}, len(inputs), (), inputs)

    def record(
        self,
        inputs: Any,
        at: str | Site | Sequence[str | Site],
        *,
        reduce: Any = None,
        batch_size: int | None = None,
        progress: bool = False,
        **other: Any,
    ) -> Recording:
        """The stored activations of windows, in the layout of the model (sequence positions that were not stored
        are left out).

        Raises:
            InputError: an option that only a model has.
            SiteError: a site that was not stored.
        """
        wrong = [name for name, value in other.items() if value]
        if wrong:
            raise InputError(f"a stored model cannot record with {', '.join(wrong)}; load the model itself")
        tokens = self.prepare(inputs).tokens
        assert tokens is not None
        sites = self.sites(at)  # type: ignore[arg-type]
        step = batch_size or len(tokens)
        values: dict[str, Any] = {}
        reducers = None if reduce is None else {s.name: collect_reducers(reduce) for s in sites}
        for start in range(0, len(tokens), step):
            part = slice(start, start + step)
            for site in sites:
                value = self._read(site, tokens.rows[part], tokens.ids.shape[1])
                if reducers is None:
                    values.setdefault(site.name, []).append(value)
                    continue
                context = Context(site.dims, tokens.mask[part], tokens.ids[part], tokens.rows[part], site.name)
                for one in reducers[site.name].values():
                    update_reducer(one, value, context)
        if reducers is not None:
            results = {name: {key: one.result() for key, one in made.items()} for name, made in reducers.items()}
            values = {name: found[""] if list(found) == [""] else found for name, found in results.items()}
        else:
            values = {name: torch.cat(parts) for name, parts in values.items()}
        dims = {s.name: s.dims for s in sites}
        return Recording(values, dims, tokens.ids, tokens.mask, tokens.rows, None, self.n_layers)

    def _read(self, site: Site, windows: Tensor, size: int) -> Tensor:
        """Values of windows, (window, pos, …), zeros on padding."""
        numbers = windows.numpy()
        lengths = self._stops[numbers] - self._starts[numbers]
        rows = np.concatenate([np.arange(self._starts[w], self._stops[w]) for w in numbers])
        found = self.store.rows(site.name, rows).float()
        out = torch.zeros(len(numbers), size, *found.shape[1:])
        at = np.concatenate([np.arange(n) for n in lengths])
        out[torch.from_numpy(np.repeat(np.arange(len(numbers)), lengths)), torch.from_numpy(at)] = found
        return out


def _site(stored: StoredSite) -> Site:
    """The address of a stored site, with the dimensions that a window of it has."""
    dims, sizes = ("batch", "pos", *stored.dims), dict(zip(stored.dims, stored.shape, strict=True))
    found = _BLOCK.match(stored.name)
    site = Site(stored.name, dims, sizes, None, stored.name)
    if found is None:
        return site
    return replace(site, layer=int(found["layer"]), part=found["part"], stack=found["stack"] or "")
