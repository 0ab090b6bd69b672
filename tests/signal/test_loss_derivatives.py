"""Derivatives of the loss equal closed forms, finite differences and plain automatic differentiation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError, SiteError
from actinium.signal.loss_derivatives import loss_profile, loss_sensitivity, second_order_terms, signed_score
from actinium.signal.retrained_sensitivity import LossSensitivity, compare_with_spearman


def small(activation=nn.Tanh, d=4, hidden=6, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, hidden), activation(), nn.Linear(hidden, 1))


def copy_double(net):
    return copy.deepcopy(net).double()


def table(n=12, d=4, seed=1):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=random).double(), torch.randn(n, generator=random).double()


def linear_table(n=500, seed=0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, 5))
    return x, 1.5 * x[:, 0] - x[:, 1] + 0.4 * x[:, 2] + 0.1 * random.standard_normal(n)


def test_derivatives_of_a_cube_are_those_on_paper():
    x = torch.full((2, 1), 1.3, dtype=torch.float64)
    found = loss_sensitivity(lambda v: v[:, 0] ** 3, x, torch.ones(2))
    assert float(found[1]) == pytest.approx(12.13758, abs=1e-8)
    assert float(found[2]) == pytest.approx(30 * 1.3**4 - 12 * 1.3, abs=1e-8) == pytest.approx(70.083)
    assert float(found[3]) == pytest.approx(251.64, abs=1e-8)


def test_second_order_of_a_linear_model_is_twice_the_squared_weight_for_every_example():
    x, y = table()
    w = torch.tensor([0.5, -2.0, 0.0, 3.0], dtype=torch.float64)
    found = loss_sensitivity(lambda v: v @ w + 0.7, x, y, reduce="none")
    assert torch.allclose(found[2], (2 * w**2).expand(12, 4), atol=1e-12)
    assert torch.equal(found[3], torch.zeros(12, 4, dtype=torch.float64))
    assert torch.allclose(found[1], 2 * (x @ w + 0.7 - y)[:, None] * w, atol=1e-12)


def test_third_order_of_a_relu_network_is_zero_and_said_so():
    x, y = table()
    net = small(nn.ReLU)
    with pytest.warns(ActiniumWarning, match="kinks"):
        found = loss_sensitivity(net, x, y, reduce="none")
        terms = second_order_terms(net, x, y)
    assert float(found[3].abs().max()) == 0
    assert torch.allclose(found[2], terms["slope"], atol=1e-12)
    assert float(terms["curvature"].abs().max()) < 1e-12


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU])
def test_derivatives_equal_finite_differences(activation):
    x, y = table()
    net = copy_double(small(activation))
    found = loss_sensitivity(net, x, y, reduce="none")
    h = 1e-3
    for j in range(4):
        e = torch.zeros(4, dtype=torch.float64)
        e[j] = h
        with torch.no_grad():
            at = [(net(x + k * e)[:, 0] - y) ** 2 for k in (-1, 0, 1)]
        # The third order from differences of the second: those of the loss itself drown in rounding.
        second = [loss_sensitivity(net, x + k * e, y, orders=(2,), reduce="none")[2][:, j] for k in (-1, 1)]
        expected = {
            1: (at[2] - at[0]) / (2 * h),
            2: (at[2] - 2 * at[1] + at[0]) / h**2,
            3: (second[1] - second[0]) / (2 * h),
        }
        for order, value in expected.items():
            scale = float(found[order].abs().max())
            assert torch.allclose(found[order][:, j], value, rtol=1e-4, atol=1e-4 * scale)


def test_derivatives_of_the_squared_error_satisfy_their_identities():
    x, y = table()
    net = copy_double(small())
    found = loss_sensitivity(net, x, y, reduce="none")
    f = loss_sensitivity(net, x, y, "output", reduce="none")
    rest = (net(x)[:, 0] - y).detach()[:, None]
    assert torch.allclose(found[1], 2 * rest * f[1])
    assert torch.allclose(found[2], 2 * f[1] ** 2 + 2 * rest * f[2])
    assert torch.allclose(found[3], 6 * f[1] * f[2] + 2 * rest * f[3])
    terms = second_order_terms(net, x, y)
    assert torch.allclose(terms["curvature"], 2 * rest * f[2])
    expected = f[1].mean(0).sign() * (found[2].mean(0).clamp(min=0) / 2).sqrt()
    assert torch.allclose(signed_score(net, x, y), expected)


def test_the_sum_over_a_batch_gives_what_each_example_gives_alone():
    x, y = table(n=5)
    net = copy_double(small())
    together = loss_sensitivity(net, x, y, reduce="none")
    for i in range(5):

        def one(v, i=i):
            return (net(v[None])[0, 0] - y[i]) ** 2

        hessian = torch.func.hessian(one)(x[i])
        assert torch.allclose(together[1][i], torch.func.grad(one)(x[i]))
        assert torch.allclose(together[2][i], hessian.diagonal())


def test_permuted_columns_permute_the_scores():
    x, y = table()
    net = copy_double(small())
    order = torch.tensor([2, 0, 3, 1])
    plain = loss_sensitivity(net, x, y)
    # The network reads the columns in their old order.
    moved = loss_sensitivity(lambda v: net(v[:, order.argsort()]), x[:, order], y)
    for k in (1, 2, 3):
        assert torch.allclose(moved[k], plain[k][order])


def test_weights_have_the_derivatives_that_differentiation_in_them_gives():
    x, y = table(n=5)
    net = copy_double(small())
    found = loss_sensitivity(net, x, y, site="weight:0", reduce="none")
    weight = net[0].weight.detach()
    for i in range(5):

        def one(w, i=i):
            hidden = torch.tanh(x[i] @ w.T + net[0].bias)
            return ((hidden @ net[2].weight.T + net[2].bias)[0] - y[i]) ** 2

        first = torch.func.grad(one)(weight)
        hessian = torch.func.hessian(one)(weight).flatten(0, 1).flatten(1).diagonal().view_as(weight)
        assert torch.allclose(found[1][i], first.mean(0))
        assert torch.allclose(found[2][i], hessian.mean(0))
    units = loss_sensitivity(net, x, y, site="module:0", reduce="none")
    assert units[2].shape == (5, 6)
    assert torch.allclose(found[3], x**3 * units[3].mean(1, keepdim=True))


def test_reductions_are_what_they_are_called_and_the_model_is_left_as_it_was():
    x, y = table()
    net = small()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    each = loss_sensitivity(net, x, y, reduce="none")[2]
    assert torch.allclose(loss_sensitivity(net, x, y)[2], each.mean(0))
    assert torch.allclose(loss_sensitivity(net, x, y, reduce="abs")[2], each.abs().mean(0))
    assert torch.allclose(loss_sensitivity(net, x, y, reduce="std")[2], each.std(0))
    assert all(torch.equal(v, before[k]) and v.dtype == torch.float32 for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_a_taylor_polynomial_of_a_cubic_loss_is_the_loss():
    x, _ = table()
    found = loss_profile(lambda v: v[:, 0], x, torch.zeros(12), 0, np.linspace(-2, 2, 9), lambda f, y: f**3 + f)
    assert np.allclose(found["loss"], found["taylor"])
    found.plot()


def test_an_image_classifier_has_a_derivative_for_every_pixel():
    model = ac.load("world:digits-cnn")
    images = ac.world.digits.load("test").images[:6]
    labels = ac.world.digits.load("test").labels[:6]
    with pytest.warns(ActiniumWarning, match="kinks"):
        found = loss_sensitivity(model, images, labels, "cross_entropy", orders=(1, 2))
    assert found[2].shape == images.shape[1:]
    twin = images.double().requires_grad_()
    loss = nn.functional.cross_entropy(copy.deepcopy(model.module).double()(twin), labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, twin)
    assert torch.allclose(found[1], expected.mean(0))


def changed_in_place(v):
    hidden = torch.exp(v)
    out = hidden.sum(1)
    hidden.mul_(2)  # exp's derivative is its result, which is no longer there
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": torch.ones(12, 4, dtype=torch.long)}, "integers or categories"),
        ({"X": np.array([["a", "b"]] * 12)}, "integers or categories"),
        ({"X": torch.full((12, 4), torch.nan)}, "NaN"),
        ({"X": torch.randn(1, 4), "y": torch.zeros(1)}, "two or more"),
        ({"y": torch.zeros(3)}, "12 examples and 3 targets"),
        ({"loss_fn": "mes"}, "did you mean 'mse'"),
        ({"loss_fn": lambda f, y: (f - y).abs()}, "kink"),
        ({"loss_fn": lambda f, y: nn.functional.huber_loss(f, y, reduction="none")}, "kink"),
        ({"loss_fn": lambda f, y: ((f - y) ** 2).mean()}, "one loss per example"),
        ({"loss_fn": "logistic", "y": torch.arange(12) - 6}, "from 0 to 1, got -6 to 5"),
        ({"loss_fn": "cross_entropy", "model": nn.Linear(4, 3), "y": torch.arange(12)}, "classes .* from 0 to 11"),
        ({"loss_fn": "cross_entropy", "y": torch.zeros(12, dtype=torch.long)}, "takes outputs"),
        ({"orders": (4,)}, "orders"),
        ({"reduce": "median"}, "reduce is one of"),
        ({"site": "weight:1"}, "no linear module"),
        ({"model": lambda v: torch.zeros(12, dtype=torch.float64)}, "does not depend"),
        ({"model": changed_in_place}, "without in-place changes"),
        ({"model": nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))}, "mixes the examples"),
        ({"model": nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))}, "is random"),
        ({"model": "net"}, "expected a Model"),
    ],
)
def test_what_cannot_be_differentiated_is_refused(change, message):
    x, y = table()
    settings = {"model": small(), "X": x, "y": y} | change
    with pytest.raises(InputError, match=message):
        loss_sensitivity(**settings)


def test_an_absolute_error_has_a_first_derivative_and_an_unknown_site_is_refused():
    x, y = table()
    net = small()
    found = loss_sensitivity(net, x, y, lambda f, t: (f - t).abs(), orders=(1,), reduce="none")
    slope = loss_sensitivity(net, x, y, "output", orders=(1,), reduce="none")[1]
    assert torch.allclose(found[1].abs(), slope.abs())
    with pytest.raises(SiteError):
        loss_sensitivity(net, x, y, site="module:7")


def test_second_order_ranks_the_columns_of_a_linear_table_as_spearman_does():
    x, y = linear_table()
    fitted = LossSensitivity(n_retrain=1, steps=300).fit(x, y)
    shown = fitted.table()
    active = shown.iloc[:3]
    assert (np.sign(active["signed"]) == np.sign(active["spearman"])).all()
    assert active["signed"].abs().rank().equals(active["spearman"].abs().rank())
    assert (shown["signed"].iloc[3:].abs() < 0.05).all()
    assert shown["D2"].iloc[0] == pytest.approx(1.385, abs=0.12)
    assert np.allclose(shown["slope_term"] + shown["curvature_term"], shown["D2"])
    found = compare_with_spearman(fitted, x, y)
    assert float(found["rank_correlation"].sel(baseline="pearson")) > 0.8
    assert found["pearson"].values[0] == pytest.approx(np.corrcoef(x[:, 0], y)[0, 1])
    assert found["permutation"].values.argmax() == 0
    found.plot()


def test_a_symmetric_effect_is_seen_by_second_order_and_not_by_spearman():
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 2))
    fitted = LossSensitivity(n_retrain=1, steps=300).fit(x, x[:, 0] ** 2)
    shown = fitted.table()
    assert abs(shown["spearman"].iloc[0]) < 0.15
    assert shown["D2"].iloc[0] > 5 * shown["D2"].iloc[1]


def test_retrainings_differ_and_the_history_ends_where_training_does():
    x, y = linear_table(60)
    fitted = LossSensitivity(lambda d, seed: small(d=d, seed=seed), n_retrain=2, steps=10, record_every=5).fit(x, y)
    assert fitted.history_["step"].values.tolist() == [0, 5, 10]
    assert np.allclose(fitted.history_["loss"][:, -1], fitted.result_["mse"])
    assert np.allclose(fitted.history_["D3"][:, -1], fitted.result_["abs_D3"])
    assert not np.allclose(fitted.result_["signed"][0], fitted.result_["signed"][1])
    same = LossSensitivity(lambda d, seed: small(d=d, seed=seed), n_retrain=2, steps=10, record_every=5).fit(x, y)
    assert fitted.result_ == same.result_


def test_a_table_that_cannot_be_fitted_is_refused():
    x, y = linear_table(30)
    one = LossSensitivity(n_retrain=1, steps=1)
    with pytest.raises(InputError, match="not fitted"):
        one.table()
    with pytest.raises(InputError, match="integers or categories"):
        one.fit(np.ones((30, 2), dtype=int), y)
    with pytest.raises(InputError, match="do not vary"):
        one.fit(np.ones((30, 2)), y)
    with pytest.raises(InputError, match="y does not vary"):
        one.fit(x, np.ones(30))
    with pytest.raises(InputError, match="3 names for 5"):
        one.fit(x, y, names=["a", "b", "c"])
    with pytest.raises(InputError, match="no activation"):
        LossSensitivity(activation="tan").fit(x, y)
    with pytest.raises(InputError, match="no baseline"):
        compare_with_spearman(one.fit(x, y), x, y, ["kendall"])
    with pytest.raises(InputError, match="3 columns"):
        compare_with_spearman(one, x[:, :3], y)


def test_mutual_information_is_among_the_baselines():
    pytest.importorskip("sklearn")
    x, y = linear_table(80)
    fitted = LossSensitivity(n_retrain=1, steps=2).fit(x, y)
    assert compare_with_spearman(fitted, x, y, ["mutual_information"])["mutual_information"].values.argmax() == 0
