"""Square crops of images, and what images must be for them."""

from __future__ import annotations

import torch
from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["check_images", "crops_of"]


def crops_of(images: Tensor, patch_size: int, stride: int | None = None) -> tuple[Tensor, Tensor]:
    """Square crops of square images, row by row.

    Args:
        images: (n, channel, size, size).
        patch_size: height and width of a crop in pixels.
        stride: pixels from one crop to the next; floor(0.8 patch_size) by default.

    Returns:
        (k, channel, patch_size, patch_size), and (k, 3) int64: image, first row and first column of each.

    Raises:
        InputError: images are not square, not finite or absent, or smaller than a crop.
    """
    check_images(images)
    stride = max(1, int(0.8 * patch_size)) if stride is None else stride
    size = images.shape[-1]
    if not 1 <= patch_size <= size or stride < 1:
        raise InputError(f"crops of {patch_size} pixels every {stride} do not fit images of {size}")
    cut_ = images.unfold(2, patch_size, stride).unfold(3, patch_size, stride)
    n, channels, rows, columns = cut_.shape[:4]
    crops = cut_.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, patch_size, patch_size)
    where = torch.cartesian_prod(torch.arange(n), stride * torch.arange(rows), stride * torch.arange(columns))
    return crops, where


def check_images(images: Tensor) -> None:
    """Refuse what are no images (n, channel, size, size).

    Raises:
        InputError: another shape or type, no images, or values that are not finite.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not len(images) or not images.is_floating_point():
        got = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"expected images (n, channel, size, size) of floating-point numbers, got {got}")
    if images.shape[2] != images.shape[3]:
        raise InputError(f"images must be square, got {images.shape[2]} x {images.shape[3]} pixels")
    if not bool(torch.isfinite(images).all()):
        raise InputError("the images hold NaN or infinite values")
