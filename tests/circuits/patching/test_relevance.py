"""Relevance patching: exact where attribution is, conserved where nothing is left, beside it elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from toys import Parallel, linear_task, random_task, task_of

import architectures
from actinium.circuits import attribution_patch, lrp_rules, patch, relevance, relevance_patch, repeated_names
from actinium.circuits.patching.lrp import RELP
from actinium.core.edits import Replace
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.inputs import Tokens
from actinium.core.loading import load
from actinium.core.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")
ALL = (*RELP, "ah")
FREE = ["gpt2", "gpt_neox", "gpt_neox-sequential", "llama", "qwen3", "gemma", "phi3", "olmo", "falcon", "bloom", "gptj"]


class Deep(nn.Module):
    """Two layers of ReLU, or of GELU, on the mean of the embeddings so far."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.first, self.second = nn.Embedding(20, 6), nn.Linear(6, 9), nn.Linear(9, 9)
        self.act, self.out = act, nn.Linear(9, 20)

    def forward(self, ids):
        x = self.embed(ids).cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        return self.out(self.act(self.second(self.act(self.first(x)))))


def without_biases(name):
    """A fresh model of this architecture, in which every layer maps 0 to 0."""
    module = architectures.build(name)
    with torch.no_grad():
        for path, p in module.named_parameters():
            if path.endswith("bias"):
                p.zero_()
    return Model(module)


@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_in_a_linear_model_it_is_attribution_and_the_patch(mode):
    model, task, parts = Model(Parallel().eval()), linear_task(), [f"module:parts.{i}" for i in range(4)]
    exact = patch(model, task, parts, over="layer", mode=mode).data
    plain = attribution_patch(model, task, parts, over="layer", mode=mode).data
    # Linear layers are all that there is: with nothing added to the denominator the rule is the gradient.
    found = relevance_patch(model, task, parts, over="layer", mode=mode, rules=("epsilon",)).data
    for name in ("effect", "patched", "m_clean", "m_corrupt"):
        np.testing.assert_allclose(found[name], exact[name], atol=1e-5)
        np.testing.assert_allclose(found[name], plain[name], atol=1e-5)


def test_with_relu_alone_it_is_attribution_exactly():
    task, sites = linear_task(), ["module:first", "module:act#0", "module:second"]
    model = Model(Deep(nn.ReLU()).eval())
    found, plain = (f(model, task, sites, over="layer").data for f in (relevance_patch, attribution_patch))
    np.testing.assert_array_equal(found["effect"], plain["effect"])
    model = Model(Deep(nn.GELU()).eval())
    found, plain = (f(model, task, sites, over="layer").data for f in (relevance_patch, attribution_patch))
    assert np.abs(found["effect"] - plain["effect"]).max() > 1e-3


@pytest.mark.parametrize("name", FREE)
def test_relevance_of_every_full_cut_is_the_output(name):
    """All four rules, and no bias: embeddings with their positions, every residual stream, the final norm."""
    model, task = without_biases(name), random_task(padding=(2,))
    cuts = ["blocks.*.resid_pre", "final_norm", *(["blocks.*.resid_mid"] if model.has("blocks.*.resid_mid") else [])]
    found = relevance(model, task, {site.name: site.name for site in model.sites(cuts)}, by_row=True).data
    with torch.no_grad():
        logits = model.logits(Tokens(task.clean_ids, task.mask, torch.arange(3)))[:, -1]
    rows = torch.arange(3)
    output = (logits[rows, task.answer_ids] - logits[rows, task.wrong_ids]).numpy()
    scale = float(logits.abs().max())
    np.testing.assert_allclose(
        found["relevance_by_row"] / scale, np.tile(output / scale, (len(found.set), 1)), atol=1e-5
    )
    assert float(found["metric"]) == pytest.approx(output.mean(), abs=1e-5 * scale)


def test_without_a_rule_relevance_is_gradient_times_input():
    model, task, rows = architectures.shared("llama"), random_task(), torch.arange(3)
    found = relevance(model, task, "blocks.1.attn.z", "head", rules=(), prompts="corrupt", by_row=True).data
    z = model.record(task.corrupt_ids, "blocks.1.attn.z")["blocks.1.attn.z"].requires_grad_()
    with model.edit({"blocks.1.attn.z": Replace(z)}):
        logits = model.logits(task.corrupt_ids)[:, -1]
    score = (logits[rows, task.answer_ids] - logits[rows, task.wrong_ids]).sum()
    expected = (torch.autograd.grad(score, z)[0] * z).sum((1, 3)).detach()
    np.testing.assert_allclose(found["relevance_by_row"][0], expected.T, atol=1e-5)
    np.testing.assert_allclose(found["relevance"][0], expected.mean(0), atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "gemma2"])
def test_constant_patterns_leave_nothing_to_queries_and_keys(name):
    model, task = architectures.shared(name), random_task()
    at = "blocks.*.attn.{q,k,v}"
    found = relevance_patch(model, task, at, over="layer", rules=ALL).data["effect"]
    assert not found.sel(part=["attn.q", "attn.k"]).values.any()
    assert found.sel(part="attn.v").values.all()
    free = relevance_patch(model, task, at, over="layer").data["effect"]
    # The first token of the prompts is the same, so only later queries and keys move.
    assert free.sel(part="attn.k").values.any() and free.sel(part="attn.q").values.any()


