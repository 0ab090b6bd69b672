"""Powers, polynomials, exponentials and chaotic maps: values, closed forms and other libraries' numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import actinium as ac
from actinium.functions.registry import spec

f = ac.functions.functional
X = torch.linspace(-6, 6, 481, dtype=torch.float64)
ONE, MINUS = torch.ones(1, dtype=torch.float64), -torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize(("name", "x", "value"), [
    ("bent identity", 1, 1.2071067812), ("symlog", 1, 0.6931471806), ("SQLU", -1, -0.75), ("Squish", -1, -0.5),
    ("SqREU", -1, -0.5), ("Squish", 4, 4.5), ("square softplus", 0.25, 0.28125), ("LinQ", 1, 0.75),
    ("LinQ", 2, 1.01), ("LinQ", -3, -1.11), ("Sqrt", -4, -2), ("SSAF", 2, 2), ("NCU", 2, -6), ("SQU", 2, 6),
    ("Mishra", 1, 0.375), ("symexp", -1, 1 - math.e), ("exponential", 1, 1 / math.e),
    ("growing exponential", 1, math.e),
    ("gaussian", 1, math.exp(-0.5)), ("polyexp", 1, 3 / math.e), ("wave", 2, -3 * math.exp(-2)),
    ("PMAF", 4, 2 / (math.sqrt(3) * math.pi**0.25)), ("PRBF", 6, 1), ("PRBF", 3, math.exp(-9)),
    ("Cauchy", 0, 1), ("Cauchy", 1, 1), ("Cauchy", -1, 0), ("Cauchy", 2, 0.6), ("evolved tanh-log-relu", -2, 0.6),
    ("SGT", -2, -0.2), ("SGT", 2, 2.2), ("HCAF", 0, 0),
    ("CCAF", math.atanh(0.5), 0.5), ("PUAF", 0, 0), ("PUAF", 11, 11),
])  # fmt: skip
def test_values(name, x, value):
    assert float(f(name)(torch.tensor(float(x), dtype=torch.float64))) == pytest.approx(value, abs=1e-9)


def test_linq_joins_its_lines_without_a_kink():
    for a in (0.0, 0.1, 0.5, 1.0):
        end = 2 - 2 * a
        x = torch.tensor([end - 1e-7, end + 1e-7], dtype=torch.float64, requires_grad=True)
        y = f("linq")(x, a=a)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert float((y[1] - y[0]).detach()) == pytest.approx(0, abs=1e-6)
        assert slope.tolist() == pytest.approx([a, a], abs=1e-6)


def test_symexp_is_the_inverse_of_symlog():
    torch.testing.assert_close(f("symlog")(f("symexp")(X)), X)


def test_puaf_with_zero_powers_is_relu_and_a_step_between():
    torch.testing.assert_close(f("puaf")(X, a=1, b=0.0, c=0.0), torch.relu(X))
    share = f("puaf")(X, a=0, b=5.0, c=10.0)
    torch.testing.assert_close(share + share.flip(0), torch.ones_like(X))  # a sigmoid


def test_the_logistic_map_is_a_sine_of_a_multiple_angle():
    angle = torch.acos(torch.tanh(X / 2))
    for n in (0, 1, 3, 5):
        torch.testing.assert_close(f("HCAF")(X, n=n), torch.sin(2**n * angle).square(), rtol=0, atol=1e-11)


def test_kdac_takes_the_smooth_maximum_of_a_line_and_the_smooth_minimum():
    a, b, c = 0.3, 0.2, 1e-4
    low = torch.where(X > 0, a * X, torch.minimum(b * X, torch.tanh(X)))
    torch.testing.assert_close(f("kdac")(X, a=a, b=b, c=c), torch.maximum(a * X, low), rtol=0, atol=c)


def test_tanh_of_a_logarithm_is_a_rational_function():
    left = X[X < -1]
    torch.testing.assert_close(f("evolved tanh-log-relu")(left), torch.tanh(torch.log(left.abs())))
    torch.testing.assert_close(f("evolved tanh-relu")(X), torch.tanh(X.square()) + torch.relu(X), rtol=0, atol=1e-14)


def test_cauchy_is_the_real_part_of_a_pole_and_represents_runges_function():
    l1, l2, d = 0.7, -0.4, 1.3
    pole = ((l1 - 1j * l2 / d) / (X.numpy() - 1j * d)).real
    np.testing.assert_allclose(f("cauchy")(X, l1=l1, l2=l2, d=d).numpy(), pole, atol=1e-12)
    np.testing.assert_allclose(f("cauchy")(X, l1=l1, l2=l2, d=-d).numpy(), pole, atol=1e-12)
    torch.testing.assert_close(f("cauchy")(X, l1=0.0, l2=0.04, d=0.2), 1 / (1 + 25 * X * X))


def test_gaussians_are_scipys():
    x = X.numpy()
    np.testing.assert_allclose(f("gaussian")(X, a=1.7).numpy(), stats.norm.pdf(x / 1.7) * math.sqrt(2 * math.pi))
    hat = f("PMAF")(X, a=0.0).numpy()
    grid = np.linspace(-6, 6, 481)
    assert np.trapezoid(hat**2, grid) == pytest.approx(1, abs=1e-6)  # the wavelet has unit energy


def test_max_functions_are_maxima():
    torch.testing.assert_close(f("max sigmoid")(X), torch.maximum(X, torch.sigmoid(X)))
    torch.testing.assert_close(f("max tanh")(X), torch.maximum(X, torch.tanh(X)))


@pytest.mark.parametrize("name", ["NCU", "Triple", "SQU", "Square", "SPOCU", "Bent identity", "Polyexp", "Wave"])
def test_large_numbers_give_a_number_or_infinity_and_no_nan_in_the_gradient(name):
    for dtype in (torch.float32, torch.float64):
        top = torch.finfo(dtype).max
        x = torch.tensor([-top, -top / 3, top / 3, top], dtype=dtype, requires_grad=True)
        y = spec(name)(x)
        (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert not y.isnan().any() and not slope.isnan().any()


def test_the_gradient_of_a_root_is_finite_at_zero():
    x = torch.zeros(3, requires_grad=True)
    for name in ("sqrt", "ssaf"):
        (slope,) = torch.autograd.grad(f(name)(x).sum(), x)
        assert slope.tolist() == [0, 0, 0]
