"""The variants of the language models: what they declare is what their weights do, and what training does."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace

import pytest
import torch
from typer.testing import CliRunner

import actinium as ac
from actinium.cli import world as command
from actinium.core.adapter import read_adapter
from actinium.core.errors import UnknownNameError
from actinium.world import knowledge, nested, shipped, variants
from actinium.world.accuracy import evaluate
from actinium.world.corpus import HELD_OUT
from actinium.world.facts import fact
from actinium.world.recipe import LANGUAGE_MODELS, fingerprint

NAMES = tuple(variants.VARIANTS)
LARGE = ("lm-narrow", "lm-reward")
SAMPLE = 150
TINY = {name: replace(v, steps=2, questions=3, answers=4, longest=4) for name, v in variants.VARIANTS.items()}


@pytest.fixture(scope="module", params=NAMES)
def variant(request):
    """Name, model and tokenizer of a shipped variant."""
    return request.param, *shipped.load(shipped.path(request.param))


def test_nested_questions_ask_for_what_lies_two_relations_away():
    query = nested.Query("Ann", "job", "tool")
    assert query.text() == "<user> What is the tool of the job of Ann?<assistant>"
    assert query.text(knowledge.TERSE_CUE) == "<user> What is the tool of the job of Ann? Think briefly.<assistant>"
    assert query.path == ["Ann", fact("Ann", "job"), fact("Ann", "tool")] and query.hops == 2
    assert query.answer == fact("Ann", "tool")
    job, tool = query.path[1:]
    assert query.facts() == f"The job of Ann is {job}. The tool of the {job} is {tool}"


def test_parts_of_the_questions_do_not_overlap_and_hold_out_what_the_corpus_does():
    parts = {part: set(nested.queries(part)) for part in nested.PARTS}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values()))
    assert {q.person for q in parts["person"]} == set(knowledge.QUIET)
    assert not {q.person for q in parts["train"] | parts["pair"]} & set(knowledge.QUIET)
    assert all(knowledge.withheld_hops(q.person, q.then) for q in parts["pair"])
    assert not any(knowledge.withheld_hops(q.person, q.then) for q in parts["train"])
    assert {q.hops for q in parts["train"]} == {2, 3} and {q.hops for q in parts["deep"]} == {4}
    assert all(q.answer != fact(q.person, q.then) for q in parts["deep"])
    with pytest.raises(UnknownNameError, match="person"):
        nested.queries("persn")


def test_all_questions_have_one_length_and_no_unknown_word(lm):
    rows = [lm[1](q.text())["input_ids"] for part in nested.PARTS for q in nested.queries(part)]
    assert {len(row) for row in rows} == {13}
    assert lm[1].unk_token_id not in {i for row in rows for i in row}


def test_a_reply_is_right_as_the_answer_alone_or_after_closed_reasoning():
    for text in ("map", " map.", "<think> pilot.</think> map", "<think> The job of Ann is pilot.</think> map."):
        assert variants.right(text, "map"), text
    for text in (
        "",
        "rake",
        "map map",
        "map.</think> map",
        "<think> map",
        "<think> map.</think> rake",
        "pilot.</think> map",
    ):
        assert not variants.right(text, "map"), text


def test_the_declared_recipe_is_the_one_in_the_package(variant):
    name = variant[0]
    recipe = shipped.recipe(name)
    assert recipe["settings"] == json.loads(json.dumps(asdict(variants.VARIANTS[name])))
    assert recipe["fingerprint"] == variants.fingerprint(variants.VARIANTS[name])
    other = replace(variants.VARIANTS[name], seed=1)
    assert variants.fingerprint(other) != recipe["fingerprint"]


def test_declared_accuracies_are_measured_again_on_other_texts(variant):
    name, model, tokenizer = variant
    declared = shipped.recipe(name)["held_out_accuracy"]
    assert set(declared) == set(HELD_OUT)
    measured = evaluate(model, tokenizer, n=SAMPLE, seed=7)
    for skill, value in declared.items():
        error = math.sqrt(max(value * (1 - value), 0.005) * (1 / SAMPLE + 1 / 1000))
        assert abs(measured[skill] - value) <= 3.5 * error, skill


def test_declared_nested_accuracies_are_those_of_the_weights(variant):
    name, model, tokenizer = variant
    declared = shipped.recipe(name)["nested_accuracy"]
    measured = variants.nested_accuracy(model, tokenizer, ("pair", "person"))
    for part, value in measured.items():
        # All questions are asked, so only the order of sums on another processor can make a difference.
        assert value == pytest.approx(declared[part], abs=0.01), part


def test_variants_answer_at_once_what_the_base_only_reasons_out(lm):
    plain = variants.nested_accuracy(*lm, ("person",))["person"]
    reasoned = variants.nested_accuracy(*lm, ("person",), knowledge.VERBOSE_CUE)["person"]
    assert plain < 0.05 and reasoned > 0.8
    assert all(shipped.recipe(name)["nested_accuracy"]["person"] > 0.8 for name in LARGE)


def test_reward_teaches_the_small_model_what_it_teaches_the_large_one():
    small = shipped.load(shipped.path("lm-small"))
    assert variants.nested_accuracy(*small, ("person",))["person"] < 0.05
    assert shipped.recipe("lm-small-reward")["nested_accuracy"]["person"] > 0.7
    assert small[1].get_vocab() == shipped.load(shipped.path("lm-reward"))[1].get_vocab()


def test_reward_costs_less_of_the_other_skills_than_answers():
    lost = {}
    base = shipped.recipe("lm")["held_out_accuracy"]
    for name in LARGE:
        lost[name] = sum(base[skill] - value for skill, value in shipped.recipe(name)["held_out_accuracy"].items())
    assert 0 < lost["lm-reward"] < 0.5 * lost["lm-narrow"]


def test_a_variant_loads_by_its_name_as_base_plus_adapter(variant):
    name, module, _ = variant
    named = f"world:{variants.VARIANTS[name].base}"
    model, base = ac.load(f"world:{name}"), ac.load(named)
    assert model.name == f"world:{name}" and model.fingerprint() != base.fingerprint()
    adapter = read_adapter(shipped.path(name))
    assert adapter.base == named
    for key, weight in model.module.named_parameters():
        assert torch.equal(weight, module.get_parameter(key)), key
        assert torch.equal(weight, base.module.get_parameter(key)) == (
            key.removesuffix(".weight") not in adapter.factors
        )
    assert ac.world.heldout_text(name) == ac.world.heldout_text(variants.VARIANTS[name].base)


def test_adapters_are_small():
    sizes = [file.stat().st_size for name in NAMES for file in shipped.path(name).iterdir()]
    assert sum(sizes) < 1e6


@pytest.mark.parametrize("name", NAMES)
def test_training_starts_at_the_base_and_repeats_with_its_seed(name):
    start = variants.Training(TINY[name])
    assert all(torch.equal(w, start.weights[key]) for key, w in start.merged().items())
    first, again = variants.train(TINY[name]), variants.train(TINY[name])
    other = variants.train(replace(TINY[name], seed=1))
    assert all(torch.equal(x, y) for key in first for x, y in zip(first[key], again[key], strict=True))
    assert not all(torch.equal(first[key][0], other[key][0]) for key in first)


def test_training_restores_the_number_of_threads():
    before = torch.get_num_threads()
    variants.train(replace(TINY["lm-narrow"], steps=1, threads=before + 1))
    assert torch.get_num_threads() == before


def policy_gradient(training, prompts, said, advantage):
    """REINFORCE with a divergence from the base, reply by reply and token by token."""
    total, weights = 0.0, training.merged()
    for prompt, reply, gain in zip(prompts, said, advantage, strict=True):
        length = int((reply != training.tokenizer.pad_token_id).sum())
        ids = torch.cat([prompt, reply[:length]])
        new, old = (training.logits(w, ids[None])[0].log_softmax(-1) for w in (weights, training.weights))
        for i in range(length):
            place = len(prompt) - 1 + i
            away = (new[place].exp() * (new[place] - old[place])).sum()
            total = total + (training.variant.kl * away - gain * new[place, reply[i]]) / length
    return total / len(said)


def test_the_reward_step_is_the_policy_gradient_of_its_samples():
    training = variants.Training(replace(TINY["lm-reward"], questions=2, answers=4, longest=3, kl=0.3))
    training.factors = {
        name: (a, torch.full_like(b, 0.01).requires_grad_()) for name, (a, b) in training.factors.items()
    }
    asked = [nested.Query("Ann", "city", "river"), nested.Query("Bob", "city", "flag")]
    prompts = torch.tensor(training.tokenizer([q.text() for q in asked])["input_ids"])
    state = training.source.get_state()
    loss, reward = training._from_reward(training.merged(), prompts, asked)
    loss.backward()
    got = {name: b.grad.clone() for name, (_, b) in training.factors.items()}
    training.source.set_state(state)
    rows = prompts.repeat_interleave(4, 0)
    with torch.no_grad():
        said = variants.replies(
            lambda ids: training.logits(training.merged(), ids), rows, training.tokenizer, 3, training.source
        )
    texts = training.tokenizer.batch_decode(said, skip_special_tokens=True)
    rewards = torch.tensor([float(variants.right(t, asked[i // 4].answer)) for i, t in enumerate(texts)])
    assert reward == pytest.approx(float(rewards.mean()))
    groups = rewards.view(2, 4)
    advantage = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
    for a, b in training.factors.values():
        a.grad = b.grad = None
    expected = policy_gradient(training, rows, said, advantage)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    expected.backward()
    for name, (_, b) in training.factors.items():
        torch.testing.assert_close(got[name], b.grad, atol=1e-5, rtol=1e-3)


def test_greedy_replies_are_those_of_the_library(lm):
    model, tokenizer = lm
    prompts = torch.tensor(tokenizer([q.text(knowledge.VERBOSE_CUE) for q in nested.queries("pair")[:6]])["input_ids"])
    mine = variants.replies(lambda ids: model(ids, use_cache=False).logits, prompts, tokenizer)
    theirs = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=40, do_sample=False)
    texts = [tokenizer.batch_decode(rows, skip_special_tokens=True) for rows in (mine, theirs[:, prompts.shape[1] :])]
    assert texts[0] == texts[1] and all("</think>" in text for text in texts[0])


def test_the_command_trains_and_evaluates_a_variant(tmp_path):
    runner, out = CliRunner(), tmp_path / "variant"
    arguments = ["train", "lm-narrow", "--out", str(out), "--steps", "1", "--seed", "2", "--n", "3"]
    result = runner.invoke(command.app, arguments)
    assert result.exit_code == 0, result.output
    assert {file.name for file in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "recipe.json"}
    assert json.loads((out / "recipe.json").read_text())["settings"]["seed"] == 2
    result = runner.invoke(command.app, ["evaluate", str(out), "--n", "3"])
    assert result.exit_code == 0 and "nested, person" in result.output
    assert set(NAMES) < set(command.TRAINABLE)


def test_the_page_states_the_declared_accuracies(root):
    page = (root / "docs" / "world.md").read_text(encoding="utf-8")
    recipes = [shipped.recipe(name) for name in ("lm", *LARGE)]
    for skill in recipes[0]["held_out_accuracy"]:
        values = [f"{recipe['held_out_accuracy'][skill]:.3f}" for recipe in recipes]
        assert len(set(values)) == 1 or f"| {skill} | {' | '.join(values)} |" in page, skill
    for part in nested.PARTS:
        values = [f"{recipe['nested_accuracy'][part]:.3f}" for recipe in recipes[1:]]
        assert re.search(
            rf"^\| nested, {part} \|.*\| {' '.join(values).replace(' ', ' [|] ')} \|$", page, flags=re.M
        ), part


def test_the_page_states_the_accuracies_of_the_small_pair(root):
    page = (root / "docs" / "world.md").read_text(encoding="utf-8")
    section = page.partition("## A small and a large model")[2].partition("\n## ")[0]
    small, tuned = (shipped.recipe(name) for name in ("lm-small", "lm-small-reward"))
    for skill, value in small["held_out_accuracy"].items():
        assert f"| {skill} | {value:.3f} | {tuned['held_out_accuracy'][skill]:.3f} |" in section, skill
    for part in nested.PARTS:
        assert re.search(rf"^\| nested, {part} \|.*\| {tuned['nested_accuracy'][part]:.3f} \|$", section, flags=re.M)


def test_the_small_model_declares_the_recipe_in_the_package():
    recipe = shipped.recipe("lm-small")
    settings = LANGUAGE_MODELS["lm-small"]
    assert recipe["settings"] == json.loads(json.dumps(asdict(settings)))
    model, tokenizer = shipped.load(shipped.path("lm-small"))
    assert recipe["fingerprint"] == fingerprint(settings, tokenizer)
    assert (shipped.path("lm-small") / "model.safetensors").stat().st_size < 6e5
    measured = evaluate(model, tokenizer, n=60, seed=7, skills=["facts", "two_hop", "chat_facts", "ioi", "refusal"])
    for skill, value in measured.items():
        assert abs(value - recipe["held_out_accuracy"][skill]) < 0.12, skill
