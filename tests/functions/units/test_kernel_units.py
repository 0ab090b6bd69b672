"""Kernel and Gaussian mixture units: scikit-learn's kernels, scipy's densities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import actinium as ac

X = torch.linspace(-4, 4, 201, dtype=torch.float64)


def test_the_kernel_unit_is_the_published_sum():
    torch.manual_seed(0)
    unit = ac.functions.get("KAF").double()
    assert unit.a.shape == (1, 20)
    grid = np.linspace(-2, 2, 20)
    rate = 1 / (6 * (4 / 19) ** 2)
    kernel = np.exp(-rate * (X.numpy()[:, None] - grid) ** 2)
    np.testing.assert_allclose(unit(X).detach().numpy(), kernel @ unit.a.detach().numpy()[0], atol=1e-12)


def test_ridge_regression_is_scikit_learns():
    ridge = pytest.importorskip("sklearn.kernel_ridge").KernelRidge
    grid = np.linspace(-2, 2, 20)[:, None]
    model = ridge(alpha=1e-2, kernel="rbf", gamma=1 / (6 * (4 / 19) ** 2)).fit(grid, np.tanh(grid[:, 0]))
    unit = ac.functions.get("KAF", start="tanh", ridge=1e-2)
    np.testing.assert_allclose(unit(X).detach().numpy(), model.predict(X.numpy()[:, None]), atol=1e-5)


def test_a_kernel_unit_starts_near_its_function():
    inside = X[X.abs() < 1.9]
    unit = ac.functions.get("KAF", start="elu")
    torch.testing.assert_close(unit(inside), torch.nn.functional.elu(inside), rtol=0, atol=0.02)


def test_first_heights_are_drawn_for_each_channel():
    torch.manual_seed(0)
    heights = ac.functions.get("KAF", num_parameters=200).a.detach()
    assert float(heights.std()) == pytest.approx(0.3, abs=0.02)
    assert not torch.equal(heights[0], heights[1])


def test_the_mixture_is_one_of_scipys_densities():
    unit = ac.functions.get("MoGU", n=2).double()
    with torch.no_grad():
        unit.a.copy_(torch.tensor([[0.3, -2.0]]))
        unit.m.copy_(torch.tensor([[-1.0, 0.5]]))
        unit.log_s.copy_(torch.tensor([[0.7, 2.0]]).log())
    x = X.numpy()
    wanted = 0.3 * stats.norm.pdf(x, -1, 0.7) - 2 * stats.norm.pdf(x, 0.5, 2)
    np.testing.assert_allclose(unit(X).detach().numpy(), wanted, atol=1e-7)


@pytest.mark.parametrize("name", ["KAF", "MoGU"])
def test_channels_gradients_and_extreme_numbers(name):
    torch.manual_seed(0)
    unit = ac.functions.get(name, num_parameters=3, channel_dim=-1).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    whole = unit(x)
    for c in range(3):
        single = ac.functions.get(name).double()
        for mine, theirs in zip(single.parameters(), unit.parameters(), strict=True):
            mine.data.copy_(theirs.data[c : c + 1])
        torch.testing.assert_close(single(x[:, c]), whole[:, c])
    assert torch.autograd.gradcheck(unit, (x,))
    far = torch.tensor([-3e38, 3e38], requires_grad=True)
    y = ac.functions.get(name)(far)
    (slope,) = torch.autograd.grad(y.sum(), far)
    assert y.tolist() == [0, 0] and slope.tolist() == [0, 0]


def test_what_is_refused():
    with pytest.raises(ac.errors.InputError, match="two points"):
        ac.functions.KernelUnit(points=1)
    with pytest.raises(ac.errors.InputError, match="positive reach"):
        ac.functions.KernelUnit(reach=-1.0)
    with pytest.raises(ac.errors.InputError, match="one Gaussian"):
        ac.functions.GaussianMixtureUnit(0)


def test_the_mixture_starts_at_the_nearest_heights():
    unit = ac.functions.get("MoGU").double()
    x = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    residual = (unit(x) - torch.relu(x)).detach() * torch.exp(-x.square() / 2)
    bumps = torch.exp(-(x - torch.tensor([[-2.0], [0.0], [2.0]], dtype=torch.float64)).square() / 2)
    size = float((bumps * torch.relu(x) * torch.exp(-x.square() / 2)).sum())
    assert (bumps @ residual / size).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
