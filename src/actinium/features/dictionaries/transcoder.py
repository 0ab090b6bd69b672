"""Transcoders: sparse dictionaries from the input of a part of a network to its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.features.dictionaries import normalisation
from actinium.features.dictionaries.code import Code
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.output import DictionaryOutput, error_of
from actinium.features.dictionaries.rules import Rule, rule_of

__all__ = ["SkipTranscoder", "Transcoder"]


class Transcoder(Dictionary):
    """yhat = f W_dec + b_dec of latents f of the input x.

    Args:
        d_sae: number of latents.
        activation: "topk", "batch_topk", "relu", "jumprelu" or "gated".
        settings: of the activation, such as {"k": 32} or {"l1": 1.0}.
        aux_k, aux_alpha: as of `TopKSAE`.
        b_dec_init, common: as of `Dictionary`; the input is normalised, and the output reconstructed as it is. The
            decoder's bias is not subtracted from the input.

    Source: Dunefsky, Chlenski and Nanda, 2024.
    """

    autoencodes = False
    decided = ("apply_b_dec",)
    skips = False

    def __init__(
        self,
        d_sae: int,
        activation: str = "topk",
        settings: Mapping[str, Any] | None = None,
        *,
        aux_k: int | None = None,
        aux_alpha: float = 1 / 32,
        b_dec_init: str = "mean",
        **common: Any,
    ) -> None:
        super().__init__(d_sae, b_dec_init=b_dec_init, apply_b_dec=False, **common)
        self.activation, self.settings = activation, settings
        self.aux_k, self.aux_alpha = aux_k, aux_alpha

    def make_rule(self) -> Rule:
        """That of the name."""
        return rule_of(self.activation, self.settings)

    def build(self, d_in: int, d_out: int | None = None) -> Self:
        """As of `Dictionary`, with a weight `W_skip` (d_out, d_in) of zeros if it skips."""
        super().build(d_in, d_out)
        if self.skips:
            self.W_skip = nn.Parameter(torch.zeros(self.d_out, self.d_in))
        return self

    def forward(self, x: Tensor) -> DictionaryOutput:
        """Latents of the input (..., d_in), and the output (..., d_out) that they stand for."""
        out = super().forward(x)
        if not self.skips:
            return out
        rows, shape = self._rows(x)
        normal, _ = normalisation.normalised(rows, self.normalize, self.scale)
        straight = (normal @ self.W_skip.T).view(*shape, self.d_out)
        return DictionaryOutput(out.xhat + straight, out.latents, shape)

    def loss(
        self, x: Tensor, y: Tensor | None = None, dead: Tensor | None = None, warm: Tensor | float = 1.0
    ) -> tuple[dict[str, Tensor], Code | Tensor]:
        """As of `Dictionary`, of the output less what skips.

        Raises:
            InputError: there is no output.
        """
        if y is None:
            raise InputError("a transcoder is trained on pairs of inputs and outputs")
        if self.skips:
            normal, _ = normalisation.normalised(x, self.normalize, self.scale)
            parts, latents = super().loss(x, y - normal @ self.W_skip.T, dead, warm)
            if self.reconstruction == "fvu":
                # The share is that of the output's own variance.
                lost = parts["reconstruction"] * _variance(y - normal @ self.W_skip.T) / _variance(y)
                parts["reconstruction"] = lost
            return parts, latents
        return super().loss(x, y, dead, warm)

    def score(self, x: Any) -> float:
        """Explained variance of the outputs, given as a pair (inputs, outputs)."""
        with torch.no_grad():
            inputs, outputs = (torch.as_tensor(v, dtype=self.W_dec.dtype, device=self.W_dec.device) for v in x)
            return 1.0 - float(error_of(self(inputs).xhat.double(), outputs.double(), "fvu"))

    def fold_input_scale(self) -> Self:
        """As of `Dictionary`; what skips is scaled, too."""
        if self.skips and self.normalize in normalisation.CONSTANT:
            with torch.no_grad():
                self.W_skip.mul_(self.scale)
        return super().fold_input_scale()


class SkipTranscoder(Transcoder):
    """yhat = f W_dec + b_dec + x W_skip^T, with a linear path beside the latents that starts at zero.

    Args:
        d_sae, activation, settings, aux_k, aux_alpha, b_dec_init, common: as of `Transcoder`.

    Source: Paulo, Shabalin and Belrose, 2025.
    """

    skips = True


def _variance(y: Tensor) -> Tensor:
    return (y - y.mean(0)).square().sum().clamp_min(1e-12)
