"""Splines: scipy's B-splines, interpolation of control points, smoothness at the ends, and total variation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import interpolate

import actinium as ac

X = torch.linspace(-5, 5, 401, dtype=torch.float64)


def drawn(module):
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p)
    return module.double()


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_b_splines_are_scipys(order):
    grid, reach = 6, 1.5
    unit = drawn(ac.functions.BSplineEdge(grid=grid, order=order, reach=reach))
    step = 2 * reach / grid
    knots = -reach + step * np.arange(-order, grid + order + 1)
    spline = interpolate.BSpline(knots, unit.c.detach().numpy()[0], order, extrapolate=False)
    x = X + 1e-4
    wanted = np.nan_to_num(spline(x.numpy()))  # 0 beyond the knots
    outside = np.abs(x.numpy()) > reach
    # Beyond [-reach, reach] scipy stops, while the splines of the network fade out over `order` steps.
    full = interpolate.BSpline(
        -reach + step * np.arange(-2 * order, grid + 2 * order + 1),
        np.pad(unit.c.detach().numpy()[0], order), order, extrapolate=False,
    )  # fmt: skip
    found = unit.spline(x).detach().numpy()
    np.testing.assert_allclose(found[~outside], wanted[~outside], atol=1e-12)
    np.testing.assert_allclose(found, np.nan_to_num(full(x.numpy())), atol=1e-12)


def test_a_kan_edge_adds_silu():
    unit = drawn(ac.functions.get("KAN edge"))
    base, scale = float(unit.base.detach()), float(unit.scale.detach())
    wanted = base * torch.nn.functional.silu(X) + scale * unit.spline(X)
    torch.testing.assert_close(unit(X), wanted)
    fresh = ac.functions.get("B-spline", noise=0.0)
    torch.testing.assert_close(fresh(X), torch.nn.functional.silu(X))
    assert fresh.c.shape == (1, 8)


def test_the_cubic_spline_interpolates_its_control_points():
    unit = drawn(ac.functions.CubicSpline(step=0.25, reach=2.0))
    knots = torch.arange(-8, 9, dtype=torch.float64) / 4
    torch.testing.assert_close(unit(knots), unit.q[0, 1:-1])


def test_the_cubic_spline_is_a_hermite_spline_with_central_slopes():
    unit = drawn(ac.functions.get("cubic spline"))
    q = unit.q.detach().numpy()[0]
    knots = np.arange(-10, 11) / 5
    wanted = interpolate.CubicHermiteSpline(knots, q[1:-1], (q[2:] - q[:-2]) / 0.4)
    x = np.linspace(-2, 2, 333)
    np.testing.assert_allclose(unit(torch.tensor(x)).detach().numpy(), wanted(x), atol=1e-12)
    slope = unit(torch.tensor([2.5, 3.5])).diff().item()
    assert slope == pytest.approx(float(wanted(2.0, 1)))  # goes on as a line


def test_the_cubic_spline_starts_as_its_function():
    x = torch.linspace(-2, 2, 201)
    torch.testing.assert_close(ac.functions.get("SAF")(x), torch.tanh(x), rtol=0, atol=2e-3)
    torch.testing.assert_close(ac.functions.get("SAF", start="sin")(x), torch.sin(x), rtol=0, atol=2e-3)


def test_the_linear_spline_is_numpys_interpolation_and_goes_on_beyond_its_ends():
    unit = drawn(ac.functions.get("linear deep spline"))
    c = unit.c.detach().numpy()[0]
    knots = np.linspace(-4, 4, 21)
    inside = X[X.abs() <= 4]
    np.testing.assert_allclose(unit(inside).detach().numpy(), np.interp(inside.numpy(), knots, c), atol=1e-12)
    last = c[-1] + (c[-1] - c[-2]) / 0.4 * 2.5
    assert float(unit(torch.tensor(6.5, dtype=torch.float64)).detach()) == pytest.approx(last)
    fresh = ac.functions.get("linear deep spline")
    torch.testing.assert_close(fresh(X), torch.nn.functional.leaky_relu(X), rtol=0, atol=1e-6)


def test_total_variation_counts_changes_of_slope():
    slopes = {"relu": 1.0, "leaky relu": 0.99, "identity": 0.0, "abs": 2.0}
    for start, change in slopes.items():
        unit = ac.functions.get("linear deep spline", start=start, num_parameters=3)
        assert float(unit.tv2().detach()) == pytest.approx(3 * change, abs=1e-4)


def test_the_penalty_leaves_few_slopes():
    torch.manual_seed(0)
    x = torch.linspace(-4, 4, 400)
    wanted = torch.relu(x) + 0.05 * torch.randn(400)

    def trained(weight):
        unit = ac.functions.LinearSpline(start="identity")
        optimiser = torch.optim.Adam(unit.parameters(), lr=0.02)
        for _ in range(300):
            optimiser.zero_grad()
            ((unit(x) - wanted).square().mean() + weight * unit.tv2()).backward()
            optimiser.step()
        return float(unit.tv2().detach())

    assert trained(2e-3) < 0.7 * trained(0.0)


@pytest.mark.parametrize("name", ["cubic spline", "b-spline", "linear deep spline"])
def test_channels_gradients_and_extreme_numbers(name):
    unit = drawn(ac.functions.get(name, num_parameters=3))
    x = (torch.rand(4, 3, 2, dtype=torch.float64) * 6 - 3).requires_grad_()
    whole = unit(x)
    for c in range(3):
        single = ac.functions.get(name).double()
        for mine, theirs in zip(single.parameters(), unit.parameters(), strict=True):
            mine.data.copy_(theirs.data[c : c + 1])
        torch.testing.assert_close(single(x[:, c]), whole[:, c])
    names = [n for n, _ in unit.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in unit.parameters())

    def f(t, *weights):
        return torch.func.functional_call(unit, dict(zip(names, weights, strict=True)), (t,))

    assert torch.autograd.gradcheck(f, (x, *values), atol=1e-5)
    for dtype in (torch.float32, torch.float64):
        top = torch.finfo(dtype).max
        at = torch.tensor([-top, 0.0, top / 100, float("nan")], dtype=dtype)
        found = ac.functions.get(name)(at)
        assert found[:3].isfinite().all() and found[3].isnan()
    half = X.bfloat16().view(1, 1, -1).expand(1, 3, -1)
    assert unit.float()(half).dtype == torch.bfloat16


def test_what_is_refused():
    with pytest.raises(ac.errors.InputError, match="whole number of steps"):
        ac.functions.CubicSpline(step=0.3, reach=2.0)
    with pytest.raises(ac.errors.InputError, match="2 knots or more"):
        ac.functions.LinearSpline(knots=1)
    with pytest.raises(ac.errors.InputError, match="2 knots or more"):
        ac.functions.BSplineEdge(grid=0)
    with pytest.raises(ac.errors.InputError, match="one or more"):
        ac.functions.BSplineEdge(order=0)
    with pytest.raises(ac.errors.InputError, match="3 channels"):
        ac.functions.get("linear deep spline", num_parameters=3)(torch.zeros(2, 4))
