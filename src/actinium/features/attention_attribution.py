"""A latent of an attention layer's dictionary, attributed to heads and to the tokens that they attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError, SiteError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.recording import Recording
from actinium.core.result import Result
from actinium.features.dictionaries.crosscoder import Crosscoder
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.normalisation import CONSTANT, EPS, normalised

__all__ = [
    "AttendedRows",
    "attended_rows",
    "check_layer",
    "direct_feature_attribution",
    "head_attribution",
    "places_of",
]

PAPER = "attention-output-sae"
APART = 0.02
"""Relative distance from which on a sum of parts is not taken for the whole; half precision stays below."""


def head_attribution(dictionary: Dictionary, n_heads: int, *, top: int = 10) -> Result:
    """Share of each head in what a latent writes: norms of the decoder row's blocks, divided by their sum.

    Args:
        dictionary: an autoencoder of `attn.z`, heads side by side.
        n_heads: number of query heads.
        top: latents that are listed for each head.

    Returns:
        Result: `share` over latent and head, which sums to 1 for each latent (NaN where its decoder row is zero);
        `top_latent` and `top_share` over head and rank, the latents of the largest shares.

    Raises:
        InputError: it does not reconstruct its input, or its width is no multiple of the number of heads.

    Source: Kissane et al., 2024, weight-based head attribution.
    """
    dictionary.check_fitted()
    if not dictionary.autoencodes or isinstance(dictionary, Crosscoder):
        raise InputError(f"a {type(dictionary).__name__} does not write heads: take an autoencoder of attn.z")
    check_site_of(dictionary)
    if n_heads < 1 or top < 1:
        raise InputError(f"n_heads and top must be 1 or more, not {n_heads} and {top}")
    if dictionary.d_out % n_heads:
        raise InputError(f"{n_heads} heads do not divide a dictionary of width {dictionary.d_out}")
    norms = dictionary.W_dec.detach().double().cpu().view(dictionary.d_sae, n_heads, -1).norm(dim=2)
    share = norms / norms.sum(1, keepdim=True)
    found, latents = share.nan_to_num(-1.0).topk(min(top, len(share)), dim=0)
    data = xr.Dataset(
        {
            "share": (("latent", "head"), share.numpy()),
            "top_latent": (("head", "rank"), latents.T.numpy()),
            "top_share": (("head", "rank"), found.T.where(found.T >= 0, torch.nan).numpy()),
        },
        coords={"latent": np.arange(len(share)), "head": np.arange(n_heads)},
    )
    about = provenance(None, dictionary.W_dec.detach(), dictionary=repr(dictionary), n_heads=n_heads, top=top)
    return Result(data, "head_attribution", PAPER, about)


def check_site_of(dictionary: Dictionary) -> None:
    """Refuse a dictionary that is known to come from another place than `attn.z`."""
    site = dictionary.about.get("site")
    if isinstance(site, str) and not site.endswith("attn.z"):
        raise InputError(f"this dictionary was made for {site}; heads and sources are those of 'blocks.*.attn.z'")


def check_layer(model: Model, layer: int, dictionary: Dictionary, recorded: Sequence[str] = ()) -> int:
    """Refuse what has no attention to attribute to; returns the number of heads.

    Args:
        model: the model.
        layer: whose attention the dictionary reads.
        dictionary: the dictionary.
        recorded: parts of the layer that have to exist, such as "attn.pattern".

    Raises:
        SiteError: there is no such layer, or it lacks a part.
        InputError: the model does not take tokens alone, or widths differ.
    """
    dictionary.check_fitted()
    if model.kind in ("vision", "encoder-decoder"):
        raise InputError(f"{model.name} is a {model.kind} model; sources are tokens of one text")
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < model.n_layers:
        raise SiteError(f"{model.name} has layers 0 to {model.n_layers - 1}, not {layer!r}")
    for part in ("attn.z", *recorded):
        if not model.has(f"blocks.{layer}.{part}"):
            raise SiteError(f"{model.name} has no blocks.{layer}.{part}; {model.anatomy.absent(f'blocks.0.{part}')}")
    if isinstance(dictionary, Crosscoder):
        raise InputError("a crosscoder reads several places; take a dictionary of one layer's attn.z")
    check_site_of(dictionary)
    (site,) = model.sites(f"blocks.{layer}.attn.z")
    heads, width = site.sizes["head"], site.sizes["head"] * site.sizes["d_head"]
    if width != dictionary.d_in:
        raise InputError(
            f"blocks.{layer}.attn.z of {model.name} is {heads} heads x {width // heads} = {width} wide, and the "
            f"dictionary takes {dictionary.d_in}"
        )
    return heads


def places_of(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (row, source) of the real tokens of each row in order, and which of them there are."""
    counts = mask.sum(1)
    place = (~mask).int().argsort(dim=1, stable=True)[:, : int(counts.max())]
    return place, torch.arange(place.shape[1])[None] < counts[:, None]


