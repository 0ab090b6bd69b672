"""Gains equal their closed forms, and standardised weights have the mean and length that the paper gives them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from actinium.core.errors import InputError, UnknownNameError
from actinium.signal.scaled_weights import (
    RELEASED_GAINS,
    GainedActivation,
    ScaledWSConv1d,
    ScaledWSConv2d,
    ScaledWSLinear,
    decay_groups,
    nonlinearity_gain,
    standardise_weight,
)

PUBLISHED = {
    "relu": 1.712859,
    "silu": 1.787187,
    "gelu": 1.700926,
    "gelu_tanh": 1.700917,
    "tanh": 1.592537,
    "elu": 1.270843,
    "softplus": 1.919126,
    "sigmoid": 4.801313,
    "selu": 1.0,
    "leaky_relu": 1.704832,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_gain_is_that_of_the_card(name):
    assert nonlinearity_gain(name) == pytest.approx(PUBLISHED[name], abs=1e-6)


def test_gain_of_relu_is_its_closed_form_and_that_of_a_module_the_function_s():
    assert nonlinearity_gain("relu") == pytest.approx(math.sqrt(2 / (1 - 1 / math.pi)), rel=1e-12)
    assert nonlinearity_gain(nn.PReLU(init=0.01)) == pytest.approx(PUBLISHED["leaky_relu"], abs=1e-6)
    assert nonlinearity_gain(torch.sin) == pytest.approx(1 / math.sqrt((1 - math.exp(-2)) / 2), rel=1e-12)


def test_gain_equals_scipy_s_adaptive_quadrature():
    from scipy.integrate import quad
    from scipy.special import expit

    def density(z):
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    mean = quad(lambda z: z * expit(z) * density(z), -15, 15)[0]
    second = quad(lambda z: (z * expit(z)) ** 2 * density(z), -15, 15)[0]
    assert nonlinearity_gain("silu") == pytest.approx((second - mean**2) ** -0.5, rel=1e-9)


@pytest.mark.parametrize("name", sorted(set(RELEASED_GAINS) - {"identity"}))
def test_released_gain_is_within_a_tenth_of_a_percent(name):
    released = nonlinearity_gain(name, released=True)
    assert released == RELEASED_GAINS[name]
    assert released == pytest.approx(nonlinearity_gain(name), rel=1e-3)


def test_gain_refuses_what_has_none():
    for function, words in (
        (lambda x: x * 0 + 3, "constant"),
        (lambda x: x.sum(), "elementwise"),
        (torch.log, "not finite"),
    ):
        with pytest.raises(InputError, match=words):
            nonlinearity_gain(function)
    with pytest.raises(UnknownNameError, match="relu"):
        nonlinearity_gain("rellu")
    with pytest.raises(UnknownNameError):
        nonlinearity_gain("mish", released=True)
    with pytest.raises(InputError):
        GainedActivation("relu", -1.0)


def test_activation_with_its_gain_keeps_the_variance_of_normal_noise():
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name in ("relu", "silu", "tanh"):
        assert float(GainedActivation(name)(z).var()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "layer",
    [ScaledWSLinear(12, 5), ScaledWSConv2d(6, 8, 3, groups=2), ScaledWSConv1d(4, 6, 5)],
    ids=lambda m: type(m).__name__,
)
def test_each_row_of_a_standardised_weight_has_mean_zero_and_length_one(layer):
    rows = layer.standardised().detach().double().flatten(1)
    assert float(rows.mean(1).abs().max()) < 1e-6
    assert torch.allclose(rows.square().sum(1), torch.ones(len(rows), dtype=torch.float64), atol=1e-6)


def test_standardised_weight_equals_the_paper_s_formula_in_float64():
    w = torch.randn(7, 3, 3, 3, dtype=torch.float64) * 4 + 2
    gain = torch.rand(7, dtype=torch.float64) + 0.5
    flat = w.flatten(1)
    wanted = gain[:, None] * (flat - flat.mean(1, True)) / (27**0.5 * flat.std(1, correction=0, keepdim=True))
    assert torch.allclose(standardise_weight(w, gain).flatten(1), wanted, atol=1e-12)


def test_scaling_and_shifting_a_row_changes_nothing():
    layer = ScaledWSConv2d(5, 4, 3, padding=1).double()
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    before = layer(x)
    with torch.no_grad():
        layer.weight[1] *= 7.5
        layer.weight[2] += 3.0
    assert torch.allclose(layer(x), before, atol=1e-10)


def test_constant_row_gives_zero_and_finite_gradients():
    layer = ScaledWSLinear(6, 3)
    with torch.no_grad():
        layer.weight[1] = 2.0
    out = layer(torch.randn(4, 6))
    assert bool((out[:, 1] == 0).all())
    out.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


def test_layers_equal_torch_s_own_with_the_standardised_weight():
    x = torch.randn(2, 6, 9, 9)
    layer = ScaledWSConv2d(6, 8, 3, stride=2, padding=1, groups=2)
    wanted = nn.functional.conv2d(x, layer.standardised(), layer.bias, 2, 1, 1, 2)
    assert torch.equal(layer(x), wanted)
    line = ScaledWSConv1d(6, 4, 3, padding=1, padding_mode="circular", gain=False)
    assert line.gain is None and line(x[:, :, 0]).shape == (2, 4, 9)


def test_bfloat16_statistics_are_taken_in_float32():
    w = torch.randn(4, 4096) + 10
    low = standardise_weight(w.bfloat16())
    assert low.dtype == torch.bfloat16
    reference = standardise_weight(w.bfloat16().double())
    assert float((low.double() - reference).norm() / reference.norm()) < 5e-3


def test_gradients_pass_gradcheck():
    w = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    gain = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardise_weight, (w, gain))


def test_gains_and_biases_do_not_decay():
    layer = ScaledWSConv2d(3, 4, 3)
    decayed, free = decay_groups(layer, 0.1)
    assert [p.ndim for p in decayed["params"]] == [4] and decayed["weight_decay"] == 0.1
    assert {p.ndim for p in free["params"]} == {1} and len(free["params"]) == 2 and free["weight_decay"] == 0
    with pytest.raises(InputError):
        decay_groups(nn.ReLU(), 0.1)


def test_wrong_weights_are_refused():
    with pytest.raises(InputError, match="eps"):
        ScaledWSLinear(3, 2, eps=0)
    with pytest.raises(InputError, match="weight"):
        standardise_weight(torch.ones(4))
    with pytest.raises(InputError, match="gain"):
        standardise_weight(torch.randn(4, 3), torch.ones(3))
