"""Residual streams of two models on the same tokens, one vector for each text and layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.inputs import Tokens, tokenize
from actinium.core.model import Model

__all__ = ["POOLS", "pooled_states", "same_tokens"]

POOLS = ("last", "mean")


def same_tokens(a: Model, b: Model, inputs: Any) -> Tokens:
    """The tokens of some texts, which must be the same for both models.

    Args:
        a, b: language models.
        inputs: texts, or token ids (item, pos) that both models take.

    Returns:
        Tokens, one row for each text.

    Raises:
        InputError: a model that reads no text, texts that are empty, too long or tokenised differently.
    """
    for model in (a, b):
        if model.kind not in ("causal-lm", "masked-lm"):
            raise InputError(f"the comparison reads the residual streams of language models; {model.name} is none")
    inputs = [inputs] if isinstance(inputs, str) else inputs
    is_text = isinstance(inputs, Sequence) and all(isinstance(text, str) for text in inputs)
    one, other = (
        tokenize(m.tokenizer, inputs, m.context, window=False) if is_text else _ids(m, inputs) for m in (a, b)
    )
    for i in range(min(len(one), len(other))):
        if one.ids[i][one.mask[i]].tolist() != other.ids[i][other.mask[i]].tolist():
            raise InputError(
                f"{a.name} and {b.name} tokenise text {i} differently"
                f"{f' ({inputs[i]!r})' if is_text else ''}; states of different tokens cannot be compared"
            )
    return one


def _ids(model: Model, inputs: Any) -> Tokens:
    tokens = model.prepare(inputs).tokens
    if tokens is None:
        raise InputError("expected texts or token ids")
    return tokens


def pooled_states(model: Model, tokens: Tokens, pool: str = "last", batch_size: int = 32, suffix: int = 0) -> Tensor:
    """One vector of the residual stream for each layer and text.

    Args:
        model: a language model.
        tokens: rows of tokens.
        pool: "last" (the last token that is no padding) or "mean" (over all tokens without padding and without the
            token that begins every text, whose state is far longer than the others).
        batch_size: rows in a pass.
        suffix: number of tokens at the end that "mean" leaves out as well.

    Returns:
        (L + 1, item, d_model) float64 on the CPU: the output of the embedding, then each block's, the last one before
        the final norm.

    Raises:
        InputError: a state that is not finite, or a text without a token to pool.
        UnknownNameError: there is no such pool.
    """
    if pool not in POOLS:
        raise UnknownNameError(unknown("pool", pool, POOLS))
    layers = [f"blocks.{i}.resid_post" for i in range(model.n_layers)]
    sites = ["blocks.0.resid_pre", *layers]
    weights = _weights(model, tokens, pool, suffix)
    parts = []
    for start in range(0, len(tokens), batch_size):
        rows = slice(start, start + batch_size)
        recording = model.record(tokens[rows], sites)
        # Padding holds zeros in a recording, and may hold anything of use to nobody: its weight is 0.
        stacked = torch.stack([recording[site].detach().cpu().double() for site in sites])
        parts.append(torch.einsum("lipd,ip->lid", stacked, weights[rows]))
    states = torch.cat(parts, 1)
    if not bool(states.isfinite().all()):
        raise InputError(f"{model.name} has states that are not finite")
    return states


def _weights(model: Model, tokens: Tokens, pool: str, suffix: int) -> Tensor:
    """(item, pos) weights of the tokens' states, which sum to 1."""
    mask = tokens.mask.cpu()
    count = mask.sum(1, keepdim=True)
    place = mask.cumsum(1) - 1
    if pool == "last":
        return (mask & (place == count - 1)).double()
    begins = {getattr(holder, name, None) for name in ("bos_token_id", "cls_token_id") for holder in _holders(model)}
    first = torch.isin(tokens.ids.cpu(), torch.tensor(sorted(i for i in begins if isinstance(i, int))))
    chosen = mask & ~(first & (place == 0)) & (place < count - suffix)
    if not bool(chosen.any(1).all()):
        raise InputError(f"text {int((~chosen.any(1)).nonzero()[0])} has no token to take the mean over")
    return chosen.double() / chosen.sum(1, keepdim=True)


def _holders(model: Model) -> tuple[Any, Any]:
    return model.tokenizer, model.config
