"""Several wrong answers: each row of the result is the patch with that foil, and rivals are the model's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import random_task

import architectures
from actinium.circuits import across_foils, attribution_patch, patch, relevance_patch, rival_foils
from actinium.core.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")


@pytest.mark.parametrize("method", [patch, attribution_patch, relevance_patch])
def test_every_foil_is_a_sweep_of_its_own(method):
    model, task = architectures.shared("llama"), random_task(padding=(1,))
    foils = {"task": task.wrong_ids, "token 40": 40}
    found = across_foils(model, task, foils, "blocks.*.attn.z", "head", method=method, by_row=True).data
    assert found["effect"].dims == ("foil", "layer", "head")
    for name, ids in (("task", task.wrong_ids), ("token 40", torch.full((3,), 40))):
        alone = method(model, replace(task, wrong_ids=ids), "blocks.*.attn.z", "head").data
        for variable in ("effect", "patched", "m_clean", "m_corrupt"):
            np.testing.assert_array_equal(found[variable].sel(foil=name), alone[variable])
    np.testing.assert_allclose(found["mean"], found["effect"].values.mean(0))
    np.testing.assert_allclose(found["sd"], found["effect"].values.std(0))
    assert float(found["sd"].max()) > 1e-3


def test_of_opposite_foils_the_logit_differences_are_those_of_the_answer():
    """m(answer - foil) is linear in the logits: the mean over foils is the answer against their mean logit."""
    model, task = architectures.shared("gpt2"), random_task()
    foils = {"a": 41, "b": 42}
    found = across_foils(model, task, foils, "blocks.1.mlp.out", "pos", normalise=False).data["mean"]

    def against_mean(logits, answers, wrong, reference):
        rows = torch.arange(len(logits))
        return logits[rows, answers] - (logits[:, 41] + logits[:, 42]) / 2

    expected = patch(model, task, "blocks.1.mlp.out", "pos", metric=against_mean, normalise=False).data["effect"]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_rivals_are_the_highest_logits_that_are_not_the_answer(lm, ioi):
    foils = rival_foils(lm, ioi, k=4)
    assert list(foils) == ["rival 1", "rival 2", "rival 3", "rival 4"]
    with torch.no_grad():
        for row in (0, 5):
            ids = ioi.corrupt_ids[row][ioi.mask[row]][None]
            order = lm.logits(ids)[0, -1].argsort(descending=True).tolist()
            expected = [i for i in order if i != int(ioi.answer_ids[row])][:4]
            assert [int(foil[row]) for foil in foils.values()] == expected


def test_a_foil_can_be_a_word(lm, ioi, tmp_path):
    found = across_foils(lm, ioi, {"task": ioi.wrong_ids, "the": " the"}, "blocks.*.attn.z", "head")
    assert found.plot().get_title()
    back = type(found).load(found.save(tmp_path / "foils.zarr"))
    np.testing.assert_array_equal(back["effect"], found["effect"])


@pytest.mark.parametrize(
    ("foils", "message"),
    [
        ({}, "no foils"),
        ({"one": [3, 4]}, "2,\\) ids for 3 rows"),
        ({"own": 6}, "the answer of row 1"),
        ({"word": " the"}, "0 tokens"),
    ],
)
def test_foils_without_a_meaning_are_refused(foils, message):
    with pytest.raises(InputError, match=message):
        across_foils(architectures.shared("gpt2"), random_task(), foils)


def test_rivals_that_do_not_exist_are_refused():
    for options in ({"k": 0}, {"k": architectures.VOCAB}, {"prompts": "both"}):
        with pytest.raises(InputError, match=r"k goes from|prompts are"):
            rival_foils(architectures.shared("gpt2"), random_task(), **options)
