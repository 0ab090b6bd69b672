"""A latent of an attention layer's dictionary, attributed to what earlier parts of the model wrote at each source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.edits import Replace
from actinium.core.errors import InputError, SiteError
from actinium.core.inputs import Tokens
from actinium.core.maps import weight_after
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.features.attention_attribution import APART, PAPER, AttendedRows, attended_rows, check_layer
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.normalisation import CONSTANT, EPS

__all__ = ["recursive_attribution"]

WINDOW = 128
"""Most tokens in a row of the probe that measures the value map."""
Part = tuple[str, int, str, Tensor]
"""Name, layer (-1 for none), kind, (row, source) contribution."""


def recursive_attribution(
    model: Model,
    layer: int,
    dictionary: Dictionary,
    inputs: Any,
    latent: int | Sequence[int] | Tensor,
    dest: int | Sequence[int] | Tensor = -1,
    *,
    earlier: Mapping[int, Dictionary] | None = None,
    batch_size: int | None = 16,
) -> Result:
    """Split a latent's pre-activation into what the embedding, earlier attention layers and MLPs wrote at each source.

    Patterns and norm scales count as given; then values are linear in the stream, which is a sum of what parts wrote.
    The map from stream to values is measured on unit vectors, so that norm and projection need not be known, and
    compared with the values themselves. To follow a path on, call it again for an earlier layer's latent at its
    source.

    Args:
        model: a language model with a stream that parts add to (pre-norm).
        layer, dictionary, inputs, latent, dest, batch_size: as in `direct_feature_attribution`.
        earlier: dictionaries of `attn.z` by earlier layer; what those layers wrote is then split by latent.

    Returns:
        Result: `contribution` over row, component and source, `by_component`, `by_source`; `pre`, `constant` and
        `remainder` = pre - constant - sum, as in `direct_feature_attribution`. Components, with `layer` and `kind`:
        "embed" (positions included), "a0" and "m0" (attention and MLP of layer 0); of a layer with a dictionary
        "a0.f7" (each latent that is active at a source), "a0.error" (what its reconstruction misses) and "a0.bias";
        "bias", constants of norm and value projection; "stream", what the stream has beside these, which is rounding.

    Raises:
        SiteError, InputError: as `direct_feature_attribution`; a part is not known; the stream is not the sum of its
            parts, as after a norm; values are not linear in it under a norm's scale; a dictionary is not of an earlier
            layer.

    Source: Kissane et al., 2024, recursive direct feature attribution.
    """
    earlier = dict(earlier or {})
    for at, one in earlier.items():
        if at not in range(layer):
            raise InputError(f"earlier= holds layer {at!r}; layers before {layer} can be split")
        check_layer(model, at, one)
        if not one.autoencodes:
            raise InputError(f"earlier= needs autoencoders of attn.z, and that of layer {at} is no such")
    check_layer(model, layer, dictionary, ("attn.pattern", "attn.v", "resid_pre"))
    parts = {f"{kind[0]}{i}": (f"blocks.{i}.{kind}.out", i, kind) for i in range(layer) for kind in ("attn", "mlp")}
    for site, i, kind in parts.values():
        if not model.has(site):
            raise SiteError(f"what the {kind} of layer {i} writes is not known: {model.name} has no {site}")
    stream = f"blocks.{layer}.resid_pre"
    also = ["blocks.0.resid_pre", stream, *[s for s, _, _ in parts.values()], *[f"blocks.{i}.attn.z" for i in earlier]]
    found = attended_rows(model, layer, dictionary, inputs, latent, dest, also, batch_size)
    direction, bias = _directions(model, layer, found, found.at_sources(stream))
    rest = found.at_sources(stream)
    entries: list[Part] = []
    for name, (site, i, kind) in {"embed": ("blocks.0.resid_pre", -1, "embed"), **parts}.items():
        wrote = found.at_sources(site)
        rest = rest - wrote
        if kind == "attn" and i in earlier:
            entries += _by_latent(model, i, earlier[i], found, direction, wrote)
        else:
            entries.append((name, i, kind, (wrote * direction).sum(-1)))
    apart = float(rest.norm() / found.at_sources(stream).norm().clamp_min(1e-12))
    if not apart < APART:
        raise InputError(
            f"the stream of {model.name} at layer {layer} is not the sum of what its parts write ({apart:.2g} of its "
            "norm is missing), so it cannot be split: blocks that norm or scale what they add are not supported"
        )
    entries += [("bias", -1, "bias", bias), ("stream", -1, "stream", (rest * direction).sum(-1))]
    return _result(model, layer, dictionary, found, entries, earlier)


def _directions(model: Model, layer: int, found: AttendedRows, x: Tensor) -> tuple[Tensor, Tensor]:
    """(row, source, d_model) by which the pre-activation reads the stream at each source, and (row, source) of bias."""
    matrix, offset = _value_map(model, layer, x.shape[-1])
    groups = found.values.shape[2] // len(matrix)
    matrix, offset = matrix.repeat_interleave(groups, 0), offset.repeat_interleave(groups, 0)
    made = torch.einsum("rsm,hdm->rshd", x, matrix)
    given = torch.where(found.real[:, :, None, None], found.values - offset, 0.0)
    # One number for each token: the norm's scale, relative to that of the unit vectors.
    scale = (given * made).sum((2, 3)) / made.square().sum((2, 3)).clamp_min(1e-30)
    apart = float((scale[:, :, None, None] * made - given).norm() / given.norm().clamp_min(1e-12))
    if not apart < APART:
        raise InputError(
            f"values of layer {layer} of {model.name} are not a linear map of its stream under a norm's scale "
            f"({apart:.2g} of their norm is not)"
        )
    read = torch.einsum("rhs,rhd,hdm->rsm", found.pattern, found.weights, matrix) * scale[:, :, None]
    return read, torch.einsum("rhs,rhd,hd->rs", found.pattern, found.weights, offset)


def _value_map(model: Model, layer: int, width: int) -> tuple[Tensor, Tensor]:
    """Matrix (kv_head, d_head, d_model) and offset (kv_head, d_head) from stream to values.

    All unit vectors have the same mean and the same size, so a norm has the same scale at each of them; the matrix is
    right up to that number.
    """
    probes = torch.cat([torch.eye(width) * width**0.5, torch.zeros(1, width)])
    length = min(len(probes), model.context or WINDOW, WINDOW)
    missing = -len(probes) % length
    probes = torch.cat([probes, torch.zeros(missing, width)]).view(-1, length, width)
    ids = torch.zeros(probes.shape[:2], dtype=torch.long)
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(len(ids)))
    site = f"blocks.{layer}.attn.v"
    with torch.no_grad(), model.edit({f"blocks.{layer}.resid_pre": Replace(probes.to(model.device, model.dtype))}):
        values = model.record(tokens, site)[site].double().cpu().flatten(0, 1)[: width + 1]
    return (values[:width] - values[width]).permute(1, 2, 0), values[width]


def _by_latent(
    model: Model, layer: int, dictionary: Dictionary, found: AttendedRows, direction: Tensor, wrote: Tensor
) -> list[Part]:
    """What an earlier attention layer wrote, by latent, error and bias.

    Raises:
        InputError: it does not write z through its output projection alone.
    """
    site = f"blocks.{layer}.attn.z"
    z = found.at_sources(site).flatten(2)
    output = weight_after(model, site).double().cpu()
    bias = wrote - z @ output.T
    constant = bias[found.real].mean(0)
    apart = float((bias[found.real] - constant).norm() / wrote.norm().clamp_min(1e-12))
    if not apart < APART:
        raise InputError(f"attention of layer {layer} of {model.name} writes more than z through its output projection")
    read = direction @ output
    with torch.no_grad():
        out = dictionary(z.to(dictionary.W_dec))
        latents, made = out.f.double().cpu(), out.xhat.double().cpu()
    decoder = dictionary.W_dec.detach().double().cpu()
    latents = torch.where(found.real[:, :, None], latents * _undone(dictionary, z)[:, :, None], 0.0)
    by_latent = latents * (read @ decoder.T)
    fired = (latents != 0).any(1).any(0).nonzero().flatten().tolist()
    name = f"a{layer}"
    parts: list[Part] = [(f"{name}.f{i}", layer, "latent", by_latent[:, :, i]) for i in fired]
    parts.append((f"{name}.error", layer, "error", ((z - made) * read).sum(-1)))
    rest = ((made - latents @ decoder) * read).sum(-1) + (bias * direction).sum(-1)
    # Directions are zero where a text has ended.
    return [*parts, (f"{name}.bias", layer, "bias", rest)]


def _undone(dictionary: Dictionary, z: Tensor) -> Tensor:
    """(row, source) by which what leaves the decoder is multiplied, to undo the normalisation of rows."""
    if dictionary.normalize in CONSTANT:
        return torch.full(z.shape[:2], 1.0 / float(dictionary.scale), dtype=z.dtype)
    size = torch.ones(z.shape[:2], dtype=z.dtype)
    if dictionary.normalize == "norm":
        size = z.norm(dim=-1).clamp_min(EPS) / z.shape[-1] ** 0.5
    elif dictionary.normalize == "layer_norm":
        size = z.std(-1) + EPS
    return size


def _result(
    model: Model,
    layer: int,
    dictionary: Dictionary,
    found: AttendedRows,
    entries: list[Part],
    earlier: Mapping[int, Dictionary],
) -> Result:
    values = torch.stack([part for _, _, _, part in entries], 1)
    labels = {
        "component": np.array([name for name, _, _, _ in entries]),
        "layer": ("component", [at for _, at, _, _ in entries]),
        "kind": ("component", [kind for _, _, kind, _ in entries]),
    }
    data = found.split(values, "component", labels, plot="by_component")
    about: dict[str, Any] = {"layer": layer, "latent": found.latents.tolist(), "dest": found.dest.tolist()}
    record = provenance(
        model,
        [found.rec.tokens, found.rec.mask],
        dictionary=repr(dictionary),
        earlier={str(at): repr(one) for at, one in earlier.items()},
        **about,
    )
    return Result(data, "recursive_attribution", PAPER, record)
