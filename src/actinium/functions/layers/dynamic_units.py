"""Functions of channels whose parameters are computed from the input: Meta-ACON and dynamic ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError

__all__ = ["DynamicReLU", "MetaACON"]


def _check_sizes(channels: int, reduction: int, of: str) -> int:
    if channels < 1 or reduction < 1:
        raise InputError(
            f"{of} takes one or more channels and a reduction of one or more, not {channels} and {reduction}"
        )
    return max(1, channels // reduction)


def _means(x: Tensor, channels: int, of: str) -> Tensor:
    """Means of (batch, channels, ...) over all positions, (batch, channels)."""
    if x.ndim < 2 or x.shape[1] != channels or not x.is_floating_point():
        raise InputError(
            f"this {of} takes a floating-point tensor (batch, {channels}, ...), not {x.dtype} of shape {tuple(x.shape)}"
        )
    return x.flatten(2).mean(2) if x.ndim > 2 else x


def _spread(value: Tensor, x: Tensor) -> Tensor:
    """(..., channels) as it broadcasts with (batch, channels, ...)."""
    return value.view(*value.shape, *[1] * (x.ndim - 2))


class MetaACON(nn.Module):
    """(p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x, with a switch beta that each channel computes from all means.

    beta = sigmoid(W2 W1 mean(x)): near 0 the channel is linear, near 1 it is a smooth maximum of p1 x and p2 x.

    Args:
        channels: size of dimension 1.
        reduction: the layer between has channels // reduction units, at least one.
        p1, p2: initial values for every channel.

    Raises:
        InputError: a size is less than one, or the input has other channels.

    Source: Ma et al., 2021, "Activate or Not", arXiv 2009.04759. Their code draws p1 and p2 from a normal distribution
    and normalises over the batch between the two layers; neither is in the paper's formula.
    """

    def __init__(self, channels: int, reduction: int = 16, p1: float = 1.0, p2: float = 0.0) -> None:
        super().__init__()
        hidden = _check_sizes(channels, reduction, "Meta-ACON")
        self.channels = channels
        self.squeeze, self.excite = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.p1, self.p2 = nn.Parameter(torch.full((channels,), p1)), nn.Parameter(torch.full((channels,), p2))

    def forward(self, x: Tensor) -> Tensor:
        """The function of (batch, channels, ...)."""
        beta = torch.sigmoid(self.excite(self.squeeze(_means(x, self.channels, "Meta-ACON"))))
        difference = _spread(self.p1 - self.p2, x) * x
        return difference * torch.sigmoid(_spread(beta, x) * difference) + _spread(self.p2, x) * x


class DynamicReLU(nn.Module):
    """max_k (a_k x + b_k) with slopes and offsets that each channel computes from the means of all (DY-ReLU-B).

    Slopes are (1, 0, ..., 0) plus numbers between -1 and 1, offsets numbers between -0.5 and 0.5, both from two layers
    with a ReLU between them.

    Args:
        channels: size of dimension 1.
        reduction: the layer between has channels // reduction units, at least one.
        pieces: K.

    Raises:
        InputError: a size is less than one, or the input has other channels.

    Source: Chen et al., 2020, "Dynamic ReLU", arXiv 2003.10027, equations 3 and 4.
    """

    def __init__(self, channels: int, reduction: int = 4, pieces: int = 2) -> None:
        super().__init__()
        hidden = _check_sizes(channels, reduction, "dynamic ReLU")
        if pieces < 1:
            raise InputError(f"dynamic ReLU is the maximum of one or more lines, not of {pieces}")
        self.channels, self.pieces = channels, pieces
        self.squeeze, self.excite = nn.Linear(channels, hidden), nn.Linear(hidden, 2 * pieces * channels)
        first = torch.zeros(pieces, 1)
        first[0] = 1.0
        self.register_buffer("first", first, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The function of (batch, channels, ...)."""
        means = _means(x, self.channels, "dynamic ReLU")
        moved = 2 * torch.sigmoid(self.excite(torch.relu(self.squeeze(means)))) - 1
        slopes, offsets = moved.view(len(x), 2, self.pieces, self.channels).unbind(1)
        lines = _spread(self.first + slopes, x) * x.unsqueeze(1) + _spread(0.5 * offsets, x)
        return lines.amax(1)
