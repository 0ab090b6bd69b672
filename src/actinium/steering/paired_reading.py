"""Activations of pairs of texts that begin alike: what both share runs through the model once."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.inputs import Tokens, pad
from actinium.core.model import Model
from actinium.core.progress import shown

__all__ = ["paired_activations"]

Floats = NDArray[np.float64]
# Below this share of shared tokens two passes cost more than they save.
WORTH = 0.15
TOLERANCE = 1e-3


def paired_activations(
    model: Model,
    positive: Any,
    negative: Any,
    sites: str | Sequence[str],
    places: tuple[Any, Any],
    *,
    batch_size: int,
    progress: bool,
) -> tuple[dict[str, Floats], dict[str, Floats]] | None:
    """Activations (n, d) of both sides by site, or None where sharing does not apply or does not pay.

    It applies to causal models that keep their keys and values in the library's plain cache, to texts whose token that
    is read lies behind what both share, and to sites with positions. The first pair is read the plain way as well, and
    sharing is dropped where the two differ.

    Args:
        model: that reads the texts.
        positive, negative: texts or tokens, as many.
        sites: names and patterns.
        places: what is read on each side: a number below 0, or masks (n, pos).
        batch_size: texts in a pass.
        progress: show a progress bar.
    """
    known = model.sites(sites)
    if model.kind != "causal-lm" or any(s.dims[:2] != ("batch", "pos") for s in known):
        return None
    sides = [model.prepare(given).tokens for given in (positive, negative)]
    if any(s is None for s in sides) or len(sides[0]) != len(sides[1]) or not len(sides[0]):  # type: ignore[arg-type]
        return None
    up, down = (s for s in sides if s is not None)
    if any(len(s.rows.unique()) != len(s) for s in (up, down)):
        return None
    rows = [[ids[mask].tolist() for ids, mask in zip(s.ids, s.mask, strict=True)] for s in (up, down)]
    reads = [_reads(s, place) for s, place in zip((up, down), places, strict=True)]
    if reads[0] is None or reads[1] is None:
        return None
    shared = [
        min(_common(a, b), *(int(r.nonzero()[0]) for r in (i, j)))
        for a, b, i, j in zip(*rows, reads[0], reads[1], strict=True)
    ]
    whole = sum(map(len, rows[0])) + sum(map(len, rows[1]))
    if min(shared) < 1 or sum(shared) < WORTH * whole:
        return None
    names = [s.name for s in known]
    reader = _Reader(model, names, rows, reads, shared)
    if not reader.proven(up, down):
        return None
    found = {name: [torch.empty(len(up), reader.width(name)) for _ in range(2)] for name in names}
    order = torch.tensor([shared, [max(map(len, ab)) for ab in zip(*rows, strict=True)]])
    chosen = torch.argsort(order[0] * (int(order[1].max()) + 1) + order[1], stable=True)
    for some in shown(list(chosen.split(max(1, batch_size // 2))), "recording", progress):
        for name, values in reader.read(some.tolist()).items():
            for side in range(2):
                found[name][side][some] = values[side]
    arrays = [{name: found[name][side].double().numpy() for name in names} for side in range(2)]
    for side in arrays:
        for name, values in side.items():
            if not np.isfinite(values).all():
                raise InputError(f"{name}: activations hold NaN or infinite values")
    return arrays[0], arrays[1]


class _Reader:
    """Reads pairs by a pass over what they share and one over the two ends."""

    def __init__(
        self, model: Model, sites: list[str], rows: list[list[list[int]]], reads: Any, shared: list[int]
    ) -> None:
        self.model, self.sites, self.rows, self.reads, self.shared = model, sites, rows, reads, shared
        known = inspect.signature(model.module.forward).parameters
        self.positions = "position_ids" in known
        self.fewer: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self.widths: dict[str, int] = {}

    def width(self, site: str) -> int:
        """Entries of an activation, known once a pair was read."""
        return self.widths[site]

    def proven(self, up: Tokens, down: Tokens) -> bool:
        """Whether the first pair comes out as it does the plain way."""
        try:
            found = self.read([0])
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return False
        for side, tokens in enumerate((up, down)):
            one = torch.tensor([self.rows[side][0]])
            rec = self.model.record(Tokens(one, torch.ones_like(one, dtype=torch.bool), tokens.rows[:1]), self.sites)
            weight = self.reads[side][0].float() / self.reads[side][0].sum()
            for site in self.sites:
                want = torch.einsum("p,p...->...", weight, rec[site][0].float().cpu()).flatten()
                self.widths[site] = len(want)
                got = found[site][side][0]
                if got.shape != want.shape or float((got - want).norm()) > TOLERANCE * float(want.norm()) + 1e-6:
                    return False
        return True

    @torch.no_grad()
    def read(self, pairs: list[int]) -> dict[str, tuple[Tensor, Tensor]]:
        """(pairs, width) float32 on the CPU of both sides by site."""
        from transformers import DynamicCache

        model, device = self.model, self.model.device
        starts, mask = pad([self.rows[0][i][: self.shared[i]] for i in pairs], 0, "left")
        options: dict[str, Any] = {"attention_mask": mask.long().to(device), "use_cache": True}
        if self.positions:
            options["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0).to(device)
        cache = DynamicCache(config=model.config)
        if any(getattr(layer, "is_sliding", False) for layer in cache.layers):
            raise TypeError("a cache with windows, whose columns padding takes")
        # Nothing behind the last site is computed, of which no entries are in the cache.
        with model.recording(self.sites, stop=True):
            model.module(input_ids=starts.to(device), past_key_values=cache, **options, **self.fewer)
        cache.batch_repeat_interleave(2)
        ends, real = pad([self.rows[side][i][self.shared[i] :] for i in pairs for side in range(2)], 0, "right")
        both = torch.cat([mask.repeat_interleave(2, 0), real], 1)
        options = {"attention_mask": both.long().to(device), "use_cache": True, "past_key_values": cache}
        if self.positions:
            options["position_ids"] = (both.long().cumsum(1) - 1)[:, mask.shape[1] :].clamp_min(0).to(device)
        with model.recording(self.sites, stop=True) as rec:
            model.module(input_ids=ends.to(device), **options, **self.fewer)
        weights = torch.zeros(len(ends), ends.shape[1])
        for k, i in enumerate(pairs):
            for side in range(2):
                part = self.reads[side][i][self.shared[i] :].float()
                weights[2 * k + side, : len(part)] = part / part.sum()
        out = {}
        for site in self.sites:
            values = rec[site][:, -ends.shape[1] :].float().cpu()
            read = torch.einsum("np,np...->n...", weights, values).flatten(1)
            out[site] = (read[0::2], read[1::2])
        return out


def _reads(tokens: Tokens, place: Any) -> list[Tensor] | None:
    """Of each text, which of its tokens are read: bool (length,); None for places that sharing does not serve."""
    lengths = tokens.mask.sum(1).tolist()
    if isinstance(place, int) and not isinstance(place, bool) and place < 0 and min(lengths) >= -place:
        return [torch.arange(n) == n + place for n in lengths]
    if isinstance(place, Tensor) and place.dtype == torch.bool and place.shape == tokens.mask.shape:
        return [row[mask] for row, mask in zip(place, tokens.mask, strict=True)]
    return None


def _common(a: list[int], b: list[int]) -> int:
    """Number of tokens with which both begin."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
