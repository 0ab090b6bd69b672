"""LOS-Net: a classifier of output signatures, and the ablations that see only the tokens that occurred."""

from __future__ import annotations

from torch import nn

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.probes.signature_classifier import SignatureClassifier
from actinium.probes.signature_networks import SignatureMLP, SignatureTransformer

__all__ = ["ATP_R_MLP", "ATP_R_Transformer", "LOSNet"]

POOLS = ("cls", "mean")


class LOSNet(SignatureClassifier):
    """A small transformer that reads the whole output signature of a text, and says what it was taught to tell.

    Members of the training data from other texts, or right answers from wrong ones: labels and texts decide. Keep
    texts of one document, book or question on one side of every split. Defaults are the published ones.

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

    def __init__(
        self,
        k: int = 1000,
        n_max: int = 100,
        *,
        d: int = 128,
        heads: int = 8,
        layers: int = 2,
        dropout: float = 0.3,
        rank_encoding: str = "scale",
        pool: str = "cls",
        mask_padding: bool = False,
        lr: float = 1e-4,
        weight_decay: float = 1e-3,
        batch_size: int = 64,
        epochs: int = 100,
        patience: int = 100,
        validation_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.k, self.n_max, self.d, self.heads, self.layers, self.dropout = k, n_max, d, heads, layers, dropout
        self.rank_encoding, self.pool, self.mask_padding = rank_encoding, pool, mask_padding
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size
        self.epochs, self.patience, self.validation_share, self.seed = epochs, patience, validation_share, seed

    def _check(self) -> None:
        super()._check()
        _check_transformer(self.d, self.heads, self.pool)
        if self.k < 1 or self.d % 2:
            raise InputError(f"expected k >= 1 and an even d, got {self.k} and {self.d}")

    def _network(self, ranks: int | None) -> nn.Module:
        return SignatureTransformer(
            self.k, self.n_max, self.d, self.heads, self.layers, self.dropout, self.pool, ranks, self.mask_padding
        )


class ATP_R_Transformer(SignatureClassifier):
    """LOS-Net without the distributions: it reads the probability and the rank of the tokens that occurred.

    Arguments and attributes are those of `LOSNet`, without `k`.

    Source: Bar-Shalom et al., 2025 (ablation).
    """

    k = 0

    def __init__(
        self,
        n_max: int = 100,
        *,
        d: int = 128,
        heads: int = 8,
        layers: int = 2,
        dropout: float = 0.3,
        rank_encoding: str = "scale",
        pool: str = "cls",
        mask_padding: bool = False,
        lr: float = 1e-4,
        weight_decay: float = 1e-3,
        batch_size: int = 64,
        epochs: int = 100,
        patience: int = 100,
        validation_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.n_max, self.d, self.heads, self.layers, self.dropout = n_max, d, heads, layers, dropout
        self.rank_encoding, self.pool, self.mask_padding = rank_encoding, pool, mask_padding
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size
        self.epochs, self.patience, self.validation_share, self.seed = epochs, patience, validation_share, seed

    def _check(self) -> None:
        super()._check()
        _check_transformer(self.d, self.heads, self.pool)

    def _network(self, ranks: int | None) -> nn.Module:
        return SignatureTransformer(
            0, self.n_max, self.d, self.heads, self.layers, self.dropout, self.pool, ranks, self.mask_padding
        )


class ATP_R_MLP(SignatureClassifier):
    """A perceptron over the probability and the rank of the tokens that occurred, at fixed places.

    Arguments and attributes are those of `LOSNet`, without `k`, `heads`, `pool` and `mask_padding`. Dropout is off
    outside training; in the published code it stays on.

    Source: Bar-Shalom et al., 2025 (ablation).
    """

    k = 0

    def __init__(
        self,
        n_max: int = 100,
        *,
        d: int = 128,
        layers: int = 2,
        dropout: float = 0.3,
        rank_encoding: str = "scale",
        lr: float = 1e-4,
        weight_decay: float = 1e-3,
        batch_size: int = 64,
        epochs: int = 100,
        patience: int = 100,
        validation_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.n_max, self.d, self.layers, self.dropout = n_max, d, layers, dropout
        self.rank_encoding = rank_encoding
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size
        self.epochs, self.patience, self.validation_share, self.seed = epochs, patience, validation_share, seed

    def _network(self, ranks: int | None) -> nn.Module:
        return SignatureMLP(self.n_max, self.d, self.layers, self.dropout, ranks)


def _check_transformer(d: int, heads: int, pool: str) -> None:
    if heads < 1 or d % heads:
        raise InputError(f"d must be divisible by heads, got {d} and {heads}")
    if pool not in POOLS:
        raise UnknownNameError(unknown("pooling", str(pool), POOLS))
