"""The networks that read output signatures: LOS-Net and its two ablations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["RankedProbability", "SignatureBatch", "SignatureMLP", "SignatureTransformer"]


class SignatureBatch(NamedTuple):
    """Features of signatures; see `OutputSignature.features`.

    Attributes:
        tds: (batch, n_max, k) normalised distributions, or (batch, n_max, 0) for networks that do not read them.
        atp: (batch, n_max) normalised log-probabilities.
        rank: (batch, n_max) int64.
        real: (batch, n_max) bool.
        vocab: (batch,) int64, vocabulary of the model that each signature comes from.
    """

    tds: Tensor
    atp: Tensor
    rank: Tensor
    real: Tensor
    vocab: Tensor

    def rows(self, chosen: Tensor, device: torch.device) -> SignatureBatch:
        """Some rows on a device, in single precision."""
        parts = (t[chosen].to(device) for t in self)
        return SignatureBatch(*(t.float() if t.is_floating_point() else t for t in parts))


class RankedProbability(nn.Module):
    """Encodes the probability of the token that occurred together with its rank, in `d` numbers.

    With "scale" the rank R becomes r = 2 (0.5 - R / V), from 1 for the first place to -1, and the code is
    atp w1 + atp r w2; with "one_hot" each rank has a vector of its own, atp w1 + atp E[R].

    Source: Bar-Shalom et al., 2025, section 4 and published code.
    """

    def __init__(self, d: int, ranks: int | None = None) -> None:
        super().__init__()
        self.of_probability = nn.Parameter(torch.randn(d))
        self.of_rank: nn.Parameter | nn.Embedding = (
            nn.Parameter(torch.randn(d)) if ranks is None else nn.Embedding(ranks, d)
        )

    def forward(self, atp: Tensor, rank: Tensor, vocab: Tensor) -> Tensor:
        """(batch, n_max, d) codes."""
        if isinstance(self.of_rank, nn.Embedding):
            second = self.of_rank(rank)
        else:
            second = encoded_rank(rank, vocab[:, None])[..., None] * self.of_rank
        return atp[..., None] * (self.of_probability + second)


def encoded_rank(rank: Tensor, vocab: Tensor | int) -> Tensor:
    """2 (0.5 - R / V): 1 for the most likely token, 0 in the middle of the vocabulary."""
    return 2 * (0.5 - rank / vocab)


class SignatureTransformer(nn.Module):
    """A transformer over the steps, with a class token; without `k` it sees the tokens that occurred only.

    Layers are post-norm with ReLU and as wide inside as outside. As published, padding is attended to unless
    `mask_padding`.
    """

    def __init__(
        self,
        k: int,
        n_max: int,
        d: int,
        heads: int,
        layers: int,
        dropout: float,
        pool: str,
        ranks: int | None,
        mask_padding: bool,
    ) -> None:
        super().__init__()
        self.pool, self.mask_padding = pool, mask_padding
        self.ranked = RankedProbability(d // 2 if k else d, ranks)
        self.distribution = nn.Linear(k, d // 2) if k else None
        self.cls = nn.Parameter(torch.randn(d))
        self.positions = nn.Embedding(n_max + 1, d)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(d, heads, dim_feedforward=d, dropout=dropout, batch_first=True)
            for _ in range(layers)
        )
        self.out = nn.Linear(d, 1)

    def forward(self, batch: SignatureBatch) -> Tensor:
        """(batch,) logits."""
        x = self.ranked(batch.atp, batch.rank, batch.vocab)
        if self.distribution is not None:
            x = torch.cat([self.distribution(batch.tds), x], -1)
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1) + self.positions.weight[: x.shape[1] + 1]
        unseen = None
        if self.mask_padding:
            unseen = torch.cat([torch.zeros_like(batch.real[:, :1]), ~batch.real], 1)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=unseen)
        if self.pool == "cls":
            pooled = x[:, 0]
        elif unseen is None:
            pooled = x.mean(1)
        else:
            seen = (~unseen)[..., None]
            pooled = (x * seen).sum(1) / seen.sum(1)
        return self.out(pooled)[:, 0]


class SignatureMLP(nn.Module):
    """A multilayer perceptron over the codes of all steps, side by side."""

    def __init__(self, n_max: int, d: int, layers: int, dropout: float, ranks: int | None) -> None:
        super().__init__()
        self.ranked = RankedProbability(d, ranks)
        parts: list[nn.Module] = []
        for i in range(layers):
            last = i + 1 == layers
            parts.append(nn.Linear(n_max * d if i == 0 else d, 1 if last else d))
            if not last:
                parts += [nn.BatchNorm1d(d), nn.ReLU(), nn.Dropout(dropout)]
        self.stack = nn.Sequential(*parts)

    def forward(self, batch: SignatureBatch) -> Tensor:
        """(batch,) logits."""
        return self.stack(self.ranked(batch.atp, batch.rank, batch.vocab).flatten(1))[:, 0]
