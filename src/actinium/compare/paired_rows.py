"""Two representations of the same items, row by row, refused early where they cannot be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["as_matrix", "paired"]


def as_matrix(values: Any, what: str = "values") -> Tensor:
    """Tensors, arrays and stored activations as float64 rows (n, d).

    Raises:
        InputError: another number of dimensions, no rows, or values that are not finite.
    """
    given = values if isinstance(values, Tensor | list | tuple) else values[:]
    # A copy where an array has strides that tensors cannot have.
    given = torch.as_tensor(np.ascontiguousarray(given) if isinstance(given, np.ndarray) else given)
    if given.ndim != 2 or not given.numel():
        raise InputError(f"{what}: expected rows (n, d), got shape {tuple(given.shape)}")
    rows = given.detach().double()
    if not bool(torch.isfinite(rows).all()):
        raise InputError(f"{what} hold NaN or infinite values")
    return rows


def paired(x: Any, y: Any, least: int = 2) -> tuple[Tensor, Tensor]:
    """Both as float64 rows (n, d1) and (n, d2) of the same n items.

    Raises:
        InputError: different numbers of rows, fewer than `least`, rows that are all alike in one, or values that are
            not finite.
    """
    one, other = as_matrix(x, "the first representation"), as_matrix(y, "the second representation")
    if len(one) != len(other) or len(one) < least:
        raise InputError(
            f"expected as many rows in both, at least {least}, got {tuple(one.shape)} and {tuple(other.shape)}"
        )
    for rows, what in ((one, "first"), (other, "second")):
        if bool((rows == rows[0]).all()):
            raise InputError(f"the {what} representation is the same at every row")
    return one, other.to(one.device)
