"""Canonical correlations, CKA and the geometry of paired rows give what other sources and closed forms give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from scipy.spatial import procrustes

from actinium.compare import (
    canonical_correlations,
    debiased_cka,
    knn_jaccard,
    linear_cka,
    mmcs,
    procrustes_similarity,
    pwcca,
    svcca,
)
from actinium.core.errors import InputError
from actinium.measure import hsic

N, D = 400, 16


def drawn(n=N, d=D, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(d, seed=7):
    return torch.linalg.qr(drawn(d, d, seed))[0]


def test_canonical_correlations_are_those_of_the_eigenvalue_problem_of_the_covariances():
    x, y = drawn(200, 5), drawn(200, 7, 1)
    y[:, :3] += 0.8 * x[:, :3]
    both = np.cov(torch.cat([x, y], 1).T.numpy())
    xx, yy, xy = both[:5, :5], both[5:, 5:], both[:5, 5:]
    squares = eigh(xy @ np.linalg.solve(yy, xy.T), xx, eigvals_only=True)[::-1]
    assert canonical_correlations(x, y) == pytest.approx(np.sqrt(squares), abs=1e-10)


@pytest.mark.parametrize("measure", [svcca, pwcca, linear_cka, debiased_cka, procrustes_similarity])
def test_a_rotation_a_shift_and_a_scale_change_nothing(measure):
    x, y = drawn() * torch.linspace(1, 0.2, D), drawn(seed=1)
    moved = 3 * x @ rotation(D) + 5
    assert measure(x, moved) == pytest.approx(1, abs=1e-9)
    # The weights of PWCCA are those of columns: as the first of the two, a rotation changes them.
    others = (y, x), (y, moved)
    assert measure(*others[1]) == pytest.approx(measure(*others[0]), abs=1e-9)


def test_svcca_of_noisy_and_of_shuffled_rows():
    """400 rows, 16 columns of scales 1 to 0.2 and a tenth of noise: near 1, and for shuffled rows near sqrt(k / n)."""
    x = drawn() * torch.linspace(1, 0.2, D)
    y = x + 0.1 * drawn(seed=1)
    assert svcca(x, y) == pytest.approx(0.98, abs=0.01)
    shuffled = svcca(x, y[torch.randperm(N, generator=torch.Generator().manual_seed(0))])
    assert shuffled == pytest.approx(0.17, abs=0.03)


def test_the_share_of_the_variance_and_not_the_variance_itself_says_how_many_components_stay():
    """With a total variance far above 1 one component would be kept if 99 % were compared with the variance itself."""
    x = torch.cat([drawn(150, 4) * 100, drawn(150, 16, 3)], 1)
    # Four columns hold more than 99 % of the variance: the others do not count.
    assert svcca(x, x[:, :4]) == pytest.approx(1, abs=1e-3)
    assert len(canonical_correlations(x, x, 0.99)) == 4
    assert len(canonical_correlations(x, x, 1.0)) == 20


def test_unrelated_data_correlate_more_the_more_components_there_are():
    scores = [svcca(drawn(200, d), drawn(200, d, 1)) for d in (4, 20, 60)]
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 0.4


def test_pwcca_is_the_mean_of_the_correlations_weighted_by_projections():
    x, y = drawn(100, 4) * torch.tensor([5.0, 1, 1, 0.1]), drawn(100, 6, 1)
    y[:, 0] += 2 * x[:, 0]
    x0, y0 = x - x.mean(0), y - y.mean(0)
    qx, qy = np.linalg.qr(x0.numpy())[0], np.linalg.qr(y0.numpy())[0]
    u, s, _ = np.linalg.svd(qx.T @ qy)
    weights = [sum(abs((qx @ u[:, i]) @ x0[:, j].numpy()) for j in range(4)) for i in range(4)]
    assert pwcca(x, y) == pytest.approx(np.average(s, weights=weights), abs=1e-10)
    assert 0 < pwcca(y, x) < 1
    assert pwcca(y, x) != pytest.approx(pwcca(x, y), abs=1e-3)


def test_debiased_cka_is_made_of_the_unbiased_criterion_and_near_zero_for_unrelated_data():
    x, y = drawn(60, 5), drawn(60, 9, 1)
    y[:, :5] += x
    kernels = [rows @ rows.T for rows in (x, y)]
    want = hsic(*kernels) / (hsic(kernels[0], kernels[0]) * hsic(kernels[1], kernels[1])).sqrt()
    assert debiased_cka(x, y) == pytest.approx(float(want), abs=1e-10)
    few, other = drawn(40, 300), drawn(40, 300, 1)
    assert linear_cka(few, other) > 0.8
    assert abs(debiased_cka(few, other)) < 0.1


def test_procrustes_similarity_is_scipys_disparity():
    x = drawn(50, 6)
    y = x @ rotation(6) + 0.5 * drawn(50, 6, 2)
    _, _, disparity = procrustes(x.numpy(), y.numpy())
    assert procrustes_similarity(x, y) ** 2 == pytest.approx(1 - disparity, abs=1e-10)
    assert procrustes_similarity(x, y[:, :4]) == pytest.approx(procrustes_similarity(y[:, :4], x), abs=1e-12)


def test_neighbours_in_common_are_counted():
    angles = torch.tensor([0.0, 10, 25, 100, 112, 130]).deg2rad()
    x = torch.stack([angles.cos(), angles.sin()], 1)
    assert knn_jaccard(x, 3 * x, k=2) == 1
    y = x[[3, 1, 2, 0, 4, 5]]
    # The nearest two of each in x are those of its own group of three. In y items 0 and 3 have changed groups: both
    # have lost all neighbours, the others one of two, which leaves 1 of 3.
    assert knn_jaccard(x, y, k=2) == pytest.approx((2 * 0 + 4 / 3) / 6)


def test_the_largest_cosine_counts():
    a = torch.tensor([[2.0, 0], [0, -1]])
    assert mmcs(a, a.flip(0)) == 1
    assert mmcs(a, -a) == 0
    assert mmcs(a, -a, absolute=True) == 1
    assert mmcs(a[:1], torch.tensor([[1.0, 1]])) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("measure", [svcca, pwcca, debiased_cka, procrustes_similarity, knn_jaccard])
def test_what_cannot_be_compared_is_refused(measure):
    x = drawn(30, 4)
    with pytest.raises(InputError, match="as many rows in both"):
        measure(x, drawn(29, 4))
    with pytest.raises(InputError, match="NaN"):
        measure(x, torch.full_like(x, torch.nan))
    with pytest.raises(InputError, match="same at every row"):
        measure(torch.ones(30, 4), x)
    with pytest.raises(InputError, match="expected rows"):
        measure(x[0], x)


def test_components_that_span_all_rows_are_refused():
    with pytest.raises(InputError, match="span everything"):
        svcca(drawn(10, 30), drawn(10, 2))
    with pytest.raises(InputError, match="share above 0"):
        svcca(drawn(10, 3), drawn(10, 2), variance=99)
    with pytest.raises(InputError, match="k must be from 1 to 8"):
        knn_jaccard(drawn(10, 3), drawn(10, 3), k=9)
    with pytest.raises(InputError, match="equal widths"):
        mmcs(drawn(4, 3), drawn(4, 2))
    with pytest.raises(InputError, match="must not be zero"):
        mmcs(torch.zeros(2, 3), drawn(4, 3))
