"""The concept atlas: what every prototype looks like, as patches of training images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.features.csr.boxes import overlapped_cells

__all__ = ["ConceptAtlas", "nearest_patches"]


@dataclass(frozen=True, eq=False)
class ConceptAtlas:
    """The patches nearest to every prototype.

    Attributes:
        image: (K, M, top) places of the images in the data, -1 where fewer have the concept.
        box: (K, M, top, 4) x0, y0, x1, y1 of the cell in pixels.
        similarity: (K, M, top) cosine, best first; NaN where there is no image.
    """

    image: Tensor
    box: Tensor
    similarity: Tensor

    def table(self, concepts: Sequence[str] | None = None) -> pd.DataFrame:
        """One row for each patch: concept, prototype, rank, image, x0, y0, x1, y1, similarity.

        Args:
            concepts: names of the concepts.
        """
        there = (self.image >= 0).nonzero()
        concept, prototype, rank = (there[:, i].numpy() for i in range(3))
        at = tuple(there.T)
        names = concept if concepts is None else np.array(list(concepts))[concept]
        columns = {"concept": names, "prototype": prototype, "rank": rank, "image": self.image[at].numpy()}
        columns |= {side: self.box[at][:, i].numpy() for i, side in enumerate(("x0", "y0", "x1", "y1"))}
        return pd.DataFrame(columns | {"similarity": self.similarity[at].numpy()})

    def patches(self, images: Tensor, concept: int, prototype: int) -> list[Tensor]:
        """Crops (c, height, width) of the patches of one prototype, best first.

        Args:
            images: those that the atlas was made of.
        """
        rows = zip(self.image[concept, prototype].tolist(), self.box[concept, prototype].tolist(), strict=True)
        return [images[i, :, round(y0) : round(y1), round(x0) : round(x1)] for i, (x0, y0, x1, y1) in rows if i >= 0]

    def share_inside(self, boxes: Any, size: tuple[int, int]) -> Tensor:
        """Share (K, M) of each prototype's patches that overlap one of some boxes, such as where a shortcut stands.

        Args:
            boxes: (m, 4) x0, y0, x1, y1 in pixels, of all images.
            size: height and width of the images.

        Raises:
            InputError: boxes that are empty or reach outside.
        """
        inside = overlapped_cells(boxes, size, size)
        there = self.image >= 0
        hit = torch.zeros_like(there)
        for place in there.nonzero().tolist():
            x0, y0, x1, y1 = self.box[tuple(place)].tolist()
            hit[tuple(place)] = bool(inside[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))].any())
        return hit.sum(-1) / there.sum(-1).clamp(min=1)


def nearest_patches(parts: Iterable[tuple[Tensor, Tensor, tuple[int, int]]], top: int = 5) -> ConceptAtlas:
    """Find each image's cell that is nearest to every prototype, and keep the best images.

    Args:
        parts: similarity maps (b, K, M, H, W), concepts (b, K) and the images' height and width, batch by batch.
        top: patches of each prototype.

    Raises:
        InputError: `top` is below 1.
    """
    if top < 1:
        raise InputError(f"expected top >= 1, got {top}")
    values, cells, grid, size = [], [], (1, 1), (1, 1)
    for maps, concepts, size in parts:  # noqa: B007 - all images are of one size
        grid = tuple(maps.shape[-2:])
        best = maps.flatten(-2).max(-1)
        values.append(best.values.masked_fill(concepts.to(maps)[:, :, None] == 0, -torch.inf).cpu())
        cells.append(best.indices.cpu())
    value, cell = torch.cat(values), torch.cat(cells)
    similarity, image = value.topk(min(top, len(value)), 0)
    chosen = cell.gather(0, image)
    down, across = size[0] / grid[0], size[1] / grid[1]
    x, y = (chosen % grid[1]).double(), (chosen // grid[1]).double()
    box = torch.stack([x * across, y * down, (x + 1) * across, (y + 1) * down], -1).permute(1, 2, 0, 3)
    absent = similarity.isinf()
    return ConceptAtlas(
        image.masked_fill(absent, -1).permute(1, 2, 0),
        box,
        similarity.masked_fill(absent, torch.nan).permute(1, 2, 0),
    )
