"""The tokens of a direction are those of the model's own down projection, norm and unembedding."""

from __future__ import annotations

import pytest
import torch

import actinium as ac
import architectures
from actinium.core.errors import InputError, SiteError
from actinium.features.vocabulary import vocabulary_logits, vocabulary_projection, written


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_a_direction_of_mlp_units_writes_what_the_model_adds_for_it(name):
    """Adding a direction to the units of a model without other activity adds what it writes to the stream."""
    model = architectures.shared(name)
    directions = drawn(3, 48)
    ids = torch.tensor([[5, 6, 7]])
    site, outlet = "blocks.1.mlp.post", "blocks.1.mlp.out"
    got = written(model, directions, site)
    for direction, want in zip(directions, got, strict=True):
        with model.edit({site: ac.edits.Replace(direction)}):
            on = model.record(ids, outlet)[outlet][0, -1]
        with model.edit({site: ac.edits.Replace(torch.zeros(48))}):
            off = model.record(ids, outlet)[outlet][0, -1]
        assert torch.allclose(on - off, want, atol=1e-5)


def test_logits_are_those_of_the_last_norm_and_unembedding():
    model = architectures.shared("gpt2")
    module = model.module
    directions = drawn(4, 48)
    weight = module.transformer.h[1].mlp.c_proj.weight
    with torch.no_grad():
        stream = directions @ weight
        norm = torch.nn.functional.layer_norm(stream, (32,), module.transformer.ln_f.weight)
        want = norm @ module.lm_head.weight.T
    got = vocabulary_logits(model, directions, "blocks.1.mlp.post")
    assert torch.allclose(got, want, atol=1e-4)
    resid = vocabulary_logits(model, stream, "blocks.0.resid_post")
    assert torch.allclose(resid, want, atol=1e-4)
    heads = vocabulary_logits(model, drawn(2, 32, seed=1), "blocks.2.attn.z")
    through = drawn(2, 32, seed=1) @ module.transformer.h[2].attn.c_proj.weight
    assert torch.allclose(heads, vocabulary_logits(model, through, "blocks.2.resid_post"), atol=1e-5)


def test_top_and_bottom_tokens_are_the_extreme_logits(lm):
    model = lm
    red = int(model.to_tokens("red").ids[0, -1])
    unembedding = model.module.get_output_embeddings().weight.detach()
    found = vocabulary_projection(model, unembedding[red], "blocks.5.resid_post", n=3)
    assert found["top_token"].values[0, 0].strip() == "red"
    logits = vocabulary_logits(model, unembedding[red], "blocks.5.resid_post")[0]
    assert found["top_id"].values[0].tolist() == logits.argsort(descending=True)[:3].tolist()
    assert found["bottom_id"].values[0].tolist() == logits.argsort()[:3].tolist()
    assert found["bottom_logit"].values[0] == pytest.approx(logits.sort().values[:3].numpy())
    opposite = vocabulary_projection(model, -unembedding[red], "blocks.5.resid_post", n=3)
    assert opposite["bottom_token"].values[0, 0] == found["top_token"].values[0, 0]
    assert len(found.table("top_logit")) == 3


def test_features_of_a_model_that_nobody_here_trained_have_tokens(outside_data):
    folder = outside_data / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is absent")
    model = ac.load(folder)
    found = vocabulary_projection(model, torch.eye(172)[:4], "blocks.1.mlp.post", n=2)
    weight = model.module.model.layers[1].mlp.down_proj.weight.detach()
    want = model.unembed(weight.T[:4]).topk(2).indices
    assert found["top_id"].values.tolist() == want.tolist()


def test_what_has_no_tokens_is_refused():
    model = architectures.shared("gpt2")
    with pytest.raises(InputError, match="48 entries, the directions 47"):
        vocabulary_logits(model, drawn(2, 47), "blocks.1.mlp.post")
    with pytest.raises(InputError, match="32 entries, the directions 48"):
        vocabulary_logits(model, drawn(2, 48), "blocks.1.resid_post")
    with pytest.raises(InputError, match="means 3 sites"):
        vocabulary_logits(model, drawn(2, 48), "blocks.*.mlp.post")
    with pytest.raises(InputError, match="not the input of a linear map"):
        vocabulary_logits(model, drawn(2, 48), "blocks.1.mlp.pre")
    with pytest.raises(InputError, match="NaN"):
        vocabulary_logits(model, drawn(2, 48) * torch.nan, "blocks.1.mlp.post")
    with pytest.raises(InputError, match="does not write to the residual stream"):
        written(model, drawn(2, 32), "module_in:transformer.h.0.mlp.c_fc")
    with pytest.raises(SiteError, match=r"mlp\.post"):
        vocabulary_logits(model, drawn(2, 48), "blocks.1.mlp.pots")
    with pytest.raises(InputError, match="n must be from 1 to 99"):
        vocabulary_projection(model, drawn(2, 48), "blocks.1.mlp.post", n=100)
