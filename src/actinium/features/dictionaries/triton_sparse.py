"""Kernels for a GPU of the products that touch only active latents.

`sparse` runs them where tensors are on a GPU. No sum is spread over programs, so the same input gives the same bits.
The module can be imported without triton, which comes with builds of PyTorch for a GPU; its kernels cannot be run.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    from triton import language as tl
except ImportError:
    triton = tl = None

__all__ = ["products", "runs_on", "weighted_rows"]

ENTRIES = 8
"""Entries that a program reads at a time: that many rows are under way from memory at once."""
COLUMNS = 256
"""The most columns that a program reads at a time."""

jit: Any = (lambda kernel: kernel) if triton is None else triton.jit


# The compiler would go through a trial and into launches; it leaves what is marked so to run as it is.
@torch.compiler.disable
@functools.cache
def runs_on(device: torch.device) -> bool:
    """Whether the kernels run on a device. Where triton is installed and they do not, a warning says why."""
    if triton is None:
        return False
    one = torch.ones(1, 1, device=device)
    place = torch.arange(2, device=device)
    try:
        weighted_rows(one, place[:1], place, one[0])
    except Exception as error:  # A compiler for C is missing, a driver too old: triton raises them as many classes.
        warnings.warn(
            f"sparse products run without their Triton kernels, more slowly, since Triton fails on {device}: {error}",
            stacklevel=2,
        )
        return False
    return True


@jit
def _weighted_rows(
    out: tl.tensor,
    weight: tl.tensor,
    rows: tl.tensor,
    offsets: tl.tensor,
    values: tl.tensor,
    d: tl.tensor,
    weight_row: tl.tensor,
    weight_column: tl.tensor,
    accumulated: tl.constexpr,
    entries: tl.constexpr,
    columns: tl.constexpr,
):
    """One group of entries and one block of columns."""
    # Addresses are counted in 64 bits: a weight, or its transpose, can have more than 2^31 numbers.
    group = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * columns + tl.arange(0, columns)
    inside = column < d
    first = tl.load(offsets + group)
    end = tl.load(offsets + group + 1)
    sums = tl.zeros((entries, columns), accumulated)
    for start in range(first, end, entries):
        entry = start + tl.arange(0, entries)
        there = entry < end
        row = tl.load(rows + entry, there, 0)
        value = tl.load(values + entry, there, 0).to(accumulated)
        places = weight + row[:, None] * weight_row + column[None, :] * weight_column
        found = tl.load(places, there[:, None] & inside[None, :], 0).to(accumulated)
        sums += value[:, None] * found
    tl.store(out + group * d + column, tl.sum(sums, 0).to(out.dtype.element_ty), inside)


@jit
def _products(
    out: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    a_rows: tl.tensor,
    b_rows: tl.tensor,
    count: tl.tensor,
    d: tl.tensor,
    a_row: tl.tensor,
    a_column: tl.tensor,
    b_row: tl.tensor,
    b_column: tl.tensor,
    accumulated: tl.constexpr,
    entries: tl.constexpr,
    columns: tl.constexpr,
):
    """One block of entries, over all columns."""
    entry = tl.program_id(0).to(tl.int64) * entries + tl.arange(0, entries)
    there = entry < count
    a += tl.load(a_rows + entry, there, 0)[:, None] * a_row
    b += tl.load(b_rows + entry, there, 0)[:, None] * b_row
    sums = tl.zeros((entries, columns), accumulated)
    for start in range(0, d, columns):
        column = start + tl.arange(0, columns).to(tl.int64)[None, :]
        inside = there[:, None] & (column < d)
        left = tl.load(a + column * a_column, inside, 0).to(accumulated)
        right = tl.load(b + column * b_column, inside, 0).to(accumulated)
        sums += left * right
    tl.store(out + entry, tl.sum(sums, 1).to(out.dtype.element_ty), there)


@torch.compiler.disable
def weighted_rows(weight: Tensor, rows: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """(n, d): for each group of entries the sum of value times a row of `weight`, of which no copy is made.

    Sums are taken in float32, or float64 where the weight is.

    Args:
        weight: (m, d), of any strides.
        rows: (entries,) int64, the row that each entry reads.
        offsets: (n + 1,) int64, first entry of each group, and the number of entries.
        values: (entries,).
    """
    n, d = len(offsets) - 1, weight.shape[1]
    out = weight.new_empty(n, d)
    columns = _columns(d)
    with torch.cuda.device_of(weight):
        _weighted_rows[(n, triton.cdiv(d, columns))](
            out,
            weight,
            rows.contiguous(),
            offsets.contiguous(),
            values.contiguous(),
            d,
            *weight.stride(),
            accumulated=_accumulated(weight, weight),
            entries=ENTRIES,
            columns=columns,
        )
    return out


@torch.compiler.disable
def products(a: Tensor, b: Tensor, a_rows: Tensor, b_rows: Tensor) -> Tensor:
    """(entries,), as exact as `a` is: for each entry the product of a row of `a` with a row of `b`.

    Sums are taken in float32, or float64 where either is.

    Args:
        a, b: (n, d) and (m, d), of any strides.
        a_rows, b_rows: (entries,) int64, the rows that each entry reads.
    """
    count, d = len(a_rows), a.shape[1]
    out = a.new_empty(count)
    with torch.cuda.device_of(a):
        _products[(triton.cdiv(count, ENTRIES),)](
            out,
            a,
            b,
            a_rows.contiguous(),
            b_rows.contiguous(),
            count,
            d,
            *a.stride(),
            *b.stride(),
            accumulated=_accumulated(a, b),
            entries=ENTRIES,
            columns=_columns(d),
        )
    return out


def _columns(d: int) -> int:
    return min(COLUMNS, triton.next_power_of_2(d))


def _accumulated(a: Tensor, b: Tensor) -> Any:
    return tl.float64 if torch.float64 in (a.dtype, b.dtype) else tl.float32
