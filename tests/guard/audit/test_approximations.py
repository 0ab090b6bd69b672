"""Sparsity, quantisation and polynomials that stand for exact activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from actinium.core.errors import InputError
from actinium.core.rounding import round_to_nearest
from actinium.guard.audit.approximations.replacements import (
    PiecewisePolynomial,
    best_clip,
    magnitude_quantile,
    smooth_quantize,
    smoothing_scales,
    sparsify,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(p=st.floats(0, 0.99), width=st.integers(1, 40))
def test_sparsify_puts_exactly_floor_p_d_zeros_at_each_token(p, width):
    x = normal(3, 5, width) + 0.0
    zeros = (sparsify(x, p) == 0).sum(-1)
    assert bool((zeros == int(p * width)).all())


@given(p=st.floats(0, 0.99))
def test_the_threshold_cuts_off_exactly_floor_p_n_entries(p):
    x = normal(7, 31)
    cut = sparsify(x, p, magnitude_quantile(x, p))
    assert int((cut == 0).sum()) == int(p * x.numel())
    assert torch.equal(cut[cut != 0], x[cut != 0])


def test_sparsify_drops_the_smallest_magnitudes():
    assert sparsify(torch.tensor([[3.0, -0.1, 0.2, -4.0]]), 0.5).tolist() == [[3.0, 0.0, 0.0, -4.0]]


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_error_of_rounding_is_half_a_step_at_most_and_a_step_over_root_twelve_on_average(bits, symmetric):
    x = torch.rand(4, 50_000, generator=torch.Generator().manual_seed(1)) * 2 - 1
    error = (round_to_nearest(x, bits, symmetric=symmetric) - x).double()
    levels = 2 ** (bits - 1) - 1 if symmetric else (2**bits - 1) / 2
    step = x.abs().max() / levels
    assert float(error.abs().max()) <= float(step) / 2 * 1.01
    assert float(error.square().mean().sqrt()) == pytest.approx(float(step) / 12**0.5, rel=0.03)


def test_asymmetric_rounding_equals_a_published_formula_and_keeps_zero():
    x = torch.tensor([[0.0, 0.3, 1.7, 2.0]])
    step = 2.0 / 15
    expected = torch.round(x / step) * step
    torch.testing.assert_close(round_to_nearest(x, 4, symmetric=False), expected)
    assert round_to_nearest(x, 4, symmetric=False)[0, 0] == 0


def test_sixteen_bits_give_the_same_bits():
    x = normal(3, 8)
    assert smooth_quantize(x, 16) is x


def test_smoothing_scales_are_the_papers_formula_and_help_against_one_large_channel():
    x, w = normal(200, 16), normal(24, 16, seed=1)
    x[:, 3] *= 50
    expected = x.abs().max(0).values ** 0.5 / w.abs().max(0).values ** 0.5
    torch.testing.assert_close(smoothing_scales(x, w), expected)
    plain, smooth = smooth_quantize(x, 6), smooth_quantize(x, 6, scales=expected)
    others = [i for i in range(16) if i != 3]
    errors = [(one - x)[:, others].square().mean() for one in (plain, smooth)]
    assert errors[1] < errors[0] / 4
    torch.testing.assert_close(smoothing_scales(x, w, 0.0), 1 / w.abs().max(0).values)


def test_a_clip_helps_where_one_value_stretches_the_range():
    x = normal(64, 256)
    x[:, 0] = 8.0
    options = {"per": "token"}
    clip = best_clip(x, 3, **options)
    errors = [float((smooth_quantize(x, 3, clip=c) - x).square().sum()) for c in (clip, 1.0)]
    assert clip < 1
    assert errors[0] < errors[1]


@pytest.mark.parametrize("function", [nn.functional.silu, nn.functional.gelu, torch.exp])
def test_a_polynomial_of_more_pieces_or_a_higher_degree_is_nearer(function):
    outside = "zero" if function is torch.exp else "relu"
    low, high = (-8.0, 0.0) if function is torch.exp else (-8.0, 8.0)
    x = torch.linspace(low, high, 999, dtype=torch.float64)

    def error(degree, pieces):
        return float((PiecewisePolynomial(function, low, high, degree, pieces, outside)(x) - function(x)).abs().max())

    assert error(3, 8) < error(1, 8) / 5
    assert error(3, 8) < error(3, 2) / 5
    assert error(5, 16) < 1e-4


@given(coefficients=st.lists(st.floats(-2, 2), min_size=4, max_size=4), pieces=st.integers(1, 5))
def test_a_polynomial_of_the_same_degree_is_met_exactly(coefficients, pieces):
    def cubic(x):
        return sum(c * x**i for i, c in enumerate(coefficients))

    x = torch.linspace(-2, 3, 101, dtype=torch.float64)
    torch.testing.assert_close(PiecewisePolynomial(cubic, -2, 3, 3, pieces)(x), cubic(x), atol=1e-10, rtol=0)


def test_outside_the_interval_a_polynomial_is_zero_and_identity():
    curve = PiecewisePolynomial(nn.functional.silu, -4, 4)
    assert curve(torch.tensor([-5.0, 5.0])).tolist() == [0.0, 5.0]
    edge = PiecewisePolynomial(torch.tanh, -4, 4, outside="edge")
    np.testing.assert_allclose(edge(torch.tensor([-50.0, 50.0])), np.tanh([-4, 4]), atol=1e-3)


def test_polynomials_have_gradients():
    x = torch.tensor([0.4], requires_grad=True)
    PiecewisePolynomial(nn.functional.silu, -4, 4, 5, 16)(x).backward()
    y = torch.tensor([0.4], requires_grad=True)
    nn.functional.silu(y).backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-3, rtol=0)


def test_bad_settings_are_refused():
    x = normal(3, 4)
    for call in (
        lambda: sparsify(x, 1.0),
        lambda: sparsify(x, -0.1),
        lambda: magnitude_quantile(x * torch.nan, 0.5),
        lambda: magnitude_quantile(x[:0], 0.5),
        lambda: round_to_nearest(x, 1),
        lambda: round_to_nearest(x, 4, clip=0.0),
        lambda: smoothing_scales(x, x[:, :2]),
        lambda: smoothing_scales(x, x, 1.5),
        lambda: PiecewisePolynomial(torch.exp, 1, 1),
        lambda: PiecewisePolynomial(torch.exp, 0, 1, 0),
        lambda: PiecewisePolynomial(torch.exp, 0, 1, outside="wall"),
        lambda: PiecewisePolynomial(torch.rsqrt, -1, 1),
    ):
        with pytest.raises(InputError):
            call()
