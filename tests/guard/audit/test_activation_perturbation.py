"""Approximations in force: where they act, what they leave alone, and how they come in prompts and replies."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError, SiteError, UnknownNameError
from actinium.guard.audit.approximations.activation_perturbation import ActivationPerturbation, approximation_errors
from actinium.guard.audit.approximations.approximation_sites import approximation_sites, block_of
from architectures import shared, token_ids

TEXTS = ["When Ann and Bob went to the store, Bob gave a book to", "The film was dull, I hated it. I felt"]


@pytest.fixture(scope="module")
def lm():
    return ac.load("world:lm")


def logits(model, texts=TEXTS):
    with torch.no_grad():
        return model.logits(texts)


@pytest.mark.parametrize(
    ("kind", "none"), [("gaussian", 0.0), ("sparsify", 0.0), ("quantize", 16)], ids=["gaussian", "sparsify", "quantize"]
)
def test_no_strength_leaves_every_bit(lm, kind, none):
    clean = logits(lm)
    with ActivationPerturbation(["norm", "ffn"], kind, none).on(lm):
        assert torch.equal(logits(lm), clean)
    assert torch.equal(logits(lm), clean)


def test_noise_has_sigma_squared_times_width_per_token(lm):
    site = "module:model.layers.2.input_layernorm"
    clean = lm.record(TEXTS, site)[site]
    mask = lm.to_tokens(TEXTS).mask
    total = n = 0
    for seed in range(40):
        with ActivationPerturbation(site, "gaussian", 0.3, seed=seed).on(lm):
            noise = (lm.record(TEXTS, site)[site] - clean)[mask].double()
        total, n = total + float(noise.square().sum()), n + noise.numel()
    assert n > 1e5
    assert total / n * 128 == pytest.approx(0.3**2 * 128, rel=0.02)


def test_one_seed_gives_one_noise_and_two_passes_in_a_block_two(lm):
    noise = ActivationPerturbation("norm", "gaussian", 0.3, seed=4)
    with noise.on(lm):
        first, second = logits(lm), logits(lm)
    with noise.on(lm):
        assert torch.equal(logits(lm), first)
    assert not torch.equal(first, second)
    with noise.but(seed=5).on(lm):
        assert not torch.equal(logits(lm), first)


def test_fixed_noise_belongs_to_the_token_with_cache_padding_or_other_rows(lm):
    noise = ActivationPerturbation("norm", "gaussian", 0.5, resample=False)
    with noise.on(lm):
        options = {"max_new_tokens": 6, "do_sample": False}
        assert lm.generate(TEXTS, **options) == lm.generate(TEXTS, use_cache=False, **options)
        alone = logits(lm, TEXTS[1:])
        torch.testing.assert_close(logits(lm)[1, : alone.shape[1]], alone[0], atol=1e-4, rtol=0)
        assert torch.equal(logits(lm), logits(lm))


def test_noise_of_new_tokens_alone_leaves_the_prompt(lm):
    clean = logits(lm)
    noise = ActivationPerturbation("norm", "gaussian", 2.0, positions="new")
    with noise.on(lm):
        assert torch.equal(logits(lm), clean)
        changed = lm.generate(TEXTS, max_new_tokens=8, do_sample=False)
    plain = lm.generate(TEXTS, max_new_tokens=8, do_sample=False)
    assert [a.split()[0] for a in changed] == [b.split()[0] for b in plain]
    assert changed != plain


def test_sites_are_the_norms_of_blocks_and_never_the_final_one(lm):
    names = approximation_sites(lm, "norm")
    assert len(names) == 12
    assert all(name.endswith("layernorm") for name in names)
    assert approximation_sites(lm, "final_norm") == ["final_norm"]
    assert approximation_sites(lm, ["norm", "final_norm"], None)[-1] == "final_norm"
    assert [block_of(lm, n) for n in approximation_sites(lm, "ffn", [1, 4])] == [1, 4]
    assert len(approximation_sites(lm, "linear", [0])) == 7


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gpt_neox", "opt", "phi", "bloom", "stablelm"])
def test_norms_and_non_linearities_are_found_in_other_architectures(name):
    model = shared(name)
    ids = token_ids()
    norms, acts = approximation_sites(model, "norm"), approximation_sites(model, "ffn")
    per_block = len(norms) / model.n_layers
    assert per_block == (1 if name == "phi" else 2)  # norms of queries and keys are none of them
    assert len(acts) == model.n_layers
    clean = logits(model, ids)
    for site in (norms[0], acts[0]):
        with ActivationPerturbation(site, "gaussian", 0.5).on(model):
            assert not torch.equal(logits(model, ids), clean)
    for site, kind, strength in (("ffn", "sparsify", 0.5), ("norm", "quantize", 4), ("linear", "quantize", 4)):
        with ActivationPerturbation(site, kind, strength).on(model):
            assert bool(torch.isfinite(logits(model, ids)).all())


def test_output_of_a_plain_non_linearity_is_what_the_down_projection_reads():
    model, ids = shared("gpt2"), token_ids()
    site = approximation_sites(model, "ffn", [1])[0]
    found = model.record(ids, [site, "blocks.1.mlp.post"])
    torch.testing.assert_close(found[site], found["blocks.1.mlp.post"])


@pytest.mark.parametrize("site", ["ffn", "softmax", "norm"])
@pytest.mark.parametrize("name", ["lm", "gpt2"])
def test_polynomials_of_high_degree_give_the_models_own_logits(lm, name, site):
    # Of one length: what padding holds is outside the range that was calibrated.
    model, inputs = (lm, TEXTS[:1]) if name == "lm" else (shared("gpt2"), token_ids())
    clean = logits(model, inputs)
    errors = []
    for degree, pieces in ((1, 2), (9, 24)):
        poly = ActivationPerturbation(site, "poly", degree, pieces=pieces, bound=30.0)
        with (poly.fit(model, inputs) if site == "norm" else poly).on(model):
            errors.append(float((logits(model, inputs) - clean).abs().max()))
    assert errors[1] < 5e-3
    assert errors[0] > 10 * errors[1]


def test_calibrated_thresholds_are_quantiles_of_the_calibration(lm):
    sparse = ActivationPerturbation("ffn", "sparsify", 0.5, [2]).fit(lm, TEXTS)
    (site,) = sparse.names(lm)
    values = lm.record(TEXTS, site)[site][lm.to_tokens(TEXTS).mask].abs().flatten()
    assert sparse.calibration_[site]["threshold"] == pytest.approx(float(values.sort().values[int(0.5 * len(values))]))
    with sparse.on(lm):
        after = lm.record(TEXTS, site)[site][lm.to_tokens(TEXTS).mask]
    assert int((after == 0).sum()) == int(0.5 * len(values))


def test_smoothing_reads_the_weights_of_all_maps_behind_a_norm(lm):
    smooth = ActivationPerturbation("norm", "quantize", 4, [0], smooth=0.5).fit(lm, TEXTS)
    site = "module:model.layers.0.input_layernorm"
    x = lm.record(TEXTS, site)[site][lm.to_tokens(TEXTS).mask].abs().max(0).values
    attention = lm.module.model.layers[0].self_attn
    w = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).abs().max(0).values
    torch.testing.assert_close(smooth.calibration_[site]["scales"], (x / w.detach()).sqrt())


def test_errors_are_those_of_the_clean_activations(lm):
    rounded = ActivationPerturbation("norm", "quantize", 4)
    found = approximation_errors(lm, rounded, TEXTS)
    site = "module:model.layers.3.post_attention_layernorm"
    a = lm.record(TEXTS, site)[site][lm.to_tokens(TEXTS).mask].double()
    scale = a.abs().amax(-1, keepdim=True) / 7
    error = (a / scale).round() * scale - a
    at = found.data.sel(site=site)
    assert float(at["mean"]) == pytest.approx(float(error.mean()), abs=1e-5)
    assert float(at["std"]) == pytest.approx(float(error.std(correction=0)), rel=1e-3)
    assert float(at["relative"]) == pytest.approx(float((error.square().mean() / a.square().mean()).sqrt()), rel=1e-3)
    noise = approximation_errors(lm, ActivationPerturbation("norm", "gaussian", 0.2), TEXTS)
    assert noise["std"].values == pytest.approx(0.2, rel=0.1)
    assert abs(noise["skew"].values).max() < 0.3


def test_gradients_pass_through_noise_and_rounding():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = nn.LayerNorm(6), nn.Linear(6, 2)

        def forward(self, x):
            return self.out(self.norm(x))

    model = ac.load(Small())
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    for kind, strength in (("gaussian", 0.5), ("quantize", 3), ("sparsify", 0.5)):
        model.module.zero_grad()
        with ActivationPerturbation("module:norm", kind, strength).on(model):
            model.module(x).sum().backward()
        assert float(model.module.norm.weight.grad.abs().sum()) > 0


def test_bad_settings_are_refused(lm):
    with pytest.raises(InputError, match="sigma"):
        ActivationPerturbation(strength=-0.1).edits(lm)
    with pytest.raises(InputError, match="bits"):
        ActivationPerturbation(kind="quantize", strength=3.5).edits(lm)
    with pytest.raises(UnknownNameError, match="gaussian"):
        ActivationPerturbation(kind="gausian").edits(lm)
    with pytest.raises(SiteError):
        ActivationPerturbation("blocks.9.resid_post").edits(lm)
    with pytest.raises(SiteError):
        ActivationPerturbation("norm", layers=[77]).edits(lm)
    with pytest.raises(InputError, match="call fit first"):
        ActivationPerturbation("norm", "poly", 3).edits(lm)
    with pytest.raises(InputError, match="fit"):
        ActivationPerturbation("norm", "quantize", 4, smooth=0.5).edits(lm)
    with pytest.raises(InputError, match="no linear map"):
        ActivationPerturbation("ffn", "quantize", 4, smooth=0.5).fit(lm, TEXTS)
    with pytest.raises(InputError, match="needs no calibration"):
        ActivationPerturbation().fit(lm, TEXTS)
    with pytest.raises(InputError, match="go with"):
        ActivationPerturbation(clip=True).edits(lm)
    with pytest.raises(InputError, match="leave layers out"):
        ActivationPerturbation(strength={0: 0.1}, layers=[0]).edits(lm)
    with pytest.raises(InputError, match="function of a module"):
        ActivationPerturbation("blocks.0.resid_post", "poly", 3).edits(lm)
    with pytest.raises(SiteError, match="name them"):
        ActivationPerturbation().edits(ac.load(nn.Sequential(nn.Linear(2, 2))))
