"""Contrastive layer search: the layer at which two kinds of answers lie furthest apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.guard.audit.neurons.logistic import cross_validated_area

__all__ = ["contrastive_layer_search", "fisher_ratio", "jensen_shannon"]

PAPER = "activation-attack-audit"
METHODS = ("js_residual", "js_logit", "fisher", "auc")
Floats = NDArray[np.float64]


def jensen_shannon(p: Tensor, q: Tensor, legacy: bool = False) -> Tensor:
    """Jensen-Shannon divergence, in nats: from 0 for equal distributions to ln 2 for disjoint ones.

    Args:
        p, q: (…, k) probabilities.
        legacy: what the released code computes instead, which is no divergence: where `kl_div` expects
            log-probabilities of p it is given p, and the sum over outcomes is divided by their number.

    Returns:
        (…,).

    Raises:
        InputError: the shapes differ.

    Source: Lin, 1991; legacy: Wang and Shu, 2023, released code.
    """
    if p.shape != q.shape or not p.ndim:
        raise InputError(f"two distributions over the same outcomes are compared, not {p.shape} and {q.shape}")
    m = (p + q) / 2
    if legacy:
        return ((torch.xlogy(m, m) - m * p) + (torch.xlogy(m, m) - m * q)).mean(-1) / 2
    each = [torch.xlogy(x, x) - torch.xlogy(x, m) for x in (p, q)]
    return ((each[0] + each[1]).sum(-1) / 2).clamp(0.0, math.log(2))


def fisher_ratio(pos: Tensor, neg: Tensor) -> Tensor:
    """|mu+ - mu-|^2 / (tr S+ + tr S-) with population covariances.

    Args:
        pos, neg: (…, n, d).

    Returns:
        (…,): 0 where the means agree, infinite where neither class varies and the means differ.

    Source: Fisher, 1936, in its trace form.
    """
    between = (pos.mean(-2) - neg.mean(-2)).square().sum(-1)
    within = pos.var(-2, correction=0).sum(-1) + neg.var(-2, correction=0).sum(-1)
    return torch.where(between > 0, between / within, torch.zeros_like(between))


def _rows(values: Any, name: str) -> Tensor:
    out = torch.as_tensor(values).detach().cpu().double()
    if out.ndim != 3 or not out.numel():
        raise InputError(f"{name} has shape (layer, n, d), not {tuple(out.shape)}")
    if not bool(out.isfinite().all()):
        raise InputError(f"{name} holds NaN or infinite values")
    return out


def contrastive_layer_search(
    pos: Any,
    neg: Any,
    method: str = "js_residual",
    layers: Sequence[int] | None = None,
    norm: Callable[[Tensor], Tensor] | None = None,
    unembed: Callable[[Tensor], Tensor] | Tensor | None = None,
    *,
    standardise: bool = False,
    folds: int = 5,
    legacy: bool = False,
    names: Sequence[Any] | None = None,
) -> Result:
    """Score how far two kinds of answers lie apart at each layer, and name the best layer.

    "js_residual" takes the softmax of the residual stream itself. It is decided by the largest coordinates and grows
    with the norm of the stream up to ln 2, so its largest value may say where norms are largest. `standardise` or
    "js_logit" (the distributions over the vocabulary that the stream would give at the end) do not suffer from that.

    Args:
        pos, neg: (layer, n, d) activations of n pairs of answers.
        method: "js_residual" (published), "js_logit", "fisher" (`fisher_ratio`), or "auc" (held-out area under the ROC
            curve of a logistic regression; pairs are never split).
        layers: rows of `pos` among which the best is chosen; the first half by default, as published.
        norm, unembed: for "js_logit": the final norm, and from (…, d) to logits (…, vocabulary), or a weight
            (vocabulary, d). Where one function does both, `norm` is `torch.nn.Identity()`.
        standardise: for "js_residual": give each coordinate of a layer mean 0 and standard deviation 1 over answers.
        folds: for "auc".
        legacy: for "js_residual": the released formula; see `jensen_shannon`.
        names: labels of the layers in the result; their numbers by default.

    Returns:
        Result over layer: `score` of every layer and `candidate`, whether it could be chosen; attribute `best` is the
        row of `pos` with the largest score among candidates.

    Raises:
        InputError: fewer than two pairs, shapes that differ, equal classes, values that are not finite, "js_logit"
            without norm and unembed, or a layer that does not exist.
        UnknownNameError: there is no such method.

    Source: Wang and Shu, 2023, section on contrastive layer selection; "js_logit", "fisher" and "auc" are additions.
    """
    if method not in METHODS:
        raise UnknownNameError(unknown("method", str(method), METHODS))
    one, other = _rows(pos, "pos"), _rows(neg, "neg")
    if one.shape != other.shape:
        raise InputError(f"pos and neg are pairs of one shape, not {tuple(one.shape)} and {tuple(other.shape)}")
    if one.shape[1] < 2:
        raise InputError(f"two pairs or more are needed, got {one.shape[1]}")
    if torch.equal(one, other):
        raise InputError("pos and neg are equal: there is nothing to contrast")
    if method == "js_logit" and (norm is None or unembed is None):
        raise InputError("js_logit needs the final norm and the unembedding of the model")
    if (legacy or standardise) and method != "js_residual":
        raise InputError(f"legacy and standardise belong to 'js_residual', not {method!r}")
    n_layers = len(one)
    chosen = list(range((n_layers + 1) // 2)) if layers is None else [int(i) for i in layers]
    if not chosen or min(chosen) < 0 or max(chosen) >= n_layers:
        raise InputError(f"layers go from 0 to {n_layers - 1}, not {chosen}")
    labels = list(range(n_layers)) if names is None else list(names)
    if len(labels) != n_layers:
        raise InputError(f"{len(labels)} names for {n_layers} layers")

    if method == "fisher":
        score = fisher_ratio(one, other)
    elif method == "auc":
        score = torch.tensor([_area(p.numpy(), n.numpy(), folds) for p, n in zip(one, other, strict=True)])
    else:
        if method == "js_logit":
            spread = [_softmax_of_logits(x, norm, unembed) for x in (one, other)]
        else:
            if standardise:
                both = torch.cat([one, other], 1)
                size = both.std(1, correction=0, keepdim=True)
                size = torch.where(size > 0, size, torch.inf)
                one, other = ((x - both.mean(1, keepdim=True)) / size for x in (one, other))
            spread = [x.softmax(-1) for x in (one, other)]
        score = jensen_shannon(spread[0], spread[1], legacy).mean(-1)
    best = max(chosen, key=lambda i: float(score[i]))
    candidate = np.isin(np.arange(n_layers), chosen)
    data = xr.Dataset({"score": ("layer", score.numpy()), "candidate": ("layer", candidate)}, {"layer": labels})
    data.attrs |= {"best": best, "plot": {"variables": ["score"], "ylabel": method}}
    settings = {"method": method, "layers": chosen, "standardise": standardise, "folds": folds, "legacy": legacy}
    record = provenance(None, [one, other], **settings)
    return Result(data, "contrastive_layer_search", PAPER, record)


def _softmax_of_logits(x: Tensor, norm: Any, unembed: Any) -> Tensor:
    """(layer, n, vocabulary) probabilities, in float64."""
    with torch.no_grad():
        found = []
        for layer in x.float():
            normed = norm(layer)
            logits = normed @ unembed.to(normed).T if isinstance(unembed, Tensor) else unembed(normed)
            found.append(logits.cpu().double().softmax(-1))
    return torch.stack(found)


def _area(pos: Floats, neg: Floats, folds: int) -> float:
    rows, n = np.concatenate([pos, neg]), len(pos)
    return cross_validated_area(rows, np.repeat([1.0, 0.0], n), np.tile(np.arange(n), 2), folds)
