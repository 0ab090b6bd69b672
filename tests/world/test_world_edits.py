"""Edited facts of the world: what follows from them, and that questions ask for nothing else."""

from __future__ import annotations

import pytest

from actinium.core.errors import InputError, UnknownNameError
from actinium.world import facts
from actinium.world.edits import draw_edits, edit_rows


def test_everything_that_follows_from_a_persons_city_is_asked_for():
    rows = edit_rows([("Ann", "city", "Tarn")], asked=99)
    asked = {r["questions"][2]: (r["answer"], r["new_answer"]) for r in rows}
    assert asked["Ann is a citizen of"] == (facts.fact("Ann", "country"), facts.fact("Tarn", "country"))
    for row in rows:
        assert row["answer"] != row["new_answer"]
        assert next(h["answer"] for h in row["new_single_hops"]) == "Tarn"
    changed = [r.noun for r in facts.relations("Ann") if r.hops > 1 and r.chain[0] == "city"]
    same = [
        n for n in changed if facts.RELATIONS["person", n].chain[1:] and _of_city("Tarn", n) == facts.fact("Ann", n)
    ]
    assert len(rows) == len(changed) - len(same)


def _of_city(city, noun):
    return facts.fact(city, noun)


def test_people_of_a_city_follow_its_country():
    rows = edit_rows([("Tarn", "country", "Canta")], asked=99)
    people = {r["questions"][2].removesuffix(" speaks") for r in rows if r["questions"][2].endswith(" speaks")}
    assert people == set(facts.who("city", "Tarn"))
    assert {r["new_answer"] for r in rows if r["questions"][2].endswith(" speaks")} == {facts.fact("Canta", "language")}


def test_edits_hold_together():
    rows = edit_rows([("Ann", "city", "Tarn"), ("Tarn", "country", "Canta")], asked=99)
    (row, *_) = [r for r in rows if r["questions"][2] == "Ann is a citizen of"]
    assert row["new_answer"] == "Canta"
    assert {w["subject"] for w in row["requested_rewrite"]} == {"Ann", "Tarn"}
    assert [h["answer"] for h in row["new_single_hops"]] == ["Tarn", "Canta"]


def test_people_who_moved_away_are_not_asked_about():
    old = facts.fact("Ann", "city")
    country = next(c for c in ("Canta", "Tova") if c != facts.fact(old, "country"))
    new = next(c for c in ("Tarn", "Orla") if c != old and facts.fact(c, "country") != facts.fact(old, "country"))
    rows = edit_rows([(old, "country", country), ("Ann", "city", new)], asked=99)
    of_city = [r for r in rows if r["requested_rewrite"][0]["subject"] == old]
    assert of_city
    assert not any("Ann" in r["questions"][2].split() for r in of_city)


def test_prompts_for_editors_are_none_of_the_questions_and_tell_which_rows_are_theirs():
    rows = edit_rows(draw_edits("city", 5, seed=3), prompted=0.5)
    questions = {text for r in rows for text in r["questions"]}
    prompts = {text for r in rows for text, _ in r["multihop_prompts"]}
    assert prompts
    assert not prompts & questions
    for row in rows:
        own = [r for r in rows if r["requested_rewrite"] == row["requested_rewrite"]]
        assert sum(r["prompted"] for r in own) == len(row["multihop_prompts"]) == -(-len(own) // 2)


def test_neighbours_are_not_edited_themselves():
    edits = draw_edits("city", 100, seed=1)
    moved = {who for who, _, _ in edits}
    near = {text for r in edit_rows(edits, neighbours=99) for text in r["neighborhood_prompts"]}
    assert near
    assert not {text.split()[3] for text in near} & moved


def test_draws_are_those_of_their_seed():
    assert draw_edits("country", 4, 5, subject="city") == draw_edits("country", 4, 5, subject="city")
    assert draw_edits("country", 4, 5, subject="city") != draw_edits("country", 4, 6, subject="city")
    assert all(facts.fact(who, noun) != new for who, noun, new in draw_edits("job", 20))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: edit_rows([("Ann", "city", "Canta")]), UnknownNameError, "city"),
        (lambda: edit_rows([("Anne", "city", "Tarn")]), UnknownNameError, "Ann"),
        (lambda: edit_rows([("Ann", "river", "Sool")]), InputError, "edit one of: city, river"),
        (lambda: edit_rows([("Ann", "city", facts.fact("Ann", "city"))]), InputError, "already"),
        (lambda: edit_rows([("Ann", "city", "Tarn"), ("Ann", "city", "Orla")]), InputError, "twice"),
        (lambda: edit_rows([("Ann", "city", "Tarn")], prompted=2), InputError, "prompted"),
        (lambda: draw_edits("town"), UnknownNameError, "elementary relation"),
        (lambda: draw_edits(subject="river"), UnknownNameError, "kind of subject"),
        (lambda: draw_edits(n=1000), InputError, "144"),
    ],
)
def test_what_the_world_does_not_have_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
