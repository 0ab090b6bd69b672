"""LOS-Net: a classifier of output signatures, and the ablations that see only the tokens that occurred."""

from __future__ import annotations

from typing import Any

from torch import nn

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.probes.signature_classifier import SignatureClassifier
from actinium.probes.signature_networks import SignatureMLP, SignatureTransformer

__all__ = ["ATP_R_MLP", "ATP_R_Transformer", "LOSNet"]

POOLS = ("cls", "mean")


class _Transformer(SignatureClassifier):
    """A transformer over the steps of a signature; of each it reads the `k` most likely tokens and what occurred."""

    def __init__(
        self,
        n_max: int = 100,
        *,
        heads: int = 8,
        pool: str = "cls",
        mask_padding: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(n_max, **common)
        self.heads, self.pool, self.mask_padding = heads, pool, mask_padding

    def _check(self) -> None:
        super()._check()
        if self.heads < 1 or self.d % self.heads:
            raise InputError(f"d must be divisible by heads, got {self.d} and {self.heads}")
        if self.pool not in POOLS:
            raise UnknownNameError(unknown("pooling", str(self.pool), POOLS))

    def _network(self, ranks: int | None) -> nn.Module:
        return SignatureTransformer(
            self.k, self.n_max, self.d, self.heads, self.layers, self.dropout, self.pool, ranks, self.mask_padding
        )


class LOSNet(_Transformer):
    """A small transformer that reads the whole output signature of a text, and says what it was taught to tell.

    Members of the training data from other texts, or right answers from wrong ones: labels and texts decide. Keep
    texts of one document, book or question on one side of every split. Defaults are the published ones: d 128, 8 heads,
    2 layers, dropout 0.3, lr 1e-4, weight_decay 1e-3, batches of 64, 100 epochs and as much patience, and 0.2 of the
    texts for validation. What comes after `n_max` is given by name.

    Args:
        k: most likely tokens of each step that are read.
        n_max: steps that are read; longer texts are cut, shorter ones padded.
        d: width, even and divisible by `heads`.
        heads, layers, dropout: of the transformer.
        rank_encoding: "scale", which other vocabularies share, or "one_hot".
        pool: what is classified, "cls" (the class token) or "mean" (over the steps).
        mask_padding: hide padded steps; published networks attend to them.
        lr, weight_decay: of AdamW. The rate rises over the first tenth of the steps and falls linearly to 0.
        batch_size: texts in a step.
        epochs: passes over the texts, at most.
        patience: epochs without a better validation AUROC after which it stops.
        validation_share: of the texts, to choose the epoch by; 0 keeps the last epoch.
        seed: of weights, order, dropout and that share.

    Attributes:
        network_: the `torch.nn.Module`.
        loss_: mean loss of each epoch.
        validation_auroc_: AUROC of each epoch on the validation part.

    Source: Bar-Shalom et al., 2025, section 4; sizes and training from the published code.
    """

    def __init__(self, k: int = 1000, n_max: int = 100, **common: Any) -> None:
        super().__init__(n_max, **common)
        self.k = k

    def _check(self) -> None:
        super()._check()
        if self.k < 1 or self.d % 2:
            raise InputError(f"expected k >= 1 and an even d, got {self.k} and {self.d}")


class ATP_R_Transformer(_Transformer):
    """LOS-Net without the distributions: it reads the probability and the rank of the tokens that occurred.

    Arguments and attributes are those of `LOSNet`, without `k`.

    Source: Bar-Shalom et al., 2025 (ablation).
    """


class ATP_R_MLP(SignatureClassifier):
    """A perceptron over the probability and the rank of the tokens that occurred, at fixed places.

    Arguments and attributes are those of `LOSNet`, without `k`, `heads`, `pool` and `mask_padding`. Dropout is off
    outside training; in the published code it stays on.

    Source: Bar-Shalom et al., 2025 (ablation).
    """

    def _network(self, ranks: int | None) -> nn.Module:
        return SignatureMLP(self.n_max, self.d, self.layers, self.dropout, ranks)
