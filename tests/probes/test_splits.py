"""Splits keep groups whole and every class on both sides, or refuse."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from actinium.core.errors import InputError
from actinium.probes import group_folds, group_split


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(0, 1000), st.integers(1, 4))
def test_no_group_stands_on_both_sides_and_every_row_is_tested_once(folds, seed, size):
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(12 * folds), size)
    labels = np.repeat(np.arange(12 * folds) % 3, size)
    order = random.permutation(len(labels))
    groups, labels = groups[order], labels[order]
    parts = group_folds(labels, groups, folds, seed=seed)
    assert len(parts) == folds
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(len(labels)))
    for train, test in parts:
        assert not set(groups[train]) & set(groups[test])
        assert len(train) + len(test) == len(labels)
        assert set(labels[train]) == set(labels[test]) == {0, 1, 2}


def test_shares_of_the_classes_are_kept():
    labels = np.array([0] * 80 + [1] * 20)
    for _, test in group_folds(labels, None, 5):
        assert (labels[test] == 1).sum() == 4
    train, test = group_split(labels, None, test=0.2, seed=3)
    assert len(test) == 20
    assert not set(train) & set(test)


def test_the_seed_decides():
    labels = np.arange(40) % 2
    tests = [group_split(labels, seed=s)[1].tolist() for s in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]


def test_numbers_are_split_by_group_alone():
    groups = np.repeat(np.arange(10), 3)
    parts = group_folds(np.linspace(0, 1, 30), groups, 5, numeric=True)
    for train, test in parts:
        assert not set(groups[train]) & set(groups[test])
        assert len(set(groups[test])) == 2


def test_splits_that_cannot_be_honest_are_refused():
    labels = np.array([0, 1] * 10)
    for labels_, groups, folds, message in (
        (labels, None, 1, "folds must be 2"),
        (labels, np.zeros(20), 2, "2 folds need as many groups, and there are 1"),
        (labels, np.repeat([0, 1], 10), 3, "3 folds need"),
        # Each class lies in one group: where one is tested, the other is unknown.
        (np.repeat([0, 1], 10), np.repeat([0, 1], 10), 2, "class 0 lies in 1 group"),
        (np.array([0] * 19 + [1]), None, 2, "class 1 lies in 1 group"),
        (labels, np.arange(5), 2, "groups: expected one for each of 20"),
        (np.ones(20), None, 2, "one class only"),
        (np.array([]), None, 2, "empty"),
    ):
        with pytest.raises(InputError, match=message):
            group_folds(labels_, groups, folds)
    with pytest.raises(InputError, match="share"):
        group_split(labels, test=0.7)
