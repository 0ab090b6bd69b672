"""Sparse probes find the units that were planted, and the optimal single one by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from actinium.core.errors import InputError, UnknownNameError
from actinium.probes import SparseProbe, sparse_probe_curve
from actinium.probes.sparse_probing import SELECTIONS


def planted(n=300, d=20, seed=0):
    """Units 3 and 11 carry the feature, 3 the better; unit 7 is loud and says nothing; unit 5 never varies."""
    random = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = random.normal(size=(n, d))
    x[:, 3] += 3 * y
    x[:, 11] -= 2 * y
    x[:, 7] *= 20
    x[:, 5] = 1.0
    return x, y


@pytest.mark.parametrize("selection", [s for s in SELECTIONS if s not in ("optimal", "mean_diff")])
def test_planted_units_are_found(selection):
    x, y = planted()
    probe = SparseProbe(2, selection=selection).fit(x, y)
    assert probe.units_.tolist() == [3, 11]
    assert probe.score(*planted(seed=1)) > 0.93
    assert np.isneginf(probe.ranking_[5])


def test_mean_difference_ranks_by_the_distance_of_means():
    from sklearn.feature_selection import f_classif

    x, y = planted()
    gaps = np.abs(x[y == 1].mean(0) - x[y == 0].mean(0))
    varying = np.arange(20) != 5
    assert SparseProbe(1).fit(x, y).ranking_[varying] == pytest.approx(gaps[varying])
    f = SparseProbe(1, selection="f_statistic").fit(x, y).ranking_
    assert f[varying] == pytest.approx(f_classif(x[:, varying], y)[0])


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_the_optimal_unit_has_the_least_loss_of_all_single_regressions(C):
    from sklearn.linear_model import LogisticRegression

    x, y = planted(n=120, d=12)
    found = SparseProbe(1, selection="optimal", C=C).fit(x, y)
    for unit in range(12):
        if unit == 5:
            continue
        z = ((x[:, unit] - x[:, unit].mean()) / x[:, unit].std())[:, None]
        peer = LogisticRegression(C=C, tol=1e-10, max_iter=1000).fit(z, y)
        p = peer.predict_proba(z)[np.arange(len(y)), y]
        loss = -C * np.log(p).sum() + (peer.coef_**2).sum() / 2
        assert -found.ranking_[unit] == pytest.approx(loss, rel=1e-5)
    assert found.units_.tolist() == [3]


def test_the_curve_rises_with_the_planted_units_and_then_stays():
    x, y = planted()
    found = sparse_probe_curve(x, y, (1, 2, 8), selection="f_statistic", folds=3)
    f1 = found["f1"].values
    assert f1[1] > f1[0] + 0.01
    assert abs(f1[2] - f1[1]) < 0.03
    assert found["stable"].values[:2].tolist() == [1.0, 1.0]
    assert float(found["full_accuracy"]) > 0.9


def test_units_are_chosen_inside_each_fold():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 2000)), np.arange(40) % 2
    inside = float(sparse_probe_curve(x, y, (5,), folds=4)["accuracy"][0])
    best = SparseProbe(5).fit(x, y)
    assert best.score(x, y) > 0.85  # chosen and tested on the same rows, noise looks like a feature
    assert inside < 0.7


def test_it_comes_back_from_disk(tmp_path):
    x, y = planted()
    probe = SparseProbe(2, selection="l1").fit(x, np.where(y == 1, "yes", "no"))
    probe.save(tmp_path / "probe")
    again = SparseProbe.load(tmp_path / "probe")
    assert (again.predict(x) == probe.predict(x)).all()
    assert again.predict_proba(x) == pytest.approx(probe.predict_proba(x))
    assert again.units_.tolist() == probe.units_.tolist()


def test_what_cannot_be_probed_is_refused():
    x, y = planted(n=30)
    for settings, message in (
        ({"k": 0}, "from 1 to 19"),
        ({"k": 20}, "from 1 to 19"),
        ({"k": 2, "selection": "optimal"}, "k = 1 alone"),
    ):
        with pytest.raises(InputError, match=message):
            SparseProbe(**settings).fit(x, y)
    with pytest.raises(UnknownNameError, match="mean_diff"):
        SparseProbe(selection="mean_dif").fit(x, y)
    with pytest.raises(InputError, match="two values"):
        SparseProbe().fit(x, np.arange(30) % 3)
    with pytest.raises(InputError, match="no number of units"):
        sparse_probe_curve(x, y, ())
