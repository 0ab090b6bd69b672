"""Landscapes are those of the network and the loss they are read from, and leave the network as it was."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import nn
from torch.nn import functional

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.comparison.activation_comparison import compare_activations
from actinium.functions.comparison.comparison_tasks import task
from actinium.functions.comparison.landscapes import (
    filter_normalised,
    loss_landscape,
    output_landscape,
    weight_noise_landscape,
)
from actinium.functions.comparison.run_statistics import paired_comparison, welch_comparison
from actinium.functions.comparison.task_training import task_network


class Weights(nn.Module):
    """Two filters of two weights, and a bias that is not moved."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64))
        self.bias = nn.Parameter(torch.ones(2))


def norm(net, _):
    return net.w.square().sum() + net.bias.sum()


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}, [m.training for m in module.modules()]


def same(before, module):
    values, modes = state(module)
    return modes == before[1] and all(torch.equal(values[k], v) for k, v in before[0].items())


# Output ---------------------------------------------------------------------------------------------------------


def test_the_landscape_of_the_identity_is_a_plane_without_roughness():
    found = output_landscape(lambda x: x, resolution=9, extent=2.0)
    assert float(found["largest"]) < 1e-12
    y = found["output"].values
    assert y.mean() == pytest.approx(0, abs=1e-12) and y.std() == pytest.approx(1)
    np.testing.assert_allclose(np.diff(y, axis=0), np.diff(y, axis=0)[0, 0], atol=1e-12)
    assert found["x1"].values.tolist() == np.linspace(-2, 2, 9).tolist()


def test_roughness_is_the_mean_absolute_laplacian_of_a_network_that_is_built_by_hand():
    found = output_landscape("mish", depth=2, width=7, extent=3.0, resolution=12, seed=5)
    source = torch.Generator().manual_seed(5)
    sizes = [(7, 2), (7, 7), (1, 7)]
    w = [torch.randn(s, generator=source, dtype=torch.float64).numpy() * math.sqrt(2 / s[1]) for s in sizes]

    def f(x):
        return x * np.tanh(np.logaddexp(0, x))

    axis = np.linspace(-3, 3, 12)
    y = np.array([[(w[2] @ f(w[1] @ f(w[0] @ [a, b])))[0] for a in axis] for b in axis])
    y = (y - y.mean()) / y.std()
    np.testing.assert_allclose(found["output"].values, y, atol=1e-12)
    bends = [
        abs(y[i + 1, j] + y[i - 1, j] + y[i, j + 1] + y[i, j - 1] - 4 * y[i, j])
        for i in range(1, 11)
        for j in range(1, 11)
    ]
    assert float(found["roughness"]) == pytest.approx(np.mean(bends), rel=1e-10)
    assert float(found["largest"]) == pytest.approx(max(bends), rel=1e-10)


def test_random_networks_are_twice_as_rough_with_relu_as_with_mish():
    rough = {n: np.mean([float(output_landscape(n, seed=s)["roughness"]) for s in range(5)]) for n in ("relu", "mish")}
    assert rough["relu"] / rough["mish"] > 2


def test_a_module_is_read_as_the_function_of_its_name_and_stays_in_its_mode():
    module = nn.Mish().train()
    one, other = output_landscape(module, resolution=8), output_landscape("mish", resolution=8)
    np.testing.assert_allclose(one["output"].values, other["output"].values, atol=1e-12)
    assert module.training
    assert one.plot(Figure().add_subplot()).has_data()


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        ("mish", {"depth": 0}, "hidden layer"),
        ("mish", {"extent": 0.0}, "extent"),
        ("mish", {"resolution": 2}, "3 points"),
        ("glu", {}, "keep the shape"),
        (nn.ReLU, {}, "ReLU"),
        (lambda x: 0 * x, {}, "constant"),
        (lambda x: x / 0, {}, "not finite"),
        (3, {}, "callable"),
    ],
)
def test_what_has_no_output_landscape_is_refused(function, settings, message):
    with pytest.raises(InputError, match=message):
        output_landscape(function, **settings)
    with pytest.raises(UnknownNameError):
        output_landscape("mishh")


# Directions ------------------------------------------------------------------------------------------------------


