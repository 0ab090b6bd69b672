"""Padé units: published coefficients give the published errors, gradients are closed forms, fits are the nearest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.units.pade_units import LEAKY_RELU, PAU, SIGMOID, RandomizedPAU, RationalActivation
from actinium.functions.units.rational_fit import fit_rational

X = torch.linspace(-3, 3, 6001, dtype=torch.float64)
RANDOM = torch.Generator().manual_seed(0)
A = torch.randn(6, generator=RANDOM, dtype=torch.float64)
B = torch.randn(4, generator=RANDOM, dtype=torch.float64)
POSITIVE = torch.tensor([0.1, 0.5, 0.1, 0.2], dtype=torch.float64)
"""Of a denominator without real roots."""


def unit(init="leaky_relu", **settings):
    return PAU(init, **settings).double().eval()


def searched(f, lo, hi):
    """Largest value by a grid, and a finer one around its best point, twice."""
    left, right = lo, hi
    for _ in range(3):
        x = torch.linspace(left, right, 20001, dtype=torch.float64)
        best, step = float(x[f(x).argmax()]), (right - left) / 20000
        left, right = max(lo, best - step), min(hi, best + step)
    return float(f(torch.tensor([best], dtype=torch.float64)))


def naive(x, a, b, version):
    """F by its formula, a power at a time."""
    above = sum(c * x**k for k, c in enumerate(a))
    if version == "A":
        return above / (1 + sum(abs(c) * abs(x) ** (k + 1) for k, c in enumerate(b)))
    if version == "C":
        return above / (0.1 + abs(sum(c * x**k for k, c in enumerate(b))))
    inner = sum(c * x ** (k + 1) for k, c in enumerate(b))
    return above / (1 + (inner if version == "N" else abs(inner)))


@pytest.mark.parametrize(
    ("slope", "largest", "rmse"),
    [(0.01, 0.0335583, 0.005538), (0.20, 0.02558, 0.00427), (0.25, 0.02423, 0.00404), (0.30, 0.02282, 0.00380)],
)
def test_published_coefficients_have_their_published_errors(slope, largest, rmse):
    off = unit(LEAKY_RELU[slope]).curve(X) - nn.functional.leaky_relu(X, slope)
    assert float(off.abs().max()) == pytest.approx(largest, abs=6e-6)
    assert float(off.square().mean().sqrt()) == pytest.approx(rmse, abs=6e-6)


def test_the_default_start_has_its_known_values():
    f = unit()(torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64))
    # Parameters are kept in float32.
    assert f.tolist() == pytest.approx([1.0008112586, -0.0091887285, 3.35583603e-02], abs=1e-7)


def test_the_sigmoid_is_its_pade_approximant():
    exact = PAU("sigmoid").double()
    with torch.no_grad():
        exact.a.copy_(torch.tensor(SIGMOID[0], dtype=torch.float64))
        exact.b.copy_(torch.tensor(SIGMOID[1], dtype=torch.float64))
        assert float((exact(X) - torch.sigmoid(X)).abs().max()) == pytest.approx(9.8e-7, abs=1e-8)
        exact.b[0, 3] = 1 / 1000
        assert float((exact(X) - torch.sigmoid(X)).abs().max()) == pytest.approx(2.93e-4, abs=1e-6)


def test_a_denominator_of_another_version_is_noticed():
    wrong = unit(LEAKY_RELU[0.25], version="safe")
    error = (wrong(X) - nn.functional.leaky_relu(X, 0.25)).abs().max()
    assert float(error.detach()) == pytest.approx(0.225, abs=1e-3)
    kept = unit(LEAKY_RELU[0.25]).state_dict()
    unit().load_state_dict(kept)
    with pytest.raises(InputError, match="version A with degrees 5 over 4"):
        wrong.load_state_dict(kept)


@pytest.mark.parametrize("version", ["A", "B", "C", "N"])
def test_values_are_the_formula_for_every_version_and_channel(version):
    b = POSITIVE if version == "N" else torch.cat([B, B[:1]]) if version == "C" else B
    module = unit((A, b), version=version, num_parameters=3, channel_dim=1)
    with torch.no_grad():
        module.a.copy_(torch.stack([A, 2 * A, A.flip(0)]))
        module.b.copy_(torch.stack([b, 0.5 * b, 0.7 * b if version == "N" else -0.7 * b]))
    x = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for channel in range(3):
        expected = naive(x[:, channel], module.a[channel], module.b[channel], version)
        torch.testing.assert_close(module(x)[:, channel], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module.curve(X[::100])[1], naive(X[::100], 2 * A, 0.5 * b, version))


def test_the_denominator_is_nowhere_below_one_and_both_tails_have_one_slope():
    one = unit(([1.0, 0, 0, 0, 0, 0], B))
    assert bool((one(X) <= 1).all())
    a, b = (torch.tensor(c, dtype=torch.float64) for c in LEAKY_RELU[0.01])
    for x in (-1e9, 1e9):
        slope = float(unit()(torch.tensor(x, dtype=torch.float64)).detach() / x)
        assert slope == pytest.approx(float(a[5] / b[3].abs()), rel=1e-6) == pytest.approx(0.505, abs=1e-4)


def test_gradients_are_the_closed_forms():
    module = unit((A, B))
    x = X[::37].clone().requires_grad_()
    module(x).sum().backward()
    a, b = module.a[0].detach(), module.b[0].detach()
    x = x.detach()
    k = torch.arange(1, 5, dtype=torch.float64)[:, None]
    above = sum(c * x**j for j, c in enumerate(a))
    rising = sum(j * c * x ** (j - 1) for j, c in enumerate(a) if j)
    below = 1 + (b.abs()[:, None] * x.abs() ** k).sum(0)
    bend = x.sign() * (k * b.abs()[:, None] * x.abs() ** (k - 1)).sum(0)
    for j in range(6):
        assert float(module.a.grad[0, j]) == pytest.approx(float((x**j / below).sum()), rel=1e-10)
    wanted = -(b.sign()[:, None] * x.abs() ** k * above / below**2).sum(1)
    torch.testing.assert_close(module.b.grad[0], wanted, rtol=1e-10, atol=1e-10)
    leaf = X[::37].clone().requires_grad_()
    module(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, rising / below - bend * above / below**2, rtol=1e-10, atol=1e-10)


def test_a_coefficient_that_starts_at_zero_is_learnt():
    module = unit("identity")
    module(X).square().sum().backward()
    assert bool((module.b.grad.abs() > 1).all())


def test_the_fit_of_the_identity_is_the_identity():
    for version in ("A", "B", "N"):
        found = fit_rational(lambda x: x, version=version)
        assert found.a == pytest.approx((0, 1, 0, 0, 0, 0), abs=1e-6) and found.b == pytest.approx((0,) * 4, abs=1e-6)
        assert found.max_err < 1e-10


def test_a_fit_is_no_worse_than_the_published_one_and_than_a_taylor_polynomial():
    assert fit_rational("leaky_relu").rmse <= 0.005538
    assert fit_rational("leaky_relu", version="safe").rmse == pytest.approx(0.005538, abs=2e-6)
    best = np.polynomial.Polynomial.fit(X.numpy(), torch.tanh(X).numpy(), 5)
    error = float(np.abs(best(X.numpy()) - torch.tanh(X).numpy()).max())
    assert fit_rational(torch.tanh, version="B").max_err < error / 1000


def test_an_exact_rational_is_found_again():
    # Odd over even, so that all versions hold it.
    target = lambda x: (x + 0.3 * x**3) / (1 + 0.5 * x**2 + 0.2 * x**4)  # noqa: E731
    for version in ("A", "B", "N"):
        found = fit_rational(target, version=version)
        assert found.max_err < 1e-8
        assert np.abs(found.b) == pytest.approx([0, 0.5, 0, 0.2], abs=1e-5)
    assert fit_rational(target, -1, 2, m=3, n=4).max_err < 1e-8


def test_noise_is_on_both_polynomials_while_training_only():
    torch.manual_seed(0)
    noisy, plain = RandomizedPAU("gelu"), PAU("gelu", version="B")
    noisy.double(), plain.double()
    torch.testing.assert_close(noisy.eval()(X), plain(X), rtol=0, atol=0)
    torch.testing.assert_close(PAU("gelu", version="D").double().eval()(X), plain(X), rtol=0, atol=0)
    noisy.train()
    assert not torch.equal(noisy(X), noisy(X))
    x = torch.tensor([2.0], dtype=torch.float64)
    ratio = torch.stack([noisy(x) / plain(x) for _ in range(400)]).detach()
    assert float(ratio.min()) > 0.9 / 1.1 and float(ratio.max()) < 1.15
    only_below = RandomizedPAU(([1.0, 0, 0, 0, 0, 0], [0.0, 5.0, 0.0, 0.0])).double().train()
    shares = torch.stack([only_below(x) for _ in range(50)]).detach()
    assert float(shares.std()) > 0.001


def test_extreme_numbers_and_half_precision():
    module = PAU().eval()
    top = torch.finfo(torch.float32).max
    x = torch.tensor([-top, -1e12, 1e12, top], requires_grad=True)
    y = module(x)
    torch.testing.assert_close(y / x, torch.full((4,), 0.505), rtol=1e-3, atol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((4,), 0.505), rtol=1e-3, atol=0)
    assert module(torch.tensor([math.inf])).isposinf().all()
    half = torch.linspace(-100, 100, 201)
    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
        got = module(half.to(dtype))
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), module(half.to(dtype).float()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("version", ["A", "B", "C", "N"])
def test_the_range_on_an_interval_is_that_of_a_fine_grid(version):
    b = POSITIVE if version == "N" else torch.cat([B, B[:1]]) if version == "C" else B
    module = unit((A, b), version=version)
    for lo, hi in ((-2.5, 2.0), (0.3, 0.31), (-1.0, 0.0)):
        low, high = module.value_range(lo, hi)
        assert low == pytest.approx(-searched(lambda x: -module.curve(x), lo, hi), rel=1e-6)
        assert high == pytest.approx(searched(module.curve, lo, hi), rel=1e-6)


def test_the_nearest_known_function_is_the_one_that_it_was_fitted_to():
    module = PAU("tanh")
    # Several of the catalogue are tanh at their defaults.
    assert "Tanh" in [name for name, distance in module.nearest(9) if distance < 1e-5]
    assert module.distance_to("tanh") < 1e-5 < module.distance_to("relu")
    names = [name for name, _ in PAU().nearest(6)]
    assert any("ReLU" in name for name in names)


def test_in_a_transformer_a_fitted_unit_keeps_the_logits():
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16, activation_function="gelu")
    torch.manual_seed(0)
    net = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(ids).logits
        with ac.functions.replace(net, "gelu", PAU("identity")):
            far = (net(ids).logits - before).abs().max()
        with ac.functions.replace(net, "gelu", PAU("identity", version="B"), preserve=True) as swap:
            near = (net(ids).logits - before).abs().max()
        torch.testing.assert_close(net(ids).logits, before, rtol=0, atol=0)
    assert len(swap.fits) == 2 and all(fit.max_error < 1e-3 < fit.before for fit in swap.fits.values())
    assert float(near) < 0.05 * float(far)


def test_a_network_learns_digits_and_moves_its_coefficients():
    data = ac.world.digits.load("train")
    x = (data.images.flatten(1) - data.images.mean()) / data.images.std()
    torch.manual_seed(0)
    units = [ac.functions.get("PAU"), ac.functions.get("PAU", num_parameters=32, channel_dim=-1)]
    net = nn.Sequential(nn.Linear(64, 32), units[0], nn.Linear(32, 32), units[1], nn.Linear(32, 10))
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(150):
        rows = torch.arange(step * 64, step * 64 + 64) % len(x)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), data.labels[rows]).backward()
        optimiser.step()
    assert float((net(x).argmax(1) == data.labels).float().mean()) > 0.9
    start = torch.tensor(LEAKY_RELU[0.01][0])
    assert all(float((unit.a - start).abs().max().detach()) > 0.05 for unit in units)


def test_what_makes_no_rational_function_is_refused():
    with pytest.raises(InputError, match="degree 1 or more"):
        PAU(n=0)
    with pytest.raises(InputError, match="degree 1 or more"):
        fit_rational("relu", m=0)
    with pytest.raises(InputError, match="interval"):
        fit_rational("relu", 3, 3)
    with pytest.raises(InputError, match="6 and 4 coefficients, not 5 and 4"):
        PAU((A[:5], B))
    with pytest.raises(InputError, match="6 and 5 coefficients"):
        PAU((A, B), version="C")
    with pytest.raises(InputError, match="denominator is 0 at 2"):
        PAU((A, [-0.5, 0.0, 0.0, 0.0]), version="plain")
    with pytest.raises(InputError, match="denominator is 0"):
        fit_rational(torch.tan, version="N")
    with pytest.raises(InputError, match="finite"):
        PAU(([math.nan] * 6, B))
    with pytest.raises(InputError, match="not finite on"):
        fit_rational(torch.log)
    with pytest.raises(InputError, match="version of the denominator"):
        PAU(version="E")
    with pytest.raises(InputError, match="noise"):
        PAU(noise=1.5)
    with pytest.raises(UnknownNameError, match="did you mean"):
        PAU("gelo")
    with pytest.raises(InputError, match="floating-point"):
        PAU()(torch.arange(3))
    with pytest.raises(InputError, match="points"):
        PAU().curve(torch.zeros(2, 2))
    with pytest.raises(InputError, match="order"):
        PAU().value_range(1, -1)
    assert RationalActivation is PAU
