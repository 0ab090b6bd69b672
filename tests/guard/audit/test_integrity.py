"""Integrity manifests: every way to leave a vector behind in a model is seen."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError, LoadError
from actinium.guard.audit.vectors.integrity import Difference, IntegrityManifest


@pytest.fixture(scope="module")
def clean():
    return ac.load("world:lm")


@pytest.fixture(scope="module")
def manifest(clean):
    return IntegrityManifest.of(clean)


@pytest.fixture
def module(clean):
    return copy.deepcopy(clean.module)


VECTOR = torch.ones(128)
MLP = "model.layers.2.mlp.down_proj"


def test_an_untouched_model_has_no_differences(manifest, clean, module):
    assert manifest.differences(clean) == []
    assert manifest.differences(module) == []
    with clean.edit({"blocks.2.resid_post": ac.edits.Add(VECTOR)}):
        hooks = manifest.differences(clean)
    assert {d.kind for d in hooks} == {"hook"}
    assert manifest.differences(clean) == []


def test_a_bias_that_was_baked_in_is_seen(manifest, module):
    module.get_submodule(MLP).bias = nn.Parameter(0.1 * VECTOR)
    assert Difference("parameter", f"{MLP}.bias", "added") in manifest.differences(module)
    again = IntegrityManifest.of(module)
    with torch.no_grad():
        module.get_submodule(MLP).bias[3] += 1e-6
    assert again.differences(module) == [Difference("parameter", f"{MLP}.bias", "changed")]


def test_weights_buffers_and_attributes_are_seen(manifest, module):
    with torch.no_grad():
        module.get_submodule(MLP).weight[0, 0] += 1e-4
    block = module.model.layers[2]
    block.register_buffer("shift", VECTOR, persistent=False)
    module.get_submodule(MLP).steering = VECTOR
    block.forward = block.forward
    module.model.layers[3] = nn.Sequential(module.model.layers[3])
    found = manifest.differences(module)
    for expected in (
        Difference("parameter", f"{MLP}.weight", "changed"),
        Difference("buffer", "model.layers.2.shift", "added"),
        Difference("tensor", f"{MLP}.steering", "added"),
        Difference("method", "model.layers.2.forward", "added"),
        Difference("module", "model.layers.3", "changed"),
        Difference("parameter", "model.layers.3.mlp.up_proj.weight", "removed"),
    ):
        assert expected in found


def test_hooks_of_every_kind_are_seen(manifest, module):
    block = module.model.layers[1]
    handles = [
        block.register_forward_hook(lambda m, i, o: None),
        block.register_forward_pre_hook(lambda m, i: None),
        block.register_full_backward_hook(lambda m, i, o: None),
        nn.modules.module.register_module_forward_hook(lambda m, i, o: None),
    ]
    try:
        names = {d.name for d in manifest.differences(module) if d.kind == "hook" and d.change == "added"}
    finally:
        for handle in handles:
            handle.remove()
    assert len(names) == 4
    assert any(name.startswith("(all modules)") for name in names)
    assert manifest.differences(module) == []


def test_untied_embeddings_are_seen_when_they_part(manifest, module):
    assert module.lm_head.weight is module.model.embed_tokens.weight
    module.lm_head.weight = nn.Parameter(module.lm_head.weight.detach().clone())
    assert manifest.differences(module) == []
    with torch.no_grad():
        module.lm_head.weight[5] += 1
    assert manifest.differences(module) == [Difference("parameter", "lm_head.weight", "changed")]


def test_a_manifest_is_saved_and_read(manifest, module, tmp_path):
    again = IntegrityManifest.load(manifest.save(tmp_path / "deep" / "manifest.json"))
    assert again == manifest
    assert again.differences(module) == []
    for text in ("{", "[]", '{"format": 1, "entries": {}}', '{"format": 2}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(LoadError):
            IntegrityManifest.load(tmp_path / "bad.json")
    with pytest.raises(LoadError):
        IntegrityManifest.load(tmp_path / "absent.json")
    with pytest.raises(InputError, match="Module"):
        IntegrityManifest.of("model")
