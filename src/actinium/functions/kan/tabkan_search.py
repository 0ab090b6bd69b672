"""Random search of a TabKAN's depth, width and order."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from actinium.core.errors import InputError, MissingExtraError, unknown
from actinium.core.result import Result
from actinium.functions.kan.tabkan import TabKANClassifier, TabKANRegressor
from actinium.functions.searches.random_trials import random_search

__all__ = ["TABKAN_SPACE", "search_sizes"]

TABKAN_SPACE: Mapping[str, Any] = MappingProxyType(
    {"depth": list(range(1, 11)), "width": list(range(5, 201, 5)), "order": list(range(2, 7))}
)
"""Depth, width and order that the paper searches."""
Model = TypeVar("Model", TabKANClassifier, TabKANRegressor)


def search_sizes(
    estimator: Model,
    X: Any,
    y: Any,
    trials: int = 12,
    *,
    space: Mapping[str, Any] | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Model, Result]:
    """Draw depth, width and order, train each on most rows, and judge it on the others.

    Args:
        estimator: whose other settings are taken; stays as it is.
        X, y: rows and targets; test rows do not belong among them.
        trials: how many.
        space: ranges of "depth", "width" and "order", or of some of them; those of the paper if not given.
        held_out: share of the rows that judges: by the macro F1 of classes, or by R^2.
        seed: of the trials and of what is held out.
        progress: show a progress bar.

    Returns:
        an estimator with the best sizes, trained on all rows, and by trial `outcome` and the sizes.

    Raises:
        InputError: the space names another setting, no trial gave a number, or rows and settings do not fit.
        MissingExtraError: scikit-learn is not installed.

    Source: Eslamian et al., 2025, arXiv 2504.06559 (search space).
    """
    try:
        from sklearn.base import clone
        from sklearn.metrics import f1_score, r2_score
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None
    ranges = dict(TABKAN_SPACE if space is None else space)
    strange = [name for name in ranges if name not in TABKAN_SPACE]
    if strange:
        raise InputError(unknown("setting", strange[0], list(TABKAN_SPACE)))
    classes = isinstance(estimator, TabKANClassifier)
    try:
        parts = train_test_split(X, y, test_size=held_out, random_state=seed, stratify=y if classes else None)
    except ValueError as error:
        raise InputError(f"no rows can be held out: {error}") from None
    train, held, known, wanted = parts

    def sized(sizes: Mapping[str, Any]) -> Model:
        depth, width = sizes.get("depth", len(estimator.hidden)), sizes.get("width", (*estimator.hidden, 16)[0])
        order = sizes.get("order", estimator.order)
        return clone(estimator).set_params(
            hidden=(int(width),) * int(depth), order=None if order is None else int(order)
        )  # fmt: skip

    def outcome(sizes: dict[str, Any], _: int) -> float:
        found = sized(sizes).fit(train, known).predict(held)
        return float(f1_score(wanted, found, average="macro") if classes else r2_score(wanted, found))

    table = random_search(ranges, outcome, trials, seed, progress=progress)
    table.method, table.paper = "search_sizes", "tabkan"
    outcomes = table["outcome"].values
    if np.isnan(outcomes).all():
        raise InputError("no trial gave a number")
    best = table.data.isel(trial=int(np.nanargmax(outcomes)))
    return sized({name: best[name].item() for name in ranges}).fit(X, y), table
