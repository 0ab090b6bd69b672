"""Lawson et al., 2024: one sparse autoencoder for all layers, whose latents live at one layer at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import actinium as ac
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    35,
    claim=(
        "Over many texts a latent of a multi-layer sparse autoencoder is active at several layers, and at one token "
        "mostly at one of them; neighbouring layers of the residual stream are more alike than distant ones."
    ),
)
CLAIMED = (
    "On Pythia models latents are active at several layers over the data and mostly at a single layer for one prompt; "
    "with larger models neighbouring layers are more alike and more latents are active at several layers."
)
# Set before anything was measured: the share of a latent's activation at one token that its strongest layer has to
# have, the spread that shuffled layers have to reach, the share of variance that the dictionary may lose.
MOSTLY, SHUFFLED, LOST = 0.5, 0.9, 0.3


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Train a multi-layer dictionary on `world:lm`, and look at the layers of its latents on other texts.

    The claim holds if (1) of the variance over layers less is left within a token and latent than within a latent,
    relative to the next larger (r_t < r_f); (2) of a latent's activation at one token, more than half is at its
    strongest layer, on average; (3) with layers shuffled within each token a latent's variance is 0.9 of all or more;
    (4) neighbouring layers have a larger mean cosine than others. The dictionary has to explain 70 % of every layer.

    Args:
        seed: of weights, the order of rows and the shuffling.
        model: a language model; `world:lm` by default. Its texts are those of the small world.
        quick: a short training run with fewer latents.
    """
    lm = model if isinstance(model, ac.Model) else ac.load(model or "world:lm")
    texts = ac.world.heldout_text("lm")
    texts = texts[: 600 if quick else len(texts)]
    sites = [f"blocks.{i}.resid_post" for i in range(lm.n_layers)]
    half = len(texts) // 2
    rows, held = (_rows(lm, part, sites) for part in (texts[:half], texts[half:]))
    d_sae, k = (1024, 16) if quick else (2048, 32)
    sae = ac.features.MultiLayerSAE(d_sae, k, aux_k=64, seed=seed)
    sae.fit(
        rows,
        batch_size=256,
        rows=256 * (120 if quick else 1500),
        lr=2e-3,
        schedule="linear",
        dead_after=20_000,
        seed=seed,
    )
    values, latents = _codes(sae, held[: 2000 if quick else 20000], k)
    spread = ac.features.LatentLayerDistribution(lm.n_layers, d_sae).update(values, latents)
    r_f, r_t = spread.variance_ratios()
    random = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(lm.n_layers, generator=random) for _ in range(len(values))])
    index = order[:, :, None].expand_as(values)
    mixed = ac.features.LatentLayerDistribution(lm.n_layers, d_sae)
    mixed.update(values.gather(1, index), latents.gather(1, index))
    near, far = _cosines(held)
    lost = _lost(sae, held)
    strongest = _strongest(values, latents, d_sae)
    measured = {
        "variance over layers of a latent / of all (r_f)": r_f,
        "variance at one token / of a latent (r_t)": r_t,
        "r_f with shuffled layers": mixed.variance_ratios()[0],
        "share of a latent's activation at its strongest layer, one token": strongest,
        "the same, all tokens": float(torch.nan_to_num(spread.probs).amax(0)[spread.totals.sum(0) > 0].mean()),
        "cosine of neighbouring layers": near,
        "cosine of other layers": far,
        "largest share of variance lost in a layer": lost,
        "latents active on the held-out texts": int((spread.totals.sum(0) > 0).sum()),
    }
    parts: dict[str, bool | None] = {
        "spread less at a token than over the data": r_t < r_f,
        "mostly at one layer for a token": strongest > MOSTLY,
        "shuffled layers destroy it": mixed.variance_ratios()[0] >= SHUFFLED,
        "neighbouring layers are more alike": near > far,
        "the dictionary explains every layer": lost < LOST,
    }
    measured |= claims_of(parts)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            f"{lm.name} has {lm.n_layers} blocks; latents are weighted by their activation. One model says nothing on "
            "how this changes with size, and no tuned lens was tried."
        ),
        result=spread.result(seed=seed, dictionary=repr(sae)),
        settings={"seed": seed, "latents": d_sae, "k": k, "texts": len(texts), "model": lm.name},
    )


def _rows(lm: Any, texts: list[str], sites: list[str]) -> Tensor:
    """(token, layer, d_model) without each text's first token."""
    tokens = lm.to_tokens(texts)
    rec = lm.record(tokens, sites, batch_size=64)
    return torch.stack([rec[site][tokens.after_first()] for site in sites], 1)


def _codes(sae: Any, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and latents (token, layer, k)."""
    values, latents = sae.transform(rows).topk(k, dim=-1)
    return values, latents


def _strongest(values: Tensor, latents: Tensor, d_sae: int) -> float:
    """Mean, weighted by activation, of the share of a token's latent at its strongest layer."""
    n, layers, k = values.shape
    pairs = torch.arange(n).view(-1, 1, 1) * d_sae + latents
    unique, place = torch.unique(pairs, return_inverse=True)
    by_layer = torch.zeros(len(unique), layers, dtype=torch.float64)
    layer = torch.arange(layers).view(1, -1, 1).expand(n, layers, k)
    by_layer.index_put_((place.flatten(), layer.flatten()), values.double().flatten(), accumulate=True)
    return float(by_layer.amax(1).sum() / by_layer.sum())


def _cosines(rows: Tensor) -> tuple[float, float]:
    """Mean cosine of centred streams of neighbouring layers, and of other pairs."""
    centred = rows.double() - rows.double().mean(0)
    unit = centred / centred.norm(dim=-1, keepdim=True)
    cosine = torch.einsum("nld,nmd->lm", unit, unit) / len(unit)
    distance = torch.arange(len(cosine)).view(-1, 1) - torch.arange(len(cosine))
    return float(cosine[distance == 1].mean()), float(cosine[distance > 1].mean())


def _lost(sae: Any, rows: Tensor) -> float:
    """Largest share over layers of the variance that the reconstruction loses."""
    with torch.no_grad():
        error = (sae(rows).xhat - rows).double().square().sum((0, 2))
    spread = (rows - rows.mean(0)).double().square().sum((0, 2))
    return float(np.max((error / spread).numpy()))
