"""Intervals agree with closed forms and with resampling by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from actinium.core.errors import InputError
from actinium.core.intervals import wilson
from actinium.probes.calibration import auroc
from actinium.probes.intervals import _areas, area_interval, effective_number, mean_interval


@pytest.mark.parametrize(("right", "n"), [(0, 20), (7, 20), (20, 20), (450, 500)])
def test_wilson_is_that_of_scipy(right, n):
    peer = binomtest(right, n).proportion_ci(0.9, method="wilson")
    assert wilson(right / n, n, 0.9) == pytest.approx((peer.low, peer.high))


def test_rows_that_repeat_their_group_count_once():
    random = np.random.default_rng(0)
    each = (random.random(200) < 0.7).astype(float)
    copies = np.repeat(each, 5)
    groups = np.repeat(np.arange(200), 5)
    assert effective_number(copies, groups) == pytest.approx(200, rel=0.02)
    apart = (random.random(1000) < 0.7).astype(float)
    assert effective_number(apart, groups) > 600
    assert effective_number(apart, np.arange(1000)) == 1000
    assert effective_number(np.ones(1000), groups) == 200


def test_the_bootstrap_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(0).normal(size=400)
    low, high = mean_interval(values, np.arange(400), draws=4000)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.06)
    copies = mean_interval(np.repeat(values, 3), np.repeat(np.arange(400), 3), draws=4000)
    assert copies == pytest.approx((low, high), abs=0.01)


def test_weighted_areas_are_those_of_repeated_rows():
    random = np.random.default_rng(0)
    scores = np.round(random.normal(size=30), 1)  # with ties
    positive = random.random(30) < 0.4
    weights = random.integers(0, 4, size=(5, 30)).astype(float)
    for got, weight in zip(_areas(scores, positive, weights), weights.astype(int), strict=True):
        assert got == pytest.approx(auroc(np.repeat(scores, weight), np.repeat(positive, weight)))
    assert np.isnan(_areas(scores, positive, np.where(positive, 1.0, 0.0)[None]))[0]


def test_the_interval_of_an_area_holds_it():
    random = np.random.default_rng(1)
    positive = np.arange(200) % 2 == 1
    scores = positive + random.normal(size=200)
    low, high = area_interval([scores], [positive], [np.arange(200)])
    assert low < auroc(scores, positive) < high
    assert 0.05 < high - low < 0.2


def test_values_out_of_range_are_refused():
    for share, n, level in ((1.2, 3, 0.9), (0.5, 0, 0.9), (0.5, 3, 1.0)):
        with pytest.raises(InputError, match="expected a share"):
            wilson(share, n, level)
