"""Arad, Mueller and Belinkov, 2025: latents steer if amplifying them makes their own tokens likely."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr
from torch import Tensor

import actinium as ac
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    88,
    claim=(
        "The output score of a latent predicts how much steering with it raises its own tokens at another prompt; the "
        "quarter with the highest scores steers at least twice as well as all latents and better than the quarter with "
        "the highest input scores; high input and high output scores rarely come together."
    ),
)
CLAIMED = (
    "Features with high input and high output scores rarely co-occur; filtering out features of low output score "
    "improves steering with SAEs two to three times, which makes them competitive with supervised methods (Gemma 2)."
)
LATENTS, ACTIVE, STEPS, BATCH = 512, 16, 150, 256
# Five lens tokens and not the paper's twenty: the vocabulary has 848 tokens, not 256,000.
LENS = 5
SCORED_AT = "Everyone said that the"
STEERED_AT = ("Once", "After", "For Ted, the", "The")
FACTOR, SCORING, NEW = 1.2, 10.0, 8
# Set before anything was steered: rank correlation that counts, gain of the best quarter over all, and a quarter's
# share of a quarter, which is what independent scores would have in common.
CORRELATION, GAIN, SHARED = 0.5, 2.0, 1 / 16


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Train a TopK autoencoder on a residual stream, score its latents, and steer with them at other prompts.

    Success of a latent is the best over factors of: share of prompts whose greedy continuation of eight tokens holds
    one of its five lens tokens, times coherence, the perplexity of the plain continuation over that of the steered one
    (at most 1) in the model without steering. The claim holds if, averaged over seeds, (1) Spearman's correlation of
    the output score and the rise of a lens token's probability at factor 1.2 is above 0.5, (2) the mean success of the
    top quarter by output score is at least twice that of all, (3) the input score correlates less and its top quarter
    succeeds less, and (4) fewer than one latent in sixteen is in the top quarter of both.

    Args:
        seed: first seed of the dictionary and of the draw of latents.
        model: a language model whose tokenizer knows the prompts; `world:lm` by default.
        quick: one seed, 128 latents and three factors; else three seeds, all latents with contexts and five factors,
            and the scores after every block.
    """
    model = ac.load("world:lm") if model is None else model
    layer = model.n_layers // 2
    texts = ac.world.heldout_text("lm")
    factors = (0.4, 1.2, 2.0) if quick else (0.4, 0.8, 1.2, 1.6, 2.0)
    draws = [
        _draw(model, layer, texts, s, 128 if quick else None, factors) for s in range(seed, seed + 1 + 2 * (not quick))
    ]

    def mean(name: str) -> float:
        return float(np.mean([d[name] for d in draws]))

    measured: dict[str, Any] = {name: mean(name) for name in draws[0] if name != "scores"}
    gain = measured["success, top quarter by output score"] / max(measured["success, all latents"], 1e-9)
    measured["gain of the top quarter by output score"] = gain
    rise, other = (measured[f"Spearman of {which} score and rise"] for which in ("output", "input"))
    better = measured["success, top quarter by output score"] > measured["success, top quarter by input score"]
    parts = {
        "the output score predicts the rise of a latent's tokens": rise > CORRELATION,
        "the top quarter steers twice as well": gain >= GAIN,
        "the input score is the worse guide": other < rise and better,
        "both are rarely high": measured["share in the top quarter of both"] < SHARED,
    }
    if not quick:
        measured |= _layers(model, texts, seed)
    measured |= claims_of(parts)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Score and success count the same lens tokens, in the paper as here, so a correlation is expected; what is "
            "measured is that it carries over to other prompts and smaller factors. The paper's threshold of 0.01 is "
            "for a vocabulary of 256,000; the share that it keeps here is reported, and quarters are compared instead. "
            "The rise with the factor that scores are made with (10) is reported beside the smaller one that is "
            "judged: it tells whether scores carry over to other prompts, apart from factors. Coherence is the "
            "model's own perplexity, not that of another model. AxBench is not repeated."
        ),
        result=_figure(draws[0]["scores"]),
        settings={
            "first seed": seed,
            "dictionaries": len(draws),
            "model": model.name,
            "layer": layer,
            "latents": LATENTS,
            "k": ACTIVE,
            "lens tokens": LENS,
            "factors": str(factors),
        },
    )


def _layers(model: ac.Model, texts: list[str], seed: int) -> dict[str, float]:
    """Mean scores after every block, and how well they predict the rise there."""
    found = {}
    for layer in range(model.n_layers):
        draw = _draw(model, layer, texts, seed, 128, (FACTOR,))
        for score in ("input score", "output score"):
            found[f"mean {score} after block {layer}"] = float(draw["scores"][score].mean())
            found[f"Spearman of {score} and rise after block {layer}"] = draw[f"Spearman of {score} and rise"]
    return found


