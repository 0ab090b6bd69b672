"""What a reducer is, and how a site tensor is laid out for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["Context", "Reducer", "check_width", "feature_rows", "pieces"]

# Rows are taken in pieces of about this many elements, so that float64 copies stay small.
PIECE = 1 << 19


@runtime_checkable
class Reducer(Protocol):
    """What `record(..., reduce=...)` needs: `update` with a batch of values, `result` at the end."""

    def update(self, values: Tensor) -> None:
        """Take in `values` (n, features)."""

    def result(self) -> Any:
        """The statistic over everything taken in so far."""


@dataclass(frozen=True)
class Context:
    """Where the values of a site tensor come from.

    Attributes:
        dims: names of the tensor's dimensions.
        mask: (batch, pos) bool, False at padding; None when every position is real.
        tokens: (batch, pos) token ids, or None.
        rows: (batch,) number of each row in the whole input.
        site: name of the site.
    """

    dims: tuple[str, ...]
    mask: Tensor | None
    tokens: Tensor | None
    rows: Tensor
    site: str


def feature_rows(values: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
    """Lay a site tensor out as one row per real position.

    Features are the last dimension (`head` and `d_head` merged), or `channel` for images.

    Args:
        values: tensor with the dimensions `context.dims`.
        context: where the values come from.

    Returns:
        values (n, features); batch index (n,); position (n,), counted along the remaining dimensions as laid
        out.

    Raises:
        InputError: the tensor has no `batch` dimension or does not fit `dims`.
    """
    dims = list(context.dims)
    if len(dims) != values.ndim or not dims or dims[0] != "batch":
        raise InputError(
            f"{context.site}: expected dimensions {tuple(dims)} with batch first, got {tuple(values.shape)}"
        )
    if values.ndim == 1:
        return (
            values[:, None],
            torch.arange(len(values), device=values.device),
            torch.zeros_like(values).long(),
        )
    if "channel" in dims:
        values = values.movedim(dims.index("channel"), -1)
    elif dims[-2:] in (["head", "d_head"], ["kv_head", "d_head"]):
        values = values.flatten(-2)
    batch, n_features = values.shape[0], values.shape[-1]
    flat = values.reshape(batch, -1, n_features)
    at = torch.arange(flat.shape[1], device=values.device).expand(batch, -1)
    which = torch.arange(batch, device=values.device)[:, None].expand_as(at)
    mask = context.mask
    if mask is not None and "pos" in dims and mask.shape == at.shape:
        keep = mask.to(values.device)
        return flat[keep], which[keep], at[keep]
    return flat.flatten(0, 1), which.flatten(), at.flatten()


def pieces(values: Tensor) -> list[Tensor]:
    """Float64 views of `values` (n, features), a bounded number of elements at a time."""
    if values.ndim != 2:
        raise InputError(f"a reducer takes (n, features), got shape {tuple(values.shape)}")
    if values.device.type == "mps":  # has no float64
        values = values.cpu()
    size = max(1, PIECE // max(1, values.shape[1]))
    return [values.detach()[i : i + size] for i in range(0, len(values), size)]


def check_width(have: int | None, values: Tensor) -> None:
    """Refuse a batch whose number of features is not `have`."""
    if have is not None and values.shape[1] != have:
        raise InputError(f"expected {have} features as in the first batch, got {values.shape[1]}")