@dataclass(frozen=True, eq=False)
class AttendedRows:
    """What the heads attend to from one token of each text, in float64.

    Attributes:
        rec: the recording.
        place: (row, source) columns of the texts' tokens.
        real: (row, source) which of them there are.
        latents: (row,) the latent.
        dest: (row,) the token from which is attended, counted in the text.
        pattern: (row, head, source).
        values: (row, source, head, d_head), those of a group of heads repeated.
        weights: (row, head, d_head) by which the pre-activation reads z.
        constant: (row,) what it adds to that.
        pre: (row,) the pre-activation as the dictionary computes it.
    """

    rec: Recording
    place: Tensor
    real: Tensor
    latents: Tensor
    dest: Tensor
    pattern: Tensor
    values: Tensor
    weights: Tensor
    constant: Tensor
    pre: Tensor

    def at_sources(self, site: str) -> Tensor:
        """(row, source, ...) values of a site in the order of the texts' tokens, zero where a text has ended."""
        found = self.rec[site].detach().double().cpu()
        rows = torch.arange(len(found))[:, None]
        real = self.real.view(*self.real.shape, *[1] * (found.ndim - 2))
        return torch.where(real, found[rows, self.place], 0.0)

    def coords(self) -> dict[str, Any]:
        """Labels of rows and sources; a token is its word, or its number, and empty where a text has ended."""
        ids = self.rec.tokens
        assert ids is not None
        words = self.rec.words
        token = np.full(tuple(self.place.shape), "", dtype=object)
        for i, j in self.real.nonzero().tolist():
            at = int(self.place[i, j])
            token[i, j] = str(int(ids[i, at])) if words is None else words[i][at]
        return {
            "row": np.arange(len(self.place)),
            "source": np.arange(self.place.shape[1]),
            "token": (("row", "source"), token.astype(str)),
            "latent": ("row", self.latents.numpy()),
            "dest": ("row", self.dest.numpy()),
        }

    def split(self, parts: Tensor, over: str, labels: dict[str, Any], plot: str) -> xr.Dataset:
        """Contributions (row, part, source) to the pre-activation, their sums, and what they leave.

        Args:
            parts: the contributions.
            over: what the parts are, such as "head".
            labels: coordinates of the parts.
            plot: the variable that is drawn.
        """
        data = {
            "contribution": (("row", over, "source"), parts.numpy()),
            f"by_{over}": (("row", over), parts.sum(2).numpy()),
            "by_source": (("row", "source"), parts.sum(1).numpy()),
            "pre": ("row", self.pre.numpy()),
            "constant": ("row", self.constant.numpy()),
            "remainder": ("row", (self.pre - self.constant - parts.sum((1, 2))).numpy()),
        }
        return xr.Dataset(data, self.coords() | labels, {"plot": {"variables": [plot]}})


