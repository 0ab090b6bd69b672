"""Generated puzzles have one answer and no clue too many, whatever they are about, and come back from a file."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from puzzle_reference import arrangements

from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.probes.arrangement_puzzle import ArrangementPuzzle
from actinium.probes.puzzle_clues import RELATIONS, PuzzleClue
from actinium.probes.puzzle_wording import ATTRIBUTES, WORDINGS, Language, PuzzleAttribute, PuzzleWording

generate = ArrangementPuzzle.generate
TYPES = [name for name, kind in RELATIONS.items() if not kind.across]
PLAIN = {"at": ("{x} in {slot}",), "not_at": ("{x} not in {slot}",)}


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(2, 1), (3, 1), (4, 1), (5, 1), (3, 2)]),
    st.sampled_from(sorted(WORDINGS)),
)
def test_clues_leave_the_solution_alone_and_none_can_be_spared(seed, size, wording):
    n, dims = size
    puzzle = generate(n, seed, dims=dims, wording=wording)
    (only,) = arrangements(puzzle.space, puzzle.clues)
    assert [only[e] for e in puzzle.space.entities] == list(puzzle.slots)
    for clue in puzzle.clues:
        rest = [other for other in puzzle.clues if other is not clue]
        assert len(arrangements(puzzle.space, rest)) > 1


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(TYPES))
def test_only_the_clue_types_asked_for_occur(seed, name):
    puzzle = generate(4, seed, [name, "left_of"])
    assert {clue.relation for clue in puzzle.clues} <= {name, "left_of"}
    assert len(arrangements(puzzle.space, puzzle.clues)) == 1


@pytest.mark.parametrize(("n", "dims", "wording"), [(7, 1, "days"), (8, 1, "seats"), (4, 3, "seats")])
def test_puzzles_beyond_the_bitmask_are_solved_by_search(n, dims, wording):
    puzzle = generate(n, 5, dims=dims, wording=wording)
    puzzle.check()
    assert puzzle.difficulty["bits"] == pytest.approx(dims * math.log2(math.factorial(n)))
    if n == 7:
        assert len(arrangements(puzzle.space, puzzle.clues)) == 1


def test_both_ways_of_excluding_draw_the_same_puzzle():
    assert generate(5, 3, method="search") == generate(5, 3, method="bitmask")


def test_same_seed_same_puzzle_and_another_seed_another_one():
    assert generate(5, 3) == generate(5, 3)
    assert generate(5, 3).text == generate(5, 3).text != generate(5, 4).text


def test_all_relations_are_drawn_and_orders_are_even():
    puzzles = [generate(4, seed, attributes=[PuzzleAttribute("person", tuple("ABCD"))]) for seed in range(200)]
    drawn = [clue.relation for puzzle in puzzles for clue in puzzle.clues]
    assert set(drawn) == set(TYPES)
    first = [puzzle.solution[0][0] for puzzle in puzzles]
    for name in "ABCD":  # binomial, 200 draws of 1/4: five standard deviations
        assert abs(first.count(name) - 50) < 5 * math.sqrt(200 * 0.25 * 0.75)


def test_text_of_a_puzzle_by_hand():
    people = (
        PuzzleAttribute("person", ("Ann", "Bob", "Carl")),
        PuzzleAttribute("drink", ("tea", "milk", "beer"), "the {} drinker"),
    )
    clues = (PuzzleClue("left_of", ("Ann", "Bob")), PuzzleClue("same", ("tea", "Carl")), PuzzleClue("at", ("tea",), 3))
    clues += (PuzzleClue("left_of", ("beer", "milk")),)
    puzzle = ArrangementPuzzle(
        people, WORDINGS["seats"], clues, (0, 1, 2, 1), (("Ann", "Bob", "Carl"), ("beer", "milk", "tea"))
    )
    puzzle.check()
    assert puzzle.text == (
        "Ann, Bob and Carl sit in a row from seat 1 to seat 3.\n"
        "Each has one drink: tea, milk and beer.\n"
        "Clue 1: Ann is left of Bob.\n"
        "Clue 2: The tea drinker and Carl share a seat.\n"
        "Clue 3: Seat 3 is taken by the tea drinker.\n"
        "Clue 4: The beer drinker sits to the left of the milk drinker."
    )
    assert puzzle.answer == "Answer: Ann, Bob, Carl; beer, milk, tea."


@settings(max_examples=80)
@given(st.data())
def test_what_is_said_is_read_back(data):
    n = data.draw(st.integers(3, 7))
    dims = data.draw(st.integers(1, 3))
    wording = WORDINGS[data.draw(st.sampled_from(sorted(WORDINGS)))]
    attributes = tuple(PuzzleAttribute(a.name, a.values[:n], a.phrase) for a in ATTRIBUTES[:dims])
    language = Language(attributes, wording)
    relation = data.draw(st.sampled_from([name for name, kind in RELATIONS.items() if dims > 1 or not kind.across]))
    clue = data.draw(st.sampled_from(list(language.space.clues(relation))))
    text = language.say(clue, data.draw(st.integers(0, 5)))
    assert language.read(text) == clue
    assert language.read(f"  {text.upper()} .") == clue
    assert language.read(text + " today") is None


def test_a_slot_is_not_read_as_the_beginning_of_another():
    names = PuzzleAttribute("letter", tuple("ABCDEFGHIJK"))
    language = Language((names,), WORDINGS["seats"])
    assert language.read("A is in seat 11") == PuzzleClue("at", ("A",), 11)
    assert language.read("A is in seat 1") == PuzzleClue("at", ("A",), 1)
    assert language.read("A is in seat 12") is None
    assert language.read("A is 11 away from B") is None


def test_puzzles_come_back_from_a_file(tmp_path):
    rooms = PuzzleWording("rooms", ("hall", "attic", "cellar"), "{n} guests: {entities}.", PLAIN)
    guests = [PuzzleAttribute("guest", ("Mia", "Noa", "Olaf"))]
    puzzles = [generate(4, 1), generate(3, 2, dims=2, wording="days"), generate(3, 0, wording=rooms, attributes=guests)]
    path = ArrangementPuzzle.to_jsonl(puzzles, tmp_path / "puzzles.jsonl")
    wordings = WORDINGS | {"rooms": rooms}
    assert ArrangementPuzzle.from_jsonl(path, wordings) == puzzles
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["text"] for record in records] == [puzzle.text for puzzle in puzzles]
    assert records[0]["difficulty"]["clues"] == len(puzzles[0].clues)
    with pytest.raises(UnknownNameError, match=r"line 3: no wording 'rooms'"):
        ArrangementPuzzle.from_jsonl(path)
    assert not list(tmp_path.glob("*.partial"))


def _without_a_clue(record):
    record["clues"].pop()


def _contradiction(record):
    clue = record["clues"][0]
    record["clues"] = [
        clue | {"relation": r, "entities": ["Ann"], "number": 1, "template": 0} for r in ("at", "not_at")
    ]


def _other_solution(record):
    record["solution"] = [record["solution"][0][::-1]]


def _other_text(record):
    record["text"] += " "


def _lost(record):
    del record["solution"]


def _other_format(record):
    record["format"] = 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_without_a_clue, InputError, "line 1: the clues leave more than one"),
        (_contradiction, InputError, "line 1: the clues leave no arrangement"),
        (_other_solution, InputError, "another arrangement than the solution"),
        (_other_text, InputError, "otherwise than it is written"),
        (_lost, LoadError, "line 1: this is no puzzle"),
        (_other_format, LoadError, "no puzzle of format 1"),
    ],
)
def test_a_file_that_was_tampered_with_is_refused(tmp_path, change, error, message):
    record = generate(4, 1, attributes=[PuzzleAttribute("person", ("Ann", "Bob", "Carl", "Dora"))]).to_record()
    change(record)
    path = tmp_path / "puzzles.jsonl"
    path.write_text(json.dumps(record))
    with pytest.raises(error, match=message):
        ArrangementPuzzle.from_jsonl(path)


def test_a_file_that_is_absent_or_no_json_is_refused(tmp_path):
    with pytest.raises(LoadError, match="cannot read"):
        ArrangementPuzzle.from_jsonl(tmp_path / "absent")
    (tmp_path / "broken").write_text('{"format": 1')
    with pytest.raises(LoadError, match="line 1"):
        ArrangementPuzzle.from_jsonl(tmp_path / "broken")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 1}, InputError, "n must be from 2 to 12"),
        ({"n": 13}, InputError, "n must be from 2 to 12"),
        ({"n": 8, "wording": "days"}, InputError, "has 7 slots"),
        ({"dims": 0}, InputError, "dims=0"),
        ({"dims": 4}, InputError, "needs 4 attributes, there are 3"),
        ({"clue_types": ["adjacent", "end"]}, InputError, "leave more than one arrangement"),
        ({"clue_types": ["same"]}, InputError, "needs two attributes"),
        ({"clue_types": []}, InputError, "list of relations"),
        ({"clue_types": ["left"]}, UnknownNameError, "left_of"),
        ({"wording": "seat"}, UnknownNameError, "seats"),
        ({"method": "brute"}, UnknownNameError, "no method"),
        ({"n": 9, "method": "bitmask"}, InputError, "use method='search'"),
        ({"attributes": [PuzzleAttribute("a", ("seat 1", "B", "C", "D"))]}, InputError, "called alike"),
    ],
)
def test_what_cannot_be_generated_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        generate(**{"n": 4, **arguments})


@pytest.mark.parametrize(
    ("templates", "error", "message"),
    [
        ({"at": ("{x} in {slot}",)}, InputError, "needs templates of at and not_at"),
        (PLAIN | {"end": ("{x} at the end of {slot}",)}, InputError, r"must hold \{x\}, once each"),
        (PLAIN | {"not_at": ("{x} in {slot}",)}, InputError, "says two things alike"),
        (PLAIN | {"between": ("{x} by {y} {z}", "{z} by {y} {x}")}, InputError, "says two things alike"),
        (PLAIN | {"beside": ("{x} {y}",)}, UnknownNameError, "no relation 'beside'"),
    ],
)
def test_a_wording_that_could_not_be_read_back_is_refused(templates, error, message):
    with pytest.raises(error, match=message):
        PuzzleWording("odd", ("1", "2", "3"), "", templates)


def test_entities_and_solutions_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="twice"):
        PuzzleAttribute("a", ("Ann", "ann"))
    with pytest.raises(InputError, match="two or more names"):
        PuzzleAttribute("a", ("Ann",))
    with pytest.raises(InputError, match="once"):
        PuzzleAttribute("a", ("Ann", "Bob"), "the one")
    puzzle = generate(3, 0)
    with pytest.raises(InputError, match="every entity of every attribute once"):
        dataclasses.replace(puzzle, solution=(("Ann", "Ann", "Bob"),))
    with pytest.raises(InputError, match="templates for them"):
        dataclasses.replace(puzzle, phrasing=())
    with pytest.raises(UnknownNameError, match="no entity"):
        dataclasses.replace(puzzle, clues=(PuzzleClue("end", ("Zoe",)),), phrasing=(0,))