@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_effect_is_the_coefficient_times_the_change(mode):
    """Coefficients written out: a backward pass under the rules with respect to the site's activations."""
    model, task, site, rows = architectures.shared("qwen3"), random_task(), "blocks.1.mlp.out", torch.arange(3)
    found = relevance_patch(model, task, site, "pos", mode=mode, normalise=False).data["effect"]
    ends = [task.corrupt_ids, task.clean_ids] if mode == "denoise" else [task.clean_ids, task.corrupt_ids]
    with lrp_rules(model):
        rec = model.record(ends[0], [site, "logits"], grad=True)
        logits = rec["logits"][:, -1]
        score = (logits[rows, task.answer_ids] - logits[rows, task.wrong_ids]).sum()
        (c,) = torch.autograd.grad(score, rec[site])
    step = model.record(ends[1], site)[site] - rec[site].detach()
    sign = 1 if mode == "denoise" else -1
    np.testing.assert_allclose(found[0], sign * (c * step).sum(-1).mean(0), atol=1e-5)


def test_noise_on_embeddings_can_be_the_other_run(lm, ioi):
    """From the first stream on everything follows, so its parts by position add up to the whole."""
    options = {"ablation": "gaussian", "mode": "noise", "seed": 3}
    whole, parts = (relevance_patch(lm, ioi, "blocks.0.resid_pre", o, by_row=True, **options) for o in ("layer", "pos"))
    change = parts.data["patched_by_row"] - parts.data["clean_by_row"]
    total = whole.data["patched_by_row"] - whole.data["clean_by_row"]
    np.testing.assert_allclose(change.sum("pos"), total, atol=1e-5)
    again = relevance_patch(lm, ioi, "blocks.0.resid_pre", "layer", **options)
    np.testing.assert_array_equal(again["effect"], whole["effect"])
    assert np.abs(total).max() > 1e-2


def test_batches_do_not_change_effects(lm, ioi):
    at = "blocks.*.{attn.out,mlp.out}"
    whole = relevance_patch(lm, ioi, at).data
    parts = relevance_patch(lm, ioi, at, batch_size=3).data
    np.testing.assert_allclose(parts["effect"], whole["effect"], atol=1e-5)
    np.testing.assert_array_equal(whole["n_rows"], attribution_patch(lm, ioi, at).data["n_rows"])


def test_neurons_add_up_to_their_layer(lm, ioi):
    by_unit = relevance_patch(lm, ioi, "blocks.2.mlp.post", "unit").data["effect"]
    whole = relevance_patch(lm, ioi, "blocks.2.mlp.post", "layer").data["effect"]
    assert float(by_unit.sum()) == pytest.approx(float(whole[0]), abs=1e-5)
    # The map out of the MLP is linear.
    out = relevance_patch(lm, ioi, "blocks.2.mlp.out", "layer").data["effect"]
    assert float(out[0]) == pytest.approx(float(whole[0]), abs=1e-5)


def test_provenance_says_what_followed_which_rule(lm, ioi, tmp_path):
    found = relevance_patch(lm, ioi, "blocks.*.mlp.out", "layer")
    about = found.provenance["settings"]
    assert about["rules"] == list(RELP) and about["converted"] == {"ln": 13, "identity": 6, "half": 6}
    assert about["left"] == [f"model.layers.{i}.self_attn" for i in range(6)]
    assert found.paper == "relp" and found.method == "relevance_patch"
    axes = relevance(lm, ioi).plot()
    assert "relevance" in axes.get_title()
    back = type(found).load(relevance(lm, ioi, over="layer").save(tmp_path / "r.zarr"))
    assert back.method == "relevance"


def test_outside_model_follows_the_rules(outside_data):
    model = load(outside_data / "stories260K")
    task = repeated_names(model, n=8)
    with lrp_rules(model) as report:
        pass
    counts = {rule: list(report.converted.values()).count(rule) for rule in RELP}
    assert counts == {"ln": 2 * model.n_layers + 1, "identity": model.n_layers, "half": model.n_layers}
    at = "blocks.*.mlp.out"
    exact, relp, atp = (f(model, task, at).data["effect"].values for f in (patch, relevance_patch, attribution_patch))
    inside = np.isfinite(exact)
    assert np.corrcoef(exact[inside], relp[inside])[0, 1] > 0.5
    assert np.abs(relp[inside] - atp[inside]).max() > 1e-3
    total = relevance(model, task, "blocks.*.resid_pre", "layer").data
    np.testing.assert_allclose(total["relevance"], float(total["metric"]), rtol=2e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "rank"}, InputError, "no gradient"),
        ({"ablation": "zero", "mode": "noise"}, InputError, "two runs"),
        ({"rules": ()}, InputError, "one or more"),
        ({"rules": ("LN",)}, UnknownNameError, "'ln'"),
        ({"metric": lambda logits, *_: logits}, InputError, "one value for each row"),
        ({"metric": lambda logits, *_: logits.mean()}, InputError, "one value for each row"),
    ],
)
def test_what_cannot_be_scored_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        relevance_patch(architectures.shared("gpt2"), random_task(), **options)


def test_runs_without_a_run_to_compare_are_refused():
    model, task = architectures.shared("gpt2"), random_task()
    with pytest.raises(UnknownNameError, match="'clean'"):
        relevance(model, task, prompts="clear")
    short = task_of(task.clean_ids, task.corrupt_ids, task.answer_ids, task.wrong_ids)
    object.__setattr__(short, "corrupt_ids", task.corrupt_ids[:, 1:])
    with pytest.raises(InputError, match="same length"):
        relevance_patch(model, short)
    with pytest.raises(InputError, match="nothing in Parallel"):
        relevance_patch(Model(Parallel().eval()), linear_task(), "module:parts.0", over="layer")
