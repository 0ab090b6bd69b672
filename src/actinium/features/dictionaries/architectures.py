"""Sparse autoencoders: one class for each activation rule, with its settings in the constructor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.features.dictionaries.code import Code
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.output import error_of
from actinium.features.dictionaries.rules import BatchTopK, Gated, JumpReLU, ReLU, Rule, TopK
from actinium.features.dictionaries.sparse import decode

__all__ = ["BatchTopKSAE", "GatedSAE", "JumpReLUSAE", "MatryoshkaSAE", "ReLUSAE", "TopKSAE"]


class ReLUSAE(Dictionary):
    """ReLU latents with an L1 penalty.

    Args:
        d_sae: number of latents.
        l1: coefficient of the penalty on the squared error summed over d.
        p: of the penalty's norm.
        common: settings of all dictionaries, see `Dictionary`.

    Source: Bricken et al., 2023; Anthropic, April 2024 (free norms).
    """

    def __init__(
        self,
        d_sae: int,
        l1: float = 1.0,
        *,
        p: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(d_sae, **common)
        self.l1, self.p = l1, p

    def make_rule(self) -> Rule:
        """ReLU."""
        return ReLU(self.l1, self.p)


class GatedSAE(Dictionary):
    """Latents with a gate of their own, whose auxiliary loss reconstructs with the decoder held.

    Args:
        d_sae: number of latents.
        l1: coefficient of the penalty on the gate.
        common: settings of all dictionaries, see `Dictionary`.

    Source: Rajamanoharan et al., 2024, section 3.2.
    """

    def __init__(
        self,
        d_sae: int,
        l1: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(d_sae, **common)
        self.l1 = l1

    def make_rule(self) -> Rule:
        """Gated."""
        return Gated(self.l1)

    def auxiliary(
        self, x: Tensor, target: Tensor, xhat: Tensor, latents: Code | Tensor, pre: Code | Tensor, dead: Tensor | None
    ) -> dict[str, Tensor]:
        """||x - (ReLU(pi + b_gate) W_dec + b_dec)||^2 with W_dec and b_dec held."""
        assert isinstance(self.rule, Gated)
        if isinstance(pre, Code):
            gate = pre.with_values(self.rule.gate(pre.values, pre.latents))
            own = decode(gate, self.W_dec.detach()) + self.b_dec.detach()
        else:
            own = self.rule.gate(pre, None) @ self.W_dec.detach() + self.b_dec.detach()
        return {"auxiliary": error_of(own, target, self.reconstruction)}


class TopKSAE(Dictionary):
    """The k largest latents of each row.

    Args:
        d_sae: number of latents.
        k: active latents of a row.
        aux_k: dead latents in the auxiliary loss, half of the input's width by default.
        aux_alpha: its coefficient, 0 for none.
        multi_k: weight of the share of the variance that 4 k latents leave, added to the loss; 0 for none.
        common: settings of all dictionaries, see `Dictionary`.

    Source: Gao et al., 2024, sections 2 and A.2.
    """

    def __init__(
        self,
        d_sae: int,
        k: int = 32,
        *,
        aux_k: int | None = None,
        aux_alpha: float = 1 / 32,
        multi_k: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(d_sae, **common)
        self.k, self.multi_k = k, multi_k
        self.aux_k, self.aux_alpha = aux_k, aux_alpha

    def make_rule(self) -> Rule:
        """TopK."""
        return TopK(self.k)

    def auxiliary(
        self, x: Tensor, target: Tensor, xhat: Tensor, latents: Code | Tensor, pre: Code | Tensor, dead: Tensor | None
    ) -> dict[str, Tensor]:
        """That of dead latents, and of 4 k latents if asked for."""
        parts = super().auxiliary(x, target, xhat, latents, pre, dead)
        if self.multi_k:
            self.rule.k, k = min(4 * self.k, self.d_sae), self.rule.k
            try:
                many, _, _ = self.active(x)
            finally:
                self.rule.k = k
            parts["multi_k"] = self.multi_k * error_of(self.reconstruct(many), target, "fvu")
        return parts


class BatchTopKSAE(Dictionary):
    """The k n largest latents of a batch of n rows; once trained, those above one threshold.

    Args:
        d_sae: number of latents.
        k: mean number of active latents of a row.
        rate: of the running mean of the smallest latent kept.
        aux_k, aux_alpha: as of `TopKSAE`.
        common: settings of all dictionaries, see `Dictionary`.

    Source: Bussmann, Leask and Nanda, 2024.
    """

    def __init__(
        self,
        d_sae: int,
        k: float = 32,
        *,
        rate: float = 0.01,
        aux_k: int | None = None,
        aux_alpha: float = 1 / 32,
        **common: Any,
    ) -> None:
        super().__init__(d_sae, **common)
        self.k, self.rate = k, rate
        self.aux_k, self.aux_alpha = aux_k, aux_alpha

    def make_rule(self) -> Rule:
        """BatchTopK."""
        return BatchTopK(self.k, self.rate)

    def to_jumprelu(self) -> JumpReLUSAE:
        """The same dictionary with its threshold as that of every latent.

        Raises:
            InputError: it was not trained, so there is no threshold yet.
        """
        threshold = self.rule.threshold
        if threshold is None:
            raise InputError("a BatchTopK dictionary has a threshold only after training")
        made = JumpReLUSAE(
            self.d_sae,
            normalize=self.normalize,
            decoder_norm=self.decoder_norm,
            apply_b_dec=self.apply_b_dec,
            reconstruction=self.reconstruction,
        ).build(self.d_in, self.d_out)
        norms = self.weights_of_latents().detach()
        with torch.no_grad():
            for name in ("W_enc", "b_enc", "W_dec", "b_dec", "scale"):
                getattr(made, name).copy_(getattr(self, name))
            made.rule.theta.copy_((threshold.to(norms) / norms).expand(self.d_sae))  # type: ignore[union-attr,operator]
        made.rows_, made.about = self.rows_, dict(self.about)
        return made.eval()


class JumpReLUSAE(Dictionary):
    """Latents above a learnt threshold of their own.

    Args:
        d_sae: number of latents.
        l0: coefficient of the penalty.
        bandwidth: of the straight-through gradient.
        theta: threshold at the start.
        penalty: "l0", "tanh", "target" or "quadratic".
        target: L0 wanted by the last two.
        c: scale in "tanh".
        ste_to_input: straight-through gradients for pre-activations, too.
        common: settings of all dictionaries, see `Dictionary`.

    Source: Rajamanoharan et al., 2024 (Jumping Ahead), section 3.
    """

    def __init__(
        self,
        d_sae: int,
        l0: float = 1e-3,
        *,
        bandwidth: float = 0.05,
        theta: float = 0.01,
        penalty: str = "l0",
        target: float = 20.0,
        c: float = 4.0,
        ste_to_input: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(d_sae, **common)
        self.l0, self.bandwidth, self.theta, self.penalty = l0, bandwidth, theta, penalty
        self.target, self.c, self.ste_to_input = target, c, ste_to_input

    def make_rule(self) -> Rule:
        """JumpReLU."""
        return JumpReLU(self.l0, self.bandwidth, self.theta, self.penalty, self.target, self.c, self.ste_to_input)


class MatryoshkaSAE(BatchTopKSAE):
    """Nested dictionaries: the first m_1, m_2, ... latents each reconstruct by themselves.

    Args:
        widths: m_1 < m_2 < ..., the last of which is the number of latents.
        k: mean number of active latents of a row, over all of them.
        rate, aux_k, aux_alpha, common: as of `BatchTopKSAE`.
        mean: take the mean over widths of the reconstruction losses, not their sum.

    Source: Bussmann, Nabeshima, Karvonen and Nanda, 2025.
    """

    decided = ("d_sae",)

    def __init__(
        self,
        widths: Sequence[int],
        k: float = 32,
        *,
        mean: bool = False,
        rate: float = 0.01,
        aux_k: int | None = None,
        aux_alpha: float = 1 / 32,
        **common: Any,
    ) -> None:
        super().__init__(
            widths[-1] if len(widths) else 0,
            k,
            rate=rate,
            aux_k=aux_k,
            aux_alpha=aux_alpha,
            **common,
        )
        self.widths, self.mean = widths, mean

    def _check(self) -> None:
        super()._check()
        widths = list(self.widths)
        if widths != sorted(set(widths)) or widths[0] < 1:
            raise InputError(f"widths must rise, from 1 or more: {widths}")

    def reconstruction_loss(self, xhat: Tensor, target: Tensor, latents: Code | Tensor) -> Tensor:
        """Sum (or mean) over widths of the loss of the reconstruction by so many latents."""
        found = error_of(xhat, target, self.reconstruction)
        for width in list(self.widths)[:-1]:
            if isinstance(latents, Code):
                within = latents.keep(latents.latents < width)
                own = decode(within, self.W_dec) + self.b_dec
            else:
                own = latents[:, :width] @ self.W_dec[:width] + self.b_dec
            found = found + error_of(own, target, self.reconstruction)
        return found / len(self.widths) if self.mean else found
