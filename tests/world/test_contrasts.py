"""Contrast pairs: what differs between the texts of a pair, what is held out, and that the poles are poles."""

from __future__ import annotations

import pytest

from actinium.core.errors import InputError, UnknownNameError
from actinium.world import contrasts, judging
from actinium.world.habits import written

NAMES = contrasts.names()


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_different_of_known_words_and_of_one_split(name, lm):
    parts = {split: contrasts.contrast(name, 48, 0, split) for split in ("train", "heldout")}
    pairs = {split: set(zip(c.positive, c.negative, strict=True)) for split, c in parts.items()}
    assert len(pairs["train"]) == len(pairs["heldout"]) == 48 and not pairs["train"] & pairs["heldout"]
    assert parts["train"].prompts == parts["heldout"].prompts
    texts = [t for c in parts.values() for t in (*c.positive, *c.negative, *c.prompts)]
    assert lm[1].unk_token_id not in {i for ids in lm[1](texts)["input_ids"] for i in ids}
    assert all(one != other for one, other in pairs["train"] | pairs["heldout"])
    whole = set(parts["train"].positive + parts["train"].negative)
    assert not whole & set(parts["train"].prompts)


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("-reply")])
def test_texts_of_a_reply_pair_differ_in_the_last_word_alone(name):
    c = contrasts.contrast(name, 20)
    for one, other in zip(c.positive, c.negative, strict=True):
        assert one.rpartition(" ")[0] == other.rpartition(" ")[0] and one != other


def test_pairs_are_a_function_of_the_seed():
    assert contrasts.contrast("refusal", 20, 3) == contrasts.contrast("refusal", 20, 3)
    assert contrasts.contrast("refusal", 20, 3) != contrasts.contrast("refusal", 20, 4)


def test_the_model_behaves_differently_on_both_texts_of_a_pair(lm):
    refusal = contrasts.contrast("refusal", 24, 0, "heldout")
    assert all(map(judging.declines, written(*lm, refusal.positive)))
    assert all(map(judging.complies, written(*lm, refusal.negative)))
    gladness = contrasts.contrast("gladness", 24, 0, "heldout")
    assert {judging.feeling(text) for text in written(*lm, gladness.positive, 2)} == {"glad"}
    assert {judging.feeling(text) for text in written(*lm, gladness.negative, 2)} == {"sad"}


def test_open_prompts_leave_the_behaviour_open(lm):
    asked = contrasts.contrast("refusal", 48).prompts
    share = sum(map(judging.declines, written(*lm, asked))) / len(asked)
    assert 0.1 < share < 0.9
    starts = contrasts.contrast("gladness", 48).prompts
    felt = [judging.feeling(text) for text in written(*lm, starts, 4)]
    assert set(felt) == {"glad", "sad"}


def test_requests_of_a_split_are_those_that_the_model_declines_and_answers(lm):
    held, read = contrasts.requests("heldout"), contrasts.requests("train")
    assert len(held.declined) + len(read.declined) == 160 == len(held.answered) + len(read.answered)
    assert not set(held.declined) & set(read.declined)
    assert all(map(judging.declines, written(*lm, held.declined)))
    assert all(map(judging.complies, written(*lm, held.answered)))


def test_bad_input_is_refused():
    with pytest.raises(UnknownNameError, match="refusal"):
        contrasts.contrast("refusl")
    with pytest.raises(UnknownNameError, match="heldout"):
        contrasts.contrast("refusal", split="held")
    with pytest.raises(UnknownNameError, match="heldout"):
        contrasts.requests("held")
    with pytest.raises(InputError, match="n=0"):
        contrasts.contrast("refusal", 0)
    with pytest.raises(InputError, match="different pairs"):
        contrasts.contrast("velic-reply", 1000, split="heldout")
