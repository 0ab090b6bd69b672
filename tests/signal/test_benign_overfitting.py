"""Interpolators go through their points, and the report names the kinds of overfitting that it was given."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from actinium.core.errors import InputError
from actinium.signal.benign_overfitting import KernelInterpolator, TwoClusters, benign_overfitting_report
from actinium.signal.ntk import analytic_ntk_relu

RELU = partial(analytic_ntk_relu, depth=2)


def unit(n, d, seed=0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True)


def interpolate(x, y):
    return KernelInterpolator(RELU).fit(x, y)


def test_the_interpolator_goes_through_its_points():
    x, y = unit(100, 20), torch.randn(100, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rule = KernelInterpolator(RELU).fit(x, y)
    assert float((rule.predict(x) - y).abs().max()) < 1e-6
    inverse = np.linalg.inv(RELU(x).numpy())
    assert rule.norm_ == pytest.approx(math.sqrt(np.trace(y.numpy().T @ inverse @ y.numpy())), rel=1e-6)
    one = KernelInterpolator(RELU).fit(x, y[:, 0])
    assert one.predict(x[:3]).shape == (3,)
    assert torch.allclose(one.predict(unit(5, 20, 3)), rule.predict(unit(5, 20, 3))[:, 0])


def test_with_a_ridge_it_is_kernel_ridge_regression():
    ridge = pytest.importorskip("sklearn.kernel_ridge")
    x, y, z = unit(40, 5), torch.randn(40, dtype=torch.float64), unit(9, 5, 2)
    peer = ridge.KernelRidge(alpha=0.3, kernel="precomputed").fit(RELU(x).numpy(), y.numpy())
    got = KernelInterpolator(RELU, ridge=0.3).fit(x, y)
    assert got.predict(z).numpy() == pytest.approx(peer.predict(RELU(z, x).numpy()), rel=1e-9)
    assert got.jitter_ == 0


def test_clusters_are_as_declared():
    task = TwoClusters(n=2000, test=50, separation=1.0, normalize=False)(4, 0.25, 0)
    assert int((task.noisy != task.y).sum()) == 500
    centre = (task.x * task.y[:, None]).mean(0)
    assert centre.numpy() == pytest.approx([1, 0, 0, 0], abs=0.08)
    # The best rule is sign(x_1), and scaling to unit length leaves it as it is.
    assert float((task.x[:, 0] * task.y <= 0).double().mean()) == pytest.approx(task.bayes_error, abs=0.03)
    scaled = TwoClusters(n=2000, test=50, separation=1.0)(4, 0.25, 0)
    assert torch.equal(torch.sign(scaled.x[:, 0]), torch.sign(task.x[:, 0]))
    assert torch.allclose(scaled.x.norm(dim=1), torch.ones(2000, dtype=torch.float64))


def test_fitted_noise_harms_in_the_plane_and_not_in_many_dimensions():
    found = benign_overfitting_report(interpolate, TwoClusters(), [0.1], [2, 20, 1000], seeds=range(2))
    assert (found["train_error"] == 0).all()
    accuracy = 1 - found["test_error"].sel(eta=0.1).values
    assert accuracy[0] < 0.98 < 0.985 < accuracy[1] and accuracy[2] >= 0.9975
    norms = found["norm"].sel(eta=0.1).values
    assert norms[0] > 50 and norms[1:] == pytest.approx([8, 7], rel=0.4)
    assert found["kind"].values.tolist() == ["tempered", "benign", "benign"]
    found.plot()
    assert benign_overfitting_report(interpolate, TwoClusters(), [0.1], [2, 20, 1000], seeds=range(2)) == found


def test_each_kind_is_named():
    data = TwoClusters(n=60, test=200)

    def recall(otherwise):
        """Remembers every training label, and says something else of other inputs."""

        def fit(x, y):
            def predict(z):
                near = torch.cdist(z, x)
                return torch.where(near.min(1).values < 1e-6, y[near.argmin(1)], otherwise(z))

            return predict

        return fit

    def kind(fit):
        return str(benign_overfitting_report(fit, data, [0.0, 0.2], [10])["kind"].values[0])

    assert kind(recall(lambda z: z[:, 0])) == "benign"
    assert kind(recall(lambda z: torch.where(torch.arange(len(z)) % 8 == 0, -z[:, 0], z[:, 0]))) == "tempered"
    assert kind(recall(lambda z: torch.where(torch.arange(len(z)) % 2 == 0, -z[:, 0], z[:, 0]))) == "catastrophic"
    assert kind(lambda x, y: lambda z: z[:, 0]) == "does not interpolate"


def test_nearest_neighbours_of_scikit_learn_overfit_temperately():
    neighbours = pytest.importorskip("sklearn.neighbors")

    def fit(x, y):
        return lambda z: torch.as_tensor(neighbours.KNeighborsClassifier(1).fit(x, y).predict(z))

    found = benign_overfitting_report(fit, TwoClusters(), [0.0, 0.1, 0.2], [5], seeds=range(3))
    # A test input takes over the flip of its neighbour: the excess is the share of flips.
    assert found["excess"].values[:, 0] == pytest.approx([0, 0.1, 0.2], abs=0.04)
    assert np.isnan(found["norm"]).all()
    assert found["kind"].values[0] == "tempered"


def test_bad_input_is_refused():
    x = unit(5, 3)
    with pytest.raises(InputError, match="one share"):
        benign_overfitting_report(interpolate, TwoClusters(), [], [2])
    with pytest.raises(InputError, match="eta"):
        benign_overfitting_report(interpolate, TwoClusters(), [0.5], [2])
    with pytest.raises(InputError, match="separation"):
        TwoClusters(separation=-1)
    with pytest.raises(InputError, match="one class"):
        benign_overfitting_report(interpolate, lambda d, eta, seed: TwoClusters(n=2)(d, eta, 1), [0.0], [2], range(1))
    with pytest.raises(InputError, match="400 finite values"):
        benign_overfitting_report(
            lambda x, y: lambda z: y if len(z) == len(x) else z * float("nan"), TwoClusters(), [0.0], [2]
        )
    with pytest.raises(InputError, match="5 finite targets"):
        KernelInterpolator(RELU).fit(x, torch.ones(4))
    with pytest.raises(InputError, match="no inverse"):
        KernelInterpolator(lambda a, b: -(a @ b.T)).fit(x, torch.ones(5))
    with pytest.raises(InputError, match="ridge"):
        KernelInterpolator(RELU, ridge=-1).fit(x, torch.ones(5))
    with pytest.raises(InputError, match="call fit"):
        KernelInterpolator(RELU).predict(x)
