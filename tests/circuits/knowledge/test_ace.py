"""ACE: its stages, the layers that it chooses, and what follows from its edits."""

from __future__ import annotations

import pytest
import torch

from actinium.circuits.knowledge.ace import ACE
from actinium.circuits.knowledge.evaluation import evaluate_edits
from actinium.circuits.knowledge.facts import FactEdit
from actinium.circuits.knowledge.target_vector import TargetOptimisation
from actinium.core.errors import InputError, LoadError, UnknownNameError

QUICK = TargetOptimisation(steps=8)
ANN = FactEdit("The city of {} is", "Ann", "Tarn", multihop_prompts=(("The country of Ann is", "Drum"),))


def name(layer):
    return f"model.layers.{layer}.mlp.down_proj.weight"


def test_layers_of_queries_lie_below_those_of_values(lm, covariance):
    ace = ACE(n_value=2, n_query=2, optimisation=TargetOptimisation(steps=1)).fit(lm, ANN, covariance)
    assert max(ace.query_layers_) < min(ace.value_layers_)
    assert set(ace.change_.deltas) == {name(i) for i in (*ace.query_layers_, *ace.value_layers_)}


def test_what_follows_is_answered_with_both_stages(lm, covariance, cases, same_bits):
    with same_bits(lm):
        ace = ACE([3, 4, 5], [0, 1], optimisation=QUICK).fit(lm, cases, covariance)
        found = evaluate_edits(lm, cases, ace.change_)
    assert found["efficacy"].values[1] == 1
    assert found["multihop"].values[1] > found["multihop"].values[0] + 0.5


def test_a_stage_that_is_left_out_changes_no_weights(lm, covariance):
    assert set(ACE([4], None, optimisation=QUICK).fit(lm, ANN, covariance).change_.deltas) == {name(4)}
    assert set(ACE(None, [1], optimisation=QUICK).fit(lm, ANN, covariance).change_.deltas) == {name(1)}


def test_value_stage_works_at_the_last_token_and_query_stage_at_the_subject(lm, covariance):
    # A layer's change acts on the keys that it was made for: far less on those of the other position.
    text = ANN.text
    key = lm.record(text, "blocks.{1,4}.mlp.post")
    for ace, layer, here, there in ((ACE([4], None), 4, 5, 4), (ACE(None, [1]), 1, 4, 5)):
        (delta,) = ace.fit(lm, ANN, covariance).change_.deltas.values()
        moved = [float((delta @ key[f"blocks.{layer}.mlp.post"][0, at]).norm()) for at in (here, there)]
        assert moved[0] > 4 * moved[1]


def test_multi_hop_prompts_need_not_name_the_subject(lm, covariance):
    edit = FactEdit("The country of {} is", "Tarn", "Canta", multihop_prompts=(("The country of Amy is", "Canta"),))
    found = ACE([4, 5], [0, 1], optimisation=QUICK).fit(lm, edit, covariance)
    question = FactEdit("The country of {} is", "Amy", "Canta")
    assert evaluate_edits(lm, question, found.change_)["efficacy"].values.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("architecture", ["gpt2", "qwen3", "gpt_neox"])
def test_new_objects_are_more_probable_in_other_architectures(tiny, same_bits, architecture):
    model, covariance = tiny(architecture)
    edit = FactEdit("The city of Ann is", "Ann", "Oslo", multihop_prompts=(("Ann lives in", "Lima"),))
    texts = [edit.text, "Ann lives in"]
    ids = model.tokenizer.convert_tokens_to_ids(["Oslo", "Lima"])

    def chances():
        with torch.no_grad():
            logits = [model.logits(text)[0, -1].softmax(-1) for text in texts]
        return torch.stack([one[i] for one, i in zip(logits, ids, strict=True)])

    with same_bits(model):
        before = chances()
        with ACE(n_value=1, n_query=1, preserve=1.0).fit(model, edit, covariance).change_:
            after = chances()
    assert bool((after > 1.5 * before).all())


def test_saved_estimators_are_read_back(lm, covariance, tmp_path):
    ace = ACE([4], None, preserve=100.0, optimisation=QUICK).fit(lm, ANN, covariance)
    again = ACE.load(ace.save(tmp_path / "ace"), lm)
    assert again.get_params() == ace.get_params()
    assert again.value_layers_ == [4]
    assert again.query_layers_ == []
    assert torch.equal(again.change_.deltas[name(4)], ace.change_.deltas[name(4)])


def test_what_does_not_fit_is_refused(lm, covariance, tmp_path):
    with pytest.raises(InputError, match="left out"):
        ACE(None, None).fit(lm, ANN, covariance)
    with pytest.raises(InputError, match="auto"):
        ACE("all", None).fit(lm, ANN, covariance)
    with pytest.raises(UnknownNameError, match="sqrt"):
        ACE([4], None, spread="root").fit(lm, ANN, covariance)
    with pytest.raises(InputError, match="missing"):
        ACE([4], None).fit(lm, ANN, None)
    long = FactEdit("The city of {} is", "Ann", "Tarn", multihop_prompts=(("The country of Ann is", "Drum Tova"),))
    with pytest.raises(InputError, match="2 tokens"):
        ACE([4], None).fit(lm, long, covariance)
    with pytest.raises(InputError, match="call fit"):
        ACE().save(tmp_path / "none")
    with pytest.raises(LoadError, match="not a saved ACE"):
        ACE.load(tmp_path, lm)
