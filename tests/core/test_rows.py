"""Rows of activations from whatever holds them, and what is refused before anything is computed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from actinium.core.errors import InputError
from actinium.core.rows import as_examples, as_rows


class Stored:
    """Values that are read where they are indexed, as those of a store."""

    def __init__(self, values):
        self.values = values

    def __getitem__(self, index):
        return self.values[index]


def test_every_holder_gives_the_same_rows():
    x = torch.arange(12.0).view(4, 3)
    array = x.numpy()
    locked = array.copy()
    locked.flags.writeable = False
    holders = [x, array, array[::-1][::-1], locked, x.tolist(), list(array), Stored(x), Stored(array), x.bfloat16()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in holders:
            assert torch.equal(as_rows(each), x)
            assert torch.equal(as_rows(each, dtype=torch.float64), x.double())
    assert torch.equal(as_rows(array.astype(">f8"), dtype=torch.float64), x.double())
    assert torch.equal(as_rows(array[:, ::-1]), x.flip(1))


def test_numbers_are_as_precise_as_they_are_given_and_asked_for():
    assert as_rows(torch.ones(2, 2).half()).dtype == torch.float32
    assert as_rows(torch.ones(2, 2).double()).dtype == as_rows(np.ones((2, 2))).dtype == torch.float64
    assert as_rows([[0.1, 1.0]]).dtype == torch.float32
    assert float(as_rows([[0.1, 1.0]], dtype=torch.float64)[0, 0]) == 0.1
    assert int(as_rows(np.array([[2**40 + 1]]), dtype=torch.float64)) == 2**40 + 1


def test_more_dimensions_are_laid_out_or_refused():
    x = torch.randn(2, 3, 4, requires_grad=True)
    rows = as_rows(x, width=4)
    assert torch.equal(rows, x.detach().view(6, 4)) and not rows.requires_grad
    with pytest.raises(InputError, match=r"states: expected rows \(n, d\), got shape \(2, 3, 4\); choose one position"):
        as_rows(x, "states", flat=False)
    assert torch.equal(as_examples(x), x.detach())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(3), r"expected rows \(n, d\), got shape \(3,\)"),
        (torch.ones(0, 3), "expected rows"),
        (torch.ones(2, 4), "rows have 4 entries, expected 3"),
        (torch.full((2, 3), torch.nan), "hold NaN"),
        (np.full((2, 3), np.inf), "hold NaN"),
        ([[1.0], [1.0, 2.0]], r"expected numbers \(n, d\), not list"),
        (np.array([["a", "b", "c"]]), "not ndarray"),
        (None, "not NoneType"),
        ({"a": 1}, "not dict"),
    ],
)
def test_what_is_no_row_is_refused(values, message):
    with pytest.raises(InputError, match=f"^what.*{message}"):
        as_rows(values, "what", 3)


def test_examples_without_dimensions_of_their_own_are_refused():
    with pytest.raises(InputError, match="one example or more"):
        as_examples(torch.ones(3))
    with pytest.raises(InputError, match="one example or more"):
        as_examples(torch.ones(0, 2, 2))
    with pytest.raises(InputError, match="images hold NaN"):
        as_examples(torch.full((1, 2, 2), torch.inf), "images")
