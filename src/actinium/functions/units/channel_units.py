"""Base of functions whose shape has several trained or gathered numbers for each channel."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError

__all__ = ["ChannelUnit"]


class ChannelUnit(nn.Module, ABC):
    """A function with its own shape for each channel. Half precision is computed in float32 and given back as half.

    Args:
        num_parameters: 1 (one shape for all), or the size of `channel_dim`.
        channel_dim: dimension of the channels; -1 for the units of a linear layer.

    Raises:
        InputError: num_parameters is below 1.
    """

    def __init__(self, num_parameters: int = 1, channel_dim: int = 1) -> None:
        super().__init__()
        if num_parameters < 1:
            raise InputError(f"num_parameters is one or more, not {num_parameters}")
        self.num_parameters, self.channel_dim = num_parameters, channel_dim

    def forward(self, x: Tensor) -> Tensor:
        """The function of a tensor with channels, in the same shape.

        Raises:
            InputError: it is no floating-point tensor, or has another number of channels.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"{type(self).__name__} takes a floating-point tensor, not {what}")
        if x.dtype in (torch.float16, torch.bfloat16):
            return self.respond(x.float()).to(x.dtype)
        return self.respond(x)

    @abstractmethod
    def respond(self, x: Tensor) -> Tensor:
        """The function of a tensor in float32 or float64."""

    def spread(self, value: Tensor, x: Tensor) -> Tensor:
        """A value for each channel, (num_parameters,), in a shape that broadcasts with x."""
        if self.num_parameters == 1:
            return value.view(())
        if not -x.ndim <= self.channel_dim < x.ndim or x.shape[self.channel_dim] != self.num_parameters:
            raise InputError(
                f"{type(self).__name__} has parameters for {self.num_parameters} channels in dimension "
                f"{self.channel_dim}, which a tensor of shape {tuple(x.shape)} does not have"
            )
        shape = [1] * x.ndim
        shape[self.channel_dim] = self.num_parameters
        return value.view(shape)

    def rows(self, x: Tensor) -> Tensor:
        """The elements of each channel, (elements, num_parameters), of which statistics are taken."""
        self.spread(torch.empty(self.num_parameters, device="meta"), x)
        last = x if self.num_parameters == 1 else x.movedim(self.channel_dim, -1)
        return last.reshape(-1, self.num_parameters)

    def extra_repr(self) -> str:
        """Number and dimension of the channels."""
        return f"num_parameters={self.num_parameters}, channel_dim={self.channel_dim}"
