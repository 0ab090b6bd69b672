"""Mish, HardMish and GoLU are the functions of their papers, and what is measured of them is what it says."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import integrate, optimize, special, stats
from torch import nn
from torch.nn import functional

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.comparison.comparison_tasks import task
from actinium.functions.comparison.latent_statistics import (
    differential_entropy,
    gate_slope_profile,
    latent_variance,
    weight_distribution,
)
from actinium.functions.comparison.task_training import task_network
from actinium.functions.registry import get, spec

X = torch.linspace(-30, 30, 4001, dtype=torch.float64)
HALF = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def at(name, x, **settings):
    return float(spec(name)(torch.tensor(float(x), dtype=torch.float64), **settings))


def slope(name, x):
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(spec(name)(t).sum(), t)[0]


def expected(f):
    """Mean of f(z) for standard normal z."""
    return integrate.quad(lambda z: f(z) * stats.norm.pdf(z), -12, 12, points=[0], epsabs=1e-13, limit=200)[0]


def mish_slope(x):
    e = np.exp(x)
    omega = 4 * (x + 1) + 4 * e**2 + e**3 + e * (4 * x + 6)
    return e * omega / (2 * e + e**2 + 2) ** 2


def stationary_slope(name, lo, hi):
    """Where the slope has an extremum between lo and hi, and its value."""

    def bend(x):
        t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(spec(name)(t), t, create_graph=True)
        return float(torch.autograd.grad(first, t)[0])

    place = optimize.brentq(bend, lo, hi, xtol=1e-13)
    return place, float(slope(name, place))


# Mish ------------------------------------------------------------------------------------------------------------


def test_mish_has_the_values_of_its_closed_form():
    wanted = {1: 0.8650983883, -1: -0.3034014614, 2: 1.9439589595, -2: -0.2525014827, 0.5: 0.3752452113, 0: 0.0}
    assert {x: at("mish", x) for x in wanted} == pytest.approx(wanted, abs=1e-10)
    place = optimize.brentq(lambda x: float(slope("mish", x)), -2, -0.5, xtol=1e-14)
    assert place == pytest.approx(-1.1924312, abs=1e-7) and at("mish", place) == pytest.approx(-0.3088434130, abs=1e-10)


def test_mish_is_that_of_pytorch_and_its_rational_form():
    np.testing.assert_allclose(spec("mish")(X), functional.mish(X), atol=1e-12)
    x = np.linspace(-5, 15, 401)
    w = np.exp(x) * (np.exp(x) + 2)
    np.testing.assert_allclose(spec("mish")(torch.from_numpy(x)), x * w / (w + 2), rtol=4e-15, atol=1e-15)


def test_the_slope_of_mish_is_that_of_both_closed_forms_and_of_differences():
    x = np.linspace(-8, 8, 321)
    np.testing.assert_allclose(slope("mish", x), mish_slope(x), atol=1e-13)
    part = x != 0
    f, soft = spec("mish")(torch.from_numpy(x)).numpy(), np.log1p(np.exp(x))
    preconditioned = (x * special.expit(x) / np.cosh(soft) ** 2)[part] + f[part] / x[part]
    np.testing.assert_allclose(slope("mish", x)[part], preconditioned, atol=1e-13)
    assert float(slope("mish", 0.7)) == pytest.approx(0.9687948682, abs=1e-10)
    assert (at("mish", 0.7 + 1e-5) - at("mish", 0.7 - 1e-5)) / 2e-5 == pytest.approx(0.9687948682, abs=1e-9)
    assert float(slope("mish", 0.0)) == pytest.approx(0.6, abs=1e-14) == math.tanh(math.log(2))
    for sign, lo, hi, near, value in ((-1, 1, 2, 1.49057, 1.0884981613), (1, -3, -1.5, -2.25638, -0.1125261224)):
        place, steepest = stationary_slope("mish", lo, hi)
        assert (place, steepest) == (pytest.approx(near, abs=1e-5), pytest.approx(value, abs=1e-9))
        closed = optimize.minimize_scalar(lambda x, sign=sign: sign * mish_slope(x), bounds=(lo, hi), method="bounded")
        assert steepest == pytest.approx(sign * closed.fun, abs=1e-10)


def test_mish_has_no_kink():
    assert spec("mish").properties.smooth == math.inf
    x = torch.tensor([-1e-7, 0.0, 1e-7], dtype=torch.float64, requires_grad=True)
    y = spec("mish")(x)
    for _ in range(4):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        assert float((y.max() - y.min()).detach()) < 1e-5


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["mish", "golu", "golu general", "hardmish"])
def test_far_out_they_are_zero_and_the_identity_also_in_half_precision(name, dtype):
    x = torch.tensor([-1e4, -100.0, -12.0, 0.0, 6.0, 100.0, 1e4], dtype=dtype, requires_grad=True)
    y = get(name)(x)
    (g,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == dtype and bool(y.isfinite().all()) and bool(g.isfinite().all())
    assert y[[0, 1, 3]].float().abs().max() < 1e-30 and g[[0, 1]].float().abs().max() < 1e-30
    assert torch.equal(y[-2:], x[-2:]) and torch.equal(g[-2:], torch.ones(2, dtype=dtype))


def test_hardmish_is_the_identity_above_zero_and_zero_below_minus_two():
    y = spec("hardmish")(X)
    assert torch.equal(y[X >= 0], X[X >= 0]) and not bool(y[X <= -2].any())
    middle = (X > -2) & (X < 0)
    np.testing.assert_allclose(y[middle], (X * (X + 2) / 2)[middle], atol=1e-15)


@pytest.mark.parametrize("name", ["mish", "hardmish", "golu", "golu general"])
def test_integers_are_refused(name):
    with pytest.raises(InputError, match="floating-point"):
        get(name)(torch.arange(3))


# GoLU ------------------------------------------------------------------------------------------------------------


def test_golu_has_the_values_of_its_closed_form():
    wanted = {0: 0.0, 1: 0.6922006276, -1: -0.0659880358, 2: 1.7468460370, 0.5: 0.2726196059}
    assert {x: at("golu", x) for x in wanted} == pytest.approx(wanted, abs=1e-10)
    assert float(slope("golu", 0.0)) == pytest.approx(math.exp(-1), abs=1e-14)
    place = optimize.brentq(lambda x: float(slope("golu", x)), -2, -0.1, xtol=1e-14)
    assert place == pytest.approx(-special.lambertw(1).real, abs=1e-10)
    assert at("golu", place) == pytest.approx(-0.0972601312, abs=1e-10)
    # The second derivative is 0 where x (1 - e^-x) = 2.
    for lo, hi, near, value in ((1.5, 3, 2.23865, 1.1133972753), (-2, -0.7, -1.06009, -0.1148783115)):
        place, steepest = stationary_slope("golu", lo, hi)
        assert place == pytest.approx(optimize.brentq(lambda x: x * (1 - math.exp(-x)) - 2, lo, hi), abs=1e-9)
        assert (place, steepest) == (pytest.approx(near, abs=1e-5), pytest.approx(value, abs=1e-9))


def test_the_gate_of_golu_is_the_distribution_function_of_gumbel():
    x = np.linspace(-4, 8, 241)
    found = gate_slope_profile(["golu"], -4, 8, 241).data.isel(function=0)
    np.testing.assert_allclose(found["gate"], stats.gumbel_r.cdf(x), atol=1e-12)
    np.testing.assert_allclose(found["gate_slope"], stats.gumbel_r.pdf(x), atol=1e-9)
    np.testing.assert_allclose(found["slope"], stats.gumbel_r.cdf(x) * (1 + x * np.exp(-x)), atol=1e-12)
    assert at("golu", 1) - at("golu", -1) == pytest.approx(0.7581886634, abs=1e-10)  # g(1) + g(-1)


def test_the_slope_of_general_golu_is_that_of_its_closed_form():
    a, b, g = 1.5, 0.7, 2.0
    x = torch.linspace(-3, 6, 91, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(spec("golu general")(x, a=a, b=b, g=g).sum(), x)
    t = np.exp(-g * x.detach().numpy())
    np.testing.assert_allclose(found, a * np.exp(-b * t) * (1 + b * g * x.detach().numpy() * t), atol=1e-12)
    np.testing.assert_allclose(spec("golu general")(X), spec("golu")(X), atol=1e-14)


@pytest.mark.parametrize("parameter", ["a", "b", "g"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_gate_without_its_shape_is_refused(parameter, value):
    with pytest.raises(InputError, match="lies between"):
        get("golu general", **{parameter: value})


# Gaussian statistics and slopes -----------------------------------------------------------------------------------

VARIANCE = {"golu": 0.2526278608, "silu": 0.3130833, "relu": 0.3408451, "gelu": 0.3456440, "mish": 0.3945481628}


def test_of_a_standard_normal_golu_makes_the_least_variance():
    found = gate_slope_profile(list(VARIANCE)).data
    got = {str(n): float(v) for n, v in zip(found["function"].values, found["variance"].values, strict=True)}
    assert got == pytest.approx(VARIANCE, abs=1e-7)
    assert min(got, key=got.get) == "golu"
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name, variance in got.items():
        assert float(spec(name)(z).var()) == pytest.approx(variance, rel=0.01)
    known = {"golu": (0.2588561228, 1.7687777859), "mish": (0.2404038884, 1.4868475813)}
    for name, (mean, gain) in known.items():
        row = found.sel(function=name)
        assert (float(row["mean"]), float(row["gain"])) == pytest.approx((mean, gain), abs=1e-9)
        f = {"golu": lambda z: z * math.exp(-math.exp(-z)), "mish": lambda z: z * math.tanh(np.logaddexp(0, z))}[name]
        first, second = expected(f), expected(lambda z, f=f: f(z) ** 2)
        assert (mean, VARIANCE[name], gain) == pytest.approx((first, second - first**2, second**-0.5), abs=1e-9)


def test_a_module_that_writes_into_its_input_has_the_profile_of_its_function():
    inside, plain = (gate_slope_profile({"relu": nn.ReLU(inplace=i)}).data for i in (True, False))
    assert inside.identical(plain)


def test_slopes_at_zero_and_asymmetries_are_those_of_the_gates():
    found = gate_slope_profile(["golu", "gelu", "mish", "relu", "tanh"]).data
    at_zero = found["slope_at_zero"].values
    np.testing.assert_allclose(at_zero[[0, 1, 2, 4]], [math.exp(-1), 0.5, 0.6, 1.0], atol=1e-8)
    assert math.isnan(at_zero[3])
    x = found["x"].values
    gumbel = np.abs(np.exp(-np.exp(-x)) + np.exp(-np.exp(x)) - 1).max()
    np.testing.assert_allclose(found["asymmetry"][:2], [gumbel, 0.0], atol=1e-9)
    assert float(found["gate_slope"].sel(function="gelu").sel(x=0, method="nearest")) == pytest.approx(
        1 / math.sqrt(2 * math.pi), abs=1e-9
    )
    result = gate_slope_profile({"own": nn.SiLU()})
    assert result["function"].values.tolist() == ["own"] and result.plot(Figure().add_subplot()).has_data()


@pytest.mark.parametrize(
    ("functions", "settings", "message"),
    [
        ("golu", {}, "list of names"),
        ([], {}, "list of names"),
        (["golu"], {"lo": 1.0, "hi": 1.0}, "interval"),
        (["sigmoid"], {}, "at 0"),
        ({"log": torch.log}, {}, "finite"),
        ({"sum": torch.sum}, {}, "elementwise"),
    ],
)
def test_what_has_no_profile_is_refused(functions, settings, message):
    with pytest.raises(InputError, match=message):
        gate_slope_profile(functions, **settings)
    with pytest.raises(UnknownNameError):
        gate_slope_profile(["goulou"])


# Latent variance ---------------------------------------------------------------------------------------------------


def test_latent_variance_is_the_mean_over_channels_of_the_variance():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), get("golu"), nn.Dropout(), nn.Flatten(), nn.Linear(108, 5), get("gelu"))
    net.train()
    x = torch.randn(7, 1, 8, 8)
    found = latent_variance(net, x, batch_size=3)
    assert found["site"].values.tolist() == ["module:1", "module:5"] and net.training and net[2].training
    with torch.no_grad():
        net.eval()
        conv, last = net[:2](x).double().movedim(1, -1).reshape(-1, 3), net(x).double()
    for i, y in enumerate((conv, last)):
        assert float(found["mean_var"][i]) == pytest.approx(float(y.var(0, correction=0).mean()), rel=1e-6)
        assert float(found["mean_std"][i]) == pytest.approx(float(y.std(0, correction=0).mean()), rel=1e-6)
        assert float(found["pooled_var"][i]) == pytest.approx(float(y.var(correction=0)), rel=1e-6)
    assert found["count"].values.tolist() == [7 * 36, 7] and found.table().shape[0] == 2
    assert found.plot(Figure().add_subplot()).has_data()
    with pytest.raises(InputError, match="activation function"):
        latent_variance(nn.Sequential(nn.Linear(2, 2)), torch.randn(3, 2))


def test_with_the_same_random_weights_golu_varies_least():
    on = task("digits")
    places = [f"module:{i}" for i in (1, 3, 5)]
    for seed in range(3):
        got = {
            name: float(
                latent_variance(task_network(name, on, seed, trained=False), on.test[0], places)["mean_var"].mean()
            )
            for name in ("golu", "silu", "gelu")
        }
        assert got["golu"] < got["silu"] < got["gelu"]


def test_the_latent_variance_of_a_language_model_is_that_of_its_real_positions():
    model = ac.load("world:lm")
    texts = [d.text for d in ac.world.corpus.documents(random.Random(0), 3)]
    site = "blocks.1.mlp.post"
    found = latent_variance(model, texts, site, batch_size=2)
    read = model.record(texts, site)
    rows = read[site][read.mask].double()
    assert float(found["mean_var"][0]) == pytest.approx(float(rows.var(0, correction=0).mean()), rel=1e-5)
    assert int(found["count"][0]) == len(rows)


# Weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [400, 100_000])
def test_entropies_are_those_of_known_distributions(n):
    source = torch.Generator().manual_seed(0)
    normal = 0.3 * torch.randn(n, generator=source, dtype=torch.float64)
    uniform = torch.rand(n, generator=source, dtype=torch.float64) * 4
    tolerance = 4 / math.sqrt(n)
    assert differential_entropy(normal) == pytest.approx(stats.norm(0, 0.3).entropy(), abs=tolerance)
    assert differential_entropy(uniform) == pytest.approx(math.log(4), abs=tolerance)
    assert differential_entropy(10 * normal + 5) == pytest.approx(differential_entropy(normal) + math.log(10), abs=1e-6)
    assert differential_entropy(torch.ones(20)) == -math.inf
    with pytest.raises(InputError, match="16"):
        differential_entropy(torch.randn(3))


def test_weights_are_described_by_layer():
    net = nn.Sequential(nn.Linear(30, 40), nn.Mish(), nn.Linear(40, 50, dtype=torch.bfloat16))
    found = weight_distribution(net)
    assert found["weight"].values.tolist() == ["0.weight", "2.weight"]
    w = net[0].weight.detach().double().flatten().numpy()
    assert float(found["std"][0]) == pytest.approx(w.std(), rel=1e-9)
    assert float(found["kurtosis"][0]) == pytest.approx(stats.kurtosis(w), rel=1e-6)
    assert math.isfinite(found["entropy"][1]) and found["count"].values.tolist() == [1200, 2000]
    assert found.plot(Figure().add_subplot()).has_data()
    for bad, message in ((nn.ReLU(), "no weights"), ("net", "expected"), (nn.Linear(9, 9, device="meta"), "in memory")):
        with pytest.raises(InputError, match=message):
            weight_distribution(bad)


# Training ----------------------------------------------------------------------------------------------------------


def test_twelve_plain_layers_learn_with_mish_and_not_with_a_sigmoid():
    on = task("digits", depth=12, epochs=5)
    scores = {}
    for name in ("mish", "sigmoid"):
        net = task_network(name, on)
        with torch.no_grad():
            scores[name] = on.score(net(on.test[0]), on.test[1])
    assert scores["mish"] > scores["sigmoid"] + 0.15
