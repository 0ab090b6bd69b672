"""Operators to graft: what may stand in the place of an attention or of an MLP, on (batch, tokens, width)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError

__all__ = ["GraftMLP", "HyenaSE", "HyenaX", "HyenaXMLP", "HyenaY", "SlidingWindowAttention", "ZeroOperator"]


def check_tokens(h: Tensor, width: int, name: str) -> None:
    """Refuse what is not (batch, tokens, width).

    Raises:
        InputError: another shape.
    """
    if h.ndim != 3 or h.shape[-1] != width:
        raise InputError(f"{name} takes (batch, tokens, {width}), got {tuple(h.shape)}")


def check_positive(**sizes: float) -> None:
    """Refuse sizes that are not above zero.

    Raises:
        InputError: one is not.
    """
    for name, size in sizes.items():
        if not size > 0:
            raise InputError(f"{name} must be above 0, got {size}")


class CausalConvolution(nn.Module):
    """One filter per channel over the last dimension, which sees the entry itself and those before it.

    Args:
        channels: number of filters.
        kernel: taps; the last one is that of the entry itself.
        identity: start as the identity: last tap 1, the others and the bias 0.
    """

    def __init__(self, channels: int, kernel: int, identity: bool = False) -> None:
        super().__init__()
        self.kernel = kernel
        self.convolution = nn.Conv1d(channels, channels, kernel, groups=channels)
        if identity:
            assert self.convolution.bias is not None
            nn.init.zeros_(self.convolution.weight)
            nn.init.zeros_(self.convolution.bias)
            with torch.no_grad():
                self.convolution.weight[:, 0, -1] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, length) to the same."""
        return self.convolution(functional.pad(x, (self.kernel - 1, 0)))


class _Hyena(nn.Module):
    """y = W_out(q * inner(k * v)) with (q, k, v) = featuriser(W_in h), either filter being left out or not."""

    def __init__(self, width: int, kernel: int, featuriser: bool, inner: bool) -> None:
        super().__init__()
        check_positive(width=width, kernel=kernel)
        self.width = width
        self.project_in = nn.Linear(width, 3 * width)
        self.featuriser = CausalConvolution(3 * width, kernel) if featuriser else nn.Identity()
        self.inner = CausalConvolution(width, kernel, identity=True) if inner else nn.Identity()
        self.project_out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        check_tokens(h, self.width, type(self).__name__)
        q, k, v = self.featuriser(self.project_in(h).mT).chunk(3, dim=1)
        return self.project_out((q * self.inner(k * v)).mT)


class HyenaSE(_Hyena):
    """A causal token mixer of two short filters and two gates: y = W_out(q * conv(k * v)), (q, k, v) = conv(W_in h).

    The inner filter starts as the identity.

    Args:
        width: D of h (batch, tokens, D).
        kernel: taps of both filters.

    Raises:
        InputError: a size is not above 0; when called: another shape.

    Source: Chandrasegaran, Poli et al., 2025, section 3; keshik6/grafting.
    """

    def __init__(self, width: int, kernel: int = 4) -> None:
        super().__init__(width, kernel, featuriser=True, inner=True)


class HyenaX(_Hyena):
    """`HyenaSE` without the inner filter: y = W_out(q * k * v), (q, k, v) = conv(W_in h).

    Args:
        width: D of h (batch, tokens, D).
        kernel: taps.

    Raises:
        InputError: a size is not above 0; when called: another shape.

    Source: Chandrasegaran, Poli et al., 2025, section 3; keshik6/grafting.
    """

    def __init__(self, width: int, kernel: int = 4) -> None:
        super().__init__(width, kernel, featuriser=True, inner=False)


class HyenaY(_Hyena):
    """`HyenaSE` without the first filter: y = W_out(q * conv(k * v)), (q, k, v) = W_in h.

    Args:
        width: D of h (batch, tokens, D).
        kernel: taps.

    Raises:
        InputError: a size is not above 0; when called: another shape.

    Source: Chandrasegaran, Poli et al., 2025, section 3; keshik6/grafting.
    """

    def __init__(self, width: int, kernel: int = 4) -> None:
        super().__init__(width, kernel, featuriser=False, inner=True)


