"""Measures of dictionaries: known ends, and the same numbers from definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import actinium as ac
import architectures
from actinium.core.errors import ActiniumWarning, InputError
from actinium.features.splicing import splice

F = ac.features
SITE = "blocks.3.resid_post"


@pytest.fixture(scope="module")
def lm():
    return ac.load("world:lm")


@pytest.fixture(scope="module")
def texts():
    return ac.world.heldout_text("lm")[:6]


def identity(d):
    """Two ReLU latents for each coordinate: f = relu(x), relu(-x)."""
    sae = F.ReLUSAE(2 * d).build(d).eval()
    with torch.no_grad():
        eye = torch.eye(d)
        sae.W_enc.copy_(torch.cat([eye, -eye], 1))
        sae.W_dec.copy_(torch.cat([eye, -eye]))
    return sae


def nothing(d):
    sae = F.ReLUSAE(4).build(d).eval()
    with torch.no_grad():
        sae.b_enc.fill_(-1e9)
    return sae


@pytest.fixture(scope="module")
def trained(lm, texts):
    return F.TopKSAE(256, 16).fit(lm, sites=SITE, texts=texts, batch_size=128, rows=128 * 40, lr=2e-3)


def test_the_identity_recovers_everything_and_zero_nothing(lm, texts):
    whole, none = (F.evaluate(lm, SITE, make(128), texts) for make in (identity, nothing))
    assert float(whole["explained_variance"]) == pytest.approx(1, abs=1e-6)
    assert float(whole["ce_recovered"]) == pytest.approx(1, abs=1e-4)
    assert float(whole["kl_spliced"]) == pytest.approx(0, abs=1e-5)
    assert float(whole["cosine"]) == pytest.approx(1, abs=1e-6) and float(whole["bias"]) == pytest.approx(1, abs=1e-6)
    assert float(none["ce_recovered"]) == pytest.approx(0, abs=1e-6)
    assert float(none["l0"]) == 0 and float(none["dead"]) == 1
    assert float(none["ce_spliced"]) == pytest.approx(float(none["ce_ablated"]), abs=1e-6)


def test_a_constant_mean_explains_no_variance(lm, texts):
    sae = nothing(128)
    rec = lm.record(texts, SITE)
    rows = rec[SITE][rec.mask]
    with torch.no_grad():
        sae.b_dec.copy_(rows.mean(0))
    found = F.evaluate_rows(sae, rows)
    assert float(found["explained_variance"]) == pytest.approx(0, abs=1e-5)


def test_numbers_are_those_of_their_definitions_whatever_the_batches(trained, lm, texts):
    rec = lm.record(texts, SITE)
    x = rec[SITE][rec.mask]
    with torch.no_grad():
        out = trained(x)
    error, f = (x - out.xhat).double(), out.f
    found = F.evaluate_rows(trained, x, batch_size=7)
    expected = {
        "l0": (f > 0).sum(1).double().mean(),
        "l1": f.double().sum(1).mean(),
        "mse": error.square().sum(1).mean(),
        "explained_variance": 1 - error.square().sum() / (x - x.mean(0)).double().square().sum(),
        "variance_explained": 1 - error.var(0).sum() / x.double().var(0).sum(),
        "cosine": torch.nn.functional.cosine_similarity(x, out.xhat).mean(),
        "l2_ratio": (out.xhat.norm(dim=1) / x.norm(dim=1)).mean(),
        "dead": ((f > 0).sum(0) == 0).double().mean(),
        "dense": ((f > 0).double().mean(0) > 0.1).double().mean(),
    }
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    np.testing.assert_allclose(found["density"], (f > 0).double().mean(0))
    assert float(found["l0"]) <= 16


def test_losses_are_those_of_the_model_under_the_same_edit(trained, lm, texts):
    found = F.evaluate(lm, SITE, trained, texts, batch_size=4)
    assert float(found["ce_clean"]) == pytest.approx(float(lm.loss(texts).detach()), abs=1e-4)
    with lm.edit({SITE: ac.edits.Zero()}):
        assert float(found["ce_ablated"]) == pytest.approx(float(lm.loss(texts).detach()), abs=1e-4)
    with splice(lm, SITE, trained, error_term=False):
        assert float(found["ce_spliced"]) == pytest.approx(float(lm.loss(texts).detach()), abs=1e-4)
    mean = F.evaluate(lm, SITE, trained, texts, ablation="mean")
    assert float(mean["ce_ablated"]) != float(found["ce_ablated"])
    # A reconstruction may lower the loss, but not the divergence.
    assert float(found["ce_recovered"]) > 0.5 and 0 < float(found["kl_recovered"]) < 1


@pytest.mark.parametrize("site", ["blocks.2.resid_post", "blocks.2.attn.z", "blocks.2.mlp.post", "blocks.1.mlp.out"])
def test_with_the_error_term_logits_are_the_models_own(lm, texts, site):
    sae = F.JumpReLUSAE(64, normalize="layer_norm").build(lm.record(texts, site)[site][0, 0].numel()).eval()
    with torch.no_grad():
        clean = lm.logits(texts)
        with splice(lm, site, sae):
            torch.testing.assert_close(lm.logits(texts), clean, atol=2e-4, rtol=1e-4)
        with splice(lm, site, sae, error_term=False):
            assert float((lm.logits(texts) - clean).abs().max()) > 0.1


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "norm", "mean_norm"])
def test_ablating_a_latent_takes_its_share_away(lm, texts, normalize):
    sae = F.ReLUSAE(32, normalize=normalize).build(128).eval()
    sae.measure_scale(torch.randn(50, 128))
    rec = lm.record(texts, SITE)
    latent = int(sae.encode(rec[SITE][rec.mask]).sum(0).argmax())

    def without(f):
        f = f.clone()
        f[:, latent] = 0
        return f

    with splice(lm, SITE, sae, latents=without):
        found = lm.record(texts, SITE)[SITE]
    x = rec[SITE]
    unit = {
        "none": 1.0,
        "layer_norm": x.std(-1, keepdim=True),
        "norm": x.norm(dim=-1, keepdim=True) / 128**0.5,
        "mean_norm": 1 / float(sae.scale),
    }[normalize]
    expected = x - unit * sae.encode(x)[..., latent : latent + 1] * sae.W_dec[latent]
    torch.testing.assert_close(found[rec.mask], expected.detach()[rec.mask], atol=1e-3, rtol=1e-4)


def test_a_transcoder_is_put_in_the_place_of_what_it_stands_for(lm, texts):
    x, y = "blocks.2.resid_mid", "blocks.2.mlp.out"
    coder = F.SkipTranscoder(256, "topk", {"k": 16})
    coder.fit(lm, sites=[x, y], texts=texts, batch_size=128, rows=128 * 40, lr=2e-3)
    found = F.evaluate(lm, x, coder, texts, output=y)
    assert float(found["explained_variance"]) > 0.3
    with torch.no_grad(), splice(lm, x, coder, error_term=False, output=y):
        rec = lm.record(texts, [x, y])
    torch.testing.assert_close(rec[y][rec.mask], coder(rec[x][rec.mask]).xhat.detach(), atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="output="), splice(lm, x, coder):
        pass


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_other_architectures_are_spliced_too(family):
    model = architectures.shared(family)
    sae = identity(architectures.D_MODEL)
    ids = torch.randint(3, architectures.VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    assert (
        float(
            F.evaluate(model, "blocks.1.resid_post", sae, ac.core.inputs.Tokens(ids, ids > 0, torch.arange(2)))["mse"]
        )
        < 1e-6
    )


def test_what_does_not_fit_is_refused(lm, texts, trained):
    with pytest.raises(InputError, match="takes rows of width 64"):
        F.evaluate(lm, SITE, F.TopKSAE(8, 2).build(64), texts)
    with pytest.raises(InputError, match="takes rows of width 64"), splice(lm, SITE, F.TopKSAE(8, 2).build(64)):
        lm.logits(texts)
    with pytest.raises(LookupError, match="resid_post"):
        F.evaluate(lm, "blocks.3.residpost", trained, texts)
    with pytest.raises(InputError, match="two tokens"):
        F.evaluate(
            lm, SITE, trained, ac.core.inputs.Tokens(torch.ones(1, 1).long(), torch.ones(1, 1).bool(), torch.zeros(1))
        )
    with pytest.raises(InputError, match="'zero' or 'mean'"):
        F.evaluate(lm, SITE, trained, texts, ablation="resample")
    with pytest.raises(InputError, match="NaN"):
        F.evaluate_rows(trained, torch.full((3, 128), torch.nan))
    with pytest.raises(InputError, match="gave"), splice(lm, SITE, trained, latents=lambda f: f[:, :3]):
        lm.logits(texts)


def test_a_site_that_does_nothing_has_no_share_to_recover(lm, texts):
    with pytest.warns(ActiniumWarning, match="changes nothing"):
        assert np.isnan(ac.features.evaluation._share(0.0, 0.0))
