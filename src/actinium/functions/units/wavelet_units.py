"""Parametric ReLU plus a weighted sum of small triangles at fixed places: MeLU and GaLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.rectifiers import split, tent
from actinium.functions.stable import finite, neg
from actinium.functions.units.channel_units import ChannelUnit

__all__ = ["GaussianReLU", "MexicanReLU"]


class _WaveletReLU(ChannelUnit):
    """Base of the two: places, and the sum.

    The interval 0..2M is halved again and again; each part carries one wavelet that fills it, coarse ones first.
    """

    def __init__(self, k: int, m: float, slope: float, num_parameters: int, channel_dim: int) -> None:
        super().__init__(num_parameters, channel_dim)
        if k < 2:
            raise InputError(f"k is the number of trained values, two or more, not {k}")
        if not m > 0:
            raise InputError(f"m is half the length of the interval that the wavelets fill, above 0, not {m}")
        self.slope = nn.Parameter(torch.full((num_parameters,), slope))
        self.a = nn.Parameter(torch.zeros(k - 1, num_parameters))
        levels = [(level, part) for level in range((k - 1).bit_length()) for part in range(2**level)][: k - 1]
        self.parts = [(2 * m * part / 2**level, 2 * m / 2**level) for level, part in levels]

    def wavelet(self, x: Tensor, start: float, length: float) -> Tensor:
        """The wavelet that fills `start`..`start + length`."""
        middle = start + length / 2
        return tent(x - middle, length / 2)

    def respond(self, x: Tensor) -> Tensor:
        """The function of a tensor in float32 or float64."""
        y = split(x, x, self.spread(self.slope, x) * finite(x))
        for a, (start, length) in zip(self.a, self.parts, strict=True):
            y = y + self.spread(a, x) * self.wavelet(x, start, length)
        return y


class MexicanReLU(_WaveletReLU):
    """MeLU: PReLU(x) + sum_j a_j max(0, c_j - |x - b_j|), j = 1..k-1, where the triangles halve 0..2m again and again.

    It starts as ReLU. k = 4 and k = 8 are the published sizes; m is twice the largest input that is expected.

    Source: Maguolo, Nanni and Ghidoni, 2021.

    Args:
        k: number of trained values for each channel: the slope on the left and k - 1 heights.
        m: half the length of the interval that the triangles fill.
        slope: initial slope on the left.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels; -1 for the units of a linear layer.

    Raises:
        InputError: k is below 2, or m not above 0.
    """

    def __init__(
        self, k: int = 4, m: float = 2.0, slope: float = 0.0, num_parameters: int = 1, channel_dim: int = 1
    ) -> None:  # fmt: skip
        super().__init__(k, m, slope, num_parameters, channel_dim)


class GaussianReLU(_WaveletReLU):
    """GaLU: as MeLU, each wavelet a triangle c - |x - b| followed by one below 0, |x - b - 2c| - c.

    It starts as ReLU.

    Source: Nanni and others, 2020.

    Args:
        k: number of trained values for each channel: the slope on the left and k - 1 heights.
        m: half the length of the interval that the wavelets fill.
        slope: initial slope on the left.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels; -1 for the units of a linear layer.

    Raises:
        InputError: k is below 2, or m not above 0.
    """

    def __init__(
        self, k: int = 4, m: float = 2.0, slope: float = 0.0, num_parameters: int = 1, channel_dim: int = 1
    ) -> None:  # fmt: skip
        super().__init__(k, m, slope, num_parameters, channel_dim)

    def wavelet(self, x: Tensor, start: float, length: float) -> Tensor:
        """The wavelet that fills `start`..`start + length`."""
        c = length / 4
        b = start + c
        return tent(x - b, c) + neg((x - b - 2 * c).abs() - c)
