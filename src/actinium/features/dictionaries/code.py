"""The active latents of some rows, kept without the zeros between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["Code", "Places", "offsets_of", "top_k"]

GROUPS = 32
"""Groups that a row is cut into before its largest entries are looked for."""


class Places:
    """Where latents are active: n rows, row after row (compressed sparse rows).

    Args:
        latents: (entries,) int64, which latent each entry is.
        offsets: (n + 1,) int64, first entry of each row, and the number of entries.
        d_sae: number of latents.
    """

    def __init__(self, latents: Tensor, offsets: Tensor, d_sae: int) -> None:
        self.latents, self.offsets, self.d_sae = latents, offsets, d_sae

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def rows(self) -> Tensor:
        """(entries,) int64: the row of each entry."""
        return torch.arange(len(self), device=self.offsets.device).repeat_interleave(self.offsets.diff())

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor]:
        """Entries in the order of their latents (entries,), and offsets (d_sae + 1,) of each latent in it."""
        return torch.argsort(self.latents), offsets_of(self.latents, self.d_sae)


@dataclass(frozen=True, eq=False)
class Code:
    """The active latents of n rows.

    Attributes:
        values: (entries,) what each is.
        places: where they are.
    """

    values: Tensor
    places: Places

    @classmethod
    def from_dense(cls, f: Tensor) -> Self:
        """The entries of (n, d_sae) that are not zero."""
        rows, latents = f.nonzero(as_tuple=True)
        return cls(f[rows, latents], Places(latents, offsets_of(rows, len(f)), f.shape[1]))

    @classmethod
    def from_top(cls, values: Tensor, latents: Tensor, d_sae: int) -> Self:
        """The same number of entries in each row, (n, k)."""
        n, k = values.shape
        offsets = torch.arange(0, n * k + 1, k, device=values.device)
        return cls(values.reshape(-1), Places(latents.reshape(-1), offsets, d_sae))

    def __len__(self) -> int:
        return len(self.places)

    @property
    def latents(self) -> Tensor:
        """(entries,) int64, which latent each entry is."""
        return self.places.latents

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.places.d_sae

    @property
    def rows(self) -> Tensor:
        """(entries,) int64: the row of each entry."""
        return self.places.rows

    @property
    def counts(self) -> Tensor:
        """(n,) int64: entries of each row."""
        return self.places.offsets.diff()

    def with_values(self, values: Tensor) -> Code:
        """The same places with other values."""
        return Code(values, self.places)

    def dense(self) -> Tensor:
        """(n, d_sae), zero where nothing is active."""
        out = self.values.new_zeros(len(self), self.d_sae)
        return out.index_put((self.rows, self.latents), self.values, accumulate=True)

    def keep(self, mask: Tensor) -> Code:
        """The entries at which a mask (entries,) is true."""
        offsets = offsets_of(self.rows[mask], len(self))
        return Code(self.values[mask], Places(self.latents[mask], offsets, self.d_sae))

    def active(self) -> Code:
        """The entries above zero."""
        return self.keep(self.values > 0)

    def sums(self, weights: Tensor | None = None) -> Tensor:
        """(d_sae,) sum of the values of each latent, or of other numbers (entries,)."""
        out = self.values.new_zeros(self.d_sae)
        return out.index_add(0, self.latents, self.values if weights is None else weights.to(out))


def offsets_of(rows: Tensor, n: int) -> Tensor:
    """(n + 1,) offsets of entries in the order of their rows."""
    out = torch.zeros(n + 1, dtype=torch.long, device=rows.device)
    torch.cumsum(torch.bincount(rows, minlength=n), 0, out=out[1:])
    return out


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of (n, m): values (n, k) and indices (n, k), in no order.

    The columns are cut into groups. The k groups with the largest maxima hold the k largest entries, so only they are
    searched.

    Raises:
        InputError: k is not between 1 and m.
    """
    n, m = pre.shape
    if not 1 <= k <= m:
        raise InputError(f"k must be between 1 and the {m} latents, not {k}")
    width = m // GROUPS
    if m % GROUPS or width <= 2 * k:
        return pre.topk(k, dim=1, sorted=False)
    # Column c is in group c % width: its members lie `width` apart, so that the maxima are taken over whole vectors.
    groups = pre.view(n, GROUPS, width)
    best = groups.amax(1).topk(k, dim=1, sorted=False).indices
    within = groups.gather(2, best[:, None].expand(n, GROUPS, k)).reshape(n, GROUPS * k)
    values, place = within.topk(k, dim=1, sorted=False)
    return values, torch.div(place, k, rounding_mode="floor") * width + best.gather(1, place % k)
