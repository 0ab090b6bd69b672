"""Uniform quantisation and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["round_to_nearest"]


def round_to_nearest(
    values: Tensor, bits: int, dims: int | Sequence[int] = -1, *, symmetric: bool = True, clip: float = 1.0
) -> Tensor:
    """Uniform quantisation and back: round(x / s) * s with s = max|x| / (2^(bits-1) - 1).

    Args:
        values: a weight or an activation.
        bits: from 2 to 16.
        dims: the dimensions that share a scale s; the others have one each.
        symmetric: if not, s = (max - min) / (2^bits - 1), where the range is widened to hold 0, which stays 0.
        clip: share of the range that is kept; values beyond it are moved to its edge.

    Returns:
        same shape and type.

    Raises:
        InputError: bits out of range, or clip outside (0, 1].

    Source: Jacob et al., 2018, section 2.
    """
    if not 2 <= bits <= 16:
        raise InputError(f"bits must be from 2 to 16, got {bits}")
    if not 0 < clip <= 1:
        raise InputError(f"clip must be above 0 and at most 1, got {clip}")
    x, over = values.float(), [dims] if isinstance(dims, int) else list(dims)
    if symmetric:
        levels = 2 ** (bits - 1) - 1
        low, high, span = -levels, levels, x.abs().amax(over, keepdim=True) * clip / levels
    else:
        top = x.amax(over, keepdim=True).clamp_min(0) * clip
        bottom = x.amin(over, keepdim=True).clamp_max(0) * clip
        low, high, span = 0, 2**bits - 1, (top - bottom) / (2**bits - 1)
    scale = torch.where(span > 0, span, 1.0)
    zero = 0 if symmetric else (-bottom / scale).round()
    return ((x / scale).round() + zero).clamp(low, high).sub(zero).mul(scale).to(values.dtype)
