"""Path patching: all paths together are the other run, and one head's direct path is a sum written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import random_task

import architectures
from actinium.circuits import Node, patch, path_patch
from actinium.core import edits
from actinium.core.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")
EVERYTHING = {"all": ["embed", "blocks.*.attn.z", "blocks.*.mlp.out"]}


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma2", "bloom", "opt", "phi"])
@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_all_senders_together_give_the_other_runs_logits(name, mode):
    model, task = architectures.shared(name), random_task(padding=(1,))
    for metric in ("logit_diff", "logprob"):
        found = path_patch(model, task, EVERYTHING, mode=mode, metric=metric)
        assert float(found.data["effect"][0]) == pytest.approx(1.0, abs=2e-5)


def test_direct_effect_of_a_head_is_its_projected_change_through_the_final_norm():
    model, task = architectures.shared("gpt2"), random_task()
    found = path_patch(model, task).data["effect"]
    assert found.dims == ("layer", "head") and found.shape == (3, 4)
    wanted = ["blocks.2.resid_post", *(f"blocks.{i}.attn.z" for i in range(3))]
    clean, corrupt = (model.record(ids, wanted) for ids in (task.clean_ids, task.corrupt_ids))
    rows = torch.arange(3)

    def score(resid):
        logits = model.unembed(resid[:, -1]).double().detach()
        return float((logits[rows, task.answer_ids] - logits[rows, task.wrong_ids]).mean())

    ends = score(clean["blocks.2.resid_post"]), score(corrupt["blocks.2.resid_post"])
    for layer in range(3):
        weight = model.module.transformer.h[layer].attn.c_proj.weight.detach().view(4, 8, 32)
        for head in range(4):
            change = corrupt[f"blocks.{layer}.attn.z"][:, :, head] - clean[f"blocks.{layer}.attn.z"][:, :, head]
            value = score(clean["blocks.2.resid_post"] + change @ weight[head])
            expected = (value - ends[0]) / (ends[1] - ends[0])
            assert float(found[layer, head]) == pytest.approx(expected, abs=5e-5)


def test_a_head_of_the_last_layer_has_no_path_but_the_direct_one_and_the_last_mlps():
    model, task = architectures.shared("llama"), random_task()
    through_mlps = path_patch(model, task, "blocks.2.attn.z", freeze_mlps=False).data["effect"]
    total = patch(model, task, "blocks.2.attn.z", over="head", mode="noise").data["effect"]
    np.testing.assert_allclose(through_mlps, total, atol=5e-5)
    direct = path_patch(model, task, "blocks.2.attn.z").data["effect"]
    assert np.abs(direct - total).max() > 1e-3


def test_with_nothing_frozen_every_path_counts():
    model, task = architectures.shared("gpt2"), random_task()
    free = path_patch(model, task, freeze_heads=False, freeze_mlps=False).data["effect"]
    total = patch(model, task, "blocks.*.attn.z", over="head", mode="noise").data["effect"]
    np.testing.assert_allclose(free, total, atol=5e-5)


def test_path_to_a_query_is_the_run_written_out():
    model, task = architectures.shared("gpt2"), random_task()
    receiver = Node("blocks.2.attn.q", heads=[1])
    found = path_patch(model, task, receivers=receiver).data["effect"]
    # Nothing above reaches the receiver.
    assert not found.sel(layer=2).values.any()
    rows = torch.arange(3)
    names = [f"blocks.{i}.{part}" for i in range(3) for part in ("attn.z", "mlp.out")]
    clean, corrupt = (model.record(ids, names) for ids in (task.clean_ids, task.corrupt_ids))

    def score(ids, changes):
        with torch.no_grad(), model.edit(changes):
            logits = model.logits(ids)[:, -1].double()
        return float((logits[rows, task.answer_ids] - logits[rows, task.wrong_ids]).mean())

    nothing = [("blocks.0.resid_pre", edits.Scale(1.0))]
    ends = score(task.clean_ids, nothing), score(task.corrupt_ids, nothing)
    for layer, head in ((0, 3), (1, 0)):
        held = [(n, edits.Replace(clean[n])) for n in names]
        sent = (f"blocks.{layer}.attn.z", edits.Replace(corrupt[f"blocks.{layer}.attn.z"]).at(heads=[head]))
        with model.edit([*held, sent]):
            arrived = model.record(task.clean_ids, "blocks.2.attn.q")["blocks.2.attn.q"]
        value = score(task.clean_ids, [("blocks.2.attn.q", edits.Replace(arrived).at(heads=[1]))])
        expected = (value - ends[0]) / (ends[1] - ends[0])
        assert float(found[layer, head]) == pytest.approx(expected, abs=5e-5)


def test_neurons_send_their_share_of_the_mlp():
    """All neurons of an MLP together send what its output sends."""
    model, task = architectures.shared("llama"), random_task()
    one = path_patch(model, task, {"neurons": Node("blocks.1.mlp.post", units=list(range(48)))}).data["effect"]
    whole = path_patch(model, task, {"output": "blocks.1.mlp.out"}).data["effect"]
    np.testing.assert_allclose(one, whole, atol=5e-5)
    half = path_patch(model, task, {"half": Node("blocks.1.mlp.post", units=list(range(24)))}).data["effect"]
    assert abs(float(half[0]) - float(whole[0])) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"senders": "blocks.*.resid_pre"}, "does not write into the residual stream"),
        ({"senders": "blocks.*.attn.q"}, "does not write"),
        ({"ablation": "zero"}, "another run"),
        ({"receivers": ["logits", "blocks.1.attn.q"]}, "alone"),
    ],
)
def test_paths_without_a_meaning_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        path_patch(architectures.shared("gpt2"), random_task(), **options)
