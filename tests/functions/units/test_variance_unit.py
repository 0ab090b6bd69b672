"""VeLU against its closed form, and what its penalty does to a network."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError
from actinium.functions.units.variance_unit import VeLU, collect_penalties, velu, wasserstein2_gaussian

X = torch.linspace(-4, 4, 401, dtype=torch.float64)


def test_values_are_those_of_the_formula():
    x = torch.tensor([1.0, -1.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    expected = [0.9829912810, -0.0931681346, 0.3920145752, 3.0468398091, 0.0]
    np.testing.assert_allclose(velu(x, 1.0, margin=0.0), expected, atol=1e-10)


@pytest.mark.parametrize("trig", ["asin", "sin"])
def test_both_sides_of_the_gate_add_up_to_lam(trig):
    core = velu(X, 1.0, gamma=0.0, lam=1.3, trig=trig)
    other = velu(-X, 1.0, gamma=0.0, lam=1.3, trig=trig)
    there = X != 0
    np.testing.assert_allclose((core / X + other / -X)[there], 1.3, rtol=1e-12)


def test_limits_are_known_functions():
    swat = X * torch.sigmoid(torch.atan(X))
    torch.testing.assert_close(velu(X, 1.0, beta2=0.0, gamma=0.0), swat, rtol=1e-12, atol=0)
    gain = 1 + 0.1 * math.tanh(2.0)
    torch.testing.assert_close(velu(X, 2.0, alpha=0.0, lam=3.0), 1.5 * X * gain, rtol=1e-12, atol=0)


def gain(unit, x):
    return (unit(x) / velu(x, 0.0, gamma=0.0))[x != 0]


def test_the_gain_lies_between_one_and_one_plus_gamma_and_grows_with_the_spread():
    unit = VeLU(gamma=0.3, ot="none").double()
    small, large = gain(unit, X).detach(), gain(unit, 3 * X).detach()
    np.testing.assert_allclose(small, 1 + 0.3 * math.tanh(math.sqrt(X.var(correction=0) + 1e-3)), rtol=1e-12)
    assert 1 <= float(small[0]) < float(large[0]) <= 1.3
    assert float(gain(VeLU(gamma=5.0, ot="none").double(), X)[0].detach()) == pytest.approx(2.0)
    assert float(gain(VeLU(gamma=-5.0, ot="none").double(), X)[0].detach()) == pytest.approx(0.5)


def test_without_gamma_an_element_does_not_depend_on_the_others():
    alone, together = VeLU(gamma=0.0, ot="none").double(), VeLU(ot="none").double()
    torch.testing.assert_close(alone(X)[:7], alone(X[:7]), rtol=0, atol=0)
    assert not torch.allclose(together(X)[:7], together(X[:7]))
    torch.testing.assert_close(together(X.flip(0)).flip(0), together(X))


def test_the_distance_is_that_of_normal_distributions_and_of_sorted_samples():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.7 + 0.6
    got = float(wasserstein2_gaussian(x))
    assert got == pytest.approx(0.6**2 + 0.7**2, rel=0.02)
    places = stats.norm.ppf((np.arange(len(x)) + 0.5) / len(x))
    assert got == pytest.approx(float(np.mean((np.sort(x.numpy()) - places) ** 2)), rel=0.02)
    assert float(wasserstein2_gaussian((x - x.mean()) / x.std(correction=0))) < 1e-20
    half = (300 * x).half()
    assert float(wasserstein2_gaussian(half)) == pytest.approx(float(wasserstein2_gaussian(half.double())), rel=1e-5)


def test_gradients_are_finite_where_the_arcsine_ends():
    x = torch.tensor([-1e3, -2.0, -1.0, 0.0, 1.0, 2.0, 1e3], requires_grad=True)
    for dtype in (torch.float32, torch.float16):
        y = VeLU()(x.to(dtype))
        assert y.dtype == dtype and bool(y.isfinite().all())
        x.grad = None
        y.float().sum().backward()
        assert bool(x.grad.isfinite().all())
    out = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    velu(out, 1.0, alpha=1.0, beta1=0.0, gamma=0.0).backward()
    assert float(out.grad) == pytest.approx(1 / (1 + math.exp(-math.asin(1 - 1e-4))), rel=1e-9)


def test_gradients_through_the_statistics_are_those_of_finite_differences():
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.4
    for unit in (VeLU(ot="subtract", lam_ot=0.3), VeLU(stat_dims="channel", ot="none")):
        assert torch.autograd.gradcheck(unit.double(), x.clone().requires_grad_())
    x.requires_grad_()
    VeLU(detach_stats=True, ot="none").double()(x).sum().backward()
    cut = x.grad.clone()
    sigma = (x.detach().var(correction=0) + 1e-3).sqrt()
    (expected,) = torch.autograd.grad(velu(x, sigma).sum(), x)
    torch.testing.assert_close(cut, expected)


def test_channels_have_their_own_spread():
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = x * torch.tensor([0.1, 1.0, 5.0]).view(1, 3, 1, 1)
    got = VeLU(stat_dims="channel", ot="none").double()(x)
    for k in range(3):
        torch.testing.assert_close(got[:, k], VeLU(ot="none").double()(x[:, k]))


def test_a_running_spread_makes_evaluation_independent_of_the_batch():
    unit = VeLU(momentum=0.9).double()
    for scale in (1.0, 2.0):
        unit(scale * X)
    sigmas = [math.sqrt(float((s * X).var(correction=0)) + 1e-3) for s in (1.0, 2.0)]
    assert float(unit.running) == pytest.approx(0.9 * sigmas[0] + 0.1 * sigmas[1])
    unit.eval()
    torch.testing.assert_close(unit(X)[:3], unit(X[:3]), rtol=0, atol=0)
    other = VeLU(momentum=0.9).double().eval()
    other.load_state_dict(unit.state_dict())
    torch.testing.assert_close(other(X), unit(X), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta")
def test_a_running_spread_is_loaded_to_where_the_unit_is():
    unit, elsewhere = VeLU(momentum=0.9), VeLU(momentum=0.9).to("meta")
    unit(X.float())
    elsewhere.load_state_dict(unit.state_dict())
    assert elsewhere.running.device.type == "meta"


def test_penalties_are_subtracted_or_collected():
    plain, less, loss = (VeLU(ot=ot, lam_ot=0.5).double() for ot in ("none", "subtract", "loss"))
    w = wasserstein2_gaussian(X)
    torch.testing.assert_close(plain(X) - less(X), (0.5 * w).expand(X.shape))
    net = nn.Sequential(loss, nn.Identity(), VeLU(lam_ot=0.2).double())
    net(X)
    second = wasserstein2_gaussian(loss(X))
    torch.testing.assert_close(collect_penalties(net), 0.5 * w + 0.2 * second)
    copy.deepcopy(net)(X)  # the graph of the penalty is no obstacle


def trained(lam_ot, seed=0, epochs=4):
    """Mean W of the inputs of hidden activations on test digits, and accuracy."""
    train, test = (ac.world.digits.load(s) for s in ("train", "test"))
    torch.manual_seed(seed)
    layers = [m for _ in range(3) for m in (nn.Linear(64, 64), VeLU(lam_ot=lam_ot))]
    net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(train.images)).split(64):
            loss = nn.functional.cross_entropy(net(train.images[rows]), train.labels[rows]) + collect_penalties(net)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        right = float((net(test.images).argmax(1) == test.labels).float().mean())
        return float(np.mean([float(m.penalty) for m in net if isinstance(m, VeLU)])), right


def test_the_penalty_moves_hidden_activations_of_a_network_towards_the_normal():
    without, with_it = trained(0.0), trained(0.1)
    assert with_it[0] < 0.7 * without[0]
    assert min(without[1], with_it[1]) > 0.8


def test_a_language_model_runs_with_it():
    lm = ac.load("world:lm")
    with ac.functions.replace(lm.module, "silu", lambda: VeLU(gamma=0.1)) as swap:
        assert len(swap.places) == 6
        loss = lm.loss(["The owl lives in the forest."]) + collect_penalties(lm.module)
        assert bool(loss.isfinite())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: VeLU(beta2=-1.0), "beta2"),
        (lambda: VeLU(ot="add"), "no ot"),
        (lambda: VeLU(trig="cos"), "trig"),
        (lambda: VeLU(stat_dims="batch"), "stat_dims"),
        (lambda: VeLU(momentum=1.0), "momentum"),
        (lambda: VeLU()(torch.arange(3)), "floating-point"),
        (lambda: VeLU()(torch.zeros(0)), "one element"),
        (lambda: VeLU(stat_dims="channel")(torch.zeros(3)), "channels"),
        (lambda: collect_penalties(nn.Linear(1, 1)), "no VeLU"),
        (lambda: collect_penalties(VeLU()), "has run"),
        (lambda: wasserstein2_gaussian(torch.zeros(0)), "one element"),
    ],
)
def test_what_is_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        wrong()


def test_one_element_has_no_spread_which_is_told():
    with pytest.warns(ActiniumWarning, match="one element"):
        y = VeLU()(torch.tensor([0.5]))
    assert float(y) == pytest.approx(float(velu(torch.tensor(0.5), math.sqrt(1e-3))))
