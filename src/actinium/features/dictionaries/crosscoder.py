"""Crosscoders: one set of latents that reads and reconstructs several layers, or several models, at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.features.dictionaries import normalisation
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.output import DictionaryOutput
from actinium.features.dictionaries.rules import Rule, rule_of

__all__ = ["Crosscoder"]


class Crosscoder(Dictionary):
    """f = rule(sum_l x^l W_enc^l + b_enc), xhat^l = f W_dec^l + b_dec^l.

    Weights of all places stand side by side: `W_enc` (sum of widths, d_sae), `W_dec` (d_sae, sum of widths). Penalties
    and ranks weight a latent by the sum over places of its decoder norms.

    Args:
        d_sae: number of latents.
        widths: of the places.
        activation, settings: as of `Transcoder`.
        aux_k, aux_alpha: as of `TopKSAE`.
        common: as of `Dictionary`; of normalisations the constants, one number for each place.

    Source: Lindsey et al., 2024.
    """

    decided = ("decoder_norm", "apply_b_dec")

    def __init__(
        self,
        d_sae: int,
        widths: Sequence[int],
        activation: str = "relu",
        settings: Mapping[str, Any] | None = None,
        *,
        aux_k: int | None = None,
        aux_alpha: float = 1 / 32,
        **common: Any,
    ) -> None:
        super().__init__(d_sae, decoder_norm="free", apply_b_dec=False, **common)
        self.aux_k, self.aux_alpha = aux_k, aux_alpha
        self.widths, self.activation, self.settings = widths, activation, settings

    def make_rule(self) -> Rule:
        """That of the name."""
        return rule_of(self.activation, self.settings)

    def _check(self) -> None:
        super()._check()
        if not len(self.widths) or min(self.widths) < 1:
            raise InputError(f"widths must be 1 or more, not {list(self.widths)}")
        if self.normalize not in ("none", *normalisation.CONSTANT):
            raise InputError(f"a crosscoder's places are normalised by a constant, not by {self.normalize!r}")

    def scale_shape(self) -> tuple[int, ...]:
        """One number for each place, repeated over its width."""
        return (sum(self.widths),)

    def measure_scale(self, sample: Tensor) -> None:
        """One constant for each place."""
        if self.normalize in normalisation.CONSTANT:
            for part, own in zip(sample.split(list(self.widths), 1), self.scale.split(list(self.widths)), strict=True):
                own.fill_(normalisation.constant_scale(part, self.normalize))

    def arrange(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """All places side by side.

        Raises:
            InputError: they have other widths.
        """
        if [p.shape[1] for p in parts] != list(self.widths):
            raise InputError(f"the places are {[p.shape[1] for p in parts]} wide, not {list(self.widths)}")
        return torch.cat(list(parts), 1), None

    def weights_of_latents(self) -> Tensor:
        """(d_sae,) sum over places of decoder norms."""
        return self.decoder_norms().sum(1)

    def decoder_norms(self) -> Tensor:
        """(d_sae, place) norm of what a latent writes at each place."""
        return torch.stack([part.norm(dim=1) for part in self.W_dec.split(list(self.widths), 1)], 1)

    def relative_norms(self, a: int = 0, b: int = 1) -> Tensor:
        """(d_sae,) share of place b in the decoder norms of a and b: 0 and 1 are latents of one of them alone."""
        norms = self.decoder_norms()
        return norms[:, b] / (norms[:, a] + norms[:, b]).clamp_min(1e-12)

    def split(self, x: Tensor) -> list[Tensor]:
        """Activations (..., sum of widths) by place."""
        return list(x.split(list(self.widths), -1))

    def forward(self, x: Tensor) -> DictionaryOutput:
        """Latents and reconstruction of activations side by side (..., sum of widths), or (..., place, width)."""
        if x.ndim >= 2 and x.shape[-1] != sum(self.widths) and x.shape[-2:] == (len(self.widths), self.widths[0]):
            out = super().forward(x.flatten(-2))
            return DictionaryOutput(out.xhat.view(x.shape), out.latents, out.shape)
        return super().forward(x)
