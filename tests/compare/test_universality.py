"""Directions of matched features are compared with those of shuffled pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium.compare import (
    feature_space_similarity,
    knn_jaccard,
    linear_cka,
    match_features_by_correlation,
    procrustes_similarity,
    rsa,
    svcca,
)
from actinium.compare.universality import MEASURES
from actinium.core.errors import InputError, UnknownNameError

ALL = tuple(MEASURES)


def drawn(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def spaces():
    """Two dictionaries of 80 and 60 directions; feature j of B is feature 70 - j of A, turned and with noise."""
    a = drawn(80, 8)
    pairs = np.column_stack([70 - np.arange(60), np.arange(60)])
    b = a[70 - torch.arange(60)] @ torch.linalg.qr(drawn(8, 8, 3))[0] + 0.2 * drawn(60, 8, 4)
    return a, b, pairs


def test_scores_are_those_of_the_functions(spaces):
    a, b, pairs = spaces
    found = feature_space_similarity(a, b, pairs, ALL, n_perm=3)
    x, y = a[pairs[:, 0]], b[pairs[:, 1]]
    for name, function in (
        ("svcca", svcca),
        ("rsa", rsa),
        ("cka", linear_cka),
        ("procrustes", procrustes_similarity),
        ("knn_jaccard", knn_jaccard),
    ):
        assert float(found["score"].sel(measure=name)) == pytest.approx(function(x, y), abs=1e-9), name


def test_the_null_is_that_of_shuffled_rows_computed_anew(spaces):
    a, b, pairs = spaces
    found = feature_space_similarity(a, b, pairs, ALL, n_perm=2, seed=5)
    random = torch.Generator().manual_seed(5)
    for draw in range(2):
        order = torch.randperm(60, generator=random).numpy()
        shuffled = np.column_stack([pairs[:, 0], pairs[order, 1]])
        again = feature_space_similarity(a, b, shuffled, ALL, n_perm=1)
        assert found["null"].isel(draw=draw).values == pytest.approx(again["score"].values, abs=1e-9)


def test_p_counts_the_draws_that_reach_the_score(spaces):
    a, b, pairs = spaces
    found = feature_space_similarity(a, b, pairs, ALL, n_perm=19)
    assert found["p"].values == pytest.approx(1 / 20)
    assert (found["score"] > found["null_mean"] + 4 * found["null_std"]).all()
    assert found["null_mean"].values == pytest.approx(found["null"].values.mean(1))
    unrelated = feature_space_similarity(a, drawn(60, 8, 9), pairs, ALL, n_perm=99)
    assert (unrelated["p"] > 0.01).all()
    count = (unrelated["null"] >= unrelated["score"]).sum("draw")
    assert unrelated["p"].values == pytest.approx((1 + count.values) / 100)


def test_the_score_of_unrelated_directions_lies_in_the_null():
    """p values of unrelated spaces are spread over (0, 1]: about one in ten is at most 0.1."""
    pairs = np.column_stack([np.arange(30)] * 2)
    p = [
        float(feature_space_similarity(drawn(30, 4, s), drawn(30, 4, s + 500), pairs, ["svcca"], n_perm=19)["p"][0])
        for s in range(60)
    ]
    assert 1 <= sum(v <= 0.1 for v in p) <= 15
    assert 0.35 < np.mean(p) < 0.65


def test_features_drawn_at_random_are_another_null(spaces):
    a, b, pairs = spaces
    found = feature_space_similarity(a, b, pairs, null="features", n_perm=19)
    assert found["p"].values == pytest.approx(1 / 20)
    same = feature_space_similarity(a, b, pairs, null="features", n_perm=19)
    assert same == found
    assert feature_space_similarity(a, b, pairs, null="features", n_perm=19, seed=1) != found


def test_matches_are_taken_as_they_come(spaces):
    a, b, pairs = spaces
    codes = torch.rand(200, 80, generator=torch.Generator().manual_seed(1))
    matches = match_features_by_correlation(codes, codes[:, 70 - torch.arange(60)])
    found = feature_space_similarity(a, b, matches, n_perm=5)
    assert found["score"].values == pytest.approx(feature_space_similarity(a, b, pairs, n_perm=5)["score"].values)
    assert int(found["pairs"]) == 60


def test_what_cannot_be_compared_is_refused(spaces):
    a, b, pairs = spaces
    with pytest.raises(InputError, match="N >= 10"):
        feature_space_similarity(a, b, pairs[:9])
    with pytest.raises(InputError, match="span everything"):
        feature_space_similarity(drawn(80, 40), b, pairs[:12], ["svcca"])
    with pytest.raises(InputError, match="not there: A has 80, B has 60"):
        feature_space_similarity(a, b, pairs[:, ::-1])
    with pytest.raises(InputError, match="pairs of integers"):
        feature_space_similarity(a, b, pairs.astype(float))
    with pytest.raises(InputError, match="NaN"):
        feature_space_similarity(a * torch.nan, b, pairs)
    with pytest.raises(UnknownNameError, match="svcca"):
        feature_space_similarity(a, b, pairs, ["svca"])
    with pytest.raises(UnknownNameError, match="mmcs"):
        feature_space_similarity(a, b, pairs, ["mmcs"])
    with pytest.raises(UnknownNameError, match="pairing"):
        feature_space_similarity(a, b, pairs, null="pairings")
    with pytest.raises(InputError, match="one draw"):
        feature_space_similarity(a, b, pairs, n_perm=0)
