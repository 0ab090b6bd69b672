"""Rows of latents with and without concepts, from texts labelled by words, by token or as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.latent_amplification import check_autoencoder
from actinium.features.splicing import flattened

__all__ = ["concept_rows", "ordinary"]

WAYS = ("word", "position", "sentence")


def ordinary(model: Model, ids: Tensor) -> Tensor:
    """Which token ids are not special ones of the tokenizer: bool, in the shape of the ids."""
    special = getattr(model.tokenizer, "all_special_ids", None) or []
    return ~torch.isin(ids, torch.tensor(special, dtype=ids.dtype, device=ids.device))


def concept_rows(
    model: Model,
    site: str,
    dictionary: Dictionary,
    texts: Any,
    labels: Mapping[str, Any],
    by: str = "word",
    *,
    batch_size: int = 64,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rows of latents where each concept is present, and where it is not.

    Args:
        model: a language model.
        site: what the dictionary reads.
        dictionary: an autoencoder.
        texts: texts, or Tokens.
        labels: by concept, for "word" the word (its last token wherever it occurs, with or without a space before);
            for "position" a mask (text, token) bool in the layout of the tokens; for "sentence" (text,) bool, and a row
            is the mean over the tokens of a text.
        by: how texts are labelled.
        batch_size: texts in a pass.

    Returns:
        Positive and negative rows (n, m) by concept, special tokens left out.

    Raises:
        InputError: a word does not occur or has no token, a label has another shape, a concept is present everywhere or
            nowhere.
        UnknownNameError: there is no such way of labelling.
        SiteError: the site does not exist.

    Source: Helff et al., 2025, stage 1.
    """
    if by not in WAYS:
        raise UnknownNameError(unknown("way of labelling", by, WAYS))
    if not labels:
        raise InputError("there is no concept: labels is empty")
    check_autoencoder(model, site, dictionary)
    tokens = texts if isinstance(texts, Tokens) else model.prepare(texts).tokens
    if tokens is None:
        raise InputError("concepts are labelled in texts or tokens")
    rec = model.record(tokens, site, batch_size=batch_size)
    real = tokens.mask & ordinary(model, tokens.ids)
    with torch.no_grad():
        latents = torch.zeros(*tokens.ids.shape, dictionary.d_sae)
        kept = real.to(rec[site].device)
        latents[real] = dictionary.encode(flattened(rec[site], dictionary.d_in)[kept]).float().cpu()
    if by == "sentence":
        rows = latents.sum(1) / real.sum(1, keepdim=True).clamp_min(1)
        usable = real.any(1)
    else:
        rows, usable = latents, real
    positive, negative = {}, {}
    for concept, label in labels.items():
        there = _occurrences(model, tokens.ids, concept, label) if by == "word" else torch.as_tensor(label).bool().cpu()
        if there.shape != usable.shape:
            raise InputError(f"{concept!r}: labels of shape {tuple(there.shape)}, expected {tuple(usable.shape)}")
        there, away = there & usable, ~there & usable
        if not bool(there.any()) or not bool(away.any()):
            raise InputError(
                f"{concept!r} is present {'everywhere' if bool(there.any()) else 'nowhere'} in these texts"
            )
        positive[concept], negative[concept] = rows[there], rows[away]
    return positive, negative


def _occurrences(model: Model, ids: Tensor, concept: str, word: Any) -> Tensor:
    """Where a word ends: bool (text, token)."""
    if not isinstance(word, str) or not word.strip():
        raise InputError(f"{concept!r}: expected a word, got {word!r}")
    if model.tokenizer is None:
        raise InputError("words need a tokenizer; label by 'position'")
    found = torch.zeros_like(ids, dtype=torch.bool)
    for spelling in (word, f" {word}"):
        piece = model.tokenizer([spelling], add_special_tokens=False)["input_ids"][0]
        n = len(piece)
        unknown_id = getattr(model.tokenizer, "unk_token_id", None)
        if not n or n > ids.shape[1] or unknown_id in piece:
            continue
        windows = ids.unfold(1, n, 1)
        found[:, n - 1 :] |= (windows == torch.tensor(piece)).all(2)
    return found
