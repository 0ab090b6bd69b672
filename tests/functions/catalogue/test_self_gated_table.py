"""Self-gated functions: known values, other libraries' numbers, and special cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special
from torch.nn import functional

import actinium as ac
from actinium.core.errors import InputError
from actinium.functions.layers.dynamic_units import DynamicReLU, MetaACON
from actinium.functions.registry import spec

X = np.linspace(-6, 6, 241)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def sig(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sig(x)


def gelu(x):
    return x * special.ndtr(x)


def at(name, x, **parameters):
    return ac.functions.functional(name)(torch.as_tensor(x, dtype=torch.float64), **parameters).numpy()


def test_values_at_one_and_minus_one_are_those_of_the_card():
    known = {
        ("gelu", 1): 0.8413447461,
        ("silu", 1): 0.7310585786,
        ("mish", 1): 0.8650983883,
        ("golu", 1): 0.6922006276,
        ("golu", -1): -0.0659880358,
        ("tanhexp", 1): 0.9913289158,
        ("lisht", 1): 0.7615941560,
        ("hard swish", 1): 0.6666666667,
        ("hard swish", -1): -0.3333333333,
        ("silu", -1): -0.2689414214,
        ("crrelu", -1): -0.0060653066,
    }
    for (name, x), value in known.items():
        assert float(at(name, x)) == pytest.approx(value, abs=1e-10)


def test_pytorch_has_the_same_gated_functions():
    x = torch.linspace(-8, 8, 501)
    pairs = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu (tanh)": lambda t: functional.gelu(t, approximate="tanh"),
        "mish": functional.mish,
        "hard swish": functional.hardswish,
    }
    for name, f in pairs.items():
        torch.testing.assert_close(spec(name)(x), f(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu (tanh)", "lalu", "calu", "pflu", "swat", "quick gelu"])
def test_gates_that_are_odd_about_one_half_give_x_back(name):
    np.testing.assert_allclose(at(name, X) - at(name, -X), X, atol=1e-12)


def test_aliases_are_one_function():
    for names in (
        ("silu", "Swish-1", "swish1", "sil"),
        ("golu", "ExpExpish", "x loglog"),
        ("TanhExp", "TeLU"),
        ("Quick-GELU", "silu scaled 1.702"),
        ("gelu", "GELU (erf)"),
    ):
        assert len({id(spec(n)) for n in names}) == 1


def test_gated_functions_are_special_cases_of_others():
    np.testing.assert_allclose(at("acon-c", X, p1=1.0, p2=0.0, b=1.7), at("swish", X, b=1.7), atol=1e-15)
    np.testing.assert_allclose(at("aglu", X, l=1.0, k=1.0), at("silu", X), atol=1e-12)
    assert np.abs(at("aglu", X, l=1.0, k=1.702) - at("gelu", X)).max() <= 0.02034
    np.testing.assert_allclose(at("aglu", X, l=1.0, k=1000.0), np.maximum(X, 0), atol=1e-3)
    np.testing.assert_allclose(at("aglu", X, l=1e-4, k=1.0), at("golu", X), atol=1e-3)
    np.testing.assert_allclose(at("golu general", X), at("golu", X), atol=1e-15)
    np.testing.assert_allclose(at("pstanh", X, a=0.5, b=0.5), at("silu", X), atol=1e-12)
    np.testing.assert_allclose(at("crrelu", X, e=0.0), np.maximum(X, 0), atol=1e-15)
    np.testing.assert_allclose(at("swim", X, a=1.0), at("pflu", X), atol=1e-12)
    np.testing.assert_allclose(at("exponential swish", X), at("sigmoid", -X), atol=1e-15)


def test_gates_are_precise_where_they_nearly_close():
    x = -np.array([50.0, 1e3, 1e6])
    # x (atan(x)/pi + 1/2) = -1/pi + 1/(3 pi x^2) - ..., x (1 + x/sqrt(1+x^2)) / 2 = 1/(4 x) - ...
    np.testing.assert_allclose(at("calu", x), -1 / np.pi + 1 / (3 * np.pi * x**2), rtol=1e-7)
    np.testing.assert_allclose(at("pflu", x), 1 / (4 * x), rtol=1e-3)
    np.testing.assert_allclose(at("gelu", -10.0), -10 * special.ndtr(-10.0), rtol=1e-12)


def test_minimum_of_golu_is_minus_the_omega_constant():
    omega = float(special.lambertw(1).real)
    x = torch.tensor(-omega, dtype=torch.float64, requires_grad=True)
    y = spec("golu")(x)
    y.backward()
    assert y.item() == pytest.approx(-0.0972601312, abs=1e-10)
    assert x.grad.item() == pytest.approx(0, abs=1e-12)


def test_pats_draws_while_training_and_takes_the_mean_otherwise():
    module = ac.functions.get("pats")
    x = torch.full((20000,), 2.0)
    gate = math.pi / (1 + math.exp(-2))
    slopes = torch.tan(module.train()(x) / 2) / gate
    assert slopes.min() >= 0.5 - 1e-4 and slopes.max() <= 0.75 + 1e-4
    assert slopes.mean() == pytest.approx(0.625, abs=0.003)
    assert slopes.std() == pytest.approx(0.25 / math.sqrt(12), abs=0.002)
    torch.testing.assert_close(module.eval()(x), 2 * torch.atan(0.625 * gate * torch.ones(20000)))


def test_learnt_domains_hold_after_training_has_left_them():
    x = torch.linspace(-5, 5, 41)
    for name, key, value in (("aglu", "l", -1.0), ("pssilu", "b", 2.0), ("pgelu", "a", -1.0), ("lau", "a", -3.0)):
        module = ac.functions.get(name)
        with torch.no_grad():
            getattr(module, key).fill_(value)
        assert module(x).isfinite().all()


def test_drawn_parameters_lie_in_their_range():
    module = ac.functions.get("aglu", num_parameters=500)
    assert module.l.min() > 0 and module.l.max() < 1 and module.l.std() > 0.25
    assert module.k.min() >= 0.8 and module.k.max() <= 1.2


def test_meta_acon_is_acon_c_with_its_own_switch():
    module = MetaACON(6, reduction=2, p1=1.2, p2=-0.3)
    x = torch.randn(3, 6, 4, 5)
    hidden = module.squeeze(x.mean((2, 3)))
    beta = torch.sigmoid(module.excite(hidden))
    for n in range(3):
        for c in range(6):
            wanted = ac.functions.functional("acon-c")(x[n, c], p1=1.2, p2=-0.3, b=beta[n, c])
            torch.testing.assert_close(module(x)[n, c], wanted)
    for shape in ((2, 6), (2, 6, 7)):
        assert module(torch.randn(shape)).shape == shape


def test_dynamic_relu_starts_from_relu_and_moves_with_the_means():
    x = torch.randn(4, 8, 3, 3)
    module = DynamicReLU(8)
    with torch.no_grad():
        for p in module.excite.parameters():
            p.zero_()
    torch.testing.assert_close(module(x), torch.relu(x))
    module = DynamicReLU(8, reduction=2, pieces=3)
    parts = 2 * torch.sigmoid(module.excite(torch.relu(module.squeeze(x.mean((2, 3)))))) - 1
    a, b = parts.view(4, 2, 3, 8).unbind(1)
    n, c = 2, 5
    lines = [((k == 0) + a[n, k, c]) * x[n, c] + 0.5 * b[n, k, c] for k in range(3)]
    torch.testing.assert_close(module(x)[n, c], torch.stack(lines).amax(0))


def test_units_of_channels_learn_on_digits():
    data = ac.world.digits.load("train")
    images, labels = data.images[:200], data.labels[:200]
    for name in ("meta-acon", "dynamic relu", "funnel relu"):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3),
            ac.functions.get(name, channels=8),
            torch.nn.Flatten(),
            torch.nn.Linear(8 * 36, 10),
        )
        losses = []
        for _ in range(30):
            loss = functional.cross_entropy(net(images), labels)
            slopes = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for p, slope in zip(net.parameters(), slopes, strict=True):
                    p -= 0.3 * slope
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


def test_other_channels_are_refused():
    for module in (MetaACON(4), DynamicReLU(4)):
        with pytest.raises(InputError, match=r"\(batch, 4, ...\)"):
            module(torch.zeros(2, 3, 5))
        with pytest.raises(InputError, match="floating-point"):
            module(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="one or more channels"):
        MetaACON(0)
    with pytest.raises(InputError, match="one or more lines"):
        DynamicReLU(4, pieces=0)
    with pytest.raises(InputError, match="lies between 1 and 2"):
        ac.functions.get("e-swish", a=3.0)
