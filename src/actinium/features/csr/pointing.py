"""The pointing game: does the place where a map is largest lie on what it should show?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.provenance import provenance
from actinium.core.result import Result

__all__ = ["pointing_game"]


def pointing_game(
    maps: Tensor, regions: Tensor, *, concepts: Sequence[str] | None = None, tolerance: int = 0
) -> Result:
    """Share of images in which a concept's map is largest on the concept.

    Args:
        maps: (n, K, H, W), of any resolution; the middle of the largest cell is the point.
        regions: (n, K, height, width) bool, annotated pixels; images without any of a concept are left out for it.
            For boxes see `box_masks`.
        concepts: names of the concepts.
        tolerance: pixels by which a point may miss in each direction.

    Returns:
        by concept: `hits` (share, NaN without annotations), `images` with annotations, and `chance`, the mean share
        of the pixels that are annotated; `mean` hits over concepts.

    Raises:
        InputError: shapes that do not fit, a map that holds NaN, or no annotation at all.

    Source: Zhang et al., 2016, Top-down neural attention by excitation backprop (15 pixels of tolerance there).
    """
    if maps.ndim != 4 or regions.ndim != 4 or maps.shape[:2] != regions.shape[:2] or regions.dtype != torch.bool:
        raise InputError(
            f"expected maps (n, K, H, W) and bool regions (n, K, height, width), got {tuple(maps.shape)} and "
            f"{regions.dtype} {tuple(regions.shape)}"
        )
    if not bool(torch.isfinite(maps).all()) or tolerance < 0:
        raise InputError("the maps hold NaN or infinite values, or the tolerance is negative")
    there = regions.any(3).any(2)
    if not bool(there.any()):
        raise InputError("no image has an annotated region")
    height, width = regions.shape[2:]
    rows, columns = maps.shape[2:]
    best = maps.flatten(2).argmax(-1)
    y = ((best // columns + 0.5) * height / rows).long().clamp(max=height - 1)
    x = ((best % columns + 0.5) * width / columns).long().clamp(max=width - 1)
    wide = 2 * tolerance + 1
    near = torch.nn.functional.max_pool2d(regions.float(), wide, 1, tolerance) > 0 if tolerance else regions
    image, concept = torch.meshgrid(*(torch.arange(n) for n in maps.shape[:2]), indexing="ij")
    hit = near.cpu()[image, concept, y.cpu(), x.cpu()] & there.cpu()
    count = there.sum(0).cpu()
    share = torch.where(count > 0, hit.sum(0) / count.clamp(min=1), torch.nan)
    covered = (regions.double().mean((2, 3)) * there).sum(0).cpu()
    names = [str(k) for k in range(maps.shape[1])] if concepts is None else list(concepts)
    if len(names) != maps.shape[1]:
        raise InputError(f"expected {maps.shape[1]} names of concepts, got {len(names)}")
    data = xr.Dataset(
        {
            "hits": ("concept", share.double().numpy()),
            "images": ("concept", count.numpy()),
            "chance": ("concept", torch.where(count > 0, covered / count.clamp(min=1), torch.nan).numpy()),
            "mean": float(np.nanmean(share.numpy())),
        },
        {"concept": names},
        {"plot": {"kind": "bar", "variables": ["hits", "chance"]}},
    )
    return Result(
        data, "pointing_game", "csr-concept-prototypes", provenance(inputs=[maps, regions], tolerance=tolerance)
    )
