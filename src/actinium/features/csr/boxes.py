"""Boxes that a user draws, as importance of the cells of a feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["box_masks", "importance_map", "importance_maps", "overlapped_cells"]

Size = tuple[int, int]


def overlapped_cells(boxes: Any, grid: Size, size: Size) -> Tensor:
    """Cells (H, W) of a map that any of some boxes overlaps.

    Args:
        boxes: (n, 4) x0, y0, x1, y1 in pixels; x1 and y1 are the ends, so (0, 0, width, height) is the whole image.
        grid: height and width of the map in cells.
        size: height and width of the image in pixels.

    Raises:
        InputError: boxes that are empty or reach outside the image.
    """
    corners = torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    height, width = size
    for x0, y0, x1, y1 in corners.tolist():
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise InputError(
                f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}): expected x0 < x1 and y0 < y1 within the image of {width} x "
                f"{height} pixels"
            )
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    down, across = height / grid[0], width / grid[1]
    y = (corners[:, 1, None] < (rows + 1) * down) & (corners[:, 3, None] > rows * down)
    x = (corners[:, 0, None] < (columns + 1) * across) & (corners[:, 2, None] > columns * across)
    return (y[:, :, None] & x[:, None, :]).any(0)


def importance_map(positive: Any, negative: Any, grid: Size, size: Size, outside: float = 0.0) -> Tensor:
    """Importance A (H, W): 1 inside positive boxes and `outside` elsewhere, then 0 inside negative ones.

    Args:
        positive, negative: boxes, see `overlapped_cells`; without positive ones all cells count as inside.
        grid, size: see `overlapped_cells`.
        outside: from 0 (only what lies inside counts) to 1.

    Raises:
        InputError: see `overlapped_cells`; `outside` is not from 0 to 1.
    """
    if not 0 <= outside <= 1:
        raise InputError(f"expected outside from 0 to 1, got {outside}")
    inside = overlapped_cells(positive, grid, size) if len(positive) else torch.ones(grid, dtype=torch.bool)
    weights = torch.where(inside, 1.0, float(outside))
    return weights.masked_fill(overlapped_cells(negative, grid, size), 0.0) if len(negative) else weights


def importance_maps(positive: Any, negative: Any, n: int, grid: Size, size: Size, outside: float = 0.0) -> Tensor:
    """Importance (n, H, W) of each image's cells.

    Args:
        positive, negative: boxes (m, 4) of all images, a list of n of these (empty where there are none), or None.
        n: number of images.
        grid, size, outside: see `importance_map`.

    Raises:
        InputError: see `importance_map`; lists for another number of images.
    """
    pairs = zip(_boxes_per_image(positive, n), _boxes_per_image(negative, n), strict=True)
    return torch.stack([importance_map(*pair, grid, size, outside) for pair in pairs])


def _boxes_per_image(boxes: Any, n: int) -> list[Any]:
    if boxes is None:
        return [()] * n
    if isinstance(boxes, Sequence) and len(boxes) and all(_is_list_of_boxes(b) for b in boxes):
        if len(boxes) != n:
            raise InputError(f"expected boxes for all of {n} images, or one list for all, got {len(boxes)} lists")
        return list(boxes)
    shape = tuple(torch.as_tensor(boxes).shape)
    if len(boxes) and shape[1:] != (4,):
        raise InputError(f"expected boxes (m, 4) as x0, y0, x1, y1, got shape {shape}")
    return [boxes] * n


def _is_list_of_boxes(value: Any) -> bool:
    return np.ndim(value) > 0 and (len(value) == 0 or np.ndim(value[0]) > 0)


def box_masks(boxes: Sequence[Sequence[float]], shape: tuple[int, int, int, int]) -> Tensor:
    """Annotated regions (n, K, height, width) from rows (image, concept, x0, y0, x1, y1) in whole pixels.

    Raises:
        InputError: an image or concept that does not exist, or a box that is empty or reaches outside.
    """
    out = torch.zeros(shape, dtype=torch.bool)
    for image, concept, *corners in boxes:
        if not (0 <= int(image) < shape[0] and 0 <= int(concept) < shape[1]):
            raise InputError(f"no image {image} with concept {concept}: there are {shape[0]} and {shape[1]}")
        out[int(image), int(concept)] |= overlapped_cells([corners], shape[2:], shape[2:])
    return out
