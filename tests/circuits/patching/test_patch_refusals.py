"""What activation patching refuses or warns about, before it gives a number that means nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from toys import Parallel, linear_task, random_task, task_of

import architectures
from actinium.circuits import patch
from actinium.core.errors import ActiniumWarning, InputError, SiteError, UnknownNameError
from actinium.core.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablation": "zero"}, "cannot restore"),
        ({"ablation": "mean", "mode": "noise"}, "reference"),
        ({"ablation": "zero", "mode": "noise", "reference": [[1, 2]]}, "uses no reference"),
        ({"reference": [[5, 6, 7]], "mode": "noise"}, "one length"),
        ({"reference": [[5, 6, 7]]}, "cannot restore"),
        ({"per_position": True, "mode": "noise"}, "per_position"),
        ({"positions": [9]}, "positions go from"),
        ({"over": "head", "at": "blocks.*.attn.z", "heads": [4]}, "heads go from 0 to 3"),
        ({"over": "head", "at": "blocks.*.attn.{q,k}"}, "number of heads"),
        ({"over": "layer", "positions": {"a": 1}}, "swept one by one"),
        ({"at": {"a": "embed"}, "over": "pos"}, "each Node"),
        ({"at": {"a": []}}, "empty"),
        ({"at": {}}, "no sets"),
        ({"batch_size": 0}, "batch_size"),
        ({"metric": lambda *args: torch.zeros(())}, "one value for each row"),
    ],
)
def test_what_cannot_be_patched_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        patch(architectures.shared("llama"), random_task(), **{"at": "blocks.*.resid_pre", **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"at": "blocks.*.resid_pree"}, SiteError, "resid_pre"),
        ({"at": "blocks.*.resid_pre", "over": "head"}, SiteError, "no heads"),
        ({"over": "position"}, UnknownNameError, "pos"),
        ({"mode": "noising"}, UnknownNameError, "noise"),
        ({"ablation": "means"}, UnknownNameError, "mean"),
        ({"metric": "logit_dif"}, UnknownNameError, "logit_diff"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_right_one(options, error, message):
    with pytest.raises(error, match=message):
        patch(architectures.shared("llama"), random_task(), **options)


def test_a_metric_that_does_not_differ_between_the_runs_is_refused():
    model, task = architectures.shared("llama"), random_task()
    same = task_of(task.clean_ids, task.clean_ids, task.answer_ids, task.wrong_ids)
    with pytest.raises(InputError, match="does not tell the runs apart"):
        patch(model, same)
    # Two pairs with opposite labels: each row differs, their mean does not.
    ids = torch.cat([task.clean_ids[:1], task.corrupt_ids[:1]])
    swapped = task_of(ids, ids.flip(0), [5, 5], [25, 25])
    with pytest.raises(InputError, match="may cancel"):
        patch(model, swapped)


def test_prompts_of_different_length_are_refused():
    task = random_task()
    short = dataclasses.replace(task, corrupt_ids=task.corrupt_ids[:, 1:])
    with pytest.raises(InputError, match="same length"):
        patch(architectures.shared("llama"), short)
    mask = task.mask.clone()
    mask[0, -1] = False
    right = dataclasses.replace(task, mask=mask)
    with pytest.raises(InputError, match="padded on the left"):
        patch(architectures.shared("llama"), right)


def test_models_that_do_not_continue_a_prompt_are_refused():
    with pytest.raises(InputError, match="encoder-decoder"):
        patch(architectures.shared("t5"), random_task())
    with pytest.raises(InputError, match="Task"):
        patch(architectures.shared("llama"), ["a text"])


def test_a_task_that_the_model_cannot_do_is_said_so():
    model, task = architectures.shared("llama"), linear_task()
    logits = model.logits(task.clean_ids)[:, -1]
    wrong = task_of(task.clean_ids, task.corrupt_ids, logits.argmin(-1), logits.argmax(-1))
    with pytest.warns(ActiniumWarning, match="only 0% of the clean prompts"):
        patch(model, wrong, at="blocks.0.resid_pre")


def test_logits_that_are_no_numbers_are_refused_with_their_row():
    class Broken(Parallel):
        def forward(self, ids):
            return super().forward(ids) * torch.nan

    with pytest.raises(InputError, match="logit_diff of the clean run is nan in row 0"):
        patch(Model(Broken()), linear_task(), at="module:parts.0", over="layer")
