"""Mamba-2's selective state-space operator in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.functions.exchange.graft_operators import CausalConvolution, check_positive, check_tokens

__all__ = ["Mamba2"]


class Mamba2(nn.Module):
    """A causal token mixer with a state: S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T, y_t = S_t C_t + D x_t, by head.

    It is evaluated in its dual form, a masked product of tokens by tokens: time and memory grow with the square of the
    number of tokens, as those of attention do. There is one group: all heads share B and C.

    Args:
        width: D of h (batch, tokens, D).
        state: size of the state by channel.
        kernel: taps of the filter before x, B and C.
        expand: width of x over D; expand * D is a multiple of `head`.
        head: channels by head.

    Raises:
        InputError: a size is not above 0, or expand * width is no multiple of `head`; when called: another shape.

    Source: Dao and Gu, 2024, Transformers are SSMs, section 6 (dual form) and 7 (block); defaults of Chandrasegaran,
    Poli et al., 2025.
    """

    def __init__(self, width: int, state: int = 64, kernel: int = 4, expand: int = 2, head: int = 16) -> None:
        super().__init__()
        check_positive(width=width, state=state, kernel=kernel, expand=expand, head=head)
        inner = expand * width
        if inner % head:
            raise InputError(f"expand * width = {inner} is no multiple of heads of {head} channels")
        self.width, self.state, self.inner, self.heads = width, state, inner, inner // head
        self.project_in = nn.Linear(width, 2 * inner + 2 * state + self.heads, bias=False)
        self.featuriser = CausalConvolution(inner + 2 * state, kernel)
        # Steps start log-uniform in 0.001..0.1, decays uniform in 1..16, as the authors draw them.
        dt = torch.exp(torch.rand(self.heads) * math.log(100.0) + math.log(0.001))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.project_out = nn.Linear(inner, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        check_tokens(h, self.width, "Mamba2")
        z, mixed, dt = self.project_in(h).split([self.inner, self.inner + 2 * self.state, self.heads], dim=-1)
        mixed = functional.silu(self.featuriser(mixed.mT)).mT
        x, B, C = mixed.split([self.inner, self.state, self.state], dim=-1)
        x = x.unflatten(-1, (self.heads, -1))
        dt = functional.softplus(dt + self.dt_bias)
        y = self._scan(x * dt[..., None], -dt * self.A_log.exp(), B, C) + x * self.D[:, None]
        return self.project_out(self.norm(y.flatten(-2) * functional.silu(z)))

    @staticmethod
    def _scan(x: Tensor, decay: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """sum over j <= i of exp(decay_{j+1} + … + decay_i) (C_i · B_j) x_j, of x (batch, tokens, heads, channels)."""
        total = decay.cumsum(1).mT
        between = total[..., :, None] - total[..., None, :]
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        kept = between.masked_fill(later, -math.inf).exp()
        return torch.einsum("bhij,bij,bjhp->bihp", kept, C @ B.mT, x)
