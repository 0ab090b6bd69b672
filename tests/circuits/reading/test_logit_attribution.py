"""What the parts of a model write towards the answer, against paths patched one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import random_task

import actinium as ac
import architectures
from actinium.circuits import path_patch
from actinium.circuits.patching.readout import held_readout
from actinium.circuits.reading.direct_effects import choice_metric, direct_effect, output_nodes, total_effect
from actinium.circuits.reading.logit_attribution import logit_attribution
from actinium.circuits.reading.readout import writes
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")
SUMS = ("gpt2", "gpt_neox", "gpt_neox-sequential", "gptj", "opt", "bloom", "llama", "qwen3", "gemma", "phi", "phi3")
MORE = ("falcon", "falcon-alibi", "mpt", "mixtral", "gemma2", "gemma3_text", "mamba")


def built(name: str) -> Model:
    torch.manual_seed(0)
    model = architectures.build(name)
    return model if isinstance(model, Model) else Model(model.eval())


@pytest.mark.parametrize("name", [*SUMS, *MORE])
def test_contributions_and_constant_are_the_logit(name):
    model, task = built(name), random_task(padding=(2,))
    ids = torch.tensor([5, 9, 11])
    found = logit_attribution(model, task, ids, centre=False, by_row=True)
    with torch.no_grad():
        logits = model.logits(task.prompts())[:, -1].double()
    cap = getattr(model.config, "final_logit_softcapping", None)
    expected = (cap * torch.atanh(logits / cap) if cap else logits)[:, ids].mean(0)
    np.testing.assert_allclose(found["contribution"].sum("part") + found["constant"], expected, atol=1e-4)
    np.testing.assert_allclose(found["logit"], expected, atol=1e-4)


def test_heads_of_a_block_add_up_to_its_attention(lm, ioi):
    heads = logit_attribution(lm, ioi)["contribution"]
    whole = logit_attribution(lm, ioi, heads=False)["contribution"]
    for layer in range(6):
        own = heads[[str(p).startswith(f"a{layer}.") for p in heads["part"].values]]
        assert float(own.sum()) == pytest.approx(float(whole.sel(part=f"a{layer}")), abs=1e-4)


def test_centred_contributions_sum_to_nothing_over_the_tokens(lm, ioi):
    found = logit_attribution(lm, ioi, [" happy", " sad", " Sorry"])
    assert [str(t).strip() for t in found.data["token"].values] == ["happy", "sad", "Sorry"]
    np.testing.assert_allclose(found["contribution"].sum("token"), 0.0, atol=1e-6)


def test_words_and_ids_name_the_same_tokens(lm):
    ids = torch.tensor(lm.tokenizer([" happy", " sad"], add_special_tokens=False)["input_ids"]).flatten()
    texts = ["The film was wonderful , I loved it . I felt"]
    by_word, by_id = (logit_attribution(lm, texts, given)["contribution"].values for given in ([" happy", " sad"], ids))
    np.testing.assert_array_equal(by_word, by_id)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_direct_effect_is_the_path_to_the_logits(name):
    model, task = built(name), random_task(padding=(1,))
    found = direct_effect(model, task)["effect"]
    paths = path_patch(model, task, "blocks.*.attn.z", over="head", positions=[-1], normalise=False)["effect"]
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            expected = float(paths.sel(layer=layer, head=head))
            assert float(found.sel(part=f"a{layer}.h{head}")) == pytest.approx(expected, abs=1e-4)


def test_total_effect_is_an_edited_pass_and_that_of_the_last_mlp_is_direct(lm, ioi):
    direct, total = direct_effect(lm, ioi)["effect"], total_effect(lm, ioi)["effect"]
    assert float(total.sel(part="m5")) == pytest.approx(float(direct.sel(part="m5")), abs=1e-4)
    site = "blocks.2.attn.z"
    other = lm.record(ioi.prompts(corrupt=True), site, positions=[-1])[site]
    rows = torch.arange(len(ioi))
    with torch.no_grad():
        clean = lm.logits(ioi.prompts())[:, -1]
        with lm.edit({site: ac.edits.Replace(other).at(positions=[-1], heads=4)}):
            edited = lm.logits(ioi.prompts())[:, -1]
    drop = [t[rows, ioi.answer_ids] - t[rows, ioi.wrong_ids] for t in (clean, edited)]
    assert float(total.sel(part="a2.h4")) == pytest.approx(float((drop[0] - drop[1]).mean()), abs=1e-3)


def test_direct_effect_with_the_scale_held_is_the_difference_of_attributions(lm, ioi):
    held = direct_effect(lm, ioi, freeze_norm=True, by_row=True)
    own, other = writes(lm, ioi.prompts()), writes(lm, ioi.prompts(corrupt=True))
    read = held_readout(lm, own.stream)
    change = read(own.values) - read(other.values)
    rows = torch.arange(len(ioi))
    expected = change[:, rows, ioi.answer_ids] - change[:, rows, ioi.wrong_ids]
    np.testing.assert_allclose(held["by_row"], expected, atol=1e-3)


def test_other_prompts_are_drawn_among_those_with_another_answer(lm):
    task = ac.world.tasks.facts(lm, n=12)
    one = direct_effect(lm, task, source="others", seed=1)["effect"]
    assert not np.allclose(one, direct_effect(lm, task, source="others", seed=2)["effect"])
    np.testing.assert_array_equal(one, direct_effect(lm, task, source="others", seed=1)["effect"])
    same = task[[0, 0]]
    with pytest.raises(InputError, match="another answer"):
        direct_effect(lm, same, source="others")


def test_output_nodes_keep_the_share_that_was_asked_for(lm, ioi):
    found = output_nodes(lm, ioi, cover=0.8)
    kept, chosen = found["kept"].values, found["chosen"].values
    assert kept[-1] == pytest.approx(1.0, abs=1e-4)
    assert found["accuracy"].values[-1] == 1.0
    assert kept[chosen][-1] >= 0.8 and not (kept[chosen][:-1] >= 0.8).any()
    own, other = writes(lm, ioi.prompts()), writes(lm, ioi.prompts(corrupt=True))
    names = list(found.data["part"].values[chosen])
    values = torch.stack([(own if n in names else other).values[own.names.index(n)] for n in own.names])
    with torch.no_grad():
        logits = lm.unembed(values.sum(0))
    rows = torch.arange(len(ioi))
    left = (logits[rows, ioi.answer_ids] - logits[rows, ioi.wrong_ids]).mean()
    low, high = float(found["m_replaced"]), float(found["m_clean"])
    assert (float(left) - low) / (high - low) == pytest.approx(kept[chosen][-1], abs=1e-3)


def test_choice_metric_is_the_logit_above_the_mean_of_the_others():
    logits = torch.tensor([[1.0, 2.0, 6.0, 9.0], [4.0, 0.0, 2.0, 9.0]])
    metric = choice_metric(torch.tensor([0, 1, 2]))
    assert metric(logits, torch.tensor([2, 0]), torch.tensor([0, 1])).tolist() == [4.5, 3.0]
    raised = metric(logits + 7.0, torch.tensor([2, 0]), torch.tensor([0, 1]))
    assert raised.tolist() == [4.5, 3.0]
    with pytest.raises(InputError, match="none of the options"):
        metric(logits, torch.tensor([3, 0]), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="two options"):
        choice_metric(torch.tensor([1]))


def test_what_has_no_direct_effects_is_refused(lm, ioi):
    with pytest.raises(InputError, match="scaled or normed"):
        writes(built("opt-350m"), architectures.token_ids(2, 5))
    with pytest.raises(InputError, match="which logits"):
        logit_attribution(lm, ioi.clean)
    with pytest.raises(InputError, match="tokens"):
        logit_attribution(lm, ioi, [" wonderful film"])
    with pytest.raises(InputError, match="empty"):
        logit_attribution(lm, ioi, [])
    with pytest.raises(InputError, match="from 0"):
        logit_attribution(lm, ioi, [10**6])
    with pytest.raises(UnknownNameError, match="pair"):
        direct_effect(lm, ioi, source="pairs")
    with pytest.raises(InputError, match="cover"):
        output_nodes(lm, ioi, cover=0.0)
    with pytest.raises(InputError, match="unembedding"):
        direct_effect(Model(torch.nn.Embedding(50, 50)), random_task())
