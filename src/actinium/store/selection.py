"""Which rows of a store a view shows, as ranges."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from actinium.core.errors import InputError

__all__ = ["Selection"]


class Selection:
    """Rows of a store in rising order, kept as ranges.

    Args:
        ranges: (n, 2) first row of each range and the one after its last.
        whole: whether these are all rows.
    """

    def __init__(self, ranges: NDArray[np.int64], whole: bool = False) -> None:
        self.ranges, self.whole = ranges, whole
        lengths = ranges[:, 1] - ranges[:, 0]
        self.ends = np.cumsum(lengths)

    @classmethod
    def all(cls, rows: int) -> Selection:
        """Every row."""
        return cls(np.array([[0, rows]], dtype=np.int64), True)

    @classmethod
    def where(cls, chosen: NDArray[np.bool_]) -> Selection:
        """The rows of a mask."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
        return cls(edges.reshape(-1, 2).astype(np.int64), bool(chosen.all()))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def mark(self) -> str:
        """A hash of the rows."""
        return "all" if self.whole else hashlib.sha256(np.ascontiguousarray(self.ranges).tobytes()).hexdigest()

    def of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the store with these numbers in the selection; negative ones count from the end.

        Raises:
            InputError: a number out of range.
        """
        size = len(self)
        if len(numbers) and (numbers.min() < -size or numbers.max() >= size):
            bad = numbers[(numbers < -size) | (numbers >= size)][0]
            raise InputError(f"row {bad} is out of range: there are {size} rows")
        numbers = np.where(numbers < 0, numbers + size, numbers)
        if self.whole:
            return numbers
        at = np.searchsorted(self.ends, numbers, "right")
        before = np.concatenate([[0], self.ends[:-1]])
        rows: NDArray[np.int64] = self.ranges[at, 0] + numbers - before[at]
        return rows

    def blocks(self, size: int) -> NDArray[np.int64]:
        """The ranges cut into pieces of at most `size` rows (n, 2)."""
        parts = []
        for start, stop in self.ranges:
            starts = np.arange(start, stop, size, dtype=np.int64)
            parts.append(np.stack([starts, np.minimum(starts + size, stop)], 1))
        return np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)
