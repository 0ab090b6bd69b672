"""Levels, noise and interpolated activations against closed forms, and noise in networks that stay as they are."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError, SiteError
from actinium.functions.layers.noise_injection import inject_noise
from actinium.functions.layers.quantised_noise import (
    AnalogLinear,
    GaussianNoise,
    InterpolatedActivation,
    ReducePrecision,
    StochasticReducePrecision,
    gradient_error,
    leakage_of,
    std_of,
)

X = torch.linspace(-3, 3, 2001, dtype=torch.float64)


def test_precision_of_one_level_rounds_halves_towards_zero():
    x = torch.tensor([0.6, 0.4, -0.6, 0.5, -0.5, 0.0, 1.5])
    assert ReducePrecision(1)(x).tolist() == [1, 0, -1, 0, 0, 0, 1]


@pytest.mark.parametrize("p", [1, 3, 4, 7, 15])
def test_levels_are_near_idempotent_and_odd(p):
    reduce = ReducePrecision(p)
    y = reduce(X)
    assert float((y - X).abs().max()) <= 1 / (2 * p) + 1e-12
    torch.testing.assert_close(reduce(y), y, rtol=0, atol=0)
    torch.testing.assert_close(reduce(-X), -y, rtol=0, atol=0)
    torch.testing.assert_close(y * p, (y * p).round(), rtol=0, atol=1e-9)


def test_divide_says_where_the_upper_level_begins():
    x = torch.tensor([0.2, 0.3, 0.9])
    assert ReducePrecision(1, 0.25)(x).tolist() == [0, 1, 1]
    assert ReducePrecision(1, 1.0)(x).tolist() == [0, 0, 0]


def test_stochastic_levels_are_right_on_average():
    torch.manual_seed(0)
    reduce = StochasticReducePrecision(4)
    for x in (0.3, -0.61, 1.02):
        drawn = reduce(torch.full((1_000_000,), x, dtype=torch.float64))
        assert abs(float(drawn.mean()) - x) < 4 * float(drawn.std()) / 1e3
        assert set((drawn * 4).unique().tolist()) <= {math.floor(4 * x), math.ceil(4 * x)}


def test_gradients_pass_straight_through():
    for unit in (ReducePrecision(3), StochasticReducePrecision(3), GaussianNoise(std=0.1, precision=3)):
        x = X.clone().requires_grad_()
        (unit(x) * X).sum().backward()
        torch.testing.assert_close(x.grad, X, rtol=0, atol=0)


def test_std_leakage_and_precision_are_those_of_the_error_function():
    assert std_of(0.5, 4) == pytest.approx(0.1853252773, abs=1e-10)
    assert std_of(0.2, 15) == pytest.approx(0.0260101382, abs=1e-10)
    assert leakage_of(0.01, 15) == pytest.approx(8.581e-4, rel=1e-4)
    for std in (0.004, 0.03, 0.7):
        assert std_of(leakage_of(std, 7), 7) == pytest.approx(std, rel=1e-10)
        assert leakage_of(std, 7) == pytest.approx(2 * stats.norm.sf(1 / 14, scale=std), rel=1e-10)
    noise = GaussianNoise(std=0.03, leakage=0.4)
    assert leakage_of(0.03, noise.precision) == pytest.approx(0.4, rel=1e-10)


def test_noise_leaves_its_level_as_often_as_the_leakage_says_and_is_fresh_in_evaluation():
    torch.manual_seed(1)
    noise = GaussianNoise(leakage=0.3, precision=7).eval()
    x = torch.full((200_000,), 2 / 7, dtype=torch.float64)
    moved = ReducePrecision(7)(noise(x)) != ReducePrecision(7)(x)
    assert float(moved.double().mean()) == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 2e5))
    assert not torch.equal(noise(x), noise(x))


@pytest.mark.parametrize("smooth", ["gelu", "silu"])
def test_interpolation_is_linear_between_relu_and_the_smooth_function(smooth):
    f = {i: InterpolatedActivation(i, smooth)(X) for i in (0.0, 0.25, 0.5, 1.0)}
    torch.testing.assert_close(f[0], X.relu(), rtol=0, atol=0)
    torch.testing.assert_close(f[1], getattr(functional, smooth)(X), rtol=1e-12, atol=1e-14)
    for i in (0.25, 0.5):
        torch.testing.assert_close(f[i] - f[0], i * (f[1] - f[0]), rtol=1e-10, atol=1e-14)


def test_the_derivative_is_the_closed_form_and_the_slope_below_at_zero():
    i, s, alpha = 0.3, 1.7, 0.1
    x = torch.cat([X, torch.zeros(1, dtype=torch.float64)]).requires_grad_()
    (got,) = torch.autograd.grad(InterpolatedActivation(i, scale=s, negative_slope=alpha)(x).sum(), x)
    at = x.detach()
    soft = 0.5 * (1 + torch.erf(s * at / math.sqrt(2))) + s * at * torch.exp(-((s * at) ** 2) / 2) / math.sqrt(
        2 * math.pi
    )
    hard = alpha + (1 - alpha) * (at > 0).double()
    torch.testing.assert_close(got, hard + i * (soft - hard), rtol=1e-10, atol=1e-12)


def test_the_gated_form_goes_from_reglu_to_geglu():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    a, b = x.chunk(2, -1)
    torch.testing.assert_close(InterpolatedActivation(0.0, gated=True)(x), a * b.relu())
    torch.testing.assert_close(InterpolatedActivation(1.0, gated=True)(x), a * functional.gelu(b))


def test_interpolation_survives_half_precision_and_infinities():
    x = torch.tensor([-math.inf, -300.0, 0.0, 300.0, math.inf])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        y = InterpolatedActivation(0.5)(x.to(dtype))
        assert y.dtype == dtype and not y.isnan().any() and float(y[0]) == 0


@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("i", [0.0, 0.5, 1.0])
def test_interpolation_hides_no_nan(i, alpha):
    y = InterpolatedActivation(i, negative_slope=alpha)(torch.tensor([math.nan, -math.inf, 1.0]))
    assert y.isnan().tolist() == [True, False, False]


def test_the_scaled_form_goes_from_relu_to_half_the_input():
    np.testing.assert_allclose(InterpolatedActivation(1.0, scale=1e6)(X), X.relu(), atol=1e-6)
    np.testing.assert_allclose(InterpolatedActivation(1.0, scale=1e-9)(X), X / 2, atol=1e-8)


def test_gradient_errors_near_zero_are_the_published_order():
    clean = {name: gradient_error(name, 15).data for name in ("relu", "gelu", "silu")}
    assert float(clean["relu"]["mean_sq"]) == pytest.approx(0.5, abs=0.01)
    # All inputs are rounded to 0: GELU' is 1/2 + 2x/sqrt(2 pi) there, SiLU' is 1/2 + x/2, and E[x^2] is r^2 / 3.
    assert float(clean["gelu"]["mean_sq"]) == pytest.approx(4 / (2 * math.pi) * 0.02**2 / 3, rel=0.02)
    assert float(clean["silu"]["mean_sq"]) == pytest.approx(0.02**2 / 12, rel=0.02)
    assert float(clean["relu"]["mean_abs"] / clean["gelu"]["mean_abs"]) == pytest.approx(63, rel=0.03)
    for precision, std, squares, absolute in ((15, 0.02, 1470, 34), (7, 0.05, 300, 15)):
        a, b = (gradient_error(name, precision, std=std).data for name in ("relu", "gelu"))
        assert float(a["mean_sq"] / b["mean_sq"]) == pytest.approx(squares, rel=0.05)
        assert float(a["mean_abs"] / b["mean_abs"]) == pytest.approx(absolute, rel=0.05)


def test_the_curve_is_the_error_by_input():
    found = gradient_error(torch.relu, 15, bins=10)
    assert found["curve"].values.tolist() == [0] * 5 + [1] * 5  # everything is rounded to 0, where ReLU' is 0
    assert gradient_error("identity", 3, std=0.1).data["mean_sq"] == 0
    assert found.plot() is not None


def test_modules_are_measured_in_float64_and_stay_as_they_are():
    leaky, inside = nn.PReLU(init=0.3), nn.ReLU(inplace=True)
    # All inputs are rounded to 0, where PReLU's slope is that of the left.
    assert float(gradient_error(leaky, 15)["mean_sq"]) == pytest.approx(0.7**2 / 2, rel=0.02)
    assert leaky.weight.dtype == torch.float32 and leaky.weight.requires_grad and leaky.training
    assert gradient_error(inside, 15)["mean_sq"] == gradient_error("relu", 15)["mean_sq"] and inside.inplace


def test_an_analog_layer_is_its_formula():
    torch.manual_seed(0)
    inner, x = nn.Linear(5, 3), torch.randn(7, 5)
    layer, q = AnalogLinear(inner, 3, activation=nn.ReLU()), ReducePrecision(3)
    w, b = (q(p.clamp(-1, 1)) for p in (inner.weight, inner.bias))
    expected = q((q(x.clamp(-1, 1)) @ w.T + b).clamp(-1, 1)).relu()
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert float(inner.weight.grad.abs().sum()) > 0  # ceil alone would give none
    noisy = AnalogLinear(nn.Conv2d(2, 3, 3), 7, leakage=0.4, stochastic=True).eval()
    images = torch.rand(2, 2, 5, 5)
    assert noisy(images).shape == (2, 3, 3, 3) and not torch.equal(noisy(images), noisy(images))


def test_the_clamp_gives_no_gradient_outside_of_one():
    layer = AnalogLinear(nn.Linear(1, 1), 15)
    with torch.no_grad():
        layer.layer.weight.fill_(0.5)
        layer.layer.bias.fill_(0.0)
    x = torch.tensor([[-1.5], [0.4], [1.5]], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.flatten().tolist() == pytest.approx([0, 7 / 15, 0])


@pytest.fixture(scope="module")
def lm():
    return ac.load("world:lm")


TEXTS = ["The cat sat on the mat.", "The owl lives in the forest."]


def test_noise_in_the_weights_of_a_language_model_is_that_of_rounded_weights(lm):
    before = {k: v.clone() for k, v in lm.module.state_dict().items()}
    plain = lm.logits(TEXTS)
    with inject_noise(lm, "model.layers.*.mlp.down_proj", weight_noise=ReducePrecision(7)) as noisy:
        got = noisy.logits(TEXTS)
        lm.module.zero_grad()
        lm.loss(TEXTS).backward()
        down = lm.module.model.layers[3].mlp.down_proj
        assert float(down.weight.grad.abs().sum()) > 0
        lm.module.zero_grad()
    with torch.no_grad():
        for block in lm.module.model.layers:
            weight = block.mlp.down_proj.weight
            weight.copy_(ReducePrecision(7)(weight))
    by_hand = lm.logits(TEXTS)
    lm.module.load_state_dict(before)
    torch.testing.assert_close(got, by_hand)
    assert not torch.allclose(got, plain)
    torch.testing.assert_close(lm.logits(TEXTS), plain, rtol=0, atol=0)


def test_noise_at_an_address_is_that_at_the_module_which_reads_it(lm):
    q = ReducePrecision(3)
    with inject_noise(lm, "blocks.2.mlp.post", act_noise=q):
        at_address = lm.logits(TEXTS)
    with inject_noise(lm, "model.layers.2.mlp.down_proj", input_noise=q):
        at_module = lm.logits(TEXTS)
    torch.testing.assert_close(at_address, at_module)
    assert not torch.allclose(at_address, lm.logits(TEXTS))


def test_a_pass_that_fails_leaves_the_weights(lm):
    net = nn.Sequential(nn.Linear(3, 2))
    with inject_noise(net, "0", weight_noise=ReducePrecision(3)), pytest.raises(RuntimeError):
        net(torch.zeros(1, 4))
    assert isinstance(net[0].weight, nn.Parameter) and "weight" not in vars(net[0])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: ReducePrecision(0), "1 level"),
        (lambda: ReducePrecision(2.5), "whole number"),
        (lambda: StochasticReducePrecision(True), "whole number"),
        (lambda: ReducePrecision(3, 1.1), "divide"),
        (lambda: GaussianNoise(std=0.1), "exactly two"),
        (lambda: GaussianNoise(0.1, 0.2, 3), "exactly two"),
        (lambda: GaussianNoise(leakage=1.0, precision=3), "leakage"),
        (lambda: GaussianNoise(std=-1.0, precision=3), "above 0"),
        (lambda: InterpolatedActivation(1.2), "between 0 and 1"),
        (lambda: InterpolatedActivation(smooth="gleu"), "gelu"),
        (lambda: InterpolatedActivation(gated=True)(torch.zeros(3)), "halves"),
        (lambda: ReducePrecision(3)(torch.arange(3)), "floating-point"),
        (lambda: AnalogLinear(nn.ReLU(), 3), "weights"),
        (lambda: AnalogLinear(nn.Linear(2, 2), 3, leakage=0.1, std=0.1), "one of"),
        (lambda: gradient_error("relu", 3, radius=0.0), "radius"),
        (lambda: gradient_error(lambda x: x.sum(), 3), "elementwise"),
        (lambda: gradient_error(lambda x: x.softmax(-1), 3), "elementwise"),
        (lambda: inject_noise(nn.Linear(1, 1), "x").__enter__(), "is needed"),
    ],
)
def test_what_is_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        wrong()


def test_weights_that_are_used_without_their_module_are_told():
    torch.manual_seed(0)
    net = nn.ModuleDict({"attend": nn.MultiheadAttention(8, 2), "other": nn.ModuleList([nn.Linear(8, 8)])})
    x = torch.randn(5, 2, 8)
    with (
        pytest.warns(ActiniumWarning, match=r"attend\.out_proj"),
        inject_noise(net, "attend.out_proj", weight_noise=ReducePrecision(2)),
    ):
        net["attend"](x, x, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with inject_noise(net, ["attend", "other*"], weight_noise=ReducePrecision(2)):
            net["attend"](x, x, x)
            net["other"][0](x)


def test_unknown_sites_are_refused(lm):
    with pytest.raises(SiteError, match="module"), inject_noise(lm, "model.layer.0", act_noise=abs):
        pass
    with pytest.raises(InputError, match="neither weights"), inject_noise(lm, "blocks.0.mlp.post", weight_noise=abs):
        pass
