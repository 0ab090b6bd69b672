"""Statistics equal their definitions and the closed forms where there are any."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from actinium.core.errors import InputError, UnknownNameError
from actinium.core.statistics import (
    benjamini_hochberg,
    bootstrap_interval,
    permutation_test,
    sign_test,
    signed_rank,
)


def test_adjusted_p_values_equal_the_step_up_rule_and_keep_their_places():
    p = np.array([[0.01, 0.04, 0.03], [0.005, 0.5, np.nan]])
    order = sorted(p[~np.isnan(p)])
    expected = {value: min(v * len(order) / (order.index(v) + 1) for v in order if v >= value) for value in order}
    got = benjamini_hochberg(p)
    assert np.isnan(got[1, 2])
    for value, adjusted in zip(p.ravel()[:5], got.ravel()[:5], strict=True):
        assert adjusted == pytest.approx(expected[value])


def test_no_tested_value_gives_no_adjusted_value():
    assert np.isnan(benjamini_hochberg([np.nan, np.nan])).all()


@pytest.mark.parametrize("wrong", [[-0.1, 0.5], [0.5, 1.1]])
def test_values_that_are_no_probabilities_are_refused(wrong):
    with pytest.raises(InputError, match="from 0 to 1"):
        benjamini_hochberg(wrong)


def test_bootstrap_interval_of_the_mean_has_the_normal_width():
    values = np.random.default_rng(0).standard_normal((400, 3))
    low, high = bootstrap_interval(values, n=4000)
    half = 1.96 * values.std(0) / math.sqrt(400)
    np.testing.assert_allclose(high - low, 2 * half, rtol=0.06)
    np.testing.assert_allclose((high + low) / 2, values.mean(0), atol=0.01)


def test_the_mean_is_the_statistic_by_default():
    values = np.random.default_rng(1).standard_normal(60)
    by_default, given = (
        bootstrap_interval(values, statistic, n=4000) for statistic in (None, lambda drawn: drawn.mean(0))
    )
    np.testing.assert_allclose(by_default, given, atol=0.02)


def test_rows_are_drawn_together():
    values = np.random.default_rng(2).standard_normal(50)
    low, high = bootstrap_interval(np.stack([values, -values], 1), lambda drawn: drawn.sum(1).mean())
    assert low == high == 0


def test_the_interval_is_the_same_for_the_same_seed_and_holds_the_share_asked_for():
    values = np.arange(30.0)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    wide, narrow = bootstrap_interval(values, level=0.99), bootstrap_interval(values, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("options", [{"n": 0}, {"level": 0}, {"level": 1}])
def test_senseless_bootstraps_are_refused(options):
    with pytest.raises(InputError, match="resamples"):
        bootstrap_interval([1.0, 2.0], **options)
    with pytest.raises(InputError, match="two items"):
        bootstrap_interval([1.0])


def test_permutation_test_of_few_items_goes_through_all_rearrangements():
    x, y = np.array([1.0, 4.0, 2.5]), np.array([0.0, 3.0, -1.0, 0.5])
    pool, seen = np.concatenate([x, y]), x.mean() - y.mean()
    drawn = [pool[list(c)].mean() - np.delete(pool, list(c)).mean() for c in combinations(range(7), 3)]
    assert permutation_test(x, y, alternative="greater") == pytest.approx(np.mean([d >= seen - 1e-12 for d in drawn]))


def test_paired_permutation_test_flips_signs():
    x, y = np.array([1.0, 4.0, 2.5, 2.0]), np.array([0.0, 3.0, 3.0, 0.5])
    flips = [np.mean(np.array(s) * (x - y)) for s in product((1, -1), repeat=4)]
    expected = np.mean([f >= np.mean(x - y) - 1e-12 for f in flips])
    assert permutation_test(x, y, paired=True, alternative="greater") == pytest.approx(expected)


def test_random_permutations_come_close_to_the_t_test_and_repeat_with_their_seed():
    source = np.random.default_rng(0)
    x, y = source.standard_normal(60) + 0.4, source.standard_normal(50)
    got = permutation_test(x, y)
    assert got == pytest.approx(float(stats.ttest_ind(x, y).pvalue), abs=0.01)
    assert got == permutation_test(x, y)


def test_signed_rank_and_sign_test_equal_their_exact_forms():
    d = np.array([0.3, -0.1, 0.9, 1.2, 0.4, -0.2])
    ranks = stats.rankdata(abs(d))
    seen = ranks[d > 0].sum()
    sums = [ranks[np.array(s) > 0].sum() for s in product((1, -1), repeat=6)]
    assert float(signed_rank(d, "greater")) == pytest.approx(np.mean([s >= seen for s in sums]))
    tail = sum(math.comb(6, k) for k in (4, 5, 6)) / 2**6
    assert float(sign_test(d, "greater")) == pytest.approx(tail)
    assert float(sign_test(d)) == pytest.approx(2 * tail)


def test_each_column_is_a_test_and_no_difference_gives_one():
    d = np.stack([np.arange(1.0, 9.0), np.zeros(8), -np.arange(1.0, 9.0)], 1)
    for test in (signed_rank, sign_test):
        got = test(d)
        assert got[1] == 1 and got[0] == got[2] == pytest.approx(2 / 2**8)
        assert test(d, "less")[0] == pytest.approx(1)


def test_samples_and_names_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="equal length"):
        permutation_test([1, 2, 3], [1, 2], paired=True)
    with pytest.raises(InputError, match="two numbers"):
        permutation_test([1], [1, 2])
    with pytest.raises(InputError, match="NaN"):
        permutation_test([1, np.nan], [1, 2])
    with pytest.raises(InputError, match="finite"):
        signed_rank([np.nan, 1.0])
    for test in (lambda: permutation_test([1, 2], [1, 2], alternative="grater"), lambda: sign_test([1.0], "grater")):
        with pytest.raises(UnknownNameError, match="greater"):
            test()
