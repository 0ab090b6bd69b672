"""MeLU and GaLU: where their triangles are, and that they are what their weights say."""

from __future__ import annotations

import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError

X = torch.linspace(-3, 9, 2401, dtype=torch.float64)

# Places and half-widths for a largest input of 1, as their authors print them.
MELU = ((2, 2), (1, 1), (3, 1), (0.5, 0.5), (1.5, 0.5), (2.5, 0.5), (3.5, 0.5))
GALU = ((1, 1), (0.5, 0.5), (2.5, 0.5), (0.25, 0.25), (1.25, 0.25), (2.25, 0.25), (3.25, 0.25))


def mexican(x, b, c):
    return (c - (x - b).abs()).clamp(min=0)


def gaussian(x, b, c):
    return mexican(x, b, c) + ((x - b - 2 * c).abs() - c).clamp(max=0)


CASES = pytest.mark.parametrize(("name", "places", "wavelet"), [("MeLU", MELU, mexican), ("GaLU", GALU, gaussian)])


def get(name, **settings):
    return ac.functions.get(name, **settings).double()


@CASES
def test_it_starts_as_relu(name, places, wavelet):
    torch.testing.assert_close(get(name)(X), torch.relu(X))


@CASES
@pytest.mark.parametrize("k", [4, 8])
def test_each_weight_adds_the_published_wavelet(name, places, wavelet, k):
    module = get(name, k=k)
    assert module.a.shape == (k - 1, 1)
    for j, (b, c) in enumerate(places[: k - 1]):
        with torch.no_grad():
            module.a.zero_()
            module.a[j] = 0.7
        torch.testing.assert_close(module(X).detach(), torch.relu(X) + 0.7 * wavelet(X, b, c))


@CASES
def test_wavelets_of_a_level_fill_the_interval_without_overlap(name, places, wavelet):
    module = get(name, k=8, m=3.0)
    for level in (slice(0, 1), slice(1, 3), slice(3, 7)):
        there = torch.stack([module.wavelet(X, *part) != 0 for part in module.parts[level]])
        assert there.sum(0).max() == 1
        covered = X[there.any(0)]
        assert float(covered.min()) == pytest.approx(0, abs=0.02) and float(covered.max()) == pytest.approx(6, abs=0.02)


@CASES
def test_channels_have_their_own_weights(name, places, wavelet):
    torch.manual_seed(0)
    module = get(name, num_parameters=3, channel_dim=1, slope=0.25)
    with torch.no_grad():
        module.a.normal_()
        module.slope.uniform_()
    x = torch.randn(4, 3, 6, dtype=torch.float64) * 2
    for i in range(3):
        v = x[:, i]
        y = torch.where(v >= 0, v, module.slope[i] * v)
        for a, (b, c) in zip(module.a[:, i], places, strict=False):
            y = y + a * wavelet(v, b, c)
        torch.testing.assert_close(module(x)[:, i], y)


@CASES
def test_gradients_and_extremes(name, places, wavelet):
    module = get(name)
    x = (torch.randn(9, dtype=torch.float64) * 2 + 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: module(t), (x,))
    module(x).sum().backward()
    assert module.a.grad.abs().sum() > 0
    top = torch.finfo(torch.float64).max
    y = module(torch.tensor([-torch.inf, -top, top, torch.inf], dtype=torch.float64))
    assert not y.isnan().any() and y[3] == torch.inf
    assert module.float()(X.bfloat16()).dtype == torch.bfloat16


@CASES
def test_a_saved_state_gives_the_same_function(name, places, wavelet):
    module, twin = get(name, k=8), get(name, k=8)
    with torch.no_grad():
        module.a.uniform_()
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(X), module(X))


@CASES
def test_bad_settings_are_refused(name, places, wavelet):
    with pytest.raises(InputError, match="two or more"):
        get(name, k=1)
    with pytest.raises(InputError, match="above 0"):
        get(name, m=0.0)
    with pytest.raises(InputError, match="2 channels"):
        get(name, num_parameters=2)(torch.zeros(3, 4))
