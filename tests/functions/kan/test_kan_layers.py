"""Layers of Kolmogorov-Arnold networks: bases against numpy and scipy, additivity, periods, sizes, finer grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import interpolate, special

from actinium.core.errors import InputError, UnknownNameError
from actinium.functions.kan.jacobi_layers import (
    FractionalKANLayer,
    PadeKANLayer,
    RationalJacobiKANLayer,
    WaveletKANLayer,
    jacobi_polynomials,
)
from actinium.functions.kan.kan_layers import ChebyshevKANLayer, FastKANLayer, FourierKANLayer, SplineKANLayer
from actinium.functions.kan.kan_network import KAN_LAYERS, KANNetwork, kan_layer
from actinium.functions.units.b_splines import knot_basis, spline_basis

X = torch.linspace(-3, 3, 61, dtype=torch.float64)


def made(name, in_dim=4, out_dim=3, **options):
    """A layer with drawn weights, in float64; FastKAN without its norm, which mixes the inputs."""
    torch.manual_seed(0)
    if name == "fast":
        options = {"norm": False} | options
    layer = kan_layer(name, in_dim, out_dim, **options).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return layer


def test_chebyshev_terms_are_cosines_of_multiples():
    layer = ChebyshevKANLayer(1, 1, order=6).double()
    n = torch.arange(7, dtype=torch.float64)
    wanted = torch.cos(n * torch.arccos(torch.tanh(X))[:, None])
    torch.testing.assert_close(layer.terms(X[:, None])[:, 0], wanted, rtol=0, atol=1e-6)


def test_a_chebyshev_layer_of_order_one_is_linear_in_tanh():
    layer = made("chebyshev", order=1)
    x = torch.randn(50, 4, dtype=torch.float64)
    c = layer.coefficients
    torch.testing.assert_close(layer(x), torch.tanh(x) @ c[..., 1] + c[..., 0].sum(0))


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (-0.5, -0.5), (1.3, -0.7), (2.0, 0.4)])
def test_jacobi_polynomials_are_scipys(a, b):
    u = torch.linspace(-1, 1, 31, dtype=torch.float64)
    found = jacobi_polynomials(u, 7, a, b)
    wanted = np.stack([special.eval_jacobi(n, a, b, u.numpy()) for n in range(8)], -1)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-10)


def test_special_cases_of_the_rational_layer():
    x = torch.linspace(-30, 30, 101, dtype=torch.float64)[:, None]
    u = (x / (x.square() + 4).sqrt())[:, 0].numpy()
    legendre = RationalJacobiKANLayer(1, 1, order=5, scale=2.0).double().terms(x)[:, 0].detach().numpy()
    np.testing.assert_allclose(legendre, np.polynomial.legendre.legvander(u, 5), atol=1e-6)
    other = RationalJacobiKANLayer(1, 1, order=5, a=-0.5, b=-0.5, scale=2.0).double()
    found = other.terms(x)[:, 0].detach().numpy()
    at_one = jacobi_polynomials(torch.ones(1, dtype=torch.float64), 5, -0.5, -0.5)[0].numpy()
    np.testing.assert_allclose(found / at_one, np.polynomial.chebyshev.chebvander(u, 5), atol=1e-6)


def test_the_map_of_the_fractional_layer():
    layer = FractionalKANLayer(1, 1, power=2.5).double()
    wanted = 2 * torch.sigmoid(X) ** 2.5 - 1
    torch.testing.assert_close(layer.mapped(X), wanted, rtol=1e-6, atol=1e-6)
    far = layer.mapped(torch.tensor([-1e6, 1e6], dtype=torch.float64))
    torch.testing.assert_close(far, torch.tensor([-1.0, 1.0], dtype=torch.float64))


def test_a_pade_layer_is_a_quotient_without_poles():
    layer = made("pade", 1, 1, order=4, below=2)
    u = torch.tanh(X / 2).numpy()
    p = np.polynomial.legendre.legval(u, layer.above[0, 0].detach().numpy())
    q = np.polynomial.legendre.legval(u, np.r_[0, layer.below[0, 0].detach().numpy()])
    np.testing.assert_allclose(layer(X[:, None])[:, 0].detach().numpy(), p / (1 + np.abs(q)), atol=1e-12)


@pytest.mark.parametrize("wavelet", ["mexican hat", "derivative of gaussian", "morlet"])
def test_wavelets_have_no_mean_and_move(wavelet):
    layer = WaveletKANLayer(1, 1, wavelet).double()
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.place.fill_(0.5)
        layer.log_scale.fill_(float(np.log(2.0)))
    x = torch.linspace(-40, 40, 8001, dtype=torch.float64)
    y = layer(x[:, None])[:, 0].detach()
    assert abs(float(torch.trapezoid(y, x))) < 1e-4  # the Morlet wavelet's mean is exp(-12.5), not 0
    with torch.no_grad():
        layer.place.zero_()
        layer.log_scale.zero_()
    torch.testing.assert_close(layer((x[:, None] - 0.5) / 2)[:, 0].detach(), y)


def test_splines_are_scipys_and_a_silu():
    layer = made("spline", 2, 3, grid=6, order=3)
    x = (2 * torch.rand(80, 2, dtype=torch.float64) - 1) * 0.999
    knots = -1 + (2 / 6) * np.arange(-3, 10)
    wanted = np.zeros((80, 3, 2))
    for o in range(3):
        for i in range(2):
            spline = interpolate.BSpline(knots, layer.coefficients[o, i].detach().numpy(), 3)
            silu = torch.nn.functional.silu(x[:, i]) * layer.base[o, i]
            wanted[:, o, i] = spline(x[:, i].numpy()) + silu.detach().numpy()
    np.testing.assert_allclose(layer.edge_outputs(x).detach().numpy(), wanted, atol=1e-12)
    far = spline_basis(torch.tensor([-3.5, 9.5, -1e9, 1e9], dtype=torch.float64), 6, 3)
    assert float(far.abs().max()) == 0


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_splines_on_a_grid_of_any_distances_are_scipys(order):
    knots = torch.tensor([[-1.0, -0.9, 0.2, 0.3, 2.0], [0.0, 1.0, 1.5, 3.5, 4.0]], dtype=torch.float64)
    x = torch.linspace(-1.5, 4.5, 211, dtype=torch.float64)[:, None].repeat(1, 2).requires_grad_()
    found = knot_basis(x, knots, order)
    (slope,) = torch.autograd.grad(found[..., 1].sum(), x)
    for i in range(2):
        beyond = float(knots[i, -1] - knots[i, 0]) / 4 * np.arange(1, order + 1)
        whole = np.r_[float(knots[i, 0]) - beyond[::-1], knots[i].numpy(), float(knots[i, -1]) + beyond]
        for j in range(4 + order):
            piece = interpolate.BSpline.basis_element(whole[j : j + order + 2], extrapolate=False)
            wanted = np.nan_to_num(piece(x[:, i].detach().numpy()))
            np.testing.assert_allclose(found[:, i, j].detach().numpy(), wanted, atol=1e-12)
            if j == 1 and order > 1:
                steep = np.nan_to_num(piece.derivative()(x[:, i].detach().numpy()))
                np.testing.assert_allclose(slope[:, i].numpy(), steep, atol=1e-10)
    uniform = torch.linspace(-1, 1, 5, dtype=torch.float64).repeat(2, 1)
    torch.testing.assert_close(knot_basis(x, uniform, order), spline_basis((x + 1) * 2, 4, order))


def test_a_grid_follows_the_density_of_the_data():
    layer = made("spline", 2, 3, grid=8)
    x = torch.stack([torch.linspace(0, 1, 257) ** 3, torch.linspace(-1, 1, 257)], 1).double()
    before = layer(x).detach()
    with pytest.raises(InputError, match="grid_eps"):
        layer.fit_range(x, 1.5)
    layer.fit_range(x, 0.0)
    np.testing.assert_allclose(layer.knots[0].numpy(), np.quantile(x[:, 0].numpy(), np.linspace(0, 1, 9)), atol=1e-6)
    assert not layer.uniform and float((layer(x) - before).detach().abs().max()) < 0.05
    fitted, coarse = layer(x).detach(), layer.knots.clone()
    layer.refine(16)  # each interval is cut in half: the same functions
    torch.testing.assert_close(layer(x).detach(), fitted, rtol=0, atol=1e-8)
    torch.testing.assert_close(layer.knots[:, ::2], coarse)
    twin = SplineKANLayer(2, 3, grid=8).double()
    twin.load_state_dict(layer.state_dict())
    torch.testing.assert_close(twin(x), layer(x))
    twin.load_state_dict(made("spline", 2, 3, grid=8).state_dict())
    assert twin.uniform and twin.knots.shape == (2, 9)
    layer.fit_range(x, 0.5)
    middle = (np.quantile(x[:, 0].numpy(), np.linspace(0, 1, 17)) + np.linspace(0, 1, 17)) / 2
    np.testing.assert_allclose(layer.knots[0].numpy(), middle, atol=1e-6)
    with pytest.raises(InputError, match="coincide"):
        layer.fit_range(torch.tensor([[0.0, 0.0]] * 50 + [[1.0, 1.0]], dtype=torch.float64), 0.0)


def test_radial_functions_sit_on_their_centres():
    layer = FastKANLayer(1, 1, centres=5, reach=2.0).double()
    terms = layer.terms(torch.tensor([[-1.0]], dtype=torch.float64))[0, 0]
    wanted = torch.exp(-torch.tensor([1.0, 0.0, 1.0, 4.0, 9.0], dtype=torch.float64))
    torch.testing.assert_close(terms[:5], wanted)
    torch.manual_seed(0)
    normed = FastKANLayer(6, 2)
    x = torch.randn(9, 6)
    torch.testing.assert_close(normed(x), normed(5 * x + 3), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="norm=False"):
        FastKANLayer(1, 2, norm=True)


@pytest.mark.parametrize("name", KAN_LAYERS)
def test_a_layer_is_additive(name):
    """Mixed second derivatives are 0, and the outputs are the sum of the edges."""
    layer = made(name)
    x = (2 * torch.rand(4, dtype=torch.float64) - 1) * 0.9
    for output in range(3):
        second = torch.autograd.functional.hessian(lambda v, o=output: layer(v)[o], x)
        mixed = second - torch.diag(torch.diagonal(second))
        assert float(mixed.abs().max()) < 1e-12
        assert float(second.abs().max()) > 1e-3
    rows = torch.rand(6, 4, dtype=torch.float64)
    total = layer.edge_outputs(rows).sum(-1)
    torch.testing.assert_close(layer(rows), total if layer.bias is None else total + layer.bias)
    torch.testing.assert_close(layer.curve(2, rows[:, 2]), layer.edge_outputs(rows)[..., 2])


@pytest.mark.parametrize("name", KAN_LAYERS)
def test_gradients_of_all_parameters_are_those_of_finite_differences(name):
    layer = made(name, 2, 2)
    x = (2 * torch.rand(3, 2, dtype=torch.float64) - 1) * 0.9
    names, values = zip(*[(n, p) for n, p in layer.named_parameters() if p.requires_grad], strict=True)

    def f(rows, *held):
        return torch.func.functional_call(layer, dict(zip(names, held, strict=True)), (rows,))

    assert torch.autograd.gradcheck(f, (x.requires_grad_(), *values))


def test_a_fourier_layer_has_a_period():
    layer = made("fourier", grid=4)
    x = torch.randn(20, 4, dtype=torch.float64)
    for i in range(4):
        moved = x.clone()
        moved[:, i] += 2 * np.pi
        torch.testing.assert_close(layer(moved), layer(x), rtol=0, atol=1e-12)


def test_damped_coefficients_fall_with_the_frequency():
    torch.manual_seed(0)
    drawn = FourierKANLayer(40, 40, grid=4, damped=True).coefficients.detach().std((0, 1, 2))
    torch.testing.assert_close(drawn * torch.arange(1.0, 5).square(), drawn[:1].expand(4), rtol=0.1, atol=0)


def test_counts_of_parameters():
    def count(m):
        return sum(p.numel() for p in m.parameters())

    assert count(ChebyshevKANLayer(30, 16, 3)) == 30 * 16 * 4
    assert count(FourierKANLayer(30, 16, 2)) == 2 * 2 * 30 * 16 + 16
    assert count(KANNetwork([30, 16], "chebyshev", 3, head=2)) == 1954
    assert count(KANNetwork([30, 16], "fourier", 2, head=2)) == 1970


def test_first_weights_have_the_published_spread():
    torch.manual_seed(0)
    c = ChebyshevKANLayer(50, 60, 3).coefficients
    assert float(c.detach().std()) == pytest.approx(1 / (50 * 4), rel=0.03)
    f = FourierKANLayer(50, 60, 4).coefficients
    assert float(f.detach().std()) == pytest.approx(1 / (50 * 4) ** 0.5, rel=0.03)


def test_a_finer_grid_that_holds_the_old_one_changes_nothing():
    layer = made("spline", 3, 2, grid=4)
    x = 2 * torch.rand(200, 3, dtype=torch.float64) - 1
    before = layer(x).detach()
    layer.refine(12)
    torch.testing.assert_close(layer(x).detach(), before, rtol=0, atol=1e-9)
    layer.refine(31)  # not a multiple: near, not equal
    assert layer.coefficients.shape == (2, 3, 34)
    assert float((layer(x) - before).detach().abs().max()) < 0.05
    with pytest.raises(InputError, match="finer"):
        layer.refine(31)
    twin = SplineKANLayer(3, 2, grid=4).double()
    twin.load_state_dict(layer.state_dict())
    torch.testing.assert_close(twin(x), layer(x))


def test_the_grid_covers_the_data():
    layer = made("spline", 2, 3, grid=8)
    x = torch.rand(300, 2, dtype=torch.float64) * torch.tensor([0.5, 1.0]) + torch.tensor([0.1, -0.5])
    before = layer(x).detach()
    layer.fit_range(x)
    torch.testing.assert_close(layer.knots[:, 0], x.amin(0))
    torch.testing.assert_close(layer.knots[:, -1], x.amax(0))
    assert float((layer(x) - before).detach().abs().max()) < 0.05  # finer there than before
    with pytest.raises(InputError, match="constant"):
        layer.fit_range(torch.ones(4, 2, dtype=torch.float64))


def test_a_pruned_edge_stays_silent_in_training():
    layer = made("pade")
    layer.drop(torch.tensor([[True, False, False, False]] + [[False] * 4] * 2))
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    x = torch.randn(8, 4, dtype=torch.float64)
    for _ in range(3):
        optimiser.zero_grad()
        layer(x).square().sum().backward()
        optimiser.step()
    assert float(layer.edge_outputs(x)[:, 0, 0].detach().abs().max()) == 0
    assert int(layer.kept().sum()) == 11


@pytest.mark.parametrize("name", KAN_LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_that_of_the_layer(name, dtype):
    torch.manual_seed(0)
    layer = kan_layer(name, 4, 3)
    x = torch.randn(9, 4).to(dtype)
    got = layer(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, layer(x.float()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("name", KAN_LAYERS)
def test_layers_refuse_what_does_not_fit(name):
    layer = kan_layer(name, 3, 2)
    with pytest.raises(InputError, match=r"\(\.\.\., 3\)"):
        layer(torch.zeros(2, 4))
    with pytest.raises(InputError, match="NaN"):
        layer(torch.full((2, 3), float("nan")))
    with pytest.raises(InputError, match="floating-point"):
        layer(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(InputError):
        kan_layer(name, 0, 2)
    if KAN_LAYERS[name][1] is not None:
        with pytest.raises(InputError):
            kan_layer(name, 2, 2, order=0)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: kan_layer("chebychev", 2, 2), UnknownNameError),
        (lambda: kan_layer("wavelet", 2, 2, order=3), InputError),
        (lambda: kan_layer("wavelet", 2, 2, wavelet="haar"), InputError),
        (lambda: kan_layer("pade", 2, 2, grid=3), InputError),
        (lambda: RationalJacobiKANLayer(2, 2, a=-1.0), InputError),
        (lambda: FractionalKANLayer(2, 2, power=0.0), InputError),
        (lambda: PadeKANLayer(2, 2, below=0), InputError),
        (lambda: made("spline").curve(7, X), InputError),
        (lambda: made("spline").drop(torch.ones(3, 4)), InputError),
        (lambda: made("spline").drop(torch.ones(4, 3, dtype=torch.bool)), InputError),
    ],
)
def test_what_cannot_be_is_refused(call, error):
    with pytest.raises(error):
        call()
