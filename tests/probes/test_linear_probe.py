"""Linear probes give what scikit-learn and closed forms give, in the space of the activations as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from actinium.core.errors import ActiniumWarning, InputError, LoadError, UnknownNameError
from actinium.probes import CCS, LinearProbe
from actinium.probes.linear import KINDS


def clouds(n=300, d=6, classes=2, seed=0, spread=None):
    """Gaussian classes around different means, with entries of different scale."""
    random = np.random.default_rng(seed)
    means = random.normal(size=(classes, d)) * 1.5
    y = np.arange(n) % classes
    scales = np.geomspace(0.1, 10, d) if spread is None else spread
    return (means[y] + random.normal(size=(n, d))) * scales, y


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_in_input_space_is_the_regression_on_standardised_activations(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = clouds(classes=classes)
    probe = LinearProbe(C=0.3).fit(torch.from_numpy(x).float(), y)
    peer = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, tol=1e-8, max_iter=5000)).fit(x, y)
    assert probe.predict_proba(x) == pytest.approx(peer.predict_proba(x), abs=1e-4)
    assert probe.score(x, y) == pytest.approx(peer.score(x, y), abs=0.004)
    assert probe.direction_.shape == ((6,) if classes == 2 else (3, 6))
    assert probe.coef_.shape == ((1, 6) if classes == 2 else (3, 6))


def test_a_step_along_the_direction_raises_the_score_and_steps_across_it_do_not():
    x, y = clouds()
    probe = LinearProbe().fit(x, y)
    unit = probe.direction_.numpy()
    across = np.linalg.qr(np.column_stack([unit, np.eye(6)[:, :5]]))[0][:, 1]
    base = probe.decision_function(x)
    assert (probe.decision_function(x + 0.1 * unit) > base).all()
    assert probe.decision_function(x + 0.1 * across) == pytest.approx(base, abs=1e-9)
    assert np.linalg.norm(unit) == pytest.approx(1)


@pytest.mark.parametrize("classes", [2, 4])
def test_ridge_svm_and_regression_agree_with_their_libraries(classes):
    from sklearn.linear_model import Ridge, RidgeClassifier
    from sklearn.svm import LinearSVC

    x, y = clouds(classes=classes)
    z = (x - x.mean(0)) / x.std(0)
    ridge = LinearProbe("ridge", C=0.5).fit(x, y)
    peer = RidgeClassifier(alpha=2.0).fit(z, y)
    assert ridge.decision_function(x) == pytest.approx(peer.decision_function(z), abs=1e-8)
    svm = LinearProbe("linear_svm", C=0.1).fit(x, y)
    assert (svm.predict(x) == LinearSVC(C=0.1).fit(z, y).predict(z)).mean() > 0.98
    target = x @ np.arange(6.0)
    numbers = LinearProbe("ridge_regression", C=2.0).fit(x, target)
    assert numbers.predict(x) == pytest.approx(Ridge(alpha=0.5).fit(z, target).predict(z), abs=1e-8)
    assert numbers.score(x, target) > 0.999
    assert numbers.direction_.shape == (6,)


@pytest.mark.parametrize("classes", [2, 3])
def test_lda_is_that_of_scikit_learn(classes):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, y = clouds(classes=classes)
    y = np.concatenate([y, np.zeros(100, dtype=int)])  # unequal shares, so that priors count
    x = np.concatenate([x, clouds(n=100 * classes, classes=classes, seed=0)[0][::classes]])
    for shrinkage in (0.0, 0.3, "auto"):
        probe = LinearProbe("lda", shrinkage=shrinkage).fit(x, y)
        if shrinkage == "auto":  # the library shrinks each class by itself
            assert probe.score(x, y) > 0.8
            continue
        # Shrunk within each class there, of the pooled covariance here: the same without shrinkage.
        peer = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
        if shrinkage == 0.0:
            assert probe.predict_proba(x) == pytest.approx(peer.predict_proba(x), abs=1e-6)


def test_mass_mean_is_the_difference_of_means_and_iid_bends_it_by_the_covariance():
    random = np.random.default_rng(0)
    mixing = np.array([[1.0, 0.9], [0.0, 0.3]])
    y = np.arange(2000) % 2
    x = random.normal(size=(2000, 2)) @ mixing.T + np.where(y[:, None] == 1, [1.0, 0.0], [-1.0, 0.0])
    theta = x[y == 1].mean(0) - x[y == 0].mean(0)
    middle = (x[y == 1].mean(0) + x[y == 0].mean(0)) / 2
    plain = LinearProbe("mass_mean").fit(x, y)
    assert plain.coef_[0] == pytest.approx(theta)
    assert plain.predict_proba(x)[:, 1] == pytest.approx(expit((x - middle) @ theta))
    residual = x - np.where(y[:, None] == 1, x[y == 1].mean(0), x[y == 0].mean(0))
    bent = np.linalg.solve(np.cov(residual.T, bias=True), theta)
    iid = LinearProbe("mass_mean_iid").fit(x, y)
    assert iid.coef_[0] == pytest.approx(bent)
    assert iid.decision_function(x) == pytest.approx((x - middle) @ bent)
    # Balanced classes: Fisher's direction, and better than the plain one where noise is not round.
    assert iid.direction_.numpy() == pytest.approx(LinearProbe("lda").fit(x, y).direction_.numpy())
    assert iid.score(x, y) > plain.score(x, y) + 0.02


def test_mass_mean_of_several_classes_takes_the_nearest_mean():
    x, y = clouds(classes=4, spread=np.ones(6))
    probe = LinearProbe("mass_mean").fit(x, y)
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    nearest = ((x[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (probe.predict(x) == nearest).all()
    assert probe.predict_proba(x) == pytest.approx(softmax(probe.decision_function(x), 1))


def test_the_penalty_is_chosen_between_groups_and_ties_take_the_smallest():
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(30), 10)
    y = np.repeat(np.arange(30) % 2, 10)
    # Each group has an entry of its own that gives it away; only the first entry carries over to other groups.
    x = np.concatenate([(y * 2 - 1 + random.normal(size=300) * 1.5)[:, None], np.eye(30)[groups] * 5], 1)
    apart = LinearProbe(cv=5).fit(x, y, groups)
    mixed = LinearProbe(cv=5).fit(x, y)
    assert apart.C_ < mixed.C_
    easy = LinearProbe("ridge", cv=3).fit(*clouds(d=3, spread=np.array([1.0, 1.0, 1.0]), seed=3))
    assert easy.C_ in {10.0**e for e in range(-4, 5)}
    separable = np.array([[-1.0], [1.0]] * 20)
    assert LinearProbe("ridge", cv=2).fit(separable, [0, 1] * 20).C_ == 1e-4


@pytest.mark.parametrize("labels", [["no", "yes"], [False, True], [3, 8]])
def test_labels_of_any_kind_come_back_also_from_disk(labels, tmp_path):
    x, y = clouds()
    given = np.array(labels)[y]
    for kind in KINDS[:-1]:
        probe = LinearProbe(kind).fit(x, given)
        probe.save(tmp_path / "probe")
        again = LinearProbe.load(tmp_path / "probe")
        assert (again.predict(x) == probe.predict(x)).all()
        assert set(again.predict(x)) <= set(given)
        assert again.get_params() == probe.get_params()
        assert again.score(x, given) == probe.score(x, given) > 0.6
    with pytest.raises(LoadError, match="is no contrast"):
        CCS.load(tmp_path / "probe")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"kind": "logistics"}, UnknownNameError, "did you mean 'logistic'"),
        ({"C": 0}, InputError, "C must be above 0"),
        ({"kind": "lda", "C": 3.0}, InputError, "no penalty"),
        ({"kind": "mass_mean", "cv": 5}, InputError, "no penalty"),
        ({"shrinkage": 0.5}, InputError, "no covariance"),
        ({"kind": "lda", "shrinkage": 2}, InputError, "from 0 to 1"),
        ({"cv": 1}, InputError, "folds must be 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        LinearProbe(**settings).fit(*clouds(n=20))


def test_data_that_cannot_be_read_are_refused():
    x, y = clouds(n=20)
    for rows, labels, message in (
        (x[:0], y[:0], "expected rows"),
        (x[None], y, "expected rows"),
        (np.where(x > x.max() - 1e-9, np.nan, x), y, "NaN"),
        (x, np.zeros(20), "one class only"),
        (x, y[:5], "one for each of 20"),
        (x, y + 0.5, "ridge_regression"),
        (np.ones_like(x), y, "all activations are the same"),
        ("text", y, "not str"),
    ):
        with pytest.raises(InputError, match=message):
            LinearProbe().fit(rows, labels)
    with pytest.raises(InputError, match="singular; use shrinkage"):
        LinearProbe("lda").fit(x[:5], y[:5])
    assert LinearProbe("lda", shrinkage="auto").fit(x[:5], y[:5]).coef_.shape == (1, 6)
    with pytest.raises(InputError, match="without cv= nothing is"):
        LinearProbe().fit(x, y, np.arange(20))
    with pytest.raises(InputError, match="all the same number"):
        LinearProbe("ridge_regression").fit(x, np.ones(20))
    with pytest.raises(InputError, match="call fit"):
        LinearProbe().predict(x)
    probe = LinearProbe("ridge").fit(x, y)
    with pytest.raises(InputError, match="expected 6"):
        probe.predict(x[:, :3])
    with pytest.raises(InputError, match="PlattScaling"):
        probe.predict_proba(x)
    with pytest.warns(ActiniumWarning, match="did not converge"):
        LinearProbe(C=1e4, max_iter=2).fit(x, y)


def test_entries_that_do_not_vary_get_no_weight():
    x, y = clouds()
    x[:, 2] = 7.0
    for kind in ("logistic", "ridge"):
        assert LinearProbe(kind).fit(x, y).coef_[0, 2] == 0.0
