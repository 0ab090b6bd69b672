"""Measured variances, correlations and gradients follow mean-field theory, and decays are told apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError, SiteError
from actinium.signal.initialisers import eoc_init_, pseudo_iid_init_
from actinium.signal.mean_field import EdgeOfChaos
from actinium.signal.nngp import NNGPKernel
from actinium.signal.propagation_measured import fit_decay, measure_propagation


def network(width, depth, activation=nn.Tanh, inputs=32):
    layers = [nn.Linear(inputs, width)]
    for _ in range(depth - 1):
        layers += [activation(), nn.Linear(width, width)]
    return nn.Sequential(*layers)


def pairs(n=16, d=32):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2 * n, d, generator=random)
    x *= math.sqrt(d) / x.norm(dim=1, keepdim=True)
    return x[:n], x[n:]


def test_what_is_measured_equals_the_definitions():
    torch.manual_seed(0)
    net = network(10, 3)
    a, b = pairs(4)
    found = measure_propagation(net, a, b)
    x, y = (net[2](net[1](net[0](t))).detach().double() for t in (a, b))
    assert found["q"].values[1] == pytest.approx(float((x**2).mean() + (y**2).mean()) / 2, rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(x, y)
    assert found["c"].values[1] == pytest.approx(float(cosine.mean()), abs=1e-6)
    assert found["c_sd"].values[1] == pytest.approx(float(cosine.std(correction=0)), abs=1e-6)
    # The gradient at the last site is the random direction; below, it is that direction times the Jacobian.
    direction = torch.randn(4, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert found["gradient"].values[2] == pytest.approx(float((direction**2).mean()), rel=1e-5)
    below = (direction @ net[4].weight.detach().double()) * (1 - x.tanh() ** 2)
    assert found["gradient"].values[1] == pytest.approx(float((below**2).mean()), rel=1e-5)
    assert found["gradient_ratio"].values[1] == pytest.approx(
        float((below**2).mean() / (direction**2).mean()), rel=1e-5
    )


def test_correlations_of_a_wide_network_follow_the_kernel():
    a, b = pairs()
    net = network(600, 30)
    sw = eoc_init_(net, torch.tanh, 0.2, generator=torch.Generator().manual_seed(0)).sw
    found = measure_propagation(net, a, b)
    k = NNGPKernel(torch.tanh, 30, sw, 0.2).layers(torch.cat([a, b]))
    i = torch.arange(16)
    theory = (k[:, i, i + 16] / k[:, 0, 0, None]).mean(1).numpy()
    assert np.abs(found["c"].values - theory).mean() < 0.05
    assert found["q"].values == pytest.approx(k[:, 0, 0].numpy(), rel=0.2)


@pytest.mark.parametrize(("sw", "low", "high"), [(0.8, 0.4, 0.75), (1.3041458, 0.93, 1.07), (3.0, 1.5, 2.2)])
def test_gradients_grow_by_chi1_per_layer(sw, low, high):
    net = network(300, 14)
    pseudo_iid_init_(net, "iid", sw, 0.2, generator=torch.Generator().manual_seed(0))
    ratio = measure_propagation(net, *pairs())["gradient_ratio"].values[4:-1]
    mean = float(np.exp(np.log(ratio).mean()))
    assert low < mean < high
    assert mean == pytest.approx(EdgeOfChaos(torch.tanh).chi1(0.2, sw), rel=0.12)


def test_decays_are_told_apart():
    layers = np.arange(1, 60)
    for law, gap, parameter in (
        ("exponential", 0.5 * np.exp(-layers / 7.0), 7.0),
        ("1/l", 5.0 / (layers + 3), 5.0),
        ("1/l^2", 40.0 / (layers + 9) ** 2, 40.0),
    ):
        found = fit_decay(1 - gap)
        assert found.law == law
        assert found.parameter == pytest.approx(parameter, rel=1e-4)


def test_trajectories_of_the_theory_have_the_laws_of_the_theory():
    tanh, relu = EdgeOfChaos(torch.tanh), EdgeOfChaos(torch.relu)
    on = fit_decay(tanh.correlations(0.1, 400, 0.2, tanh.point(0.2).sw))
    assert (on.law, on.parameter) == ("1/l", pytest.approx(7.084, rel=0.02))
    off = fit_decay(tanh.correlations(0.1, 30, 0.2, 0.8))
    assert off.law == "exponential"
    assert off.parameter == pytest.approx(tanh.depth_scale(0.2, 0.8), rel=0.05)
    assert fit_decay(relu.correlations(0.1, 400, 0.0, 2**0.5)).law == "1/l^2"


def test_a_shipped_language_model_is_measured_at_its_residual_stream():
    model = ac.load("world:lm")
    ids = torch.randint(0, 40, (4, 6), generator=torch.Generator().manual_seed(0))
    found = measure_propagation(model, ids, ids.flip(0), "blocks.*.resid_post")
    assert len(found["q"]) == model.n_layers
    assert np.isfinite(found["gradient"].values).all() and (np.abs(found["c"].values) <= 1).all()
    assert found.plot() is not None


def test_running_statistics_and_the_mode_are_left_as_they_were():
    net = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4)).train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    measure_propagation(net, *pairs())
    assert net[1].training and all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_convolutions_of_three_dimensions_are_measured_and_drawn():
    net = nn.Sequential(nn.Conv3d(2, 8, 3), nn.Tanh(), nn.Conv3d(8, 8, 3))
    eoc_init_(net, torch.tanh, 0.2, generator=torch.Generator().manual_seed(0))
    a, b = torch.randn(2, 3, 2, 6, 6, 6, generator=torch.Generator().manual_seed(1))
    found = measure_propagation(net, a, b)
    assert found.data.sizes["layer"] == 2
    sw = EdgeOfChaos(torch.tanh).point(0.2).sw
    assert float(net[2].weight.detach().var()) * 8 * 27 == pytest.approx(sw**2, rel=0.1)


def test_bad_pairs_and_sites_are_refused():
    net, (a, b) = network(8, 3), pairs(4)
    with pytest.raises(InputError, match="differ"):
        measure_propagation(net, a, b[:2])
    with pytest.raises(InputError, match="two layers"):
        measure_propagation(net, a, b, ["module:0"])
    with pytest.raises(InputError, match="no linear"):
        measure_propagation(nn.Sequential(nn.Tanh()), a, b)
    with pytest.raises(SiteError):
        measure_propagation(net, a, b, ["module:77", "module:0"])
    with pytest.raises(InputError, match="NaN"):
        measure_propagation(net, a.masked_fill(a > 1, float("nan")), b)
    dead = network(8, 3, nn.ReLU)
    for p in dead.parameters():
        nn.init.zeros_(p)
    with pytest.raises(InputError, match="zero"):
        measure_propagation(dead, a, b)
    with pytest.raises(InputError, match="four layers"):
        fit_decay([0.1, 0.2, 0.3, 0.4])
    with pytest.raises(InputError, match="below 1"):
        fit_decay([0.5] * 5 + [1.0] * 5)
