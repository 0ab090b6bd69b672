"""Variable activation functions and activation ensembles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

import actinium as ac


def test_a_variable_unit_is_a_network_of_one_hidden_layer():
    torch.manual_seed(0)
    unit = ac.functions.get("VAF", k=4)
    net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    with torch.no_grad():
        net[0].weight.copy_(unit.a.T)
        net[0].bias.copy_(unit.c[0])
        net[2].weight.copy_(unit.b)
        net[2].bias.copy_(unit.d)
    x = torch.randn(50, 1)
    torch.testing.assert_close(unit(x), net(x))


def test_a_variable_unit_learns_the_absolute_value():
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 200)
    unit = ac.functions.get("VAF", k=6)
    optimiser = torch.optim.Adam(unit.parameters(), lr=0.02)
    for _ in range(300):
        optimiser.zero_grad()
        loss = (unit(x) - x.abs()).square().mean()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.01


def test_the_projection_is_the_nearest_point_of_the_simplex():
    torch.manual_seed(0)
    for v in torch.randn(6, 4, dtype=torch.float64) * 2:
        found = ac.functions.onto_simplex(v)
        solved = optimize.minimize(
            lambda p, at: ((p - at) ** 2).sum(), np.full(4, 0.25), (v.numpy(),), method="SLSQP", bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1}, options={"ftol": 1e-14},
        )  # fmt: skip
        np.testing.assert_allclose(found.numpy(), solved.x, atol=1e-6)
    many = ac.functions.onto_simplex(torch.randn(5, 1, 7, 1))
    torch.testing.assert_close(many.sum(0), torch.ones(1, 7, 1))
    assert bool((many >= 0).all())


def test_an_ensemble_normalises_each_function_by_the_batch():
    torch.manual_seed(0)
    x = torch.randn(16, 3, 5)
    unit = ac.functions.get("activation ensemble", num_parameters=3)
    with torch.no_grad():
        unit.a.copy_(torch.tensor([0.5, 0.3, 0.2]))
        unit.eta.copy_(torch.tensor([1.0, 2.0, -1.0]))
        unit.delta.copy_(torch.tensor([0.1, 0.0, 0.3]))
    wanted = torch.zeros_like(x)
    for a, eta, delta, h in zip(
        (0.5, 0.3, 0.2), (1, 2, -1), (0.1, 0, 0.3), (torch.sigmoid, torch.tanh, torch.relu), strict=True
    ):
        y = h(x)
        for c in range(3):
            low, high = y[:, c].min(), y[:, c].max()
            wanted[:, c] += a * ((y[:, c] - low) / (high - low + 1e-5) * eta + delta)
    torch.testing.assert_close(unit(x), wanted)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_ensemble_uses_running_ends_in_evaluation(channels):
    torch.manual_seed(0)
    unit = ac.functions.get("activation ensemble", num_parameters=channels, momentum=0.5)
    first, second = torch.randn(16, 3), torch.randn(16, 3) * 3
    unit(first)
    torch.testing.assert_close(unit.eval()(first), unit.train()(first))  # one batch is its own running mean
    unit(second)
    over = 0 if channels == 3 else (0, 1)
    wanted = 0.5 * torch.tanh(first).amax(over) + 0.5 * torch.tanh(second).amax(over)
    torch.testing.assert_close(unit.high[:, 1], wanted.view(-1))
    unit.eval()
    held = unit.high.clone()
    assert torch.equal(unit(second), unit(second)) and torch.equal(unit.high, held)
    alone = unit(second[:1])
    torch.testing.assert_close(alone, unit(second)[:1])  # no dependence on the batch


def test_an_ensemble_takes_any_shape_and_half_precision():
    for shape in ((7,), (2, 3), (0, 3), (2, 3, 4, 5)):
        x = torch.randn(shape)
        assert ac.functions.get("activation ensemble")(x).shape == shape
        if len(shape) > 1:
            assert ac.functions.get("activation ensemble", num_parameters=3)(x).shape == shape
    vector = ac.functions.get("activation ensemble", num_parameters=7, channel_dim=-1)
    assert vector(torch.randn(7)).isfinite().all()
    unit = ac.functions.get("activation ensemble", num_parameters=3)
    assert unit(torch.randn(2, 3).half()).dtype == torch.float16


def test_gradients_of_networks_and_ensembles():
    torch.manual_seed(0)
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    for name in ("VAF", "activation ensemble"):
        unit = ac.functions.get(name, num_parameters=2, channel_dim=-1).double()
        names = [n for n, _ in unit.named_parameters()]
        values = tuple(p.detach().clone().requires_grad_() for p in unit.parameters())

        def f(t, *weights, unit=unit, names=names):
            return torch.func.functional_call(unit, dict(zip(names, weights, strict=True)), (t,))

        assert torch.autograd.gradcheck(f, (x, *values), atol=1e-5)


def test_what_is_refused():
    with pytest.raises(ac.errors.InputError, match="one hidden unit"):
        ac.functions.VariableUnit(0)
    with pytest.raises(ac.errors.InputError, match="momentum"):
        ac.functions.ActivationEnsemble(momentum=0.0)
    with pytest.raises(ac.errors.InputError, match="3 channels"):
        ac.functions.get("VAF", num_parameters=3)(torch.zeros(2, 4))
