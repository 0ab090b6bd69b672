"""Attribution of attention latents: sums that are exact, on many architectures, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import actinium as ac
import architectures
from actinium.core.edits import Fn
from actinium.core.errors import InputError, SiteError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.features.attention_attribution import direct_feature_attribution, head_attribution
from actinium.features.latent_effects import latent_effects
from actinium.features.prefix_induction import prefix_induction
from actinium.features.recursive_attribution import recursive_attribution

F = ac.features
LAYER = 2
NAMES = ("gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "phi3", "falcon", "bloom", "mixtral", "bert")


def width_of(model, layer=LAYER):
    (site,) = model.sites(f"blocks.{layer}.attn.z")
    return site.sizes["head"] * site.sizes["d_head"]


def dictionary(width, kind=F.ReLUSAE, m=24, dtype=torch.float32, **settings):
    """Random weights, biases that are not zero."""
    options = {"k": 6} if kind is F.TopKSAE else {}
    sae = kind(m, **options, **settings).build(width).eval()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(width, m, generator=random) * width**-0.5)
        sae.b_dec.copy_(0.2 * torch.randn(width, generator=random))
        if sae.b_enc is not None:
            sae.b_enc.copy_(0.2 * torch.randn(m, generator=random))
        sae.scale.fill_(1.7 if settings.get("normalize") == "mean_norm" else 1.0)
    return sae.to(dtype)


def padded():
    """Two texts of 7 and 5 tokens, the second padded on the left."""
    ids = architectures.token_ids()
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :2] = False
    return Tokens(ids.masked_fill(~mask, 0), mask, torch.arange(2))


def test_shares_of_heads_sum_to_one_and_are_norms_of_blocks():
    sae = dictionary(12)
    with torch.no_grad():
        sae.W_dec[0] = torch.tensor([3.0, 4, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0])
    found = head_attribution(sae, 3, top=2)
    np.testing.assert_allclose(found["share"].sum("head"), 1.0, atol=1e-12)
    np.testing.assert_allclose(found["share"].sel(latent=0), [0.5, 0.5, 0.0])
    best = found["share"].values[:, 2].argsort()[::-1][:2]
    assert found["top_latent"].sel(head=2).values.tolist() == best.tolist()
    with torch.no_grad():
        sae.W_dec[0] = 0
    assert np.isnan(head_attribution(sae, 3)["share"].sel(latent=0)).all()


@pytest.mark.parametrize("name", NAMES)
def test_contributions_sum_to_the_pre_activation(name):
    model = architectures.shared(name)
    sae = dictionary(width_of(model))
    found = direct_feature_attribution(model, LAYER, sae, padded(), [4, 9], [-1, 3])
    z = model.record(padded(), f"blocks.{LAYER}.attn.z")[f"blocks.{LAYER}.attn.z"].flatten(2)
    rows = torch.stack([z[0, 6], z[1, 2 + 3]])
    expected = (rows - sae.b_dec) @ sae.W_enc + sae.b_enc
    total = found["contribution"].sum(["head", "source"]) + found["constant"]
    np.testing.assert_allclose(total, [expected[0, 4].item(), expected[1, 9].item()], atol=1e-4)
    np.testing.assert_allclose(found["remainder"], 0, atol=1e-4)
    assert not found["contribution"].sel(row=1).values[:, 5:].any()
    by_head = torch.einsum("rhd,rhd->rh", rows.unflatten(1, (4, -1)), sae.W_enc.T[[4, 9]].unflatten(1, (4, -1)))
    np.testing.assert_allclose(found["by_head"], by_head.detach(), atol=1e-4)


@pytest.mark.parametrize("normalize", ["mean_norm", "norm", "layer_norm"])
@pytest.mark.parametrize("kind", [F.ReLUSAE, F.TopKSAE, F.GatedSAE])
def test_normalised_rows_are_attributed_exactly_in_float64(normalize, kind):
    model = Model(architectures.build("gpt2").double())
    sae = dictionary(width_of(model), kind, dtype=torch.float64, normalize=normalize)
    found = direct_feature_attribution(model, LAYER, sae, padded(), 5)
    np.testing.assert_allclose(found["remainder"], 0, atol=1e-12)
    assert np.abs(found["by_source"]).max() > 1e-3


def test_padding_and_its_side_change_nothing():
    model = architectures.shared("gpt2")
    sae = dictionary(width_of(model))
    ids = architectures.token_ids()
    alone = direct_feature_attribution(model, LAYER, sae, ids[1:, 2:], 3)
    left = direct_feature_attribution(model, LAYER, sae, padded(), 3)
    rolled = Tokens(padded().ids.roll(-2, 1), padded().mask.roll(-2, 1), torch.arange(2))
    right = direct_feature_attribution(model, LAYER, sae, Tokens(rolled.ids[1:], rolled.mask[1:], rolled.rows[:1]), 3)
    for found in (left["contribution"].values[1:, :, :5], right["contribution"].values[:, :, :5]):
        np.testing.assert_allclose(found, alone["contribution"].values, atol=1e-5)
    assert left["token"].values[1].tolist() == [*[str(int(i)) for i in ids[1, 2:]], "", ""]


def test_attention_to_one_token_alone_gives_one_source():
    model = architectures.shared("llama")
    sae = dictionary(width_of(model))

    def third(pattern):
        return torch.zeros_like(pattern).index_fill(-1, torch.tensor([2]), 1.0)

    with model.edit({f"blocks.{LAYER}.attn.pattern": Fn(third)}):
        found = direct_feature_attribution(model, LAYER, sae, architectures.token_ids(), 3)
    assert (found["by_source"].values != 0).tolist() == [[False, False, True, False, False, False, False]] * 2
    np.testing.assert_allclose(found["remainder"], 0, atol=1e-5)


def test_the_source_of_a_known_induction_head_is_the_token_after_the_previous_occurrence():
    made = ac.world.compiled.build("induction")
    sae = dictionary(width_of(made.model, 1))
    found = direct_feature_attribution(made.model, 1, sae, ["c a b e a"], 3)
    by_source = found["contribution"].sel(row=0, head=1).values
    # <bos> c a b e a: head 1 looks at b, the token after the earlier a.
    assert abs(by_source[3]) > 1e-2
    np.testing.assert_allclose(np.delete(by_source, 3), 0, atol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "phi3", "falcon", "mixtral"])
def test_earlier_parts_sum_to_the_sources_and_nothing_is_left(name):
    model = architectures.shared(name)
    sae = dictionary(width_of(model))
    whole = direct_feature_attribution(model, LAYER, sae, padded(), 4)
    found = recursive_attribution(model, LAYER, sae, padded(), 4)
    np.testing.assert_allclose(found["remainder"], 0, atol=1e-4)
    np.testing.assert_allclose(found["by_source"], whole["by_source"], atol=1e-4)
    assert found["component"].values.tolist() == ["embed", "a0", "m0", "a1", "m1", "bias", "stream"]
    np.testing.assert_allclose(found["by_component"].sel(component="stream"), 0, atol=1e-4)
    assert np.abs(found["by_component"].values[:, :5]).min() > 1e-6


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_part_counts_as_the_modules_own_norm_and_projection_say(name):
    # Llama's norm and softmax are float32 whatever the model is.
    tolerance = 1e-10 if name == "gpt2" else 1e-6
    module = architectures.build(name).double()
    model = Model(module)
    sae = dictionary(width_of(model), dtype=torch.float64)
    ids = architectures.token_ids(1)
    found = recursive_attribution(model, LAYER, sae, ids, 4)
    np.testing.assert_allclose(found["remainder"], 0, atol=tolerance)
    block = (module.transformer.h if name == "gpt2" else module.model.layers)[LAYER]
    sites = [f"blocks.{LAYER}.resid_pre", f"blocks.{LAYER}.attn.pattern", "blocks.1.mlp.out"]
    rec = model.record(ids, sites)
    x, wrote, pattern = rec[sites[0]][0], rec[sites[2]][0], rec[sites[1]][0, :, -1]
    if name == "gpt2":
        scale = (x.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()
        normed = (wrote - wrote.mean(-1, keepdim=True)) * scale * block.ln_1.weight
        v = (normed @ block.attn.c_attn.weight)[:, -32:].unflatten(1, (4, -1))
    else:
        scale = (x.square().mean(-1, keepdim=True) + block.input_layernorm.variance_epsilon).rsqrt()
        v = (wrote * scale * block.input_layernorm.weight) @ block.self_attn.v_proj.weight.T
        v = v.unflatten(1, (2, -1)).repeat_interleave(2, 1)
    expected = torch.einsum("hs,shd,hd->s", pattern, v, sae.W_enc.T[4].unflatten(0, (4, -1)))
    got = found["contribution"].sel(row=0, component="m1")
    np.testing.assert_allclose(got, expected.detach(), atol=tolerance)


@pytest.mark.parametrize("normalize", ["none", "mean_norm", "layer_norm"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_dictionaries_of_earlier_layers_split_what_those_wrote(name, normalize):
    model = architectures.shared(name)
    sae = dictionary(width_of(model))
    first = dictionary(width_of(model, 1), F.TopKSAE, normalize=normalize)
    plain = recursive_attribution(model, LAYER, sae, padded(), 4)
    found = recursive_attribution(model, LAYER, sae, padded(), 4, earlier={1: first})
    np.testing.assert_allclose(found["remainder"], 0, atol=1e-4)
    of_layer = found["contribution"][:, (found["layer"] == 1) & (found["kind"] != "mlp")]
    np.testing.assert_allclose(of_layer.sum("component"), plain["contribution"].sel(component="a1"), atol=1e-4)
    rec = model.record(padded(), "blocks.1.attn.z")
    active = (first(rec["blocks.1.attn.z"][rec.mask].flatten(1)).f > 0).any(0).nonzero().flatten().tolist()
    named = found["component"].values[found["kind"].values == "latent"].tolist()
    assert named == [f"a1.f{i}" for i in active]


def test_effects_keep_the_error_and_reach_only_the_positions(lm):
    task = ac.world.tasks.ioi(lm, n=4)
    sae = dictionary(width_of(lm, 3), m=64)
    with torch.no_grad():
        clean = lm.logits(task.prompts())
    found = latent_effects(lm, 3, sae, task, [0, [1, 2, 3], list(range(64))], positions=[-1, 4], batch_size=3)
    assert found["part"].values.tolist()[:2] == ["f0", "f1+f2+f3"] and found["part"].values[-1] == "error"
    right = clean[:, -1].gather(1, torch.stack([task.answer_ids, task.wrong_ids], 1))
    assert float(found["whole"]) == pytest.approx(float((right[:, 0] - right[:, 1]).mean()), abs=1e-5)
    place = (-1, int((~task.mask[0]).sum()) + 4)

    def by_hand(z):
        z, flat = z.clone(), z.flatten(2)
        out = sae(flat)
        for p in place:
            z[:, p] = (flat[:, p] - out.f[:, p] @ sae.W_dec).view_as(z[:, p])
        return z

    one = task[0]
    with torch.no_grad(), lm.edit({"blocks.3.attn.z": Fn(by_hand)}):
        logits = lm.logits(one.prompts())[0, -1]
    expected = float(logits[one.answer_ids[0]] - logits[one.wrong_ids[0]] - (right[0, 0] - right[0, 1]))
    assert float(found["by_row"][2, 0]) == pytest.approx(expected, abs=1e-4)


def test_effect_on_the_loss_of_removing_the_error_is_that_of_the_splice(lm):
    texts = ac.world.heldout_text("lm")[:3]
    sae = dictionary(width_of(lm, 3), m=64)
    found = latent_effects(lm, 3, sae, texts, [0], batch_size=8)
    with torch.no_grad(), F.splice(lm, "blocks.3.attn.z", sae, error_term=False):
        spliced = lm.loss(texts, "token").nanmean(1)
    with torch.no_grad():
        expected = spliced - lm.loss(texts, "token").nanmean(1)
    np.testing.assert_allclose(found["by_row"].sel(part="error"), expected, atol=1e-4)


def test_a_head_that_matches_one_token_has_an_induction_score_of_one_at_every_prefix():
    made = ac.world.compiled.build("induction")
    found = prefix_induction(made.model, [1, 2, 3], n=4, length=9)
    np.testing.assert_allclose(found["induction"].sel(layer=1, head=1), 1.0, atol=1e-2)
    np.testing.assert_allclose(found["rise"].sel(layer=1, head=1), 0.0, atol=1e-2)
    assert float(found["induction"].sel(layer=0).max()) < 0.5


def test_what_has_no_heads_or_sources_is_refused():
    model = architectures.shared("gpt2")
    sae, ids = dictionary(width_of(model)), architectures.token_ids()
    with pytest.raises(InputError, match="do not divide"):
        head_attribution(sae, 5)
    with pytest.raises(InputError, match="does not write heads"):
        head_attribution(F.Transcoder(8, "relu").build(32, 32), 4)
    with pytest.raises(SiteError, match="layers 0 to 2"):
        direct_feature_attribution(model, 3, sae, ids, 0)
    with pytest.raises(InputError, match="4 heads x 8 = 32 wide"):
        direct_feature_attribution(model, 0, dictionary(16), ids, 0)
    with pytest.raises(InputError, match="latent 24 of row 0"):
        direct_feature_attribution(model, 0, sae, ids, 24)
    with pytest.raises(InputError, match="dest 7 of row 0"):
        direct_feature_attribution(model, 0, sae, ids, 0, 7)
    with pytest.raises(InputError, match="one for each of 2 rows"):
        direct_feature_attribution(model, 0, sae, ids, [0, 1, 2])
    stream = dictionary(32)
    stream.about["site"] = "blocks.1.resid_post"
    with pytest.raises(InputError, match=r"made for blocks\.1\.resid_post"):
        direct_feature_attribution(model, 1, stream, ids, 0)
    with pytest.raises(SiteError, match=r"no blocks\.0\.attn\.z"):
        direct_feature_attribution(architectures.shared("mamba"), 0, sae, ids, 0)
    with pytest.raises(InputError, match="sources are tokens"):
        direct_feature_attribution(architectures.shared("vit"), 0, sae, architectures.images(), 0)
    with pytest.raises(InputError, match="layers before 1"):
        recursive_attribution(model, 1, sae, ids, 0, earlier={1: sae})
    with pytest.raises(InputError, match="no latent 99"):
        latent_effects(model, 1, sae, ids, [99])
    with pytest.raises(InputError, match="scores the answers of a Task"):
        latent_effects(model, 1, sae, ids, [0], metric="prob")
    with pytest.raises(InputError, match="shorter than length"):
        prefix_induction(model, [5], length=5)


@pytest.mark.parametrize("name", ["bert", "opt-350m", "granite"])
def test_a_stream_that_is_no_sum_is_refused(name):
    model = architectures.shared(name)
    sae = dictionary(width_of(model))
    with pytest.raises((InputError, SiteError), match=r"not the sum|has no"):
        recursive_attribution(model, LAYER, sae, architectures.token_ids(), 0)


def test_it_holds_on_a_model_trained_by_others(outside_data):
    folder = outside_data / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is absent")
    model = ac.load(str(folder))
    sae = dictionary(width_of(model, 3), m=64)
    found = recursive_attribution(model, 3, sae, ["Once upon a time, there was a girl", "A dog ran."], 7)
    np.testing.assert_allclose(found["remainder"], 0, atol=1e-4)
    assert np.abs(found["by_component"].sel(component="stream")).max() < 1e-4
