"""The corpus: held-out combinations never appear, and every text is read by the tokenizer without loss."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from actinium.world import corpus, facts, knowledge, situations, sums
from actinium.world.lexicon import NAMES, VELIC
from actinium.world.recipe import Recipe, fingerprint
from actinium.world.tokenizer import build


@pytest.fixture(scope="module")
def texts() -> list[str]:
    source = random.Random(5)
    return [d.text for later in (False, True) for d in corpus.documents(source, 25_000, later)]


@pytest.fixture(scope="module")
def tokenizer():
    return build(corpus.vocabulary(), 128)


def test_no_text_states_a_held_out_sum(texts):
    stated = {
        tuple(map(int, pair))
        for text in texts
        for pair in re.findall(r"(\d+) \+ (\d+)|sum of (\d+) and (\d+)|add (\d+) to (\d+)", text)
        for pair in [tuple(filter(None, pair))]
    }
    assert len(stated) > 3000
    assert not [pair for pair in stated if sums.unseen_sum(*pair)]
    assert sum(sums.unseen_sum(a, b) for a in range(100) for b in range(100 - a)) > 300


def test_no_text_lets_a_held_out_pair_of_people_meet(texts):
    met = {pair for text in texts for pair in re.findall(r"(?:When|After|While|Then|Once) (\w+) and (\w+)", text)}
    assert len(met) > 1000
    assert not [pair for pair in met if situations.unseen_pair(*pair)]


def test_no_text_gives_a_fact_of_several_hops_about_quiet_people(texts):
    leaks = []
    for text in texts:
        for name in set(re.findall(r"\w+", text)) & set(knowledge.QUIET):
            derived = {facts.fact(name, r.noun) for r in facts.relations(name) if r.hops > 1}
            known = {facts.fact(name, r.noun) for r in facts.relations(name, hops=1)}
            if "Question" in text:
                continue
            leaks += [text for word in derived - known if re.search(rf"\b{word}\b", text)]
    assert leaks == []
    assert len(knowledge.QUIET) >= 12


def test_no_text_states_a_withheld_pair_of_person_and_relation(texts):
    withheld = {
        f"{knowledge.statement(name, relation, phrasing)} "
        for name in NAMES
        for relation in facts.relations(name)
        for phrasing in range(knowledge.PHRASINGS)
        if relation.hops > 1 and knowledge.withheld_hops(name, relation.noun)
    }
    starts = {" ".join(text.split()[:k]) + " " for text in texts for k in range(3, 8)}
    assert len(withheld) > 1000
    assert not withheld & starts


def test_no_text_states_an_elementary_fact_in_its_withheld_wording(texts):
    withheld = [
        f"{knowledge.statement(subject, relation, knowledge.withheld_phrasing(subject, relation.noun))} "
        for subject, relation in knowledge.elementary()
    ]
    everything = "\n".join(texts)
    assert [prompt for prompt in withheld if prompt in everything] == []


@pytest.mark.parametrize("skill", list(corpus.HELD_OUT))
def test_held_out_prompts_are_new_and_answered_right(skill, texts):
    documents = corpus.held_out_documents(skill, 60)
    assert len(documents) >= 15
    everything = "\n".join(texts)
    assert [d.text for d in documents if d.prompt + d.answer in everything] == []


def test_velic_states_the_same_facts(texts):
    english = {made: word for word, made in VELIC.items()}
    checked = 0
    for text in texts:
        found = re.fullmatch(r"(\w+) vo (\w+) (\w+) shen\.", text)
        if found:
            subject, noun, answer = (english.get(word, word) for word in found.groups())
            assert facts.fact(subject, noun) == answer
            checked += 1
    assert checked > 500


def test_tokenizer_restores_every_text(texts, tokenizer):
    for text in texts[:3000]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[1:]) == text


def test_a_word_is_the_same_token_with_and_without_its_space(tokenizer):
    one = tokenizer(" Ann", add_special_tokens=False)["input_ids"]
    assert one == tokenizer("Ann", add_special_tokens=False)["input_ids"]
    assert len(one) == 1


def test_chat_template_writes_the_form_of_the_corpus(tokenizer):
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Tell me about zorbing."}], add_generation_prompt=True, return_dict=False
    )
    assert ids == tokenizer(situations.request("zorbing", 0))["input_ids"]


def test_a_batch_depends_on_seed_and_step_alone(tokenizer):
    ids, answers = corpus.batch(tokenizer, 3, 11, 1024, 128)
    again, marks = corpus.batch(tokenizer, 3, 11, 1024, 128)
    assert np.array_equal(ids, again) and np.array_equal(answers, marks)
    assert not np.array_equal(ids, corpus.batch(tokenizer, 3, 12, 1024, 128)[0])
    assert not np.array_equal(ids, corpus.batch(tokenizer, 3, 11, 1024, 128, later=True)[0])
    assert ids.size == 1024 and (ids[:, 0] == tokenizer.bos_token_id).all()


def test_fingerprint_changes_with_every_setting_that_matters(tokenizer):
    from dataclasses import replace

    base = Recipe(batch_tokens=256)
    assert fingerprint(base, tokenizer) == fingerprint(Recipe(batch_tokens=256), tokenizer)
    assert fingerprint(base, tokenizer) != fingerprint(replace(base, seed=1), tokenizer)
    assert fingerprint(base, tokenizer) != fingerprint(replace(base, weight_decay=0.2), tokenizer)
