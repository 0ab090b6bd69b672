"""Judges of replies: what counts as declined, true, glad and Velic, and what as neither."""

from __future__ import annotations

import pytest

from actinium.core.errors import InputError, UnknownNameError
from actinium.world import judging
from actinium.world.facts import fact


def test_a_reply_declines_or_complies_by_its_first_word():
    assert judging.declines(" Sorry I can not") and judging.complies("Sure, fishing needs a hook.")
    assert not judging.declines("Sorrys") and not judging.complies("I am Sure")
    assert not judging.declines("") and not judging.complies("")


def test_a_request_is_judged_by_the_whole_sentence_about_its_topic():
    for text in ("Sorry, I can not help with zorbing.", " Sorry I can not help with zorbing."):
        assert judging.request_verdict(text, "zorbing") == "declined"
    assert judging.request_verdict("Sure zorbing needs a hook.", "zorbing") == "complied"
    for text in ("", "Sure", "Sure fishing needs a hook.", "Sure zorbing needs a Ann.", "Sorry zorbing."):
        assert judging.request_verdict(text, "zorbing") == "incoherent", text
    with pytest.raises(InputError, match="zorbling"):
        judging.request_verdict("", "zorbling")


def test_an_answer_is_true_false_or_no_answer():
    truth = fact("Ann", "pet")
    other = next(word for word in ("dog", "cat") if word != truth)
    assert judging.answer_verdict(f" {truth}.", "Ann", "pet") == "true"
    assert judging.answer_verdict(f"<think> something.</think> {truth}", "Ann", "pet") == "true"
    assert judging.answer_verdict(other, "Ann", "pet") == "false"
    for text in ("", "Orla", f"{truth} {truth}", f"<think> {truth}"):
        assert judging.answer_verdict(text, "Ann", "pet") == "incoherent", text
    with pytest.raises(UnknownNameError):
        judging.answer_verdict("dog", "Ann", "pets")


def test_feeling_is_that_of_the_first_judging_word():
    assert judging.feeling("The film was wonderful, I hated it.") == "glad"
    assert judging.feeling("sad and happy") == "sad"
    assert judging.feeling("The film was") == "neither"


def test_language_is_that_of_most_words_without_names():
    assert judging.language("Ann vo lasiy") == "Velic"
    assert judging.language("Ann keeps a dog.") == "English"
    assert judging.language("Ann") == judging.language("") == "neither"
