"""How alike two models of one architecture represent the same texts, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.compare.pooled_states import pooled_states, same_tokens
from actinium.core.alignment import linear_cka, orthogonal_map
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.provenance import fingerprint, provenance
from actinium.core.result import Result
from actinium.core.statistics import bootstrap_interval

__all__ = ["MEASURES", "PAPER", "depth_slope", "layer_pairs", "layerwise_similarity"]

MEASURES = ("cosine", "cka", "procrustes")
PAPER = "fact-vs-query-similarity"
# Of a state that was centred: below this share of its length before, only rounding is left.
NOTHING = 1e-9


def layerwise_similarity(
    a: Model,
    b: Model,
    inputs: Any,
    pool: str = "last",
    center: bool = False,
    measure: str = "cosine",
    *,
    batch_size: int = 32,
) -> Result:
    """Similarity of two models' residual streams at every layer.

    Args:
        a, b: language models of equal depth that tokenise the texts alike.
        inputs: texts, or token ids (item, pos).
        pool: "last" (last token of each text) or "mean" (over its tokens without the beginning-of-sequence token).
        center: subtract each model's mean over the texts first (CKA always does).
        measure: "cosine"; "procrustes", the cosine after the orthogonal map that brings a nearest to b at this layer
            (fitted on these texts, so it needs more of them than there are dimensions to mean much); or "cka", linear
            CKA over the texts, which no rotation of either stream changes.
        batch_size: texts in a pass.

    Returns:
        by layer (0 is the output of the embedding, the last one is before the final norm) and item: `similarity`, and
        its `mean` over items; CKA has `similarity` by layer only. NaN where centring leaves nothing of a text.

    Raises:
        InputError: different depth, different width with cosine or procrustes, different tokens, a state of length
            zero, or fewer than two texts for centring, CKA or procrustes.
        UnknownNameError: no such pool or measure.

    Source: Zhang, Kaniselvan, Mireshghallah, 2025; Kornblith et al., 2019, section 3 (CKA).
    """
    check_pair(a, b, measure)
    if a.n_layers != b.n_layers:
        raise InputError(
            f"{a.name} has {a.n_layers} blocks, {b.name} has {b.n_layers}; layer by layer needs equal depth "
            "(layer_pairs compares every layer with every other)"
        )
    tokens = same_tokens(a, b, inputs)
    x, y = (pooled_states(model, tokens, pool, batch_size) for model in (a, b))
    values = similarity(*(centred(s) for s in (x, y)), measure, (x, y)) if center else similarity(x, y, measure)
    data = xr.Dataset(coords={"layer": np.arange(len(x))})
    if measure == "cka":
        data["similarity"] = ("layer", values)
    else:
        data = data.assign_coords(item=np.arange(x.shape[1]))
        data["similarity"] = (("layer", "item"), values)
        data["mean"] = ("layer", values.mean(1))
    shown = "similarity" if measure == "cka" else "mean"
    data.attrs["plot"] = {"variables": [shown], "ylabel": f"{'centred ' if center else ''}{measure}"}
    record = pair_provenance(a, b, tokens.ids, pool=pool, center=center, measure=measure)
    return Result(data, "layerwise_similarity", PAPER, record)


def layer_pairs(
    a: Model, b: Model, inputs: Any, pool: str = "last", center: bool = False, measure: str = "cosine"
) -> Result:
    """Similarity of every layer of one model with every layer of another, averaged over the texts.

    Args:
        a, b: language models that tokenise the texts alike; their depths may differ, with CKA also their widths.
        inputs: texts, or token ids (item, pos).
        pool, center, measure: see `layerwise_similarity`.

    Returns:
        by `layer` (of a) and `other_layer` (of b): `similarity`.

    Raises:
        InputError, UnknownNameError: see `layerwise_similarity`.

    Source: Zhang, Kaniselvan, Mireshghallah, 2025; Kornblith et al., 2019.
    """
    check_pair(a, b, measure)
    tokens = same_tokens(a, b, inputs)
    x, y = (pooled_states(model, tokens, pool) for model in (a, b))
    first, second = (centred(x), centred(y)) if center else (x, y)
    rows = []
    for one, raw in zip(first, x, strict=True):
        many = one.expand(len(y), *one.shape), raw.expand(len(y), *raw.shape)
        values = similarity(many[0], second, measure, (many[1], y))
        rows.append(values if measure == "cka" else values.mean(1))
    data = xr.Dataset(
        {"similarity": (("layer", "other_layer"), np.stack(rows))},
        {"layer": np.arange(len(x)), "other_layer": np.arange(len(y))},
        {"plot": {"x": "other_layer", "y": "layer"}},
    )
    record = pair_provenance(a, b, tokens.ids, pool=pool, center=center, measure=measure)
    return Result(data, "layer_pairs", PAPER, record)


def depth_slope(similarities: Result, depths: Sequence[int], *, n: int = 1000, seed: int = 0) -> Result:
    """Similarity by the depth of the items in their hierarchy, and its slope.

    Args:
        similarities: of `layerwise_similarity` with a value for each item.
        depths: depth of each item.
        n: resamples of the items for the interval (95 %).
        seed: of the resampling.

    Returns:
        by layer: `slope` per unit of depth (least squares) with `low` and `high`; by layer and depth: `mean`.

    Raises:
        InputError: no value for each item, another number of depths, or items of one depth only.

    Source: Zhang, Kaniselvan, Mireshghallah, 2025, the analysis by retrieval depth.
    """
    values = similarities["similarity"]
    if "item" not in values.dims:
        raise InputError("the slope needs a value for each item, which CKA does not have; use cosine or procrustes")
    depth = np.asarray(depths, dtype=np.float64)
    if depth.shape != (values.sizes["item"],):
        raise InputError(f"expected {values.sizes['item']} depths, one for each item, got shape {depth.shape}")
    levels = np.unique(depth)
    if len(levels) < 2:
        raise InputError("the slope needs items of two depths or more")
    rows = np.column_stack([depth, values.transpose("item", "layer").values])

    def slope(drawn: np.ndarray) -> np.ndarray:
        away = drawn[:, 0] - drawn[:, 0].mean()
        square = away @ away
        return away @ drawn[:, 1:] / square if square else np.zeros(drawn.shape[1] - 1)

    low, high = bootstrap_interval(rows, slope, n=n, seed=seed)
    means = np.stack([rows[depth == level, 1:].mean(0) for level in levels], 1)
    data = xr.Dataset(
        {
            "slope": ("layer", slope(rows)),
            "low": ("layer", low),
            "high": ("layer", high),
            "mean": (("layer", "depth"), means),
        },
        {"layer": values["layer"].values, "depth": levels},
        {"plot": {"variables": ["slope", "low", "high"], "ylabel": "similarity per unit of depth"}},
    )
    settings = {"depths": depth, "n": n, "of": similarities.provenance}
    return Result(data, "depth_slope", PAPER, provenance(seed=seed, **settings))


def check_pair(a: Model, b: Model, measure: str) -> None:
    """Refuse a measure that there is not, and one that needs a shared basis where widths differ."""
    if measure not in MEASURES:
        raise UnknownNameError(unknown("measure", measure, MEASURES))
    if measure != "cka" and a.d_model != b.d_model:
        raise InputError(
            f'{a.name} has width {a.d_model}, {b.name} has width {b.d_model}: {measure} needs equal widths, use "cka"'
        )


def centred(states: Tensor) -> Tensor:
    """States (layer, item, d) without their mean over items."""
    if states.shape[1] < 2:
        raise InputError("centring needs two texts or more")
    return states - states.mean(1, keepdim=True)


def similarity(x: Tensor, y: Tensor, measure: str, raw: tuple[Tensor, Tensor] | None = None) -> np.ndarray:
    """Similarity of states (layer, item, d) of two models.

    Args:
        x, y: states of both, of as many layers and items.
        measure: of `MEASURES`.
        raw: the states before centring, if these were centred.

    Returns:
        (layer, item), or (layer,) for CKA; NaN where centring left nothing.

    Raises:
        InputError: a state of length zero, or fewer than two items for CKA or procrustes.
    """
    if measure != "cosine" and x.shape[1] < 2:
        raise InputError(f"{measure} compares texts with each other and needs two or more")
    for states in raw or (x, y):
        zero = (states.norm(dim=-1) == 0).nonzero()
        if len(zero) and measure != "cka":
            raise InputError(f"text {int(zero[0, 1])} has a state of length zero at layer {int(zero[0, 0])}")
    if measure == "cka":
        return np.array([_cka(one, other) for one, other in zip(x, y, strict=True)])
    if measure == "procrustes":
        x = torch.stack([one @ orthogonal_map(one, other) for one, other in zip(x, y, strict=True)])
    values = torch.cosine_similarity(x, y, dim=-1, eps=0)
    for states, before in zip((x, y), raw or (), strict=False):
        values[states.norm(dim=-1) <= NOTHING * before.norm(dim=-1)] = torch.nan
    return values.numpy()


def _cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA; NaN where the items do not differ but by rounding."""
    constant = any(float((s - s.mean(0)).norm()) <= NOTHING * float(s.norm()) for s in (x, y))
    return float("nan") if constant else linear_cka(x, y)


def pair_provenance(a: Model, b: Model, inputs: Any, seed: int | None = None, **settings: Any) -> dict[str, Any]:
    """Provenance with both models."""
    record = provenance(a, seed=seed, **settings)
    return record | {"other_model": provenance(b)["model"], "inputs": fingerprint(inputs)}
