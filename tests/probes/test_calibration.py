"""Calibration measures agree with closed forms and with scikit-learn, and what mends them does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

import actinium.probes as probes
from actinium.core.errors import InputError, LoadError, UnknownNameError


def said(n=4000, k=4, sharpness=2.0, seed=0):
    """Logits that are `sharpness` times the true ones, and labels drawn from the true probabilities."""
    random = np.random.default_rng(seed)
    true = random.normal(size=(n, k)) * 1.5
    p = softmax(true, 1)
    y = (random.random((n, 1)) > p.cumsum(1)).sum(1).clip(0, k - 1)
    return true * sharpness, y


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    logits, y = said(n=500)
    p = softmax(logits, 1)
    assert probes.nll(p, y) == pytest.approx(log_loss(y, p))
    assert probes.auroc(p, y) == pytest.approx(roc_auc_score(y, p, multi_class="ovr"))
    two = np.round(expit(logits[:, 0]), 2)  # with ties
    label = (y == 0).astype(int)
    assert probes.brier(torch.from_numpy(two), label) == pytest.approx(brier_score_loss(label, two))
    assert probes.auroc(two, label) == pytest.approx(roc_auc_score(label, two))
    both = np.stack([1 - two, two], 1)
    assert probes.brier(both, label) == pytest.approx(2 * probes.brier(two, label))
    assert probes.nll(np.array([0.0, 1.0]), [1, 1]) == np.inf


def test_error_by_width_is_the_weighted_gap_of_bins():
    p = np.array([0.05, 0.15, 0.15, 0.95, 1.0, 0.0])
    y = np.array([0, 1, 0, 1, 0, 0])
    # Bins of width 0.1: {0.05, 0.0}, {0.15, 0.15}, {0.95, 1.0}.
    want = (abs(0 - 0.05) + abs(1 - 0.3) + abs(1 - 1.95)) / 6
    assert probes.calibration_error(p, y, bins=10) == pytest.approx(want)
    found = probes.reliability(p, y, bins=10)
    assert found["count"].values.tolist() == [2, 2, 2]
    assert found["bin"].values.tolist() == [0, 1, 9]
    assert float(found["mce"]) == pytest.approx(0.475)
    assert float(found["bias"]) == pytest.approx(p.mean() - y.mean())


def test_curves_are_those_of_scikit_learn():
    from sklearn.calibration import calibration_curve

    logits, y = said(n=1000)
    p, label = expit(logits[:, 0]), (y == 0).astype(int)
    for by, strategy in (("width", "uniform"), ("mass", "quantile")):
        ours = probes.reliability(p, label, bins=8, by=by)
        seen, mean = calibration_curve(label, p, n_bins=8, strategy=strategy)
        assert ours["observed"].values == pytest.approx(seen, abs=0.02)
        assert ours["confidence"].values == pytest.approx(mean, abs=0.02)


def test_bins_of_equal_mass_hold_as_many_rows_and_keep_ties_together():
    logits, y = said(n=1000)
    found = probes.reliability(softmax(logits, 1), y, bins=10, by="mass")
    assert (found["count"].values == 100).all()
    tied = probes.reliability(np.array([0.2] * 5 + [0.8] * 5), [0, 1] * 5, bins=4, by="mass")
    assert tied["count"].values.tolist() == [5, 5]


def test_errors_of_one_bin_and_of_perfect_answers():
    logits, y = said(n=300)
    p = softmax(logits, 1)
    assert probes.calibration_error(p, y, bins=1) == pytest.approx(abs((p.argmax(1) == y).mean() - p.max(1).mean()))
    assert probes.calibration_error(np.eye(4)[y], y) == 0
    assert probes.brier(np.eye(4)[y], y) == 0


def test_a_temperature_undoes_a_known_sharpness(tmp_path):
    for sharpness in (0.5, 3.0):
        logits, y = said(n=20_000, sharpness=sharpness)
        scaling = probes.TemperatureScaling().fit(logits, y)
        assert scaling.temperature_ == pytest.approx(sharpness, rel=0.05)
        p = scaling.predict_proba(logits)
        assert probes.calibration_error(p, y) < 0.015 < probes.calibration_error(softmax(logits, 1), y)
        # The gradient of the likelihood with respect to 1 / T vanishes.
        slope = (logits[np.arange(len(y)), y] - (p * logits).sum(1)).mean()
        assert slope == pytest.approx(0, abs=1e-4)
    scaling.save(tmp_path / "t")
    assert probes.TemperatureScaling.load(tmp_path / "t").temperature_ == scaling.temperature_
    two = probes.TemperatureScaling().fit(logits[:, 1] - logits[:, 0], (y == 1).astype(int))
    assert two.predict_proba(np.zeros(3)) == pytest.approx(0.5)


def test_platt_scaling_is_that_of_scikit_learn(tmp_path):
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.svm import LinearSVC

    random = np.random.default_rng(0)
    x = random.normal(size=(200, 3))
    y = (x[:, 0] + random.normal(size=200) > 0.3).astype(int)
    svm = LinearSVC().fit(x, y)
    peer = CalibratedClassifierCV(FrozenEstimator(svm), method="sigmoid", ensemble=False).fit(x, y)
    scores = svm.decision_function(x)
    ours = probes.PlattScaling().fit(scores * 1e3 + 5e4, y)  # whatever the scale
    assert ours.predict_proba(scores * 1e3 + 5e4) == pytest.approx(peer.predict_proba(x)[:, 1], abs=1e-4)
    ours.save(tmp_path / "p")
    assert probes.PlattScaling.load(tmp_path / "p").slope_ == ours.slope_
    with pytest.raises(LoadError):
        probes.TemperatureScaling.load(tmp_path / "p")


def test_smoothed_targets_keep_separable_scores_finite():
    found = probes.PlattScaling().fit(np.array([-1.0, -2.0, 1.0, 2.0]), [0, 0, 1, 1])
    assert np.isfinite([found.slope_, found.offset_]).all()
    p = found.predict_proba(np.array([-2.0, 2.0]))
    assert 0 < p[0] < 0.35 < 0.65 < p[1] < 1


def test_a_reliability_curve_draws_itself():
    logits, y = said(n=200)
    assert probes.reliability(softmax(logits, 1), y).plot().get_title() == "reliability"


def test_what_is_no_probability_is_refused():
    for p, y, message in (
        ([0.2, 1.4], [0, 1], "from 0 to 1"),
        ([[0.2, 0.2]], [0], "sum to 1"),
        ([0.2, np.nan], [0, 1], "from 0 to 1"),
        ([0.2, 0.4], [0, 2], "whole numbers from 0 to 1"),
        ([0.2, 0.4], [0], "expected 2"),
        ([], [], "got shape"),
    ):
        with pytest.raises(InputError, match=message):
            probes.brier(np.array(p), np.array(y))
    with pytest.raises(UnknownNameError, match="width"):
        probes.calibration_error([0.2, 0.4], [0, 1], by="widht")
    with pytest.raises(InputError, match="bins must be"):
        probes.calibration_error([0.2, 0.4], [0, 1], bins=0)
    with pytest.raises(InputError, match="one class"):
        probes.auroc([0.1, 0.2], [1, 1])
    with pytest.raises(InputError, match="columns of scores"):
        probes.auroc(np.ones((3, 3)), [0, 1, 0])
    with pytest.raises(InputError, match="no temperature is best"):
        probes.TemperatureScaling().fit(np.eye(3) * 2, [0, 1, 2])
    with pytest.raises(InputError, match="no temperature is best"):
        probes.TemperatureScaling().fit(np.eye(3) * 2, [1, 2, 0])
    with pytest.raises(InputError, match="all scores are the same"):
        probes.PlattScaling().fit(np.ones(4), [0, 1, 0, 1])
    with pytest.raises(InputError, match="call fit"):
        probes.PlattScaling().predict_proba([0.1])
