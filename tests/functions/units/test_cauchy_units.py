"""The Cauchy activation: its values, its complex form, what its sums represent, and how fast they converge."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import actinium as ac
from actinium.core.errors import InputError
from actinium.functions.units.cauchy_units import CauchyActivation, XNet, cauchy_contour, cauchy_expansion

X = torch.linspace(-6, 6, 1201, dtype=torch.float64)
POINTS = torch.linspace(-1, 1, 401, dtype=torch.float64)


def unit(l1=1.0, l2=1.0, d=1.0, **settings):
    return CauchyActivation(init=(l1, l2, d), min_d=0.0, **settings).double()


def test_values_and_extremes_at_the_start():
    y = unit()(torch.tensor([0.0, 1, -1, 2, math.sqrt(2) - 1, -1 - math.sqrt(2)], dtype=torch.float64))
    root = math.sqrt(2)
    assert y.tolist() == pytest.approx([1, 1, 0, 0.6, (1 + root) / 2, (1 - root) / 2], abs=1e-15)
    fine = unit()(torch.linspace(-20, 20, 400001, dtype=torch.float64)).detach()
    assert float(fine.max()) == pytest.approx(1.2071067812, abs=1e-9)
    assert float(fine.min()) == pytest.approx(-0.2071067812, abs=1e-9)
    torch.testing.assert_close(unit()(X), ac.functions.get("Cauchy").double()(X))


def test_tails_parity_and_mass():
    module = unit(0.7, -0.4, 1.3)
    for x in (-1e6, 1e6):
        assert float(module(torch.tensor(x, dtype=torch.float64)).detach()) == pytest.approx(0.7 / x, rel=1e-5)
    torch.testing.assert_close(unit(0.0, 0.8, 1.3)(-X), unit(0.0, 0.8, 1.3)(X))
    torch.testing.assert_close(unit(0.8, 0.0, 1.3)(-X), -unit(0.8, 0.0, 1.3)(X))
    bump = unit(0.0, 0.8, 1.3)
    mass, _ = quad(lambda x: float(bump(torch.tensor(x, dtype=torch.float64)).detach()), -np.inf, np.inf)
    assert mass == pytest.approx(math.pi * 0.8 / 1.3, rel=1e-4)


def test_it_is_the_real_part_of_a_pole():
    for l1, l2, d in ((1.0, 1.0, 1.0), (0.3, -2.0, 0.5), (-1.0, 0.4, 3.0)):
        pole = ((l1 - 1j * l2 / d) / (X.numpy() - 1j * d)).real
        module = unit()
        with torch.no_grad():
            for p, v in zip(module.parameters(), (l1, l2, d), strict=True):
                p.fill_(v)
        np.testing.assert_allclose(module(X).detach().numpy(), pole, rtol=1e-12, atol=1e-12)


def test_gradients_are_the_closed_forms_and_those_of_finite_differences():
    module = unit(num_parameters=1)
    with torch.no_grad():
        for p, v in zip(module.parameters(), (0.7, -0.4, 1.3), strict=True):
            p.fill_(v)
    x = X.clone().requires_grad_()
    module(x).sum().backward()
    q = X**2 + 1.3**2
    torch.testing.assert_close(x.grad, 0.7 * (1.3**2 - X**2) / q**2 + 2 * 0.4 * X / q**2)
    assert float(module.l1.grad) == pytest.approx(float((X / q).sum()), abs=1e-10)
    assert float(module.l2.grad) == pytest.approx(float((1 / q).sum()), rel=1e-10)
    assert float(module.d.grad) == pytest.approx(float((-2 * 1.3 * (0.7 * X - 0.4) / q**2).sum()), rel=1e-10)
    units = CauchyActivation(3, channel_dim=-1).double()
    names = [k for k, _ in units.named_parameters()]
    values = [(1 + 0.3 * torch.arange(3, dtype=torch.float64)).requires_grad_() for _ in names]
    f = lambda t, *v: torch.func.functional_call(units, dict(zip(names, v, strict=True)), (t,))  # noqa: E731
    assert torch.autograd.gradcheck(f, (X[:30].view(10, 3).clone().requires_grad_(), *values))


def test_the_sign_of_d_does_not_matter_and_a_width_of_zero_is_no_pole():
    torch.testing.assert_close(unit(d=1.4)(X), unit(d=-1.4)(X), rtol=0, atol=0)
    flat = CauchyActivation(init=(1.0, 1.0, 0.0))
    x = torch.tensor([0.0, 1e-4], requires_grad=True)
    y = flat(x)
    y.sum().backward()
    assert y[0].item() == pytest.approx(1e6, rel=1e-4) and bool(
        x.grad.isfinite().all() and flat.d.grad.isfinite().all()
    )


def test_extreme_numbers_and_half_precision():
    top = torch.finfo(torch.float32).max
    x = torch.tensor([-top, -1e16, 1e16, top], requires_grad=True)
    y = CauchyActivation()(x)
    torch.testing.assert_close(y * x, torch.ones(4))
    y.sum().backward()
    assert not x.grad.isnan().any()
    half = torch.linspace(-300, 300, 301)
    for dtype in (torch.float16, torch.bfloat16):
        got = CauchyActivation()(half.to(dtype))
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), CauchyActivation()(half.to(dtype).float()), rtol=1e-2, atol=1e-3)


def test_runges_function_is_one_unit():
    runge = unit(0.0, 1 / 25, 1 / 5)
    torch.testing.assert_close(runge(POINTS), 1 / (1 + 25 * POINTS**2), rtol=1e-7, atol=0)
    found = cauchy_expansion(POINTS, 1 / (1 + 25 * POINTS**2), torch.zeros(1), 0.2)
    assert float(found.l1) == pytest.approx(0, abs=1e-12) and float(found.l2) == pytest.approx(1 / 25, abs=1e-12)


def test_the_contour_sum_converges_geometrically_to_the_function():
    inside = torch.linspace(-1, 1, 101, dtype=torch.float64)
    errors = []
    for m in (8, 16, 32):
        total = cauchy_contour(np.exp, m, radius=(2.0, 2.0))
        errors.append(float((total(inside) - inside.exp()).abs().max()))
    # On a circle of radius 2 with 2 m points the error at |x| = 1 is that of x^2m / 2^2m.
    assert errors[0] < 2e-4 and errors[1] < 1e-8 and errors[2] < 1e-13
    moved = cauchy_contour(lambda z: 1 / (z - 9), 40, centre=3.0, radius=(1.5, 1.0))
    torch.testing.assert_close(moved(inside / 2 + 3), 1 / (inside / 2 + 3 - 9), rtol=1e-8, atol=0)


def test_a_least_squares_sum_converges_and_is_a_network():
    y = torch.sin(2 * math.pi * POINTS) + torch.exp(-50 * (POINTS - 0.3) ** 2)
    errors = []
    for m in (5, 10, 20, 40):
        found = cauchy_expansion(POINTS, y, torch.linspace(-1.2, 1.2, m), 0.4)
        errors.append(float((found(POINTS) - y).square().mean().sqrt()))
    assert all(b < a / 5 for a, b in itertools.pairwise(errors)) and errors[-1] < 1e-10
    torch.testing.assert_close(found.network()(POINTS[:, None])[:, 0], found(POINTS), rtol=1e-6, atol=1e-6)


def test_biases_put_the_units_on_the_data():
    torch.manual_seed(0)
    x = torch.randn(200, 3) * 2 + 5
    net = XNet(3, (16, 8), 2).spread_biases(x)
    before = net.layers[0](x)
    assert bool((before.abs().min(0).values < 1e-4).all())
    assert len(set(net.layers[0].bias.tolist())) == 16
    assert sum(p.numel() for p in net.layers[1].parameters()) == 48
    assert sum(p.numel() for p in XNet(3, (16, 8), 2, per="layer").layers[1].parameters()) == 3
    few = XNet(3, (16,), 1).spread_biases(x[:5])
    assert len({round(b, 6) for b in few.layers[0].bias.tolist()}) == 16


def test_a_shallow_network_of_it_beats_relu_on_a_peak():
    x = torch.linspace(-1, 1, 150)[:, None]
    y = torch.sin(2 * math.pi * x) + torch.exp(-50 * (x - 0.3) ** 2)
    loss = {}
    for name in ("relu", "cauchy"):
        torch.manual_seed(0)
        net = (
            nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 1))
            if name == "relu"
            else XNet(1, (40,), 1, "layer")
        )
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 600)
        for _ in range(600):
            error = nn.functional.mse_loss(net(x), y)
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
            schedule.step()
        loss[name] = float(error.detach())
    assert loss["cauchy"] <= 0.2 * loss["relu"]


def test_in_a_transformer_it_takes_gelus_place_and_its_triples_are_fitted():
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16, activation_function="gelu")
    torch.manual_seed(0)
    net = GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(ids).logits
        with ac.functions.replace(net, "gelu", CauchyActivation()):
            far = (net(ids).logits - before).abs().max()
        with ac.functions.replace(net, "gelu", CauchyActivation(), preserve=True, reach=1.0) as swap:
            near = (net(ids).logits - before).abs().max()
    assert 0 < float(near) < float(far)
    assert len(swap.fits) == 2 and all(fit.rmse < fit.before for fit in swap.fits.values())


def test_what_is_no_cauchy_function_is_refused():
    for init in ((1.0, math.nan, 1.0), (1.0, 1.0)):
        with pytest.raises(InputError, match="three finite numbers"):
            CauchyActivation(init=init)
    with pytest.raises(InputError, match="min_d"):
        CauchyActivation(min_d=-1.0)
    with pytest.raises(InputError, match="num_parameters"):
        CauchyActivation(0)
    with pytest.raises(InputError, match="4 channels"):
        CauchyActivation(4)(torch.zeros(2, 3))
    with pytest.raises(InputError, match="floating-point"):
        CauchyActivation()(torch.arange(3))
    with pytest.raises(InputError, match="sharing"):
        XNet(1, (4,), 1, per="unit")
    for hidden in ((), (4, 4, 4), (0,)):
        with pytest.raises(InputError, match="hidden layers"):
            XNet(1, hidden, 1)
    with pytest.raises(InputError, match="finite rows"):
        XNet(2, (4,), 1).spread_biases(torch.zeros(3, 1))
    with pytest.raises(InputError, match="points and values"):
        cauchy_expansion(POINTS, POINTS[:-1], torch.zeros(1), 1.0)
    for d in (0.0, torch.ones(2), math.inf):
        with pytest.raises(InputError, match="widths"):
            cauchy_expansion(POINTS, POINTS, torch.zeros(3), d)
    with pytest.raises(InputError, match="finite numbers"):
        cauchy_expansion(POINTS, POINTS * math.nan, torch.zeros(3), 1.0)
    with pytest.raises(InputError, match="one term or more"):
        cauchy_contour(np.exp, 0)
    with pytest.raises(InputError, match="finite value"):
        cauchy_contour(lambda z: z * np.nan, 3)
