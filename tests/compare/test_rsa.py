"""Representational similarity is the rank correlation of distances, and depends on them as it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr

from actinium.compare import dissimilarities, rsa
from actinium.core.errors import InputError, UnknownNameError

SCALES = torch.linspace(1, 0.2, 16)


def drawn(n=400, d=16, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def turned(x):
    return x @ torch.linalg.qr(drawn(x.shape[1], x.shape[1], 7))[0]


@pytest.mark.parametrize("distance", ["correlation", "cosine", "euclidean"])
def test_distances_and_their_rank_correlation_are_scipys(distance):
    x, y = drawn(60, 5), drawn(60, 8, 1)
    y[:, :5] += x
    assert np.allclose(dissimilarities(x, distance), squareform(pdist(x, distance)), atol=1e-12)
    want = spearmanr(pdist(x, distance), pdist(y, distance)).statistic
    assert rsa(x, y, distance) == pytest.approx(want, abs=1e-10)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_a_rotation_changes_nothing(distance):
    x = drawn() * SCALES
    assert rsa(x, turned(x), distance) == pytest.approx(1, abs=1e-9)


def test_a_rotation_changes_correlation_distances():
    x = drawn() * SCALES
    assert rsa(x, turned(x)) == pytest.approx(0.94, abs=0.03)
    assert rsa(x, turned(x)) < 0.99


def test_turned_and_noisy_rows_and_shuffled_rows():
    x = drawn() * SCALES
    y = turned(x) + 0.1 * drawn(seed=1)
    assert rsa(x, y) == pytest.approx(0.92, abs=0.03)
    shuffled = y[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert abs(rsa(x, shuffled)) < 0.03


def test_equal_distances_have_no_rank_correlation():
    assert np.isnan(rsa(torch.eye(4), drawn(4, 3), "euclidean"))


def test_what_has_no_distance_is_refused():
    x = drawn(10, 4)
    flat = x.clone()
    flat[2] = 1.0
    with pytest.raises(InputError, match="1 rows have no correlation"):
        rsa(x, flat)
    flat[2] = 0.0
    with pytest.raises(InputError, match="1 rows have no cosine"):
        rsa(flat, x, "cosine")
    with pytest.raises(UnknownNameError, match="euclidean"):
        rsa(x, x, "euclid")
    with pytest.raises(InputError, match="at least 3"):
        rsa(x[:2], x[:2])
    with pytest.raises(InputError, match="NaN"):
        rsa(x, torch.full_like(x, torch.nan))
