"""Distances estimated from models equal the closed forms where the models are draws from a known distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError
from actinium.signal.gp_kernels import RBF
from actinium.signal.leave_one_out import LOOD
from actinium.signal.lood_of_networks import empirical_lood
from actinium.signal.ntk import ntk_mlp

X = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
Y = torch.sign(X[:, 0])


def gaussian(shift, spread):
    """A training algorithm whose outputs are N(0, 1), and N(shift, spread^2) where seven records are there."""

    def train(x, y, seed):
        noise = float(np.random.default_rng(seed).standard_normal())
        return lambda q: torch.full((len(q),), shift + spread * noise if len(x) == 7 else noise)

    return train


def test_estimates_come_near_the_divergence_of_known_gaussians():
    found = empirical_lood(gaussian(1.0, 0.5), (X, Y), (X[:1] + 2, Y[:1]), X[:2], 1500, bootstrap=100)
    kl = math.log(0.5) + (1 + 1) / (2 * 0.25) - 0.5
    assert found["kl"].values == pytest.approx([kl, kl], rel=0.1)
    assert found["mean"].values == pytest.approx([0.5, 0.5], rel=0.12)
    assert (found["kl_low"] < found["kl"]).all() and (found["kl"] < found["kl_high"]).all()
    assert (found["mean_low"] < 0.5).all() and (found["mean_high"] > 0.5).all()
    # By Neyman and Pearson no score tells the two apart better than the exact ratio.
    random = np.random.default_rng(0)
    a, b = random.standard_normal(4000), 1 + 0.5 * random.standard_normal(4000)
    ratio = [-(((z - 1) / 0.5) ** 2) / 2 + z**2 / 2 for z in (a, b)]
    best = (ratio[1][:, None] > ratio[0][None]).mean()
    assert found["auc"].values == pytest.approx([best, best], abs=0.03)
    found.plot()


def test_equal_distributions_have_no_corrected_distance_and_chance_inference():
    runs = [
        empirical_lood(gaussian(0.0, 1.0), (X, Y), (X[:1] + 2, Y[:1]), X[:1], 8, bootstrap=20, seed=100 * s)
        for s in range(40)
    ]
    kl, null = (np.array([float(r[name][0]) for r in runs]) for name in ("kl", "kl_null"))
    # Few models make the divergence of equal distributions positive, by what dealing them at random says.
    assert kl.mean() > 0.05
    assert kl.mean() == pytest.approx(null.mean(), rel=0.5)
    corrected = np.array([float(r["mean_corrected"][0]) for r in runs])
    plain = np.array([float(r["mean"][0]) for r in runs])
    assert abs(corrected.mean()) < 4 * corrected.std() / 40**0.5
    assert plain.mean() == pytest.approx(1 / 8, rel=0.5)
    assert np.mean([float(r["auc"][0]) for r in runs]) == pytest.approx(0.5, abs=0.08)


def test_pairing_takes_out_what_a_seed_does_alike():
    paired = empirical_lood(gaussian(0.3, 1.0), (X, Y), (X[:1] + 2, Y[:1]), X[:1], 6, paired=True, bootstrap=50)
    assert float(paired["mean"][0]) == pytest.approx(0.045, abs=1e-6)
    assert float(paired["mean_corrected"][0]) == pytest.approx(0.045, abs=1e-6)
    assert float(paired["mean_high"][0] - paired["mean_low"][0]) < 1e-6


def test_draws_of_a_gaussian_process_have_its_closed_form():
    """Models that are posterior functions of the process: the estimate must agree with LOOD."""

    def train(x, y, seed):
        kernel, noise = RBF(0.7), 0.1
        inverse = torch.linalg.inv(kernel(x, x) + noise * torch.eye(len(x), dtype=torch.float64))

        def predict(q):
            cross = kernel(q, x)
            cov = kernel(q, q) - cross @ inverse @ cross.T + 1e-9 * torch.eye(len(q), dtype=torch.float64)
            random = torch.Generator().manual_seed(seed)
            z = torch.randn(len(q), generator=random, dtype=torch.float64)
            return cross @ inverse @ y + torch.linalg.cholesky(cov) @ z

        return predict

    s = torch.tensor([[0.3]], dtype=torch.float64)
    exact = LOOD(RBF(0.7), 0.1).fit(X, Y)
    found = empirical_lood(train, (X, Y), (s, -torch.ones(1)), s, 1000, bootstrap=20)
    assert float(found["mean"][0]) == pytest.approx(exact.lood(s, s, [-1.0], "mean"), rel=0.2)
    assert float(found["kl"][0]) == pytest.approx(exact.lood(s, s, [-1.0]), rel=0.2)


def test_a_mislabelled_digit_is_remembered_by_networks_more_than_a_typical_one():
    data = ac.world.digits.load("train").where(label=["0", "1"])
    x = data.images[:24].flatten(1)
    x = x / x.norm(dim=1, keepdim=True)
    y = torch.where(data.labels[:24] == 1, 1.0, -1.0)

    def train(x, y, seed):
        net = ntk_mlp(64, 64, seed=seed)
        for _ in range(60):
            loss = ((net(x)[:, 0] - y) ** 2).mean()
            grads = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for p, g in zip(net.parameters(), grads, strict=True):
                    p -= 0.3 * g
        return lambda q: net(q)[:, 0]

    rest = (x[1:], y[1:])
    right, wrong = (
        empirical_lood(train, rest, (x[:1], sign * y[:1]), x[:1], 4, paired=True, bootstrap=20) for sign in (1, -1)
    )
    assert float(wrong["mean_corrected"][0]) > 3 * float(right["mean_corrected"][0])


def test_bad_input_is_refused():
    s = (X[:1], Y[:1])
    with pytest.raises(InputError, match="n_models >= 4"):
        empirical_lood(gaussian(1, 1), (X, Y), s, X[:1], 3)
    with pytest.raises(InputError, match="do not fit"):
        empirical_lood(gaussian(1, 1), (X, Y), (torch.zeros(1, 2), Y[:1]), X[:1])
    with pytest.raises(InputError, match="cut to integers"):
        empirical_lood(gaussian(1, 1), (X, Y.long()), (X[:1], torch.tensor([-0.5])), X[:1])
    with pytest.raises(InputError, match="inputs and 5 labels"):
        empirical_lood(gaussian(1, 1), (X, Y[:4]), s, X[:1])
    with pytest.raises(InputError, match="same output"):
        empirical_lood(lambda x, y, seed: lambda q: q[:, 0], (X, Y), s, X[:1])
    with pytest.raises(InputError, match="not finite"):
        empirical_lood(lambda x, y, seed: lambda q: q[:, 0] * float("nan"), (X, Y), s, X[:1])
    with pytest.raises(InputError, match="1 queries"):
        empirical_lood(lambda x, y, seed: lambda q: torch.zeros(3), (X, Y), s, X[:1])
