"""Steps, sigmoids and hyperbolic tangents are the formulas of their sources."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special
from torch.nn import functional

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.registry import spec
from actinium.functions.taaf import TAAF

X = np.linspace(-6, 6, 241)
INSIDE = np.linspace(0.02, 0.98, 97)
R = math.sqrt(2)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def sig(x):
    return 1 / (1 + np.exp(-x))


def sp(x):
    return np.log(1 + np.exp(x))


def by_sign(right, left):
    return lambda x: np.where(x >= 0, right(x), left(x))


def sqnl(x):
    middle = np.where(x >= 0, x - x**2 / 4, x + x**2 / 4)
    return np.where(np.abs(x) <= 2, middle, np.sign(x))


# As the survey prints them, without any care for large numbers.
PRINTED = {
    "identity": lambda x: x,
    "heaviside": lambda x: 1.0 * (x >= 0),
    "sign": by_sign(np.ones_like, lambda x: -np.ones_like(x)),
    "window step": lambda x: 1.0 * ((x >= 0) & (x <= 1)),
    "piecewise linear step": lambda x: np.clip((x + 1) / 2, 0, 1),
    "linear scaled": lambda x: x,
    "rsign": by_sign(np.ones_like, lambda x: -np.ones_like(x)),
    "ste binariser": by_sign(np.ones_like, lambda x: -np.ones_like(x)),
    "threshold": lambda x: np.where(x > 0, x, 0),
    "trec": lambda x: np.where(x > 1, x, 0),
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "bipolar sigmoid": lambda x: (1 - np.exp(-x)) / (1 + np.exp(-x)),
    "sss": sig,
    "vsf": sig,
    "stanh": lambda x: 1.7159 * np.tanh(2 * x / 3),
    "arctan": np.arctan,
    "arctan-gr": lambda x: np.arctan(x) / (1 + R),
    "scaled arctan": lambda x: 2 / np.pi * np.arctan(np.pi * x / 2),
    "erf": special.erf,
    "gudermannian": lambda x: 2 * np.arctan(np.tanh(x / 2)),
    "algebraic sigmoid": lambda x: x / np.sqrt(1 + x**2),
    "sigmoid-algebraic": lambda x: sig(x * (1 + np.abs(x)) / (1 + np.abs(x) * (1 + np.abs(x)))),
    "tss": lambda x: sig(x) + sig(x - 20) + sig(x - 40),
    "improved logistic sigmoid": lambda x: np.where(
        x >= 2, 0.2 * (x - 2) + sig(2), np.where(x <= -2, 0.2 * (x + 2) + sig(-2), sig(x))
    ),
    "siglin": lambda x: sig(x) + 0.1 * x,
    "penalised tanh": by_sign(np.tanh, lambda x: np.tanh(x) / 4),
    "srs": lambda x: x / (x / 2 + np.exp(-x / 3)),
    "soft clipping": lambda x: (np.log1p(np.exp(50 * x)) - np.log1p(np.exp(50 * (x - 1)))) / 50,
    "hexpo": by_sign(lambda x: -(np.exp(-x) - 1), lambda x: np.exp(x) - 1),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "elliott": lambda x: x / (2 * (1 + np.abs(x))) + 0.5,
    "smooth step": lambda x: np.where(np.abs(x) < 0.5, -2 * x**3 + 1.5 * x + 0.5, x > 0),
    "sinc-sigmoid": lambda x: np.sinc(sig(x)),
    "sigmoid-gumbel": lambda x: sig(x) * np.exp(-np.exp(-x)),
    "new sigmoid": lambda x: (np.exp(x) - np.exp(-x)) / np.sqrt(2 * (np.exp(2 * x) + np.exp(-2 * x))),
    "root2sigmoid": lambda x: (R**x - R**-x) / (2 * R * np.sqrt(2 * (R ** (2 * x) + R ** (-2 * x)))),
    "gompertz": lambda x: np.exp(-np.exp(-x)),
    "cloglog": lambda x: 1 - np.exp(-np.exp(x)),
    "modified cloglog": lambda x: 1 - 2 * np.exp(-0.7 * np.exp(x)),
    "sechsig": lambda x: (x + 1 / np.cosh(x)) * sig(x),
    "parametric sechsig": lambda x: (x + 1 / np.cosh(x + 1)) * sig(x),
    "tanhsig": lambda x: (x + np.tanh(x)) * sig(x),
    "parametric tanhsig": lambda x: (x + np.tanh(x + 1)) * sig(x),
    "multistate": lambda x: sig(x) + sig(x - 5),
    "symmetric msaf": lambda x: -1 + sig(x) + sig(x + 1),
    "rootsig": lambda x: x / (1 + np.sqrt(1 + x**2)),
    "scaled softsign": lambda x: x / (1 + np.abs(x)),
    "softtanh": lambda x: 2 * x / np.sqrt(1 + 4 * x**2),
    "sigmoid-tanh combination": by_sign(sig, np.tanh),
    "isru": lambda x: x / np.sqrt(1 + x**2),
    "sqnl": sqnl,
    "log-sqnl": lambda x: np.where(np.abs(x) <= 2, x / 2 - np.sign(x) * x**2 / 8 + 0.5, x > 0),
    "hard sigmoid v1": lambda x: np.clip((x + 1) / 2, 0, 1),
    "hard sigmoid v2": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "hard sigmoid v3": lambda x: np.clip((x + 3) / 6, 0, 1),
    "hard tanh": lambda x: np.clip(x, -1, 1),
    "shifted hard tanh, horizontal": lambda x: np.clip(x, -1, 1),
    "shifted hard tanh, vertical": lambda x: np.clip(x, -1, 1),
    "sbaf": lambda x: 1 / (1 + 0.98 * np.sqrt(x * (1 - x))),
    "aranda-ordaz": lambda x: 1 - (1 + 2 * np.exp(x)) ** -0.5,
    "logsigmoid": special.log_expit,
    "dyt": lambda x: np.tanh(x / 2),
    "richards": sig,
    "apa": lambda x: (0.5 * np.exp(-0.5 * x) + 1) ** -2,
    "assf": sig,
    "svaf": np.tanh,
    "trainable amplitude": np.tanh,
    "generalised hyperbolic tangent": lambda x: (1 - np.exp(-x)) / (1 + np.exp(-x)),
    "adaptive sigmoid": lambda x: 2 * (sig(x) - 0.5),
    "psigmoid": sig,
    "psf": sig,
    "stac-tanh": lambda x: np.where(
        x < -1, np.tanh(-1) + 0.1 * (x + 1), np.where(x > 1, np.tanh(1) + 0.1 * (x - 1), np.tanh(x))
    ),
    "laaf": np.tanh,
    "pstanh": lambda x: 0.5 * x * (1 + np.tanh(x)),
    "ssinh": np.sinh,
    "sexp": lambda x: np.exp(x) - 1,
    "lau": lambda x: x * np.log(1 + sig(x)),
    "agumb": lambda x: 1 - 1 / (1 + np.exp(x)),
    "tanhsoft": lambda x: np.tanh(0.6 * np.exp(x)) * np.log(np.exp(x)),
    "tanhsoft-1": lambda x: np.tanh(0.87 * x) * sp(x),
    "tanhsoft-2": lambda x: x * np.tanh(0.6 * np.exp(x)),
    "tanhsoft-3": lambda x: np.log(1 + np.exp(x) * np.tanh(x)),
    "psigramp": lambda x: 0.5 * sig(x) + 0.5 * np.clip(x + 0.5, 0, 1),
    "multiquadratic": lambda x: np.sqrt(x**2 + 1),
    "arbf": lambda x: np.exp(-(x**2) / 2),
    "gln": lambda x: 0.5 * np.sin(x) + 0.5 * np.tanh(x),
}
# The same at parameters that are not the defaults.
CHANGED = {
    "sss": ({"a": 2.0, "b": 0.5}, lambda x: sig(2 * (x - 0.5))),
    "vsf": ({"a": 2.0, "b": 3.0, "c": 1.0}, lambda x: 2 * sig(3 * x) - 1),
    "window step": ({"a": -1.0, "b": 2.0}, lambda x: 1.0 * ((x >= -1) & (x <= 2))),
    "threshold": ({"t": 1.0, "v": -3.0}, lambda x: np.where(x > 1, x, -3)),
    "rsign": ({"a": 1.5}, lambda x: np.where(x >= 1.5, 1, -1)),
    "sigmoid-algebraic": ({"a": 3.0}, lambda x: sig(x * (1 + 3 * abs(x)) / (1 + abs(x) * (1 + 3 * abs(x))))),
    "srs": ({"a": 1.5, "b": 2.0}, lambda x: x / (x / 1.5 + np.exp(-x / 2))),
    "soft clipping": ({"a": 4.0}, lambda x: (sp(4 * x) - sp(4 * (x - 1))) / 4),
    "hexpo": (
        {"a": 2.0, "b": 3.0, "c": 0.5, "d": 0.7},
        by_sign(lambda x: -2 * (np.exp(-x / 3) - 1), lambda x: 0.5 * (np.exp(x / 0.7) - 1)),
    ),
    "smooth step": ({"a": 3.0}, lambda x: np.where(np.abs(x) < 1.5, -2 * x**3 / 27 + x / 2 + 0.5, x > 0)),
    "rootsig": ({"a": 2.0}, lambda x: 2 * x / (1 + np.sqrt(1 + 4 * x**2))),
    "scaled softsign": ({"a": 2.0, "b": 3.0}, lambda x: 2 * x / (3 + np.abs(x))),
    "isru": ({"a": 3.0}, lambda x: x / np.sqrt(1 + 3 * x**2)),
    "hard tanh": ({"a": -0.5, "b": 2.0}, lambda x: np.clip(x, -0.5, 2)),
    "shifted hard tanh, horizontal": ({"a": 0.5}, lambda x: np.clip(x + 0.5, -1, 1)),
    "shifted hard tanh, vertical": ({"a": 0.5}, lambda x: np.clip(x, -1, 1) + 0.5),
    "aranda-ordaz": ({"a": 0.7}, lambda x: 1 - (1 + 0.7 * np.exp(x)) ** (-1 / 0.7)),
    "dyt": ({"a": 2.0, "g": 3.0, "b": 1.0}, lambda x: 3 * np.tanh(2 * x) + 1),
    "richards": (
        {"L": -1.0, "U": 2.0, "Q": 0.5, "B": 1.5, "v": 2.0},
        lambda x: -1 + 3 / np.sqrt(1 + 0.5 * np.exp(-1.5 * x)),
    ),
    "apa": ({"l": 2.0, "k": 1.5}, lambda x: (2 * np.exp(-1.5 * x) + 1) ** -0.5),
    "adaptive sigmoid": ({"a": 3.0}, lambda x: 2 / 3 * (sig(3 * x) - 0.5)),
    "psf": ({"m": 2.5}, lambda x: (1 + np.exp(-x)) ** -2.5),
    "laaf": ({"a": 0.5, "n": 4.0}, lambda x: np.tanh(2 * x)),
    "pstanh": ({"a": 0.3, "b": 2.0}, lambda x: 0.3 * x * (1 + np.tanh(2 * x))),
    "lau": ({"a": 2.0, "b": 3.0}, lambda x: x * np.log(1 + 2 * sig(3 * x))),
    "tanhsoft": (
        {"a": 0.3, "b": 0.5, "c": 0.7, "d": 1.5},
        lambda x: np.tanh(0.3 * x + 0.5 * np.exp(0.7 * x)) * np.log(1.5 + np.exp(x)),
    ),
    "tanhsoft-3": ({"a": 2.0}, lambda x: np.log(1 + np.exp(x) * np.tanh(2 * x))),
    "psigramp": ({"a": 1.0, "b": 2.0}, lambda x: sig(1) * sig(x) + (1 - sig(1)) * np.clip(2 * x + 0.5, 0, 1)),
    "multiquadratic": ({"a": 1.0, "b": 2.0}, lambda x: np.sqrt((x - 1) ** 2 + 4)),
    "arbf": ({"a": 1.0, "b": 2.0}, lambda x: np.exp(-((x - 1) ** 2) / 8)),
    "gln": ({"a": -1.0}, lambda x: sig(-1) * np.sin(x) + (1 - sig(-1)) * np.tanh(x)),
}
TABLES = ("binary, linear, step", "sigmoid and tanh", "adaptive sigmoid and tanh")


def at(name, x, **parameters):
    return ac.functions.functional(name)(torch.as_tensor(x, dtype=torch.float64), **parameters).numpy()


@pytest.mark.parametrize("name", PRINTED)
def test_a_row_is_the_printed_formula(name):
    x = INSIDE if name == "sbaf" else X
    np.testing.assert_allclose(at(name, x), PRINTED[name](x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CHANGED)
def test_parameters_stand_where_the_formula_has_them(name):
    parameters, formula = CHANGED[name]
    np.testing.assert_allclose(at(name, X, **parameters), formula(X), rtol=1e-9, atol=1e-9)


def test_every_row_of_these_tables_is_compared_with_its_formula():
    rows = {s.key for s in ac.functions.every() if s.family in TABLES and s.function is not None}
    assert rows == {spec(name).key for name in PRINTED}


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
