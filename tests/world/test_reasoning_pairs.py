"""Questions with a concise and a verbose rationale: both are right, and both are what the model writes."""

from __future__ import annotations

import pytest

from actinium.core.errors import InputError, UnknownNameError
from actinium.world import knowledge, reasoning
from actinium.world.habits import written
from actinium.world.variants import right


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_pairs_are_different_questions_with_a_shorter_and_a_longer_way(split, lm):
    found = reasoning.pairs(60, 0, split)
    assert len({row.prompt for row in found}) == 60
    for row in found:
        assert row.prompt.endswith(" Think.<assistant>")
        assert row.concise.startswith("<think> ") and row.concise.endswith("</think>")
        assert row.verbose.startswith("<think> ") and row.verbose.endswith("</think>")
        assert len(lm[1](row.concise)["input_ids"]) < len(lm[1](row.verbose)["input_ids"])
    assert found == reasoning.pairs(60, 0, split)


def test_splits_do_not_meet():
    parts = [
        {row.prompt for row in reasoning.pairs(300, seed, split)} for seed, split in ((0, "train"), (1, "heldout"))
    ]
    assert not parts[0] & parts[1]


def test_the_model_writes_the_rationale_that_its_cue_asks_for_and_either_after_the_open_one(lm):
    styles = {}
    for cue in (knowledge.VERBOSE_CUE, knowledge.TERSE_CUE, knowledge.OPEN_CUE):
        rows = reasoning.pairs(32, 0, "heldout", cue)
        said = [text.strip() for text in written(*lm, [row.prompt for row in rows])]
        styles[cue] = [
            sum(text.startswith(getattr(row, kind)) for text, row in zip(said, rows, strict=True)) / 32
            for kind in ("concise", "verbose")
        ]
        assert sum(right(text, row.answer) for text, row in zip(said, rows, strict=True)) > 0.8 * 32
    assert styles[knowledge.VERBOSE_CUE][1] > 0.95 and styles[knowledge.TERSE_CUE][0] > 0.9
    assert min(styles[knowledge.OPEN_CUE]) > 0.02


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="n=0"):
        reasoning.pairs(0)
    with pytest.raises(InputError, match="different questions"):
        reasoning.pairs(2000, split="heldout")
    with pytest.raises(UnknownNameError, match="heldout"):
        reasoning.pairs(3, split="held-out")
