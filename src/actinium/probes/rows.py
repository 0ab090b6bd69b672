"""Rows and labels that a probe is fitted on: brought to arrays, and refused early where they cannot work."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core import rows
from actinium.core.errors import InputError

__all__ = ["as_classes", "as_rows", "as_vector", "one_value_each", "tensor_of"]

Floats = NDArray[np.float64]


def as_rows(values: Any, what: str = "activations", width: int | None = None) -> Floats:
    """Tensors, arrays, recorded and stored activations as float64 rows (n, d).

    Args:
        values: (n, d).
        what: what they are called in messages.
        width: the d that is expected.

    Raises:
        InputError: another number of dimensions, no rows, another width, or values that are not finite.
    """
    found: Floats = rows.as_rows(values, what, width, flat=False, dtype=torch.float64).cpu().numpy()
    return found


def as_vector(values: Any, what: str, n: int | None = None) -> Floats:
    """Finite numbers (n,) in float64.

    Raises:
        InputError: another shape, or values that are not finite.
    """
    vector = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if vector.ndim != 1 or (n is not None and len(vector) != n):
        raise InputError(f"{what}: expected {'(n,)' if n is None else n} numbers, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise InputError(f"{what} hold NaN or infinite values")
    return vector


def one_value_each(values: Any, n: int, what: str) -> NDArray[Any]:
    """Labels, groups or types of any kind as an array (n,), without NaN.

    Raises:
        InputError: another shape, or a value that is missing.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.shape != (n,):
        raise InputError(f"{what}: expected one for each of {n} rows, got shape {array.shape}")
    if array.dtype.kind == "O" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise InputError(f"{what}: expected numbers, bools or texts without missing values")
    return array


def as_classes(labels: Any, n: int, two: bool = False) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The classes in their order, and the number of each row's class.

    Args:
        labels: (n,) integers, bools, texts, or floating-point numbers that are whole.
        n: number of rows.
        two: exactly two classes are expected.

    Raises:
        InputError: shapes do not fit, there is one class only, or labels are measurements.
    """
    given = one_value_each(labels, n, "labels")
    if given.dtype.kind == "f":
        if not (given == np.round(given)).all():
            raise InputError("labels are fractions, not classes; for numbers use LinearProbe('ridge_regression')")
        given = given.astype(np.int64)
    classes, numbers = np.unique(given, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"labels hold one class only, {classes.tolist()}: what does not vary cannot be read")
    if two and len(classes) != 2:
        raise InputError(f"labels must have two values here, got {len(classes)}: {classes.tolist()[:5]}")
    return classes, numbers.astype(np.int64)


def tensor_of(values: Floats) -> Tensor:
    """A float64 tensor of its own memory."""
    return torch.from_numpy(np.array(values, dtype=np.float64))
