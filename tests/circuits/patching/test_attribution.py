"""Attribution patching: exact where the model is linear, and in the limit of many steps; AtP* on a worked example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import Parallel, linear_task, random_task

import architectures
from actinium.circuits import attribution_patch, patch
from actinium.circuits.patching.atp_star import key_scores, query_scores
from actinium.core import edits
from actinium.core.errors import InputError, UnknownNameError
from actinium.core.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:the model prefers:actinium.core.errors.ActiniumWarning")


@pytest.mark.parametrize("mode", ["denoise", "noise"])
@pytest.mark.parametrize("method", ["atp", "ig"])
def test_in_a_linear_model_the_estimate_is_the_patch(mode, method):
    model, task, parts = Model(Parallel()), linear_task(), [f"module:parts.{i}" for i in range(4)]
    exact = patch(model, task, parts, over="layer", mode=mode).data
    found = attribution_patch(model, task, parts, over="layer", mode=mode, method=method).data
    for name in ("effect", "patched", "m_clean", "m_corrupt"):
        np.testing.assert_allclose(found[name], exact[name], atol=1e-5)


@pytest.mark.parametrize("site", ["blocks.0.attn.z", "blocks.1.mlp.out", "blocks.1.attn.scores", "blocks.2.resid_pre"])
def test_integrated_gradients_of_a_whole_site_converge_to_its_patch(site):
    model, task = architectures.shared("llama"), random_task()
    exact = float(patch(model, task, site, over="layer").data["effect"][0])
    errors = []
    for steps in (4, 64):
        found = attribution_patch(model, task, site, over="layer", method="ig", steps=steps).data["effect"][0]
        errors.append(abs(float(found) - exact))
    assert errors[1] < 0.01 * max(1.0, abs(exact))
    assert errors[1] <= errors[0]


@pytest.mark.parametrize("over", ["pos", "head", "head_pos", "unit"])
def test_scores_of_a_sites_parts_add_up_to_the_sites_score(over):
    model, task = architectures.shared("gpt2"), random_task(padding=(2,))
    at = "blocks.*.mlp.post" if over == "unit" else "blocks.*.attn.z"
    parts = attribution_patch(model, task, at, over=over, by_row=True).data
    whole = attribution_patch(model, task, at, over="layer", by_row=True).data
    dims = [d for d in parts["effect"].dims if d != "layer"]
    change = (parts["patched_by_row"] - parts["corrupt_by_row"]).sum(dims)
    np.testing.assert_allclose(change, whole["patched_by_row"] - whole["corrupt_by_row"], atol=1e-5)


def test_score_is_the_derivative_along_the_difference():
    """A finite difference of the metric along the line to the other run's activations of one head at one position."""
    model, task = architectures.shared("gpt2"), random_task()
    site, rows = "blocks.1.attn.z", torch.arange(3)
    found = attribution_patch(model, task, site, over="head_pos").data
    base, source = (model.record(ids, site)[site] for ids in (task.corrupt_ids, task.clean_ids))

    def score(t):
        moved = edits.Replace(base + t * (source - base)).at(heads=[2], positions=[4])
        with torch.no_grad(), model.edit({site: moved}):
            logits = model.logits(task.corrupt_ids)[:, -1].double()
        return float((logits[rows, task.answer_ids] - logits[rows, task.wrong_ids]).mean())

    slope = (score(0.02) - score(-0.02)) / 0.04
    gap = float(found["m_clean"] - found["m_corrupt"])
    assert float(found["effect"].sel(layer=1, head=2, pos=4)) == pytest.approx(slope / gap, abs=1e-3)


def test_recomputed_softmax_finds_what_a_saturated_gradient_misses():
    scores, new = torch.tensor([[12.0, 0.0, 0.0]]), torch.tensor([[0.0, 12.0, 0.0]])
    values = torch.tensor([[1.0, 0.0, -1.0]])
    pattern = torch.softmax(scores.double(), -1)
    plain = (pattern * (values - (pattern * values).sum())) @ (new - scores).double().T
    assert float(plain) == pytest.approx(-0.000295, abs=5e-7)
    true = float(((torch.softmax(new.double(), -1) - pattern) * values).sum())
    assert true == pytest.approx(-0.99998, abs=5e-6)
    assert float(query_scores(values, scores, new)) == pytest.approx(true, abs=1e-12)


