"""Sections 8 and 9 of the catalogue: rectifiers are what they are said to be special cases of."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError

X = torch.tensor([-37.0, -3.7, -1.6, -0.62, -1e-3, 0.31, 0.93, 1.77, 4.2, 41.0], dtype=torch.float64)


def s(x):
    return 1 / (1 + math.exp(-x))


def f(name, x=X, **parameters):
    return ac.functions.functional(name)(x, **parameters)


@pytest.mark.parametrize(
    ("name", "parameters", "module"),
    [
        ("ReLU", {}, nn.ReLU()),
        ("LeakyReLU", {"a": 0.2}, nn.LeakyReLU(0.2)),
        ("RReLU", {}, nn.RReLU().eval()),
        ("ReLU6", {}, nn.ReLU6()),
        ("Hardshrink", {}, nn.Hardshrink()),
        ("Softshrink", {"a": 0.3}, nn.Softshrink(0.3)),
        ("Tanhshrink", {}, nn.Tanhshrink()),
        ("PReLU", {}, nn.PReLU()),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_rows_agree_with_torch(name, parameters, module):
    x = torch.linspace(-20, 20, 4001)
    torch.testing.assert_close(f(name, x, **parameters), module(x), rtol=1e-6, atol=1e-6)


def test_bi_firing_is_the_huber_loss():
    huber_loss = nn.functional.huber_loss(X, torch.zeros_like(X), reduction="none", delta=1.5)
    torch.testing.assert_close(f("Bi-firing", a=1.5), huber_loss / 1.5)


def test_special_cases():
    same = torch.testing.assert_close
    same(f("PReLU", a=0.01), f("LeakyReLU"))
    same(f("StarReLU", s=1.0, b=0.0), f("ReLU^2"))
    same(f("ReLU power", p=2.0), f("ReLU2"))
    same(f("ReLU power", p=1.0), f("ReLU"))
    same(f("SReLU", r=1e30, l=0.0, q=0.3), f("PReLU", a=0.3))
    same(f("SMU", a=0.2, b=1e9), f("LeakyReLU", a=0.2))
    same(f("SMU-1", a=0.2, b=1e-6), f("LeakyReLU", a=0.2), rtol=1e-6, atol=1e-6)
    same(f("SAU", a=0.2, b=1e9), f("LeakyReLU", a=0.2))
    same(f("BLU", a=0.0), X)
    same(f("BLU", a=1.0), torch.sqrt(X**2 + 1) - 1 + X)
    same(f("TanhLU", a=0.0, c=1.0), X)
    same(f("FPLUS"), f("SignReLU"))
    same(f("JumpReLU", t=0.0), f("ReLU"))
    same(f("RePSU"), f("ReLU"))
    same(f("DPReLU", a=1.0, b=0.1), f("LeakyReLU", a=0.1))
    same(f("Tent"), f("Mirrored ReLU"))
    same(f("PVLU", a=1.0), f("VLU"))
    same(f("ReLTanh", a=-1e3, b=1e3), torch.tanh(X))


@pytest.mark.parametrize(
    ("name", "x", "value"),
    [
        ("StarReLU", 1.0, 0.4472),
        ("SignReLU", -1.0, -0.5),
        ("PolyReLU", 0.5, 0.2916666667),
        ("PolyReLU", 2.0, 4.6666666667),
    ],
)
def test_published_values(name, x, value):
    assert float(f(name, torch.tensor(x, dtype=torch.float64))) == pytest.approx(value, abs=1e-9)


def test_sau_is_leaky_relu_smoothed_by_a_normal_density():
    scipy_integrate = pytest.importorskip("scipy.integrate")

    def smoothed(x):
        density = lambda t: 2 / math.sqrt(2 * math.pi) * math.exp(-2 * t * t)  # noqa: E731
        leaky = lambda v: v if v > 0 else 0.15 * v  # noqa: E731
        return scipy_integrate.quad(lambda t: leaky(x - t) * density(t), -8, 8, points=[x] if abs(x) < 8 else None)[0]

    x = torch.tensor([-2.0, -0.3, 0.0, 0.7, 3.0], dtype=torch.float64)
    expected = torch.tensor([smoothed(v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(f("SAU", x, b=2.0), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("a", [0.0, 0.3, 0.9])
def test_tailored_relu_keeps_the_second_moment_of_normal_inputs(a):
    x = torch.linspace(-12, 12, 240001, dtype=torch.float64)
    density = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    assert float(torch.trapezoid(f("Tailored ReLU", x, a=a) ** 2 * density, x)) == pytest.approx(1, abs=1e-7)


def test_jump_relu_learns_its_threshold_from_inputs_near_it_only():
    t = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.0, 0.44, 0.46, 0.5, 0.54, 0.56, 2.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], dtype=torch.float64)
    y = f("JumpReLU", x, t=t, e=0.1)
    (y * weight).sum().backward()
    assert float(t.grad) == pytest.approx(-(4 + 8 + 16) * 0.5 / 0.1)
    torch.testing.assert_close(x.grad, torch.where(x.detach() > 0.5, weight, 0.0))
    assert torch.equal(y.detach(), torch.where(x > 0.5, x, 0.0).detach())


def test_jump_relu_has_a_threshold_for_each_unit():
    module = ac.functions.get("jumprelu", num_parameters=3, channel_dim=-1, t=torch.tensor([0.1, 0.5, 0.9]), e=0.2)
    x = torch.tensor([[0.3, 0.45, 0.95], [0.15, 0.52, 0.2]])
    module(x).sum().backward()
    torch.testing.assert_close(module.t.grad, torch.tensor([-0.5, -5.0, -4.5]))


def test_rerelu_has_the_values_of_relu_and_the_gradient_of_gelu():
    x = torch.tensor([-1e30, -60.0, -2.0, -0.5, 0.0, 0.7, 3.0, 60.0, 1e30], requires_grad=True)
    y = f("REReLU", x)
    assert torch.equal(y, torch.relu(x))
    y.sum().backward()
    z = torch.tensor([-2.0, -0.5, 0.0, 0.7, 3.0], requires_grad=True)
    nn.functional.gelu(z).sum().backward()
    torch.testing.assert_close(x.grad[2:7], z.grad)
    torch.testing.assert_close(x.grad[[0, 1, 7, 8]], torch.tensor([0.0, 0.0, 1.0, 1.0]))


def drawn(name, x, **parameters):
    torch.manual_seed(0)
    return ac.functions.get(name, experimental=True, **parameters).train()(x).detach()


N = 40000


def test_slopes_of_rrelu_are_uniform_between_their_bounds():
    slopes = -drawn("RReLU", torch.full((N,), -1.0))
    assert 1 / 8 <= float(slopes.min()) < 0.126 and 0.332 < float(slopes.max()) <= 1 / 3
    assert float(slopes.mean()) == pytest.approx(11 / 48, abs=2e-3)


def test_noise_of_noisy_relu_has_the_variance_of_the_logistic_function():
    for x in (6.0, 9.0):
        assert float(drawn("Noisy ReLU", torch.full((N,), x)).var()) == pytest.approx(s(x), rel=0.03)


def test_other_random_rows_have_their_moments():
    one = torch.ones(N)
    stretched = drawn("Elastic ReLU", one, a=0.2)
    assert float(stretched.min()) >= 0.8 and float(stretched.max()) <= 1.2
    assert float(stretched.std()) == pytest.approx(0.2 / math.sqrt(3), rel=0.02)
    assert torch.equal(drawn("EPReLU", -one), -0.25 * one)
    assert float(drawn("ReLU-Prob", one, s=0.3).std()) == pytest.approx(0.3, rel=0.02)
    assert float(drawn("RT-ReLU", 9 * one).std()) == pytest.approx(0.75, rel=0.02)
    below = drawn("RT-PReLU", -0.75 * one) < -0.5
    assert float(below.float().mean()) == pytest.approx(0.1587, abs=6e-3)  # one standard deviation to the other side
    assert float(drawn("Softsign RReLU", one).std()) == 0.0


def test_probact_learns_the_size_of_its_noise():
    module = ac.functions.get("ProbAct").train()
    module(torch.ones(50)).square().sum().backward()
    assert module.s.grad.abs() > 0


def test_what_training_pushes_out_of_bounds_stays_finite():
    x = torch.linspace(-5, 5, 11)
    for name, values in (("PFPLUS", {"b": -1.0}), ("RePSU", {"e": -1.0, "d": -1.0}), ("SAU", {"b": 0.0})):
        module = ac.functions.get(name)
        with torch.no_grad():
            for k, v in values.items():
                getattr(module, k).fill_(v)
        assert module(x).isfinite().all()


def test_bad_parameters_are_refused():
    with pytest.raises(InputError, match="l of Optimised leaky ReLU is smaller than u"):
        f("OLReLU", l=8.0, u=3.0)
    with pytest.raises(InputError, match="lies between"):
        f("Bi-firing", a=0.0)
    with pytest.raises(InputError, match="lies between"):
        f("BLU", a=1.5)
    with pytest.raises(InputError, match="uncertain"):
        ac.functions.get("LSPTLU")
    with pytest.raises(InputError, match="floating-point"):
        f("ReLU", torch.tensor([1, 2]))


def test_xielu_is_that_of_transformers():
    activations = pytest.importorskip("transformers.activations")
    official = activations.XIELUActivation(dtype=torch.float32)
    x = torch.linspace(-8, 8, 1601)
    torch.testing.assert_close(f("xIELU", x), official._xielu_python(x).detach(), rtol=1e-5, atol=1e-5)
