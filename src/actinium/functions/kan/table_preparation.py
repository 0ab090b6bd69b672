"""Tables made ready for a network: text as codes, missing values filled, columns on a common scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from actinium.core.errors import InputError, unknown

__all__ = ["TablePreparation"]

SCALES = ("standard", "quantile")
IMPUTERS = ("mean", "median", "zero")
QUANTILES = 1000
EDGE = 1e-3


class TablePreparation:
    """How the columns of one table become inputs; learnt on its training rows only.

    Args:
        scale: "standard" (mean 0, variance 1), "quantile" (normal by rank, for heavy tails) or None.
        impute: what takes the place of a missing value, before scaling: "mean" or "median" of the column, "zero", or
            None, with which there may be none.

    Raises:
        InputError: there is no such scale or imputer.
    """

    def __init__(self, scale: str | None, impute: str | None) -> None:
        for value, known, what in ((scale, SCALES, "scale"), (impute, IMPUTERS, "imputer")):
            if value is not None and value not in known:
                raise InputError(unknown(what, str(value), list(known)))
        self.scale, self.impute = scale, impute

    def fit(self, x: np.ndarray) -> TablePreparation:
        """Learn from training rows (n, d), float64.

        Raises:
            InputError: a column has no value at all.
        """
        empty = np.isnan(x).all(0)
        if empty.any():
            raise InputError(f"column {int(empty.argmax())} has no value at all")
        self.fill = {
            None: np.zeros(x.shape[1]), "zero": np.zeros(x.shape[1]), "mean": np.nanmean(x, 0),
            "median": np.nanmedian(x, 0),
        }[self.impute]  # fmt: skip
        x = np.where(np.isnan(x), self.fill, x)
        self.middle, spread = x.mean(0), x.std(0)
        # A column that is constant, but for rounding, tells nothing: it becomes 0.
        self.spread = np.where(spread > 1e-12 * np.abs(self.middle), spread, np.inf)
        # Quantiles of few rows are the rows themselves, where rounding would tear ties apart.
        few = len(x) <= QUANTILES
        self.quantiles = np.sort(x, 0) if few else np.quantile(x, np.linspace(0, 1, QUANTILES), axis=0)
        return self

    def column(self, i: int, values: np.ndarray) -> np.ndarray:
        """Values (n,) of column i as the network sees them."""
        values = np.where(np.isnan(values), self.fill[i], values)
        if self.scale is None:
            return values
        if self.scale == "standard":
            return (values - self.middle[i]) / self.spread[i]
        from scipy.special import ndtri

        known = self.quantiles[:, i]
        if known[0] == known[-1]:
            return np.zeros_like(values)
        places = np.linspace(0, 1, len(known))
        # Of equal values the middle of their ranks.
        rank = (np.interp(values, known, places) + 1 - np.interp(-values, -known[::-1], places)) / 2
        return ndtri(rank.clip(EDGE, 1 - EDGE))

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Rows (n, d) as the network sees them."""
        return np.stack([self.column(i, x[:, i]) for i in range(x.shape[1])], 1)


def text_columns(x: Any) -> list[Any]:
    """Names of a DataFrame's columns that hold no numbers; none for what is no DataFrame."""
    if not hasattr(x, "dtypes") or not hasattr(x, "columns"):
        return []
    return [name for name, kind in x.dtypes.items() if not _is_number(kind)]


def _is_number(kind: Any) -> bool:
    return getattr(kind, "kind", "O") in "iufb"


def learn_codes(x: Any) -> dict[Any, list[Any]]:
    """By text column its different values, sorted."""
    return {name: sorted(x[name].dropna().unique().tolist(), key=str) for name in text_columns(x)}


def with_codes(x: Any, codes: Mapping[Any, list[Any]]) -> Any:
    """The DataFrame with numbers in the place of text: the place of a value among the known ones.

    Raises:
        InputError: a column holds a value that is not known.
    """
    x = x.copy()
    for name, known in codes.items():
        if name not in x.columns:
            continue
        place = {value: number for number, value in enumerate(known)}
        strange = [value for value in x[name].dropna().unique().tolist() if value not in place]
        if strange:
            raise InputError(f"column {name!r} holds {strange[0]!r}, which was not there in training: {known[:6]}")
        x[name] = x[name].map(place).astype("float64")
    return x
