"""Divisive normalisation against closed forms, autograd and densities that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError
from actinium.functions.layers import divisive_normalisation
from actinium.functions.layers.divisive_normalisation import GDN, IGDN, GDNDensity, negentropy
from actinium.functions.layers.gaussianization import gaussianization_report


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_gdn(d, alpha=2.0, eps=0.5, seed=0):
    gdn = GDN(d, alpha, eps).double()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        gdn.gamma_of.v.copy_((0.3 * torch.rand(d, d, generator=random, dtype=torch.float64) + 2.0**-36).sqrt())
        gdn.beta_of.v.copy_((0.5 + torch.rand(d, generator=random, dtype=torch.float64)).sqrt())
    return gdn


def student_t(n, seed):
    random = np.random.default_rng(seed)
    return random.standard_normal((n, 4)) / np.sqrt(random.chisquare(4, (n, 1)) / 4)


def test_without_gamma_it_is_the_identity():
    x = normal(20, 3)
    torch.testing.assert_close(GDN(3, gamma=0.0).double()(x), x, rtol=1e-9, atol=1e-9)


def test_one_channel_is_the_closed_form_and_odd():
    z = normal(50, 1, seed=1) * 3
    gdn = GDN(1, gamma=1.0).double()
    torch.testing.assert_close(gdn(z), z / (1 + z**2).sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(gdn(-z), -gdn(z), rtol=0, atol=0)


def test_a_new_layer_divides_each_channel_by_its_own_square_and_igdn_multiplies():
    x = normal(2, 3, 4, 5)
    torch.testing.assert_close(GDN(3).double()(x), x / (1 + 0.1 * x**2).sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(IGDN(3).double()(x), x * (1 + 0.1 * x**2).sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(GDN(3, 1.0, 1.0).double()(x), x / (1 + 0.1 * x.abs()), rtol=1e-6, atol=0)


def test_gamma_has_the_output_first_and_pools_channels_only():
    gdn, x = random_gdn(3), normal(2, 3, 2, 2)
    got = gdn(x)
    for i in range(3):
        pooled = gdn.beta[i] + sum(gdn.gamma[i, j] * x[:, j] ** 2 for j in range(3))
        torch.testing.assert_close(got[:, i], x[:, i] / pooled.sqrt(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("alpha", "eps"), [(2.0, 0.5), (1.0, 1.0), (1.5, 0.6)])
def test_the_jacobian_is_that_of_autograd(alpha, eps):
    gdn, z = random_gdn(4, alpha, eps), normal(6, 4)
    for row, got in zip(z, gdn.jacobian(z), strict=True):
        expected = torch.autograd.functional.jacobian(lambda t: gdn(t[None])[0], row)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_the_jacobian_with_learnt_exponents_is_that_of_autograd():
    gdn = GDN(3, 1.7, 0.4, learn_exponents=True).double()
    z = normal(1, 3)
    expected = torch.autograd.functional.jacobian(lambda t: gdn(t[None])[0], z[0])
    torch.testing.assert_close(gdn.jacobian(z)[0], expected, rtol=1e-12, atol=1e-12)
    gdn(z).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in gdn.parameters())


@pytest.mark.parametrize("seed", range(5))
def test_the_fixed_point_recovers_what_was_normalised(seed):
    gdn, z = random_gdn(3, seed=seed), (torch.rand(200, 3, dtype=torch.float64) - 0.5) * 8
    found, _ = gdn.solve(gdn(z), tol=0.0, max_iter=400)
    torch.testing.assert_close(found, z, rtol=0, atol=1e-12)
    other = random_gdn(3, 1.5, 0.5, seed=seed)
    found, done = other.solve(other(z), tol=1e-13, max_iter=200)
    torch.testing.assert_close(found, z, rtol=0, atol=1e-10)
    assert bool(done.all())


def test_parameters_at_their_bound_can_still_rise():
    gdn = GDN(2, gamma=0.0)
    (1 - gdn(torch.ones(4, 2)).mean()).neg().backward()  # the loss falls where gamma rises
    with torch.no_grad():
        gdn.gamma_of.v.fill_(0.0)
    gdn.gamma_of.v.grad = None
    gdn(torch.ones(4, 2)).sum().backward()
    assert bool((gdn.gamma_of.v.grad < 0).all())  # a plain clamp gives 0
    gdn.gamma_of.v.grad = None
    (-gdn(torch.ones(4, 2)).sum()).backward()
    assert bool((gdn.gamma_of.v.grad == 0).all())


def test_half_precision_does_not_overflow():
    x = torch.full((1, 2), 1000.0, dtype=torch.float16)
    assert GDN(2)(x).dtype == torch.float16
    assert GDN(2)(x)[0, 0].item() == pytest.approx(1000 / math.sqrt(1 + 1e5), rel=2e-3)


def test_autocast_does_not_overflow_either():
    assert GDN(2).to("meta")(torch.zeros(1, 2, device="meta")).shape == (1, 2)
    x = torch.full((1, 2), 1000.0)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype):
            for given in (x, x.to(dtype)):
                assert GDN(2)(given)[0, 0].item() == pytest.approx(1000 / math.sqrt(1 + 1e5), rel=5e-3)
            assert GDN(2)(x + 0.7)[0, 0].item() == pytest.approx(1000.7 / math.sqrt(1 + 0.1 * 1000.7**2), rel=1e-6)


@pytest.fixture(scope="module")
def fitted():
    return GDNDensity(4, steps=300).fit(student_t(6000, 0))


def test_a_heavy_tailed_density_is_found(fitted):
    test = student_t(4000, 1)
    true = -stats.multivariate_t(shape=np.eye(4), df=4).logpdf(test).mean()
    apart = -stats.t(4).logpdf(test).sum(1).mean()
    train = student_t(6000, 0)
    gauss = -stats.multivariate_normal(train.mean(0), np.cov(train.T)).logpdf(test).mean()
    got = -float(fitted.log_prob(test).mean())
    assert got < apart < gauss and got - true < 0.05
    y = fitted.transform(test).numpy()
    assert np.abs(stats.kurtosis(y)).max() < 0.5 < np.abs(stats.kurtosis(test)).max()
    squares = np.corrcoef(y.T**2)[np.triu_indices(4, 1)]
    assert np.abs(squares).max() < 0.06


def through(density, row):
    y = row - density.mean_
    for stage in density.net_:
        y = stage.gdn((stage.h @ y)[None])[0]
    return y


def test_the_log_determinant_adds_up_over_stages():
    density = GDNDensity(3, stages=2, steps=5).fit(normal(100, 3))
    x = normal(4, 3, seed=3)
    for row, got in zip(x, density.log_prob(x), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda t: through(density, t), row)
        y = density.transform(row[None])[0]
        torch.testing.assert_close(through(density, row), y, rtol=0, atol=1e-12)
        expected = torch.linalg.slogdet(jacobian)[1] + float(stats.norm.logpdf(y).sum())
        assert float(got) == pytest.approx(float(expected), abs=1e-10)


def test_normal_data_leave_nothing_to_gain():
    x = normal(4000, 3, seed=5) @ torch.tensor([[1.0, 0.5, 0], [0, 2.0, 0], [0.3, 0, 1]], dtype=torch.float64)
    density = GDNDensity(3, steps=150).fit(x[:2000])
    gauss = stats.multivariate_normal(x[:2000].mean(0), np.cov(x[:2000].T)).logpdf(x[2000:]).mean()
    entropy = 0.5 * math.log((2 * math.pi * math.e) ** 3 * 4)
    got = -float(density.log_prob(x[2000:]).mean())
    assert got >= -gauss - 0.005
    assert got == pytest.approx(entropy, abs=0.06)


def test_negentropy_is_the_loss_and_that_of_normal_rows_their_entropy(fitted):
    x = torch.from_numpy(student_t(500, 2))
    y = fitted.transform(x)
    volume = fitted.log_prob(x) + 0.5 * y.square().sum(1) + 2 * math.log(2 * math.pi)
    assert negentropy(y, volume) == pytest.approx(-float(fitted.log_prob(x).mean()), rel=1e-12)
    assert negentropy(normal(200_000, 2), 0.0) == pytest.approx(math.log(2 * math.pi * math.e), abs=0.01)


def test_the_inverse_undoes_the_transform_and_samples_have_the_density(fitted):
    x = torch.from_numpy(student_t(300, 4))
    back = fitted.inverse(fitted.transform(x), tol=1e-13, max_iter=5000)
    there = back.isfinite().all(1)
    assert float(there.double().mean()) > 0.95
    torch.testing.assert_close(back[there], x[there], rtol=1e-6, atol=1e-6)
    drawn = fitted.sample(2000, seed=1)
    quantiles = np.quantile(np.abs(drawn.numpy()), [0.5, 0.9])
    np.testing.assert_allclose(quantiles, stats.t(4).ppf([0.75, 0.95]), rtol=0.08)


def test_what_has_no_inverse_is_nan_with_a_warning(fitted):
    with pytest.warns(ActiniumWarning, match="no inverse"):
        assert bool(fitted.inverse(torch.full((1, 4), 50.0)).isnan().all())


def test_denoising_normal_rows_is_wieners_filter():
    noisy = normal(4000, 2, seed=7) * math.sqrt(1.25)
    density = GDNDensity(2, steps=150).fit(noisy)
    got = density.denoise(noisy[:500], 0.5)
    torch.testing.assert_close(got, noisy[:500] * 0.8, rtol=0, atol=0.15)


def test_denoising_heavy_tails_beats_doing_nothing_and_wieners_filter():
    clean = torch.from_numpy(student_t(4000, 8))
    noisy = clean + normal(4000, 4, seed=9)
    density = GDNDensity(4, steps=200).fit(noisy)
    error = lambda guess: float((guess - clean).square().mean())  # noqa: E731
    shrink = clean.var() / noisy.var()
    assert error(density.denoise(noisy, 1.0)) < min(error(noisy), error(noisy * shrink))


def test_a_fitted_density_is_kept_in_a_file(fitted, tmp_path):
    x = student_t(10, 3)
    again = GDNDensity.load(fitted.save(tmp_path / "gdn.safetensors"))
    torch.testing.assert_close(again.log_prob(x), fitted.log_prob(x), rtol=0, atol=0)


def test_the_report_finds_what_each_map_leaves():
    x = student_t(3000, 0) @ np.array([[1, 0.8, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    found = gaussianization_report(x, steps=200).data
    at = lambda name, m: float(found[name].sel(map=m))  # noqa: E731
    assert at("information", "none") > at("information", "pca") > at("information", "gdn") + 0.005
    assert at("square_correlation", "zca") > 0.15 > at("square_correlation", "gdn")
    assert at("kurtosis", "ica") < 0.5 < at("kurtosis", "pca") and at("information", "ica") > at(
        "information", "radial"
    )
    spread = found["conditional_std"].std("cell")
    assert float(spread.sel(map="gdn")) < float(spread.sel(map="pca")) / 2
    independent = gaussianization_report(normal(4000, 3), ["none"]).data
    assert abs(float(independent["information"][0])) < 0.005 and float(independent["kurtosis"][0]) < 0.25


def test_zeros_of_independent_entries_carry_no_information():
    silent = normal(4000, 3).relu()
    found = gaussianization_report(silent, ["none"]).data
    assert abs(float(found["information"][0])) < 0.01
    # What is equal is still seen to be so.
    copied = gaussianization_report(torch.stack([silent[:, 0], silent[:, 0]], 1), ["none"]).data
    assert float(copied["information"][0]) > 0.5


def test_rows_are_taken_in_parts_that_fit_into_memory(monkeypatch):
    x = torch.from_numpy(student_t(50, 3))
    density = GDNDensity(4, stages=2, steps=3).fit(x)
    whole = density.log_prob(x), density.denoise(x, 0.3)
    monkeypatch.setattr(divisive_normalisation, "ENTRIES", 16 * 7)
    for one, other in zip(whole, (density.log_prob(x), density.denoise(x, 0.3)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_activations_of_a_language_model_become_more_normal():
    lm = ac.load("world:lm")
    texts = [
        f"The {animal} lives in the {place}." for animal in ("owl", "cat", "fox") for place in ("forest", "house")
    ] * 4
    x = lm.record(texts, "blocks.3.mlp.post")["blocks.3.mlp.post"].flatten(0, 1)[:, :4]
    x = x + 0.01 * x.std() * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))  # texts repeat
    found = gaussianization_report(x, ["none", "gdn"], steps=150).data
    assert float(found["kurtosis"][1]) < float(found["kurtosis"][0])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: GDN(0), "channels"),
        (lambda: GDN(2, gamma=-0.1), "gamma 0 or more"),
        (lambda: GDN(2, beta=0.0), "beta"),
        (lambda: GDN(3)(torch.zeros(2, 4)), "3 channels"),
        (lambda: GDN(3)(torch.zeros(2, 3, dtype=torch.long)), "floating"),
        (lambda: GDNDensity(2).fit(torch.zeros(19, 2)), "20 rows"),
        (lambda: GDNDensity(2).fit(torch.zeros(30, 2)), "fewer dimensions"),
        (lambda: GDNDensity(2).fit(torch.full((30, 2), math.nan)), "NaN"),
        (lambda: GDNDensity(2).fit(torch.zeros(30, 3)), "expected 2"),
        (lambda: GDNDensity(2).log_prob(torch.zeros(3, 2)), "not fitted"),
        (lambda: negentropy(torch.zeros(3, 2), torch.zeros(4)), "log_volume"),
        (lambda: gaussianization_report(normal(100, 2), ["pcs"]), "pca"),
        (lambda: gaussianization_report(normal(100, 1)), "two entries"),
        (lambda: gaussianization_report(torch.cat([normal(100, 1), torch.ones(100, 1)], 1), ["none"]), "one value"),
    ],
)
def test_what_is_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        wrong()


def test_exponents_that_cannot_be_undone_are_told_and_not_undone():
    with pytest.warns(ActiniumWarning, match="cannot be undone"):
        gdn = GDN(2, 2.0, 1.0)
    with pytest.raises(InputError, match="1 or less"):
        gdn.solve(torch.zeros(1, 2))
