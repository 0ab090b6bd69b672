"""Layer by layer: equal models, other scales and bases, what is pooled, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from llamas import in_another_basis, llama
from scipy.linalg import orthogonal_procrustes

from actinium import compare
from actinium.compare.layerwise import similarity
from actinium.compare.pooled_states import pooled_states, same_tokens
from actinium.core.alignment import linear_cka
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.model import Model
from architectures import CAUSAL, build, inputs_for, shared

TEXTS = ["Ann lives in", "The job of Bob is", "Eva keeps a", "The river of Orla is"]


def rotation(width: int) -> torch.Tensor:
    draw = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return torch.linalg.qr(draw)[0]


@pytest.mark.parametrize("pool", ["last", "mean"])
@pytest.mark.parametrize("center", [False, True])
def test_a_model_is_like_itself_at_every_layer(lm, pool, center):
    got = compare.layerwise_similarity(lm, lm, [*TEXTS, "The flag of Vesk is"], pool, center)
    assert got["similarity"].shape == (7, 5)
    np.testing.assert_allclose(got["similarity"], 1, atol=1e-6)
    np.testing.assert_allclose(got["mean"], 1, atol=1e-6)


def test_states_of_another_scale_have_the_same_direction(ids):
    plain, scaled = llama(), llama()
    with torch.no_grad():
        for name, weight in scaled.named_parameters():
            if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
                weight *= 7
    for norm in (m for model in (plain, scaled) for m in model.modules() if "RMSNorm" in type(m).__name__):
        norm.variance_epsilon = 0.0
    got = compare.layerwise_similarity(Model(plain), Model(scaled), ids)
    np.testing.assert_allclose(got["similarity"], 1, atol=1e-6)


def test_negated_states_have_the_opposite_direction(small, ids):
    negated = Model(in_another_basis(small.module, -torch.eye(8, dtype=torch.float64)))
    assert torch.allclose(negated.logits(ids), small.logits(ids), atol=1e-5)
    np.testing.assert_allclose(compare.layerwise_similarity(small, negated, ids)["similarity"], -1, atol=1e-6)


@pytest.mark.parametrize("center", [False, True])
def test_a_rotated_stream_is_seen_by_the_cosine_and_not_by_cka_and_procrustes(small, ids, center):
    turned = Model(in_another_basis(small.module, rotation(8)))
    assert torch.allclose(turned.logits(ids), small.logits(ids), atol=1e-5)  # the library's norms are float32
    # The mean over tokens, for the last ones of 24 rows are too few different tokens to span the embedding.
    values = {
        m: compare.layerwise_similarity(small, turned, ids, "mean", center, m) for m in ("cosine", "cka", "procrustes")
    }
    np.testing.assert_allclose(values["cka"]["similarity"], 1, atol=1e-6)
    np.testing.assert_allclose(values["procrustes"]["similarity"], 1, atol=1e-6)
    assert float(abs(values["cosine"]["mean"]).max()) < 0.7


def test_cosine_of_gaussian_vectors_has_mean_zero_and_the_width_as_its_precision():
    x, y = torch.randn(2, 1, 40_000, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cosines = similarity(x, y, "cosine")
    assert cosines.mean() == pytest.approx(0, abs=4 / 8 / 200)
    assert cosines.std() == pytest.approx(1 / 8, rel=0.02)


def test_procrustes_is_the_cosine_after_the_nearest_orthogonal_map():
    x, y = torch.randn(2, 1, 30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = torch.as_tensor(x[0].numpy() @ orthogonal_procrustes(x[0].numpy(), y[0].numpy())[0])
    np.testing.assert_allclose(similarity(x, y, "procrustes")[0], torch.cosine_similarity(turned, y[0]))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_layers_are_those_of_the_library_and_the_last_is_before_the_final_norm(name):
    # One of its own: the library leaves hooks behind where it was asked for hidden states.
    model = Model(build(name))
    ids = torch.randint(3, 90, (5, 6), generator=torch.Generator().manual_seed(2))
    states = pooled_states(model, same_tokens(model, model, ids))
    hidden = model.module(ids, output_hidden_states=True).hidden_states
    assert len(states) == len(hidden) == model.n_layers + 1
    for mine, theirs in zip(states[:-1], hidden, strict=False):
        np.testing.assert_allclose(mine, theirs[:, -1].detach(), atol=1e-5)
    if name == "llama":
        np.testing.assert_allclose(
            model.module.model.norm(states[-1].float()).detach(), hidden[-1][:, -1].detach(), atol=1e-5
        )


def test_the_mean_leaves_out_padding_and_the_first_token(lm):
    texts = ["Ann lives in", "The river of the city of Ann is"]
    states = pooled_states(lm, same_tokens(lm, lm, texts), "mean", batch_size=1)
    for i, text in enumerate(texts):
        alone = lm.record(text, "blocks.2.resid_post")["blocks.2.resid_post"][0]
        np.testing.assert_allclose(states[3, i], alone[1:].double().mean(0).detach(), atol=1e-5)
    last = pooled_states(lm, same_tokens(lm, lm, texts))
    np.testing.assert_allclose(last[3, 1], alone[-1].detach(), atol=1e-5)


def test_centring_takes_away_each_models_mean(lm, small, ids):
    other = Model(llama(seed=5))
    got = compare.layerwise_similarity(small, other, ids, center=True)
    x, y = (pooled_states(m, same_tokens(m, m, ids))[1] for m in (small, other))
    expected = torch.cosine_similarity(x - x.mean(0), y - y.mean(0))
    np.testing.assert_allclose(got["similarity"][1], expected)


def test_centring_leaves_nothing_of_texts_that_end_alike_at_the_embedding(lm):
    texts = ["Ann is", "The job of Bob is"]
    got = compare.layerwise_similarity(lm, lm, texts, center=True)
    assert got["similarity"][0].isnull().all() and not got["similarity"][1:].isnull().any()
    cka = compare.layerwise_similarity(lm, lm, texts, measure="cka")
    assert bool(cka["similarity"][0].isnull())


def test_cka_compares_models_of_other_width(small, ids):
    wide = Model(llama(width=12))
    got = compare.layerwise_similarity(small, wide, ids, measure="cka")
    x, y = (pooled_states(m, same_tokens(m, m, ids)) for m in (small, wide))
    assert float(got["similarity"][2]) == pytest.approx(linear_cka(x[2], y[2]))
    with pytest.raises(InputError, match='use "cka"'):
        compare.layerwise_similarity(small, wide, ids)


def test_layer_pairs_hold_the_layerwise_values_on_their_diagonal(small, ids):
    other, deep = Model(llama(seed=5)), Model(llama(layers=3))
    for measure in ("cosine", "cka", "procrustes"):
        pairs = compare.layer_pairs(small, other, ids, "mean", True, measure)
        single = compare.layerwise_similarity(small, other, ids, "mean", True, measure)
        expected = single["similarity" if measure == "cka" else "mean"]
        np.testing.assert_allclose(np.diagonal(pairs["similarity"]), expected)
    assert compare.layer_pairs(small, deep, ids)["similarity"].shape == (3, 4)
    with pytest.raises(InputError, match="equal depth"):
        compare.layerwise_similarity(small, deep, ids)


def test_the_slope_is_the_least_squares_one_and_its_interval_holds_it(small, ids):
    got = compare.layerwise_similarity(small, Model(llama(seed=5)), ids)
    depths = [1, 2, 3] * 8
    slope = compare.depth_slope(got, depths)
    for layer in range(3):
        values = got["similarity"][layer].values
        assert float(slope["slope"][layer]) == pytest.approx(np.polyfit(depths, values, 1)[0])
        assert float(slope["mean"][layer, 1]) == pytest.approx(values[1::3].mean())
    assert bool(((slope["low"] <= slope["slope"]) & (slope["slope"] <= slope["high"])).all())


@pytest.mark.parametrize("name", [n for n in CAUSAL if n != "opt-350m"])
def test_every_causal_architecture_is_like_itself(name):
    got = compare.layerwise_similarity(shared(name), shared(name), inputs_for(name))
    np.testing.assert_allclose(got["mean"], 1, atol=1e-6)


def test_an_outside_model_is_like_itself_and_less_like_a_changed_one(outside_data):
    import actinium as ac

    folder = outside_data / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is absent")
    one, other = ac.load(folder), ac.load(folder)
    with torch.no_grad():
        for block in other.module.model.layers:
            block.mlp.down_proj.weight *= 0.5
    texts = ["Once upon a time", "Lily saw a big red ball", "The dog ran to the park"]
    np.testing.assert_allclose(ac.compare.layerwise_similarity(one, one, texts)["mean"], 1, atol=1e-6)
    changed = ac.compare.layerwise_similarity(one, other, texts)["mean"]
    assert float(changed[0]) == pytest.approx(1) and float(changed[1:].max()) < 0.999


def test_texts_that_are_tokenised_differently_are_refused(lm):
    import copy

    other = Model(lm.module, copy.deepcopy(lm.tokenizer), name="other")
    other.tokenizer.add_tokens(["lives in"])
    with pytest.raises(InputError, match="tokenise text 1 differently"):
        compare.layerwise_similarity(lm, other, ["Ann is", "Ann lives in"])


def test_a_state_of_length_zero_is_refused(small, ids):
    dead = llama()
    with torch.no_grad():
        dead.model.embed_tokens.weight[ids[3, -1]] = 0
    with pytest.raises(InputError, match="length zero at layer 0"):
        compare.layerwise_similarity(small, Model(dead), ids)


def test_one_text_is_too_few_for_what_compares_texts(lm):
    for measure in ("cka", "procrustes"):
        with pytest.raises(InputError, match="two or more"):
            compare.layerwise_similarity(lm, lm, "Ann lives in", measure=measure)
    with pytest.raises(InputError, match="two texts"):
        compare.layerwise_similarity(lm, lm, ["Ann lives in"], center=True)
    assert compare.layerwise_similarity(lm, lm, "Ann lives in")["similarity"].shape == (7, 1)


def test_states_that_are_not_finite_are_refused(small, ids):
    broken = llama()
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        compare.layerwise_similarity(small, Model(broken), ids)


def test_what_cannot_be_read_is_refused(lm, small, ids):
    with pytest.raises(UnknownNameError, match="cosine"):
        compare.layerwise_similarity(lm, lm, TEXTS, measure="cosin")
    with pytest.raises(UnknownNameError, match="last"):
        compare.layerwise_similarity(lm, lm, TEXTS, pool="lst")
    with pytest.raises(InputError, match="language models"):
        compare.layerwise_similarity(shared("vit"), shared("vit"), inputs_for("vit"))
    with pytest.raises(InputError, match="longer than the model's context"):
        compare.layerwise_similarity(lm, lm, ["Ann lives in Orla. " * 40])
    with pytest.raises(InputError, match="no tokenizer"):
        compare.layerwise_similarity(small, small, TEXTS)
    with pytest.raises(InputError, match="no token to take the mean over"):
        compare.layerwise_similarity(small, small, ids[:, :1], pool="mean")


def test_slopes_without_items_or_depths_are_refused(small, ids):
    got = compare.layerwise_similarity(small, small, ids)
    with pytest.raises(InputError, match="two depths"):
        compare.depth_slope(got, [1] * 24)
    with pytest.raises(InputError, match="24 depths"):
        compare.depth_slope(got, [1, 2])
    with pytest.raises(InputError, match="CKA does not have"):
        compare.depth_slope(compare.layerwise_similarity(small, small, ids, measure="cka"), [1, 2] * 12)


def test_a_result_knows_both_models_and_draws_itself(lm, small, ids):
    got = compare.layerwise_similarity(small, Model(llama(seed=5)), ids)
    models = [got.provenance[key]["fingerprint"] for key in ("model", "other_model")]
    assert models[0] == small.fingerprint() != models[1]
    assert got.plot().get_ylabel() == "cosine"
