"""The image classifiers: what can be read from them, and that the parts of a network are the whole."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

import actinium as ac
from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.world import image_models, shipped
from actinium.world.image_models import CNNSize, SmallCNN, ViTSize, make_cnn, make_vit

CNNS, VITS = ("digits-cnn", "shapes-cnn"), ("digits-vit", "shapes-vit")
STAGES = ["stage1", "stage2", "stage3"]


@pytest.fixture(scope="module", params=[*CNNS, *VITS])
def loaded(request):
    """Name, model and held-out images."""
    return request.param, ac.load(f"world:{request.param}"), shipped.heldout_images(request.param, 40)[:40]


def test_a_classifier_loads_in_float32_with_its_classes_and_reads_images(loaded):
    name, model, held = loaded
    assert model.name == f"world:{name}" and model.kind == "vision" and model.dtype == torch.float32
    assert not model.module.training and tuple(model.config.id2label.values()) == held.classes
    logits = model.logits(held.images)
    assert logits.shape == (40, len(held.classes))
    torch.testing.assert_close(model.logits(held.images[0]), logits[:1], atol=1e-5, rtol=1e-5)
    assert ac.load(shipped.path(name)).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("name", CNNS)
def test_maps_of_a_convolutional_network_are_recorded_and_not_negative(name):
    model, held = ac.load(f"world:{name}"), shipped.heldout_images(name, 12)[:12]
    found = model.record(held.images, at=[f"module:{stage}" for stage in STAGES])
    side = held.images.shape[-1]
    for i, (stage, width) in enumerate(zip(STAGES, model.config.widths, strict=True)):
        maps = found[f"module:{stage}"]
        assert maps.shape == (12, width, side >> i, side >> i)
        assert float(maps.min()) == 0 < float(maps.max())
        g, h = model.module.split(stage)
        with torch.no_grad():
            assert torch.equal(g(held.images), maps)
            assert torch.equal(h(maps), model.logits(held.images))
    names = {site.name for site in model.sites()}
    assert {f"module:{part}" for part in (*STAGES, "pool", "head")} < names


@pytest.mark.parametrize("name", CNNS)
def test_every_convolution_is_followed_by_a_relu_and_the_head_reads_means_of_the_last_map(name):
    model, held = ac.load(f"world:{name}"), shipped.heldout_images(name, 6)[:6]
    for stage in STAGES:
        layers = [type(layer).__name__ for layer in getattr(model.module, stage)]
        assert [after for before, after in pairwise(layers) if before == "Conv2d"] == (
            ["ReLU"] * layers.count("Conv2d")
        )
    maps = model.record(held.images, at="module:stage3")["module:stage3"]
    logits = maps.mean((2, 3)) @ model.module.head.weight.T + model.module.head.bias
    torch.testing.assert_close(logits, model.logits(held.images), atol=1e-4, rtol=1e-4)


def test_an_edit_of_a_stage_is_what_the_rest_makes_of_the_edited_map():
    model, held = ac.load("world:shapes-cnn"), shipped.heldout_images("shapes-cnn", 5)
    g, h = model.module.split("stage2")
    with torch.no_grad(), model.edit({"module:stage2": ac.edits.Scale(0.5)}):
        edited = model.logits(held.images)
    with torch.no_grad():
        torch.testing.assert_close(edited, h(0.5 * g(held.images)))


@pytest.mark.parametrize("name", VITS)
def test_a_transformer_has_the_standard_sites_and_they_are_the_librarys_hidden_states(name):
    model, held = ac.load(f"world:{name}"), shipped.heldout_images(name, 6)[:6]
    names = {site.name for site in model.sites()}
    for i in range(model.n_layers):
        parts = ("resid_pre", "attn.q", "attn.pattern", "attn.out", "resid_mid", "mlp.post", "mlp.out", "resid_post")
        assert {f"blocks.{i}.{part}" for part in parts} < names
    assert model.family.name == "ViT"
    found = model.record(held.images, at=["embed", "blocks.*.resid_post", "blocks.*.attn.pattern"])
    library = AutoModelForImageClassification.from_pretrained(shipped.path(name)).eval()
    with torch.no_grad():
        states = library(held.images, output_hidden_states=True).hidden_states
    places = 1 + (model.config.image_size // model.config.patch_size) ** 2
    torch.testing.assert_close(found["embed"], states[0], atol=1e-5, rtol=1e-5)
    for i in range(model.n_layers):
        assert found[f"blocks.{i}.resid_post"].shape == (6, places, model.d_model)
        torch.testing.assert_close(found[f"blocks.{i}.resid_post"], states[i + 1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[f"blocks.{i}.attn.pattern"].sum(-1), torch.ones(6, model.n_heads, places))


def test_untrained_networks_are_drawn_from_their_seed_alone():
    before = torch.get_rng_state()
    sizes = CNNSize((4, 6), 1), ViTSize(4, 8, 1, 2, 16)
    for make, size in zip((make_cnn, make_vit), sizes, strict=True):
        first, second, other = (dict(make(size, 1, 8, "ab", seed).named_parameters()) for seed in (0, 0, 1))
        assert all(torch.equal(values, second[name]) for name, values in first.items())
        # Biases, norms and positions start at the same values always.
        drawn = [name for name, values in first.items() if values.ndim > 1 and "position" not in name]
        assert len(drawn) > 2 and not any(torch.equal(first[name], other[name]) for name in drawn)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_keeps_a_network_and_damage_is_refused(tmp_path):
    module = make_cnn(CNNSize((4, 6), 1), 1, 8, ("no", "yes"), 0).eval()
    image_models.write(module, tmp_path, torch.float32)
    model = ac.load(str(tmp_path))
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.logits(images), module(images))
    assert ac.load(str(tmp_path), dtype="float64").dtype == torch.float64
    with pytest.raises(InputError, match="spread"):
        ac.load(str(tmp_path), device_map="auto")
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "head.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match="can be read"):
        ac.load(str(tmp_path))
    save_file(weights, tmp_path / "model.safetensors")
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"widths": "wide"}))
    with pytest.raises(LoadError, match="can be read"):
        ac.load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:100])
    with pytest.raises(LoadError, match="can be read"):
        ac.load(str(tmp_path))


def test_what_does_not_fit_is_refused():
    model = ac.load("world:digits-cnn")
    for shape in ((2, 3, 8, 8), (2, 1, 9, 9), (8, 8)):
        with pytest.raises(InputError, match="images are"):
            model.logits(torch.zeros(shape))
    with pytest.raises(InputError, match="NaN"):
        model.logits(torch.full((1, 1, 8, 8), float("nan")))
    with pytest.raises(UnknownNameError, match="stage2"):
        model.module.split("stage22")
    for widths, side in (((), 8), ((4, 0), 8), ((4, 4, 4), 6)):
        with pytest.raises(InputError, match=r"positive|halved"):
            make_cnn(CNNSize(widths, 1), 1, side, "ab", 0)
    for size in (ViTSize(3, 8, 1, 2, 16), ViTSize(4, 8, 1, 3, 16), ViTSize(4, 6, 1, 2, 16)):
        with pytest.raises(InputError, match="patches"):
            make_vit(size, 1, 8, "ab", 0)
    with pytest.raises(InputError, match="reads images"):
        shipped.heldout_text("shapes-vit")
    with pytest.raises(InputError, match="image classifier"):
        shipped.load(shipped.path("shapes-cnn"))
    with pytest.raises(UnknownNameError, match="shapes-cnn"):
        shipped.heldout_images("shape-cnn")
    assert isinstance(model.module, SmallCNN)
