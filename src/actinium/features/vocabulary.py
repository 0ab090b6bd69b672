"""What a direction says: the tokens whose logits it raises and lowers most when it is written to the stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.maps import weight_after
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_rows

__all__ = ["vocabulary_logits", "vocabulary_projection", "written"]

STREAM = ("resid_pre", "resid_mid", "resid_post", "mlp.out", "attn.out", "embed")


def written(model: Model, directions: Any, site: str) -> Tensor:
    """What directions of a site write to the residual stream.

    Args:
        model: a transformer.
        directions: (K, d) or (d,) of the site.
        site: "blocks.{i}.mlp.post" (through the down projection), "blocks.{i}.attn.z" with heads side by side
            (through W_O), or a site of width d_model, whose directions are given back. A norm between the projection
            and the stream (Gemma) is applied, biases are not.

    Returns:
        (K, d_model), in the model's type.

    Raises:
        InputError: the width does not fit, or the site does not write to the stream by one linear map.
        SiteError: the site does not exist.

    Source: Geva et al., 2022 (value vectors); Shafran, Geiger, Geva, 2025.
    """
    found = model.resolve(site)
    if len(found) != 1:
        raise InputError(f"{site!r} means {len(found)} sites; directions belong to one")
    ((known, tap, _),) = found
    given = torch.as_tensor(directions).detach()
    rows = as_rows(given[None] if given.ndim == 1 else given, "directions").to(model.device, model.dtype)
    if known.part in STREAM:
        weight = None
        width = model.d_model
    else:
        weight = weight_after(model, known.name)
        width = weight.shape[1]
    if rows.shape[1] != width:
        raise InputError(f"{known.name} has {width} entries, the directions {rows.shape[1]}")
    if weight is None:
        return rows
    if weight.shape[0] != model.d_model:
        raise InputError(f"what reads {known.name} does not write to the residual stream of width {model.d_model}")
    out = rows @ weight.T
    outlet = f"blocks.{known.layer}.{known.part.split('.')[0]}.out"
    if known.layer is not None and model.has(outlet):
        ((_, end, _),) = model.resolve(outlet)
        if all(module is not tap.module for module in end.module.modules()):
            with torch.no_grad():
                out = end.module(out)
    return out


def vocabulary_logits(model: Model, directions: Any, site: str) -> Tensor:
    """Change of the logits (K, d_vocab) when each direction alone is the stream at the end of the model.

    This is the final norm and the unembedding of what the direction writes, minus those of nothing: what biases add to
    every stream says nothing of a direction.

    Args:
        model: a language model.
        directions: (K, d) or (d,) of the site.
        site: see `written`.

    Raises:
        InputError, SiteError: see `written`; or the model has no unembedding that we know.

    Source: nostalgebraist, 2020 (logit lens); Shafran, Geiger, Geva, 2025 (output descriptions).
    """
    stream = written(model, directions, site)
    with torch.no_grad():
        return model.unembed(stream) - model.unembed(torch.zeros_like(stream[:1]))


def vocabulary_projection(model: Model, directions: Any, site: str, n: int = 10) -> Result:
    """The tokens whose logits each direction raises and lowers most.

    Args:
        model: a language model.
        directions: (K, d) or (d,) of the site.
        site: see `written`.
        n: tokens at each end.

    Returns:
        Result over direction and rank (0 is the most extreme): `top_logit` and `bottom_logit` with `top_token` and
        `bottom_token` as text (numbers without a tokenizer) and their numbers `top_id` and `bottom_id`.

    Raises:
        InputError, SiteError: see `vocabulary_logits`; or n is below 1 or above the vocabulary's size.
    """
    logits = vocabulary_logits(model, directions, site).float().cpu()
    if not 1 <= n <= logits.shape[1]:
        raise InputError(f"n must be from 1 to {logits.shape[1]}, the size of the vocabulary; got {n}")
    data: dict[str, Any] = {}
    for end, largest in (("top", True), ("bottom", False)):
        best = logits.topk(n, largest=largest)
        data[f"{end}_logit"] = best.values.numpy()
        data[f"{end}_token"] = np.array([_words(model, row) for row in best.indices], dtype=object)
        data[f"{end}_id"] = best.indices.numpy()
    dataset = xr.Dataset(
        {name: (("direction", "rank"), value) for name, value in data.items()},
        {"direction": np.arange(len(logits)), "rank": np.arange(n)},
        {"plot": {"kind": "heatmap", "variables": ["top_logit"]}},
    )
    about = provenance(model, None, directions=torch.as_tensor(directions), site=site, n=n)
    return Result(dataset, "vocabulary_projection", "snmf-mlp", about)


def _words(model: Model, ids: Tensor) -> list[str]:
    return [str(int(i)) for i in ids] if model.tokenizer is None else model.to_str_tokens(ids)
