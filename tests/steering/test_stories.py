"""Steering a model that it was not developed on: the mood of children's stories, told by words fixed beforehand."""

from __future__ import annotations

import numpy as np
import pytest

import actinium as ac
from actinium.papers.steered_behaviours import HAPPY, SAD, behaviours


@pytest.fixture(scope="module")
def stories(outside_data):
    return ac.load(outside_data / "stories260K")


def test_a_vector_of_what_happened_moves_how_children_feel(stories):
    (mood,) = behaviours(stories, seed=0, pairs=24, prompts=12)
    # No word that the judge knows stands in a pair or in a prompt.
    said = {word.strip(".").lower() for text in mood.positive + mood.negative + mood.test for word in text.split()}
    assert not said & {*HAPPY.split(), *SAD.split()}
    vector = ac.steering.extract(stories, mood.positive, mood.negative)
    options = {
        "judge": mood.judge,
        "made_from": mood.positive + mood.negative,
        "max_new_tokens": mood.tokens,
        "positions": "last",
    }
    first = ac.steering.sweep(stories, vector, [-1.0, 1.0], prompts=mood.select, **options)["success"]
    swing = first.sel(strength=1.0) - first.sel(strength=-1.0)
    site = str(swing.coords["site"][int(np.argmax(swing.values))].item())

    strengths = [-2.0, -1.0, 1.0, 2.0]
    curve = ac.steering.sweep(stories, vector.only(site), strengths, prompts=mood.test, **options)["success"].values[0]
    assert np.diff(curve).min() >= 0 and curve[-1] - curve[0] > 0.5
    for seed in range(3):
        control = vector.only(site).random_like(seed)
        found = ac.steering.sweep(stories, control, [-2.0, 2.0], prompts=mood.test, **options)["success"].values[0]
        assert found[-1] - found[0] < 0.5


def test_side_effects_on_plain_sentences_grow_with_the_strength(stories):
    (mood,) = behaviours(stories, seed=0, pairs=24, prompts=12)
    vector = ac.steering.extract(stories, mood.positive, mood.negative, "blocks.3.resid_post")
    texts = ["The cat sat on the mat.", "She took a blue cup and put water in it."]
    ratios = [
        float(ac.steering.perplexity_ratio(stories, texts, ac.steering.steering_edits(vector, s))["ratio_of_all"])
        for s in (0.5, 4.0, 16.0)
    ]
    assert ratios[0] == pytest.approx(1, abs=0.1) and ratios == sorted(ratios) and ratios[-1] > 1.5
