"""Scores of latents from their definitions, and the amplification as the official hook does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import actinium as ac
import architectures
from actinium.core.errors import ActiniumWarning, InputError, SiteError, UnknownNameError
from actinium.features.latent_amplification import steer_with_latent
from actinium.features.latent_contexts import top_contexts
from actinium.features.steering_scores import input_score, lens_tokens, output_score, select_steering_features

SITE = "blocks.1.resid_post"
IDS = torch.tensor([[1, 5, 6, 7, 8]])


def made(kind=ac.features.ReLUSAE, d=32, seed=0, **options):
    """A dictionary with drawn weights of which some latents are active."""
    sae = kind(24, seed=seed, **options).build(d).eval()
    random = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(d, 24, generator=random))
        sae.b_dec.copy_(torch.randn(d, generator=random) * 0.1)
        if sae.normalize in ("mean_norm", "mean_square"):
            sae.scale.fill_(0.7)
    return sae


@pytest.fixture(scope="module")
def gpt2():
    return architectures.shared("gpt2")


KINDS = [
    (ac.features.ReLUSAE, {}),
    (ac.features.TopKSAE, {"k": 4}),
    (ac.features.JumpReLUSAE, {}),
    (ac.features.ReLUSAE, {"normalize": "mean_norm"}),
    (ac.features.ReLUSAE, {"normalize": "layer_norm"}),
    (ac.features.TopKSAE, {"k": 4, "normalize": "norm"}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_last_position_gets_the_decoded_raised_latent_and_the_clean_error(gpt2, kind, options):
    sae, latent, factor = made(kind, **options), 3, 1.7
    clean = gpt2.record(IDS, SITE)[SITE]
    with steer_with_latent(gpt2, SITE, sae, latent, factor):
        steered = gpt2.record(IDS, SITE)[SITE]
    assert torch.equal(steered[:, :-1], clean[:, :-1])
    x = clean[0, -1]
    with torch.no_grad():
        f = sae.encode(x[None])[0]
        raised = f.clone()
        raised[latent] += factor * f.max()
        # Decoding, with the row's own normalisation undone, written out.
        if sae.normalize == "layer_norm":
            unit = x.std() + 1e-5
        elif sae.normalize == "norm":
            unit = x.norm() / 32**0.5
        else:
            unit = 1 / sae.scale if sae.normalize == "mean_norm" else 1.0
        want = x + (raised - f) @ sae.W_dec * unit
        if sae.normalize in ("none", "mean_norm"):
            error = x - sae.decode(f)
            assert torch.allclose(want, sae.decode(raised) + error, atol=1e-5)
    assert f.max() > 0
    assert torch.allclose(steered[0, -1], want, atol=1e-5)


def test_factor_zero_changes_no_logit(gpt2):
    with torch.no_grad(), steer_with_latent(gpt2, SITE, made(), 3, 0.0):
        steered = gpt2.logits(IDS)
    assert torch.allclose(steered, gpt2.logits(IDS), atol=1e-5)


def test_with_padding_the_last_token_of_each_text_is_steered(lm):
    site, sae = "blocks.3.resid_post", made(d=128)
    texts = ["Ron has the job", "Gary keeps"]
    tokens = lm.to_tokens(texts)
    with torch.no_grad():
        plain = lm.logits(tokens)
        with steer_with_latent(lm, site, sae, [2, 5], 1.0):
            steered = lm.logits(tokens)
        for i, (text, latent) in enumerate(zip(texts, (2, 5), strict=True)):
            with steer_with_latent(lm, site, sae, latent, 1.0):
                alone = lm.logits(text)[0]
            last = int(tokens.mask[i].sum()) - 1
            assert torch.allclose(steered[i, : last + 1], alone, atol=1e-4)
            assert torch.allclose(steered[i, :last], plain[i, :last], atol=1e-4)
            assert not torch.allclose(steered[i, last], plain[i, last], atol=1e-2)


def test_in_generation_every_step_steers_what_is_last_with_and_without_a_cache(gpt2):
    sae, latent, factor = made(), 3, 0.8
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with steer_with_latent(gpt2, SITE, sae, latent, factor):
        cached = gpt2.generate(IDS, **options)
        plain = gpt2.generate(IDS, use_cache=False, **options)
        with gpt2.recording(SITE) as rec:
            gpt2.generate(IDS, **options)
    assert torch.equal(cached, plain)
    # Nothing below the site is steered, so each last token moves by the largest latent of the plain run there.
    x, last = gpt2.record(cached[:, :-1], SITE)[SITE][0], IDS.shape[1] - 1
    with torch.no_grad():
        move = factor * sae.encode(x).amax(1, keepdim=True) * sae.W_dec[latent]
    move[:last] = 0
    steered = rec[SITE][0]
    assert torch.allclose(steered, x + move, atol=1e-4)
    with steer_with_latent(gpt2, SITE, sae, latent, factor, mode="prefill"), gpt2.recording(SITE) as rec:
        gpt2.generate(IDS, **options)
    assert torch.allclose(rec[SITE][0, last], steered[last], atol=1e-5)
    # The first new token is the same one, for it follows from the same steered prompt; it is itself not steered.
    assert torch.allclose(rec[SITE][0, last + 1], x[last + 1], atol=1e-4)


def test_beams_of_a_prompt_have_its_latent(gpt2):
    sae, prompts = made(), torch.cat([IDS, IDS + 9])
    options = {"max_new_tokens": 3, "num_beams": 2, "do_sample": False, "eos_token_id": None}
    with steer_with_latent(gpt2, SITE, sae, [3, 8], 4.0):
        both = gpt2.generate(prompts, **options)
    for row, latent in enumerate((3, 8)):
        with steer_with_latent(gpt2, SITE, sae, latent, 4.0):
            assert torch.equal(gpt2.generate(prompts[row : row + 1], **options)[0], both[row])


def test_a_factor_that_makes_nan_is_stopped(gpt2):
    with steer_with_latent(gpt2, SITE, made(), 3, 1e38), pytest.raises(InputError, match="lower the strength"):
        gpt2.logits(IDS)


def test_lens_tokens_are_the_norm_and_unembedding_of_decoder_rows(gpt2):
    sae = made()
    with torch.no_grad():
        want = gpt2.module.lm_head(gpt2.module.transformer.ln_f(sae.W_dec)).topk(6).indices
    assert torch.equal(lens_tokens(gpt2, SITE, sae, k=6), want)
    units = made(d=48)
    with torch.no_grad():
        stream = units.W_dec @ gpt2.module.transformer.h[1].mlp.c_proj.weight
        want = gpt2.module.lm_head(gpt2.module.transformer.ln_f(stream)).topk(6).indices
    assert torch.equal(lens_tokens(gpt2, "blocks.1.mlp.post", units, k=6), want)


def test_output_scores_are_those_of_one_pass_for_each_latent(gpt2):
    sae = made()
    found = output_score(gpt2, SITE, sae, [4, 0, 9], IDS, k=3, amplification=5.0, batch_size=2)
    lens = lens_tokens(gpt2, SITE, sae, [4, 0, 9], 3)
    for i, latent in enumerate([4, 0, 9]):
        with torch.no_grad(), steer_with_latent(gpt2, SITE, sae, latent, 5.0):
            p = gpt2.logits(IDS)[0, -1].softmax(-1)
        order = p.argsort(descending=True).tolist()
        rank = min(order.index(int(t)) for t in lens[i])
        best = float(p[lens[i]].max())
        assert float(found["best_rank"][i]) == rank
        assert float(found["output_score"][i]) == pytest.approx((1 - rank / architectures.VOCAB) * best, abs=1e-5)
    scores = found["output_score"].values
    assert ((scores >= 0) & (scores <= 1)).all()
    alone = output_score(gpt2, SITE, sae, [9], IDS, k=3, amplification=5.0)
    assert float(alone["output_score"][0]) == pytest.approx(float(found["output_score"][2]), abs=1e-5)
    none = output_score(gpt2, SITE, sae, [4, 0], IDS, k=3, amplification=0.0)
    clean = gpt2.logits(IDS).detach()[0, -1].softmax(-1)
    assert float(none["probability"][0]) == pytest.approx(float(clean[lens[0]].max()), abs=1e-6)


def test_a_latent_that_writes_a_tokens_unembedding_after_the_last_block_scores_one(lm):
    site, token = f"blocks.{lm.n_layers - 1}.resid_post", 300
    sae = made(d=128)
    unembedding = lm.module.get_output_embeddings().weight.detach()
    norm = lm.module.model.norm.weight.detach()
    with torch.no_grad():
        # The row whose image under the final norm points along the unembedding of the token.
        row = unembedding[token] / norm
        sae.W_dec[0] = row / row.norm()
    found = output_score(lm, site, sae, [0], "Ron has the job", k=5, amplification=1000.0)
    assert token in found["lens_id"].values[0]
    alone = lm.unembed(sae.W_dec[:1]).detach().softmax(-1)[0]
    assert float(found["best_rank"][0]) == 0
    assert float(found["output_score"][0]) == pytest.approx(float(alone.max()), abs=1e-3)
    assert float(found["output_score"][0]) > 0.9


def test_the_input_score_is_the_share_of_contexts_at_lens_tokens():
    lens = torch.tensor([[1, 2], [3, 4], [5, 6]])
    tokens = np.array([[1, 2, 9, 9] * 3, [3] * 10 + [-1, -1], [5] * 9 + [-1] * 3])
    found = input_score(lens, tokens)
    assert found["input_score"].values[:2].tolist() == [0.5, 1.0]
    assert np.isnan(found["input_score"].values[2])
    assert found["contexts"].values.tolist() == [12, 10, 9]


def test_top_contexts_are_the_texts_with_the_largest_activation(lm):
    site, texts = "blocks.2.resid_post", ac.world.heldout_text("lm")[::16]
    sae = made(ac.features.TopKSAE, d=128, k=4)
    found = top_contexts(lm, site, sae, texts, [7, 2], k=6, batch_size=5)
    rec = lm.record(texts, site)
    with torch.no_grad():
        f = sae.encode(rec[site])
    f[~rec.mask] = 0
    f[:, 0] = 0
    for row, latent in enumerate([7, 2]):
        best = f[:, :, latent].max(1)
        order = best.values.argsort(descending=True)[:6]
        live = int((best.values[order] > 0).sum())
        values = found["value"].values[row]
        assert values[:live] == pytest.approx(best.values[order[:live]].numpy(), rel=1e-4)
        assert np.isnan(values[live:]).all() and (found["token"].values[row, live:] == -1).all()
        for rank in range(live):
            text, at = int(found["text"].values[row, rank]), int(found["position"].values[row, rank])
            assert float(f[text, at, latent]) == pytest.approx(values[rank], rel=1e-4)
            assert int(rec.tokens[text, at]) == found["token"].values[row, rank]


def test_contexts_of_a_store_are_those_of_its_model(lm, tmp_path):
    site, texts = "blocks.2.resid_post", ac.world.heldout_text("lm")[::16]
    sae = made(ac.features.TopKSAE, d=128, k=4)
    store = ac.store.create(tmp_path / "s", lm, texts, [site], dtype="float32", packing="pad", progress=False)
    stored, run = top_contexts(None, site, sae, store, k=6), top_contexts(lm, site, sae, texts, k=6)
    assert np.allclose(stored["value"].values, run["value"].values, rtol=1e-4, equal_nan=True)
    assert (stored["token"].values == run["token"].values).mean() > 0.99


def test_selection_keeps_what_reaches_the_threshold_from_the_best():
    scores = [0.5, np.nan, 0.005, 0.9, 0.01]
    assert select_steering_features(scores).tolist() == [3, 0, 4]
    assert select_steering_features(scores, quantile=0.5).tolist() == [3, 0]
    assert select_steering_features(scores, quantile=1.0).tolist() == [3]
    with pytest.raises(InputError, match="one is a number"):
        select_steering_features([np.nan, np.nan])
    with pytest.raises(InputError, match="between 0 and 1"):
        select_steering_features(scores, threshold=2.0)


def test_without_an_active_latent_there_is_no_score(gpt2):
    sae = made()
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    with pytest.warns(ActiniumWarning, match="no latent is active"):
        found = output_score(gpt2, SITE, sae, [0, 1], IDS, k=3)
    assert np.isnan(found["output_score"].values).all() and "no latent is active" in found.data.attrs["reason"]


def test_a_model_that_nobody_here_trained_is_scored(outside_data):
    folder = outside_data / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is absent")
    model = ac.load(folder)
    site = f"blocks.{model.n_layers - 2}.resid_post"
    sae = made(ac.features.TopKSAE, d=model.d_model, k=4)
    found = output_score(model, site, sae, prompt="From my experience,", k=20)
    scores = found["output_score"].values
    assert scores.shape == (24,) and ((scores >= 0) & (scores <= 1)).all() and scores.std() > 0
    assert len(select_steering_features(found, quantile=0.5)) == 12


def test_what_cannot_be_scored_is_refused(gpt2, lm):
    sae = made()
    with pytest.raises(InputError, match="latent 24 is out of range"):
        output_score(gpt2, SITE, sae, [24], IDS)
    with pytest.raises(InputError, match="32 wide, and the dictionary takes 16"):
        output_score(gpt2, SITE, made(d=16), [0], IDS)
    with pytest.raises(InputError, match="not the input of a linear map"):
        lens_tokens(gpt2, "blocks.1.mlp.pre", made(d=48), [0])
    with pytest.raises(InputError, match="prompt is empty"):
        output_score(gpt2, SITE, sae, [0], IDS[:, :0])
    with pytest.raises(InputError, match="empty"):
        output_score(lm, "blocks.2.resid_post", made(d=128), [0], "  ")
    with pytest.raises(InputError, match="one neutral prompt"):
        output_score(gpt2, SITE, sae, [0], IDS.expand(2, -1))
    with pytest.raises(InputError, match="k must be from 1 to 99"):
        output_score(gpt2, SITE, sae, [0], IDS, k=100)
    with pytest.raises(InputError, match="autoencoder is needed"):
        lens_tokens(gpt2, SITE, ac.features.Transcoder(8, settings={"k": 2}).build(32, 32))
    with pytest.raises(InputError, match="not fitted"):
        lens_tokens(gpt2, SITE, ac.features.TopKSAE(8, 2))
    with pytest.raises(SiteError, match="resid_post"), steer_with_latent(gpt2, "blocks.1.resid_pots", sae, 0):
        pass
    with pytest.raises(InputError, match="finite"), steer_with_latent(gpt2, SITE, sae, 0, float("nan")):
        pass
    with pytest.raises(UnknownNameError, match="prefill"), steer_with_latent(gpt2, SITE, sae, 0, mode="prefil"):
        pass
    with (
        pytest.raises(InputError, match="2 values do not fit a batch of 3"),
        steer_with_latent(gpt2, SITE, sae, [0, 1]),
    ):
        gpt2.logits(IDS.expand(3, -1))
    with pytest.raises(InputError, match="different latents"):
        input_score(output_score(gpt2, SITE, sae, [0], IDS, k=3), top_contexts(gpt2, SITE, sae, IDS, [1], k=2))
    with pytest.raises(InputError, match="contexts"):
        input_score(torch.zeros(2, 3), np.zeros((1, 4)))
    with pytest.raises(InputError, match="need a model"):
        top_contexts(None, SITE, sae, IDS)