def _draw(
    model: ac.Model, layer: int, texts: list[str], seed: int, count: int | None, factors: tuple[float, ...]
) -> dict[str, Any]:
    """Everything measured with one dictionary."""
    site = f"blocks.{layer}.resid_post"
    rows = ac.features.token_rows(model, texts, site).values
    sae = ac.features.TopKSAE(LATENTS, k=ACTIVE, b_dec_init="mean", seed=seed)
    sae.fit(rows, batch_size=BATCH, rows=STEPS * BATCH, lr=1e-3, seed=seed)
    contexts = ac.features.top_contexts(model, site, sae, texts)
    enough = torch.from_numpy((contexts["token"].values >= 0).sum(1) >= 10).nonzero()[:, 0]
    order = torch.randperm(len(enough), generator=torch.Generator().manual_seed(seed))
    latents = enough[order[:count]].sort().values
    out = ac.features.output_score(model, site, sae, latents, SCORED_AT, k=LENS)
    tokens = contexts["token"].values[latents.numpy()]
    lens = torch.from_numpy(out["lens_id"].values)
    s_out = out["output_score"].values
    s_in = ac.features.input_score(lens, tokens)["input_score"].values
    rise, strong = (_rise(model, site, sae, latents, lens, factor) for factor in (FACTOR, SCORING))
    success = _success(model, site, sae, latents, lens, factors)
    top_out, top_in = (s >= np.quantile(s, 0.75) for s in (s_out, s_in))
    return {
        "variance explained by the dictionary": sae.score(rows),
        "latents with ten contexts": len(enough),
        "latents scored": len(latents),
        "share kept by the threshold 0.01": len(ac.features.select_steering_features(out)) / len(latents),
        "success, all latents": float(success.mean()),
        "success, top quarter by output score": float(success[top_out].mean()),
        "success, bottom quarter by output score": float(success[s_out <= np.quantile(s_out, 0.25)].mean()),
        "success, top quarter by input score": float(success[top_in].mean()),
        "Spearman of output score and rise": float(spearmanr(s_out, rise).statistic),
        "Spearman of input score and rise": float(spearmanr(s_in, rise).statistic),
        "mean rise": float(rise.mean()),
        "Spearman of output score and rise at the factor of the score": float(spearmanr(s_out, strong).statistic),
        "mean rise at the factor of the score": float(strong.mean()),
        "Spearman of output score and success": float(spearmanr(s_out, success).statistic),
        "Spearman of input score and success": float(spearmanr(s_in, success).statistic),
        "Spearman of input and output score": float(spearmanr(s_in, s_out).statistic),
        "share in the top quarter of both": float((top_out & top_in).mean()),
        "scores": {"output score": s_out, "input score": s_in, "rise": rise, "success": success},
    }


def _rise(model: ac.Model, site: str, sae: Any, latents: Tensor, lens: Tensor, factor: float) -> np.ndarray:
    """(n,) rise of the largest probability of a lens token, mean over prompts."""
    rises = []
    for prompt in STEERED_AT:
        ids = model.to_tokens(prompt).ids
        with torch.no_grad(), ac.features.steer_with_latent(model, site, sae, latents, factor):
            steered = model.logits(ids.expand(len(latents), -1))[:, -1].float().softmax(-1)
        with torch.no_grad():
            plain = model.logits(ids)[:, -1].float().softmax(-1).expand_as(steered)
        rises.append(steered.gather(1, lens).amax(1) - plain.gather(1, lens).amax(1))
    return torch.stack(rises).mean(0).double().numpy()


def _success(
    model: ac.Model, site: str, sae: Any, latents: Tensor, lens: Tensor, factors: tuple[float, ...]
) -> np.ndarray:
    """(n,) success with the best factor."""
    found = torch.zeros(len(factors), len(latents))
    for prompt in STEERED_AT:
        ids = model.to_tokens(prompt).ids
        plain = _loss(model, _continued(model, ids), ids.shape[1])
        rows = ids.expand(len(latents), -1)
        for i, factor in enumerate(factors):
            with ac.features.steer_with_latent(model, site, sae, latents, factor):
                steered = _continued(model, rows)
            new = steered[:, ids.shape[1] :]
            hit = (new[:, :, None] == lens[:, None, :]).flatten(1).any(1)
            coherence = (plain - _loss(model, steered, ids.shape[1])).exp().clamp_max(1)
            found[i] += hit * coherence / len(STEERED_AT)
    return found.amax(0).double().numpy()


def _continued(model: ac.Model, ids: Tensor) -> Tensor:
    out: Tensor = model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    return out


def _loss(model: ac.Model, ids: Tensor, start: int) -> Tensor:
    """(n,) mean nats of each new token in the model as it is."""
    with torch.no_grad():
        return model.loss(ids, reduction="token")[:, start - 1 :].mean(1)


def _figure(scores: dict[str, np.ndarray]) -> Any:
    """Mean success by decile of each score."""
    data = {}
    for name in ("output score", "input score"):
        order = np.argsort(scores[name], kind="stable")
        data[f"success by {name}"] = ("decile", [float(scores["success"][p].mean()) for p in np.array_split(order, 10)])
    hints = {"plot": {"kind": "line", "variables": list(data), "x": "decile", "ylabel": "success"}}
    return ac.Result(xr.Dataset(data, {"decile": np.arange(1, 11)}, hints), "output_score", "sae-steering-scores")