def test_filters_of_a_direction_are_as_long_as_those_of_the_weights():
    w, d = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    w[1] = 0
    found = filter_normalised(d, w)
    np.testing.assert_allclose(found.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1), atol=1e-12)
    assert torch.equal(found[1], torch.zeros(3, 2, dtype=torch.float64))
    assert float(functional.cosine_similarity(found[0].flatten(), d[0].flatten(), 0)) == pytest.approx(1)
    columns = filter_normalised(d[..., 0], w[..., 0], dim=1)
    np.testing.assert_allclose(columns.norm(dim=0), w[..., 0].norm(dim=0), atol=1e-12)
    with pytest.raises(InputError, match="one shape"):
        filter_normalised(d, w[:2])


# Loss ------------------------------------------------------------------------------------------------------------


def test_the_landscape_of_a_quadratic_loss_is_the_parabola_it_is():
    net = Weights()
    found = loss_landscape(net, norm, None, extent=0.5, resolution=5, seed=3)
    source = torch.Generator().manual_seed(3)
    first, second = (
        d[0] / d[0].norm() * 5 for d in (torch.randn(2, 2, generator=source, dtype=torch.float64) for _ in range(2))
    )
    start, steps = torch.tensor([3.0, 4.0], dtype=torch.float64), np.linspace(-0.5, 0.5, 5)
    wanted = [[float((start + a * first + b * second).square().sum()) + 2 for a in steps] for b in steps]
    np.testing.assert_allclose(found["loss"].values, wanted, rtol=1e-12)
    assert float(found["centre"]) == 27 == pytest.approx(float(found["loss"][2, 2]))
    # The second difference of |w + t d|^2 is 2 h^2 |d|^2, here along both axes.
    assert float(found["roughness"]) == pytest.approx(2 * 0.25**2 * 25) == float(found["largest"])
    assert found.plot(Figure().add_subplot()).has_data()


def test_noise_along_several_directions_is_that_of_the_quadratic_loss():
    found = weight_noise_landscape(Weights(), norm, None, (0.0, 0.5, 1.0), directions=4, seed=1)
    assert found["loss"].shape == (4, 3)
    assert (found["loss"].values[:, 0] == 27).all() and float(found["sd"][0]) == 0
    assert float(found["roughness"]) == pytest.approx(2 * 0.5**2 * 25)
    assert (found["least"] <= found["mean"]).all() and (found["mean"] <= found["most"]).all()
    assert found.plot(Figure().add_subplot()).has_data()


def test_landscapes_leave_weights_modes_and_running_statistics_as_they_were():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Mish(), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3))
    net = net.train().to(torch.bfloat16)
    net[1].eval()
    before = state(net)
    batch = torch.randn(6, 1, 8, 8, dtype=torch.bfloat16), torch.arange(6) % 3

    def loss(net, data):
        return functional.cross_entropy(net(data[0]).float(), data[1])

    found = loss_landscape(net, loss, batch, resolution=3)
    weight_noise_landscape(net, loss, batch, directions=2)
    assert same(before, net)
    assert float(found["finite"]) == 1 and float(found["roughness"]) > 0
    again = loss_landscape(net, loss, batch, resolution=3)
    assert again == found

    def fails(net, data):
        if not torch.equal(net[0].weight, before[0]["0.weight"]):
            raise RuntimeError("moved")
        return loss(net, data)

    with pytest.raises(RuntimeError, match="moved"):
        loss_landscape(net, fails, batch, resolution=3)
    assert same(before, net)


def test_transposed_maps_are_normalised_by_their_outputs():
    net = nn.ConvTranspose2d(3, 5, 2, bias=False).double()
    moved = []

    def loss(net, _):
        moved.append(net.weight.detach().clone())
        return net.weight.sum()

    weight_noise_landscape(net, loss, None, (0.0, 1.0, 2.0), directions=1)
    shift, weights = ((w.movedim(1, 0).flatten(1)) for w in (moved[3] - net.weight.detach(), net.weight.detach()))
    np.testing.assert_allclose(shift.norm(dim=1), weights.norm(dim=1), rtol=1e-12)


def test_losses_that_overflow_are_counted_and_left_out():
    net = Weights()

    def loss(net, _):
        total = net.w.square().sum()
        return total if total < 60 else total * math.inf

    found = weight_noise_landscape(net, loss, None, (0.0, 0.5, 1.0, 1.5, 2.0), directions=8)
    assert 0 < float(found["finite"]) < 1
    assert math.isfinite(float(found["roughness"]))


