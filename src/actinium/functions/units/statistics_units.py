"""Rectifiers that depend on statistics: the mean of a unit's inputs, or the error of the last epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.functions.rectifiers import leaky
from actinium.functions.stable import pos
from actinium.functions.units.channel_units import ChannelUnit

__all__ = ["AdaptiveOffset", "ErrorSlope", "MarginReLU"]


class _MeanUnit(ChannelUnit):
    """Base of functions of a mean over everything but the channels: of the batch while training, a running one else."""

    def __init__(self, num_parameters: int, channel_dim: int, momentum: float) -> None:
        super().__init__(num_parameters, channel_dim)
        if not 0 < momentum <= 1:
            raise InputError(f"momentum lies between 0 and 1, got {momentum}")
        self.momentum = momentum
        self.mean: Tensor
        self.seen: Tensor
        self.register_buffer("mean", torch.zeros(num_parameters))
        self.register_buffer("seen", torch.zeros(num_parameters, dtype=torch.bool))

    def average(self, x: Tensor, chosen: Tensor) -> Tensor:
        """The mean of the chosen elements of x for each channel, in a shape that broadcasts with x."""
        if not self.training:
            return self.spread(self.mean, x)
        rows, picked = self.rows(x), self.rows(chosen)
        count = picked.sum(0)
        now = torch.where(picked, rows, 0.0).sum(0) / count.clamp(min=1)
        self._remember(now.detach(), count > 0)
        return self.spread(torch.where(count > 0, now, self.mean), x)

    @torch.no_grad()
    def _remember(self, now: Tensor, there: Tensor) -> None:
        now = now.to(self.mean.dtype)
        mixed = torch.where(self.seen, torch.lerp(self.mean, now, self.momentum), now)
        self.mean.copy_(torch.where(there, mixed, self.mean))
        self.seen |= there


class AdaptiveOffset(_MeanUnit):
    """Adaptive offset activation: max(0, x - b m) + c m, where m is the mean input of a unit.

    Source: Ye and others, 2020.

    Args:
        b, c: shares of the mean.
        num_parameters: 1 (one mean of everything), or the size of `channel_dim`.
        channel_dim: dimension of the channels; -1 for the units of a linear layer.
        momentum: weight of the newest batch in the running mean, which is used in evaluation.

    Raises:
        InputError: num_parameters is below 1, or momentum outside of (0, 1].
    """

    def __init__(
        self, b: float = 0.17, c: float = 0.17, num_parameters: int = 1, channel_dim: int = 1, momentum: float = 0.1
    ) -> None:
        super().__init__(num_parameters, channel_dim, momentum)
        self.b, self.c = b, c

    def respond(self, x: Tensor) -> Tensor:
        """The function of a tensor in float32 or float64."""
        m = self.average(x, torch.ones_like(x, dtype=torch.bool))
        return pos(x - self.b * m) + self.c * m


class MarginReLU(_MeanUnit):
    """max(x, m) with a margin m below 0: the mean negative response of a channel.

    Source: Heo and others, 2019.

    Args:
        m: the margin, a number or a tensor (num_parameters,), none above 0; gathered while training if not given.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels; -1 for the units of a linear layer.
        momentum: weight of the newest batch in the running mean, which is used in evaluation.

    Raises:
        InputError: a margin is above 0, there are not as many as channels, or momentum is outside of (0, 1].
    """

    def __init__(
        self, m: Any = None, num_parameters: int = 1, channel_dim: int = 1, momentum: float = 0.1
    ) -> None:  # fmt: skip
        super().__init__(num_parameters, channel_dim, momentum)
        self.gathers = m is None
        if m is not None:
            margin = torch.as_tensor(m, dtype=torch.get_default_dtype()).flatten()
            if margin.numel() not in (1, num_parameters) or not bool((margin <= 0).all()):
                raise InputError(f"m of Margin ReLU is a number up to 0, or {num_parameters} of them, got {m}")
            self.mean.copy_(margin.expand(num_parameters))

    def respond(self, x: Tensor) -> Tensor:
        """The function of a tensor in float32 or float64."""
        m = self.average(x, x < 0).detach() if self.gathers else self.spread(self.mean, x)
        return torch.maximum(x, m.to(x.dtype))


class ErrorSlope(ChannelUnit):
    """Leaky ReLU whose slope follows the error of the last epoch: a q, or a e^-q, where q is the mean squared error.

    Source: Hu and others, 2018.

    Args:
        decaying: whether the slope is a e^-q.
        a: slope at an error of 1, or of 0 if decaying.
        q: mean squared error before the first epoch.

    Raises:
        InputError: q is not a number from 0 on.
    """

    def __init__(self, decaying: bool, a: float = 0.01, q: float = 1.0) -> None:
        super().__init__()
        self.decaying, self.a = decaying, a
        self.q: Tensor
        self.register_buffer("q", torch.zeros(()))
        self.observe(q)

    def observe(self, q: float) -> None:
        """Set the mean squared error, after each epoch.

        Raises:
            InputError: it is not a number from 0 on.
        """
        if not 0 <= q < math.inf:
            raise InputError(f"the mean squared error is a number from 0 on, got {q}")
        self.q.fill_(q)

    def respond(self, x: Tensor) -> Tensor:
        """The function of a tensor in float32 or float64."""
        return leaky(x, self.a * (torch.exp(-self.q) if self.decaying else self.q))

    def extra_repr(self) -> str:
        """Slope and error."""
        return f"a={self.a:g}, q={float(self.q):g}, decaying={self.decaying}"
