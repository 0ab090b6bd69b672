"""Moments, norms and outlier channels equal their definitions computed on the whole."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from actinium import measure
from actinium.core.errors import InputError, SiteError
from actinium.core.model import Model


def whole(model: Model, inputs, site: str) -> torch.Tensor:
    """All real positions of a site, (n, features) float64."""
    rec = model.record(inputs, site)
    value = rec[site].double()
    return value[rec.mask] if rec.mask is not None else value.flatten(0, -2)


def test_kurtosis_equals_scipys():
    x = torch.distributions.StudentT(5.0).sample((400, 3)).double()
    assert float(measure.excess_kurtosis(x)) == pytest.approx(scipy.stats.kurtosis(x.flatten()))
    np.testing.assert_allclose(measure.excess_kurtosis(x, dim=0), scipy.stats.kurtosis(x, axis=0))
    with pytest.raises(InputError):
        measure.excess_kurtosis(torch.zeros(0))


def test_moments_of_a_model_leave_padding_out(language_model, ragged):
    got = measure.activation_moments(language_model, ragged, batch_size=2)
    for layer in range(language_model.n_layers):
        x = whole(language_model, ragged, f"blocks.{layer}.resid_post")
        row = got.data.sel(layer=layer)
        assert int(row["count"]) == x.numel() == 16 * language_model.d_model
        assert float(row["mean"]) == pytest.approx(x.mean().item(), abs=1e-6)
        assert float(row["std"]) == pytest.approx(x.std(correction=0).item(), rel=1e-6)
        assert float(row["kurtosis"]) == pytest.approx(scipy.stats.kurtosis(x.flatten()), rel=1e-5)
        np.testing.assert_allclose(row["feature_kurtosis"], scipy.stats.kurtosis(x), rtol=1e-4, atol=1e-6)


def test_moments_of_a_cnn_take_channels_as_features(cnn, images):
    got = measure.activation_moments(cnn, images)
    assert got.data["site"].values.tolist() == ["module:0", "module:3", "module:7"]
    x = cnn.record(images, "module:3")["module:3"].double()
    np.testing.assert_allclose(got["feature_mean"].sel(site="module:3")[:10], x.mean((0, 2, 3)), atol=1e-6)
    assert np.isnan(got["feature_mean"].sel(site="module:0")[6:]).all()


def test_nan_activations_are_counted_not_fatal(gpt2, ragged):
    import actinium.core.edits as edits

    broken = edits.Replace(torch.zeros(1)).at(units=[0])
    broken.value = torch.tensor([torch.nan])
    with gpt2.edit({"blocks.1.resid_post": broken}):
        got = measure.activation_moments(gpt2, ragged)
    assert got["nan"].values.tolist()[:2] == [0, 16]
    assert np.isfinite(got["mean"].values[:2]).all()


def test_norm_growth_equals_the_norms_of_the_recording(any_transformer):
    model, inputs = any_transformer
    got = measure.norm_growth(model, inputs, batch_size=2)
    means = []
    for layer in range(model.n_layers):
        norms = model.record(inputs, f"blocks.{layer}.resid_post")[f"blocks.{layer}.resid_post"].norm(dim=-1)
        means.append(norms.mean().item())
        row = got.data.sel(layer=layer)
        assert float(row["mean"]) == pytest.approx(norms.mean().item(), rel=1e-5)
        assert float(row["median"]) == pytest.approx(np.median(norms.numpy()), rel=2**-7)
        assert float(row["first"]) == pytest.approx(norms[:, 0].mean().item(), rel=1e-5)
    assert float(got["growth"][1]) == pytest.approx(means[1] / means[0], rel=1e-5)


def test_growth_rate_of_an_exponential_is_its_base():
    assert measure.growth_rate([3 * 1.05**i for i in range(12)]) == pytest.approx(1.05)
    assert measure.growth_rate([1.0, np.nan, 4.0]) == pytest.approx(2.0)
    with pytest.raises(InputError, match="two positive norms"):
        measure.growth_rate([1.0])


def test_channel_kurtosis_is_one_for_equal_channels_and_their_number_for_one():
    assert float(measure.channel_kurtosis(torch.ones(50))) == pytest.approx(1.0)
    assert float(measure.channel_kurtosis(torch.eye(50)[3])) == pytest.approx(50.0)


def test_a_planted_channel_is_the_only_outlier(gpt2, ragged):
    import actinium.core.edits as edits

    rms = whole(gpt2, ragged, "blocks.1.resid_post").square().mean(0).sqrt()
    with gpt2.edit({"blocks.1.resid_post": edits.Add(torch.full((1,), 60.0)).at(units=[5])}):
        got = measure.outlier_channels(gpt2, ragged)
    found = got["outlier"].sel(layer=1).values
    assert np.flatnonzero(found).tolist() == [5]
    rest = np.delete(np.arange(gpt2.d_model), 5)
    np.testing.assert_allclose(got["rms"].sel(layer=1).values[rest], rms[rest], rtol=1e-5)
    assert got["share"].sel(layer=1, channel=5) == 1
    assert bool(got["systematic"].sel(channel=5))


def test_outlier_peak_is_the_distance_from_the_mean_in_standard_deviations(gpt2, ragged):
    got = measure.outlier_channels(gpt2, ragged, at="blocks.0.resid_post")
    x = whole(gpt2, ragged, "blocks.0.resid_post")
    expected = ((x - x.mean()).abs() / x.std(correction=0)).amax(0)
    np.testing.assert_allclose(got["peak"][0], expected, rtol=1e-5)


def test_a_site_that_does_not_exist_and_a_bare_module_are_refused(gpt2, ragged):
    with pytest.raises(SiteError, match="resid_post"):
        measure.activation_moments(gpt2, ragged, at="blocks.0.resid_pots")
    with pytest.raises(InputError, match=r"ac\.load"):
        measure.activation_moments(gpt2.module, ragged)


def test_equal_runs_have_equal_provenance_and_numbers_whatever_the_batches(gpt2, ragged):
    one, two = (measure.activation_moments(gpt2, ragged, batch_size=b) for b in (1, None))
    assert one.provenance == two.provenance
    np.testing.assert_allclose(one["kurtosis"], two["kurtosis"], rtol=1e-9)
