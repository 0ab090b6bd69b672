"""Gathering what passes at one site: pass by pass, call by call, joined along positions and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from actinium.core import taps
from actinium.core.errors import InputError
from actinium.core.passes import Pass, Positions
from actinium.core.sites import Site
from actinium.core.taps import Program, Tap

__all__ = ["Collector", "blank", "dims_of", "even", "longer"]

SEQUENCE = ("pos", "query", "key", "key_pos")


class Collector:
    """Gathers what passes at one site, pass by pass.

    `groups` holds one list of pieces for each sequence of passes that share a cache, by call number.
    """

    def __init__(
        self, site: Site, tap: Tap, program: Program, call: int | None, change: Callable[[Tensor], Tensor]
    ) -> None:
        self.site, self.tap, self.program, self.call, self.change = site, tap, program, call, change
        self.any_module = tap.part == "" and site.name.startswith("module")
        self.groups: dict[int, list[list[Tensor]]] = {}
        self.positions: Positions | None = None

    def __call__(self, raw: Tensor) -> None:
        """Take what passes now, if this call of the module is wanted."""
        call = self.program.calls.get(self.tap.key, 0)
        wanted = call == (self.call or 0) if not self.any_module or self.call is not None else True
        if not wanted:
            return
        now = taps.current_pass(self.tap.root)
        value = self.tap.view(raw, now.batch)
        if now.start and "key_pos" in self.site.dims:
            return  # the encoder's keys and values do not grow while the decoder writes
        value = self._aligned(value, now)
        if self.positions is not None:
            picked = self._pick(value, now)
            if picked is None:
                return
            value = picked
        value = self.change(value)
        groups = self.groups.setdefault(call, [])
        if now.again and groups:
            groups[-1] = []
        elif not now.start or not groups:
            groups.append([])
        self._drop_beyond(groups[-1], now.start)
        groups[-1].append(value)
        if not self.any_module or self.call is not None:
            self.program.pending.discard(self)

    def _aligned(self, value: Tensor, now: Pass) -> Tensor:
        """Bring what a cache handed over (the last keys only, or columns not yet filled) to the pass's columns."""
        if self.site.stack == "encoder" or "cross_attn" in self.site.part or not now.columns:
            return value
        if self.tap.part in ("k", "v"):
            n = value.shape[1]
            return value[:, now.start : now.columns] if n > now.columns else value[:, n - now.columns + now.start :]
        if self.tap.part in ("scores", "pattern"):
            width = value.shape[-1]
            if width > now.columns:
                return value[..., : now.columns]
            if width < now.columns:
                shape = (*value.shape[:-1], now.columns - width)
                return torch.cat([value.new_full(shape, _fill(self.site)), value], -1)
        return value

    def _pick(self, value: Tensor, now: Pass) -> Tensor | None:
        dim = next((i for i, d in enumerate(self.site.dims) if d in ("pos", "query")), None)
        if dim is None:
            raise InputError(f"{self.site.name} has no positions; its dimensions are {self.site.dims}")
        n = value.shape[dim]
        chosen = now.selected(self.positions, n, now.start, value.device)  # type: ignore[arg-type]
        chosen = chosen.expand(value.shape[0], n)
        counts = chosen.sum(1)
        if not bool((counts == counts[0]).all()):
            raise InputError("positions: the texts do not all have these positions; pass one choice for each row")
        if int(counts[0]) == 0:
            return None
        moved = value.movedim(dim, 1)
        return moved[chosen].view(value.shape[0], int(counts[0]), *moved.shape[2:]).movedim(1, dim)

    def _drop_beyond(self, pieces: list[Tensor], start: int) -> None:
        """Forget what a rolled-back pass (assisted decoding) computed beyond the cache's new length."""
        dim = self._growing()
        if self.positions is not None or not pieces or dim is None:
            return
        have = sum(p.shape[dim] for p in pieces)
        while pieces and have > start:
            extra = have - start
            last = pieces.pop()
            size = last.shape[dim]
            if size > extra:
                pieces.append(last.narrow(dim, 0, size - extra))
            have -= min(size, extra)

    def _growing(self) -> int | None:
        """The dimension along which passes of one generation follow each other."""
        return next((i for i, d in enumerate(self.site.dims) if d in ("pos", "query")), None)

    def take(self, call: int) -> list[Tensor]:
        """The pieces of each group joined along their positions, and forgotten here."""
        joined = []
        for pieces in self.groups.pop(call, []):
            dim = self._growing()
            if len(pieces) == 1:
                joined.append(pieces[0])
            elif dim is None:
                dim = 1 if pieces[0].ndim >= 3 else 0
                joined.append(torch.cat(pieces, dim))
            else:
                joined.append(torch.cat(even(pieces, self.site, skip=dim), dim))
        return joined


def _fill(site: Site) -> float:
    return float("-inf") if site.part.endswith("scores") else 0.0


def even(pieces: list[Tensor], site: Site, skip: int = 0) -> list[Tensor]:
    """Pad pieces at the end of every sequence dimension but `skip` to one size."""
    if len(pieces) == 1 or pieces[0].ndim != len(site.dims):
        return pieces
    for dim, name in enumerate(site.dims):
        if dim == skip or name not in SEQUENCE:
            continue
        size = max(p.shape[dim] for p in pieces)
        if any(p.shape[dim] != size for p in pieces):
            pieces = [longer(p, dim, size, _fill(site)) for p in pieces]
    return pieces


def longer(piece: Tensor, dim: int, size: int, fill: float) -> Tensor:
    """Pad one dimension at its end to `size`."""
    if piece.shape[dim] == size:
        return piece
    shape = list(piece.shape)
    shape[dim] = size - piece.shape[dim]
    return torch.cat([piece, piece.new_full(shape, fill)], dim)


def blank(value: Tensor, mask: Tensor, site: Site) -> Tensor:
    """Zeros at padding positions."""
    for dim, name in enumerate(site.dims):
        if name in ("pos", "query") and value.ndim > dim and value.shape[dim] == mask.shape[1]:
            shape = [1] * value.ndim
            shape[0], shape[dim] = mask.shape
            value = torch.where(mask.view(shape).to(value.device), value, torch.zeros((), dtype=value.dtype))
    return value


def dims_of(site: Site, value: Any) -> tuple[str, ...]:
    """The site's dimensions, or for a module of which nothing is known names by the number of dimensions."""
    if not isinstance(value, Tensor) or len(site.dims) == value.ndim:
        return site.dims
    if value.ndim == 4:
        return ("batch", "channel", "height", "width")
    if value.ndim == 2:
        return ("batch", "feature")
    if value.ndim == 3:
        return ("batch", "pos", "feature")
    return ("batch", *(f"dim_{i}" for i in range(1, value.ndim)))[: value.ndim]
