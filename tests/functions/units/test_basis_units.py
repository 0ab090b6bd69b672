"""Basis expansions: NumPy's polynomials, closed-form coefficients, and least squares."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev, hermite_e, legendre, polynomial

import actinium as ac

X = torch.linspace(-3, 3, 121, dtype=torch.float64)
EVALUATE = {"power": polynomial.polyval, "chebyshev": chebyshev.chebval, "legendre": legendre.legval,
            "hermite": hermite_e.hermeval}  # fmt: skip


@pytest.mark.parametrize("basis", EVALUATE)
@pytest.mark.parametrize("squash", [False, True])
def test_the_sum_is_numpys(basis, squash):
    torch.manual_seed(0)
    unit = ac.functions.PolynomialUnit(basis, 6, squash=squash, num_parameters=2, channel_dim=0).double()
    torch.nn.init.normal_(unit.a)
    found = unit(torch.stack([X, X])).detach().numpy()
    inner = np.tanh(X.numpy()) if squash else X.numpy()
    for c in range(2):
        a = unit.a.detach().numpy()[c].copy()
        if basis == "hermite":
            a /= np.sqrt([math.factorial(j) for j in range(7)])
        np.testing.assert_allclose(found[c], EVALUATE[basis](inner, a), rtol=1e-9, atol=1e-9)


def test_hermite_units_start_with_the_hermite_coefficients_of_relu():
    # E[ReLU(x) He_j(x)] / sqrt(j!) in closed form: 0 for odd j > 1.
    wanted = [1 / math.sqrt(2 * math.pi), 0.5]
    for j in range(2, 7):
        double = math.prod(range(1, j - 2, 2))
        wanted.append(0.0 if j % 2 else (-1) ** (j // 2 - 1) * double / math.sqrt(2 * math.pi * math.factorial(j)))
    unit = ac.functions.get("hermite", degree=6)
    assert unit.a[0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_every_full_polynomial_basis_starts_as_the_same_function():
    first = ac.functions.get("hermite", degree=4)(X)
    for name in ("SLAF", "Legendre"):
        torch.testing.assert_close(ac.functions.get(name, degree=4)(X), first, rtol=0, atol=1e-5)
    torch.testing.assert_close(ac.functions.get("chebyshev", degree=4, squash=False)(X), first, rtol=0, atol=1e-5)


def test_degrees_are_those_of_the_papers():
    sizes = {name: ac.functions.get(name).a.shape[1] for name in ("SLAF", "Chebyshev", "Legendre", "Hermite")}
    assert sizes == {"SLAF": 6, "Chebyshev": 4, "Legendre": 4, "Hermite": 6}


def test_a_polynomial_starts_as_itself():
    unit = ac.functions.get("SLAF", start=lambda x: 1 - 2 * x + x**3, degree=3)
    assert unit.a[0].tolist() == pytest.approx([1, -2, 0, 1], abs=1e-6)


def test_the_fourier_unit_starts_as_the_series_of_relu():
    unit = ac.functions.get("FSA", terms=4)
    assert float(unit.a.detach()) == pytest.approx(math.pi / 4, abs=1e-6)
    j = np.arange(1, 5)
    assert unit.b[0].tolist() == pytest.approx(list(((-1.0) ** j - 1) / (math.pi * j**2)), abs=1e-6)
    assert unit.c[0].tolist() == pytest.approx(list((-1.0) ** (j + 1) / j), abs=1e-6)
    a, b, c = (p.detach().double()[0] for p in (unit.a, unit.b, unit.c))
    wanted = a + sum(b[k - 1] * torch.cos(k * X) + c[k - 1] * torch.sin(k * X) for k in j.tolist())
    torch.testing.assert_close(unit(X), wanted)
    slow = ac.functions.get("FSA", terms=4, frequency=0.5)
    torch.testing.assert_close(slow(2 * X), 2 * unit(X), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["SLAF", "Chebyshev", "Legendre", "Hermite"])
def test_large_numbers_and_half_precision(name):
    unit = ac.functions.get(name)
    assert not unit(torch.tensor([-3e38, 3e38])).isnan().any()
    x = X.half()
    assert torch.equal(unit(x), unit(x.float()).half())
    values = (torch.rand(2, 3, dtype=torch.float64, requires_grad=True),)
    assert torch.autograd.gradcheck(unit.double(), values)


def test_state_dicts_hold_the_coefficients_alone():
    unit = ac.functions.get("Hermite", num_parameters=3)
    assert list(unit.state_dict()) == ["a"]
    twin = ac.functions.get("Hermite", num_parameters=3, start="tanh")
    twin.load_state_dict(unit.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(twin(x), unit(x))


def test_what_is_refused():
    with pytest.raises(ac.errors.InputError, match="legendre"):
        ac.functions.PolynomialUnit("legender")
    with pytest.raises(ac.errors.InputError, match="between 0 and 12"):
        ac.functions.get("hermite", degree=40)
    with pytest.raises(ac.errors.InputError, match="not finite"):
        ac.functions.get("hermite", start=torch.log)
    with pytest.raises(ac.errors.InputError, match="a term or more"):
        ac.functions.get("FSA", terms=0)


def test_a_polynomial_network_separates_digits():
    digits = ac.world.digits
    torch.manual_seed(0)
    data = digits.load("train")
    images = torch.as_tensor(data.images).float().flatten(1)
    labels = torch.as_tensor(data.labels)
    images = (images - images.mean()) / images.std()
    net = torch.nn.Sequential(
        torch.nn.Linear(images.shape[1], 32), torch.nn.LayerNorm(32),
        ac.functions.get("hermite", num_parameters=32, channel_dim=-1), torch.nn.Linear(32, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimiser.step()
    assert float((net(images).argmax(1) == labels).float().mean()) > 0.9
