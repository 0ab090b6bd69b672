"""Rows to train on, from tensors, a store, a recording, or a model that runs while it is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.provenance import fingerprint
from actinium.core.recording import Recording

__all__ = ["Source", "source_of"]


class Source(Protocol):
    """Batches of rows, always in the same order for the same seed.

    Attributes:
        widths: of each place that is read.
        rows: in one pass.
        mark: what tells these data from others.
    """

    widths: list[int]
    rows: int
    mark: str

    def sample(self, n: int, seed: int) -> list[Tensor]:
        """About n rows of each place, drawn from the seed."""

    def batches(self, size: int, seed: int, passed: int) -> Iterator[list[Tensor]]:
        """Batches without end, each (size, width) for every place, after the first `passed` of them."""


class Rows:
    """Rows in memory: (n, d) of each place."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = [_checked(part) for part in parts]
        if len({len(p) for p in self.parts}) != 1:
            raise InputError(
                f"the places have {[len(p) for p in self.parts]} rows; row i of all must be the same token"
            )
        for i, part in enumerate(self.parts):
            if bool((part == part[:1]).all()):
                where = f" of place {i}" if len(self.parts) > 1 else ""
                raise InputError(f"all {len(part)} rows{where} are equal: there is nothing to learn")
        self.widths, self.rows = [p.shape[1] for p in self.parts], len(self.parts[0])
        self.mark = fingerprint([p.detach().cpu() for p in self.parts])

    def sample(self, n: int, seed: int) -> list[Tensor]:
        """Rows drawn without replacement."""
        chosen = torch.randperm(self.rows, generator=torch.Generator().manual_seed(seed))[:n]
        return [p[chosen].float() for p in self.parts]

    def batches(self, size: int, seed: int, passed: int) -> Iterator[list[Tensor]]:
        """A new permutation in every pass; a batch may hold rows of two passes."""
        for chosen in _endless(self.rows, size, seed, passed):
            yield [p[chosen].float() for p in self.parts]


