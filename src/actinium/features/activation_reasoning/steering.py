"""The direction of the conclusions: decoder rows of the latents of concepts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.features.activation_reasoning.concepts import ConceptDictionary, log_decay
from actinium.features.dictionaries.dictionary import Dictionary

__all__ = ["RuleSteering"]

COMBINATIONS = ("sum", "mean", "max")


class RuleSteering:
    """The direction in which concepts lie: decoder rows of their latents, weighted and added up.

    Args:
        concepts: a fitted dictionary of kind "top_k".
        dictionary: whose decoder is used.
        top_k: latents of a concept.
        norm: p of the norm to which each decoder row is brought.
        combine: rows of all concepts: "sum", "mean", or "max" (of each entry the value of largest size).

    Raises:
        InputError: concepts are trees, which have no direction, or of another dictionary; a number out of range.
        UnknownNameError: there is no such combination.

    Source: Helff et al., 2025 (steering by active rules).
    """

    def __init__(
        self,
        concepts: ConceptDictionary,
        dictionary: Dictionary,
        top_k: int = 10,
        norm: float = 2.0,
        combine: str = "sum",
    ) -> None:
        concepts.check_fitted()
        if combine not in COMBINATIONS:
            raise UnknownNameError(unknown("combination", combine, COMBINATIONS))
        if concepts.kind != "top_k":
            raise InputError("a tree has no direction to steer in; fit the concepts with kind='top_k'")
        if concepts.width_ != dictionary.d_sae:
            raise InputError(f"concepts of {concepts.width_} latents do not fit a dictionary of {dictionary.d_sae}")
        if top_k < 1 or not norm > 0:
            raise InputError(f"top_k must be 1 or more and norm above 0, got {top_k} and {norm}")
        self.concepts, self.dictionary = concepts, dictionary
        self.top_k, self.norm, self.combine = top_k, norm, combine

    def direction(self, heads: Iterable[str]) -> Tensor:
        """Direction (d,) of concepts, of any length; the weights of one concept's rows add up to 1.

        Raises:
            InputError: no concept is given.
            UnknownNameError: there is no such concept.
        """
        rows = []
        for head in heads:
            latents = self.concepts.latents_[self.concepts.index(head), : self.top_k]
            latents = latents[latents >= 0]
            decoder = self.dictionary.W_dec.detach()[latents.to(self.dictionary.W_dec.device)].double()
            unit = decoder / decoder.norm(p=self.norm, dim=1, keepdim=True).clamp_min(1e-12)
            rows.append(unit * log_decay(len(latents), 1 / len(latents)).to(unit)[:, None])
        if not rows:
            raise InputError("no concept to steer with")
        every = torch.cat(rows)
        if self.combine == "max":
            return every.gather(0, every.abs().argmax(0, keepdim=True))[0]
        return every.sum(0) if self.combine == "sum" else every.mean(0)
