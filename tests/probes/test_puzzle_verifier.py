"""What the verifier says of a claim is what trying every arrangement says, and of what it cannot read it says so."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from puzzle_reference import arrangements, meaning

from actinium.core.errors import InputError, UnknownNameError
from actinium.probes.arrangement_puzzle import ArrangementPuzzle
from actinium.probes.puzzle_clues import RELATIONS, Knowledge, PuzzleClue, Space
from actinium.probes.puzzle_search import SearchKnowledge, knowledge
from actinium.probes.puzzle_verifier import LABELS, PuzzleVerifier, StepLine, read_step, write_step
from actinium.probes.puzzle_wording import WORDINGS, PuzzleAttribute

SPACES = [
    Space((("A", "B", "C"),)),
    Space((("A", "B", "C", "D"),)),
    Space((("A", "B", "C"), ("p", "q", "r"))),
]


def clues_of(space):
    able = [name for name, kind in RELATIONS.items() if len(space.attributes) > 1 or not kind.across]
    return st.sampled_from([clue for name in able for clue in space.clues(name)])


@st.composite
def situations(draw):
    """A space, some clues (which may exclude each other), one more, and a claim."""
    space = draw(st.sampled_from(SPACES))
    clue = clues_of(space)
    return space, draw(st.lists(clue, max_size=4)), draw(clue), draw(clue)


@settings(max_examples=150)
@given(situations(), st.sampled_from(["bitmask", "search"]))
def test_entailment_is_that_of_all_arrangements_tried_one_by_one(situation, method):
    space, clues, _, claim = situation
    truth = [meaning(claim, where, space.n) for where in arrangements(space, clues)]
    state = knowledge(space, clues, method)
    assert state.entails(claim) == all(truth)
    assert state.contradicts(claim) == (not any(truth))
    assert state.count(1000) == len(truth)
    first = state.first()
    assert (first is None) == (not truth)
    if first is not None:
        assert dict(zip(space.entities, first, strict=True)) in arrangements(space, clues)


@settings(max_examples=100)
@given(situations())
def test_a_further_clue_never_takes_back_what_was_entailed(situation):
    space, clues, more, claim = situation
    state = Knowledge.of(space, clues)
    if state.entails(claim):
        assert state.add(more).entails(claim)
    assert state.add(more).count() <= state.count()
    assert state.add(more) == Knowledge.of(space, [*clues, more])
    assert SearchKnowledge.of(space, clues).add(more).count(1000) == state.add(more).count()


@pytest.mark.parametrize(
    ("n", "clue", "left"),
    [
        (3, PuzzleClue("left_of", ("A", "B")), 3),
        (3, PuzzleClue("adjacent", ("A", "B")), 4),
        (3, PuzzleClue("at", ("A",), 1), 2),
        (4, PuzzleClue("left_of", ("A", "B")), 12),
        (4, PuzzleClue("adjacent", ("A", "B")), 12),
        (4, PuzzleClue("between", ("A", "B", "C")), 8),
        (4, PuzzleClue("end", ("A",)), 12),
    ],
)
def test_a_clue_leaves_as_many_arrangements_as_combinatorics_says(n, clue, left):
    assert Knowledge.of(Space((tuple("ABCD")[:n],)), [clue]).count() == left


def test_relations_are_converse_symmetric_and_complementary():
    space = SPACES[1]
    every = Knowledge.of(space)

    def bits(relation, *entities, number=None):
        return every.add(PuzzleClue(relation, entities, number)).bits

    assert bits("left_of", "A", "B") == bits("right_of", "B", "A") == every.bits & ~bits("right_of", "A", "B")
    assert bits("adjacent", "A", "B") == bits("adjacent", "B", "A") == bits("distance", "A", "B", number=1)
    assert bits("adjacent", "A", "B") == every.bits & ~bits("not_adjacent", "A", "B")
    assert bits("at", "A", number=2) == every.bits & ~bits("not_at", "A", number=2)
    assert bits("between", "A", "B", "C") == bits("between", "A", "C", "B")


def test_search_agrees_with_the_bitmask_where_both_can():
    puzzle = ArrangementPuzzle.generate(7, 11)
    for clues in (puzzle.clues, puzzle.clues[1:]):
        listed, searched = (knowledge(puzzle.space, clues, method) for method in ("bitmask", "search"))
        assert isinstance(knowledge(puzzle.space, clues), SearchKnowledge)
        assert searched.count(10_000) == listed.count()
        for claim in list(puzzle.space.clues("at"))[::5]:
            assert (searched.entails(claim), searched.contradicts(claim)) == (
                listed.entails(claim),
                listed.contradicts(claim),
            )


# Ann, Bob, Carl: Ann is left of Bob, Carl is in seat 1. So Carl, Ann, Bob.
PUZZLE = ArrangementPuzzle(
    (PuzzleAttribute("person", ("Ann", "Bob", "Carl")),),
    WORDINGS["seats"],
    (PuzzleClue("left_of", ("Ann", "Bob")), PuzzleClue("at", ("Carl",), 1)),
    (0, 0),
    (("Carl", "Ann", "Bob"),),
)


@pytest.mark.parametrize(
    ("step", "label"),
    [
        ("Step 1: Bob is not in seat 1 because clue 1.", "correct"),
        ("step 1 : bob is not in seat 1 because clue 1 .", "correct"),
        ("Step 1: Bob is in seat 3 because clue 1 and clue 2.", "correct"),
        ("Step 1: Bob is in seat 3 because clues 1 and 2.", "correct"),
        ("Step 1: Bob is in seat 3 because clue 1, and clue 2.", "correct"),
        ("Bob is in seat 3", "correct"),
        ("Step 1: Seat 3 is taken by Bob.", "correct"),
        ("Step 1: Bob is in seat 3 because clue 2.", "unsupported"),
        ("Step 1: Bob is in seat 3 because clue 9.", "unsupported"),
        ("Step 1: Bob is in seat 3 because step 1.", "unsupported"),
        ("Step 1: Bob is in seat 2 because clue 1.", "contradicted"),
        ("Step 1: Bob is in seat 4 because clue 1.", "unparsable"),
        ("Step 1: Bob is left of Bob because clue 1.", "unparsable"),
        ("Step 1: Zoe is in seat 1 because clue 1.", "unparsable"),
        ("Step 1: Bob is in seat 3 because of clue 1.", "unparsable"),
        ("Step 1: Bob is in seat 3 because clue one.", "unparsable"),
        ("Step 1: Bob is in seat 3 because clue 1\nand clue 2.", "unparsable"),
        ("Step 1: Bob is in seat 3 or Ann is in seat 3.", "unparsable"),
        ("", "unparsable"),
    ],
)
def test_labels_of_a_step(step, label):
    verdict = PuzzleVerifier(PUZZLE).check(step)
    assert verdict.label == label
    assert verdict.correct == (label == "correct")
    assert (verdict.claim is None) == (verdict.entailed is None) == (verdict.true is None) == (label == "unparsable")
    if label != "unparsable":
        assert verdict.entailed == verdict.true == (label != "contradicted")


def test_true_of_the_solution_is_not_derivable_before_the_clues_say_so():
    verifier = PuzzleVerifier(PUZZLE)
    verdict = verifier.check("Bob is in seat 3", given=[1])
    assert (verdict.label, verdict.entailed, verdict.true) == ("not derivable", False, True)
    assert verifier.check("Bob is in seat 2", given=[1]).label == "not derivable"
    assert verifier.check("Bob is in seat 1", given=[1]).label == "contradicted"
    assert verifier.check("Bob is in seat 1", given=[]).label == "not derivable"
    with pytest.raises(InputError, match="no clue 3"):
        verifier.check("Bob is in seat 3", given=[3])
    with pytest.raises(InputError, match="given="):
        verifier.check("Bob is in seat 3", given=[1], own=True)


def test_strict_asks_for_one_step_and_nothing_said_before():
    strict = PuzzleVerifier(PUZZLE, strict=True)
    steps = [
        "Step 1: Bob is in seat 3.",  # needs both clues
        "Step 2: Carl is in seat 1.",
        "Step 3: Seat 1 is taken by Carl.",  # the same again
        "Step 4: Bob is in seat 2.",
        "Step 5: Ann is in seat 2 because clue 1 and step 2.",
        "Step 6: Ann is not in seat 3 because clue 2.",
    ]
    labels = [verdict.label for verdict in strict.check_solution("\n".join(steps))]
    assert labels == ["not derivable", "correct", "repeated", "contradicted", "correct", "unsupported"]
    assert strict.check("Step 1: Carl is in seat 1 because clue 2.").correct


def test_after_an_error_steps_are_judged_by_the_clues_or_by_what_they_cite():
    text = "\n".join(
        [
            "Step 1: Ann is in seat 1 because clue 1.",
            "Step 2: Carl is not in seat 1 because step 1.",
            "Step 3: Ann is in seat 2 because step 1.",
            "Step 4: Bob is in seat 3 because step 1.",
            "Step 5: Bob is in seat 3 because step 1 and step 3.",
            "Step 6: Bob is in seat 3.",
            "Step 7: mumble.",
            "Step 8: Ann is in seat 2 because step 7.",
            "Answer: Ann, Bob, Carl.",
        ]
    )
    verifier = PuzzleVerifier(PUZZLE)
    by_clues = [verdict.label for verdict in verifier.check_solution(text)]
    by_own = [verdict.label for verdict in verifier.check_solution(text, after_error="own")]
    wrong = "contradicted"
    assert by_clues[:6] == [wrong, wrong, "unsupported", "unsupported", "unsupported", "correct"]
    assert by_own[:6] == [wrong, "correct", wrong, "not derivable", "unsupported", "correct"]
    assert by_clues[6:] == by_own[6:] == ["unparsable", "unsupported", wrong]
    with pytest.raises(UnknownNameError, match="clues"):
        verifier.check_solution(text, after_error="clue")


def test_a_wrong_earlier_step_supports_nothing():
    verifier = PuzzleVerifier(PUZZLE)
    before = [PuzzleClue("at", ("Bob",), 3), PuzzleClue("at", ("Ann",), 1)]
    assert verifier.check("Ann is in seat 2 because clue 2 and step 1.", before).correct
    assert verifier.check("Carl is not in seat 2 because step 2.", before).label == "unsupported"


def test_steps_out_of_their_order_are_not_read():
    verdicts = PuzzleVerifier(PUZZLE).check_solution("Step 2: Bob is in seat 3.\n\nStep 2: Bob is in seat 3.")
    assert [verdict.label for verdict in verdicts] == ["unparsable", "correct"]


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("Answer: Carl, Ann, Bob.", "correct"),
        ("answer : carl , ann , bob .", "correct"),
        ("Answer: Ann, Carl, Bob.", "contradicted"),
        ("Answer: Carl, Ann.", "unparsable"),
        ("Answer: Carl, Ann, Bob, Bob.", "unparsable"),
        ("Answer:", "unparsable"),
    ],
)
def test_answers(line, label):
    assert PuzzleVerifier(PUZZLE).check_answer(line).label == label
    assert PuzzleVerifier(PUZZLE).check_solution(line)[0].label == label


def test_an_answer_names_every_attribute():
    puzzle = ArrangementPuzzle.generate(3, 2, dims=2)
    verifier = PuzzleVerifier(puzzle)
    assert verifier.check_answer(puzzle.answer).correct
    assert verifier.check_answer(puzzle.answer.split(";")[0]).label == "unparsable"


WORDS = [
    "Step 1:",
    "Ann",
    "Bob",
    "is",
    "in",
    "seat 1",
    "left of",
    "because",
    "clue 1",
    "step",
    "9",
    ".",
    ",",
    "\n",
    "Ω",
]


@settings(max_examples=60)
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)))
def test_any_text_at_all_gets_a_label(text):
    verifier = PuzzleVerifier(PUZZLE)
    assert verifier.check(text).label in LABELS
    assert all(verdict.label in LABELS for verdict in verifier.check_solution(text))


@given(
    st.integers(1, 99),
    st.lists(st.integers(1, 30), max_size=4),
    st.lists(st.integers(1, 30), max_size=4),
)
def test_a_step_that_was_written_is_read(number, clues, steps):
    line = write_step(number, "Ann is left of Bob", clues, steps)
    assert read_step(line) == StepLine("Ann is left of Bob", number, tuple(clues), tuple(steps))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.data())
def test_the_verdict_on_any_claim_is_its_truth_in_the_solution(seed, data):
    puzzle = ArrangementPuzzle.generate(4, seed)
    claim = data.draw(clues_of(puzzle.space))
    verdict = PuzzleVerifier(puzzle).check(puzzle.language.say(claim, data.draw(st.integers(0, 3))))
    (only,) = arrangements(puzzle.space, puzzle.clues)
    assert verdict.label == ("correct" if meaning(claim, only, 4) else "contradicted")
    assert verdict.claim == claim


def test_puzzles_without_one_solution_are_refused():
    def puzzle(*clues, solution=("Carl", "Ann", "Bob")):
        return ArrangementPuzzle(PUZZLE.attributes, PUZZLE.wording, clues, (0,) * len(clues), (solution,))

    with pytest.raises(InputError, match="more than one"):
        PuzzleVerifier(puzzle(PUZZLE.clues[0]))
    with pytest.raises(InputError, match="no arrangement"):
        PuzzleVerifier(puzzle(*PUZZLE.clues, PuzzleClue("left_of", ("Bob", "Ann"))))
    with pytest.raises(InputError, match="another arrangement"):
        PuzzleVerifier(puzzle(*PUZZLE.clues, solution=("Ann", "Bob", "Carl")))
    nine = ArrangementPuzzle.generate(9, 0)
    assert PuzzleVerifier(nine).check(nine.language.say(nine.clues[0])).correct
    with pytest.raises(InputError, match="use method='search'"):
        PuzzleVerifier(nine, method="bitmask")


@pytest.mark.parametrize(
    ("clue", "error", "message"),
    [
        (PuzzleClue("at", ("A",), 5), InputError, "from 1 to 4"),
        (PuzzleClue("at", ("A",)), InputError, "from 1 to 4"),
        (PuzzleClue("distance", ("A", "B"), 4), InputError, "from 1 to 3"),
        (PuzzleClue("end", ("A",), 1), InputError, "takes no number"),
        (PuzzleClue("left_of", ("A",)), InputError, "takes 2 different"),
        (PuzzleClue("left_of", ("A", "A")), InputError, "takes 2 different"),
        (PuzzleClue("same", ("A", "B")), InputError, "two attributes"),
        (PuzzleClue("at", ("E",), 1), UnknownNameError, "no entity"),
        (PuzzleClue("left", ("A", "B")), UnknownNameError, "left_of"),
    ],
)
def test_a_clue_that_says_nothing_about_the_puzzle_is_refused(clue, error, message):
    for method in ("bitmask", "search"):
        with pytest.raises(error, match=message):
            knowledge(SPACES[1], [clue], method)


def test_spaces_that_are_none_are_refused():
    for attributes in ((("A",),), (("A", "B"), ("p", "q", "r")), ()):
        with pytest.raises(InputError, match="same number of entities"):
            Space(attributes)
    with pytest.raises(InputError, match="twice"):
        Space((("A", "B"), ("B", "C")))
