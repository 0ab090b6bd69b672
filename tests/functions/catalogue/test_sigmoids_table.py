"""Steps, sigmoids and hyperbolic tangents: known values, other libraries' numbers, and special cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.registry import spec
from actinium.functions.units.taaf import TAAF

X = np.linspace(-6, 6, 241)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def at(name, x, **parameters):
    return ac.functions.functional(name)(torch.as_tensor(x, dtype=torch.float64), **parameters).numpy()


def test_values_at_one_are_those_of_the_card():
    known = {
        "sigmoid": 0.7310585786,
        "tanh": 0.7615941560,
        "softsign": 0.5,
        "arctan": 0.7853981634,
        "isru": 0.7071067812,
        "sqnl": 0.75,
    }
    for name, value in known.items():
        assert float(at(name, 1.0)) == pytest.approx(value, abs=1e-10)


def test_pytorch_has_the_same_functions():
    x = torch.linspace(-8, 8, 501)
    pairs = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "softsign": functional.softsign,
        "hard sigmoid": functional.hardsigmoid,
        "hard tanh": functional.hardtanh,
        "logsigmoid": functional.logsigmoid,
        "threshold": lambda t: functional.threshold(t, 0.0, 0.0),
    }
    for name, f in pairs.items():
        torch.testing.assert_close(spec(name)(x), f(x), rtol=1e-6, atol=1e-6)


def test_functions_are_special_cases_of_others():
    np.testing.assert_allclose(at("hard tanh", X), 2 * at("hard sigmoid v1", X) - 1, atol=1e-15)
    np.testing.assert_allclose(at("hexpo", X), -at("hexpo", -X), atol=1e-15)
    np.testing.assert_allclose(at("agumb", X, a=1.0), at("sigmoid", X), atol=1e-15)
    np.testing.assert_allclose(at("aranda-ordaz", X, a=1e-6), at("cloglog", X), atol=1e-6)
    np.testing.assert_allclose(at("tss", X), at("multistate", X, b=20.0, n=3), atol=1e-15)
    np.testing.assert_allclose(at("tanhsoft", X), at("tanhsoft-2", X), atol=1e-15)
    np.testing.assert_allclose(at("apa", X, l=1.0, k=1.0), at("sigmoid", X), atol=1e-15)
    np.testing.assert_allclose(at("apa", X, l=1e-4, k=1.0), at("gompertz", X), atol=1e-4)
    assert float(at("apa", 1.3, l=1.0, k=1.0)) == pytest.approx(0.7858349830, abs=1e-10)
    assert float(at("apa", 0.0, l=0.5, k=1.0)) == pytest.approx(4 / 9, abs=1e-12)


def test_large_parameters_give_no_differences_of_large_numbers():
    x = torch.tensor([1e8, 1e30, 1.0, 0.9, 0.5, -1e30])
    torch.testing.assert_close(spec("soft clipping")(x)[:2], torch.ones(2))
    assert spec("soft clipping")(x)[-1] == 0
    gate = spec("apa")(torch.tensor([-1e4, 0.0, 1e4]), l=100.0, k=50.0)
    assert gate.isfinite().all() and gate[0] < 1e-4 and gate[2] == 1


def test_signs_send_their_gradient_straight_through_where_the_argument_is_small():
    x = torch.tensor([-1.2, -0.4, 0.9, 1.9], requires_grad=True)
    spec("ste binariser")(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]
    module = ac.functions.get("rsign", a=1.0)
    y = module(x)
    assert y.tolist() == [-1, -1, -1, 1]
    slope, shift = torch.autograd.grad(y.sum(), (x, module.a))
    assert slope.tolist() == [0, 0, 1, 1] and shift.tolist() == [-2]


def test_steps_have_a_gradient_of_zeros():
    for name in ("heaviside", "sign", "window step"):
        x = torch.linspace(-2, 2, 9, requires_grad=True)
        assert torch.autograd.grad(spec(name)(x).sum(), x)[0].abs().sum() == 0


def test_half_precision_is_the_rounded_single_one():
    for name in ("srs", "gompertz", "aranda-ordaz", "tanhsoft-3", "sinc-sigmoid"):
        x = torch.linspace(-12, 12, 97).half()
        torch.testing.assert_close(spec(name)(x), spec(name)(x.float()).half(), rtol=0, atol=0)


def test_taaf_is_its_base_until_it_is_trained():
    x = torch.randn(5, 7)
    for base in ("gelu", torch.sin, ac.functions.get("hard swish")):
        plain = ac.functions.get(base) if isinstance(base, str) else base
        torch.testing.assert_close(TAAF(base)(x), plain(x))
    torch.testing.assert_close(TAAF("tanh", a=2.0, b=3.0, c=0.5, d=-1.0)(x), 2 * torch.tanh(3 * x + 0.5) - 1)


def test_taaf_learns_four_numbers_for_each_unit():
    module = ac.functions.get("taaf", base="tanh", num_parameters=3, channel_dim=-1)
    assert {k: p.shape for k, p in module.named_parameters()} == dict.fromkeys("abcd", torch.Size([3]))
    with torch.no_grad():
        module.a[1], module.d[2] = 2.0, 5.0
    x = torch.randn(4, 3)
    wanted = torch.tanh(x) * torch.tensor([1.0, 2.0, 1.0]) + torch.tensor([0.0, 0.0, 5.0])
    torch.testing.assert_close(module(x), wanted)
    module(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


def test_taaf_fits_what_its_base_alone_cannot():
    x = torch.linspace(-2, 2, 200)
    module = TAAF("sigmoid")
    for _ in range(3000):
        loss = (module(x) - torch.tanh(x)).square().mean()
        slopes = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for p, slope in zip(module.parameters(), slopes, strict=True):
                p -= 0.5 * slope
    # tanh x = 2 sigmoid(2 x) - 1
    assert loss < 1e-4
    assert [p.item() for p in module.parameters()] == pytest.approx([2, 2, 0, -1], abs=0.1)


def test_what_cannot_be_is_refused():
    x = torch.zeros(3)
    with pytest.raises(InputError, match="a of ISRU lies between"):
        ac.functions.functional("isru")(x, a=-1.0)
    with pytest.raises(InputError, match="whole number"):
        ac.functions.functional("multistate")(x, n=1.5)
    with pytest.raises(InputError, match="floating-point"):
        ac.functions.functional("sigmoid")(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UnknownNameError):
        TAAF("no such function")
    with pytest.raises(InputError, match="name of the catalogue or a callable"):
        TAAF(3)
    with pytest.raises(InputError, match="one or more"):
        TAAF("relu", num_parameters=0)
    with pytest.raises(InputError, match="3 channels in dimension 1"):
        TAAF("tanh", num_parameters=3)(torch.zeros(2, 4))