def test_key_score_changes_one_column_at_a_time():
    random = torch.Generator().manual_seed(0)
    scores, new, gradient = (torch.randn(2, 3, 5, 5, generator=random) * 3 for _ in range(3))
    hidden = torch.ones(5, 5).triu(1).bool()
    scores, new = (t.masked_fill(hidden, -torch.inf) for t in (scores, new))
    found = key_scores(gradient, scores, new)
    pattern = torch.softmax(scores.double(), -1)
    for j in range(5):
        one = scores.double().clone()
        one[..., j] = new[..., j].double()
        expected = (gradient * (torch.softmax(one, -1) - pattern)).sum((-2, -1))
        torch.testing.assert_close(found[..., j], expected, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_atp_star_leaves_queries_and_keys_before_the_changed_token_at_zero(name):
    model, task = architectures.shared(name), random_task(padding=(1,))
    found = attribution_patch(model, task, "blocks.*.attn.{q,k}", over="pos", method="atp*").data["effect"]
    assert found.dims == ("part", "layer", "pos")
    assert (found.values >= 0).all() and (found.sel(pos=-5).values > 0).any()
    assert not found.sel(pos=[-7, -6]).values.any()


@pytest.mark.parametrize("part", ["q", "k"])
def test_atp_star_is_the_derivative_along_the_change_of_the_pattern(part):
    """Of two layers the last: cutting the first changes nothing there, cutting the last leaves nothing."""
    model, task, rows = Model(two_layers()), random_task(rows=1), torch.arange(1)
    site, pattern = f"blocks.1.attn.{part}", "blocks.1.attn.pattern"
    found = attribution_patch(model, task, site, over="head_pos", method="atp*", normalise=False).data["effect"]
    source = model.record(task.clean_ids, site)[site]
    base = model.record(task.corrupt_ids, pattern)[pattern]

    def score(t, new):
        moved = edits.Replace(base + t * (new - base)).at(heads=[2])
        with torch.no_grad(), model.edit({pattern: moved}):
            logits = model.logits(task.corrupt_ids)[:, -1].double()
        return float((logits[rows, task.answer_ids] - logits[rows, task.wrong_ids]).mean())

    for pos in (2, 6):
        with model.edit({site: edits.Replace(source).at(positions=[pos])}):
            new = model.record(task.corrupt_ids, pattern)[pattern]
        slope = (score(0.05, new) - score(-0.05, new)) / 0.1
        assert float(found[0, 2, pos]) == pytest.approx(abs(slope), rel=0.02, abs=1e-4)


@pytest.mark.parametrize("mode", ["denoise", "noise"])
@pytest.mark.parametrize("normalise", [True, False])
def test_atp_star_has_no_negative_effects(mode, normalise):
    model, task = architectures.shared("llama"), random_task()
    at = "blocks.*.{attn.z,mlp.out}"
    found = attribution_patch(model, task, at, over="layer", method="atp*", mode=mode, normalise=normalise).data
    assert (found["effect"].values >= 0).all()
    assert (attribution_patch(model, task, at, over="layer", mode=mode).data["effect"].values < 0).any()


def test_cut_layer_adds_nothing_to_the_score_of_what_only_it_carries():
    """Two layers: each pass of AtP* cuts one of them, so the mean over L - 1 = 1 counts each remaining path once."""
    model, task = Model(two_layers()), random_task()
    star = attribution_patch(model, task, "blocks.1.attn.z", over="layer", method="atp*", by_row=True).data
    plain = attribution_patch(model, task, "blocks.1.attn.z", over="layer", by_row=True).data
    # What the last layer's z adds to the stream is its own output: cutting layer 0 changes nothing, cutting 1 all.
    expected = np.abs((plain["patched_by_row"] - plain["corrupt_by_row"]).values).mean()
    moved = np.abs((star["patched_by_row"] - star["corrupt_by_row"]).values).mean()
    assert moved == pytest.approx(expected, rel=1e-5)


def two_layers():
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": architectures.VOCAB}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, initializer_range=0.3)).eval()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "rank"}, InputError, "no gradient"),
        ({"metric": "accuracy"}, InputError, "no gradient"),
        ({"ablation": "zero", "mode": "noise"}, InputError, "two runs"),
        ({"steps": 0}, InputError, "steps"),
        ({"method": "atp-star"}, UnknownNameError, "atp"),
    ],
)
def test_what_has_no_attribution_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        attribution_patch(architectures.shared("gpt2"), random_task(), **options)


def test_atp_star_needs_blocks_to_cut():
    with pytest.raises(InputError, match="none that we know"):
        attribution_patch(Model(Parallel()), linear_task(), "module:parts.0", over="layer", method="atp*")


def test_a_gradient_that_is_not_finite_is_refused():
    class Corner(Parallel):
        def forward(self, ids):
            out = super().forward(ids)
            return out + torch.sqrt(out.detach() * 0 + (out - out.detach()))

    with pytest.raises(InputError, match="not finite"):
        attribution_patch(Model(Corner()), linear_task(), "module:parts.0", over="layer")


def narrow(dtype):
    """A model whose gradients at the embeddings are beyond 65504, though its logits are not."""
    module = architectures.build("llama")
    with torch.no_grad():
        module.model.embed_tokens.weight.mul_(1e-3)
        module.lm_head.weight.mul_(300.0)
    return Model(module.to(dtype))


@pytest.mark.parametrize("method", ["atp", "ig"])
def test_gradients_beyond_half_precision_are_refused_and_say_why(method):
    with pytest.raises(InputError, match="not finite; half precision may be too narrow, try dtype float32"):
        attribution_patch(narrow(torch.float16), random_task(), "blocks.0.resid_pre", over="layer", method=method)


@pytest.mark.parametrize("method", ["atp", "ig", "atp*"])
def test_in_bfloat16_estimates_are_finite_and_near_those_of_float32(method):
    """bfloat16 has the range of float32 and two to three digits."""
    module = architectures.build("llama")
    task, at = random_task(), "blocks.*.{attn.z,mlp.out}"
    single = attribution_patch(Model(module), task, at, over="layer", method=method).data["effect"].values
    half = attribution_patch(Model(module.to(torch.bfloat16)), task, at, over="layer", method=method).data["effect"]
    assert np.isfinite(half).all()
    assert np.abs(half - single).max() < 0.1 * np.abs(single).max()
