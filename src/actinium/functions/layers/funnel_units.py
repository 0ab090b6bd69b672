"""The larger of a pixel and a weighted sum around it: funnel ReLU and its variant without normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError

__all__ = ["FunnelReLU", "SpatialMax"]


class _Funnel(nn.Module):
    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        if channels < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(
                f"{type(self).__name__} takes one or more channels and an odd kernel size, "
                f"not {channels} and {kernel_size}"
            )
        self.channels, self.kernel_size = channels, kernel_size
        self.around = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.channels or not x.is_floating_point():
            raise InputError(
                f"{type(self).__name__} takes a floating-point tensor (batch, {self.channels}, height, width), not "
                f"{x.dtype} of shape {tuple(x.shape)}"
            )


class FunnelReLU(_Funnel):
    """max(x, T(x)), T a convolution of each channel by itself followed by batch normalisation.

    Args:
        channels: size of dimension 1.
        kernel_size: width of the convolution, odd.

    Raises:
        InputError: the sizes are not such, or the input is no batch of images with these channels.

    Source: Ma et al., 2020, "Funnel Activation for Visual Recognition", arXiv 2007.11824, equations 2 and 3.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__(channels, kernel_size)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The function of (batch, channels, height, width)."""
        self._check(x)
        return torch.maximum(x, self.norm(self.around(x)))


class SpatialMax(_Funnel):
    """max(x, T(x)), T a convolution of each channel by itself (SCAA, spatial context-aware activation).

    Args:
        channels: size of dimension 1.
        kernel_size: width of the convolution, odd.

    Raises:
        InputError: the sizes are not such, or the input is no batch of images with these channels.

    Source: Kunc and Kléma, 2024, arXiv 2402.09092.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__(channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """The function of (batch, channels, height, width)."""
        self._check(x)
        return torch.maximum(x, self.around(x))
