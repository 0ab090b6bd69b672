"""Value vectors, what shifting a unit does, and the measures around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import architectures
from actinium.circuits import (
    activation_drop,
    attribute_metrics,
    bilingual_retrieval,
    concept_value_vectors,
    distinct_ngrams,
    predicting_activations,
    sentence_embeddings,
    shift_neurons,
    value_vectors,
)
from actinium.core.errors import InputError, SiteError, UnknownNameError
from actinium.core.model import Model


def built(name: str) -> Model:
    torch.manual_seed(0)
    model = architectures.build(name)
    return model if isinstance(model, Model) else Model(model.eval())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma", "opt", "bloom"])
def test_mlp_output_is_the_sum_of_activations_times_value_vectors(name):
    model, ids = built(name), architectures.token_ids(2, 5)
    rec = model.record(ids, ["blocks.1.mlp.post", "blocks.1.mlp.out"])
    written = rec["blocks.1.mlp.post"] @ value_vectors(model, 1)
    rest = rec["blocks.1.mlp.out"] - written
    # What is left is the bias, one and the same everywhere.
    torch.testing.assert_close(rest, rest[:1, :1].expand_as(rest), atol=1e-5, rtol=0)


def test_shifting_a_unit_adds_its_value_vector_and_nothing_adds_nothing(lm):
    text, site = ["Ann lives in"], "blocks.3.mlp.out"
    before = lm.record(text, site)[site]
    with shift_neurons(lm, [(3, 17)], delta=2.5):
        after = lm.record(text, site)[site]
    torch.testing.assert_close(after - before, (2.5 * value_vectors(lm, 3)[17]).expand_as(before), atol=1e-5, rtol=0)
    with shift_neurons(lm, [(3, 17), (1, 2)], delta=0.0):
        assert torch.equal(lm.logits(text), lm.logits(text))
        same = lm.logits(text)
    torch.testing.assert_close(same, lm.logits(text), atol=0, rtol=0)
    with shift_neurons(lm, [(3, 17)], value=1.5):
        assert float(lm.record(text, "blocks.3.mlp.post")["blocks.3.mlp.post"][0, -1, 17]) == 1.5
    post = lm.record(text, "blocks.3.mlp.post")["blocks.3.mlp.post"]
    with shift_neurons(lm, [(3, 17)], scale=-2.0):
        scaled = lm.record(text, "blocks.3.mlp.post")["blocks.3.mlp.post"]
    torch.testing.assert_close(scaled[..., 17], -2 * post[..., 17])


def test_a_value_vector_itself_has_cosine_1_and_scale_does_not_matter(lm):
    direction = value_vectors(lm, 2)[40]
    found = concept_value_vectors(lm, direction, top=5)
    assert (int(found["layer"][0]), int(found["neuron"][0])) == (2, 40)
    assert float(found["cosine"][0]) == pytest.approx(1.0, abs=1e-6)
    again = concept_value_vectors(lm, 7.0 * direction, top=5)
    assert list(again["unit"].values) == list(found["unit"].values)
    np.testing.assert_allclose(again["cosine"], found["cosine"])
    every = torch.stack([value_vectors(lm, layer) for layer in range(6)]).double()
    cosines = torch.cosine_similarity(every, direction.double().expand_as(every), dim=-1)
    np.testing.assert_allclose(found["cosine"], cosines.flatten().topk(5).values, atol=1e-6)


def test_words_are_those_whose_logits_the_vector_raises(lm):
    ids = lm.tokenizer([" happy"], add_special_tokens=False)["input_ids"][0]
    direction = lm.module.lm_head.weight[ids[0]].detach()
    found = concept_value_vectors(lm, direction, top=1, words=3)
    vector = value_vectors(lm, int(found["layer"][0]))[int(found["neuron"][0])]
    best = lm.unembed(vector[None])[0].topk(3).indices
    assert str(found["words"].values[0]).split() == [w.strip() for w in lm.to_str_tokens(best)]


def test_activations_are_those_at_the_positions_that_predict_new_tokens(lm):
    prompt = lm.to_tokens(["Ann lives in"])
    means = predicting_activations(lm, prompt, 3)
    out = lm.generate(prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    rec = lm.record(out, "blocks.*.mlp.post")
    n = prompt.ids.shape[1]
    expected = torch.stack([rec[s][0, n - 1 : n + 2].double().mean(0) for s in rec.sites])
    torch.testing.assert_close(means, expected, atol=1e-5, rtol=1e-4)


def test_only_sources_with_a_positive_mean_activation_are_kept(lm):
    direction, prompts = value_vectors(lm, 4)[3], ["Ann lives in", "Bob is"]
    kept = concept_value_vectors(lm, direction, top=40, prompts=prompts, new_tokens=2)
    every = concept_value_vectors(lm, direction, top=40, prompts=prompts, new_tokens=2, keep="all")
    assert int(kept["candidates"]) == 40 and every.data.sizes["unit"] == 40
    positive = every["mean_activation"].values > 0
    assert 0 < positive.sum() < 40
    assert list(kept["unit"].values) == list(every["unit"].values[positive])


def test_a_model_and_itself_have_no_drop(lm):
    found = activation_drop(lm, lm, {"a": ["Ann lives in"], "b": ["23 + 45 ="]}, [(1, 2), (5, 300)], new_tokens=2)
    assert float(abs(found["drop"]).max()) == 0
    np.testing.assert_allclose(found["cosine"], 1.0)
    assert float(abs(found["before"].sel(group="a") - found["before"].sel(group="b")).max()) > 0


def test_retrieval_of_the_same_is_1_and_of_noise_is_chance():
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 200, 16, generator=random) for _ in range(2))
    assert bilingual_retrieval(a, 3.0 * a)["accuracy"].values.tolist() == [1.0] * 3
    np.testing.assert_allclose(bilingual_retrieval(a, a)["pair_cosine"], 1.0)
    assert float(bilingual_retrieval(a, b)["accuracy"].max()) < 0.05


def test_sentence_embeddings_leave_padding_out(lm):
    texts = ["Ann lives in", "The river of Ann is the"]
    both = sentence_embeddings(lm, texts)
    alone = sentence_embeddings(lm, texts[:1])
    torch.testing.assert_close(both[:, :1], alone, atol=1e-4, rtol=1e-4)
    assert both.shape == (7, 2, 128)


def test_metrics_of_the_card():
    found = attribute_metrics([[0.1, 0.6], [0.2, 0.3]])
    assert found == pytest.approx({"expected_maximum": 0.45, "probability": 0.5, "mean": 0.3})
    assert distinct_ngrams([[1, 2, 1, 2]], 2) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="between 0 and 1"):
        attribute_metrics([[1.2]])
    with pytest.raises(InputError, match="in a row"):
        distinct_ngrams([[1]], 2)


def test_what_is_no_direction_or_no_unit_is_refused(lm):
    for direction in (torch.zeros(128), torch.ones(64), torch.full((128,), torch.nan)):
        with pytest.raises(InputError, match="direction"):
            concept_value_vectors(lm, direction)
    with pytest.raises(UnknownNameError, match="positive"):
        concept_value_vectors(lm, torch.ones(128), keep="positives")
    with pytest.raises(SiteError, match="units"):
        concept_value_vectors(built("mamba"), torch.ones(24))
    with pytest.raises(InputError, match="one of"), shift_neurons(lm, [(0, 0)], delta=1.0, value=0.0):
        pass
    with pytest.raises(InputError, match="no units"), shift_neurons(lm, [], delta=1.0):
        pass
    with pytest.raises(InputError), shift_neurons(lm, [(0, 9999)], delta=1.0):
        pass
    with pytest.raises(InputError, match="no unit 9999"):
        activation_drop(lm, lm, {"a": ["Ann"]}, [(0, 9999)])
    with pytest.raises(InputError, match="order"):
        bilingual_retrieval(torch.ones(2, 3, 4), torch.ones(2, 4, 4))
    with pytest.raises(InputError, match="zero"):
        bilingual_retrieval(torch.zeros(2, 3, 4), torch.ones(2, 3, 4))
