"""The model of multiple choice and its prompts."""

from __future__ import annotations

import json

import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.world import choices, shipped


@pytest.fixture(scope="module")
def model():
    return ac.load("world:choices")


def test_the_answer_is_the_label_of_the_value_that_is_asked_for():
    for kind in choices.KINDS:
        made = choices.task(40, 3, kind)
        for clean, corrupt, answer, wrong in zip(
            made.clean_ids.tolist(),
            made.corrupt_ids.tolist(),
            made.answer_ids.tolist(),
            made.wrong_ids.tolist(),
            strict=True,
        ):
            slots = {clean[p + 1]: clean[p] for p in choices.LABEL_POSITIONS}
            assert slots[clean[1]] == answer and slots[corrupt[1]] == wrong
            assert [i for i, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b] == [1]
            assert len(set(slots)) == len(set(slots.values())) == 4
    usual = choices.task(8, 0).clean_ids[:, list(choices.LABEL_POSITIONS)]
    assert usual.tolist() == [[0, 1, 2, 3]] * 8


def test_shipped_accuracy_is_what_the_recipe_declares(model):
    declared = shipped.recipe("choices")["held_out_accuracy"]
    for kind, value in declared.items():
        assert choices.accuracy(model, kind) == pytest.approx(value, abs=0.011)
    assert declared["usual"] > 0.95


def test_fingerprint_is_that_of_the_code():
    content = shipped.recipe("choices")
    recipe = choices.ChoicesRecipe(**content["settings"])
    assert recipe == choices.ChoicesRecipe()
    assert recipe.fingerprint() == content["fingerprint"]


def test_training_repeats_itself_and_writes_a_folder_that_loads(tmp_path):
    recipe = choices.ChoicesRecipe(steps=3, batch_size=8)
    first, second = (choices.train(recipe) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True))
    folder = choices.export(*first, recipe, tmp_path / "out")
    assert ac.load(str(folder)).n_layers == 3
    assert set(json.loads((folder / "recipe.json").read_text())["held_out_accuracy"]) == set(choices.KINDS)


def test_text_of_a_prompt_reads_back_as_its_tokens(model):
    made = choices.task(2, 0, model=model)
    text = " ".join(t.strip() for t in made.clean_tokens[0])
    assert model.tokenizer(text)["input_ids"] == made.clean_ids[0].tolist()


def test_unknown_labels_and_empty_tasks_are_refused():
    with pytest.raises(UnknownNameError, match="usual"):
        choices.task(4, labels="usuals")
    with pytest.raises(InputError, match="row"):
        choices.task(0)
