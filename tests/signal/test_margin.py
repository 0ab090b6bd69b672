"""Norms of layers equal those of their matrices, slopes lie below their product, margins are those of the labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.signal import margin as module
from actinium.signal.margin import lipschitz_bounds, normalized_margin, spectral_norms
from actinium.signal.ntk import NTKLinear, ntk_mlp


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, stride=2),
        nn.BatchNorm2d(3),
        nn.Sequential(nn.GELU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.Tanh(),
        NTKLinear(5, 2, 0.7),
    ).eval()


def test_norms_of_layers_are_singular_values(chain):
    x = torch.randn(2, 1, 8, 8)
    norms = spectral_norms(chain, x)
    assert list(norms) == ["0", "1", "2.0", "2.1", "3", "4", "5", "6"]
    assert norms["4"] == pytest.approx(np.linalg.norm(chain[4].weight.detach().numpy(), 2), rel=1e-6)
    assert norms["6"] == pytest.approx(0.7 * np.linalg.norm(chain[6].weight.detach().numpy(), 2), rel=1e-6)
    basis = torch.eye(64).reshape(64, 1, 8, 8)
    conv = (chain[0](basis) - chain[0](torch.zeros(1, 1, 8, 8))).flatten(1).detach().numpy()
    assert norms["0"] == pytest.approx(np.linalg.norm(conv, 2), rel=1e-5)
    assert norms["1"] == pytest.approx(1 / math.sqrt(1 + chain[1].eps), rel=1e-6)


def test_power_iterations_agree_with_singular_values(chain, monkeypatch):
    exact = spectral_norms(chain, torch.randn(1, 1, 8, 8))["0"]
    monkeypatch.setattr(module, "EXACT", 0)
    assert spectral_norms(chain, torch.randn(1, 1, 8, 8))["0"] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("kind", list(module.SLOPES))
def test_declared_slopes_are_the_largest_measured(kind):
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64).requires_grad_()
    layer = kind().eval()
    (slope,) = torch.autograd.grad(layer(x[:, None]).sum(), x)
    assert float(slope.abs().max()) == pytest.approx(module.SLOPES[kind], abs=2e-4)
    assert float(slope.abs().max()) <= module.SLOPES[kind] + 1e-9


def test_slopes_lie_below_the_product_of_norms(chain):
    for net, x in ((chain, torch.randn(20, 1, 8, 8)), (ntk_mlp(6, 64, 2), torch.randn(20, 6))):
        found = lipschitz_bounds(net, x)
        assert float(found["upper"]) == pytest.approx(math.prod(found["norm"].values))
        assert 0 < float(found["lower_data"]) <= float(found["upper"])
        assert 0 < float(found["lower_segments"]) <= float(found["upper"])
        found.plot()


def test_bounds_meet_for_a_linear_map():
    net, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(7, 4)
    found, norm = lipschitz_bounds(net, x), np.linalg.norm(net[0].weight.detach().numpy(), 2)
    for name in ("upper", "lower_data", "lower_segments"):
        assert float(found[name]) == pytest.approx(norm, rel=1e-6)


def test_slopes_at_inputs_are_gradient_norms():
    net, x = ntk_mlp(6, 32).double(), torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(net(x).sum(), x)
    assert lipschitz_bounds(net, x, pairs=0)["gradient"].values == pytest.approx(grad.norm(dim=1).numpy(), rel=1e-9)


def test_margins_are_those_of_the_labels():
    net, x = ntk_mlp(6, 32), torch.randn(9, 6)
    start = {k: v.detach().clone() for k, v in net.named_parameters()}
    with torch.no_grad():
        net[0].weight += 0.1
        net[2].weight[0, 0] += 2
    y = torch.tensor([1.0, -1] * 4 + [1])
    found = normalized_margin(net, x, y, start)
    by_hand = (y * net(x)[:, 0]).detach().double().numpy()
    assert found["margins"].values == pytest.approx(by_hand, rel=1e-5)
    moved = math.sqrt(6 * 32 * 0.01 + 4)
    assert float(found["lazy_margin"].sel(quantile=0)) == pytest.approx(by_hand.min() / moved, rel=1e-4)
    product = math.prod(spectral_norms(net, x).values())
    assert float(found["spectral_margin"].sel(quantile=0.5)) == pytest.approx(np.median(by_hand) / product, rel=1e-4)
    several = ntk_mlp(6, 32, outputs=3)
    classes = torch.tensor([0, 1, 2] * 3)
    out = several(x).detach().numpy()
    gaps = [row[c] - max(np.delete(row, c)) for row, c in zip(out, classes, strict=True)]
    assert normalized_margin(several, x, classes)["margins"].values == pytest.approx(gaps, abs=1e-5)


def test_a_shipped_classifier_has_positive_margins_and_lower_bounds():
    model, data = ac.load("world:digits-cnn"), ac.world.digits.load("test")
    found = normalized_margin(model, data.images, data.labels, spectral=False)
    with torch.no_grad():
        right = model.module(data.images).argmax(1) == data.labels
    assert float((found["margins"] > 0).mean()) == pytest.approx(float(right.double().mean()))
    assert float(lipschitz_bounds(model, data.images[:20], upper=False)["lower_segments"]) > 0


def test_bad_input_is_refused(chain):
    net, x = ntk_mlp(6, 8), torch.randn(4, 6)
    y = torch.tensor([1, -1, 1, -1])
    with pytest.raises(InputError, match="one class"):
        normalized_margin(net, x, torch.ones(4))
    with pytest.raises(InputError, match="labels -1 and 1"):
        normalized_margin(net, x, [0, 1, 0, 1])
    with pytest.raises(InputError, match="classes from 0 to 1"):
        normalized_margin(ntk_mlp(6, 8, outputs=2), x, [0, 1, 2, 0])
    with pytest.raises(InputError, match="4 labels"):
        normalized_margin(net, x, [1, -1])
    with pytest.raises(InputError, match="needs training"):
        normalized_margin(net, x, y, dict(net.named_parameters()))
    with pytest.raises(InputError, match="does not fit"):
        normalized_margin(net, x, y, {"weight": torch.zeros(1)})
    with pytest.raises(InputError, match="upper=False"):
        lipschitz_bounds(nn.TransformerEncoderLayer(6, 2, dropout=0.0), x)
    unknown = nn.Sequential(nn.Linear(6, 2), nn.Softsign())
    with pytest.raises(InputError, match=r"'1' \(Softsign\)"):
        lipschitz_bounds(unknown, x)
    assert spectral_norms(unknown, x, {nn.Softsign: 1.0})["1"] == 1
    with pytest.raises(InputError, match="floats"):
        lipschitz_bounds(nn.Embedding(5, 2), torch.tensor([1, 2]), upper=False)
    with pytest.raises(InputError, match="training mode"):
        spectral_norms(chain.train(), torch.randn(1, 1, 8, 8))
