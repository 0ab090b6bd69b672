"""Halves and groups of one dimension, for functions that look at several units at once."""

from __future__ import annotations

from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["grouped", "halves", "place_of"]


def place_of(dim: int, x: Tensor) -> int:
    """The dimension counted from 0.

    Raises:
        InputError: x has no such dimension, or nothing in it.
    """
    if not -x.ndim <= dim < x.ndim:
        raise InputError(f"a tensor of shape {tuple(x.shape)} has no dimension {dim}")
    if x.shape[dim] == 0:
        raise InputError(f"dimension {dim} of a tensor of shape {tuple(x.shape)} is empty")
    return dim % x.ndim


def halves(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The first and the second half of a dimension.

    Raises:
        InputError: its size is odd, or there is no such dimension.
    """
    size = x.shape[place_of(dim, x)]
    if size % 2:
        raise InputError(f"a gated function needs an even number of units, dimension {dim} has {size}")
    first, second = x.chunk(2, dim)
    return first, second


def grouped(x: Tensor, size: int, dim: int) -> tuple[Tensor, int]:
    """Dimension `dim` as (groups, size), and the place of `size`.

    Raises:
        InputError: the dimension is no multiple of the size, or there is no such dimension.
    """
    place = place_of(dim, x)
    if x.shape[place] % size:
        raise InputError(f"dimension {dim} has {x.shape[place]} units, which is no multiple of {size}")
    return x.unflatten(place, (-1, size)), place + 1
