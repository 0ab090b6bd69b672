"""Which tokens of a pair of texts are read for a steering vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.probes.positions import as_places

__all__ = ["suffix_masks", "text_places"]


def text_places(model: Model | None, positive: Any, negative: Any, position: Any) -> tuple[Any, Any]:
    """The place to read in positive and in negative texts.

    Raises:
        InputError: it is no place, or "suffix" is asked for without texts in pairs.
    """
    if not (isinstance(position, str) and position == "suffix"):
        as_places(position)
        return position, position
    if model is None or negative is None:
        raise InputError("position='suffix' needs a model and pairs of texts")
    return suffix_masks(model, positive, negative)


def suffix_masks(model: Model, positive: Any, negative: Any) -> tuple[Tensor, Tensor]:
    """For each text of a pair its tokens behind those that both begin with alike: bool (n, pos), (n, pos).

    Raises:
        InputError: numbers of texts differ, or a text has no token of its own.
    """
    sides = [model.prepare(texts).tokens for texts in (positive, negative)]
    if any(s is None for s in sides):
        raise InputError("position='suffix' needs texts or tokens")
    up, down = (s for s in sides if s is not None)
    if len(up) != len(down):
        raise InputError(f"{len(up)} positive and {len(down)} negative texts are no pairs")
    masks = [torch.zeros_like(side.mask) for side in (up, down)]
    for row in range(len(up)):
        ids = [side.ids[row][side.mask[row]].tolist() for side in (up, down)]
        shared = 0
        while shared < min(map(len, ids)) and ids[0][shared] == ids[1][shared]:
            shared += 1
        for side, own, mask in zip((up, down), ids, masks, strict=True):
            if shared == len(own):
                raise InputError(f"pair {row}: a text has no tokens that the other one does not begin with")
            columns = side.mask[row].nonzero()[:, 0]
            mask[row, columns[shared:]] = True
    return masks[0], masks[1]
