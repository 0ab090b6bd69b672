"""What CSR is fitted to: images with concepts and classes, as tensors or in batches, checked before work starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError

__all__ = ["Data", "batches", "check_images", "feature_map"]

Data = tuple[Tensor, ...] | list[Tensor] | Iterable[tuple[Tensor, ...]]
"""Tensors (images, concepts, classes), or what yields batches of them each time it is gone through."""


def batches(
    data: Data, batch_size: int, n_concepts: int, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Batches of images (b, c, h, w), concepts (b, K) float32 and classes, shuffled if there is a generator.

    Raises:
        InputError: no images; NaN; concepts that are not 0 or 1, or of another number; rows that do not fit.
    """
    parts: Iterable[Any] = data
    if isinstance(data, list | tuple) and data and all(isinstance(part, Tensor) for part in data):
        if len({len(part) for part in data}) > 1:
            raise InputError(f"images, concepts and classes are of different number: {[len(p) for p in data]}")
        n = len(data[0])
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        parts = (tuple(part[rows] for part in data) for rows in order.split(batch_size))
    some = False
    for number, batch in enumerate(parts):
        if not isinstance(batch, list | tuple) or len(batch) < 2:
            raise InputError("expected batches (images, concepts) or (images, concepts, classes)")
        images, concepts = check_images(batch[0]), torch.as_tensor(batch[1])
        if concepts.shape != (len(images), n_concepts):
            raise InputError(f"expected concepts ({len(images)}, {n_concepts}), got {tuple(concepts.shape)}")
        if not bool(((concepts == 0) | (concepts == 1)).all()):
            raise InputError(f"batch {number}: concepts are 0 or 1; compare graded ones with a threshold first")
        some = True
        yield images, concepts.float(), torch.as_tensor(batch[2]) if len(batch) > 2 else None
    if not some:
        raise InputError("there are no images (an iterator that was gone through once is empty; give a loader)")


def check_images(images: Any) -> Tensor:
    """Images (b, c, h, w).

    Raises:
        InputError: another shape, none, or NaN.
    """
    x = torch.as_tensor(images)
    if x.ndim == 4 and not len(x):
        raise InputError("there are no images")
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"expected float images (b, channel, height, width), got {x.dtype} {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise InputError("the images hold NaN or infinite values")
    return x


def feature_map(backbone: nn.Module, images: Tensor) -> Tensor:
    """What the backbone gives for images (b, c, h, w): features (b, d, H, W).

    Raises:
        InputError: it gives something else, or a map of one cell.
    """
    parameter = next(backbone.parameters(), None)
    out = backbone(images if parameter is None else images.to(parameter.device, parameter.dtype))
    if not isinstance(out, Tensor) or out.ndim != 4:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(f"the backbone must give a feature map (b, d, H, W), got {shape}")
    if out.shape[-2:] == (1, 1):
        raise InputError(
            "the backbone gives a map of 1 x 1 cells, in which no concept has a place; cut it before pooling"
        )
    return out
