"""The texts in which latents of a dictionary are most active, found in one pass over a model or a store."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.reducing import Context
from actinium.core.result import Result
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.latent_amplification import check_autoencoder, latent_numbers
from actinium.features.splicing import flattened
from actinium.store.store import Store

__all__ = ["top_contexts"]

ENTRIES = 1 << 24
"""Latents that are held at a time."""


class TopContexts:
    """Streams over texts and keeps, for each latent, those in which its largest activation is largest.

    Args:
        dictionary: what encodes the activations.
        latents: (n,) which.
        k: texts of each latent.
        skip_first: leave out the first token of each text.
    """

    wants_context: ClassVar[bool] = True

    def __init__(self, dictionary: Dictionary, latents: Tensor, k: int, skip_first: bool) -> None:
        self.dictionary, self.latents, self.k, self.skip_first = dictionary, latents, k, skip_first
        self.values = torch.full((len(latents), 0), torch.nan)
        self.places = torch.zeros(len(latents), 0, 3, dtype=torch.long)
        self.fired, self.tokens = torch.zeros(len(latents), dtype=torch.long), 0

    @torch.no_grad()
    def update(self, values: Tensor, context: Context) -> None:
        """Take in activations (batch, pos, ...) with their tokens."""
        if context.tokens is None or values.ndim < 3:
            raise InputError(f"{context.site}: contexts need activations at tokens")
        d = self.dictionary
        flat = flattened(values, d.d_in).to(d.W_dec.device, d.W_dec.dtype)
        if not bool(flat.isfinite().all()):
            raise InputError(f"{context.site} holds NaN or infinite values")
        real = torch.ones(flat.shape[:2], dtype=torch.bool) if context.mask is None else context.mask.cpu().clone()
        number = real.long().cumsum(1) - 1
        if self.skip_first:
            real &= number > 0
        tokens, rows = context.tokens.cpu(), context.rows.cpu()
        # Few texts at a time, so that the dense latents of a large dictionary stay small.
        few = max(1, ENTRIES // (flat.shape[1] * d.d_sae))
        for a in range(0, len(flat), few):
            part = slice(a, a + few)
            self._add(flat[part], real[part], number[part], tokens[part], rows[part])

    def _add(self, flat: Tensor, real: Tensor, number: Tensor, tokens: Tensor, rows: Tensor) -> None:
        f = torch.full((*flat.shape[:2], len(self.latents)), -1.0)
        if bool(real.any()):
            kept = flat[real.to(flat.device)]
            f[real] = self.dictionary.encode(kept)[:, self.latents.to(flat.device)].float().cpu()
        self.fired += (f > 0).sum((0, 1))
        self.tokens += int(real.sum())
        value, at = f.max(1)
        row = torch.arange(len(f))[:, None]
        places = torch.stack([tokens[row, at], rows[:, None].expand_as(at), number[row, at]], -1)
        value, places = torch.cat([self.values, value.T], 1), torch.cat([self.places, places.transpose(0, 1)], 1)
        order = value.argsort(dim=1, descending=True, stable=True)[:, : self.k]
        self.values = value.gather(1, order)
        self.places = places.gather(1, order[..., None].expand(-1, -1, 3))

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is found of each latent.

        Returns:
            values (n, k), NaN where it was active in fewer texts; token, text and position (n, k, 3), -1 there; the
            share of tokens (n,) at which it is active.
        """
        missing = self.k - self.values.shape[1]
        values = torch.nn.functional.pad(self.values, (0, missing), value=-1.0)
        places = torch.nn.functional.pad(self.places, (0, 0, 0, missing), value=-1)
        silent = ~(values > 0)
        return (
            values.masked_fill(silent, torch.nan),
            places.masked_fill(silent[..., None], -1),
            self.fired / max(1, self.tokens),
        )


def top_contexts(
    model: Model | None,
    site: str,
    dictionary: Dictionary,
    inputs: Any,
    latents: Any = None,
    k: int = 100,
    *,
    skip_first: bool = True,
    batch_size: int = 64,
    progress: bool = False,
) -> Result:
    """The texts in which each latent is most active, and the token at which it is.

    Nothing is kept but the k best texts of each latent.

    Args:
        model: a language model; not needed (None) where a store is read.
        site: what the dictionary reads.
        dictionary: an autoencoder.
        inputs: texts or tokens, or a `Store`, whose windows are the texts (of `packing="pad"` one document each).
        latents: (n,) which; all by default.
        k: most texts of a latent.
        skip_first: leave out the first token of each text, whose activations are often unlike all others.
        batch_size: texts in a pass.
        progress: show a progress bar.

    Returns:
        Result over `latent` and `rank`: `value`, the largest activation in the text (NaN beyond the texts in which the
        latent is active), `token`, `text` and `position` of it (-1 there); `density` over `latent`, the share of
        tokens at which it is active.

    Raises:
        InputError: the dictionary does not fit, a latent or k is out of range, activations are not finite.
        SiteError: the site does not exist.
    """
    if k < 1 or batch_size < 1:
        raise InputError(f"expected k >= 1 and batch_size >= 1, got {k} and {batch_size}")
    chosen = latent_numbers(dictionary, latents)
    reducer = TopContexts(dictionary, chosen, k, skip_first)
    about: dict[str, Any] = {"site": site, "dictionary": repr(dictionary), "k": k, "skip_first": skip_first}
    if isinstance(inputs, Store):
        width = int(np.prod(inputs[site].shape[1:]))
        if width != dictionary.d_in:
            raise InputError(f"{site} of {inputs.address} is {width} wide, and the dictionary takes {dictionary.d_in}")
        values, places, density = inputs.reduce(site, reducer, progress=progress)
        record = provenance(None, inputs.fingerprint, latents=chosen, **about)
    else:
        if model is None:
            raise InputError("texts need a model; without one give a Store")
        check_autoencoder(model, site, dictionary)
        tokens = inputs if isinstance(inputs, Tokens) else model.prepare(inputs).tokens
        if tokens is None:
            raise InputError("contexts need texts or tokens")
        rec = model.record(tokens, site, reduce=reducer, batch_size=batch_size, progress=progress)
        values, places, density = rec[site]
        record = provenance(model, {"ids": tokens.ids, "mask": tokens.mask}, latents=chosen, **about)
    data = {"value": values, **{name: places[..., i] for i, name in enumerate(("token", "text", "position"))}}
    dataset = xr.Dataset(
        {name: (("latent", "rank"), value.numpy()) for name, value in data.items()}
        | {"density": ("latent", density.numpy())},
        {"latent": chosen.numpy(), "rank": np.arange(k)},
    )
    return Result(dataset, "top_contexts", "sae-steering-scores", record)
