"""What every edit has: where it applies, what it refuses, and how values come to the columns of a pass."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.passes import Pass, Positions, check_positions
from actinium.core.sites import Site

__all__ = ["Edit", "Where", "at_columns", "placed", "rows_of", "spread"]


class Where:
    """Where a tensor stands in the pass: its site, its dimensions, and its first column.

    Args:
        site: the address.
        now: the pass in flight.
        start: column of the first position of the tensor.
    """

    def __init__(self, site: Site, now: Pass, start: int | None = None) -> None:
        self.site, self.now = site, now
        self.start = now.start if start is None else start
        self.pos = _position_dim(site.dims)


class Edit:
    """Base of all edits. A subclass defines `change`; `vectors` names the tensors that broadcast to the site."""

    vectors: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.positions: Positions | None = None
        self.heads: list[int] | None = None
        self.units: list[int] | None = None
        self.rows: list[int] | None = None

    def at(
        self,
        *,
        positions: Positions | None = None,
        heads: int | Iterable[int] | None = None,
        units: int | Iterable[int] | None = None,
        rows: int | Iterable[int] | None = None,
    ) -> Edit:
        """The same edit, restricted.

        Args:
            positions: token positions: a number, several, a slice, or a tensor (k,) or (batch, k). 0 is the first
                token of each text, -1 the last token of the prompt, also under padding and while generating;
                "prompt" are all tokens of the prompt, "new" those that are generated after it.
            heads: attention heads.
            units: entries of the last dimension (channels of an image).
            rows: rows of the batch.
        Raises:
            InputError: if a choice is empty or not made of integers.
        """
        out = copy.copy(self)
        if positions is not None:
            check_positions(positions)
            out.positions = positions
        for name, value in (("heads", heads), ("units", units), ("rows", rows)):
            if value is not None:
                setattr(out, name, _integers(name, value))
        return out

    def change(self, x: Tensor, where: Where) -> Tensor:
        """The new value of the whole tensor."""
        raise TypeError(f"{type(self).__name__} must define change()")

    def __call__(self, x: Tensor, where: Where) -> Tensor:
        """Apply within the restriction; same shape and dtype as `x`."""
        new = self.change(x, where)
        if new.dtype != x.dtype:
            new = new.to(x.dtype)
        if self.positions is None and self.heads is None and self.units is None and self.rows is None:
            return new.expand_as(x) if new.shape != x.shape else new
        return torch.where(self.mask(x, where), new, x)

    def mask(self, x: Tensor, where: Where) -> Tensor:
        """The restriction as a bool tensor that broadcasts to `x`."""
        chosen = torch.ones((1,) * x.ndim, dtype=torch.bool, device=x.device)
        if self.positions is not None and where.pos is not None:
            columns = where.now.selected(self.positions, x.shape[where.pos], where.start, x.device)
            shape = [1] * x.ndim
            shape[0], shape[where.pos] = columns.shape
            chosen = chosen & columns.view(shape)
        dims = where.site.dims
        for dim, wanted in ((_head_dim(dims), self.heads), (_unit_dim(dims, x.ndim), self.units)):
            if wanted is not None and dim is not None:
                chosen = chosen & _among(wanted, x.shape[dim], dim, x)
        if self.rows is not None:
            copies = _copies(x, where)
            rows = [r * copies + i - where.now.row_start for r in self.rows for i in range(copies)]
            chosen = chosen & _among([r for r in rows if 0 <= r < x.shape[0]], x.shape[0], 0, x)
        return chosen

    def check(self, site: Site) -> None:
        """Refuse, before any work, what cannot fit the site.

        Raises:
            InputError: if a restriction names a dimension that the site lacks or an index beyond its size, or a
                vector's size differs from the site's.
        """
        if not site.dims:
            return  # of a module's output nothing is known before it runs; then it is checked
        what = f"{type(self).__name__} at {site.name}"
        head, unit = _head_dim(site.dims), _unit_dim(site.dims, len(site.dims))
        if self.positions is not None and not {"pos", "query"} & set(site.dims):
            raise InputError(f"{what}: this site has no positions; its dimensions are {site.dims}")
        for name, dim, wanted in (("heads", head, self.heads), ("units", unit, self.units)):
            if wanted is None:
                continue
            if dim is None:
                raise InputError(f"{what}: this site has no {name}; its dimensions are {site.dims}")
            size = site.sizes.get(site.dims[dim])
            if size is not None and max(wanted) >= size:
                raise InputError(f"{what}: {name} go from 0 to {size - 1}, not {max(wanted)}")
        size = site.sizes.get(site.dims[-1]) if site.dims else None
        for name in self.vectors:
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.ndim and size is not None and value.shape[-1] not in (1, size):
                raise InputError(f"{what}: {name} has size {value.shape[-1]}, but {site.dims[-1]} is {size}")

    def bound(self, site: Site) -> Edit:
        """The edit to use at one site, checked: itself, or a copy where it differs from site to site.

        Raises:
            InputError: as `check`.
        """
        out = copy.copy(self)
        out.check(site)
        return out

    def __repr__(self) -> str:
        limits = {k: getattr(self, k) for k in ("positions", "heads", "units", "rows")}
        shown = ", ".join(f"{k}={v}" for k, v in limits.items() if v is not None)
        return f"{type(self).__name__}()" + (f".at({shown})" if shown else "")


def _integers(name: str, value: int | Iterable[int]) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    if not values:
        raise InputError(f"{name}: the choice is empty")
    if any(isinstance(v, bool) or int(v) != v or v < 0 for v in values):
        raise InputError(f"{name}: expected integers from 0 up, not {values}")
    return [int(v) for v in values]


@cache
def _position_dim(dims: tuple[str, ...]) -> int | None:
    return next((i for i, d in enumerate(dims) if d in ("pos", "query")), None)


def _head_dim(dims: Sequence[str]) -> int | None:
    return next((i for i, d in enumerate(dims) if d in ("head", "kv_head")), None)


def _unit_dim(dims: Sequence[str], ndim: int) -> int | None:
    if "channel" in dims:
        return dims.index("channel")
    return None if dims and dims[-1] == "key" else ndim - 1


def _among(wanted: list[int], size: int, dim: int, x: Tensor) -> Tensor:
    flags = torch.zeros(size, dtype=torch.bool, device=x.device)
    flags[wanted] = True
    shape = [1] * x.ndim
    shape[dim] = size
    return flags.view(shape)


def _copies(x: Tensor, where: Where) -> int:
    """How many rows of the pass each prompt has: its beams, or its sampled sequences."""
    generation = where.now.generation
    prompts = len(generation.prompt) if generation is not None else 0
    return x.shape[0] // prompts if prompts and x.shape[0] % prompts == 0 else 1


def rows_of(value: Tensor, x: Tensor, where: Where, strengths: bool = False) -> Tensor:
    """Of a value with a row for each row of the whole call, those of this batch.

    A value of the site's last size is a vector and stays, unless it is said to hold one number for each row.

    Raises:
        InputError: there are numbers for another number of rows.
    """
    if value.ndim == 1 and not strengths and len(value) == x.shape[-1]:
        return value
    total, first = where.now.rows, where.now.row_start
    copies = _copies(x, where)
    if copies > 1 and value.ndim in (1, x.ndim) and value.shape[0] * copies == x.shape[0] and value.shape[0] > 1:
        # Beams and sampled sequences stand beside each other, prompt after prompt.
        return value.repeat_interleave(copies, 0)
    whole = value.ndim in (1, x.ndim) and value.shape[:1] == (total,) and total != x.shape[0]
    value = value[first : first + x.shape[0]] if whole else value
    if strengths and value.shape[0] not in (1, x.shape[0]):
        raise InputError(f"at {where.site.name}: {value.shape[0]} values do not fit a batch of {x.shape[0]} rows")
    return value


def at_columns(value: Tensor, x: Tensor, where: Where, fill: float) -> Tensor:
    """Of a value with positions of its own, those of the pass; `fill` at columns that it does not have."""
    if where.pos is None or value.ndim < x.ndim - where.pos:
        return value
    dim = value.ndim - (x.ndim - where.pos)
    n, have, start = x.shape[where.pos], value.shape[dim], where.start
    if have == 1 or (have == n and start == 0):
        return value
    part = value.narrow(dim, min(start, have), max(0, min(n, have - start)))
    missing = list(part.shape)
    missing[dim] = n - part.shape[dim]
    return torch.cat([part, part.new_full(missing, fill)], dim) if missing[dim] else part


def spread(value: Tensor, x: Tensor, where: Where) -> Tensor:
    """Broadcast a value to the shape of `x`; refused with an InputError where it does not fit."""
    try:
        return value.expand_as(x)
    except RuntimeError:
        raise InputError(
            f"at {where.site.name}: a value of shape {tuple(value.shape)} does not fit {tuple(x.shape)}"
        ) from None


def placed(value: Tensor, x: Tensor, where: Where, positions: Any) -> Tensor:
    """Bring a value with positions of its own to the columns of `x`; columns it does not have keep `x`."""
    dim = where.pos
    if dim is None or value.ndim != x.ndim or value.shape[dim] == 1:
        return spread(value, x, where)
    n, have, start = x.shape[dim], value.shape[dim], where.start
    if have == n and start == 0:
        return spread(value, x, where)
    if positions is not None and not isinstance(positions, slice | Tensor | str):
        wanted = [positions] if isinstance(positions, int) else list(positions)
        if len(wanted) == have:
            out = x
            for i, p in enumerate(wanted):
                columns = where.now.selected(p, n, start, x.device)
                shape = [1] * x.ndim
                shape[0], shape[dim] = columns.shape
                out = torch.where(columns.view(shape), value.narrow(dim, i, 1), out)
            return out
    if start >= have:
        return x
    part = value.narrow(dim, start, min(n, have - start))
    if part.shape[dim] < n:
        part = torch.cat(
            [
                part.expand(*x.shape[:dim], -1, *x.shape[dim + 1 :]),
                x.narrow(dim, part.shape[dim], n - part.shape[dim]),
            ],
            dim,
        )
    return spread(part, x, where)
