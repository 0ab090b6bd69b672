"""Baked checkpoints give the logits of the edited model, and plain transformers reads them."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import actinium as ac
from actinium.core.errors import InputError
from actinium.steering.operators import Affine, PiecewiseAdd
from architectures import D_MODEL, shared, token_ids


def close(found, want):
    return bool(((found - want).abs() <= 1e-4 * want.abs().max().clamp(min=1)).all())


def reloaded(baked, folder):
    baked.module.save_pretrained(folder)
    return type(baked.module).from_pretrained(folder).eval()


@pytest.fixture
def direction():
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
@pytest.mark.parametrize(
    "site", ["blocks.0.resid_pre", "blocks.1.resid_mid", "blocks.1.resid_post", "blocks.2.mlp.out"]
)
def test_additions_become_biases(name, site, direction, tmp_path):
    if (name, site) == ("bloom", "blocks.0.resid_pre"):
        site = "blocks.1.resid_pre"  # Bloom norms its embedding; see the refusals below.
    model, ids = shared(name), token_ids(2, 9)
    vector = ac.steering.SteeringVector({site: direction})
    edits = ac.steering.steering_edits(vector, 0.7)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    baked = ac.steering.bake(model, edits)
    with ac.steering.steer(model, vector, 0.7):
        want = model.logits(ids)
    assert close(baked.logits(ids), want) and not close(model.logits(ids), want)
    assert close(reloaded(baked, tmp_path)(ids).logits, want)
    after = model.module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "opt", "gptj"])
def test_orthogonalised_weights_equal_the_ablation_of_every_residual_stream(name, direction, tmp_path):
    model, ids = shared(name), token_ids(2, 9)
    baked = ac.steering.bake(model, ac.steering.ablation_edits(model, direction))
    with model.edit(
        {"blocks.*.resid_pre": ac.edits.ProjectOut(direction), "blocks.*.resid_post": ac.edits.ProjectOut(direction)}
    ):
        want = model.logits(ids)
    if model.has("blocks.0.resid_mid"):
        everywhere = [
            (f"blocks.*.{part}", ac.edits.ProjectOut(direction)) for part in ("resid_pre", "resid_mid", "resid_post")
        ]
        with model.edit(everywhere):
            want = model.logits(ids)
    assert close(baked.logits(ids), want)
    assert close(reloaded(baked, tmp_path)(ids).logits, want)
    streams = baked.record(ids, "blocks.*.resid_post")
    unit = direction / direction.norm()
    assert all(float((streams[s] @ unit).abs().max()) < 1e-4 * float(streams[s].abs().max()) for s in streams.sites)


@pytest.mark.parametrize("edit", [Affine, ac.edits.ProjectOut, ac.edits.Scale])
def test_writes_are_changed_as_by_the_edit(edit, direction, tmp_path):
    model, ids = shared("llama"), token_ids(2, 9)
    made = {
        Affine: Affine(direction, 0.4, torch.linspace(-1, 1, D_MODEL)),
        ac.edits.ProjectOut: ac.edits.ProjectOut(direction),
        ac.edits.Scale: ac.edits.Scale(0.3),
    }[edit]
    edits = {"blocks.1.mlp.out": made, "blocks.2.attn.out": made}
    with model.edit(edits):
        want = model.logits(ids)
    assert close(reloaded(ac.steering.bake(model, edits), tmp_path)(ids).logits, want)


def test_a_tied_embedding_is_untied_and_the_output_kept(direction, tmp_path):
    config = hf.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=99,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model, ids = ac.Model(hf.LlamaForCausalLM(config).eval()), token_ids(2, 9)
    edits = {"embed": ac.edits.ProjectOut(direction)}
    baked = ac.steering.bake(model, edits)
    with model.edit(edits):
        want = model.logits(ids)
    again = reloaded(baked, tmp_path)
    assert close(again(ids).logits, want) and again.config.tie_word_embeddings is False
    assert torch.equal(again.lm_head.weight, model.module.lm_head.weight)


def test_the_shipped_model_can_be_baked(tmp_path):
    model = ac.load("world:lm")
    pairs = ac.world.contrasts.contrast("refusal", 16)
    vector = ac.steering.extract(model, pairs.positive, pairs.negative, "blocks.3.resid_post")
    ac.steering.bake(model, ac.steering.steering_edits(vector, 2.0)).module.save_pretrained(tmp_path)
    plain = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = model.to_tokens(pairs.prompts[:2])
    with ac.steering.steer(model, vector, 2.0):
        want = model.logits(tokens)
    found = plain(tokens.ids, attention_mask=tokens.mask.long()).logits
    assert close(found[tokens.mask], want[tokens.mask])


@pytest.mark.parametrize(
    ("name", "edits", "message"),
    [
        ("llama", {"blocks.1.resid_post": ac.edits.ProjectOut(torch.ones(D_MODEL))}, "all blocks below"),
        ("llama", {"blocks.1.mlp.out": ac.edits.Zero()}, "Zero cannot"),
        ("llama", {"blocks.1.mlp.out": PiecewiseAdd(torch.ones(D_MODEL))}, "PiecewiseAdd cannot"),
        ("llama", {"blocks.1.mlp.out": ac.edits.Add(torch.ones(D_MODEL)).at(positions=-1)}, "all positions"),
        ("llama", {"blocks.1.mlp.out": ac.edits.Add(torch.ones(D_MODEL), torch.ones(2))}, "one strength"),
        ("llama", {"blocks.1.attn.q": ac.edits.Scale(2.0)}, "not what one map writes"),
        ("mistral", {"blocks.1.mlp.out": ac.edits.Add(torch.ones(D_MODEL))}, "no bias"),
        ("bloom", {"blocks.0.resid_pre": ac.edits.Add(torch.arange(1.0, D_MODEL + 1))}, "more with what"),
        ("gemma2", {"blocks.1.attn.out": ac.edits.ProjectOut(torch.arange(1.0, D_MODEL + 1))}, "more with what"),
    ],
)
def test_what_weights_cannot_hold_is_refused(name, edits, message):
    with pytest.raises(InputError, match=message):
        ac.steering.bake(shared(name), edits)
