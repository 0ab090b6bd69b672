"""Piecewise linear functions whose pieces are trained: APL and PWLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.stable import finite, pos
from actinium.functions.units.channel_units import ChannelUnit

__all__ = ["AdaptivePiecewiseLinear", "PiecewiseLinearUnit"]


class AdaptivePiecewiseLinear(ChannelUnit):
    """APL: max(0, x) + sum_s a_s max(0, b_s - x), with trained slopes a and hinges b.

    It starts as ReLU, with hinges that are spread evenly over -1..1.

    Source: Agostinelli and others, 2014, equation 1.

    Args:
        hinges: number S of hinges.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels; -1 for the units of a linear layer.

    Raises:
        InputError: there is no hinge.
    """

    def __init__(self, hinges: int = 2, num_parameters: int = 1, channel_dim: int = 1) -> None:
        super().__init__(num_parameters, channel_dim)
        if hinges < 1:
            raise InputError(f"APL has one hinge or more, not {hinges}")
        places = (2 * torch.arange(hinges) + 1) / hinges - 1
        self.a = nn.Parameter(torch.zeros(hinges, num_parameters))
        self.b = nn.Parameter(places[:, None].repeat(1, num_parameters))

    def respond(self, x: Tensor) -> Tensor:
        """The function of a tensor in float32 or float64."""
        y = pos(x)
        for a, b in zip(self.a, self.b, strict=True):
            y = y + self.spread(a, x) * pos(self.spread(b, x) - finite(x))
        return y


class PiecewiseLinearUnit(ChannelUnit):
    """PWLU: linear between equally spaced knots of an interval, with a slope of its own on either side of it.

    It starts as ReLU on `left`..`right`. While training it gathers mean and standard deviation of its inputs, until
    `align` puts the interval three standard deviations around the mean; train a few epochs before that.

    Source: Zhou and others, 2021.

    Args:
        segments: number N of segments.
        left, right: the interval before it is aligned.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels; -1 for the units of a linear layer.
        momentum: weight of the newest batch in the running statistics.

    Raises:
        InputError: there is no segment, the interval is empty, or momentum is outside of (0, 1].
    """

    def __init__(
        self,
        segments: int = 16,
        left: float = -3.0,
        right: float = 3.0,
        num_parameters: int = 1,
        channel_dim: int = 1,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        if segments < 1 or not left < right:
            raise InputError(f"PWLU has a segment or more and left < right; got {segments}, {left} and {right}")
        if not 0 < momentum <= 1:
            raise InputError(f"momentum lies between 0 and 1, got {momentum}")
        self.segments, self.momentum = segments, momentum
        self.bounds: Tensor
        self.moments: Tensor
        self.state: Tensor
        self.register_buffer("bounds", torch.tensor([[left], [right]]).repeat(1, num_parameters))
        self.register_buffer("moments", torch.zeros(2, num_parameters))
        # Whether inputs were seen, and whether the interval is aligned.
        self.register_buffer("state", torch.zeros(2, dtype=torch.bool))
        self.values = nn.Parameter(torch.empty(segments + 1, num_parameters))
        self.slopes = nn.Parameter(torch.empty(2, num_parameters))
        self._become_relu()

    @property
    def aligned(self) -> bool:
        """Whether the interval has been fitted to the inputs."""
        return bool(self.state[1])

    @torch.no_grad()
    def align(self, width: float = 3.0) -> None:
        """Put the interval around the inputs that were seen while training, and start from ReLU there.

        Args:
            width: half of the interval in standard deviations.

        Raises:
            InputError: nothing was seen, or some channel's inputs were all equal.
        """
        mean, variance = self.moments[0], self.moments[1] - self.moments[0].square()
        if not self.state[0] or bool((variance <= 0).any()):
            raise InputError("align needs inputs that differ from each other; train a few batches first")
        half = width * variance.sqrt()
        self.bounds.copy_(torch.stack([mean - half, mean + half]))
        self.state[1] = True
        self._become_relu()

    @torch.no_grad()
    def _become_relu(self) -> None:
        left, right = self.bounds
        share = torch.linspace(0, 1, self.segments + 1)[:, None].to(left)
        self.values.copy_(pos(left + share * (right - left)))
        self.slopes.copy_((self.bounds > 0).to(left))

    @torch.no_grad()
    def _gather(self, x: Tensor) -> None:
        rows = self.rows(x)
        if not len(rows):
            return
        now = torch.stack([rows.mean(0), rows.square().mean(0)]).to(self.moments.dtype)
        self.moments.copy_(torch.lerp(self.moments, now, self.momentum) if self.state[0] else now)
        self.state[0] = True

    def respond(self, x: Tensor) -> Tensor:
        """The function of a tensor in float32 or float64."""
        left, right = (self.spread(b, x) for b in self.bounds)
        if self.training and not self.aligned:
            self._gather(x)
        inside = torch.minimum(torch.maximum(x, left.to(x.dtype)), right.to(x.dtype))
        place = (inside - left) * (self.segments / (right - left))
        index = place.detach().nan_to_num(0.0).floor().clamp(0, self.segments - 1).long()
        channel = self.spread(torch.arange(self.num_parameters, device=x.device), x)
        at = index * self.num_parameters + channel
        flat = self.values.flatten()
        low, high = flat[at], flat[at + self.num_parameters]
        below, above = (self.spread(s, x) for s in self.slopes)
        outside = torch.where(x < left, below, above) * finite(x - inside)
        return low + (high - low) * (place - index) + outside
