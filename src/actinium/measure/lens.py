"""Logit lens: what the model would predict if it stopped after each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.measure.streaming import as_result, choose, ready, row_batches

__all__ = ["compare_logits", "logit_lens"]

# Positions whose logits over the vocabulary are held at the same time.
POSITIONS = 512
FIELDS = ("kl", "agreement", "target_probability", "target_rank", "entropy")


def compare_logits(lens: Tensor, final: Tensor, target: Tensor | None = None) -> dict[str, Tensor]:
    """How far the prediction of a layer is from the model's own.

    Args:
        lens: logits of the layer (n, d_vocab).
        final: logits of the model (n, d_vocab).
        target: next token ids (n,), -1 where there is none.

    Returns:
        (n,) each: `kl`, KL(final || lens) in nats; `agreement`, whether the top tokens are the same; `entropy`
        of the layer's prediction in nats; `target_probability` and `target_rank` (0 is the top), NaN without a
        target.

    Raises:
        InputError: shapes do not fit.
    """
    if lens.ndim != 2 or lens.shape != final.shape:
        raise InputError(f"expected two (n, d_vocab), got {tuple(lens.shape)} and {tuple(final.shape)}")
    p, q = final.float().log_softmax(-1), lens.float().log_softmax(-1)
    # A token that the model excludes adds nothing, though 0 * inf would say NaN.
    terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    out = {
        "kl": terms.sum(-1),
        "agreement": (lens.argmax(-1) == final.argmax(-1)).float(),
        "entropy": torch.special.entr(q.exp()).sum(-1),
    }
    if target is None:
        target = torch.full((len(lens),), -1)
    target = target.to(lens.device)
    none = target < 0
    index = target.clamp(min=0)[:, None]
    chosen = q.gather(-1, index)
    out["target_probability"] = torch.where(none, torch.nan, chosen[:, 0].exp())
    out["target_rank"] = torch.where(none, torch.nan, (q > chosen).sum(-1).float())
    return out


def logit_lens(
    model: Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    batch_size: int | None = 8,
) -> Result:
    """Apply the final norm and the unembedding to the residual stream after each block.

    Args:
        model: a causal or masked language model.
        inputs: texts or tokens.
        at: residual-stream sites; those after each block by default.
        batch_size: rows per pass.

    Returns:
        by layer, averaged over positions: `kl` to the model's prediction in nats, `agreement` of the top token,
        `entropy` in nats, and for causal models the next token's `target_probability` and `target_rank` (0 is
        the top; `median_rank` its median); `nan`, positions whose divergence is not a number.

    Raises:
        InputError: the model has no unembedding, or a site is not in the residual stream.
        SiteError: a site does not exist.

    Source: nostalgebraist, 2020, interpreting GPT: the logit lens.
    """
    layers = choose(model, "resid_post", at)
    if model.kind not in ("causal-lm", "masked-lm"):
        raise InputError(f"the logit lens needs a language model; {model.name} is of kind {model.kind!r}")
    if wrong := [s.name for s in model.sites(layers.names) if s.dims[-1:] != ("d_model",)]:
        raise InputError(f"the logit lens reads the residual stream, not {', '.join(wrong)}")
    inputs = ready(model, inputs)
    last = [s.name for s in model.sites() if s.part == "resid_post" and s.stack == model.tower.stack.name][-1]
    sums = {name: np.zeros(len(layers.names)) for name in FIELDS}
    counts = {name: np.zeros(len(layers.names)) for name in FIELDS}
    ranks: list[list[Tensor]] = [[] for _ in layers.names]
    for part in row_batches(inputs, batch_size):
        rec = model.record(part, list(dict.fromkeys([*layers.names, last])))
        targets = _next_tokens(rec.tokens, rec.mask) if model.kind == "causal-lm" else None
        real = rec.mask if rec.mask is not None else torch.ones(rec[last].shape[:2], dtype=torch.bool)
        target = torch.full((int(real.sum()),), -1) if targets is None else targets[real]
        streams = {name: rec[name][real] for name in rec}
        for rows in torch.arange(len(target)).split(POSITIONS):
            with torch.no_grad():
                final = model.unembed(streams[last][rows])
                each = [
                    compare_logits(model.unembed(streams[name][rows]), final, target[rows]) for name in layers.names
                ]
            for i, found in enumerate(each):
                for field, values in found.items():
                    sums[field][i] += float(values.double().nansum())
                    counts[field][i] += int((~values.isnan()).sum())
                ranks[i].append(found["target_rank"].cpu())
    one = (layers.dim,)
    variables: dict[str, Any] = {
        name: (
            one,
            np.divide(sums[name], counts[name], out=np.full(len(ranks), np.nan), where=counts[name] > 0),
        )
        for name in FIELDS
    }
    variables["median_rank"] = (one, [float(torch.cat(r).nanmedian()) for r in ranks])
    variables["nan"] = (one, (counts["agreement"] - counts["kl"]).astype(int))
    hints = {"variables": ["kl"], "ylabel": "KL to the final prediction (nats)"}
    return as_result(model, inputs, "logit_lens", variables, layers.coords, plot=hints, at=layers.names)


def _next_tokens(tokens: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """The token after each position (batch, pos); -1 where it is missing or padding."""
    if tokens is None or mask is None:
        return None
    following = torch.full_like(tokens, -1)
    following[:, :-1] = torch.where(mask[:, 1:], tokens[:, 1:], -1)
    return following