def test_a_language_model_has_a_landscape_and_the_bottom_is_where_it_was_trained():
    model = ac.load("world:lm")
    texts = [d.text for d in ac.world.corpus.documents(random.Random(0), 4)]
    before = model.fingerprint()
    found = weight_noise_landscape(model, lambda m, t: m.loss(t), texts, (0.0, 0.4, 0.8), directions=3)
    assert float(found["mean"][0]) == pytest.approx(float(model.loss(texts).detach()), rel=1e-5)
    assert float(found["mean"][2]) > float(found["mean"][0])
    assert model.fingerprint() == before
    assert found.provenance["model"]["fingerprint"] == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loss_landscape(Weights(), norm, None, extent=-1), "extent"),
        (lambda: loss_landscape(Weights(), norm, None, resolution=2), "3 points"),
        (lambda: loss_landscape(nn.ReLU(), norm, None), "no weights"),
        (lambda: loss_landscape("net", norm, None), "expected a network"),
        (lambda: loss_landscape(nn.Linear(2, 2, device="meta"), norm, None), "not in memory"),
        (lambda: loss_landscape(Weights(), lambda net, _: net.w.sum(0), None), "one number"),
        (lambda: loss_landscape(Weights(), lambda net, _: net.w.sum() / 0, None), "inf"),
        (lambda: loss_landscape(Weights(), lambda net, _: torch.rand(()), None), "random"),
        (lambda: weight_noise_landscape(Weights(), norm, None, (0.0, 1.0)), "scales"),
        (lambda: weight_noise_landscape(Weights(), norm, None, (0.0, 1.0, 3.0)), "equal steps"),
        (lambda: weight_noise_landscape(Weights(), norm, None, directions=0), "direction"),
    ],
)
def test_what_has_no_loss_landscape_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# Runs ------------------------------------------------------------------------------------------------------------


def test_welch_is_that_of_scipy():
    a, b = np.random.default_rng(0).normal(size=9), np.random.default_rng(1).normal(0.5, 3, size=6)
    found, wanted = welch_comparison(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert found["t"] == pytest.approx(wanted.statistic, rel=1e-12)
    assert found["p"] == pytest.approx(wanted.pvalue, rel=1e-10)
    assert found["df"] == pytest.approx(wanted.df, rel=1e-12)
    pooled = math.sqrt((8 * a.var(ddof=1) + 5 * b.var(ddof=1)) / 13)
    assert found["effect"] == pytest.approx((a.mean() - b.mean()) / pooled, rel=1e-12)
    assert (found["mean"], found["reference_sd"]) == (pytest.approx(a.mean()), pytest.approx(b.std(ddof=1)))


def test_runs_that_do_not_vary_are_the_same_or_different():
    assert welch_comparison([1, 1], [1, 1, 1])["p"] == 1
    found = welch_comparison([1, 1], [2, 2])
    assert found["p"] == 0 and found["effect"] == -math.inf
    assert paired_comparison([1, 1], [2, 2]) == {"difference": -1, "p": 0, "effect": -math.inf}
    for bad in ([1.0], [1.0, math.nan], [[1.0, 2.0]]):
        with pytest.raises(InputError, match="two finite numbers"):
            welch_comparison(bad, [1.0, 2.0])


def test_the_network_of_a_task_is_the_one_that_the_comparison_scores():
    small = task("digits", epochs=1)
    compared = compare_activations(["mish", "relu"], small, (4,))
    net = task_network("mish", small, 4)
    with torch.no_grad():
        assert small.score(net(small.test[0]), small.test[1]) == float(compared["score"].sel(activation="mish", seed=4))
    starts = [task_network(n, small, 4, trained=False).state_dict() for n in ("mish", "relu")]
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in starts), strict=True))
    assert not torch.equal(net[0].weight, starts[0]["0.weight"])
    state_of_generator = copy.deepcopy(torch.get_rng_state())
    task_network("mish", small, 4, trained=False)
    assert torch.equal(torch.get_rng_state(), state_of_generator)
    with pytest.raises(InputError, match="settings"):
        task_network("mish", small, epochs=2)
