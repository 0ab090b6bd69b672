"""The shipped model: what it declares is what its weights do, and its folder is a plain Hugging Face one."""

from __future__ import annotations

import hashlib
import json
import math
import re

import pytest
import torch
from safetensors import safe_open

import actinium as ac
from actinium.core.errors import UnknownNameError
from actinium.world import corpus, shipped, tasks
from actinium.world.accuracy import GENERALISES, NOT_LEARNT, PARTLY, correct, evaluate
from actinium.world.documents import THINK, Document
from actinium.world.knowledge import VERBOSE_CUE, question, reasoning
from actinium.world.recipe import Recipe, fingerprint

SAMPLE = 200


@pytest.fixture(scope="module")
def measured(lm):
    return evaluate(*lm, n=SAMPLE, seed=7)


def test_the_declared_recipe_is_the_one_in_the_package(lm):
    recipe = shipped.recipe("lm")
    assert recipe["settings"] == json.loads(json.dumps(Recipe().__dict__))
    assert recipe["fingerprint"] == fingerprint(Recipe(), lm[1])


def test_skills_declared_to_generalise_reach_nine_in_ten(measured):
    assert {skill: measured[skill] for skill in GENERALISES if measured[skill] < 0.9} == {}
    assert set(GENERALISES) | set(PARTLY) | set(NOT_LEARNT) == set(corpus.HELD_OUT)
    declared = shipped.recipe("lm")["held_out_accuracy"]
    assert set(GENERALISES) == {skill for skill, value in declared.items() if value >= 0.9}


@pytest.mark.parametrize("skill", list(corpus.HELD_OUT))
def test_declared_accuracy_is_measured_again_on_other_texts(skill, measured):
    declared = shipped.recipe("lm")["held_out_accuracy"][skill]
    error = math.sqrt(max(declared * (1 - declared), 0.005) * (1 / SAMPLE + 1 / 1000))
    assert abs(measured[skill] - declared) <= 3.5 * error


def test_an_untrained_model_does_not_pass(lm):
    from actinium.world.train import make_model

    values = evaluate(make_model(Recipe(), lm[1]).eval(), lm[1], n=50, skills=["facts", "ioi", "refusal"])
    assert max(values.values()) < 0.2


def test_counted_answers_are_those_that_generation_writes(lm):
    model, tokenizer = lm
    person = "Albert"
    document = Document("", question(person, "country", VERBOSE_CUE), reasoning(person, "country", True))
    ids = tokenizer(document.prompt, return_tensors="pt")["input_ids"]
    answer = tokenizer(document.answer, add_special_tokens=False)["input_ids"]
    written = model.generate(ids, max_new_tokens=len(answer), do_sample=False)[0, ids.shape[1] :].tolist()
    assert correct(model, tokenizer, [document]) == [written == answer]
    assert tokenizer.decode(written).startswith(THINK)


@pytest.mark.parametrize("name", ["ioi", "greater_than", "facts", "two_hop", "sentiment", "arithmetic", "refusal"])
def test_the_model_prefers_the_answer_in_clean_and_the_wrong_one_in_corrupt_prompts(name, lm):
    task = getattr(tasks, name)(lm[1], n=48)
    metric = ac.metrics.get_metric(task.metric)
    values = []
    for ids in (task.clean_ids, task.corrupt_ids):
        logits = lm[0](ids, attention_mask=task.mask.long(), use_cache=False).logits[:, -1]
        values.append(metric(logits, task.answer_ids, task.wrong_ids))
    assert (values[0] > 0).float().mean() > 0.9
    # Where the corrupt prompt starts at the earliest year, both years are possible: no preference is due.
    assert (values[1] < values[0]).float().mean() > 0.9


def test_the_folder_is_small_half_precision_and_computes_in_float32(lm):
    folder = shipped.path("lm")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8e6
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118
    model, tokenizer = lm
    assert model.dtype == torch.float32
    assert 1e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 3e6
    assert tokenizer("Ann lives in")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.pad_token_id is not None and tokenizer.chat_template


def test_shipped_text_is_known_words_and_unseen_combinations(lm):
    lines = shipped.heldout_text("lm")
    assert len(lines) > 250 and all(lines)
    assert lm[1].unk_token_id not in {i for ids in lm[1](lines)["input_ids"] for i in ids}
    drawn = {d.text for skill in corpus.HELD_OUT for d in corpus.held_out_documents(skill, shipped.HELDOUT_LINES, 1)}
    assert set(lines) == drawn


def test_export_and_load_keep_half_precision_weights(lm, tmp_path):
    folder = shipped.export(*lm, Recipe(), tmp_path / "copy", n=4)
    for name in ("model.safetensors", "heldout.txt", "tokenizer.json"):
        digests = {hashlib.sha256((place / name).read_bytes()).digest() for place in (folder, shipped.path("lm"))}
        assert len(digests) == 1, name


def test_names_and_unknown_names():
    assert "lm" in shipped.names() == ac.world.names()
    assert ac.world.path("lm").parent.name == "weights"
    with pytest.raises(UnknownNameError, match="lm"):
        ac.world.path("lmm")


def test_the_page_states_the_declared_accuracies(root):
    page = (root / "docs" / "world.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(\w+)` \|.*\| ([01]\.\d{3}) \|$", page, flags=re.M))
    declared = shipped.recipe("lm")["held_out_accuracy"]
    assert stated == {skill: f"{value:.3f}" for skill, value in declared.items()}
