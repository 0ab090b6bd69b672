"""The largest entries of a whole batch of rows, found without ranking all of them."""

from __future__ import annotations

from torch import Tensor

__all__ = ["largest"]

GROUPS = 16


def largest(values: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of the `wanted` largest entries of (n, m), row by row; only the positive ones."""
    rows, columns = (values >= _floor(values, wanted)).nonzero(as_tuple=True)
    found = values[rows, columns]
    kept = found.topk(wanted).indices.sort().values
    kept = kept[found[kept] > 0]
    return rows[kept], columns[kept], found[kept]


def _floor(values: Tensor, wanted: int) -> Tensor:
    """A number that at least `wanted` entries of (n, m) reach, close to the smallest of the `wanted` largest ones."""
    n, m = values.shape
    if m % GROUPS or wanted > values.numel() // GROUPS:
        return values.flatten().topk(wanted).values[-1]
    # The largest of so many groups are so many entries, of which the smallest is reached by all.
    return values.view(n, GROUPS, m // GROUPS).amax(1).flatten().topk(wanted).values[-1]
