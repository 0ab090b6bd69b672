"""Logits of the next token, step by step, with a key-value cache kept between the steps."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from actinium.core.model import Model

__all__ = ["CachedLogits"]


class CachedLogits:
    """Called with sequences that grow by a few tokens, computes the new ones only.

    Sequences that do not go on from those before (beam search moves rows) are computed anew.

    Args:
        model: a causal language model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.ids: Tensor | None = None
        self.cache: Any = None
        self.positions = "position_ids" in inspect.signature(model.module.forward).parameters

    @torch.no_grad()
    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(rows, d_vocab) raw logits behind ids (rows, pos), padded on the left where the mask is False."""
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        known = 0 if self.ids is None else self.ids.shape[1]
        if known and (known >= ids.shape[1] or not torch.equal(self.ids, ids[:, :known])):  # type: ignore[arg-type]
            known, self.cache = 0, None
        options: dict[str, Any] = {"attention_mask": mask.long(), "past_key_values": self.cache, "use_cache": True}
        if self.positions:
            options["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)[:, known:]
        output = self.model.module(input_ids=ids[:, known:], **options)
        self.cache = getattr(output, "past_key_values", None)
        self.ids = None if self.cache is None else ids
        found: Tensor = output.logits[:, -1]
        return found
