"""Splits that keep a probe honest: no group on both sides, and every class on each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from actinium.core.errors import InputError, MissingExtraError
from actinium.probes.rows import as_classes, as_vector, one_value_each

__all__ = ["Fold", "group_folds", "group_split"]

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


def group_folds(labels: Any, groups: Any = None, folds: int = 5, *, seed: int = 0, numeric: bool = False) -> list[Fold]:
    """Folds for cross-validation, with the shares of the classes as equal as the groups allow.

    Args:
        labels: (n,) classes, or numbers if `numeric`.
        groups: (n,) what must not stand on both sides, such as the text, the template or the person that a row comes
            from. None if every row is independent of all others.
        folds: how many, 2 or more; every row is tested in one of them.
        seed: of the order.
        numeric: labels are numbers for a regression, which have no shares.

    Returns:
        For each fold, indices of the rows to train on and to test on.

    Raises:
        InputError: shapes do not fit, there are fewer groups than folds, or a class is missing on one side.
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None
    n = len(labels)
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 2:
        raise InputError(f"folds must be 2 or more, got {folds!r}")
    names, of = _numbered(groups, n)
    if len(names) < folds:
        raise InputError(f"{folds} folds need as many groups, and there are {len(names)}; take fewer folds")
    if numeric:
        as_vector(labels, "labels", n)
        split = GroupKFold(folds, shuffle=True, random_state=seed).split(np.zeros(n), None, of)
        return [(train.astype(np.int64), test.astype(np.int64)) for train, test in split]
    classes, numbers = as_classes(labels, n)
    _check_spread(classes, numbers, of, folds)
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(np.zeros(n), numbers, of)
    out = [(train.astype(np.int64), test.astype(np.int64)) for train, test in split]
    for number, (train, test) in enumerate(out):
        for side, rows in (("training", train), ("test", test)):
            missing = np.setdiff1d(np.arange(len(classes)), numbers[rows])
            if len(missing):
                raise InputError(
                    f"fold {number}: no row of class {classes[missing[0]]!r} in the {side} part; its rows lie in too "
                    "few groups for so many folds"
                )
    return out


def group_split(labels: Any, groups: Any = None, test: float = 0.25, *, seed: int = 0, numeric: bool = False) -> Fold:
    """One split into training and test rows.

    Args:
        labels, groups, seed, numeric: as in `group_folds`.
        test: share of the groups to test on, at most one half; rounded to one part of 1 / `test`.

    Returns:
        Indices of the rows to train on and to test on.

    Raises:
        InputError: as `group_folds`, or the share is not in (0, 0.5].
        MissingExtraError: scikit-learn is not installed.
    """
    if not 0 < test <= 0.5:
        raise InputError(f"test is a share above 0 and at most 0.5, got {test}")
    return group_folds(labels, groups, max(2, round(1 / test)), seed=seed, numeric=numeric)[0]


def _numbered(groups: Any, n: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    if not n:
        raise InputError("labels are empty")
    if groups is None:
        return np.arange(n), np.arange(n)
    names, of = np.unique(one_value_each(groups, n, "groups"), return_inverse=True)
    return names, of.astype(np.int64)


def _check_spread(classes: NDArray[Any], numbers: NDArray[np.int64], of: NDArray[np.int64], folds: int) -> None:
    """Refuse a class that lies in fewer groups than there are folds: some fold could not test it."""
    for number, name in enumerate(classes):
        have = len(np.unique(of[numbers == number]))
        if have < folds:
            raise InputError(
                f"class {name.item()!r} lies in {have} {'group' if have == 1 else 'groups'}, and {folds} folds need "
                "it in as many; take fewer folds or more data"
            )
