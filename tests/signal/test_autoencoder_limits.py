"""Limits of two-layer autoencoders: published values, Monte Carlo, and encoders that reach them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError
from actinium.signal.autoencoder_limits import (
    autoencoder_lower_bound,
    autoencoder_risk,
    best_decoder,
    nonlinearity,
    rate_distortion,
)
from actinium.signal.two_layer_autoencoder import (
    TwoLayerAutoencoder,
    compression_report,
    optimal_encoder,
    random_encoder,
)

RATES = {0.25: 0.840845, 0.5: 0.681690, 1.0: 0.363380, 1.5: 0.275641, 2.0: 0.222031, 4.0: 0.124879}


def gaussian(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(d=20):
    values = torch.cat([torch.full((d // 2,), 4.0), torch.full((d // 2,), 0.5)]).double()
    return values / values.mean()


# Limits ---------------------------------------------------------------------------------------------------------


def test_limits_of_the_sign_are_the_published_ones():
    for r, value in RATES.items():
        assert autoencoder_lower_bound(r) == pytest.approx(value, abs=1e-6)
    assert np.allclose(autoencoder_lower_bound(list(RATES)), list(RATES.values()), atol=1e-6)
    assert autoencoder_lower_bound(1.0) == pytest.approx(1 - 2 / math.pi)
    assert autoencoder_lower_bound(1 + 1e-9) == pytest.approx(1 - 2 / math.pi)
    assert autoencoder_lower_bound(0.0) == 1


def test_limit_of_a_linear_map_is_what_is_left_out():
    for r in (0.0, 0.3, 1.0, 2.0):
        assert autoencoder_lower_bound(r, "linear") == pytest.approx(max(0, 1 - r))
    values = np.array([5.0, 3.0, 1.0, 1.0])
    assert autoencoder_lower_bound(0.5, "linear", values) == pytest.approx(2 / 4)  # the error of two components


def test_limits_lie_above_the_rate_distortion_function():
    r = np.linspace(0.01, 6, 200)
    assert (autoencoder_lower_bound(r) > rate_distortion(r)).all()
    assert rate_distortion(1.0) == 0.25
    assert rate_distortion(2.0) == 0.0625
    values = np.array([4.0, 1.0, 0.2])
    assert (autoencoder_lower_bound(r, "sign", values) > rate_distortion(r, values)).all()


def test_reverse_water_filling_equals_the_closed_form_of_two_eigenvalues():
    # At r = 1 both of (4, 1) are coded: D = sqrt(4 * 1) 2^-2; at r = 0.1 only the larger one, with 0.2 bits.
    assert rate_distortion(1.0, [4.0, 1.0]) == pytest.approx(2 / 4)
    assert rate_distortion(0.1, [4.0, 1.0]) == pytest.approx((4 * 2**-0.4 + 1) / 2)
    assert np.allclose(rate_distortion([0.0, 0.7], np.ones(5)), rate_distortion([0.0, 0.7]))


def test_equal_eigenvalues_give_the_white_limit():
    for r in (0.0, 0.33, 1.0, 1.7):
        assert autoencoder_lower_bound(r, "sign", np.full(7, 3.0)) == pytest.approx(3 * autoencoder_lower_bound(r))


def test_the_limit_of_a_spectrum_is_the_least_over_all_allocations():
    from scipy.optimize import minimize

    values, c = np.array([4.0, 2.0, 1.0, 0.1]), math.pi / 2 - 1
    for r in (0.75, 1.0, 2.0):
        seen = values[: min(4, int(4 * r))]
        found = minimize(
            lambda p, v=seen: (v * c / (p + c)).sum(),
            np.full(len(seen), 4 * r / len(seen)),
            bounds=[(0, None)] * len(seen),
            constraints={"type": "eq", "fun": lambda p, total=4 * r: p.sum() - total},
        )
        expected = (found.fun + values[len(seen) :].sum()) / 4
        assert autoencoder_lower_bound(r, "sign", values) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("n", [8, 20, 30])
def test_trained_encoders_come_near_the_limit_of_a_spectrum_and_not_below(n):
    values = spectrum()
    risk = optimal_encoder(20, n, covariance=values, steps=200)[1][-1]
    limit = autoencoder_lower_bound(n / 20, "sign", values)
    assert limit - 1e-9 <= risk < 1.03 * limit


# Risk -----------------------------------------------------------------------------------------------------------


def test_covariance_of_signs_is_the_arcsine_law():
    rho = 0.6
    x = gaussian(200_000, 2)
    y = torch.stack([x[:, 0], rho * x[:, 0] + math.sqrt(1 - rho**2) * x[:, 1]], 1)
    sigma = nonlinearity("sign")
    kernel = float(sigma.c1**2 * sigma.kernel(torch.tensor(rho, dtype=torch.float64)))
    assert kernel == pytest.approx(2 / math.pi * math.asin(rho), abs=1e-9)
    assert float((torch.sign(y[:, 0]) * torch.sign(y[:, 1])).mean()) == pytest.approx(kernel, abs=0.01)


@pytest.mark.parametrize("name", ["sign", "tanh", "erf"])
def test_hermite_coefficients_give_the_moments(name):
    sigma = nonlinearity(name)
    t = gaussian(400_000, 1)[:, 0]
    assert sigma.c1 == pytest.approx(float((t * sigma.function(t)).mean()), abs=5e-3)
    assert sigma.f1 == pytest.approx(float((sigma.function(t) ** 2).mean()) / sigma.c1**2, rel=1e-2)
    again = nonlinearity(sigma.function)
    assert (again.c1, again.f1) == pytest.approx((sigma.c1, sigma.f1), abs=1e-4)


def test_a_function_is_known_by_what_it_does_and_not_by_its_name():
    def linear(t):
        return t + 0.3 * t**3

    def sign(t):
        return torch.tanh(5 * t)

    u = torch.tensor(0.5, dtype=torch.float64)
    # t + 0.3 t^3 = 1.9 h_1 + 0.3 sqrt(6) h_3.
    assert float(nonlinearity(linear).kernel(u)) == pytest.approx(0.5 + 0.54 / 3.61 * 0.125, abs=1e-6)
    assert float(nonlinearity(sign).kernel(u)) < math.asin(0.5) - 1e-3


def test_the_kernel_of_erf_is_its_closed_form():
    sigma, u = nonlinearity("erf"), torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)
    # Williams, 1998: E[erf(s) erf(t)] = 2 / pi arcsin(2 u / 3) at unit variances.
    assert torch.allclose(sigma.c1**2 * sigma.kernel(u), 2 / math.pi * torch.asin(2 * u / 3), atol=1e-6)


def test_a_random_orthonormal_encoder_attains_the_limit():
    b = random_encoder(50, 25)
    assert torch.allclose(b @ b.T, torch.eye(25, dtype=torch.float64), atol=1e-12)
    assert float(autoencoder_risk(b)) == pytest.approx(0.6816901, abs=1e-6)
    assert float(autoencoder_risk(random_encoder(30, 30))) == pytest.approx(1 - 2 / math.pi, abs=1e-6)
    a = best_decoder(b)
    assert torch.allclose(a, b.T * math.sqrt(2 / math.pi), atol=1e-6)  # tied to the encoder


@pytest.mark.parametrize("activation", ["sign", "tanh", "linear"])
@pytest.mark.parametrize("white", [True, False])
def test_population_risk_is_the_monte_carlo_risk(activation, white):
    d, n = 12, 18
    b = gaussian(n, d, seed=1)
    covariance = None if white else spectrum(d)
    root = torch.ones(d, dtype=torch.float64) if white else covariance.sqrt()
    x = gaussian(200_000, d) * root
    reads = b / (b * root).norm(dim=1, keepdim=True)
    # A linear map of more units than dimensions has no unique decoder.
    a = b.T * 0.1 if activation == "linear" else best_decoder(b, activation, covariance)
    risk = float(autoencoder_risk(b, activation, a, covariance))
    measured = float(((x - nonlinearity(activation).function(x @ reads.T) @ a.T) ** 2).mean())
    assert measured == pytest.approx(risk, rel=5e-3)
    if activation != "linear":
        assert risk == pytest.approx(float(autoencoder_risk(b, activation, None, covariance)), abs=1e-9)
        worse = float(autoencoder_risk(b, activation, a + 0.05 * gaussian(d, n), covariance))
        assert worse > risk


def test_a_linear_map_reads_as_much_as_its_rows_span():
    b = gaussian(3, 8)
    for rows, rank in ((b, 3), (torch.cat([b, b]), 3), (gaussian(20, 8), 8)):
        assert float(autoencoder_risk(rows, "linear")) == pytest.approx(1 - rank / 8, abs=1e-9)
        a = best_decoder(rows, "linear")
        assert float(autoencoder_risk(rows, "linear", a)) == pytest.approx(1 - rank / 8, abs=1e-9)
    x = gaussian(300, 4)
    assert TwoLayerAutoencoder(8, "linear", steps=20, decoder="population").fit(x).risk(x) < 1e-9


def test_risk_does_not_depend_on_rotations_or_lengths_of_rows():
    b, q = gaussian(9, 6), torch.linalg.qr(gaussian(6, 6, seed=1)).Q
    risk = float(autoencoder_risk(b))
    assert float(autoencoder_risk(b @ q)) == pytest.approx(risk, abs=1e-12)
    assert float(autoencoder_risk(b * torch.rand(9, 1).double().add(0.1))) == pytest.approx(risk, abs=1e-12)


def test_the_gradient_of_the_risk_is_finite_and_that_of_differences():
    b = gaussian(5, 4).requires_grad_()
    assert torch.autograd.gradcheck(autoencoder_risk, (b,))
    twins = torch.cat([b[:1], b[:1]]).detach().requires_grad_()
    (grad,) = torch.autograd.grad(autoencoder_risk(twins), twins)
    assert bool(grad.isfinite().all())


def test_training_reaches_the_limit():
    for n, tolerance in ((10, 1e-3), (20, 1e-3), (30, 5e-3)):
        b, history = optimal_encoder(20, n, steps=250)
        limit = autoencoder_lower_bound(n / 20)
        assert history[0] > limit + 0.02
        assert limit - 1e-9 <= history[-1] < limit + tolerance
        assert torch.allclose(b.norm(dim=1), torch.ones(n, dtype=torch.float64))


# Estimator ------------------------------------------------------------------------------------------------------


def test_a_fitted_autoencoder_codes_in_bits_near_the_limit(tmp_path):
    mix = gaussian(8, 8, seed=3)
    x, fresh = gaussian(4000, 8) @ mix + 2.0, gaussian(4000, 8, seed=1) @ mix + 2.0
    model = TwoLayerAutoencoder(8, steps=0).fit(x)
    codes = model.encode(x)
    assert codes.shape == (4000, 8)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    assert model.risk(x) <= model.risk(fresh) == pytest.approx(1 - 2 / math.pi, abs=0.02)
    back = (model.decode(model.encode(fresh)) - model.mean_) @ model.basis_.T
    z = (fresh - model.mean_) @ model.basis_.T
    assert float(((z - back) ** 2).sum() / (z**2).sum()) == pytest.approx(model.risk(fresh))
    assert model.bits_per_dimension == 1
    model.save(tmp_path / "a.safetensors")
    again = TwoLayerAutoencoder.load(tmp_path / "a.safetensors")
    assert again.risk(fresh) == model.risk(fresh)
    assert again.history_ == model.history_


def test_tied_and_population_decoders_agree_where_rows_are_orthonormal():
    x = gaussian(20_000, 8)
    plain = TwoLayerAutoencoder(4, steps=0).fit(x).risk(x)
    for settings in ({"tied": True}, {"decoder": "population"}, {"tied": True, "decoder": "population"}):
        model = TwoLayerAutoencoder(4, steps=0, **settings).fit(x)
        assert model.risk(x) == pytest.approx(plain, abs=2e-3)
        assert torch.allclose(model.decoder_, model.encoder_.T * math.sqrt(2 / math.pi), atol=0.02)


def test_without_whitening_the_encoder_is_trained_for_the_spectrum():
    x = gaussian(20_000, 20) * spectrum().sqrt()
    found = {steps: TwoLayerAutoencoder(20, steps=steps).fit(x, whiten=False).risk(x) for steps in (0, 150)}
    limit = autoencoder_lower_bound(1.0, "sign", spectrum())
    assert limit - 0.01 < found[150] < found[0]


def test_directions_without_variance_are_left_out_with_a_warning():
    x = torch.cat([gaussian(500, 3), torch.ones(500, 1).double()], 1)
    with pytest.warns(ActiniumWarning, match="1 of 4 directions"):
        model = TwoLayerAutoencoder(3, steps=0).fit(x)
    assert model.basis_.shape == (3, 4)
    assert torch.allclose(model.decode(model.encode(x))[:, 3], torch.ones(500).double())


# Report ---------------------------------------------------------------------------------------------------------


def test_activations_of_the_shipped_model_come_near_the_limit():
    model = ac.load("world:lm")
    record = model.record(ac.world.heldout_text("lm")[:150], "blocks.3.resid_post")
    rows = record["blocks.3.resid_post"][record.mask]
    found = compression_report(rows, rates=(0.5, 1.0))
    assert found["units"].values.tolist() == [64, 128]
    assert np.allclose(found["test"], found["bound"], atol=0.03)
    assert (found["train"] < found["test"]).all()
    assert (found["random_gaussian"] > found["test"]).all()
    assert (found["rate_distortion"] < found["test"]).all()
    found.plot()


def test_a_report_on_gaussian_rows_is_at_the_limit_also_for_a_spectrum():
    x = gaussian(16_000, 20) * spectrum().sqrt()
    white = compression_report(x, rates=(0.5, 1.0))
    assert np.allclose(white["test"], white["bound"], atol=0.01)
    assert float(white["pca"][1]) == pytest.approx(0, abs=1e-9)
    assert float(white["sign_of_coordinates"]) == pytest.approx(1 - 2 / math.pi, abs=0.01)
    coloured = compression_report(x, rates=(1.0,), whiten=False, steps=150)
    assert np.allclose(coloured["test"], coloured["bound"], atol=0.015)
    top = spectrum()[:10].sum() / spectrum().sum()
    half = compression_report(x, rates=(0.5,), whiten=False)
    assert float(half["pca"][0]) == pytest.approx(1 - float(top), abs=0.01)


# Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nonlinearity(lambda t: t**2), "first Hermite coefficient is zero"),
        (lambda: nonlinearity(torch.cos), "first Hermite coefficient is zero"),
        (lambda: nonlinearity(torch.relu), "is not odd"),
        (lambda: nonlinearity("sing"), "did you mean 'sign'"),
        (lambda: nonlinearity(lambda t: t.sum()), "elementwise"),
        (lambda: autoencoder_lower_bound(-1), "not negative"),
        (lambda: autoencoder_lower_bound(math.nan), "finite"),
        (lambda: autoencoder_lower_bound(1, "sign", [0.0, 0.0]), "not all zero"),
        (lambda: rate_distortion(-1), "not negative"),
        (lambda: autoencoder_risk(torch.zeros(2, 3)), "reads no variance"),
        (lambda: autoencoder_risk(torch.ones(3)), "finite matrix"),
        (lambda: autoencoder_risk(torch.eye(3), decoder=torch.ones(2, 2)), "expected a decoder"),
        (lambda: autoencoder_risk(torch.eye(3), covariance=torch.ones(2)), "expected a finite covariance"),
        (lambda: autoencoder_risk(torch.eye(2), covariance=torch.tensor([1.0, -1.0])), "no negative eigenvalues"),
        (lambda: TwoLayerAutoencoder(20).fit(torch.randn(10, 5)), "too few for a decoder"),
        (lambda: TwoLayerAutoencoder(2).fit(torch.ones(10, 5)), "no variance"),
        (lambda: TwoLayerAutoencoder(2).fit(torch.full((10, 5), torch.nan)), "NaN"),
        (lambda: TwoLayerAutoencoder(2, decoder="best").fit(torch.randn(10, 5)), "decoder one of"),
        (lambda: TwoLayerAutoencoder(2).encode(torch.randn(10, 5)), "not fitted"),
        (lambda: TwoLayerAutoencoder(2, steps=0).fit(torch.randn(10, 5)).risk(torch.randn(3, 4)), "expected 5"),
        (lambda: optimal_encoder(3, 2, start="zero"), "start is"),
        (lambda: random_encoder(0, 2), "1 or more"),
        (lambda: compression_report(torch.randn(10, 3), rates=(0,)), "rates are positive"),
        (lambda: compression_report(torch.randn(2, 3)), "too few"),
        (lambda: compression_report(torch.randn(10, 3), held_out=1.0), "held_out"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
