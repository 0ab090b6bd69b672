"""Networks for tables whose rows are sets of tokens, one for each feature, mixed by layers of learnt functions."""

from __future__ import annotations

from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.kan.kan_network import kan_layer

__all__ = ["KANMixer"]


class _Block(nn.Module):
    """Tokens are mixed for each channel, then channels for each token; both are added to what came in."""

    def __init__(
        self, tokens: int, channels: int, hidden: int, layer: str, order: int | None, options: dict[str, object]
    ) -> None:
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.token = nn.Sequential(kan_layer(layer, tokens, hidden, order, **options), nn.Linear(hidden, tokens))
        wide = 2 * channels
        self.channel = nn.Sequential(kan_layer(layer, channels, wide, order, **options), nn.Linear(wide, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, channels) to the same."""
        x = x + self.token(self.token_norm(x).mT).mT
        return x + self.channel(self.channel_norm(x))


class KANMixer(nn.Module):
    """A token for each feature, blocks that mix tokens and channels, and a linear map of the tokens' mean.

    Args:
        in_dim: number of features.
        out_dim: number of outputs.
        channels: size of a token.
        blocks: how many.
        hidden: outputs of the layer that mixes tokens.
        layer: a name of `KAN_LAYERS`.
        order: how rich its functions are.
        options: further arguments of the layers.

    Raises:
        InputError: a size is below 1, or an option is wrong.
        UnknownNameError: there is no such layer.

    Source: Eslamian et al., 2025, arXiv 2504.06559 (KAN-Mixer), with the sizes of their code as defaults.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        channels: int = 128,
        blocks: int = 4,
        hidden: int = 64,
        layer: str = "chebyshev",
        order: int | None = 3,
        **options: object,
    ) -> None:
        super().__init__()
        if min(in_dim, out_dim, channels, blocks, hidden) < 1:
            raise InputError(f"sizes are 1 or more, got {in_dim}, {out_dim}, {channels}, {blocks} and {hidden}")
        self.in_dim = in_dim
        self.embed = nn.Linear(1, channels)
        self.blocks = nn.ModuleList(_Block(in_dim, channels, hidden, layer, order, options) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (n, out) at rows x (n, in).

        Raises:
            InputError: x has another shape, or holds NaN.
        """
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != self.in_dim:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"expected rows (n, {self.in_dim}), got {shape}")
        if x.isnan().any():
            raise InputError("the rows hold NaN")
        tokens = self.embed(x[..., None])
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(1))
