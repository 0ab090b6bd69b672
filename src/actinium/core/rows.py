"""Activations as examples (n, …) and as rows (n, d): brought to tensors, and refused early where they cannot work."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["as_examples", "as_rows"]


def as_rows(
    values: Any,
    what: str = "activations",
    width: int | None = None,
    *,
    flat: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Tensors, arrays, lists, recorded and stored activations as rows (n, d), where they are and without graph.

    Args:
        values: (n, d), or (…, d).
        what: what they are called in messages.
        width: the d that is expected, None for any.
        flat: lay what has more dimensions out as rows; else it is refused.
        dtype: of the rows; by default float64 where a tensor or an array holds it, and float32.

    Raises:
        InputError: no numbers, fewer than two dimensions, no rows, another width, or values that are not finite.
    """
    given = _numbers(values, what, dtype)
    deep = given.ndim > 2 and not flat
    if given.ndim < 2 or deep or not given.numel():
        hint = "; choose one position of each text" if deep else ""
        raise InputError(f"{what}: expected rows (n, d), got shape {tuple(given.shape)}{hint}")
    rows = given.flatten(0, -2)
    if width is not None and rows.shape[1] != width:
        raise InputError(f"{what}: rows have {rows.shape[1]} entries, expected {width}")
    return _finite(rows, what)


def as_examples(values: Any, what: str = "activations", *, dtype: torch.dtype | None = None) -> Tensor:
    """The same of examples (n, …) with one dimension or more each, in their shape.

    Args:
        values: (n, …).
        what: what they are called in messages.
        dtype: as in `as_rows`.

    Raises:
        InputError: no numbers, fewer than two dimensions, no examples, or values that are not finite.
    """
    given = _numbers(values, what, dtype)
    if given.ndim < 2 or not given.numel():
        raise InputError(f"{what}: expected (n, …) of one example or more, got shape {tuple(given.shape)}")
    return _finite(given, what)


def _numbers(values: Any, what: str, dtype: torch.dtype | None) -> Tensor:
    try:
        given = values if isinstance(values, Tensor | np.ndarray | list | tuple) else values[:]
        if not isinstance(given, Tensor):
            listed = isinstance(given, list | tuple)
            array = np.asarray(given, dtype=np.float64 if listed or dtype == torch.float64 else None)
            dtype = dtype or (torch.float32 if listed else None)
            # A copy where an array has strides that tensors cannot have, or must not be written to.
            given = torch.as_tensor(np.require(array, requirements=["C", "W"]))
    except (TypeError, ValueError, LookupError):
        raise InputError(f"{what}: expected numbers (n, d), not {type(values).__name__}") from None
    given = given.detach()
    wide = given.dtype in (torch.float32, torch.float64)
    return given.to(dtype or (given.dtype if wide else torch.float32))


def _finite(given: Tensor, what: str) -> Tensor:
    if not bool(torch.isfinite(given).all()):
        raise InputError(f"{what} hold NaN or infinite values")
    return given