class Stored:
    """Rows of a store, read from the disk in its own shuffled order."""

    def __init__(self, store: Any, sites: Sequence[str]) -> None:
        self.store, self.sites = store, list(sites)
        if not len(store):
            raise InputError("the store holds no rows")
        shapes = [store[site][:1].shape[1:] for site in self.sites]
        self.widths, self.rows = [int(np.prod(s)) for s in shapes], len(store)
        self.mark = fingerprint([store.fingerprint, self.sites])

    def sample(self, n: int, seed: int) -> list[Tensor]:
        """Rows drawn without replacement."""
        chosen = np.sort(np.random.default_rng(seed).permutation(self.rows)[:n])
        return [_checked(self.store.rows(site, chosen).flatten(1)).float() for site in self.sites]

    def batches(self, size: int, seed: int, passed: int) -> Iterator[list[Tensor]]:
        """Whole batches of each pass; what is left over at its end is not used in it."""
        if size > self.rows:
            yield from Rows(self.sample(self.rows, seed)).batches(size, seed, passed)
            return
        read = self.store.batches(self.sites, size, seed=seed, drop_last=True, dtype=torch.float32)
        each = len(read)
        read.load_state_dict({**read.state_dict(), "epoch": passed // each, "batch": passed % each})
        while True:
            for found in read:
                yield [found[site].flatten(1) for site in self.sites]


class Running:
    """Rows of a model that runs while they are read: texts are run in blocks, whose rows are permuted.

    Args:
        model: the model.
        inputs: texts or Tokens.
        sites: which.
        block: texts in a block.
        skip_first: leave out each text's first token, which often holds an activation unlike all others.
        batch_size: texts in a forward pass.
    """

    def __init__(
        self,
        model: Model,
        inputs: Any,
        sites: Sequence[str],
        block: int = 512,
        skip_first: bool = False,
        batch_size: int = 32,
    ) -> None:
        self.model, self.sites, self.block = model, [s.name for site in sites for s in model.sites(site)], block
        self.skip_first, self.batch_size = skip_first, batch_size
        tokens = inputs if isinstance(inputs, Tokens) else model.prepare(inputs).tokens
        if tokens is None or not len(tokens):
            raise InputError("a model's rows come from texts or Tokens")
        self.tokens = tokens
        counts = tokens.mask.sum(1) - int(skip_first)
        self.rows = int(counts.clamp_min(0).sum())
        if not self.rows:
            raise InputError("these texts have no tokens to train on")
        self.widths = [p.shape[1] for p in self._read(tokens[:1])]
        self.mark = fingerprint([model.fingerprint(), tokens.ids, tokens.mask, self.sites, block, skip_first])

    def _read(self, tokens: Tokens) -> list[Tensor]:
        rec = self.model.record(tokens, self.sites, batch_size=self.batch_size)
        mask = tokens.after_first() if self.skip_first else tokens.mask
        return [rec[site][mask.to(rec[site].device)].flatten(1) for site in self.sites]

    def sample(self, n: int, seed: int) -> list[Tensor]:
        """Rows of texts drawn without replacement."""
        order = torch.randperm(len(self.tokens), generator=torch.Generator().manual_seed(seed))
        counts = self.tokens.mask[order].sum(1).cumsum(0)
        chosen = order[: int((counts < n).sum()) + 1]
        return [_checked(p).float() for p in self._read(self.tokens[chosen])]

    def batches(self, size: int, seed: int, passed: int) -> Iterator[list[Tensor]]:
        """Texts in a new order in every pass; rows left over by a block begin the next one.

        What was passed is run again when a run goes on: rows that a block left over depend on it.
        """
        random = torch.Generator().manual_seed(seed)
        left: list[Tensor] | None = None
        skipped = 0
        while True:
            order = torch.randperm(len(self.tokens), generator=random)
            for start in range(0, len(order), self.block):
                parts = self._read(self.tokens[order[start : start + self.block]])
                shuffled = torch.randperm(len(parts[0]), generator=random)
                parts = [p[shuffled].float() for p in parts]
                if left is not None:
                    parts = [torch.cat([a, b]) for a, b in zip(left, parts, strict=True)]
                whole = len(parts[0]) // size
                for i in range(whole):
                    if skipped < passed:
                        skipped += 1
                        continue
                    yield [p[i * size : (i + 1) * size] for p in parts]
                left = [p[whole * size :] for p in parts]


def source_of(data: Any, sites: str | Sequence[str] | None = None, texts: Any = None, **options: Any) -> Source:
    """Whatever holds activations, as rows.

    Args:
        data: a tensor or array (n, d), or (n, place, d); a tuple or list of such for several places; activations of a
            store (`store[site]`, mapped and read whole) or a `Store` (read as it is needed); a Recording; a Model.
        sites: of a store, recording or model: one for each place.
        texts: what a model reads.
        options: of a model: `block`, `skip_first`, `batch_size`.

    Raises:
        InputError: there are no rows, they are constant, not finite, or do not fit together; sites or texts are absent.
    """
    from actinium.store.reader import Activations
    from actinium.store.store import Store

    wanted = [sites] if isinstance(sites, str) else list(sites or [])
    if isinstance(data, Store):
        return Stored(data, _named(wanted, list(data.sites), "store"))
    if isinstance(data, Model):
        if texts is None or not wanted:
            raise InputError("a model needs sites= and texts= to give rows")
        return Running(data, texts, wanted, **options)
    if isinstance(data, Recording):
        found = _named(wanted, list(data.sites), "recording")
        mask = data.mask
        parts = [data[s] for s in found]
        return Rows([p[mask.to(p.device)] if mask is not None and p.shape[:2] == mask.shape else p for p in parts])
    if isinstance(data, Activations):
        return Rows([data[:]])
    if isinstance(data, tuple | list) and data and all(hasattr(d, "ndim") for d in data):
        return Rows([_tensor(d) for d in data])
    found_rows = _tensor(data)
    return Rows(list(found_rows.unbind(1)) if found_rows.ndim == 3 else [found_rows])


def _named(wanted: list[str], there: list[str], what: str) -> list[str]:
    if not wanted and len(there) != 1:
        raise InputError(f"the {what} holds {len(there)} sites; name those to train on with sites=")
    return wanted or there


def _tensor(data: Any) -> Tensor:
    try:
        return data if isinstance(data, Tensor) else torch.as_tensor(np.asarray(data))
    except (TypeError, ValueError) as error:
        raise InputError(f"expected rows (n, d), not {type(data).__name__}: {error}") from None


def _checked(rows: Tensor) -> Tensor:
    rows = rows.detach()
    if rows.ndim > 2:
        rows = rows.flatten(1)
    if rows.ndim != 2 or not rows.numel():
        raise InputError(f"expected rows (n, d), not {tuple(rows.shape)}")
    bad = ~rows.isfinite().all(1) if rows.is_floating_point() else torch.zeros(len(rows), dtype=torch.bool)
    if bool(bad.any()):
        raise InputError(
            f"{int(bad.sum())} of {len(rows)} rows hold NaN or infinity, the first at {int(bad.nonzero()[0])}"
        )
    return rows


def _endless(rows: int, size: int, seed: int, passed: int) -> Iterator[Tensor]:
    """Numbers of rows, batch after batch, through permutations that follow each other."""
    epoch, start = divmod(passed * size, rows)

    def order(epoch: int) -> Tensor:
        return torch.randperm(rows, generator=torch.Generator().manual_seed(seed + 7919 * epoch))

    left = order(epoch)[start:]
    while True:
        while len(left) < size:
            epoch += 1
            left = torch.cat([left, order(epoch)])
        yield left[:size]
        left = left[size:]
