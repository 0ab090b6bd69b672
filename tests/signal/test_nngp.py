"""The kernel of wide networks equals closed forms, random networks and scikit-learn's Gaussian process regression."""

from __future__ import annotations

import math
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from actinium.core.errors import InputError
from actinium.signal.nngp import NNGPKernel, monte_carlo_kernel


@pytest.fixture(scope="module")
def rows():
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, x / x.norm(dim=1, keepdim=True) * 12**0.5


def test_the_first_layer_is_linear(rows):
    x, _ = rows
    assert torch.allclose(NNGPKernel(torch.tanh, 1, 1.3, 0.2)(x), 0.04 + 1.69 * x @ x.T / 12)


def test_relu_on_its_edge_keeps_every_variance_and_has_the_arc_cosine_kernel(rows):
    x, _ = rows
    layers = NNGPKernel(torch.relu, 6, math.sqrt(2), 0.0).layers(x)
    diagonal = layers.diagonal(dim1=1, dim2=2)
    assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-12)
    norm = diagonal[0].sqrt()
    c = (layers[0] / torch.outer(norm, norm)).clamp(-1, 1)
    expected = torch.outer(norm, norm) / math.pi * ((1 - c**2).sqrt() + c * (math.pi - torch.acos(c)))
    assert torch.allclose(layers[1], expected, atol=1e-7)


def test_the_variance_of_five_tanh_layers_is_that_of_the_card():
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x *= math.sqrt(32) / x.norm(dim=1, keepdim=True)
    assert float(NNGPKernel(torch.tanh, 5, 1.3, 0.2)(x)[0, 0]) == pytest.approx(0.5458, abs=5e-5)


@pytest.mark.parametrize("fn", [torch.tanh, F.gelu, F.elu, F.hardtanh, torch.relu, torch.erf, nn.LeakyReLU(0.3)])
def test_kernels_are_symmetric_and_positive(fn, rows):
    for x in rows:
        k = NNGPKernel(fn, 4, 1.2, 0.3)(x)
        assert torch.equal(k, k.T)
        assert float(torch.linalg.eigvalsh(k)[0]) > -1e-6 * float(k.max())


def test_a_block_equals_the_part_of_the_whole(rows):
    x, _ = rows
    for fn in (torch.tanh, torch.relu):
        kernel = NNGPKernel(fn, 4, 1.3, 0.2)
        assert torch.allclose(kernel(x[:25], x[25:]), kernel(x)[:25, 25:], atol=1e-7)


def test_closed_forms_equal_quadrature_in_deep_networks(rows):
    _, x = rows
    for fn, hidden in ((torch.relu, lambda t: t.clamp(min=0)), (torch.erf, lambda t: torch.erf(t))):
        a, b = (NNGPKernel(f, 12, 1.4, 0.1)(x) for f in (fn, hidden))
        assert (a - b).abs().max() < 1e-6


@pytest.mark.parametrize("fn", [torch.tanh, F.silu])
def test_random_networks_have_the_kernel_on_average(fn, rows):
    x = rows[0][:4]
    random = torch.Generator().manual_seed(0)
    found = monte_carlo_kernel(fn, 3, 1.3, 0.2, x, width=500, reps=60, generator=random)
    expected = NNGPKernel(fn, 3, 1.3, 0.2)(x)
    assert (found - expected).abs().max() < 0.06 * float(expected.max())


def test_three_hundred_layers_take_seconds():
    x = torch.randn(100, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x *= math.sqrt(20) / x.norm(dim=1, keepdim=True)
    start = time.process_time()
    k = NNGPKernel(torch.tanh, 300, 1.3041458400565116, 0.2)(x)
    assert time.process_time() - start < 20
    assert float(k[0, 0]) == pytest.approx(0.512078504, abs=1e-8)
    # On the edge the distance from 1 is about beta_q / l.
    c = k[0, 1:] / k[0, 0]
    assert (300 * (1 - c)).mean() == pytest.approx(7.08, rel=0.06)


def test_the_posterior_is_that_of_scikit_learn(rows):
    sklearn = pytest.importorskip("sklearn.gaussian_process")
    from sklearn.gaussian_process.kernels import PairwiseKernel

    x, _ = rows
    kernel = NNGPKernel(torch.tanh, 3, 1.3, 0.2)
    y = torch.stack([x[:, 0].sin(), x[:, 1]], 1)

    def metric(a, b, **_):
        return float(kernel(torch.tensor(a)[None], torch.tensor(b)[None]))

    few = x[:12]
    peer = sklearn.GaussianProcessRegressor(PairwiseKernel(metric=metric), alpha=0.01, optimizer=None)
    peer.fit(few.numpy(), y[:12].numpy())
    mean, covariance = peer.predict(x[12:16].numpy(), return_cov=True)
    got, cov = kernel.posterior(few, y[:12], x[12:16], noise=0.1)
    assert torch.allclose(got, torch.from_numpy(mean), atol=1e-6)
    assert torch.allclose(cov, torch.from_numpy(covariance[..., 0]), atol=1e-6)


def test_without_noise_the_posterior_passes_through_the_targets(rows):
    x, _ = rows
    mean, covariance = NNGPKernel(torch.erf, 3, 1.3, 0.2).posterior(x, x[:, 0], x)
    assert torch.allclose(mean, x[:, 0], atol=1e-6)
    assert covariance.abs().max() < 1e-6


def test_digits_are_regressed_better_than_by_their_mean():
    pytest.importorskip("sklearn")
    import actinium as ac

    train, test = (ac.world.digits.load(part) for part in ("train", "test"))
    x, y = train.images.flatten(1)[:200], nn.functional.one_hot(train.labels[:200], 10).double() - 0.1
    mean, _ = NNGPKernel(torch.relu, 3, math.sqrt(2), 0.1).posterior(x, y, test.images.flatten(1)[:100], noise=0.1)
    assert (mean.argmax(1) == test.labels[:100]).double().mean() > 0.8


def test_bad_kernels_and_inputs_are_refused(rows):
    x, _ = rows
    for depth in (0, 2.0, True):
        with pytest.raises(InputError, match="depth"):
            NNGPKernel(torch.tanh, depth, 1.0, 0.0)
    with pytest.raises(InputError, match="sw"):
        NNGPKernel(torch.tanh, 2, 0.0, 0.0)
    with pytest.raises(InputError, match="sb"):
        NNGPKernel(torch.tanh, 2, 1.0, -0.1)
    with pytest.raises(InputError, match="elementwise"):
        NNGPKernel(lambda t: torch.softmax(t, -1), 2, 1.0, 0.1)
    kernel = NNGPKernel(torch.tanh, 2, 1.0, 0.1)
    for bad in (torch.zeros(0, 3), torch.zeros(3), x.masked_fill(x > 2, float("nan"))):
        with pytest.raises(InputError, match="X1"):
            kernel(bad)
    with pytest.raises(InputError, match="features"):
        kernel(x, x[:, :5])
    with pytest.raises(InputError, match="targets"):
        kernel.posterior(x, x[:3, 0], x)
    with pytest.raises(InputError, match="singular"):
        kernel.posterior(torch.cat([x, x]), torch.cat([x, x])[:, 0], x)
    with pytest.raises(InputError, match="noise"):
        kernel.posterior(x, x[:, 0], x, noise=-1.0)
    with pytest.raises(InputError, match="float64"):
        NNGPKernel(torch.relu, 3000, 3.0, 0.0)(x)
