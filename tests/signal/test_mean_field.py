"""The edge of chaos of each function, and how correlations travel on it, are the published ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from actinium.core.elementwise_function import ReLULike
from actinium.core.errors import InputError
from actinium.signal.mean_field import EdgeOfChaos, correlation_map, edge_of_chaos_curve, variance_map

TABLE = [
    (torch.tanh, 0.05, 1.1225, 0.1537, 39.28),
    (torch.tanh, 0.1, 1.1934, 0.2733, None),
    (torch.tanh, 0.2, 1.3041, 0.5121, 7.084),
    (torch.tanh, 0.5, 1.5497, 1.3179, 2.242),
    (torch.tanh, 1.0, 1.8556, 3.0364, None),
    (F.silu, 0.2, 1.6795, 0.6895, 6.36),
    (F.silu, 1.0, 1.4025, 39.39, None),
    (F.gelu, 0.2, 1.5470, 0.5756, 4.25),
    (F.gelu, 1.0, 1.4059, 82.31, None),
    (F.elu, 0.2, 1.2293, 1.1069, 7.39),
    (F.elu, 1.0, 1.3580, 21.78, None),
    (torch.erf, 0.2, 1.1528, 0.4658, None),
]


@pytest.mark.parametrize(("phi", "sb", "sw", "q", "beta"), TABLE)
def test_the_edge_of_chaos_is_the_published_one(phi, sb, sw, q, beta):
    point = EdgeOfChaos(phi).point(sb)
    assert point.sw == pytest.approx(sw, rel=2e-3)
    assert point.q == pytest.approx(q, rel=2e-3)
    if beta is not None:
        assert point.beta_q == pytest.approx(beta, rel=2e-3)
    edge = EdgeOfChaos(phi)
    assert edge.chi1(sb, point.sw, point.q) == pytest.approx(1, abs=1e-9)
    assert float(edge.q_map(point.q, sb, point.sw)) == pytest.approx(point.q, rel=1e-9)


def test_relu_like_functions_have_one_point_where_every_variance_is_fixed():
    for up, down in ((1.0, 0.0), (1.0, 0.2), (0.7, -0.7)):
        point = EdgeOfChaos(ReLULike(up, down)).point(0.0)
        assert point.sw == pytest.approx(math.sqrt(2 / (up**2 + down**2)))
        q = torch.tensor([0.01, 1.0, 70.0], dtype=torch.float64)
        assert torch.allclose(variance_map(ReLULike(up, down), q, 0.0, point.sw), q)
    assert EdgeOfChaos(nn.ReLU()).point(0.0).sw == pytest.approx(1.414214, abs=1e-6)
    linear = EdgeOfChaos(nn.Identity()).point(0.0)
    assert (linear.sw, linear.sb, linear.beta_q) == (1.0, 0.0, math.inf)


def test_without_bias_a_smooth_function_that_vanishes_at_zero_has_the_linear_limit():
    point = EdgeOfChaos(lambda x: torch.tanh(2 * x)).point(0.0)
    assert (point.q, point.beta_q) == (0.0, math.inf)
    assert point.sw == pytest.approx(0.5)


def test_correlations_of_relu_fall_as_one_over_the_square_of_depth():
    edge = EdgeOfChaos(torch.relu)
    c = edge.correlations(0.1, 1000, 0.0, math.sqrt(2))
    found = [float(1 - c[layer]) for layer in (1, 10, 100, 1000)]
    assert found == pytest.approx([0.6301, 0.12483, 3.561e-3, 4.311e-5], rel=2e-4)
    rate = edge.rates(0.0)
    assert (rate.law, rate.power) == ("1/l^2", 2)
    assert rate.coefficient == pytest.approx(9 * math.pi**2 / 2, rel=1e-6)


def test_correlations_of_tanh_fall_as_one_over_depth():
    edge = EdgeOfChaos(torch.tanh)
    point = edge.point(0.2)
    c = edge.correlations(0.1, 1000, 0.2, point.sw)
    found = [float(1 - c[layer]) for layer in (1, 10, 100, 1000)]
    assert found == pytest.approx([0.8331, 0.4730, 0.07279, 7.169e-3], rel=2e-4)
    assert edge.rates(0.2).law == "1/l"
    assert edge.rates(0.2).coefficient == pytest.approx(7.084, rel=1e-3)


def test_a_slope_that_jumps_gives_the_rate_that_its_trajectory_has():
    # Hardtanh on its edge: a kink away from zero, no closed form used anywhere.
    edge = EdgeOfChaos(F.hardtanh)
    point = edge.point(0.5)
    rate = edge.rates(0.5)
    gap = 1 - edge.correlations(0.5, 4000, 0.5, point.sw)
    # The root of 1 / gap grows by one over the root of the coefficient per layer.
    growth = float(gap[4000] ** -0.5 - gap[2000] ** -0.5) / 2000
    assert rate.law == "1/l^2"
    assert growth**-2 == pytest.approx(rate.coefficient, rel=0.03)


@pytest.mark.parametrize("phi", [torch.tanh, F.elu, torch.relu, torch.erf])
def test_the_correlation_map_fixes_one_with_slope_chi1(phi):
    edge, sb, sw = EdgeOfChaos(phi), 0.3, 1.1
    assert float(edge.correlation(1.0, sb, sw)) == pytest.approx(1, abs=1e-9)
    assert float(edge.correlation_slope(1.0, sb, sw)) == pytest.approx(edge.chi1(sb, sw), rel=1e-9)
    c = 0.4
    difference = float(edge.correlation(c + 1e-5, sb, sw) - edge.correlation(c - 1e-5, sb, sw)) / 2e-5
    assert float(edge.correlation_slope(c, sb, sw)) == pytest.approx(difference, abs=1e-5)


def test_relus_map_is_its_closed_form():
    c = torch.linspace(-0.99, 0.999, 21, dtype=torch.float64)
    expected = (c * torch.asin(c) + (1 - c**2).sqrt()) / math.pi + c / 2
    assert torch.allclose(correlation_map(torch.relu, c, 0.0, math.sqrt(2)), expected, atol=1e-12)
    by_quadrature = correlation_map(lambda x: x.clamp(min=0), c, 0.0, math.sqrt(2))
    assert torch.allclose(by_quadrature, expected, atol=1e-8)


def test_given_derivatives_and_those_of_autograd_agree():
    given = EdgeOfChaos(torch.tanh, lambda x: 1 - torch.tanh(x) ** 2, lambda x: -2 * torch.tanh(x) / torch.cosh(x) ** 2)
    one, two = given.point(0.2), EdgeOfChaos(torch.tanh).point(0.2)
    assert one.beta_q == pytest.approx(two.beta_q, rel=1e-8)
    assert one.sw == pytest.approx(two.sw, rel=1e-10)


def test_depth_scales_are_the_rates_of_the_trajectories_off_the_edge():
    edge = EdgeOfChaos(torch.tanh)
    assert edge.chi1(0.2, 0.8) < 1 < edge.chi1(0.2, 3.0)
    assert edge.depth_scale(0.2, edge.point(0.2).sw) > 1e6
    for sw, layers in ((0.8, (6, 12)), (3.0, (20, 40))):
        star = edge.limit_correlation(0.2, sw)
        c = edge.correlations(0.6, layers[1], 0.2, sw)
        fall = math.log(float((c[layers[0]] - star) / (c[layers[1]] - star))) / (layers[1] - layers[0])
        assert 1 / fall == pytest.approx(edge.depth_scale(0.2, sw), rel=0.02)
    assert star < 1 and edge.limit_correlation(0.2, 0.8) == 1.0


def test_smooth_functions_keep_inputs_apart_longer_than_relu():
    relu = EdgeOfChaos(torch.relu).correlations(0.1, 100, 0.0, math.sqrt(2))[-1]
    for phi in (torch.tanh, F.elu, torch.erf):
        edge = EdgeOfChaos(phi)
        assert float(1 - edge.correlations(0.1, 100, 0.2, edge.point(0.2).sw)[-1]) > 3 * float(1 - relu)


def test_an_unstable_variance_on_the_edge_is_reported():
    gelu = EdgeOfChaos(F.gelu)
    point = gelu.point(0.2)
    assert point.growth > 1 and not point.stable
    away = gelu.variances(torch.tensor([0.95, 1.05], dtype=torch.float64) * point.q, 60, 0.2, point.sw)[-1]
    assert float(away[0]) < 0.5 * point.q and float(away[1]) > 2 * point.q
    assert gelu.point(1.0).stable and EdgeOfChaos(torch.tanh).point(0.2).stable


def test_signals_die_or_explode_where_there_is_no_variance():
    assert EdgeOfChaos(torch.tanh).fixed_point(0.0, 0.5) == 0.0
    assert EdgeOfChaos(torch.relu).fixed_point(0.3, 1.0) == pytest.approx(0.09 / (1 - 0.5))
    with pytest.raises(InputError, match="explodes"):
        EdgeOfChaos(torch.relu).fixed_point(0.3, 1.5)
    with pytest.raises(InputError, match="die"):
        EdgeOfChaos(torch.tanh).correlation(0.5, 0.0, 0.5)


def test_the_curve_has_a_row_for_each_bias_and_draws():
    found = edge_of_chaos_curve(torch.tanh, [0.05, 0.2, 0.5])
    assert found["sw"].values == pytest.approx([1.1225, 1.3041, 1.5497], rel=2e-3)
    assert np.all(np.diff(found["beta_q"].values) < 0)
    assert found.plot() is not None


@pytest.mark.parametrize(
    ("phi", "sb", "message"),
    [
        (torch.relu, 0.2, "no EOC for relu in that range"),
        (F.softplus, 0.2, "no EOC for softplus in that range"),
        (torch.sign, 0.2, "jumps at 0"),
        (torch.zeros_like, 0.2, "derivative is zero"),
        (torch.log, 0.2, "not finite"),
        (lambda x: x.softmax(-1), 0.2, "not elementwise"),
        (torch.tanh, -0.1, "sb"),
    ],
)
def test_functions_without_an_edge_are_refused(phi, sb, message):
    with pytest.raises(InputError, match=message):
        EdgeOfChaos(phi).point(sb)


def test_empty_curves_and_negative_depths_are_refused():
    with pytest.raises(InputError, match="no bias scales"):
        edge_of_chaos_curve(torch.tanh, [])
    with pytest.raises(InputError, match="depth"):
        EdgeOfChaos(torch.tanh).correlations(0.1, -1, 0.2, 1.3)
