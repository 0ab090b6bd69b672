"""How numbers are kept: as they are, rounded to 16 bits, or as 8-bit integers with one scale for each row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["TORCH", "Encoded", "as_dtype", "decode", "encode", "row_bytes"]

TORCH: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int8": torch.int8,
}


@dataclass(frozen=True)
class Encoded:
    """Rows as they are written.

    Attributes:
        values: (rows, …) in the store's type.
        scales: (rows,) float32, for int8 only.
        saturated, not_finite: numbers of such values.
        error: sums of squares of the rounding error and of the values (finite ones), for int8 only.
    """

    values: Tensor
    scales: Tensor | None
    saturated: int
    not_finite: int
    error: tuple[float, float] | None


def as_dtype(name: object) -> str:
    """The name of a store's type.

    Raises:
        InputError: for another type.
    """
    text = str(name).removeprefix("torch.")
    if text not in TORCH:
        raise InputError(f"dtype must be one of {', '.join(TORCH)}, not {name!r}")
    return text


def row_bytes(shape: list[int], dtype: str) -> int:
    """Bytes of one row in a file."""
    return int(np.prod(shape)) * TORCH[dtype].itemsize + (4 if dtype == "int8" else 0)


def encode(values: Tensor, dtype: str) -> Encoded:
    """Bring rows (n, …) of floating-point values to the store's type.

    Values beyond the range of float16 are set to its largest (and counted); int8 divides each row by its largest
    magnitude / 127 and rounds to the nearest. A row of int8 with a NaN or an infinity cannot be kept: its scale is
    NaN, so that all of it reads as NaN.
    """
    flat = values.flatten(1)
    # One number for all: the sum is finite if every value is (a finite sum that overflows is looked at again).
    suspicious = not bool(torch.isfinite(flat.float().sum()))
    not_finite = int((~torch.isfinite(flat)).sum()) if suspicious else 0
    if dtype == "int8":
        return _int8(values, flat.float(), not_finite)
    out, saturated = values.to(TORCH[dtype]), 0
    if dtype == "float16" and values.dtype != torch.float16:
        lost = out.isinf() & values.isfinite()
        saturated = int(lost.sum())
        if saturated:
            limit = torch.finfo(torch.float16).max
            out = torch.where(lost, values.clamp(-limit, limit).to(torch.float16), out)
    return Encoded(out.contiguous(), None, saturated, not_finite, None)


def _int8(values: Tensor, flat: Tensor, not_finite: int) -> Encoded:
    largest = flat.abs().amax(1)
    scales = torch.where(largest.isfinite(), largest / 127, torch.nan)
    divisor = torch.where((scales > 0) & scales.isfinite(), scales, 1.0)
    whole = torch.nan_to_num(flat / divisor[:, None], 0.0, 0.0, 0.0).round().clamp(-127, 127).to(torch.int8)
    good = scales.isfinite()
    kept = flat if bool(good.all()) else flat[good]
    back = (whole if kept is flat else whole[good]).float() * divisor[good, None]
    error = (float((back - kept).double().square().sum()), float(kept.double().square().sum()))
    return Encoded(whole.view(values.shape), scales, 0, not_finite, error)


def decode(values: Tensor, scales: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    """Rows as floating-point values, in the store's type (float32 for int8) or in `dtype`."""
    if scales is not None:
        values = values.float() * scales.view(-1, *[1] * (values.ndim - 1))
    return values if dtype is None else values.to(dtype)


def as_bytes(values: Tensor) -> NDArray[np.uint8]:
    """The memory of a contiguous CPU tensor."""
    flat: NDArray[np.uint8] = values.reshape(-1).view(torch.uint8).numpy()
    return flat
