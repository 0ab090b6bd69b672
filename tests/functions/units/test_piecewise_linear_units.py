"""APL and PWLU: they start as ReLU, are the functions that their parameters say, and learn on digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError

X = torch.linspace(-6, 6, 1201, dtype=torch.float64)


def apl(**settings):
    return ac.functions.get("APL", **settings).double()


def pwlu(**settings):
    return ac.functions.get("PWLU", **settings).double()


def filled(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p))
    return module


def test_both_start_as_relu():
    torch.testing.assert_close(apl()(X), torch.relu(X))
    torch.testing.assert_close(pwlu().eval()(X), torch.relu(X))
    torch.testing.assert_close(pwlu(segments=6, left=-1.0, right=1.0).eval()(X), torch.relu(X))


def test_apl_is_its_formula_for_each_channel():
    module = filled(apl(hinges=3, num_parameters=4, channel_dim=1))
    x = torch.randn(5, 4, 7, dtype=torch.float64)
    for channel in range(4):
        y = x[:, channel].clamp(min=0)
        for a, b in zip(module.a[:, channel], module.b[:, channel], strict=True):
            y = y + a * (b - x[:, channel]).clamp(min=0)
        torch.testing.assert_close(module(x)[:, channel], y)


def test_pwlu_interpolates_between_its_knots_and_goes_on_with_its_outer_slopes():
    module = filled(pwlu(segments=8, left=-2.0, right=2.0)).eval()
    values, (low, high) = module.values[:, 0].detach().numpy(), module.slopes[:, 0].detach()
    inside = X[(X >= -2) & (X <= 2)]
    expected = np.interp(inside.numpy(), np.linspace(-2, 2, 9), values)
    torch.testing.assert_close(module(inside).detach(), torch.from_numpy(expected))
    left, right = X[X < -2], X[X > 2]
    torch.testing.assert_close(module(left).detach(), values[0] + low * (left + 2))
    torch.testing.assert_close(module(right).detach(), values[-1] + high * (right - 2))


def test_pwlu_has_its_own_pieces_for_each_channel():
    module = filled(pwlu(segments=4, num_parameters=3, channel_dim=-1)).eval()
    x = torch.randn(50, 3, dtype=torch.float64) * 3
    for channel in range(3):
        one = pwlu(segments=4).eval()
        one.load_state_dict(
            {k: v if k == "state" else v[:, channel : channel + 1] for k, v in module.state_dict().items()}
        )
        torch.testing.assert_close(module(x)[:, channel], one(x[:, channel]))


@pytest.mark.parametrize("make", [apl, pwlu])
def test_gradients_are_those_of_finite_differences(make):
    module = filled(make(num_parameters=2, channel_dim=1)).eval()
    x = (torch.randn(6, 2, dtype=torch.float64) * 3).requires_grad_()
    values = [p.detach().clone().requires_grad_() for p in module.parameters()]
    names = [k for k, _ in module.named_parameters()]

    def f(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(f, (x, *values))


@pytest.mark.parametrize("make", [apl, pwlu])
def test_extreme_numbers_and_half_precision(make):
    module = make().eval()
    top = torch.finfo(torch.float64).max
    y = module(torch.tensor([-torch.inf, -top, top, torch.inf], dtype=torch.float64))
    assert not y.isnan().any() and y[0] == y[1] == 0 and y[2] > 1e300
    half = module.float()(X.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), torch.relu(X), rtol=2e-3, atol=2e-3)
    assert module(torch.tensor([float("nan")])).isnan().all()


def test_alignment_puts_the_interval_three_standard_deviations_around_the_inputs():
    torch.manual_seed(0)
    module = pwlu(num_parameters=2, channel_dim=-1).train()
    for _ in range(60):
        module(torch.randn(2000, 2, dtype=torch.float64) * torch.tensor([2.0, 0.5]) + torch.tensor([1.0, -4.0]))
    module.align()
    expected = torch.tensor([[-5.0, -5.5], [7.0, -2.5]], dtype=torch.float64)
    torch.testing.assert_close(module.bounds, expected, rtol=0.02, atol=0.02)
    knots = module.bounds[0] + torch.linspace(0, 1, 17, dtype=torch.float64)[:, None] * (
        module.bounds[1] - module.bounds[0]
    )
    torch.testing.assert_close(module.eval()(knots), torch.relu(knots))
    twin = pwlu(num_parameters=2, channel_dim=-1)
    twin.load_state_dict(module.state_dict())
    assert twin.aligned and torch.equal(twin.eval()(knots), module.eval()(knots))


def test_statistics_stop_once_it_is_aligned():
    module = pwlu().train()
    module(X)
    module.align()
    kept, bounds = module.moments.clone(), module.bounds.clone()
    module(5 * X)
    assert torch.equal(module.moments, kept) and torch.equal(module.bounds, bounds)


def test_a_single_vector_of_units_is_taken():
    module = apl(num_parameters=3, channel_dim=-1)
    assert module(torch.ones(3, dtype=torch.float64)).shape == (3,)
    assert pwlu(num_parameters=3, channel_dim=-1).train()(torch.ones(3, dtype=torch.float64)).shape == (3,)
    assert pwlu().train()(torch.zeros(0, 3, dtype=torch.float64)).shape == (0, 3)


@pytest.mark.parametrize("name", ["APL", "PWLU"])
def test_a_network_learns_digits_with_it_and_moves_its_pieces(name):
    data = ac.world.digits.load("train")
    x = torch.as_tensor(np.asarray(data.images), dtype=torch.float32).flatten(1)
    labels = torch.as_tensor(np.asarray(data.labels)).long()
    torch.manual_seed(0)
    unit = ac.functions.get(name, num_parameters=32, channel_dim=-1)
    net = nn.Sequential(nn.Linear(x.shape[1], 32), unit, nn.Linear(32, 10))
    start = [p.detach().clone() for p in unit.parameters()]
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(150):
        rows = torch.arange(step * 64, step * 64 + 64) % len(x)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), labels[rows]).backward()
        optimiser.step()
    assert float((net.eval()(x).argmax(1) == labels).float().mean()) > 0.8
    assert all((p - q).abs().max() > 1e-3 for p, q in zip(unit.parameters(), start, strict=True))


def test_bad_settings_and_inputs_are_refused():
    with pytest.raises(InputError, match="one hinge or more"):
        apl(hinges=0)
    with pytest.raises(InputError, match="left < right"):
        pwlu(left=1.0, right=1.0)
    with pytest.raises(InputError, match="momentum"):
        pwlu(momentum=0.0)
    with pytest.raises(InputError, match="num_parameters"):
        apl(num_parameters=0)
    with pytest.raises(InputError, match="train a few batches first"):
        pwlu().align()
    with pytest.raises(InputError, match="4 channels"):
        apl(num_parameters=4)(torch.zeros(2, 3))
    with pytest.raises(InputError, match="floating-point"):
        pwlu()(torch.tensor([1]))
