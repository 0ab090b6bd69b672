"""Transport operators against closed forms, scikit-learn, and data whose transport is planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium.circuits import TransportOperator, cca_ceiling, feature_transport_scores, transport_efficiency
from actinium.core.errors import ActiniumWarning, InputError, LoadError, UnknownNameError


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def planted(n=20000, d=32, carried=8, seed=0):
    """Y with `carried` dimensions of X, turned, and the rest fresh; and the directions of both kinds in Y."""
    x, fresh = drawn(n, d, seed=seed), drawn(n, d - carried, seed=seed + 1)
    turn = torch.linalg.qr(drawn(d, d, seed=99))[0]
    return x, torch.cat([x[:, :carried], fresh], 1) @ turn, turn


# Operators --------------------------------------------------------------------------------------------------------


def test_the_identity_is_found_exactly_and_ridge_shrinks_it():
    x = drawn(500, 6) + 3
    exact = TransportOperator("ols").fit(x, x)
    assert torch.allclose(exact.matrix_, torch.eye(6, dtype=torch.float64), atol=1e-10)
    assert exact.bias_.abs().max() < 1e-9
    shrunk = TransportOperator(alpha=100.0).fit(x, x)
    assert ((shrunk.matrix_.diagonal() > 0.5) & (shrunk.matrix_.diagonal() < 0.95)).all()


@pytest.mark.parametrize("alpha", [0.0, 3.0, 400.0])
def test_ridge_is_the_closed_form_with_an_intercept(alpha):
    x, y = drawn(60, 5) + 2, drawn(60, 3, seed=1) - 1
    op = TransportOperator(alpha=alpha).fit(x, y)
    wide = torch.cat([x, torch.ones(60, 1)], 1)
    penalty = torch.diag(torch.tensor([alpha] * 5 + [0.0]).double())
    want = torch.linalg.solve(wide.T @ wide + penalty, wide.T @ y)
    assert torch.allclose(op.matrix_, want[:-1].T, atol=1e-9)
    assert torch.allclose(op.bias_, want[-1], atol=1e-9)
    assert torch.allclose(op.predict(x.float()), (wide @ want).float(), atol=1e-4)


@pytest.mark.parametrize("method", ["ridge", "lasso", "elasticnet"])
def test_cross_validation_agrees_with_scikit_learn(method):
    linear = pytest.importorskip("sklearn.linear_model")
    selection = pytest.importorskip("sklearn.model_selection")
    x = drawn(80, 30)
    y = x @ drawn(30, 4, seed=1) * 0.3 + 3 * drawn(80, 4, seed=2)
    alphas = [0.1, 10.0, 100.0, 1000.0] if method == "ridge" else [0.01, 0.1, 0.5]
    op = TransportOperator(method, alphas=alphas).fit(x, y)
    same = {"max_iter": 5000, "tol": 1e-3}
    peer = {
        "ridge": linear.Ridge(),
        "lasso": linear.Lasso(**same),
        "elasticnet": linear.ElasticNet(l1_ratio=0.1, **same),
    }[method]
    search = selection.GridSearchCV(peer, {"alpha": alphas}, cv=5, scoring="r2").fit(x.numpy(), y.numpy())
    assert list(op.cv_.values()) == pytest.approx(search.cv_results_["mean_test_score"].tolist(), abs=2e-3)
    assert op.alpha_ == search.best_params_["alpha"]
    assert op.matrix_.numpy() == pytest.approx(search.best_estimator_.coef_, abs=2e-3)
    assert op.bias_.numpy() == pytest.approx(search.best_estimator_.intercept_, abs=2e-3)


def test_baselines_predict_what_their_names_say():
    x, y = drawn(50, 4), drawn(50, 4, seed=1) + 7
    predicted = {m: TransportOperator(m).fit(x, y).predict(x) for m in ("identity", "zero", "mean")}
    assert torch.equal(predicted["identity"], x)
    assert not predicted["zero"].any()
    assert torch.allclose(predicted["mean"], y.mean(0).expand(50, 4))
    assert TransportOperator("mean").fit(x, y).score(x, y) == pytest.approx(0, abs=1e-12)
    ridge = TransportOperator().fit(x, y)
    assert torch.allclose(ridge.null().predict(x), ridge.predict(torch.zeros(1, 4).double()).expand(50, 4))


def test_score_weights_outputs_equally_or_by_variance():
    metrics = pytest.importorskip("sklearn.metrics")
    x, y = drawn(90, 4), drawn(90, 3, seed=1) * torch.tensor([1.0, 5, 30])
    op = TransportOperator(alpha=1.0).fit(x, y)
    for ours, theirs in (("uniform", "uniform_average"), ("variance", "variance_weighted")):
        want = metrics.r2_score(y.numpy(), op.predict(x).numpy(), multioutput=theirs)
        assert op.score(x, y, ours) == pytest.approx(want)


def test_an_operator_comes_back_from_disk(tmp_path):
    x, y = drawn(90, 4), drawn(90, 3, seed=1)
    op = TransportOperator(alphas=(1.0, 10.0)).fit(x, y).truncate(2)
    op.save(tmp_path / "op")
    again = TransportOperator.load(tmp_path / "op")
    assert torch.equal(again.predict(x), op.predict(x))
    assert (again.alpha_, again.cv_, again.rank_, again.rows_) == (op.alpha_, op.cv_, 2, 90)
    assert torch.equal(again.truncate(1).matrix_, op.truncate(1).matrix_)
    (tmp_path / "other").write_bytes(b"not an operator")
    for name in ("absent", "other"):
        with pytest.raises(LoadError, match="cannot read the transport operator"):
            TransportOperator.load(tmp_path / name)


# Ranks ------------------------------------------------------------------------------------------------------------


def test_truncation_keeps_the_largest_singular_values_and_the_mean_residual_at_zero():
    x, y = drawn(300, 6) + 1, drawn(300, 6) @ drawn(6, 5, seed=1) + 2
    op = TransportOperator(alpha=1.0).fit(x, y)
    for optimal in (False, True):
        low = op.truncate(2, optimal)
        assert int(torch.linalg.matrix_rank(low.matrix_, rtol=1e-9)) == 2
        assert (y - low.predict(x)).mean(0).abs().max() < 1e-9
        assert torch.allclose(op.truncate(5, optimal).matrix_, op.matrix_, atol=1e-8)
    want = torch.linalg.svdvals(op.matrix_)[:2]
    assert torch.allclose(torch.linalg.svdvals(op.truncate(2).matrix_)[:2], want)


def test_optimal_truncation_reaches_the_ceiling_at_every_rank_and_plain_truncation_does_not():
    x = drawn(4000, 8) @ torch.diag(torch.tensor([9.0, 5, 3, 1, 1, 0.3, 0.2, 0.1])).double()
    y = x @ drawn(8, 8, seed=1) + 2 * drawn(4000, 8, seed=2) * torch.arange(1, 9)
    op, ranks = TransportOperator("ols").fit(x, y), [1, 2, 4, 8]
    best = transport_efficiency(op, x, y, x, y, ranks, optimal=True)
    assert best["eta"].values == pytest.approx(np.ones(4), abs=1e-9)
    plain = transport_efficiency(op, x, y, x, y, ranks)
    assert (plain["r2"].values[:3] < best["r2"].values[:3] - 1e-3).all()
    assert plain["eta"].values[-1] == pytest.approx(1)


# Ceilings ---------------------------------------------------------------------------------------------------------


def test_the_ceiling_of_a_copy_is_rank_over_width_and_its_efficiency_one():
    x = drawn(600, 10)
    found = cca_ceiling(x, x)
    assert found["correlation"].values == pytest.approx(np.ones(10))
    assert found["ceiling"].values == pytest.approx(np.arange(1, 11) / 10)
    assert float(found["dim_lin"]) == pytest.approx(10)
    assert float(found["d_eff"]) == pytest.approx(10)
    assert (int(found["rank_90"]), int(found["rank_99"])) == (9, 10)
    efficiency = transport_efficiency(TransportOperator("ols").fit(x, x), x, x, x, x, [10])
    assert float(efficiency["eta"][0]) == pytest.approx(1)


def test_an_invertible_map_is_transported_whole():
    x = drawn(600, 10)
    y = x @ drawn(10, 10, seed=1)
    assert float(cca_ceiling(x, y)["ceiling"][-1]) == pytest.approx(1)
    op = TransportOperator("ols").fit(x, y)
    assert feature_transport_scores(op, x, y, torch.eye(10))["r2"].values == pytest.approx(np.ones(10))


def test_unrelated_layers_have_a_ceiling_of_chance_only():
    x, y = drawn(5000, 20), drawn(5000, 20, seed=1)
    assert float(cca_ceiling(x, y)["ceiling"][-1]) == pytest.approx(20 / 5000, rel=0.2)
    op = TransportOperator("ols").fit(x, y)
    scores = feature_transport_scores(op, drawn(2000, 20, seed=2), drawn(2000, 20, seed=3), torch.eye(20))
    assert (scores["r2"].values <= 0.001).all()


def test_planted_transport_is_found():
    x, y, turn = planted()
    found = cca_ceiling(x, y)
    rho = found["correlation"].values
    assert rho[:8] == pytest.approx(np.ones(8), abs=1e-9)
    assert rho[8] == pytest.approx(0.062, abs=0.012)
    assert float(found["ceiling"].sel(rank=8)) == pytest.approx(0.25, abs=1e-9)
    assert float(found["ceiling"].sel(rank=32)) == pytest.approx(0.2509, abs=4e-4)
    assert int(found["rank_99"]) == 8
    op = TransportOperator("ols").fit(x, y)
    r2 = feature_transport_scores(op, x, y, turn)["r2"].values
    assert r2[:8] == pytest.approx(np.ones(8))
    assert r2[8:].mean() == pytest.approx(32 / 20000, rel=0.2)
    # A square is not carried by any linear map.
    square = TransportOperator("ols").fit(x, x.square())
    assert feature_transport_scores(square, x, x.square(), torch.eye(32))["r2"].values.max() < 0.005


def test_ceiling_and_efficiency_do_not_depend_on_the_coordinates():
    x = drawn(1500, 6)
    y = x @ drawn(6, 5, seed=1) + drawn(1500, 5, seed=2)
    a, b = drawn(6, 6, seed=3), drawn(5, 5, seed=4)
    plain, turned = cca_ceiling(x, y), cca_ceiling(x @ a + 5, y @ b - 7)
    assert turned["correlation"].values == pytest.approx(plain["correlation"].values)
    etas = []
    for p, q in ((x, y), (x @ a + 5, y @ b - 7)):
        op = TransportOperator("ols").fit(p[:1000], q[:1000])
        etas.append(transport_efficiency(op, p[:1000], q[:1000], p[1000:], q[1000:], optimal=True))
    assert etas[1]["r2"].values == pytest.approx(etas[0]["r2"].values)
    assert etas[1]["eta"].values == pytest.approx(etas[0]["eta"].values)
    assert etas[0]["rank"].values.tolist() == [1, 2, 4, 5]
    assert (etas[0]["r2_train"].values <= etas[0]["ceiling"].values + 1e-9).all()
    assert (etas[0]["r2"].values <= etas[0]["ceiling"].values + 0.02).all()


def test_sizes_of_the_subspace_follow_their_formulas():
    x = drawn(800, 6)
    found = cca_ceiling(x, x @ drawn(6, 4, seed=1) + 2 * drawn(800, 4, seed=2))
    rho = found["correlation"].values
    assert float(found["dim_lin"]) == pytest.approx(rho.sum() ** 2 / (rho**2).sum())
    assert float(found["d_eff"]) == pytest.approx(4 * float(found["ceiling"][-1]))


# Features ---------------------------------------------------------------------------------------------------------


def test_feature_scores_are_their_formulas_over_active_tokens():
    x, y, decoder = drawn(200, 5), drawn(200, 4, seed=1), drawn(3, 4, seed=2)
    y = y + x[:, :4]
    active = drawn(200, 3, seed=3)
    op = TransportOperator(alpha=1.0).fit(x, y)
    found = feature_transport_scores(op, x, y, decoder * 5, active, names=["a", "b", "c"])
    for i, name in enumerate("abc"):
        on = active[:, i] > 0
        unit = decoder[i] / decoder[i].norm()
        a, g = (y[on] @ unit).numpy(), (op.predict(x)[on] @ unit).numpy()
        want = {
            "r2": 1 - ((a - g) ** 2).sum() / ((a - a.mean()) ** 2).sum(),
            "mse": ((a - g) ** 2).mean(),
            "pearson": np.corrcoef(a, g)[0, 1],
            "calibration": a @ g / np.linalg.norm(a) / np.linalg.norm(g),
            "rms_ratio": np.linalg.norm(g) / np.linalg.norm(a),
            "mean_ratio": g.mean() / a.mean(),
            "relative_error": np.linalg.norm(a - g) / np.linalg.norm(a),
            "n_active": on.sum(),
        }
        got = found.data.sel(feature=name)
        assert {k: float(got[k]) for k in want} == pytest.approx({k: float(v) for k, v in want.items()})


def test_ridge_makes_features_smaller():
    x = drawn(100, 5)
    ratios = [
        float(feature_transport_scores(TransportOperator(alpha=a).fit(x, x), x, x, torch.eye(5))["rms_ratio"].mean())
        for a in (0.0, 100.0)
    ]
    assert ratios[0] == pytest.approx(1)
    assert ratios[1] < 0.8


def test_a_feature_that_never_acts_is_counted_and_not_scored():
    x, y = drawn(50, 4), drawn(50, 4, seed=1)
    active = torch.ones(50, 3, dtype=torch.bool)
    active[:, 1], active[1:, 2] = False, False
    found = feature_transport_scores(TransportOperator(alpha=1.0).fit(x, y), x, y, torch.eye(4)[:3], active)
    assert np.isnan(found["r2"].values).tolist() == [False, True, True]
    assert int(found["never_active"]) == 1
    flat = y.clone()
    flat[:, 0] = 2.0
    worst = feature_transport_scores(TransportOperator(alpha=1.0).fit(x, y), x, flat, torch.eye(4))
    assert float(worst["r2"][0]) == -1e6
    found.plot()


# Refusals ---------------------------------------------------------------------------------------------------------

X, Y = drawn(30, 4), drawn(30, 4, seed=1)
FITTED = TransportOperator(alpha=1.0).fit(X, Y)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TransportOperator().fit(X, Y[:-1]), InputError, "30 rows and Y 29"),
        (lambda: TransportOperator().fit(X * float("nan"), Y), InputError, "NaN"),
        (lambda: TransportOperator().fit(X[:0], Y[:0]), InputError, "expected rows"),
        (lambda: TransportOperator("rigde").fit(X, Y), UnknownNameError, "ridge"),
        (lambda: TransportOperator(alpha="auto").fit(X, Y), InputError, '"cv" or a number'),
        (lambda: TransportOperator(alpha=-1).fit(X, Y), InputError, '"cv" or a number'),
        (lambda: TransportOperator(alphas=[]).fit(X, Y), InputError, "alphas"),
        (lambda: TransportOperator(folds=1).fit(X, Y), InputError, "folds"),
        (lambda: TransportOperator(folds=20).fit(X, Y), InputError, "20 folds need 40 rows"),
        (lambda: TransportOperator("identity").fit(X, Y[:, :2]), InputError, "equal widths"),
        (lambda: TransportOperator().set_params(alfa=1), UnknownNameError, "alpha"),
        (lambda: TransportOperator().predict(X), InputError, "call fit"),
        (lambda: FITTED.predict(X[:, :3]), InputError, "from 4 dimensions"),
        (lambda: FITTED.score(X, Y, "equal"), UnknownNameError, "weighting"),
        (lambda: FITTED.score(X, torch.ones(30, 4)), InputError, "does not vary"),
        (lambda: FITTED.truncate(5), InputError, "rank must be from 1 to 4"),
        (lambda: FITTED.truncate(0), InputError, "rank must be from 1 to 4"),
        (lambda: feature_transport_scores(FITTED, X, Y, torch.eye(5)), InputError, "5 entries, Y 4"),
        (lambda: feature_transport_scores(FITTED, X, Y, torch.zeros(2, 4)), InputError, "row is zero"),
        (lambda: feature_transport_scores(FITTED, X, Y, torch.eye(4), X[:, :3]), InputError, "active must be"),
        (lambda: feature_transport_scores(FITTED, X, Y, torch.eye(4), names=["a"]), InputError, "1 names for 4"),
        (lambda: cca_ceiling(X, Y, ridge=-1), InputError, "0 or more"),
        (lambda: transport_efficiency(FITTED, X, Y, X, Y, [5]), InputError, "ranks must be from 1 to 4"),
        (lambda: transport_efficiency(FITTED, X, Y, X[:, :3], Y), InputError, "differ in width"),
    ],
)
def test_what_cannot_be_fitted_or_scored_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_fewer_rows_than_dimensions_without_a_penalty_are_warned_of():
    with pytest.warns(ActiniumWarning, match="least norm"):
        op = TransportOperator("ols").fit(X[:3], Y[:3])
    assert torch.allclose(op.predict(X[:3]), Y[:3])
    with pytest.warns(ActiniumWarning, match="least norm"):
        assert torch.allclose(TransportOperator(alpha=0.0).fit(X[:3], Y[:3]).matrix_, op.matrix_, atol=1e-9)
