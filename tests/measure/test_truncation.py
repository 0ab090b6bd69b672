"""CETT, its thresholds, PPL-p% sparsity and the sparsing laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from actinium import measure
from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.model import Model

few = pytest.mark.filterwarnings("ignore:.*positions are few")


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor]:
    """Rectified activations (n, units) and a down projection (d, units)."""
    torch.manual_seed(0)
    return torch.randn(50, 30).relu() ** 2, torch.randn(12, 30)


def cett_by_hand(a, w, tau: float) -> float:
    """The definition in float64, position by position."""
    a, w = a.double().numpy(), w.double().numpy()
    total = 0.0
    for row in a:
        small = np.abs(row) * np.linalg.norm(w, axis=0) < tau
        total += np.linalg.norm(w[:, small] @ row[small]) / np.linalg.norm(w @ row)
    return total / len(a)


def test_cett_equals_its_definition(layer):
    for tau in (0.1, 1.0, 5.0):
        assert measure.cett(*layer, tau) == pytest.approx(cett_by_hand(*layer, tau), rel=1e-5)


def test_cett_is_zero_at_zero_and_one_at_infinity(layer):
    assert measure.cett(*layer, 0.0) == 0
    assert measure.cett(*layer, float("inf")) == pytest.approx(1)


@settings(max_examples=25)
@given(st.floats(0, 1.2), st.integers(0, 1000))
def test_the_threshold_satisfies_its_budget_and_the_next_candidate_does_not(c, seed):
    random = torch.Generator().manual_seed(seed)
    a, w = torch.randn(20, 16, generator=random), torch.randn(6, 16, generator=random)
    curve = measure.CettCurve(a, w)
    tau = curve.threshold(c)
    assert curve(tau) <= c
    larger = curve.candidates[curve.candidates > tau]
    if tau > 0 and len(larger):
        assert curve(float(larger[0])) > c


def test_without_a_budget_nothing_is_lost():
    a, w = torch.rand(40, 8) + 0.5, torch.rand(3, 8)
    tau = measure.CettCurve(a, w).threshold(0.0)
    assert measure.cett(a, w, tau) == 0
    assert (measure.output_magnitude(a, w) >= tau).all()
    with pytest.raises(InputError, match="c >= 0"):
        measure.CettCurve(a, w).threshold(-0.1)


def test_searches_that_share_a_curve_find_what_fresh_ones_do(layer):
    shared = measure.CettCurve(*layer)
    for c in (0.3, 0.05, 0.8, 0.2):
        assert shared.threshold(c) == pytest.approx(measure.CettCurve(*layer).threshold(c), rel=1e-6)


def test_thresholds_do_not_see_how_scale_is_split_between_unit_and_output(layer):
    a, w = layer
    s = torch.rand(30) * 8 + 0.25
    tau, other = measure.CettCurve(a, w).threshold(0.2), measure.CettCurve(a * s, w / s).threshold(0.2)
    assert tau == pytest.approx(other, rel=1e-3)
    assert measure.output_magnitude(a * s, w / s).ge(tau).float().mean() == pytest.approx(
        float(measure.output_magnitude(a, w).ge(tau).float().mean()), abs=1e-3
    )
    assert measure.activation_ratio(a * s, 0.5) != measure.activation_ratio(a, 0.5)


def test_positions_without_output_are_skipped_and_counted(layer):
    a, w = layer
    curve = measure.CettCurve(torch.cat([a, torch.zeros(3, 30)]), w)
    assert curve.skipped == 3
    assert curve(1.0) == pytest.approx(measure.cett(a, w, 1.0), rel=1e-5)
    with pytest.raises(InputError, match="zero"):
        measure.CettCurve(torch.zeros(3, 30), w)
    with pytest.raises(InputError, match="NaN"):
        measure.CettCurve(a * torch.nan, w)


def test_down_projection_has_one_column_per_unit(language_model, vit, ragged):
    for model in (language_model, vit):
        site = "blocks.1.mlp.post"
        w = measure.down_projection(model, site)
        assert w.shape == (model.d_model, model.sites(site)[0].sizes["d_mlp"])
    site = "blocks.1.mlp.post"
    rec = language_model.record(ragged.ids, [site, "blocks.1.mlp.out"])
    y = rec[site] @ measure.down_projection(language_model, site).T
    step = rec["blocks.1.mlp.out"] - y  # the bias, where there is one
    torch.testing.assert_close(step, step[:1, :1].expand_as(step), atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="linear map"):
        measure.down_projection(language_model, "blocks.0.resid_post")


def test_thresholds_zero_exactly_the_small_units_while_the_block_lasts(language_model, ragged):
    site = "blocks.1.mlp.post"
    thresholds = measure.cett_thresholds(language_model, ragged, 0.3, at=site)
    dense = language_model.record(ragged, site)[site]
    with measure.apply_thresholds(language_model, thresholds):
        sparse = language_model.record(ragged, site)[site]
    n = dense.abs() * measure.down_projection(language_model, site).norm(dim=0)
    torch.testing.assert_close(sparse, torch.where(n < thresholds[site], 0.0, dense))
    assert (sparse == 0).any()
    assert torch.equal(language_model.record(ragged, site)[site], dense)
    with measure.apply_thresholds(language_model, {site: 0.0}):
        assert torch.equal(language_model.record(ragged, site)[site], dense)
    with pytest.raises(InputError, match="negative"), measure.apply_thresholds(language_model, {site: -1.0}):
        pass


def test_largest_within_stops_at_the_first_failure():
    assert measure.largest_within(lambda c: c <= 0.3141) == pytest.approx(0.3141, abs=1e-4)
    assert measure.largest_within(lambda c: c <= 0.3141 or c > 0.6) == pytest.approx(0.3141, abs=1e-4)
    assert measure.largest_within(lambda c: True) == 1
    assert measure.largest_within(lambda c: False) == pytest.approx(0, abs=1e-4)


@few
def test_more_budget_keeps_fewer_units_and_is_not_overspent(stories, tales):
    results = [measure.ppl_p_sparsity(stories, tales, p=p, tol=1e-3, held_out=tales[:1]) for p in (0, 1, 5, 50)]
    ratios = [float(r["total_ratio"]) for r in results]
    assert sorted(ratios, reverse=True) == ratios and ratios[0] > ratios[-1]
    for result, p in zip(results, (0, 1, 5, 50), strict=True):
        assert float(result["ppl_sparse"]) <= float(result["ppl_dense"]) * (1 + p / 100) * (1 + 1e-6)
        assert np.isfinite(float(result["ppl_sparse_held_out"]))
    assert float(results[1]["ppl_dense"]) == pytest.approx(measure.perplexity(stories, tales))


@few
@pytest.mark.parametrize("rule", ["cett", "fat", "topk"])
def test_every_rule_keeps_its_budget_and_says_what_it_kept(stories, tales, rule):
    got = measure.ppl_p_sparsity(stories, tales, p=5, rule=rule, tol=1e-3)
    assert float(got["ppl_sparse"]) <= float(got["ppl_dense"]) * 1.05 * (1 + 1e-6)
    assert 0 < float(got["total_ratio"]) < 1
    kept = got["per_position"].values
    real = stories.to_tokens(tales).mask.numpy()
    assert (np.isnan(kept) == ~real[None].repeat(5, 0)).all()
    np.testing.assert_allclose(np.nanmean(kept, (1, 2)), got["ratio"], rtol=1e-5)


@few
def test_exact_zeros_are_free():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    x = torch.randn(400, 6)
    labels = net(x).argmax(-1)
    model = Model(net)
    got = measure.ppl_p_sparsity(model, x, p=0, at="module_in:2", labels=labels)
    zeros = 1 - measure.activation_ratio(net[:2](x))
    assert float(got["sparsity"][0]) >= zeros - 1e-9
    assert zeros > 0.3


@few
def test_models_in_training_mode_and_bad_arguments_are_refused(gpt2, vit, images, ragged):
    with pytest.raises(InputError, match="p >= 0"):
        measure.ppl_p_sparsity(gpt2, ragged, p=-1)
    with pytest.raises(InputError, match="cett, fat, topk"):
        measure.ppl_p_sparsity(gpt2, ragged, rule="relu")
    with pytest.raises(InputError, match="one label"):
        measure.ppl_p_sparsity(vit, images, labels=[1])
    with pytest.raises(InputError, match="training mode"):
        measure.ppl_p_sparsity(Model(nn.Sequential(nn.Linear(2, 2), nn.ReLU())), torch.zeros(2, 2))


def test_few_positions_are_said_to_be_few(gpt2, ragged):
    with pytest.warns(ActiniumWarning, match="16 positions are few"):
        measure.ppl_p_sparsity(gpt2, ragged, tol=0.1, grid=2)


PUBLISHED = {
    "relu": (
        {"alpha": 0.101, "b": -0.0151, "c": 3.20, "a0": 0.0614},
        {1: 0.1016, 10: 0.0788, 100: 0.0674, 400: 0.0642},
    ),
    "silu": ({"alpha": 0.479, "c": 0.102, "a0": 0.409}, {2: 0.3358, 10: 0.3751, 100: 0.3978, 400: 0.4032}),
}


@pytest.mark.parametrize("law", PUBLISHED)
def test_laws_give_the_published_values_and_are_recovered_from_them(law):
    parameters, values = PUBLISHED[law]
    curve = measure.SparsingLaw(law)
    curve.params_ = parameters
    for tokens, ratio in values.items():
        assert float(curve.predict(tokens)) == pytest.approx(ratio, abs=6e-5)
    tokens = np.geomspace(1, 400, 30)
    again = measure.SparsingLaw(law).fit(tokens, curve.predict(tokens))
    assert again.mae_ < 1e-6
    assert again.limit_ == pytest.approx(parameters["a0"], abs=2e-3)
    assert measure.SparsingLaw("logarithm").fit(tokens, curve.predict(tokens)).mae_ > 100 * again.mae_


def test_laws_refuse_what_they_cannot_fit():
    with pytest.raises(InputError, match="relu, silu"):
        measure.SparsingLaw("tanh").fit([1, 2, 3], [0.1, 0.1, 0.1])
    with pytest.raises(InputError, match="4 points"):
        measure.SparsingLaw().fit([1, 2, 3], [0.1, 0.1, 0.1])
    with pytest.raises(InputError, match="positive"):
        measure.SparsingLaw("silu").fit([0, 1, 2], [0.1, 0.1, 0.1])
    with pytest.raises(InputError, match="not fitted"):
        measure.SparsingLaw().predict(3)


def test_width_depth_law_finds_slope_and_bottleneck():
    x = np.linspace(10, 100, 19)
    law = measure.WidthDepthLaw().fit(x, 0.02 + 0.001 * np.minimum(x, 60))
    assert law.slope_ == pytest.approx(0.001, rel=0.01)
    assert law.bottleneck_ == pytest.approx(60, abs=1)
    assert float(law.predict(1000)) == pytest.approx(0.08, rel=0.01)
