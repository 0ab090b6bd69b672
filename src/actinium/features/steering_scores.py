"""Which latents to steer with: input scores, output scores, and the choice by them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.latent_amplification import check_autoencoder, latent_numbers, steer_with_latent
from actinium.features.splicing import flattened
from actinium.features.vocabulary import written

__all__ = ["input_score", "lens_tokens", "output_score", "select_steering_features"]

PAPER = "sae-steering-scores"
PROMPT = "From my experience,"


def lens_tokens(model: Model, site: str, dictionary: Dictionary, latents: Any = None, k: int = 20) -> Tensor:
    """The tokens of each latent: those that its decoder row alone would predict (logit lens).

    Args:
        model: a language model.
        site: what the dictionary reads; rows of a dictionary on MLP units are written through the down projection.
        dictionary: an autoencoder.
        latents: (n,) which; all by default.
        k: tokens of each.

    Returns:
        (n, k) token ids, the most likely first: top k of W_U LN_f(D_i).

    Raises:
        InputError: the dictionary or the site does not fit, a latent or k is out of range.
        SiteError: the site does not exist.
    """
    check_autoencoder(model, site, dictionary)
    chosen = latent_numbers(dictionary, latents)
    with torch.no_grad():
        stream = written(model, dictionary.W_dec[chosen.to(dictionary.W_dec.device)], site)
        logits = model.unembed(stream).float()
    if not 1 <= k <= logits.shape[1]:
        raise InputError(f"k must be from 1 to {logits.shape[1]}, the size of the vocabulary; got {k}")
    return logits.topk(k).indices.cpu()


def output_score(
    model: Model,
    site: str,
    dictionary: Dictionary,
    latents: Any = None,
    prompt: Any = PROMPT,
    *,
    k: int = 20,
    amplification: float = 10.0,
    batch_size: int = 64,
    progress: bool = False,
) -> Result:
    """Whether amplifying a latent makes its own tokens likely: (1 - r / |V|) P after a neutral prompt.

    r is the best rank (from 0) of a lens token in the prediction of the model with the latent amplified, P the largest
    probability of one. One forward pass for each latent, many in a batch; no labels.

    Args:
        model: a causal language model.
        site: what the dictionary reads.
        dictionary: an autoencoder.
        latents: (n,) which; all by default.
        prompt: a neutral text, or token ids (1, pos).
        k: lens tokens of each latent.
        amplification: factor of `steer_with_latent`. A very large one breaks the model, and P falls.
        batch_size: latents in a pass.
        progress: show a progress bar.

    Returns:
        Result over `latent`: `output_score` in [0, 1], `best_rank`, `probability`, and over `rank` also `lens_id`. NaN,
        with `attrs["reason"]` and a warning, where no latent is active at the prompt's last token.

    Raises:
        InputError: the prompt is empty or not one; the dictionary or site does not fit; a number is out of range.
        SiteError: the site does not exist.

    Source: Arad, Mueller, Belinkov, 2025 (output score).
    """
    if not np.isfinite(amplification) or batch_size < 1:
        raise InputError(f"expected a finite amplification and batch_size >= 1, got {amplification} and {batch_size}")
    if isinstance(prompt, Tensor) and not prompt.numel():
        raise InputError("the prompt is empty")
    tokens = prompt if isinstance(prompt, Tokens) else model.prepare(prompt).tokens
    if tokens is None or len(tokens) != 1:
        raise InputError(f"one neutral prompt is needed, not {0 if tokens is None else len(tokens)}")
    lens = lens_tokens(model, site, dictionary, latents, k)
    chosen = latent_numbers(dictionary, latents)
    ids = tokens.ids[tokens.mask][None]
    with torch.no_grad():
        last = flattened(model.record(ids, site, positions=-1)[site], dictionary.d_in)[0, -1]
        silent = not bool((dictionary.encode(last[None]) > 0).any())
    rank, probability = torch.full((2, len(chosen)), torch.nan, dtype=torch.float64)
    reason, size = "", 1
    if silent:
        reason = "no latent is active at the prompt's last token, so there is nothing that the factor multiplies"
        warnings.warn(reason, ActiniumWarning, stacklevel=2)
    else:
        for at in shown(range(-(-len(chosen) // batch_size)), "scoring", progress):
            part = slice(at * batch_size, (at + 1) * batch_size)
            with torch.no_grad(), steer_with_latent(model, site, dictionary, chosen[part], amplification):
                logits = model.logits(ids.expand(len(chosen[part]), -1))[:, -1].float().cpu()
            size, p = logits.shape[1], logits.softmax(-1)
            own = logits.gather(1, lens[part])
            rank[part] = (logits > own.amax(1, keepdim=True)).sum(1).double()
            probability[part] = p.gather(1, lens[part]).amax(1).double()
    data = {
        "output_score": ("latent", (1 - rank / size) * probability),
        "best_rank": ("latent", rank),
        "probability": ("latent", probability),
        "lens_id": (("latent", "rank"), lens),
    }
    dataset = xr.Dataset(
        {name: (dims, value.detach().numpy()) for name, (dims, value) in data.items()},
        {"latent": chosen.numpy(), "rank": np.arange(k)},
        {"reason": reason, "plot": {"kind": "bar", "variables": ["output_score"]}},
    )
    about: dict[str, Any] = {"site": site, "dictionary": repr(dictionary), "k": k, "amplification": amplification}
    return Result(dataset, "output_score", PAPER, provenance(model, ids, latents=chosen, **about))


def input_score(lens: Any, contexts: Any, min_contexts: int = 10) -> Result:
    """Whether a latent is active at its own tokens: share of its top contexts whose token is one of its lens tokens.

    Args:
        lens: (n, k) token ids of `lens_tokens`, or the Result of `output_score`.
        contexts: the Result of `top_contexts` for the same latents, or token ids (n, c), -1 for none.
        min_contexts: contexts below which there is no score.

    Returns:
        Result over `latent`: `input_score` in [0, 1], NaN (not 0) with too few contexts; `contexts`, their number.

    Raises:
        InputError: the latents are not the same, or shapes do not fit.

    Source: Arad, Mueller, Belinkov, 2025 (input score; at most 100 contexts, at least 10).
    """
    named = [one["latent"].values for one in (lens, contexts) if isinstance(one, Result)]
    if len(named) == 2 and not np.array_equal(named[0], named[1]):
        raise InputError("lens tokens and contexts are of different latents")
    ids = np.asarray(lens["lens_id"].values if isinstance(lens, Result) else lens)
    tokens = np.asarray(contexts["token"].values if isinstance(contexts, Result) else contexts)
    if ids.ndim != 2 or tokens.ndim != 2 or len(ids) != len(tokens) or not ids.size or min_contexts < 1:
        raise InputError(
            f"expected lens tokens (n, k), contexts (n, c) and min_contexts >= 1; got {ids.shape}, {tokens.shape} "
            f"and {min_contexts}"
        )
    there = tokens >= 0
    own = (tokens[:, :, None] == ids[:, None, :]).any(2) & there
    count = there.sum(1)
    score = np.where(count >= min_contexts, own.sum(1) / np.maximum(count, 1), np.nan)
    dataset = xr.Dataset(
        {"input_score": ("latent", score), "contexts": ("latent", count)},
        {"latent": named[0] if named else np.arange(len(ids))},
        {"plot": {"kind": "bar", "variables": ["input_score"]}},
    )
    about = provenance(None, {"lens": ids, "tokens": tokens}, min_contexts=min_contexts)
    return Result(dataset, "input_score", PAPER, about)


def select_steering_features(scores: Any, threshold: float = 0.01, *, quantile: float | None = None) -> Tensor:
    """The latents worth steering with: those whose output score reaches a threshold, the best first.

    Args:
        scores: the Result of `output_score`, or scores (n,); NaN is never selected.
        threshold: smallest score.
        quantile: take the scores above this quantile instead.

    Returns:
        (kept,) numbers of latents.

    Raises:
        InputError: there is no score at all, or the threshold or quantile is outside [0, 1].

    Source: Arad, Mueller, Belinkov, 2025 (features below 0.01 are filtered).
    """
    result = isinstance(scores, Result)
    values = np.asarray(scores["output_score"].values if result else scores, dtype=np.float64)
    latents = scores["latent"].values if result else np.arange(values.size)
    known = ~np.isnan(values)
    if values.ndim != 1 or not known.any():
        raise InputError(f"expected scores (n,) of which one is a number, got shape {values.shape}")
    if not 0 <= (threshold if quantile is None else quantile) <= 1:
        raise InputError(f"threshold and quantile are between 0 and 1, got {threshold} and {quantile}")
    bar = threshold if quantile is None else np.quantile(values[known], quantile)
    kept = np.flatnonzero(known & (values >= bar))
    return torch.from_numpy(latents[kept[np.argsort(-values[kept], kind="stable")]].astype(np.int64))
