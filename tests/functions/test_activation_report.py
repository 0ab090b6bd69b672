"""The analyser finds the numbers that are known of GELU and others, and refuses what it cannot look at."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.activation_report import analyze_activation
from actinium.functions.shape_analysis import derivatives


def test_gelu_is_what_calculus_says():
    found = analyze_activation("gelu")
    assert found.smoothness == 2 and found.breaks == () and not (found.monotone or found.odd or found.even)
    assert found.at_zero == 0 and found.slope_at_zero == pytest.approx(0.5, abs=1e-12)
    (low,) = found.stationary
    assert low.kind == "minimum" and low.x == pytest.approx(-0.7517915247, abs=1e-9)
    assert low.value == pytest.approx(-0.1699712075, abs=1e-9)
    assert found.lower == pytest.approx(low.value) and found.lipschitz == pytest.approx(1.1289041451851547, abs=1e-9)
    assert found.gradient_lipschitz == pytest.approx(2 / math.sqrt(2 * math.pi), abs=1e-9)
    assert found.mean == pytest.approx(1 / (2 * math.sqrt(math.pi)), abs=1e-12)
    assert found.second_moment == pytest.approx(1 / 3 + 1 / (2 * math.pi * math.sqrt(3)), abs=1e-12)
    assert found.variance == pytest.approx(0.3456440110, abs=1e-9)
    assert found.gain == pytest.approx(1.5335304412, abs=1e-9)
    assert found.bounded_below and not found.bounded_above
    assert found.left_asymptote == pytest.approx((0, 0), abs=1e-6)
    assert found.right_asymptote == pytest.approx((1, 0), abs=1e-6)


def test_derivatives_of_gelu_are_the_closed_forms_and_extreme_at_the_root_of_two():
    x = np.linspace(-6, 6, 241)
    f, first, second, third = derivatives(ac.functions.functional("gelu"), x, 3)
    density, share = stats.norm.pdf(x), stats.norm.cdf(x)
    for got, wanted in (
        (f, x * share), (first, share + x * density), (second, (2 - x**2) * density),
        (third, (x**3 - 4 * x) * density), (first + first[::-1], 1.0),
    ):  # fmt: skip
        np.testing.assert_allclose(got, np.broadcast_to(wanted, x.shape), atol=1e-12)
    slopes = derivatives(ac.functions.functional("gelu"), np.array([-math.sqrt(2), math.sqrt(2)]), 2)
    np.testing.assert_allclose(slopes[1:], [[-0.1289041452, 1.1289041452], [0, 0]], atol=1e-10)


def test_gelu_and_its_approximations():
    x = torch.linspace(-10, 10, 200001, dtype=torch.float64)
    gelu = ac.functions.functional("gelu")
    torch.testing.assert_close(gelu(x), nn.functional.gelu(x), rtol=0, atol=1e-12)
    values = gelu(torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64))
    wanted = torch.tensor([0, 0.8413447460685429, -0.15865525393145707, 1.9544997361036416], dtype=torch.float64)
    torch.testing.assert_close(values, wanted, rtol=0, atol=1e-14)
    torch.testing.assert_close(gelu(x) - gelu(-x), x, rtol=0, atol=1e-12)
    for name, error, place in (("gelutanh", 4.7324e-4, 2.699), ("quickgelu", 0.020335, 2.270)):
        off = (ac.functions.functional(name)(x) - gelu(x)).abs()
        assert float(off.max()) == pytest.approx(error, rel=1e-4)
        assert float(x[off.argmax()].abs()) == pytest.approx(place, abs=2e-3)
    torch.testing.assert_close(
        ac.functions.functional("gelutanh")(x), nn.functional.gelu(x, approximate="tanh"), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(("name", "gain"), [("relu", 2**0.5), ("silu", 1.6765324703), ("mish", 1.4868475813)])
def test_gains(name, gain):
    assert analyze_activation(name).gain == pytest.approx(gain, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "smoothness", "breaks", "lipschitz", "bend"),
    [
        ("relu", 0, (0,), 1, math.inf),
        ("elu", 1, (0,), 1, 1),
        ("hardtanh", 0, (-1, 1), 1, math.inf),
        ("softplus", 2, (), 1, 0.25),
        ("heaviside", -1, (0,), math.inf, math.inf),
        ("softclippingsc", 2, (), None, None),
    ],
)
def test_kinks_are_told_from_steep_places(name, smoothness, breaks, lipschitz, bend):
    found = analyze_activation(name if name != "softclippingsc" else steep)
    assert found.smoothness == smoothness and found.breaks == pytest.approx(breaks, abs=1e-8)
    if lipschitz is not None:
        assert found.lipschitz == pytest.approx(lipschitz, abs=1e-4)
        assert found.gradient_lipschitz == pytest.approx(bend, abs=1e-6)


@pytest.mark.parametrize(
    ("function", "below", "above"),
    [
        (nn.ELU(), True, False),
        (nn.Hardshrink(), False, False),
        (nn.Hardsigmoid(), True, True),
        (nn.Hardtanh(), True, True),
        (nn.Hardswish(), True, False),
        (nn.LeakyReLU(), False, False),
        (nn.LogSigmoid(), False, True),
        (nn.PReLU(), False, False),
        (nn.ReLU(inplace=True), True, False),
        (nn.ReLU6(), True, True),
        (nn.SELU(), True, False),
        (nn.CELU(inplace=True), True, False),
        (nn.Sigmoid(), True, True),
        (nn.Softplus(), True, False),
        (nn.Softshrink(), False, False),
        (nn.Softsign(), True, True),
        (nn.Tanh(), True, True),
        (nn.Tanhshrink(), False, False),
        (nn.GELU(), True, False),
        (torch.sin, True, True),
        (torch.abs, True, False),
        (lambda x: x * torch.cos(x), False, False),
        (lambda x: torch.log1p(x.square()) + 0 * x, True, False),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module | bool) else None,
)
def test_bounds_are_those_on_the_whole_line(function, below, above):
    found = analyze_activation(function)
    assert (found.bounded_below, found.bounded_above) == (below, above)


def test_a_function_that_writes_into_its_input_and_one_without_a_second_derivative_are_analysed():
    plain, written = analyze_activation(nn.ReLU()), analyze_activation(nn.ReLU(inplace=True))
    assert plain == written and math.copysign(1, plain.lower) == 1
    assert analyze_activation("softsign").breaks == pytest.approx((0,), abs=1e-8)
    hard = analyze_activation(nn.Hardsigmoid())
    assert hard.breaks == pytest.approx((-3, 3), abs=1e-8) and hard.lipschitz == pytest.approx(1 / 6, abs=1e-6)
    x = np.linspace(-5, 5, 101)
    np.testing.assert_allclose(derivatives(nn.Hardswish(), x, 2)[2], np.where(np.abs(x) < 3, 1 / 3, 0), atol=1e-6)


def test_a_coarse_grid_sees_a_turn_between_its_points():
    assert not analyze_activation("gelu", n=3).monotone
    assert math.isnan(analyze_activation("gelu", 1, 5).slope_at_zero)


def steep(x):
    """Soft clipping with a = 50, whose slope changes within a twentieth."""
    zero = torch.zeros_like(x)
    return (torch.logaddexp(50 * x, zero) - torch.logaddexp(50 * (x - 1), zero)) / 50


def test_symmetry_and_shares():
    tanh, square, relu = (analyze_activation(f) for f in (torch.tanh, torch.square, "relu"))
    assert tanh.odd and not tanh.even and tanh.monotone and tanh.bounded_above and tanh.bounded_below
    assert square.even and not square.odd and [p.kind for p in square.stationary] == ["minimum"]
    assert relu.zero_share == pytest.approx(0.5, abs=1e-3) and relu.dead_share == pytest.approx(0.5, abs=1e-3)
    assert tanh.zero_share == 0 and relu.chi == pytest.approx(1)
    assert [p.kind for p in analyze_activation(lambda x: x**3, -2, 2).stationary] == ["saddle"]


def test_a_module_keeps_its_parameters_and_the_report_is_shown():
    swish = ac.functions.get("swish", b=2.0)
    found = analyze_activation(swish, name="Swish 2")
    assert found.name == "Swish 2" and found.at_zero == 0 and float(swish.b.detach()) == 2 and swish.b.requires_grad
    assert set(found.table()["property"]) >= {"gain", "chi", "variance", "stationary"}
    assert found.curves.table().shape[1] >= 4 and found.plot().has_data()


def test_what_cannot_be_analysed_is_refused():
    for function, says in (
        (lambda x: torch.softmax(x, -1), "not elementwise"),
        (lambda x: x[:3], "not elementwise"),
        (lambda x: torch.log(x), "not finite"),
        (3, "callable"),
    ):
        with pytest.raises(InputError, match=says):
            analyze_activation(function)
    for interval in ((1, 1, 10), (0, 1, 2), (0, math.inf, 10)):
        with pytest.raises(InputError, match="interval"):
            analyze_activation("relu", *interval)
    with pytest.raises(UnknownNameError, match="did you mean"):
        analyze_activation("gelo")