class SlidingWindowAttention(nn.Module):
    """Softmax attention in which token i sees the tokens j with |i - j| <= window.

    Args:
        width: D of h (batch, tokens, D), a multiple of `heads`.
        heads: number of heads.
        window: how far a token sees to each side.
        causal: see no later tokens, as language models need.

    Raises:
        InputError: a size is not above 0, or `width` no multiple of `heads`; when called: another shape.

    Source: Beltagy et al., 2020 (sliding window); Chandrasegaran, Poli et al., 2025 (window 4 to each side).
    """

    def __init__(self, width: int, heads: int = 1, window: int = 4, causal: bool = False) -> None:
        super().__init__()
        check_positive(width=width, heads=heads, window=window + 1)
        if width % heads:
            raise InputError(f"a width of {width} is no multiple of {heads} heads")
        self.width, self.heads, self.window, self.causal = width, heads, window, causal
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        check_tokens(h, self.width, type(self).__name__)
        batch, tokens, _ = h.shape
        q, k, v = self.project_in(h).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        place = torch.arange(tokens, device=h.device)
        apart = place[:, None] - place
        seen = (apart.abs() <= self.window) & (apart >= 0) if self.causal else apart.abs() <= self.window
        z = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.project_out(z.transpose(1, 2).reshape(batch, tokens, self.width))


class GraftMLP(nn.Module):
    """An MLP of one hidden layer: Linear, GELU (tanh form), Linear.

    Args:
        width: D of h (…, D).
        ratio: width of the hidden layer over D.

    Raises:
        InputError: a size is not above 0; when called: another width.

    Source: Chandrasegaran, Poli et al., 2025 (ratios 3 and 6 in place of 4).
    """

    def __init__(self, width: int, ratio: float = 4.0) -> None:
        super().__init__()
        check_positive(width=width, ratio=ratio, hidden=int(width * ratio))
        self.width = width
        self.project_in = nn.Linear(width, int(width * ratio))
        self.project_out = nn.Linear(int(width * ratio), width)

    def forward(self, h: Tensor) -> Tensor:
        """(…, width) to the same."""
        if h.shape[-1:] != (self.width,):
            raise InputError(f"GraftMLP takes (…, {self.width}), got {tuple(h.shape)}")
        return self.project_out(functional.gelu(self.project_in(h), approximate="tanh"))


class HyenaXMLP(nn.Module):
    """`HyenaX` across channels: y = W_out(q * k * v), (q, k, v) = conv(W_in h), one filter per token, over channels.

    Args:
        width: D of h (batch, tokens, D).
        tokens: number of tokens; every input has as many.
        ratio: width of q, k and v over D.
        kernel: taps of a filter.

    Raises:
        InputError: a size is not above 0; when called: another shape or number of tokens.

    Source: Chandrasegaran, Poli et al., 2025, section 3; keshik6/grafting.
    """

    def __init__(self, width: int, tokens: int, ratio: int = 2, kernel: int = 4) -> None:
        super().__init__()
        check_positive(width=width, tokens=tokens, ratio=ratio, kernel=kernel)
        self.width, self.tokens = width, tokens
        self.project_in = nn.Linear(width, 3 * ratio * width)
        self.featuriser = CausalConvolution(tokens, kernel)
        self.project_out = nn.Linear(ratio * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        check_tokens(h, self.width, "HyenaXMLP")
        if h.shape[1] != self.tokens:
            raise InputError(f"this HyenaXMLP has filters for {self.tokens} tokens, got {h.shape[1]}")
        q, k, v = self.featuriser(self.project_in(h)).chunk(3, dim=-1)
        return self.project_out(q * k * v)


class ZeroOperator(nn.Module):
    """y = 0: a block whose operator it is passes its residual stream on. The baseline that leaves an operator out."""

    def forward(self, h: Tensor) -> Tensor:
        """Zeros of the shape of h."""
        return torch.zeros_like(h)
