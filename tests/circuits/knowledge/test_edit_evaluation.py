"""Edits and cases as data, MQuAKE's format, target vectors, and scores of edits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from actinium.circuits.knowledge.drafting import edit_groups
from actinium.circuits.knowledge.encoding import edit_prompt
from actinium.circuits.knowledge.evaluation import evaluate_edits
from actinium.circuits.knowledge.facts import EditCase, FactEdit, Question, distinct_edits
from actinium.circuits.knowledge.memit import memit
from actinium.circuits.knowledge.mquake import edit_cases
from actinium.circuits.knowledge.target_vector import TargetOptimisation, target_vectors
from actinium.core.edits import Add
from actinium.core.errors import InputError, LoadError

ANN = FactEdit("The city of {} is", "Ann", "Tarn")
SITE = "blocks.1.resid_post"


def test_subject_is_found_as_a_word_of_its_own(lm):
    prompt = edit_prompt(lm, FactEdit("Anna and Ann live in", "Ann", "Tarn"))
    assert lm.to_str_tokens([prompt.ids[prompt.subject]]) == lm.to_str_tokens(lm.tokenizer("Ann")["input_ids"][1:])
    behind = edit_prompt(lm, ANN, "The city of Ann is Hasp.")
    assert behind.subject == behind.last - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("The city of Bob is", "Ann", "Tarn"), "'Ann' is not in the prompt"),
        (("The city of Anna is", "Ann", "Tarn"), "'Ann' is not in the prompt"),
        (("The city of {} is", "Ann", " "), "target_new"),
        (("The city of {} is", "", "Tarn"), "subject"),
    ],
)
def test_edits_that_do_not_say_what_is_meant_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        FactEdit(*arguments)


def test_edits_that_conflict_are_refused_and_equal_ones_are_one():
    with pytest.raises(InputError, match="both 'Tarn' and 'Orla'"):
        distinct_edits([ANN, FactEdit("The city of Ann is", "Ann", "Orla")])
    with pytest.raises(InputError, match="conflict"):
        distinct_edits(
            [FactEdit("{} lives in", "Ann", t, relation="city") for t in ("Tarn",)]
            + [FactEdit("The city of {} is", "Ann", "Orla", relation="city")]
        )
    more = FactEdit("The city of {} is", "Ann", " Tarn", paraphrases=("Ann lives in",))
    (one,) = distinct_edits([ANN, EditCase((more,))])
    assert one.paraphrases == ("Ann lives in",)
    with pytest.raises(InputError, match="no edits"):
        distinct_edits([])
    with pytest.raises(InputError, match="expected a FactEdit"):
        distinct_edits(["Ann lives in Tarn"])


def test_answers_that_the_tokenizer_does_not_know_are_refused(lm):
    with pytest.raises(InputError, match="vocabulary"):
        edit_prompt(lm, FactEdit("The city of {} is", "Ann", "Paris"))


def test_vectors_give_what_they_are_said_to_give(lm):
    how = TargetOptimisation(steps=5, kl=0.0)
    groups = edit_groups(lm, [ANN], (), False)
    found = target_vectors(lm, SITE, groups, how=how)
    with torch.no_grad(), lm.edit({SITE: Add(found.delta[0]).at(positions=4)}):
        logprob = lm.logits(ANN.text)[0, -1].log_softmax(-1)[groups[0][0].target[0]]
    assert found.logprob.item() == pytest.approx(logprob.item(), abs=1e-4)
    assert torch.equal(found.initial[0], lm.record(ANN.text, SITE)[SITE][0, 4])


def test_vectors_found_side_by_side_are_those_found_alone(lm):
    how = TargetOptimisation(steps=6)
    edits = [ANN, FactEdit("The city of {} is", "Eva", "Orla"), FactEdit("Bob lives in", "Bob", "Kelm")]
    groups = edit_groups(lm, edits, ["Eva speaks Tovan."], False)
    together = target_vectors(lm, SITE, groups, how=how).delta
    alone = torch.cat([target_vectors(lm, SITE, [g], how=how).delta for g in groups])
    assert torch.allclose(together, alone, atol=1e-3)


def test_vectors_stay_within_their_clamp(lm):
    found = target_vectors(lm, SITE, edit_groups(lm, [ANN], (), False), how=TargetOptimisation(steps=9, clamp=0.1))
    assert (found.delta.norm() / found.initial.norm()).item() == pytest.approx(0.1, rel=1e-4)


def test_vectors_of_objects_that_are_said_already_stay_zero(lm):
    known = FactEdit("The city of {} is", "Ann", "Hasp")
    found = target_vectors(lm, SITE, edit_groups(lm, [known], (), False), how=TargetOptimisation(enough=1.0))
    assert not bool(found.delta.any())


def test_more_weight_on_divergence_keeps_what_is_said_about_the_subject(lm):
    from actinium.circuits.knowledge.drafting import essence_prompts

    groups, essence = edit_groups(lm, [ANN], (), False), essence_prompts(lm, [ANN], "{} is a")
    far = []
    for kl in (0.0, 5.0):
        delta = target_vectors(lm, SITE, groups, essence=essence, how=TargetOptimisation(steps=8, kl=kl)).delta
        with torch.no_grad():
            before = lm.logits("Ann is a")[0, 1].log_softmax(-1)
            with lm.edit({SITE: Add(delta[0]).at(positions=1)}):
                after = lm.logits("Ann is a")[0, 1].log_softmax(-1)
        far.append(float((before.exp() * (before - after)).sum()))
    assert far[1] < far[0] / 2


def test_settings_out_of_range_are_refused():
    for bad in ({"steps": 0}, {"lr": 0.0}, {"clamp": 0.0}, {"kl": -1.0}):
        with pytest.raises(InputError, match="above 0"):
            TargetOptimisation(**bad)


def test_facts_of_the_world_are_scored_as_true_before_any_change(lm, rows):
    true = [
        {**row, "new_answer": row["answer"], "new_single_hops": row["single_hops"]}
        | {"requested_rewrite": [{**r, "target_new": r["target_true"]} for r in row["requested_rewrite"]]}
        for row in rows
    ]
    found = evaluate_edits(lm, edit_cases(true))
    assert found["weights"].values.tolist() == ["before"]
    for measure in ("efficacy", "specificity", "multihop", "hops"):
        assert found[measure].item() >= 0.9
    assert found["n"].sel(measure="efficacy").item() == 2
    assert found["n"].sel(measure="multihop").item() == len(rows)


def test_shares_are_those_of_single_prompts(lm, covariance, cases):
    change = memit(lm, cases, covariance, [0, 1], spread="sqrt", optimisation=TargetOptimisation(steps=8))
    found = evaluate_edits(lm, cases, {"edited": change}, batch_size=7)
    ids = {c: lm.tokenizer.convert_tokens_to_ids(f"▁{c.questions[0].answer}") for c in cases}
    with change, torch.no_grad():
        right = [[int(lm.logits(text)[0, -1].argmax()) == ids[c] for text in c.questions[0].phrasings] for c in cases]
    assert found["answered"].sel(weights="edited").values.tolist() == [any(one) for one in right]
    assert found["multihop"].sel(weights="edited").item() == pytest.approx(np.mean([any(one) for one in right]))
    assert found["multihop_wordings"].sel(weights="edited").item() == pytest.approx(np.mean(right))
    assert found["by_edits"].sel(weights="edited", count=1).item() == found["multihop"].sel(weights="edited").item()
    assert found.plot().has_data()


def test_any_alias_counts(lm):
    question = Question(("Ann lives in",), "Orla", aliases=("Hasp",))
    found = evaluate_edits(lm, EditCase((ANN,), (question,)))
    assert found["multihop"].item() == 1
    assert np.isnan(found["paraphrase"].item())


def test_changes_in_force_or_of_another_model_are_refused(lm, covariance):
    change = memit(lm, ANN, covariance, [0], optimisation=TargetOptimisation(steps=1))
    with change, pytest.raises(InputError, match="in force"):
        evaluate_edits(lm, ANN, change)
    with pytest.raises(InputError, match="another name"):
        evaluate_edits(lm, ANN, {"before": change})


MQUAKE = {
    "case_id": 1,
    "requested_rewrite": [
        {
            "prompt": "{} lives in the city of",
            "relation_id": "P1",
            "target_new": {"str": "Tarn", "id": "Q1"},
            "target_true": {"str": "Hasp", "id": "Q2"},
            "subject": "Ann",
            "question": "Where does Ann live?",
        },
        {
            "prompt": "{} is a city in",
            "relation_id": "P2",
            "target_new": {"str": "Canta", "id": "Q3"},
            "target_true": {"str": "Drum", "id": "Q4"},
            "subject": "Tarn",
            "question": "Where is Tarn?",
        },
    ],
    "questions": ["Ann is a citizen of", "The country of Ann is", "For Ann, the country is"],
    "answer": "Estia",
    "answer_alias": [],
    "new_answer": "Canta",
    "new_answer_alias": ["Drum"],
    "single_hops": [],
    "new_single_hops": [
        {"question": "Where does Ann live?", "cloze": "Ann lives in", "answer": "Tarn", "answer_alias": []},
        {"question": "Where is Tarn?", "cloze": "Tarn is a city in", "answer": "Canta", "answer_alias": ["Drum"]},
    ],
    "orig": {},
}


def test_files_in_the_format_of_mquake_are_read(tmp_path):
    (tmp_path / "cases.json").write_text(json.dumps([MQUAKE]))
    (case,) = edit_cases(tmp_path / "cases.json")
    assert [e.text for e in case.edits] == ["Ann lives in the city of", "Tarn is a city in"]
    assert [e.target_new for e in case.edits] == ["Tarn", "Canta"]
    assert case.edits[0].key == ("Ann", "P1")
    assert case.questions[0].phrasings == tuple(MQUAKE["questions"])
    assert case.questions[0].answers == ("Canta", "Drum")
    assert [h.phrasings for h in case.hops] == [("Ann lives in",), ("Tarn is a city in",)]


def test_rows_of_counterfact_are_read():
    row = {
        "case_id": 0,
        "requested_rewrite": {**MQUAKE["requested_rewrite"][0], "target_new": {"str": "Tarn"}},
        "paraphrase_prompts": ["The home of Ann is"],
        "neighborhood_prompts": ["Eva lives in the city of"],
    }
    (case,) = edit_cases([row])
    assert case.edits[0].paraphrases == ("The home of Ann is",)
    assert case.edits[0].neighbours == ("Eva lives in the city of",)
    assert case.questions == ()


def test_accuracy_is_told_apart_by_the_number_of_edits(lm, cases):
    found = evaluate_edits(lm, [*edit_cases([MQUAKE]), *cases])
    assert found["count"].values.tolist() == [1, 2]
    assert found["edited"].values.tolist() == [2] + [1] * len(cases)


def test_files_and_rows_that_do_not_fit_are_refused_by_name(tmp_path):
    with pytest.raises(LoadError, match="cannot read"):
        edit_cases(tmp_path / "absent.json")
    (tmp_path / "object.json").write_text("{}")
    with pytest.raises(LoadError, match="not a list"):
        edit_cases(tmp_path / "object.json")
    with pytest.raises(InputError, match="no rows"):
        edit_cases([])
    with pytest.raises(InputError, match="row 1 has no 'new_answer'"):
        edit_cases([MQUAKE, {k: v for k, v in MQUAKE.items() if k != "new_answer"}])
    broken = {**MQUAKE, "requested_rewrite": [{**MQUAKE["requested_rewrite"][0], "prompt": "Bob lives in"}]}
    with pytest.raises(InputError, match="row 0: the subject 'Ann'"):
        edit_cases([broken])
    with pytest.raises(InputError, match="multi-hop prompt"):
        FactEdit("The city of {} is", "Ann", "Tarn", multihop_prompts=("The country of Ann is",))
