"""How well the model predicts this sample: the ground on which every other number stands."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.measure.streaming import ready, row_batches

__all__ = ["class_predictions", "next_token_loss", "unigram_entropy"]


def unigram_entropy(ids: Tensor) -> float:
    """Entropy in nats of the token frequencies of `ids` (n,): the loss of a guess that knows only these."""
    counts = torch.bincount(ids.flatten()).double()
    p = counts[counts > 0] / counts.sum()
    return float(-(p * p.log()).sum())


def next_token_loss(model: Model, inputs: Any, batch_size: int) -> Result:
    """Cross-entropy of the next token, beside two guesses that know nothing of the context.

    Returns:
        `loss` in nats, `perplexity`, `accuracy` (share of tokens predicted first), `uniform_loss` (the logarithm of
        the size of the vocabulary), `unigram_loss` (entropy of the frequencies of the predicted tokens), `targets`.

    Raises:
        InputError: no token is followed by another.
    """
    prepared = ready(model, inputs)
    total, right, targets = 0.0, 0, 0
    following: list[Tensor] = []
    for part in row_batches(prepared, batch_size):
        with torch.no_grad():
            logits = model.logits(part)
        assert part.tokens is not None
        real = (part.tokens.mask[:, 1:] & part.tokens.mask[:, :-1]).to(logits.device)
        wanted = part.tokens.ids.to(logits.device)[:, 1:][real]
        found = logits[:, :-1][real].float()
        total += float(torch.nn.functional.cross_entropy(found, wanted, reduction="none").double().sum())
        right += int((found.argmax(-1) == wanted).sum())
        targets += len(wanted)
        following.append(wanted.cpu())
    if not targets:
        raise InputError("no token is followed by another one")
    loss = total / targets
    variables = {
        "loss": ((), loss),
        "perplexity": ((), math.exp(loss) if loss < 700 else math.inf),
        "accuracy": ((), right / targets),
        "uniform_loss": ((), math.log(logits.shape[-1])),
        "unigram_loss": ((), unigram_entropy(torch.cat(following))),
        "targets": ((), targets),
    }
    return Result(xr.Dataset(variables), "report.next_token_loss", None, provenance(model, prepared))


def class_predictions(model: Model, inputs: Any, batch_size: int) -> Result:
    """Which classes a classifier predicts, and how sure it is.

    Returns:
        by class: `predicted` (share of the rows); `confidence` (mean probability of the predicted class),
        `entropy` of the shares in nats.

    Raises:
        InputError: the output is not (rows, classes).
    """
    prepared = ready(model, inputs)
    votes: list[Tensor] = []
    sure: list[Tensor] = []
    for part in row_batches(prepared, batch_size):
        with torch.no_grad():
            logits = model.logits(part).float()
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise InputError(f"a classifier's output is (rows, classes); here it is {tuple(logits.shape)}")
        already = bool((logits >= 0).all()) and bool((logits.sum(-1) - 1).abs().max() < 1e-3)
        best = (logits if already else logits.softmax(-1)).max(-1)
        votes.append(best.indices.cpu())
        sure.append(best.values.cpu().double())
    shares = torch.bincount(torch.cat(votes), minlength=logits.shape[1]).double() / prepared.size
    variables = {
        "predicted": (("class",), shares.numpy()),
        "confidence": ((), float(torch.cat(sure).mean())),
        "entropy": ((), float(torch.special.entr(shares).sum())),
    }
    data = xr.Dataset(variables, {"class": _names(model, len(shares))})
    return Result(data, "report.class_predictions", None, provenance(model, prepared))


def _names(model: Model, n: int) -> np.ndarray:
    labels = getattr(model.config, "id2label", None) or {}
    return np.array([str(labels[i]) for i in range(n)]) if len(labels) == n else np.arange(n)
