"""How alike two images look: the structural similarity index, with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from actinium.core.errors import InputError

__all__ = ["structural_similarity"]

K1, K2 = 0.01, 0.03
"""Constants that keep the quotients finite, as in Wang et al. 2004."""


def structural_similarity(
    x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5, data_range: float = 1.0
) -> Tensor:
    """Mean structural similarity (n,) of pairs of images, 1 for equal ones.

    Means, variances and covariances are weighted by a Gaussian window; places where it would leave the image are left
    out, and channels are averaged.

    Args:
        x, y: images (n, channel, height, width) of one shape.
        window: height and width of the window in pixels, an odd number; images that are smaller take the largest odd
            one that fits.
        sigma: standard deviation of the window in pixels.
        data_range: highest minus lowest possible value.

    Raises:
        InputError: shapes differ, the window is even, or a number is not positive.

    Source: Wang, Bovik, Sheikh and Simoncelli, 2004, equation 13.
    """
    if x.shape != y.shape or x.ndim != 4:
        raise InputError(
            f"pairs of images have one shape (n, channel, height, width): {tuple(x.shape)}, {tuple(y.shape)}"
        )
    if window < 1 or window % 2 == 0 or not min(sigma, data_range) > 0:
        raise InputError(f"a window is odd, sigma and data_range are positive, not {window}, {sigma}, {data_range}")
    least = min(x.shape[2:])
    window = min(window, least if least % 2 else least - 1)
    channels = x.shape[1]
    places = torch.arange(window, dtype=x.dtype, device=x.device) - window // 2
    bell = torch.exp(-(places**2) / (2 * sigma**2))
    bell = bell / bell.sum()
    kernel = (bell[:, None] * bell[None, :]).expand(channels, 1, -1, -1)

    def local(values: Tensor) -> Tensor:
        return functional.conv2d(values, kernel, groups=channels)

    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    cov = local(x * y) - mean_x * mean_y
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    same = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return same.flatten(1).mean(1)
