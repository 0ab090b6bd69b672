"""Gaussian moments equal closed forms, at kinks and at correlations near one, and refuse what has none."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn

from actinium.core.elementwise_function import Elementwise, ReLULike, elementwise
from actinium.core.errors import InputError
from actinium.core.gaussian_moments import gaussian_mean, gaussian_product
from actinium.signal.duals import _interpolated, closed_form, dual_activation, dual_at

C = torch.tensor([-1, -0.9999, -0.5, 0, 1e-5, 0.3, 0.9, 0.99, 0.9999, 1 - 1e-6, 1 - 1e-9, 1], dtype=torch.float64)
Q = torch.tensor([1e-6, 0.3, 1.0, 5.0, 100.0, 1e4], dtype=torch.float64)
SMOOTH = (torch.tanh, F.gelu, F.silu, torch.sin, F.softplus)
KINKED = (F.elu, F.hardswish, F.hardtanh, F.selu, F.relu6)


def by_scipy(fn, q, kinks=()):
    def integrand(z):
        return float(fn(torch.tensor(math.sqrt(q) * z, dtype=torch.float64))) ** 2 * stats.norm.pdf(z)

    places = sorted(k / math.sqrt(q) for k in kinks)
    return integrate.quad(integrand, -12, 12, points=[p for p in places if abs(p) < 12] or [0.0], limit=400)[0]


def test_powers_have_the_moments_of_a_normal_number():
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (8, 105.0)):
        found = gaussian_mean(lambda x, p=power: x**p, Q[1:5])
        assert torch.allclose(found, expected * Q[1:5] ** (power / 2), rtol=1e-11, atol=1e-8)


def test_relu_and_erf_equal_their_closed_forms_at_every_variance_and_correlation():
    assert torch.allclose(gaussian_mean(F.relu, Q, power=2), Q / 2, rtol=1e-12)
    assert torch.allclose(
        gaussian_mean(torch.erf, Q, power=2), 2 / math.pi * torch.asin(2 * Q / (1 + 2 * Q)), atol=1e-12
    )
    for q in (0.3, 30.0):
        for phi in (F.relu, torch.erf, torch.abs, ReLULike(1.3, -0.4), nn.LeakyReLU(0.2)):
            found = gaussian_product(phi, phi, q, 2.0, C)
            one = torch.ones_like(C)
            expected = closed_form(phi).product(q * one, 2 * one, C)
            assert torch.allclose(found, expected, atol=1e-10 * max(1.0, q))


@pytest.mark.parametrize("fn", [*SMOOTH, *KINKED])
def test_second_moments_equal_scipys(fn):
    kinks = (-3.0, -1.0, 0.0, 1.0, 3.0, 6.0)
    for q in (0.2, 4.0):
        assert float(gaussian_mean(fn, q, power=2)) == pytest.approx(by_scipy(fn, q, kinks), rel=1e-8)


@pytest.mark.parametrize("fn", [*SMOOTH, *KINKED])
def test_double_moments_equal_single_ones_where_both_numbers_are_one_and_where_they_are_independent(fn):
    mean, square = gaussian_mean(fn, 0.7), gaussian_mean(fn, 0.7, power=2)
    found = gaussian_product(fn, fn, 0.7, 0.7, torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert torch.allclose(found, torch.stack([square, mean**2]), atol=1e-8)


def test_double_moments_equal_scipys_double_integral():
    for fn, g, c in ((torch.tanh, F.silu, 0.6), (F.hardtanh, F.elu, -0.8)):

        def inner(z, fn=fn, g=g, c=c):
            u = torch.tensor(1.1 * z, dtype=torch.float64)
            kinks = [(k / 0.9 - c * z) / math.sqrt(1 - c * c) for k in (0.0,)]
            v = integrate.quad(
                lambda y: float(g(torch.tensor(0.9 * (c * z + math.sqrt(1 - c * c) * y)))) * stats.norm.pdf(y),
                -9,
                9,
                points=[k for k in kinks if abs(k) < 9] or None,
                epsabs=1e-9,
            )[0]
            return float(fn(u)) * v * stats.norm.pdf(z)

        pieces = [-8, -1 / 1.1, 1 / 1.1, 8]
        expected = sum(
            integrate.fixed_quad(lambda z: [inner(float(t)) for t in z], a, b, n=16)[0] for a, b in pairwise(pieces)
        )
        assert float(gaussian_product(fn, g, 1.21, 0.81, c)) == pytest.approx(expected, abs=1e-7)


@settings(max_examples=10)
@given(st.floats(0.01, 50), st.floats(-2, 2), st.floats(-2, 2))
def test_a_step_and_a_kink_anywhere_are_integrated(q, at, height):
    s = math.sqrt(q)
    step = gaussian_mean(lambda x: 0.25 + (height - 0.25) * (x > at).double(), q)
    tail = stats.norm.sf(at / s)
    assert float(step) == pytest.approx(height * tail + 0.25 * (1 - tail), abs=1e-9)
    kink = gaussian_mean(lambda x: (x - at).clamp(min=0), q)
    assert float(kink) == pytest.approx(s * stats.norm.pdf(at / s) - at * tail, rel=1e-9, abs=1e-10)


def test_kinks_and_corners_are_found():
    assert Elementwise(F.hardswish).kinks(16).tolist() == [-3, 3]
    assert Elementwise(F.relu6).corners(16).tolist() == [0, 6]
    assert Elementwise(F.elu).kinks(16).tolist() == [0]
    assert Elementwise(F.elu).corners(16).tolist() == []
    found = Elementwise(lambda x: F.hardshrink(x, 0.37)).corners(16).tolist()
    assert found == pytest.approx([-0.37, 0.37], abs=1e-9)
    for fn in (*SMOOTH, lambda x: torch.tanh(50 * x)):
        assert not len(Elementwise(fn).kinks(16))


@pytest.mark.parametrize("at", [-9.9, -1.8, 0.1, 0.37, 2.61, 7.0])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_jump_of_any_order_is_found_where_it_is(at, order):
    def bent(x):
        return torch.sin(x) + 0.5 * torch.where(x > at, (x - at) ** order, 0.0)

    found = Elementwise(bent).jumps(-10.0, 12.0)
    assert [len(places) for places in found] == [int(k == order) for k in range(3)]
    assert float(found[order]) == pytest.approx(at, abs=1e-7)


def test_a_root_is_a_corner_and_no_jump():
    for power, order in ((0.5, 1), (1.5, 2)):
        found = Elementwise(lambda x, p=power: torch.sign(x) * x.abs() ** p).jumps(-4.0, 4.0)
        assert [places.tolist() for places in found] == [[0.0] if k == order else [] for k in range(3)]


def test_places_beyond_a_reach_are_left_out():
    f = Elementwise(lambda x: (x - 9).abs())
    assert f.kinks(10).tolist() == [9] and f.kinks(8.5).tolist() == [] and f.corners(8.5).tolist() == []
    assert f.jumps(8.0, 9.0)[1].tolist() == [] and f.jumps(8.0, 9.5)[1].tolist() == [9]


@pytest.mark.parametrize("fn", [*SMOOTH, *KINKED])
def test_steins_lemma_holds_for_autograd_derivatives(fn):
    z = gaussian_mean(lambda x: x * fn(x), 1.7)
    assert float(z) == pytest.approx(1.7 * float(gaussian_mean(elementwise(fn).derivative(), 1.7)), rel=1e-9)


def test_second_derivatives_of_a_module_with_parameters_are_integrated():
    class Swish(nn.Module):
        def __init__(self):
            super().__init__()
            self.beta = nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return x * torch.sigmoid(self.beta * x)

    module = Swish()
    second = elementwise(module).derivative().derivative()
    x = torch.tensor([0.3, -2.0], dtype=torch.float64)
    s = torch.sigmoid(x)
    expected = s * (1 - s) * (2 + x * (1 - 2 * s))
    assert torch.allclose(second(x), expected, atol=1e-7)
    assert module.beta.requires_grad and module.beta.grad is None and module.beta.dtype == torch.float32


@pytest.mark.parametrize("fn", [torch.tanh, F.hardtanh, F.elu])
def test_many_pairs_at_once_equal_each_by_itself(fn):
    random = torch.Generator().manual_seed(0)
    q1 = 0.5 + torch.rand(120, generator=random, dtype=torch.float64)
    q2 = 0.5 + torch.rand(120, generator=random, dtype=torch.float64)
    c = 0.8 * (2 * torch.rand(120, generator=random, dtype=torch.float64) - 1)
    f = elementwise(fn)
    assert (dual_activation(f, q1, q2, c) - gaussian_product(f, f, q1, q2, c)).abs().max() < 1e-7
    near = 1 - torch.rand(120, generator=random, dtype=torch.float64) ** 6
    found = dual_activation(f, 0.8, 0.8, near)
    assert (found - gaussian_product(f, f, 0.8, 0.8, near)).abs().max() < 1e-7
    assert (dual_at(f, 0.8)(near) - gaussian_product(f, f, 0.8, 0.8, near)).abs().max() < 1e-9


def test_interpolation_over_variances_and_correlations_up_to_one_is_accurate():
    random = torch.Generator().manual_seed(0)
    f = elementwise(F.hardtanh)
    q1, q2 = (1 + 0.05 * torch.rand(800, generator=random, dtype=torch.float64) for _ in range(2))
    c = 1 - 0.02 * torch.rand(800, generator=random, dtype=torch.float64) ** 4
    found = _interpolated(f, q1, q2, c, 1e-6)
    assert (found[:40] - gaussian_product(f, f, q1[:40], q2[:40], c[:40])).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: torch.softmax(x, -1), "not elementwise"),
        (lambda x: x - x.mean(), "not elementwise"),
        (lambda x: x.sum(), "not elementwise"),
        (nn.GLU(dim=0), "not elementwise"),
        (lambda x: x.cumsum(0), "not elementwise"),
        (lambda x: x.flip(0).cumsum(0).flip(0), "not elementwise"),
        (nn.PReLU(8), "one dimension"),
        (lambda x: x + torch.randn_like(x), "random"),
        (lambda x: x.float(), "float64"),
        (3, "callable"),
        (torch.log, "not finite"),
        (lambda x: torch.exp(x * x), "not finite|too fast"),
        (lambda x: torch.exp(0.3 * x * x), "too fast"),
        (lambda x: torch.sin(1e6 * x), "too many"),
    ],
)
def test_what_has_no_moments_or_is_not_elementwise_is_refused(fn, message):
    with pytest.raises(InputError, match=message):
        gaussian_mean(fn, 1.0, power=2)


def test_bad_variances_correlations_and_integers_are_refused():
    with pytest.raises(InputError, match="variances"):
        gaussian_mean(torch.tanh, -1.0)
    with pytest.raises(InputError, match="variances"):
        gaussian_mean(torch.tanh, float("nan"))
    with pytest.raises(InputError, match="no variance"):
        gaussian_mean(torch.tanh, torch.zeros(0))
    with pytest.raises(InputError, match="correlations"):
        gaussian_product(torch.tanh, torch.tanh, 1.0, 1.0, 1.1)
    with pytest.raises(InputError, match="real numbers"):
        elementwise(torch.tanh)(torch.arange(3))
