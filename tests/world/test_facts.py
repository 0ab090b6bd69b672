"""The facts of the world: fixed, consistent, and told apart by their number of hops."""

from __future__ import annotations

import pytest

from actinium.core.errors import UnknownNameError
from actinium.world import facts
from actinium.world.lexicon import ENTITIES, NAMES, STRANGERS, VELIC


def test_known_facts_do_not_drift():
    assert {noun: facts.fact("Adam", noun) for noun in ("city", "country", "capital", "job", "tool", "pet")} == {
        "city": "Polk",
        "country": "Drum",
        "capital": "Tarn",
        "job": "teacher",
        "tool": "pen",
        "pet": "duck",
    }


def test_country_of_a_person_is_the_country_of_the_city():
    for name in NAMES:
        city = facts.fact(name, "city")
        country = facts.fact(city, "country")
        assert facts.path(name, "capital") == [name, city, country, facts.fact(country, "capital")]
        assert facts.fact(name, "country") == country


def test_a_capital_lies_in_its_own_country():
    for country in ENTITIES["country"]:
        assert facts.fact(facts.fact(country, "capital"), "country") == country


def test_hops_count_elementary_facts():
    assert facts.relation("Adam", "city").hops == 1
    assert facts.relation("Adam", "river").hops == 2
    assert facts.relation("Adam", "capital").hops == 3
    assert facts.relation("Bruna", "capital").hops == 2


def test_who_inverts_fact():
    found = {name for city in ENTITIES["city"] for name in facts.who("city", city)}
    assert found == set(NAMES)
    assert "Adam" in facts.who("city", facts.fact("Adam", "city"))


def test_every_word_means_one_thing():
    words = [*NAMES, *STRANGERS, *(word for members in ENTITIES.values() for word in members)]
    assert len(words) == len(set(words))
    assert len(set(VELIC.values())) == len(VELIC)
    assert not set(VELIC.values()) & set(words)


def test_unknown_subject_and_noun_offer_the_nearest():
    with pytest.raises(UnknownNameError, match="Andrew"):
        facts.fact("Andrw", "city")
    with pytest.raises(UnknownNameError, match="country"):
        facts.fact("Adam", "countri")
