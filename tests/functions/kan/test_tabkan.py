"""TabKAN: scikit-learn's own checks, scikit-learn's tables, effects of features, transfer, and tuning by rewards."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from actinium.core.errors import InputError, MissingExtraError
from actinium.functions.kan.kan_importance import kan_feature_effects, kan_feature_importance
from actinium.functions.kan.kan_network import KANNetwork
from actinium.functions.kan.kan_training import grpo_loss, grpo_tune, train_network
from actinium.functions.kan.tabkan import TabKANClassifier, TabKANRegressor
from actinium.functions.kan.tabkan_search import search_sizes
from actinium.functions.kan.table_preparation import TablePreparation

QUICK = {"hidden": (8,), "steps": 30, "lr": 0.05}


@pytest.mark.parametrize("kind", [TabKANClassifier, TabKANRegressor])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_finds_no_fault(kind):
    found = check_estimator(kind(hidden=(6,), steps=20, lr=0.1), on_fail=None, on_skip=None)
    assert [(c["check_name"], c["exception"]) for c in found if c["status"] not in ("passed", "skipped")] == []
    assert sum(c["status"] == "passed" for c in found) > 45


@pytest.fixture(scope="module")
def cancer():
    x, y = load_breast_cancer(return_X_y=True, as_frame=True)
    return train_test_split(x, y, test_size=0.3, stratify=y, random_state=0)


@pytest.fixture(scope="module")
def detector(cancer):
    return TabKANClassifier(weight_decay=1e-3, steps=60, lr=2e-2).fit(cancer[0], cancer[2])


def test_breast_cancer_is_told_nearly_as_well_as_by_logistic_regression(cancer, detector):
    _, x, _, y = cancer
    chances = detector.predict_proba(x)
    np.testing.assert_allclose(chances.sum(1), 1)
    np.testing.assert_array_equal(detector.predict(x), chances.argmax(1))
    base = make_pipeline(StandardScaler(), LogisticRegression()).fit(cancer[0], cancer[2])
    linear = roc_auc_score(y, base.predict_proba(x)[:, 1])
    assert roc_auc_score(y, chances[:, 1]) > max(0.96, linear - 0.03)
    assert detector.losses_[-1] < 0.3 * detector.losses_[0]


@pytest.mark.parametrize("layer", ["fourier", "spline", "fast", "jacobi", "fractional", "pade", "wavelet", "daruan"])
def test_every_layer_tells_breast_cancer(layer, cancer):
    x, seen, y, held = cancer
    model = TabKANClassifier(layer, (4,), steps=40, lr=5e-2).fit(x, y)
    assert model.score(seen, held) > 0.88


def test_diabetes_is_predicted_better_than_by_the_mean():
    x, y = load_diabetes(return_X_y=True, as_frame=True)
    scores = cross_val_score(TabKANRegressor(order=2, hidden=(4,), steps=60, weight_decay=0.03), x, y, cv=3)
    assert scores.mean() > 0.35
    with_lbfgs = TabKANRegressor(order=2, hidden=(4,), optimiser="lbfgs", lr=1.0, steps=5, weight_decay=0.03)
    assert with_lbfgs.fit(x, y).score(x, y) > 0.5


def test_it_works_in_a_grid_search_of_a_pipeline():
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    pipe = make_pipeline(StandardScaler(), TabKANClassifier(**QUICK))
    search = GridSearchCV(pipe, {"tabkanclassifier__layer": ["chebyshev", "fourier"]}, cv=3).fit(x, names)
    assert search.best_score_ > 0.9
    assert set(search.predict(x)) == set(names)


def synthetic(n=600, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, (n, 6))
    parts = np.stack([np.sin(3 * x[:, 0]), 0.5 * x[:, 1] ** 2, 0.2 * x[:, 2]])
    return x, parts


@pytest.fixture(scope="module")
def additive():
    x, parts = synthetic()
    y = parts.sum(0)
    return x, parts, TabKANRegressor(order=6, hidden=(8,), steps=500, lr=2e-2, weight_decay=0.0).fit(x, y)


def test_effects_are_those_of_an_additive_target(additive):
    x, parts, model = additive
    effects = model.feature_effects(x)[:, 0]
    np.testing.assert_allclose(effects[:3], parts.std(1), atol=0.08)
    assert effects[3:].max() < 0.05
    order = {m: model.feature_importance(x, m) for m in ("effect", "score", "coefficients")}
    for values in order.values():
        assert values.sum() == pytest.approx(1)
        assert values[:3].min() > values[3:].max()
    # Weights of noise do not vanish as effects do.
    assert order["coefficients"][3:].sum() > order["effect"][3:].sum()


def test_radial_layers_see_columns_and_not_rows():
    """A norm over the row would mix columns that are on a common scale."""
    x, parts = synthetic(400)
    y = parts.sum(0)
    model = TabKANRegressor(layer="fast", hidden=(8,), steps=150, lr=2e-2).fit(x[:300], y[:300])
    assert model.score(x[300:], y[300:]) > 0.95
    curve = model.feature_curve(0, x[:, 0]) @ model.network_.head.weight.detach().numpy()[0]
    assert np.corrcoef(curve, parts[0])[0, 1] > 0.98
    for layer, options in (("fast", {"norm": True}), ("daruan", {"batch_norm": True})):
        other = TabKANRegressor(layer=layer, layer_options=options, hidden=(2,), steps=1).fit(x, y)
        with pytest.raises(InputError, match="normalised inputs"):
            other.feature_curve(0, [0.0])


def test_effects_of_one_layer_are_those_of_the_composed_function(additive):
    x, _, model = additive
    head = model.network_.head.weight.detach().numpy()[0]
    for i in range(6):
        curve = model.feature_curve(i, x[:, i])
        assert curve.shape == (600, 8)
        wanted = (curve @ head).std(ddof=1) * model.spread_
        assert model.feature_effects(x)[i, 0] == pytest.approx(wanted, rel=1e-9)
    # All curves together are the prediction, as a layer is additive.
    total = sum(model.feature_curve(i, x[:, i]) @ head for i in range(6)) + float(model.network_.head.bias.detach())
    np.testing.assert_allclose(total * model.spread_ + model.middle_, model.predict(x), atol=1e-9)


def test_effects_of_deep_networks_follow_finite_changes():
    """With a small first layer, an output changes by slope times change: then effects are standard deviations."""
    torch.manual_seed(0)
    network = KANNetwork([3, 4, 4], "chebyshev", head=2).double()
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn_like(p))
        network.layers[0].coefficients *= 1e-4
    x = torch.randn(100, 3, dtype=torch.float64)
    effects = kan_feature_effects(network, x)
    for i in range(3):
        still = x.clone()
        still[:, i] = 0.0
        wanted = (network(x) - network(still)).std(0).detach()
        torch.testing.assert_close(effects[i], wanted, rtol=1e-3, atol=0)


def test_importance_follows_its_column(cancer, detector):
    x = cancer[0]
    order = np.random.default_rng(0).permutation(x.shape[1])
    network = KANNetwork([30, 8], head=2, layer="chebyshev").double()
    twin = KANNetwork([30, 8], head=2, layer="chebyshev").double()
    twin.load_state_dict(network.state_dict() | {"layers.0.coefficients": network.layers[0].coefficients[order]})
    rows = torch.tensor(StandardScaler().fit_transform(x))
    for method in ("effect", "score", "coefficients"):
        found = kan_feature_importance(network, rows, method)
        torch.testing.assert_close(kan_feature_importance(twin, rows[:, order], method), found[order])
    named = detector.feature_curve("mean area", [500.0, 900.0])
    np.testing.assert_allclose(named, detector.feature_curve(list(x.columns).index("mean area"), [500.0, 900.0]))


def test_the_order_of_columns_is_checked(cancer, detector):
    x = cancer[1]
    with pytest.raises(InputError, match="same order"):
        detector.predict(x[list(x.columns[::-1])])
    with pytest.raises(InputError, match="mean radius"):
        detector.predict(x.drop(columns="mean radius"))


def test_scaling_is_learnt_on_training_rows_only(cancer):
    x, other, y, _ = cancer
    model = TabKANClassifier(**QUICK).fit(x, y)
    before = model.predict_proba(other)
    np.testing.assert_allclose(model.predict_proba(other[:3]), before[:3], atol=1e-12)
    np.testing.assert_allclose(model.preparation_.middle, x.mean().to_numpy())


def test_quantiles_are_scikit_learns():
    x = np.random.default_rng(0).lognormal(size=(400, 2))
    ours = TablePreparation("quantile", None).fit(x).transform(x)
    theirs = QuantileTransformer(n_quantiles=400, output_distribution="normal").fit_transform(x)
    inside = np.abs(theirs) < 3
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-6)
    assert np.abs(ours).max() < 3.1
    ties = np.array([[1.0], [2.0], [2.0], [2.0], [5.0]])
    found = TablePreparation("quantile", None).fit(ties).transform(ties)
    np.testing.assert_allclose(found[1:4], 0, atol=1e-12)  # the middle of their ranks


def test_missing_values_are_filled_before_scaling():
    x = np.array([[1.0, 10.0], [np.nan, 20.0], [3.0, 60.0], [8.0, np.nan]])
    assert TablePreparation(None, "mean").fit(x).transform(x)[1, 0] == 4
    assert TablePreparation(None, "median").fit(x).transform(x)[3, 1] == 20
    assert TablePreparation(None, "zero").fit(x).transform(x)[1, 0] == 0
    filled = TablePreparation("standard", "mean").fit(x).transform(x)
    assert filled[1, 0] == 0 and np.abs(filled.mean(0)).max() < 1e-12
    with pytest.raises(InputError, match="no value at all"):
        TablePreparation(None, "mean").fit(np.full((3, 1), np.nan))
    gaps = load_iris().data.copy()
    gaps[::7, 1] = np.nan
    assert (
        TabKANClassifier(impute="median", **QUICK).fit(gaps, load_iris().target).score(gaps, load_iris().target) > 0.9
    )


def test_text_columns_are_encoded_where_asked():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(size=120), "colour": rng.choice(["red", "green", "blue"], 120)})
    y = (frame["colour"] == "red").astype(int)
    with pytest.raises(InputError, match="colour"):
        TabKANClassifier(**QUICK).fit(frame, y)
    model = TabKANClassifier(encode="ordinal", hidden=(8,), steps=80, lr=0.05).fit(frame, y)
    assert model.score(frame, y) > 0.95
    with pytest.raises(InputError, match="'pink'"):
        model.predict(pd.DataFrame({"size": [0.0], "colour": ["pink"]}))


def test_a_model_is_carried_to_a_table_with_other_columns(cancer):
    x, other, y, held = cancer
    source = TabKANClassifier(**QUICK).fit(x, y)
    fewer = other.drop(columns=["mean area", "mean texture"]).assign(new=1.0)
    fewer = fewer[list(fewer.columns[::-1])]
    first = source.transfer(fewer[:60], held[:60], train="head", steps=1, lr=1e-9)
    # Without training it is the source model, in which the missing columns stand at their mean.
    filled = other.assign(**{n: x[n].mean() for n in ("mean area", "mean texture")})
    np.testing.assert_allclose(first.predict_proba(fewer), source.predict_proba(filled), atol=1e-6)
    importance = first.feature_importance(fewer)
    assert importance.shape == (29,) and importance[0] == 0 and importance.sum() == pytest.approx(1)
    with pytest.raises(InputError, match="not used"):
        first.feature_curve("new", [0.0])
    head = source.transfer(fewer[:60], held[:60], train="head", steps=10)
    torch.testing.assert_close(head.network_.layers[0].coefficients, source.network_.layers[0].coefficients)
    assert not torch.equal(head.network_.head.weight, source.network_.head.weight)
    whole = source.transfer(fewer[:60], held[:60], steps=10)
    assert not torch.equal(whole.network_.layers[0].coefficients, source.network_.layers[0].coefficients)
    assert whole.score(fewer[60:], held[60:]) > 0.9


def test_new_classes_get_a_new_head():
    x, y = load_iris(return_X_y=True)
    source = TabKANClassifier(**QUICK).fit(x[:100], y[:100])
    new = source.transfer(x[:, [3, 2]], y, columns=[3, 2], steps=80)
    assert new.classes_.tolist() == [0, 1, 2] and source.classes_.tolist() == [0, 1]
    assert new.score(x[:, [3, 2]], y) > 0.85
    for columns in (None, [1], [1, 1], [None, None]):
        with pytest.raises(InputError, match="column"):
            source.transfer(x[:, [3, 2]], y, columns=columns)


def test_the_loss_of_sampled_labels_has_the_slope_of_the_reward():
    """Over all samples the gradient is -(G - 1) / G times that of the mean probability of the right label."""
    logits = torch.randn(1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    label, group = torch.tensor([1]), 2
    p = logits.softmax(-1)[0]
    expected = torch.zeros((), dtype=torch.float64)
    for first in range(3):
        for second in range(3):
            weight = (p[first] * p[second]).detach()
            expected = expected + weight * grpo_loss(
                logits, logits.detach(), label, torch.tensor([[first, second]]), 0.0
            )
    (found,) = torch.autograd.grad(expected, logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(-(group - 1) / group * p[1], logits)
    torch.testing.assert_close(found, wanted)
    far = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    both = torch.tensor([[0, 0]])  # equal samples have no advantage: what is left is the divergence
    kl = torch.nn.functional.kl_div(far.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(grpo_loss(logits, far, label, both, 0.5), 0.5 * kl)


def test_tuning_by_rewards_raises_them(cancer):
    x, other, y, held = cancer
    model = TabKANClassifier(hidden=(8,), steps=10).fit(x, y)
    before = model.predict_proba(other)[np.arange(len(held)), held].mean()
    rewards = model.tune_grpo(x, y, lr=2e-2, steps=60)
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10])
    assert model.predict_proba(other)[np.arange(len(held)), held].mean() > before
    with pytest.raises(InputError, match="does not know"):
        model.tune_grpo(x, y + 5)
    with pytest.raises(InputError, match="two samples"):
        grpo_tune(model.network_, torch.zeros(3, 30), torch.zeros(3).long(), group=1)


def test_sizes_are_searched_at_random(cancer):
    x, _, y, _ = cancer
    space = {"depth": [1, 2], "width": [5, 10], "order": [2, 3]}
    best, table = search_sizes(TabKANClassifier(steps=10, lr=0.05), x, y, trials=3, space=space)
    assert table.data.sizes["trial"] == 3
    top = table.data.isel(trial=int(table["outcome"].values.argmax()))
    assert best.order == int(top["order"]) and best.hidden == (int(top["width"]),) * int(top["depth"])
    assert best.predict(x).shape == y.shape
    again, _ = search_sizes(TabKANClassifier(steps=10, lr=0.05), x, y, trials=3, space=space)
    np.testing.assert_array_equal(again.predict_proba(x), best.predict_proba(x))
    with pytest.raises(InputError, match="depth"):
        search_sizes(TabKANClassifier(), x, y, trials=1, space={"depht": [1, 2]})


def test_held_out_rows_choose_the_state():
    torch.manual_seed(0)
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    network = KANNetwork([4, 16], "chebyshev", 6, head=1).double()

    def loss(out, target):
        return torch.nn.functional.mse_loss(out[:, 0], target)

    before = float(loss(network(x[20:]), y[20:]).detach())
    train_network(network, x[:20], y[:20], loss, steps=200, lr=0.05, held_out=(x[20:], y[20:]))
    kept = float(loss(network(x[20:]), y[20:]).detach())
    train_network(network, x[:20], y[:20], loss, steps=200, lr=0.05)
    assert kept < float(loss(network(x[20:]), y[20:]).detach())  # noise is learnt by heart
    assert kept < 3 * before
    model = TabKANClassifier(validation_fraction=0.2, batch_size=16, **QUICK).fit(*load_iris(return_X_y=True))
    assert len(model.losses_) == 30


def test_sparsity_takes_noise_away():
    x, parts = synthetic(150)
    y = parts[0] + np.random.default_rng(1).normal(size=150)
    noise = []
    for sparsity in (0.0, 0.1):
        model = TabKANRegressor(order=4, hidden=(4,), steps=200, lr=3e-2, sparsity=sparsity).fit(x, y)
        noise.append(model.feature_importance(x)[1:].sum())
    assert noise[1] < 0.75 * noise[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": "chebychev"}, "chebyshev"), ({"order": 0}, "order"), ({"hidden": (0,)}, "sizes"),
        ({"steps": 0}, "a step"), ({"lr": -1.0}, "positive lr"), ({"optimiser": "sgd"}, "optimiser"),
        ({"batch_size": 0}, "one row"), ({"optimiser": "lbfgs", "batch_size": 4}, "all rows"),
        ({"scale": "minmax"}, "scale"), ({"impute": "mode"}, "imputer"), ({"encode": "hot"}, "encoder"),
        ({"validation_fraction": 1.0}, "fraction"), ({"sparsity": -1.0}, "sparsity"),
        ({"layer_options": {"grid": 3}}, "grid"), ({"lr": 1e300}, "loss"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, message):
    x, y = load_iris(return_X_y=True)
    with pytest.raises((InputError, LookupError), match=message):
        TabKANClassifier(**settings).fit(x, y)


def test_tables_that_cannot_be_are_refused():
    x, y = load_iris(return_X_y=True)
    holes = x.copy()
    holes[3, 2] = np.nan
    for rows, targets, message in [(holes, y, "NaN"), (x, np.ones(150), "one class"), (x[:0], y[:0], "minimum of 2")]:
        with pytest.raises(InputError, match=message):
            TabKANClassifier(**QUICK).fit(rows, targets)
    with pytest.raises(InputError, match="constant"):
        TabKANRegressor(**QUICK).fit(x, np.ones(150))
    with pytest.raises(NotFittedError, match="fit first"):
        TabKANRegressor().feature_curve(0, [1.0])
    model = TabKANClassifier(**QUICK).fit(x, y)
    with pytest.raises(InputError, match="columns 0 to 3"):
        model.feature_curve(9, [1.0])
    with pytest.raises(InputError, match="needs rows"):
        model.feature_importance()
    with pytest.raises(InputError, match="no sums"):
        kan_feature_importance(KANNetwork([2, 2], "pade"), method="coefficients")


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.utils.validation", None)
    with pytest.raises(MissingExtraError, match="actinium\\[learn\\]"):
        TabKANClassifier().fit(np.ones((3, 2)), [0, 1, 0])
