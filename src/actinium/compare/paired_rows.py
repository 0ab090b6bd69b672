"""Two representations of the same items, row by row, refused early where they cannot be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.rows import as_rows

__all__ = ["paired"]


def paired(x: Any, y: Any, least: int = 2) -> tuple[Tensor, Tensor]:
    """Both as float64 rows (n, d1) and (n, d2) of the same n items.

    Raises:
        InputError: different numbers of rows, fewer than `least`, rows that are all alike in one, or values that are
            not finite.
    """
    given = {"the first representation": x, "the second representation": y}
    one, other = (as_rows(rows, what, flat=False, dtype=torch.float64) for what, rows in given.items())
    if len(one) != len(other) or len(one) < least:
        raise InputError(
            f"expected as many rows in both, at least {least}, got {tuple(one.shape)} and {tuple(other.shape)}"
        )
    for rows, what in ((one, "first"), (other, "second")):
        if bool((rows == rows[0]).all()):
            raise InputError(f"the {what} representation is the same at every row")
    return one, other.to(one.device)
