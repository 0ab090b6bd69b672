"""Replay by whole blocks: all variants side by side in the batch, from the first changed block upward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from actinium.core import replay, taps
from actinium.core.edits import Where
from actinium.core.passes import Pass
from actinium.core.replay import Change, Engine, Variant
from actinium.core.taps import Program

__all__ = ["ENTRY", "Segment", "SegmentAction", "TilingEngine", "program_of", "tiled"]

# Tokens in one call of a block: enough to fill the processor, few enough to stay in its caches.
TOKENS = 1024
ENTRY = ("resid_pre", "resid_post")


class Segment:
    """Where one variant's tokens lie in a tensor that holds many: (batch * n) consecutive tokens from `offset`."""

    def __init__(self, variant: Variant, offset: int, batch: int, n: int) -> None:
        self.variant, self.offset, self.batch, self.n = variant, offset, batch, n


class SegmentAction:
    """The changes that several variants make at one point of a block."""

    def __init__(self, parts: list[tuple[Segment, Change]], now: Pass) -> None:
        self.parts, self.now = parts, now

    def __call__(self, raw: Tensor) -> Tensor:
        """The tensor with each variant's part changed."""
        tap = self.parts[0][1].tap
        if tap.kind == "attention":
            return self._rows(raw)
        flat = raw.reshape(-1, raw.shape[-1])
        new = flat.clone()
        for segment, change in self.parts:
            place = slice(segment.offset, segment.offset + segment.batch * segment.n)
            piece = new[place].view(segment.batch, segment.n, -1)
            value = change.edit(
                change.tap.view(piece, segment.batch), Where(change.site, self.now, segment.variant.column)
            )
            new[place] = change.tap.unview(value, piece).reshape(new[place].shape)
        return new.view(raw.shape)

    def _rows(self, raw: Tensor) -> Tensor:
        new = raw.clone()
        for segment, change in self.parts:
            first = segment.offset // segment.n
            rows = new[first : first + segment.batch]
            new[first : first + segment.batch] = change.edit(rows, Where(change.site, self.now, 0))
        return new


def program_of(segments: list[Segment], layer: int, now: Pass, skip: tuple[str, ...] = ()) -> Program:
    """A program that makes the changes of all segments within one block.

    Args:
        segments: the variants and where they lie.
        layer: the block.
        now: the pass of the base run.
        skip: parts of attention that are changed elsewhere.
    """
    program = Program()
    found: dict[taps.Key, list[tuple[Segment, Change]]] = {}
    for segment in segments:
        for change in segment.variant.inside.get(layer, ()):
            # What enters a block is changed before the block is called.
            if change.site.part in ENTRY or (change.tap.kind == "attention" and change.tap.part in skip):
                continue
            found.setdefault(change.tap.key, []).append((segment, change))
    for parts in found.values():
        program.add(parts[0][1].tap, SegmentAction(parts, now))
    return program


class TilingEngine(Engine):
    """Runs every block on the whole sequence of each variant; for attention code of a model's own, and Mamba."""

    def run(self, variants: list[Variant], tick: Callable[[], None]) -> Tensor:
        """Walk the blocks upward on whole sequences."""
        base, tower = self.base, self.model.tower
        batch, n, width = base.hidden[0].shape
        step = max(1, TOKENS // (batch * n))
        hidden: list[Tensor] = []
        alive: list[Variant] = []
        for layer in range(variants[0].start, len(tower.blocks)):
            for variant in variants:
                if variant.start == layer:
                    alive.append(variant)
                    hidden.append(self.entered(variant))
            for first in range(0, len(alive), step):
                part = slice(first, first + step)
                self._block(layer, alive[part], hidden, first)
            tick()
        for variant in variants:
            if variant.start == len(tower.blocks):
                alive.append(variant)
                hidden.append(self.entered(variant))
        place = {v.index: i for i, v in enumerate(alive)}
        columns = base.columns[:, :, None].expand(-1, -1, width)
        for i, variant in enumerate(alive):
            for change in variant.inside.get(len(tower.blocks), ()):
                hidden[i] = change.edit(hidden[i], Where(change.site, base.now, 0))
        read = torch.stack([hidden[place[v.index]].gather(1, columns) for v in variants])
        tick()
        return replay.tail(self.model, read.flatten(0, 1)).view(*read.shape[:3], -1)

    def _block(self, layer: int, alive: list[Variant], hidden: list[Tensor], first: int) -> None:
        base, block = self.base, self.model.tower.blocks[layer]
        batch, n, _ = base.hidden[0].shape
        segments = [Segment(v, i * batch * n, batch, n) for i, v in enumerate(alive)]
        x = torch.cat(hidden[first : first + len(alive)])
        x = self._stream(x, segments, layer)
        args, kwargs = base.calls[layer]
        untiled = self.model.tower.stack.untiled
        args = tuple(tiled(a, batch, len(alive)) for a in args)
        kwargs = {k: v if k in untiled else tiled(v, batch, len(alive)) for k, v in kwargs.items()}
        with self.model.running(program_of(segments, layer, base.now), nested=True):
            out = taps.first_tensor(block(x, *args, **kwargs))
        assert out is not None
        for i in range(len(alive)):
            hidden[first + i] = out[i * batch : (i + 1) * batch]

    def _stream(self, x: Tensor, segments: list[Segment], layer: int) -> Tensor:
        """Changes of the stream that enters a block above a variant's first."""
        for i, segment in enumerate(segments):
            changes = [c for c in segment.variant.inside.get(layer, ()) if c.site.part in ENTRY]
            rows = slice(i * segment.batch, (i + 1) * segment.batch)
            for change in changes:
                x[rows] = change.edit(x[rows], Where(change.site, self.base.now, 0))
        return x


def tiled(value: Any, batch: int, times: int) -> Any:
    """Repeat what has a batch dimension once for each variant."""
    if isinstance(value, tuple):
        return tuple(tiled(v, batch, times) for v in value)
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] % batch == 0:
        return value.repeat(times, *[1] * (value.ndim - 1))
    return value
