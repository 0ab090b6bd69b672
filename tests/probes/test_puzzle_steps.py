"""Gold steps are right and carried by what they cite, edited ones are wrong, and words do not tell them apart."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from puzzle_reference import arrangements, meaning

from actinium.core.errors import InputError, UnknownNameError
from actinium.probes.arrangement_puzzle import ArrangementPuzzle
from actinium.probes.equivalence import token_overlap
from actinium.probes.puzzle_clues import Knowledge, PuzzleClue, Space
from actinium.probes.puzzle_elimination import eliminate
from actinium.probes.puzzle_steps import (
    equivalence_quadruples,
    gold_chain,
    minimal_edits,
    solution_text,
    step_dataset,
)
from actinium.probes.puzzle_verifier import PuzzleVerifier
from actinium.probes.puzzle_wording import PuzzleAttribute

PEOPLE = [PuzzleAttribute("person", ("Ann", "Bob", "Carl", "Dora"))]


@pytest.fixture(scope="module")
def puzzles():
    return [ArrangementPuzzle.generate(4, seed, attributes=PEOPLE) for seed in range(40)]


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([(3, 1), (5, 1), (3, 2)]), st.sampled_from(["at", "not_at", "any"]))
def test_every_step_of_a_chain_follows_from_what_it_cites_and_from_nothing_less(seed, size, first):
    puzzle = ArrangementPuzzle.generate(size[0], seed, dims=size[1])
    chain = gold_chain(puzzle, seed, first)
    for i, step in enumerate(chain):
        cited = [*(puzzle.clues[c - 1] for c in step.clues), *(chain[s - 1].claim for s in step.steps)]
        assert all(s <= i for s in step.steps)
        for premises, follows in [(cited, True), *((cited[:k] + cited[k + 1 :], False) for k in range(len(cited)))]:
            truth = [meaning(step.claim, where, puzzle.space.n) for where in arrangements(puzzle.space, premises)]
            assert all(truth) == follows
    assert len(arrangements(puzzle.space, [step.claim for step in chain])) == 1


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from(["seats", "days", "shelves"]))
def test_the_verifier_finds_every_gold_step_correct(seed, wording):
    puzzle = ArrangementPuzzle.generate(5, seed, wording=wording)
    for because in (True, False):
        text = solution_text(puzzle, gold_chain(puzzle, seed), because=because, seed=seed)
        assert {verdict.label for verdict in PuzzleVerifier(puzzle).check_solution(text)} == {"correct"}
        assert text.endswith(puzzle.answer)


def test_a_chain_of_placements_is_shorter_than_one_of_exclusions(puzzles):
    lengths = {first: sum(len(gold_chain(p, 0, first)) for p in puzzles) for first in ("at", "any", "not_at")}
    assert lengths["at"] < lengths["any"] < lengths["not_at"]
    assert puzzles[0].difficulty["steps"] == len(gold_chain(puzzles[0]))


def test_minimal_edits_by_hand():
    space = Space((("A", "B", "C"),))
    assert minimal_edits(space, PuzzleClue("at", ("A",), 1)) == {
        "entity": [PuzzleClue("at", ("B",), 1), PuzzleClue("at", ("C",), 1)],
        "slot": [PuzzleClue("at", ("A",), 2), PuzzleClue("at", ("A",), 3)],
        "relation": [],
        "negate": [PuzzleClue("not_at", ("A",), 1)],
    }
    edits = minimal_edits(space, PuzzleClue("left_of", ("A", "B")))
    assert edits["entity"] == [PuzzleClue("left_of", ("C", "B")), PuzzleClue("left_of", ("A", "C"))]
    assert edits["relation"] == [PuzzleClue("adjacent", ("A", "B")), PuzzleClue("not_adjacent", ("A", "B"))]
    assert edits["negate"] == [PuzzleClue("right_of", ("A", "B"))]
    assert edits["slot"] == []
    two = Space((("A", "B"), ("p", "q")))
    assert minimal_edits(two, PuzzleClue("same", ("A", "p")))["negate"] == [PuzzleClue("not_same", ("A", "p"))]
    assert minimal_edits(two, PuzzleClue("same", ("A", "p")))["entity"] == [
        PuzzleClue("same", ("B", "p")),
        PuzzleClue("same", ("A", "q")),
    ]


@pytest.mark.parametrize("edits", [("entity", "slot"), ("negate",), ("relation", "entity", "slot", "negate")])
def test_labels_are_those_of_the_verifier_and_only_the_clues_decide(puzzles, edits):
    rows = step_dataset(puzzles, edits=edits, balance="none", because=True)
    assert {row.edit for row in rows} >= {"gold"}
    for row in rows[::7]:
        puzzle = puzzles[row.group]
        before = row.prompt.removeprefix(puzzle.text + "\n").splitlines()
        assert len(before) == row.index
        verdicts = PuzzleVerifier(puzzle).check_solution("\n".join([*before, row.text]))
        assert {v.label for v in verdicts[:-1]} <= {"correct"}
        assert verdicts[-1].label == ("correct" if row.correct else "contradicted")
        stated = Knowledge.of(puzzle.space, [v.claim for v in verdicts[:-1]])
        assert not stated.entails(row.claim) and not stated.contradicts(row.claim)


def test_balanced_classes_hold_the_same_lines(puzzles):
    rows = step_dataset(puzzles)
    right, wrong = (Counter((r.index, r.claim) for r in rows if r.correct is value) for value in (True, False))
    assert right == wrong and len(rows) > 60
    by_relation = step_dataset(puzzles, balance="relation")
    counts = [Counter((r.claim.relation, r.claim.number) for r in by_relation if r.correct is v) for v in (True, False)]
    assert counts[0] == counts[1]
    assert len(rows) <= len(by_relation) <= len(step_dataset(puzzles, balance="none"))
    assert step_dataset(puzzles) == rows != step_dataset(puzzles, seed=1)


def test_quadruples_hold_one_equivalent_one_near_and_one_unrelated_statement(puzzles):
    for quadruple in equivalence_quadruples(puzzles, 3):
        space = puzzles[quadruple.group].space
        every = Knowledge.of(space)
        bits = [every.add(claim).bits for claim in quadruple.claims]
        assert bits[1] == bits[0] not in (bits[2], bits[3])
        assert [puzzles[quadruple.group].language.read(text) for text in quadruple.texts] == list(quadruple.claims)
        first, same, near, other = quadruple.texts
        assert len({first, same, near, other}) == 4
        assert sorted(same.lower().strip(".").split()) == sorted(near.lower().strip(".").split())
        assert token_overlap(first, same) == token_overlap(first, near)
        assert len(same.split()) == len(near.split())
        if len(quadruple.claims[0].entities) == 2:
            assert not set(quadruple.claims[0].entities) & set(quadruple.claims[3].entities)


def test_of_three_slots_the_unrelated_statement_says_nothing_of_the_first():
    """Where there are three slots, "between" says the same as a placement in the middle."""
    puzzles = [ArrangementPuzzle.generate(3, seed) for seed in range(20)]
    for quadruple in equivalence_quadruples(puzzles, 4):
        space = puzzles[quadruple.group].space
        allowed = arrangements(space, [quadruple.claims[0]])
        assert {meaning(quadruple.claims[3], where, 3) for where in allowed} == {True, False}


def test_quadruples_of_neighbours_have_another_relation_near(puzzles):
    for quadruple in equivalence_quadruples(puzzles[:5], 2, relations=["adjacent", "not_adjacent"]):
        first, same, near, _ = quadruple.claims
        assert same.relation == first.relation and same.entities == first.entities[::-1]
        assert {near.relation, first.relation} == {"adjacent", "not_adjacent"}


def test_what_makes_no_steps_is_refused(puzzles):
    with pytest.raises(UnknownNameError, match="entity"):
        step_dataset(puzzles, edits=["entities"])
    with pytest.raises(UnknownNameError, match="claim"):
        step_dataset(puzzles, balance="claims")
    with pytest.raises(UnknownNameError, match="preference"):
        gold_chain(puzzles[0], first="left_of")
    for none in ([], puzzles[:1]):
        with pytest.raises(InputError, match="leave none"):
            step_dataset(none)
    with pytest.raises(InputError, match="need puzzles"):
        equivalence_quadruples([])
    with pytest.raises(UnknownNameError, match="no relation with an equivalent"):
        equivalence_quadruples(puzzles, relations=["end"])
    with pytest.raises(InputError, match="two slots"):
        equivalence_quadruples([ArrangementPuzzle.generate(2, 0)])
    with pytest.raises(InputError, match="leave 2 arrangements"):
        eliminate(Space((("A", "B"),)), [])
    with pytest.raises(InputError, match="too many to list"):
        gold_chain(ArrangementPuzzle.generate(9, 0))