def attended_rows(
    model: Model,
    layer: int,
    dictionary: Dictionary,
    inputs: Any,
    latent: int | Sequence[int] | Tensor,
    dest: int | Sequence[int] | Tensor,
    also: Sequence[str] = (),
    batch_size: int | None = 16,
) -> AttendedRows:
    """Record what one attention layer reads and attends to; see `direct_feature_attribution`.

    Args:
        also: further sites to record.
    """
    heads = check_layer(model, layer, dictionary, ("attn.pattern", "attn.v"))
    names = {part: f"blocks.{layer}.attn.{part}" for part in ("pattern", "v", "z")}
    with torch.no_grad():
        rec = model.record(inputs, list(dict.fromkeys([*names.values(), *also])), batch_size=batch_size)
    if rec.tokens is None or rec.mask is None:
        raise InputError("attribution to sources needs texts or tokens")
    mask = rec.mask.cpu()
    place, real = places_of(mask)
    lengths = mask.sum(1)
    latents = _per_row(latent, len(place), "latent", torch.full_like(lengths, dictionary.d_sae), negative=False)
    at = _per_row(dest, len(place), "dest", lengths, negative=True)
    rows = torch.arange(len(place))
    column = place[rows, at]
    z = rec[names["z"]].detach()[rows, column].flatten(1).cpu()
    pattern = rec[names["pattern"]].detach().double().cpu()[rows, :, column]
    pattern = torch.where(real[:, None], pattern.gather(2, place[:, None].expand(-1, heads, -1)), 0.0)
    values = rec[names["v"]].detach().double().cpu()[rows[:, None], place]
    values = torch.where(real[:, :, None, None], values, 0.0).repeat_interleave(heads // values.shape[2], 2)
    made = torch.einsum("rhs,rshd->rhd", pattern, values).flatten(1)
    apart = (made - z.double()).norm() / z.double().norm().clamp_min(1e-12)
    if not float(apart) < APART:
        raise InputError(
            f"{names['z']} is not its pattern times its values (they are {float(apart):.2g} of its norm apart), so it "
            "has no sources"
        )
    weights, constant, pre = _reading(dictionary, z, latents)
    weights = weights.reshape(len(weights), heads, -1)
    return AttendedRows(rec, place, real, latents, at, pattern, values, weights, constant, pre)


def _per_row(given: Any, rows: int, what: str, limits: Tensor, negative: bool) -> Tensor:
    """(row,) whole numbers below the limits, from one for all rows or one for each."""
    found = torch.as_tensor(given)
    if found.is_floating_point() or found.dtype == torch.bool or found.ndim > 1 or found.numel() not in (1, rows):
        raise InputError(f"{what} is a whole number, or one for each of {rows} rows, not {given!r}")
    found = found.cpu().long().reshape(-1).expand(rows)
    whole = torch.where((found < 0) & negative, found + limits, found)
    bad = ((whole < 0) | (whole >= limits)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise InputError(f"{what} {int(found[row])} of row {row} is out of range: there are {int(limits[row])}")
    return whole.clone()


def _reading(dictionary: Dictionary, z: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (row, d_in) and constant (row,) with pre = z . weights + constant, and pre as it is computed."""
    kept, how = dictionary.W_enc, dictionary.normalize
    with torch.no_grad():
        rows = z.to(kept)
        pre = dictionary.pre(normalised(rows, how, dictionary.scale)[0])
        pre = pre[torch.arange(len(rows)), latents.to(pre.device)].double().cpu()
    columns = kept.detach().T[latents.to(kept.device)].double().cpu()
    constant = torch.zeros(len(z), dtype=torch.float64)
    if dictionary.b_enc is not None:
        constant += dictionary.b_enc.detach().double().cpu()[latents]
    if dictionary.apply_b_dec:
        constant -= columns @ dictionary.b_dec.detach().double().cpu()
    z = z.double()
    if how in CONSTANT:
        columns = columns * dictionary.scale.double().cpu()
    elif how == "norm":
        columns = columns / (z.norm(dim=1, keepdim=True).clamp_min(EPS) / z.shape[1] ** 0.5)
    elif how == "layer_norm":
        columns = (columns - columns.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + EPS)
    return columns, constant, pre


def direct_feature_attribution(
    model: Model,
    layer: int,
    dictionary: Dictionary,
    inputs: Any,
    latent: int | Sequence[int] | Tensor,
    dest: int | Sequence[int] | Tensor = -1,
    *,
    batch_size: int | None = 16,
) -> Result:
    """Split a latent's pre-activation at one token into what each head brings from each source token.

    The contribution of head h and source s is A[h, dest, s] * (v[h, s] . W_enc[h, latent]). Sums are exact; patterns
    count as given, so what a token does by being attended to (its keys) is not in them.

    Args:
        model: a language model.
        layer: whose attention the dictionary reads.
        dictionary: reads `blocks.{layer}.attn.z`, heads side by side. If it normalises rows, their size is held.
        inputs: texts or tokens.
        latent: a latent, or one for each row.
        dest: a position in the text (padding does not count, -1 is the last token), or one for each row.
        batch_size: rows in a pass.

    Returns:
        Result: `contribution` over row, head and source, `by_head`, `by_source`; `pre`, the pre-activation as the
        dictionary computes it; `constant`, its part that no token brings (biases); `remainder` = pre - constant - sum,
        which is rounding. Contributions are 0 where a text has ended; `token` names sources.

    Raises:
        SiteError: there is no such layer, or its patterns or values are not known.
        InputError: the dictionary is of another width or site; a latent or position is out of range; z is not pattern
            times values.

    Source: Kissane et al., 2024, direct feature attribution.
    """
    found = attended_rows(model, layer, dictionary, inputs, latent, dest, batch_size=batch_size)
    parts = found.pattern * torch.einsum("rshd,rhd->rhs", found.values, found.weights)
    data = found.split(parts, "head", {"head": np.arange(parts.shape[1])}, plot="by_source")
    about: dict[str, Any] = {"layer": layer, "latent": found.latents.tolist(), "dest": found.dest.tolist()}
    record = provenance(model, [found.rec.tokens, found.rec.mask], dictionary=repr(dictionary), **about)
    return Result(data, "direct_feature_attribution", PAPER, record)
