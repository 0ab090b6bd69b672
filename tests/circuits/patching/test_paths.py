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


def _norm_scale(norm, x):
    return (x.var(-1, correction=0, keepdim=True) + norm.eps).rsqrt()


def test_with_its_norm_frozen_a_direct_effect_is_the_projected_change():
    """The written-out LayerNorm with the clean run's scale: linear in what the head adds."""
    model, task, rows = architectures.shared("gpt2"), random_task(), torch.arange(3)
    found = path_patch(model, task, freeze_norms=True).data["effect"]
    names = ["blocks.2.resid_post", *(f"blocks.{i}.attn.z" for i in range(3))]
    clean, corrupt = (model.record(ids, names) for ids in (task.clean_ids, task.corrupt_ids))
    norm, head = model.module.transformer.ln_f, model.module.lm_head.weight.detach()
    towards = head[task.answer_ids] - head[task.wrong_ids]
    scale = _norm_scale(norm, clean["blocks.2.resid_post"][:, -1])
    gap = float(path_patch(model, task, normalise=False).data["m_corrupt"] - path_patch(model, task).data["m_clean"])
    for layer in range(3):
        weight = model.module.transformer.h[layer].attn.c_proj.weight.detach().view(4, 8, 32)
        for one in range(4):
            name = f"blocks.{layer}.attn.z"
            change = ((corrupt[name] - clean[name])[:, -1, one] @ weight[one]).detach()
            moved = (change - change.mean(-1, keepdim=True)) * scale * norm.weight.detach()
            expected = float((moved * towards).sum(-1)[rows].mean()) / gap
            assert float(found[layer, one]) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma", "gpt_neox"])
def test_with_norms_frozen_direct_effects_add_up(name):
    model, task = architectures.shared(name), random_task(padding=(1,))
    parts = {f"{i}": f"blocks.{i}.attn.z" for i in range(3)} | {"all": [f"blocks.{i}.attn.z" for i in range(3)]}
    frozen, free = (path_patch(model, task, parts, freeze_norms=f).data["effect"].values for f in (True, False))
    assert frozen[3] == pytest.approx(frozen[:3].sum(), abs=5e-5)
    assert abs(free[3] - free[:3].sum()) > 1e-4
    assert np.abs(frozen[:3] - free[:3]).max() > 1e-4


def test_what_arrives_at_a_query_past_a_frozen_norm_is_the_projected_change():
    model, task, rows = architectures.shared("gpt2"), random_task(), torch.arange(3)
    found = path_patch(model, task, receivers="blocks.2.attn.q", freeze_norms=True).data["effect"]
    names = ["blocks.2.resid_pre", "blocks.2.attn.q", "blocks.1.attn.z"]
    clean, corrupt = (model.record(ids, names) for ids in (task.clean_ids, task.corrupt_ids))
    block = model.module.transformer.h[2]
    weight = model.module.transformer.h[1].attn.c_proj.weight.detach().view(4, 8, 32)[3]
    change = (corrupt["blocks.1.attn.z"] - clean["blocks.1.attn.z"])[:, :, 3] @ weight
    moved = (change - change.mean(-1, keepdim=True)) * _norm_scale(block.ln_1, clean["blocks.2.resid_pre"])
    query = (moved * block.ln_1.weight.detach()) @ block.attn.c_attn.weight.detach()[:, :32]
    arrived = clean["blocks.2.attn.q"] + query.view(3, 7, 4, 8)
    with torch.no_grad(), model.edit({"blocks.2.attn.q": edits.Replace(arrived)}):
        logits = model.logits(task.clean_ids)[:, -1].double()
    value = float((logits[rows, task.answer_ids] - logits[rows, task.wrong_ids]).mean())
    whole = path_patch(model, task, receivers="blocks.2.attn.q", freeze_norms=True).data
    expected = (value - float(whole["m_clean"])) / float(whole["m_corrupt"] - whole["m_clean"])
    assert float(found[1, 3]) == pytest.approx(expected, abs=5e-5)


def test_freezing_norms_needs_norms_and_leaves_no_hook():
    from toys import Parallel, linear_task

    from actinium.core import taps
    from actinium.core.model import Model

    model, task = architectures.shared("opt"), random_task()
    path_patch(model, task, freeze_norms=True)
    assert taps.board(model.module).hooks == 0
    with pytest.raises(InputError, match="does not write"):
        path_patch(Model(Parallel()), linear_task(), "module:parts.0", over="layer", freeze_norms=True)
