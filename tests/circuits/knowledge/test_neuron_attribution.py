"""Value and query scores against formulas written out, in several architectures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actinium.circuits.knowledge.encoding import prompt_of
from actinium.circuits.knowledge.neuron_attribution import best_window, neuron_attribution
from actinium.circuits.knowledge.queries import ValueUnit, key_of
from actinium.circuits.knowledge.traces import Traces
from actinium.core.errors import InputError, UnknownNameError

PROMPTS = ["The city of Ann is", "Eva is a citizen of"]
WORDS = ["The city of Ann is", "Bob lives in"]


def shares_total(found):
    return float(found["attention"].sum() + found["mlp"].sum() + found["embedding"])


def test_value_score_of_a_unit_is_the_increase_under_a_held_rms_norm(lm):
    found = neuron_attribution(lm, PROMPTS[0], "Tarn")
    (target,) = lm.tokenizer.convert_tokens_to_ids(["▁Tarn"])
    rec = lm.record(PROMPTS[0], ["blocks.3.resid_mid", "blocks.3.mlp.post", "blocks.5.resid_post"], dtype=torch.float64)
    x, m, last = (rec[s][0, -1] for s in rec.sites)
    norm, head = lm.module.model.norm, lm.module.lm_head.weight.double()
    scale = (last.pow(2).mean() + norm.variance_epsilon).sqrt()

    def logprob(u):
        return torch.log_softmax(head @ (u / scale * norm.weight.double()), -1)[target]

    v = lm.module.model.layers[3].mlp.down_proj.weight.double()
    for unit in (0, 17, 351):
        expected = logprob(x + m[unit] * v[:, unit]) - logprob(x)
        assert found["scores"].values[3, unit] == pytest.approx(expected.item(), abs=2e-5)


def test_value_scores_remove_the_mean_and_drop_the_bias_of_a_layer_norm(tiny):
    model, _ = tiny("gpt2")
    found = neuron_attribution(model, WORDS[0], 20, level="layer")
    rec = model.record(WORDS[0], ["blocks.1.resid_mid", "blocks.1.mlp.out", "blocks.2.resid_post"], dtype=torch.float64)
    x, out, last = (rec[s][0, -1] for s in rec.sites)
    norm, head = model.module.transformer.ln_f, model.module.lm_head.weight.double()
    scale = (last.var(correction=0) + norm.eps).sqrt()

    def logprob(u):
        return torch.log_softmax(head @ ((u - u.mean()) / scale * norm.weight.double()), -1)[20]

    assert found["mlp"].values[1] == pytest.approx((logprob(x + out) - logprob(x)).item(), abs=2e-5)


def test_a_unit_that_does_not_act_has_no_score(lm):
    from actinium.core.edits import Zero

    with lm.edit({"blocks.2.mlp.post": Zero().at(units=[5, 9])}):
        scores = neuron_attribution(lm, PROMPTS)["scores"].values
    assert scores[2, 5] == scores[2, 9] == 0
    assert np.count_nonzero(scores[2] == 0) == 2


def test_scores_of_heads_are_of_what_heads_write(lm):
    found = neuron_attribution(lm, PROMPTS[1], level="head")["score"].values
    traces = Traces(lm, [prompt_of(lm, PROMPTS[1])], None, True)
    (trace,) = traces.rows
    units = trace.attention_units(4)
    write = torch.einsum("phe,hed->hd", units, traces.head_values(4))
    assert torch.allclose(write.sum(0), trace.at(4, "attn.out"), atol=1e-4)
    assert found[4] == pytest.approx(trace.increase(trace.before(4, "attn"), write).numpy(), abs=1e-5)


@pytest.mark.parametrize("of", ["attention", "mlp"])
@pytest.mark.parametrize("name", ["world", "gpt2", "qwen3", "gptj", "gpt_neox", "opt"])
def test_query_shares_add_up_to_the_value_scores(lm, tiny, name, of):
    model, prompts = (lm, PROMPTS) if name == "world" else (tiny(name)[0], WORDS)
    found = neuron_attribution(model, prompts, kind="query", level="layer", of=of, units=10)
    assert found["total"] > 0
    assert shares_total(found) == pytest.approx(float(found["total"]), rel=2e-3)


def test_queries_of_units_add_up_to_those_of_their_layers(lm):
    layers = neuron_attribution(lm, PROMPTS, kind="query", level="layer")
    units = neuron_attribution(lm, PROMPTS, kind="query")
    assert units["scores"].values.sum(1) == pytest.approx(layers["mlp"].values, abs=1e-5)


def test_keys_of_attention_are_rows_of_the_value_projection_times_the_gain(lm):
    (trace,) = Traces(lm, [prompt_of(lm, PROMPTS[0])], None, True).rows
    key, along = key_of(trace, ValueUnit(1.0, 3, 2, "blocks.3.attn.v", (1, 4), "attn"))
    block = lm.module.model.layers[3]
    row = block.self_attn.v_proj.weight[16 + 4] * block.input_layernorm.weight
    assert torch.cosine_similarity(key, row.detach().double(), 0).item() == pytest.approx(1, abs=1e-6)
    assert along == pytest.approx(float(trace.before(3, "attn", 2).double() @ key))


def test_keys_of_gated_units_are_rows_of_the_linear_branch(tiny):
    model, _ = tiny("phi3")
    (trace,) = Traces(model, [prompt_of(model, WORDS[0])], None, False).rows
    key, _ = key_of(trace, ValueUnit(1.0, 1, 3, "blocks.1.mlp.pre", (7,), "mlp"))
    block = model.module.model.layers[1]
    row = block.mlp.gate_up_proj.weight[48 + 7] * block.post_attention_layernorm.weight
    assert abs(torch.cosine_similarity(key, row.detach().double(), 0).item()) == pytest.approx(1, abs=1e-6)


def test_a_value_unit_whose_sign_comes_from_a_bias_has_no_shares(tiny):
    model, _ = tiny("gpt2")
    (trace,) = Traces(model, [prompt_of(model, WORDS[0])], None, False).rows
    kept = [key_of(trace, ValueUnit(1.0, 1, 3, "blocks.1.mlp.pre", (u,), "mlp")) for u in range(48)]
    for unit, found in enumerate(kept):
        number = float(trace.traces.linear["blocks.1.mlp.pre"][0][0, 3, unit].detach())
        assert found is None or found[1] * number > 0
    assert 0 < sum(found is None for found in kept) < 48


def test_queries_lie_below_values_in_the_shipped_model(lm):
    value, query = (neuron_attribution(lm, PROMPTS, kind=k)["layer_score"].values for k in ("value", "query"))
    assert max(best_window(query, 2)) < min(best_window(value, 2))


def test_counts_are_those_of_the_best_units(lm):
    found = neuron_attribution(lm, PROMPTS[0], top=40)
    scores = found["scores"].values
    best = np.argsort(-scores.ravel(), kind="stable")[:40]
    assert found["layer_count"].values.tolist() == np.bincount(best // 352, minlength=6).tolist()
    assert found["layer_of"].values.tolist() == (best // 352).tolist()
    assert found["unit"].values.tolist() == (best % 352).tolist()


def test_attention_neurons_name_the_token_that_they_bring_something_from(lm):
    found = neuron_attribution(lm, PROMPTS, level="attention-neuron", top=20)
    for prompt, position, token in zip(*(found[n].values for n in ("prompt", "position", "token")), strict=True):
        ids = lm.tokenizer(PROMPTS[prompt])["input_ids"]
        assert lm.to_str_tokens([ids[position]]) == [token]
    assert bool((np.diff(found["score"].values) <= 0).all())


def test_target_is_what_the_model_says_unless_one_is_given(lm):
    said = neuron_attribution(lm, PROMPTS)
    words = lm.tokenizer.batch_decode([[i] for i in said.provenance["settings"]["targets"]])
    assert neuron_attribution(lm, PROMPTS, words) == said


def test_results_draw(lm):
    for options in ({}, {"level": "layer"}, {"level": "head"}, {"kind": "query", "level": "layer"}):
        assert neuron_attribution(lm, PROMPTS[0], **options).plot().has_data()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "values"}, UnknownNameError, "value"),
        ({"kind": "query", "level": "head"}, UnknownNameError, "neuron"),
        ({"kind": "query", "of": "mlp"}, InputError, "attention units"),
        ({"of": "heads"}, UnknownNameError, "attention"),
        ({"top": 0}, InputError, "at least 1"),
        ({"targets": ["Tarn"]}, InputError, "1 targets for 2 prompts"),
        ({"targets": [848, 1]}, InputError, "0 to 847"),
    ],
)
def test_what_does_not_fit_is_refused(lm, options, error, message):
    with pytest.raises(error, match=message):
        neuron_attribution(lm, PROMPTS, **options)


def test_prompts_and_models_that_cannot_be_taken_apart_are_refused(lm, worded):
    with pytest.raises(InputError, match="no prompts"):
        neuron_attribution(lm, [])
    with pytest.raises(InputError, match="a norm or a factor"):
        neuron_attribution(worded("gemma2"), WORDS)
    with pytest.raises(InputError, match="a layer or more"):
        best_window([1.0], 0)
