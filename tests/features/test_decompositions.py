"""Four decompositions with one interface give what closed forms and planted factors say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, nnls

from actinium.core.errors import ActiniumWarning, InputError, LoadError
from actinium.features.decompositions import ICA, NMF, PCA, KMeans

METHODS = [PCA, ICA, NMF, KMeans]


def random(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def mixed():
    """Laplace sources (2000, 4) mixed into 9 dimensions, and the mixing directions."""
    sources = torch.distributions.Laplace(0.0, 1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = sources.sample((2000, 4)).double()
    directions = torch.randn(4, 9, generator=random(1), dtype=torch.float64)
    return drawn @ directions + 3.0, directions, drawn


@pytest.fixture(scope="module")
def parts():
    """Non-negative rows (200, 12) that are exactly combinations of three sparse parts."""
    pieces = torch.zeros(3, 12, dtype=torch.float64)
    pieces[0, :4], pieces[1, 3:8], pieces[2, 8:] = 1.0, 2.0, 1.5
    codes = torch.rand(200, 3, generator=random(), dtype=torch.float64)
    codes[:100][torch.rand(100, 3, generator=random(2)) < 0.5] = 0
    return codes @ pieces + 1e-9, pieces


def matched(found, truth, signed):
    """Cosines of found directions with the true ones they are assigned to."""
    unit = [torch.nn.functional.normalize(m, dim=1) for m in (truth, found)]
    cosines = (unit[0] @ unit[1].T).numpy()
    cosines = cosines if signed else abs(cosines)
    return cosines[linear_sum_assignment(-cosines)]


def test_principal_components_are_the_singular_vectors_of_the_centred_rows(mixed):
    rows = mixed[0]
    found = PCA(3).fit(rows)
    _, sizes, right = np.linalg.svd((rows - rows.mean(0)).numpy(), full_matrices=False)
    assert np.abs((found.components_.numpy() * right[:3]).sum(1)) == pytest.approx(1, abs=1e-10)
    assert found.variance_ratio_.numpy() == pytest.approx((sizes**2 / (sizes**2).sum())[:3])
    codes = found.transform(rows)
    assert torch.allclose(codes, (rows - rows.mean(0)) @ found.components_.T)
    error = (rows - found.inverse_transform(codes)).square().sum()
    assert float(error) == pytest.approx((sizes[3:] ** 2).sum(), rel=1e-6)


def test_independent_components_are_the_mixing_directions(mixed):
    rows, directions, sources = mixed
    found = ICA(4).fit(rows)
    assert matched(found.components_, directions, signed=False).min() > 0.99
    codes = found.transform(rows)
    assert matched(codes.T, sources.T, signed=False).min() > 0.99
    assert codes.var(0).numpy() == pytest.approx(1, abs=1e-2)
    # As many components as the data have rank leave nothing out.
    assert torch.allclose(found.inverse_transform(codes), rows, atol=1e-8)
    assert matched(PCA(4).fit(rows).components_, directions, signed=False).min() < 0.95


def test_nmf_finds_parts_and_reads_rows_by_non_negative_least_squares(parts):
    rows, pieces = parts
    found = NMF(3, max_iter=2000, tol=1e-8).fit(rows)
    assert matched(found.components_, pieces, signed=True).min() > 0.98
    assert bool((found.components_ >= 0).all())
    codes = found.transform(rows[:20])
    best = np.stack([nnls(found.components_.T.numpy(), row)[0] for row in rows[:20].numpy()])
    assert codes.numpy() == pytest.approx(best, abs=1e-3)
    assert float((rows[:20] - found.inverse_transform(codes)).norm() / rows[:20].norm()) < 1e-2


def test_centres_of_separate_clusters_are_their_means():
    centres = torch.tensor([[10.0, 0, 0], [0, 10, 0], [0, 0, 10]], dtype=torch.float64)
    labels = torch.arange(90) % 3
    rows = centres[labels] + torch.randn(90, 3, generator=random(), dtype=torch.float64)
    found = KMeans(3).fit(rows)
    means = torch.stack([rows[labels == i].mean(0) for i in range(3)])
    order = torch.cdist(means, found.components_).argmin(1)
    assert torch.allclose(found.components_[order], means)
    codes = found.transform(rows)
    assert torch.equal(codes.argmax(1), order[labels])
    assert torch.equal(codes.sum(1), torch.ones(90, dtype=torch.float64))
    assert torch.allclose(found.inverse_transform(codes), means[labels])


@pytest.mark.parametrize("method", METHODS)
def test_all_have_one_interface(method, parts, tmp_path):
    rows = parts[0].float()
    found = method(3).fit(rows.reshape(2, 100, 12))
    assert found.components_.shape == (3, 12)
    assert found.mean_.shape == (12,)
    assert found.directions().norm(dim=1).numpy() == pytest.approx(1)
    codes = found.transform(rows.numpy())
    assert codes.shape == (200, 3)
    assert torch.allclose(found.inverse_transform(codes), codes @ found.components_ + found.mean_)
    again = method.load(found.save(tmp_path / "fit"))
    assert again.get_params() == found.get_params()
    assert torch.equal(again.transform(rows), codes)
    assert torch.equal(method(3).fit(rows).components_, found.components_)
    other = METHODS[METHODS.index(method) - 1]
    with pytest.raises(LoadError, match=f"is no {other.__name__}"):
        other.load(tmp_path / "fit")


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_decomposed_is_refused(method, parts):
    rows = parts[0]
    bad = rows.clone()
    bad[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        method(2).fit(bad)
    with pytest.raises(InputError, match="same at every row"):
        method(2).fit(torch.ones(20, 4))
    with pytest.raises(InputError, match="expected rows"):
        method(2).fit(rows[0])
    with pytest.raises(InputError, match="from 1 to"):
        method(0).fit(rows)
    with pytest.raises(InputError, match="call fit"):
        method(2).transform(rows)
    found = method(2).fit(rows)
    with pytest.raises(InputError, match="11 entries, expected 12"):
        found.transform(rows[:, 1:])
    with pytest.raises(InputError, match="expected 2"):
        found.inverse_transform(rows)


@pytest.mark.parametrize("method", [PCA, ICA])
def test_more_components_than_rank_are_refused(method, mixed):
    with pytest.raises(InputError, match="from 1 to 4, the rank"):
        method(5).fit(mixed[0])
    with pytest.raises(InputError, match="from 1 to 2, the rank"):
        method(3).fit(mixed[0][:3])


def test_clusters_and_parts_need_data_of_their_kind(mixed, parts):
    rows = torch.eye(3).repeat(10, 1)
    with pytest.raises(InputError, match="from 1 to 3, the number of different rows"):
        KMeans(4).fit(rows)
    with pytest.raises(InputError, match="use SemiNMF"):
        NMF(2).fit(mixed[0] - 5)
    with pytest.raises(InputError, match="never negative"):
        NMF(2).fit(parts[0]).transform(-parts[0])


def test_a_fit_that_stopped_early_says_so(mixed):
    with pytest.warns(ActiniumWarning, match="without converging"):
        ICA(4, max_iter=1).fit(mixed[0])
