"""Differences of means and the score of concept detection are what their formulas say."""

from __future__ import annotations

import math

import pytest
import torch

from actinium.core.errors import InputError
from actinium.features.directions import concept_detection_score, difference_in_means


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_direction_is_the_difference_of_the_means_at_unit_length():
    pos, neg = drawn(30, 5) + torch.tensor([0.0, 3, 0, 0, 0]), drawn(40, 5, seed=1)
    want = pos.mean(0) - neg.mean(0)
    assert torch.allclose(difference_in_means(pos, neg), want / want.norm())
    assert torch.allclose(difference_in_means(neg, pos), -want / want.norm())
    assert difference_in_means(pos.reshape(3, 10, 5).numpy(), neg.float()).dtype == torch.float64


def test_the_score_is_the_log_of_the_mean_largest_cosines():
    direction = drawn(6)
    with_it = [drawn(4, 6, seed=1) + 2 * direction, drawn(9, 6, seed=2) + direction]
    without = [drawn(5, 6, seed=3), drawn(2, 6, seed=4), drawn(7, 6, seed=5)]

    def mean(sentences):
        return sum(float(torch.cosine_similarity(s, direction[None]).max()) for s in sentences) / len(sentences)

    want = math.log(mean(with_it) / mean(without))
    assert concept_detection_score(direction, with_it, without) == pytest.approx(want)
    assert want > 0
    assert concept_detection_score(7 * direction, without, with_it) == pytest.approx(-want)
    assert concept_detection_score(direction, with_it, with_it) == 0


def test_means_that_are_not_positive_have_no_finite_score():
    one, other = [torch.ones(2, 3)], [-torch.ones(2, 3)]
    assert concept_detection_score(torch.ones(3), one, other) == math.inf
    assert concept_detection_score(torch.ones(3), other, one) == -math.inf
    assert math.isnan(concept_detection_score(torch.ones(3), other, other))


def test_what_gives_no_direction_or_score_is_refused():
    rows = drawn(8, 4)
    with pytest.raises(InputError, match="means are equal"):
        difference_in_means(rows, rows.flip(0))
    with pytest.raises(InputError, match="negative activations: rows have 3 entries, expected 4"):
        difference_in_means(rows, rows[:, :3])
    with pytest.raises(InputError, match="positive activations: expected rows"):
        difference_in_means(rows[0], rows)
    with pytest.raises(InputError, match="NaN"):
        difference_in_means(rows * torch.nan, rows)
    with pytest.raises(InputError, match="no neutral sentences"):
        concept_detection_score(rows[0], [rows], [])
    with pytest.raises(InputError, match="finite and not zero"):
        concept_detection_score(torch.zeros(4), [rows], [rows])
    with pytest.raises(InputError, match="expected a direction"):
        concept_detection_score(rows, [rows], [rows])
