"""Tasks of repetition: what they promise about their prompts, and that a trained model does one of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import architectures
from actinium.circuits import patch, repeated_names, repeated_tokens, suitable_tasks
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.loading import load
from actinium.core.task import Task


@given(st.integers(3, 12), st.integers(1, 5), st.integers(0, 99))
def test_answer_follows_the_first_occurrence_of_the_last_token(length, n, seed):
    task = repeated_tokens(architectures.shared("llama"), n=n, length=length, seed=seed)
    assert torch.equal(task.subject.sum(1), torch.ones(n, dtype=torch.long))
    for row in range(n):
        ids = task.clean_ids[row].tolist()
        assert len(set(ids[1 : 1 + length])) == length
        place = ids.index(ids[-1])
        assert place < len(ids) - 1
        assert ids[place + 1] == task.answer_ids[row]
        assert task.corrupt_ids[row, place + 1] == task.wrong_ids[row] != task.answer_ids[row]


def test_tokens_are_words_where_the_tokenizer_has_words(lm):
    task = repeated_tokens(lm, n=4, length=5)
    assert task.clean_ids.shape == (4, 1 + 5 + 2)
    assert task.clean_tokens[0][0] == "<bos>"
    assert torch.equal(repeated_tokens(lm, n=4, length=5).clean_ids, task.clean_ids)


def test_a_repetition_that_does_not_fit_is_refused():
    model = architectures.shared("llama")
    with pytest.raises(InputError, match="context of 64"):
        repeated_tokens(model, length=32)
    with pytest.raises(InputError, match="3 tokens or more"):
        repeated_tokens(model, length=2)
    with pytest.raises(InputError, match="at least one row"):
        repeated_tokens(model, n=0)
    with pytest.raises(InputError, match="no tokenizer"):
        repeated_names(model)


def test_a_model_that_nobody_here_made_repeats_names_and_its_circuit_ends_at_the_last_token(outside_data):
    model = load(outside_data / "stories260K")
    task = repeated_names(model)
    assert set(task.answers) <= {" Lily", " Tim", " Timmy"} and len(task) >= 12
    name = task.subject.int().argmax(1) - task.mask.shape[1]
    found = patch(model, task, at="blocks.*.resid_pre", positions={"name": name, "end": -1}).data
    assert float(found["m_clean"]) > 1.0 and float(found["m_corrupt"]) < -1.0
    effect = found["effect"]
    # At the start the name's own position decides everything, at the end mostly the last position.
    assert float(effect.sel(layer=0, pos="name")) == pytest.approx(1.0, abs=1e-5)
    assert float(effect.sel(layer=0, pos="end")) == 0.0
    assert float(effect.sel(layer=4, pos="end")) > 0.5 > float(effect.sel(layer=4, pos="name"))


def test_tasks_are_those_that_fit_the_tokenizer_and_that_the_model_does(lm, outside_data):
    found = suitable_tasks(lm, ["ioi", "two_hop"], n=8)
    assert set(found) == {"ioi", "two_hop"} and len(found["ioi"]) == 8
    assert set(suitable_tasks(lm, ["repeated_tokens"], n=8, least=0.0)) == {"repeated_tokens"}
    assert suitable_tasks(lm, ["ioi"], n=8, least=1.01) == {}
    other = load(outside_data / "stories260K")
    assert set(suitable_tasks(other, ["ioi", "two_hop"], n=8)) == {"repeated_names"}
    with pytest.raises(UnknownNameError, match="two_hop"):
        suitable_tasks(lm, ["two_hops"])


def test_pairs_of_ids_of_different_shape_are_refused():
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(InputError, match="one shape"):
        Task.from_ids(ids, ids[:, 1:], [1, 2], [3, 4])
    with pytest.raises(InputError, match="each of the 2 rows"):
        Task.from_ids(ids, ids + 1, [1], [3, 4])
