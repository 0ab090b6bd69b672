"""Entropy of outputs, the function with the highest one, the correction that lowers it, and CRReLU."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.functions.searches.entropy_correction import (
    DynamicEAFO,
    eafo_correction,
    layer_entropies,
    output_entropy,
    worst_activation,
)
from actinium.functions.searches.input_density import MonotoneCurve, kernel_density

GRID = torch.linspace(-5, 5, 2001)
HALF = torch.linspace(0, 8, 4001)
DRAWN = torch.randn(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
HALVES = {-0.1: 0.6884078392, -0.01: 0.7222364767, 0.0: 0.7257913526, 0.01: 0.7293077372, 0.1: 0.7593121937}


def corrected(e):
    return lambda x: x + e * x * torch.exp(-x * x / 2)


def test_crrelu_has_its_values_its_minimum_and_its_slopes():
    crrelu = ac.functions.get("CRReLU").double()
    x = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    assert crrelu(x).tolist() == pytest.approx([1.0060653066, -0.0060653066, 0.0], abs=1e-9)
    exact = ac.functions.functional("CRReLU")
    report = ac.functions.analyze_activation(exact)
    minimum = next(p for p in report.stationary if p.kind == "minimum" and p.x < 0)
    assert minimum.x == pytest.approx(-1, abs=1e-9)
    sides = torch.tensor([-1e-9, 1e-9], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(exact(sides).sum(), sides)
    assert slope.tolist() == pytest.approx([0.01, 1.01], abs=1e-8)
    wide = torch.linspace(-9, 9, 3601, dtype=torch.float64)
    bump = exact(wide, e=0.3) - torch.relu(wide)
    assert float(bump.abs().max()) == pytest.approx(0.3 * math.exp(-0.5), rel=1e-6)
    torch.testing.assert_close(bump, -bump.flip(0))
    assert float(torch.trapezoid(bump, wide)) == pytest.approx(0, abs=1e-12)
    assert torch.equal(exact(wide, e=0.0), torch.relu(wide))


@pytest.mark.parametrize("scale", [1.0, 1.702])
def test_the_entropy_of_a_sigmoid_is_the_known_one(scale):
    known = {1.0: -0.1931798335, 1.702: -0.0100426295}[scale]
    assert output_entropy(lambda x: torch.sigmoid(scale * x)) == pytest.approx(known, abs=1e-9)
    assert output_entropy(lambda x: torch.sigmoid(-scale * x)) == pytest.approx(known, abs=1e-9)
    assert output_entropy(lambda x: torch.sigmoid(scale * x), method="vasicek") == pytest.approx(known, abs=0.02)
    assert output_entropy(lambda x: torch.sigmoid(scale * x), DRAWN) == pytest.approx(known, abs=0.02)


def test_an_entropy_is_the_integral_of_the_output_s_density():
    def q(u):
        x = math.log(math.expm1(u))
        return stats.norm.pdf(x) / (1 / (1 + math.exp(-x)))

    whole = integrate.quad(lambda u: -q(u) * math.log(q(u)), 1e-4, 9, limit=400)[0]
    assert output_entropy(nn.functional.softplus) == pytest.approx(whole, abs=1e-4)
    assert output_entropy(lambda x: 3 * x - 1) == pytest.approx(math.log(3) + 0.5 * math.log(2 * math.pi * math.e))


@pytest.mark.parametrize("e", HALVES)
def test_a_bump_added_to_relu_raises_the_entropy_and_one_taken_away_lowers_it(e):
    assert output_entropy(corrected(e), "half-normal") == pytest.approx(HALVES[e], abs=1e-9)
    assert HALVES[0.0] == pytest.approx(math.log(math.pi * math.e / 2) / 2, abs=1e-9)


def test_the_worst_activation_is_the_distribution_function_and_no_other_has_more_entropy():
    worst = worst_activation("normal", 0.0, 1.0)
    np.testing.assert_allclose(worst(GRID.double()).numpy(), stats.norm.cdf(GRID.double().numpy()), atol=1e-12)
    assert output_entropy(worst) == pytest.approx(0, abs=1e-12)
    assert output_entropy(worst_activation("normal", -2.0, 3.0)) == pytest.approx(math.log(5), abs=1e-12)
    rivals = (torch.sigmoid, lambda x: torch.sigmoid(1.702 * x), lambda x: torch.tanh(x) / 2 + 0.5)
    assert all(output_entropy(f) < -1e-3 for f in rivals)


def test_the_worst_activation_of_samples_is_their_rising_distribution_function():
    worst = worst_activation(DRAWN, -1.0, 1.0)
    x = torch.linspace(-6, 6, 500)
    y = worst(x)
    assert y.dtype == torch.float32 and bool((y.diff() >= 0).all())
    assert float((y - (2 * torch.special.ndtr(x) - 1)).abs().max()) < 0.02
    assert float(y[0]) == pytest.approx(-1, abs=1e-4) and float(y[-1]) == pytest.approx(1, abs=1e-4)
    other = worst_activation(torch.randn(100), 0.0, 1.0)
    with pytest.raises(RuntimeError):
        other.load_state_dict(worst.state_dict())  # points of another number


def test_the_worst_activation_has_no_correction():
    for lo, hi in ((0.0, 1.0), (-2.0, 3.0)):
        assert np.abs(eafo_correction(worst_activation("normal", lo, hi), "normal", GRID).eta).max() < 1e-6


def test_the_correction_of_relu_is_that_of_the_paper_and_lowers_the_entropy():
    found = eafo_correction(lambda x: x * 1.0, "half-normal", HALF)
    x = found.grid
    np.testing.assert_allclose(found.eta, 2 * x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi), atol=1e-12)
    # eta falls fastest at sqrt(3), where its slope is -4 exp(-3/2) / sqrt(2 pi).
    assert found.largest_eps == pytest.approx(math.sqrt(2 * math.pi) * math.exp(1.5) / 4, rel=1e-3)
    h = {eps: output_entropy(found.f_new(eps), "half-normal") for eps in (-0.1, -0.01, 0.0, 0.01, 0.1)}
    assert list(h.values()) == sorted(h.values(), reverse=True)
    # To first order the inverse's +eps eta is -eps eta on the function itself.
    per_unit = (h[0.01] - h[-0.01]) / 0.02
    e = 2 / math.sqrt(2 * math.pi)
    own = (output_entropy(corrected(-1e-3 * e), "half-normal") - HALVES[0.0]) / 1e-3
    assert per_unit == pytest.approx(own, rel=0.02) and per_unit < 0
    found.result.plot()


INVERSES = {
    "sigmoid": (torch.sigmoid, lambda u: 1 / (u * (1 - u)), lambda u: (2 * u - 1) / (u * (1 - u)) ** 2),
    "tanh": (torch.tanh, lambda u: 1 / (1 - u * u), lambda u: 2 * u / (1 - u * u) ** 2),
    "softplus": (
        nn.functional.softplus,
        lambda u: np.exp(u) / np.expm1(u),
        lambda u: -np.exp(u) / np.expm1(u) ** 2,
    ),
}


@pytest.mark.parametrize("name", INVERSES)
def test_a_correction_is_that_of_the_inverse_and_lowers_the_entropy_of_any_rising_function(name):
    fn, first, second = INVERSES[name]
    found = eafo_correction(fn, "normal", torch.linspace(-4, 4, 1601))
    y, u = found.grid, found.outputs
    p = stats.norm.pdf(y)
    np.testing.assert_allclose(found.eta, y * p * first(u) - p * second(u) / first(u), atol=1e-7)
    step = 0.05 * found.largest_eps if math.isfinite(found.largest_eps) else 0.05
    before, after = (output_entropy(found.f_new(eps), stats_density()) for eps in (0.0, step))
    assert after < before


def stats_density():
    """The standard normal between -3.5 and 3.5."""
    normal = ac.functions.DENSITIES["normal"]
    return ac.functions.Density(normal.pdf, normal.cdf, -3.5, 3.5)


def test_too_long_a_step_is_refused_and_the_longest_one_is_said():
    found = eafo_correction(lambda x: x * 1.0, "half-normal", HALF)
    found.f_new(0.999 * found.largest_eps)
    with pytest.raises(InputError, match=f"below {found.largest_eps:.4g}"):
        found.f_new(1.01 * found.largest_eps)


def test_densities_may_be_values_callables_or_kernels():
    values = torch.exp(-(GRID.double() ** 2) / 2) / math.sqrt(2 * math.pi)
    known = eafo_correction(torch.sigmoid, "normal", GRID)
    np.testing.assert_allclose(eafo_correction(torch.sigmoid, values, GRID).eta, known.eta, atol=2e-3)
    kernels = kernel_density(DRAWN[:2000])
    reference = stats.gaussian_kde(DRAWN[:2000].numpy(), 1.0)
    width = min(DRAWN[:2000].std(), stats.iqr(DRAWN[:2000]) / 1.34) * (4 / 6000) ** 0.2
    reference.set_bandwidth(float(width / DRAWN[:2000].std()))
    at = torch.linspace(-3, 3, 25, dtype=torch.float64)
    np.testing.assert_allclose(kernels.pdf(at), reference(at.numpy()), rtol=1e-6)
    assert float(kernels.cdf(at)[12]) == pytest.approx(reference.integrate_box_1d(-np.inf, 0), abs=1e-6)
    eafo_correction(torch.sigmoid, kernels, torch.linspace(-5, 5, 301))


def test_a_monotone_curve_is_scipy_s_and_has_its_slope():
    from scipy.interpolate import PchipInterpolator

    x = np.array([0.0, 0.5, 2.0, 3.0])
    y = np.array([-1.0, 0.0, 0.1, 4.0])
    curve, at = MonotoneCurve(x, y), torch.linspace(0, 3, 97, dtype=torch.float64)
    np.testing.assert_allclose(curve(at).numpy(), PchipInterpolator(x, y)(at.numpy()), atol=1e-12)
    at = torch.tensor([-1.0, 0.2, 1.3, 2.7, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(curve, (at,))


def test_the_dynamic_correction_of_relu_follows_its_inputs_and_lowers_their_entropy():
    unit = DynamicEAFO(every=4, memory=4096)
    x = torch.randn(4096, 1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(unit(x), torch.relu(x))
    for part in (x + 0.5).split(1024):
        unit(part)
    # Kernels widen the density of N(0.5, 1) by their bandwidth.
    unit.estimate()
    values = unit.seen
    wide = 1 + (4 / (5 * len(values))) ** (2 / 7)
    t = unit.x.double() - values.double().mean()
    exact = -t / wide * torch.exp(-t * t / (2 * wide)) / math.sqrt(2 * math.pi * wide)
    assert float((unit.change - exact).abs().max()) < 0.08
    unit.eval()
    with torch.no_grad():
        y = unit(torch.tensor([1.5, -0.5, 50.0]))
    assert y[0] < 1.5 and y[2] == 50
    unit(x).sum().backward()
    assert unit.eps.grad is not None and bool(unit.eps.grad.isfinite())
    twin = DynamicEAFO(every=4, memory=4096).eval()
    twin.load_state_dict(unit.state_dict())
    assert torch.equal(twin(x), unit(x))
    # f - eps f' eta of a function with a slope that changes.
    soft = DynamicEAFO(nn.functional.softplus, every=1, memory=1000)
    soft(DRAWN[:1000].float())
    kernels = kernel_density(soft.seen, order=1)
    wanted = eafo_correction(nn.functional.softplus, kernels, np.linspace(kernels.lo, kernels.hi, 129))
    slope = torch.sigmoid(soft.x.double()).numpy()
    np.testing.assert_allclose(soft.change.numpy(), -slope * wanted.eta, atol=1e-5)


def test_a_network_with_the_dynamic_correction_learns():
    found = ac.functions.compare_activations(
        {"relu": nn.ReLU, "dynamic": lambda: DynamicEAFO(every=20)}, "regression", (0,), epochs=8, n=300
    )
    assert found["curve"].values[1, 0, -1] < 0.8 * found["curve"].values[1, 0, 0]


def test_every_layer_s_eps_grows_on_digits():
    task = ac.functions.task("digits")
    torch.manual_seed(0)
    net = task.build(lambda: ac.functions.get("CRReLU"))
    optimiser, source = torch.optim.Adam(net.parameters(), task.rate), torch.Generator().manual_seed(0)
    for _ in range(20):
        for x, y in task.batches(source):
            optimiser.zero_grad()
            task.loss(net(x), y).backward()
            optimiser.step()
    assert all(float(m.e.detach()) > 0.02 for m in net if hasattr(m, "e"))
    assert task.score(net(task.test[0]), task.test[1]) > 0.94


def test_entropies_of_a_model_s_layers_before_and_after_a_swap():
    model = ac.load("world:lm").module
    ids = torch.randint(0, 50, (4, 32), generator=torch.Generator().manual_seed(0))
    before = layer_entropies(model, ids)
    assert (before["atom"].values < 0.01).all() and np.isfinite(before["entropy"].values).all()
    held = []
    name = str(before["entropy"].coords["layer"].values[0])
    hook = model.get_submodule(name).register_forward_hook(lambda _, __, y: held.append(y.detach().flatten()))
    model(ids)
    hook.remove()
    known = stats.differential_entropy(held[0][:20000].double().numpy(), method="ebrahimi")
    assert float(before["entropy"][0]) == pytest.approx(known, abs=0.1)
    with ac.functions.replace(model, None, "relu") as swap:
        after = layer_entropies(model, ids, swap.places)
    assert (after["atom"].values > 0.3).all()
    after.plot()


def test_modules_are_measured_as_they_are_in_evaluation_and_left_as_they_were():
    bend = nn.Sequential(nn.Dropout(0.5), nn.Softplus())
    assert output_entropy(bend) == pytest.approx(output_entropy(nn.functional.softplus), abs=1e-12)
    assert bend.training and bend[0].training
    grid = torch.linspace(-6, 6, 401)
    np.testing.assert_array_equal(
        eafo_correction(bend, "normal", grid).eta, eafo_correction(nn.functional.softplus, "normal", grid).eta
    )
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).eval(), nn.Tanh(), nn.Dropout(0.5))
    layer_entropies(net, torch.randn(64, 4, generator=torch.Generator().manual_seed(0)))
    assert [part.training for part in net] == [True, False, True, True]
    with pytest.raises(RuntimeError):
        layer_entropies(net, torch.ones(2, 5))
    assert [part.training for part in net] == [True, False, True, True]
    assert not any(part._forward_hooks for part in net)


def test_what_has_no_entropy_or_inverse_is_refused():
    for fn, p, method, message in (
        (torch.relu, "normal", "analytic", "atom"),
        (torch.relu, "normal", "vasicek", "atom"),
        (nn.functional.silu, "normal", "analytic", "turns near x = -1.2"),
        (torch.sigmoid, "uniform", "analytic", "density"),
        (torch.sigmoid, "normal", "kde", "method"),
        (torch.sigmoid, [1.0, math.nan] * 9, "analytic", "finite"),
        (torch.sigmoid, torch.ones(20), "analytic", "no density"),
        (lambda x: x.sum(), "normal", "analytic", "elementwise"),
    ):
        with pytest.raises(InputError, match=message):
            output_entropy(fn, p, method)
    for fn, density, grid, message in (
        (nn.functional.silu, "normal", GRID, "does not rise"),
        (torch.relu, "normal", GRID, "no inverse"),
        (torch.sigmoid, "normal", torch.linspace(-1, 1, 50), "integral"),
        (torch.sigmoid, lambda x: 2 * torch.exp(-x * x), GRID, "integral"),
        (torch.sigmoid, torch.ones(7), GRID, "2001 finite values"),
        (torch.sigmoid, "normal", GRID.flip(0), "rising"),
    ):
        with pytest.raises(InputError, match=message):
            eafo_correction(fn, density, grid)
    with pytest.raises(InputError, match="range"):
        worst_activation("normal", 1.0, 0.0)
    with pytest.raises(InputError, match="falls"):
        unit = DynamicEAFO(nn.functional.silu, every=1, memory=500)
        unit(DRAWN[:500].float() * 3)
    with pytest.raises(InputError, match="memory"):
        DynamicEAFO(memory=3)
    with pytest.raises(InputError, match="no module"):
        layer_entropies(nn.Sequential(nn.ReLU()), DRAWN, ["one"])
    with pytest.raises(InputError, match="rise"):
        MonotoneCurve(np.array([0.0, 0.0]), np.array([0.0, 1.0]))
    with pytest.raises(InputError, match="bandwidth"):
        kernel_density(DRAWN, 0.0)
    with pytest.raises(InputError, match="order"):
        kernel_density(DRAWN, order=-1)
