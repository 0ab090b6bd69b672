"""The same activations in half precision, under autocast, compiled, and with gradient checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import actinium.core.attention
from actinium.core.edits import Add, ProjectOut, Scale
from actinium.core.inputs import Tokens, pad
from actinium.core.model import Model
from actinium.core.taps import board
from architectures import build, inputs_for, shared, token_ids

SOME = ("gpt2", "llama", "gemma2", "gpt_neox", "bloom", "falcon", "mpt", "gptj", "opt", "phi3", "mamba", "bert")


@pytest.mark.parametrize("name", [*SOME, "t5-gated", "vit"])
def test_bfloat16_models_are_read_in_bfloat16_and_left_alone(name):
    model = Model(build(name).to(torch.bfloat16))
    inputs = inputs_for(name)
    inputs = inputs.to(torch.bfloat16) if name == "vit" else inputs
    with torch.no_grad():
        plain = model(inputs).logits
        with model.recording("**") as rec:
            assert torch.equal(model(inputs).logits, plain)
    # GPT-J widens its queries and keys, Mamba its stream; what their linear maps write is narrow everywhere.
    written = [s for s in rec.sites if s.endswith((".out", ".v", ".pre", ".post")) and "resid" not in s]
    assert {rec[s].dtype for s in written} == {torch.bfloat16}
    wide = model.record(inputs, "**.resid_post", dtype=torch.float32)
    assert all(torch.equal(wide[s], rec[s].float()) for s in wide.sites)


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3", "opt", "falcon-alibi"])
def test_bfloat16_streams_add_up_exactly(name):
    """The half-precision stream is the rounded sum of its rounded parts."""
    model = Model(build(name).to(torch.bfloat16))
    rec = model.record(inputs_for(name), "**.{resid_pre,resid_mid,resid_post,out}")
    for i in range(model.n_layers):
        at = f"blocks.{i}."
        assert torch.equal(rec[at + "resid_pre"] + rec[at + "attn.out"], rec[at + "resid_mid"])
        assert torch.equal(rec[at + "resid_mid"] + rec[at + "mlp.out"], rec[at + "resid_post"])


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "vit"])
def test_recording_under_autocast_changes_no_bit(name):
    model, inputs = shared(name), inputs_for(name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(inputs).logits
        with model.recording("**") as rec:
            assert torch.equal(model(inputs).logits, plain)
        vector = torch.linspace(-1, 1, 32)
        with model.edit({"blocks.1.resid_post": Add(vector)}):
            edited = model.record(inputs, "blocks.{1,2}.resid_*")
    assert rec["blocks.0.attn.out"].dtype == torch.bfloat16
    added = edited["blocks.1.resid_post"] - rec["blocks.1.resid_post"]
    assert torch.allclose(added, vector.expand_as(added), atol=1e-2)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_patterns_of_padded_float64_models_can_be_edited(name):
    """The lowest double is minus infinity to a softmax in single precision; padding must not turn into NaN."""
    model = Model(build(name).double())
    ids, mask = pad([token_ids(1, n, seed=n)[0].tolist() for n in (6, 3)], 0, "left")
    with model.edit({"blocks.0.attn.pattern": Scale(0.7).at(heads=[1])}):
        rec = model.record(Tokens(ids, mask, torch.arange(2)), "blocks.*.resid_post")
        alone = model.record(ids[1:, 3:], "blocks.*.resid_post")
    for site in rec.sites:
        assert torch.allclose(rec[site][1:, 3:], alone[site], atol=1e-5)


@pytest.mark.parametrize("kind", ["wrapped", "in place"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj"])
def test_compiled_modules_are_read_and_edited_like_the_plain_ones(name, kind):
    module = build(name)
    inputs = inputs_for(name)
    plain = shared(name)
    if kind == "wrapped":
        compiled = torch.compile(module, backend="eager")
    else:
        module.compile(backend="eager")
        compiled = module
    with torch.no_grad():
        before = compiled(inputs).logits
    model = Model(compiled)
    want = plain.record(inputs, "**")
    rec = model.record(inputs, "**")
    assert rec.sites == want.sites
    assert all(torch.allclose(rec[s], want[s], atol=1e-5) for s in rec.sites)
    edit = {"blocks.1.resid_post": Add(torch.linspace(-1, 1, 32)), "blocks.2.attn.pattern": Scale(0.5)}
    with torch.no_grad(), model.edit(edit), plain.edit(edit):
        assert torch.allclose(model(inputs).logits, plain(inputs).logits, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(compiled(inputs).logits, before)


def test_the_compiled_wrapper_itself_is_edited_within_the_block():
    """A user may call the wrapper that they passed and not the Model."""
    module = build("llama")
    compiled = torch.compile(module, backend="eager")
    inputs = inputs_for("llama")
    model = Model(compiled)
    with torch.no_grad():
        before = compiled(inputs).logits
        with model.edit({"blocks.1.resid_post": Add(torch.ones(32))}):
            within, own = compiled(inputs).logits, model(inputs).logits
        after = compiled(inputs).logits
    assert torch.equal(before, after)
    assert not torch.allclose(within, before, atol=1e-3)
    assert torch.allclose(within, own, atol=1e-5)


def without_dropout(name):
    module = build(name)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for word in ("attention_dropout", "dropout", "hidden_dropout", "attn_dropout_p", "dropout_rate"):
            if isinstance(getattr(part, word, None), float):
                setattr(part, word, 0.0)
    return module.train()


def gradients(module, edits, vectors, inside):
    """The loss, and its gradients for every parameter and vector, with backward in or after the edit block."""
    model = Model(module)
    module.zero_grad()
    for v in vectors:
        v.grad = None
    sites = ["blocks.1.resid_post", "blocks.1.attn.z", "blocks.2.mlp.post", "logits"]
    with model.edit(edits()):
        rec = model.record(token_ids(2, 7), sites, grad=True)
        loss = sum((rec[s] * torch.linspace(-1, 1, rec[s].shape[-1])).square().mean() for s in sites)
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    named = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return loss.detach(), named, [v.grad.clone() for v in vectors]


def compare(name, make, vectors, inside):
    """Gradients with checkpointing against those of plain backward."""
    module = without_dropout(name)
    want, want_named, want_vectors = gradients(module, make, vectors, True)
    module.activation_checkpointing_enable()
    got, named, found = gradients(module, make, vectors, inside)
    assert torch.allclose(got, want, rtol=1e-5)
    assert set(named) == set(want_named)
    for n, grad in named.items():
        assert torch.allclose(grad, want_named[n], rtol=1e-3, atol=1e-4 * float(want_named[n].abs().max() + 1)), n
    for a, b in zip(found, want_vectors, strict=True):
        assert b.abs().max() > 0
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward after"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "opt", "phi3", "gptj", "bloom", "bert", "falcon"])
def test_gradients_with_checkpointing_equal_those_without(name, inside):
    """A checkpointed block runs again in backward, and must then compute what the forward pass computed."""
    vector = torch.linspace(-1, 1, 32).requires_grad_()
    bent = torch.linspace(0.5, -1, 32).requires_grad_()

    def make():
        return {
            "blocks.0.resid_post": Add(vector).at(positions=[1, -1]),
            "blocks.1.attn.z": Scale(0.3),
            "blocks.1.mlp.post": Scale(1.7),
            "blocks.2.attn.out": ProjectOut(bent),
        }

    compare(name, make, [vector, bent], inside)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "gptj", "falcon"])
def test_edits_inside_attention_have_the_same_gradient_under_checkpointing(name):
    factor = torch.tensor(0.7, requires_grad=True)
    mix = torch.full((shared(name).tower.d_head,), 0.1).requires_grad_()

    def make():
        return {
            "blocks.1.attn.q": Add(mix),
            "blocks.1.attn.pattern": Scale(factor).at(heads=[1]),
            "blocks.2.attn.scores": Scale(factor),
        }

    compare(name, make, [factor, mix], True)


def test_checkpointed_recording_leaves_no_hook_and_no_implementation_behind():
    module = without_dropout("llama")
    module.activation_checkpointing_enable()
    model = Model(module)
    rec = model.record(token_ids(), "blocks.1.attn.pattern", grad=True)
    assert rec["blocks.1.attn.pattern"].requires_grad
    assert board(module).hooks == 0
    assert not module.config._attn_implementation.startswith(actinium.core.attention.PREFIX)
