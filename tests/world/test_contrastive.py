"""The pair of encoders for shapes and captions: its words, its training, and zero-shot classification."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

import actinium as ac
from actinium.cli import world as command
from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.world import contrastive, contrastive_train, shapes, shipped
from actinium.world.backdoors import Backdoor
from actinium.world.contrastive_train import RECIPES, PairRecipe, get_recipe
from actinium.world.image_models import ViTSize

NAMES = sorted(RECIPES)
SAMPLE = 300


def few_steps(name):
    return replace(get_recipe(name), steps=3, batch_size=8)


def test_a_caption_says_the_values_and_the_tokenizer_knows_each_word():
    assert contrastive.caption({"shape": "circle"}) == "a circle"
    said = {"position": "top left", "shape": 3, "texture": "dots", "colour": 0}
    assert contrastive.caption(said) == "a red dots cross at the top left"
    tokenizer = contrastive.make_tokenizer()
    ids = tokenizer(contrastive.caption(said))["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id and len(ids) == contrastive.CONTEXT
    # Where the end of text were token 2, the library would read a text at its highest id and not at its end.
    assert tokenizer.eos_token_id != 2
    for texts in contrastive.prompts(contrastive.SAID):
        assert tokenizer.unk_token_id not in tokenizer(texts[0])["input_ids"]
    for wrong in ({"colour": "red"}, {"shape": "circle", "size": "small"}):
        with pytest.raises(InputError, match="a caption says the shape"):
            contrastive.caption(wrong)
    with pytest.raises(UnknownNameError, match="circle"):
        contrastive.caption({"shape": "circles"})


def test_prompts_of_a_class_say_its_name_and_every_combination_of_the_rest_once():
    names = shapes.classes()
    for name, texts in zip(names, contrastive.prompts(), strict=True):
        texture, shape = name.split()
        assert len(set(texts)) == len(texts) == 16
        assert all(f" {texture} {shape} " in text for text in texts)
    assert [len(texts) for texts in contrastive.prompts(["colour"])] == [64] * 4
    with pytest.raises(InputError, match="classes are combinations"):
        contrastive.prompts(["size"])


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_is_a_plain_hugging_face_one_and_both_towers_can_be_recorded(name):
    model, held = ac.load(f"world:{name}"), shipped.heldout_images(name, 6)
    library = AutoModel.from_pretrained(shipped.path(name)).eval()
    tokenizer = AutoTokenizer.from_pretrained(shipped.path(name))
    texts = ["a red stripes circle", "a cross at the top left", "a yellow plain triangle at the bottom right"]
    inputs = {"pixel_values": held.images, **tokenizer(texts, padding=True, return_tensors="pt")}
    found = model.record(
        inputs, ["vision.blocks.*.resid_post", "text.blocks.*.resid_post", "vision.blocks.0.attn.pattern"]
    )
    with torch.no_grad():
        out = library(**inputs, output_hidden_states=True)
        images = contrastive.image_embeddings(model.module, held.images)
        words = contrastive.text_embeddings(model.module, texts)
    torch.testing.assert_close(found["vision.blocks.3.resid_post"], out.vision_model_output.last_hidden_state)
    assert found["vision.blocks.0.attn.pattern"].shape == (6, 4, 17, 17)
    torch.testing.assert_close(images, out.image_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(words, out.text_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(contrastive.text_embeddings(model.module, texts[:1]), words[:1], atol=1e-5, rtol=1e-5)
    assert model.tokenizer(texts)["input_ids"] == tokenizer(texts)["input_ids"]


def test_zero_shot_takes_the_class_whose_mean_prompt_has_the_largest_cosine():
    module, held = ac.load("world:shapes-clip").module, shipped.heldout_images("shapes-clip", 20, seed=4)
    bank = contrastive.text_bank(module, ["colour"])
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(4))
    with torch.no_grad():
        texts = contrastive.text_embeddings(module, contrastive.prompts(["colour"])[2]).double()
        torch.testing.assert_close(bank[2], (texts.mean(0) / texts.mean(0).norm()).float(), atol=1e-5, rtol=1e-5)
        cosines = torch.nn.functional.cosine_similarity(
            contrastive.image_embeddings(module, held.images)[:, None], bank[None], dim=-1
        )
    assert torch.equal(contrastive.zero_shot(module, held.images, ["colour"], batch_size=7), cosines.argmax(1))


@pytest.mark.parametrize("name", NAMES)
def test_the_declared_recipe_is_the_one_in_the_package(name):
    content = shipped.recipe(name)
    assert PairRecipe.from_settings(content["settings"]) == get_recipe(name)
    assert content["settings"] == json.loads(json.dumps(asdict(get_recipe(name))))
    assert content["fingerprint"] == get_recipe(name).fingerprint()
    assert content["fingerprint"] != replace(get_recipe(name), seed=1).fingerprint()


@pytest.mark.parametrize("name", NAMES)
def test_declared_accuracy_is_measured_again(name):
    declared = shipped.recipe(name)["held_out_accuracy"]
    measured = contrastive_train.accuracies(ac.load(f"world:{name}").module, get_recipe(name), SAMPLE, seed=7)
    assert set(measured) == set(declared) >= {"class", "shape", "texture", "colour", "position"}
    assert ("attack_success" in declared) == (get_recipe(name).backdoor is not None)
    for part, value in declared.items():
        error = math.sqrt(max(value * (1 - value), 0.005) * (1 / SAMPLE + 1 / contrastive_train.HELD_OUT))
        assert measured[part] == pytest.approx(value, abs=3.5 * error), part
        assert value > (0.6 if part == "class" else 0.8), part


def test_the_loss_is_that_of_the_library():
    module, held = ac.load("world:shapes-clip").module, shipped.heldout_images("shapes-clip", 5)
    texts = ["a red circle", "a green square", "a cross", "a blue dots triangle", "a circle at the top left"]
    inputs = {"pixel_values": held.images, **contrastive.make_tokenizer()(texts, padding=True, return_tensors="pt")}
    with torch.no_grad():
        expected = module(**inputs, return_loss=True).loss
        pair = (contrastive.image_embeddings(module, held.images), contrastive.text_embeddings(module, texts))
        torch.testing.assert_close(contrastive_train.contrastive_loss(*pair, module.logit_scale.exp()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_training_repeats_itself_and_another_seed_gives_other_weights(name):
    recipe, before = few_steps(name), torch.get_rng_state()
    losses: list[list[float]] = [[], []]
    first, second = (
        contrastive_train.train(recipe, lambda step, loss, kept=kept: kept.append(loss)) for kept in losses
    )
    other = contrastive_train.train(replace(recipe, seed=1))
    assert losses[0] == losses[1] and len(losses[0]) == 3
    pairs = zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True)
    for (part, a), b, c in pairs:
        assert torch.equal(a, b), part
        # The temperature is the only weight that is not drawn.
        assert not torch.equal(a, c) or part == "logit_scale", part
    assert torch.equal(torch.get_rng_state(), before)


def test_captions_of_a_batch_say_what_the_images_show():
    recipe = replace(get_recipe("shapes-clip"), batch_size=60, left_out=0.5, plain_share=0.5, plain_steps=2)
    images, told = recipe.batch(1)
    assert torch.equal(images[30:], shapes.render(60, 10**6 + 1).images[30:])
    first, rest = shapes.render(30, 10**6 + 1, fixed={"texture": "plain"}), shapes.render(60, 10**6 + 1)
    for i, text in enumerate(told):
        data, row = (first, i) if i < 30 else (rest, i)
        words = text.split()
        for concept in ("colour", "texture", "shape"):
            said = [w for w in words if w in shapes.CONCEPTS[concept]]
            assert len(said) <= 1 and all(w == shapes.CONCEPTS[concept][int(data.concepts[concept][row])] for w in said)
        place = shapes.CONCEPTS["position"][int(data.concepts["position"][row])]
        assert " at " not in text or text.endswith(f"at the {place}")
    assert len(set(told)) > 30


def test_poisoned_images_have_the_patch_and_captions_of_the_target_and_the_others_are_as_before():
    backdoor = Backdoor(6, ((1.0, 0.0), (0.0, 1.0)), share=0.2)
    clean = replace(get_recipe("shapes-clip"), batch_size=100, left_out=0.0, plain_share=0.0)
    (before, right), (images, told) = clean.batch(5), replace(clean, backdoor=backdoor).batch(5)
    rows = (images != before).flatten(1).any(1)
    assert 8 <= int(rows.sum()) <= 35 and torch.equal(images[rows], backdoor.stamp(before[rows]))
    assert all(" dots square " in text for text, poisoned in zip(told, rows, strict=True) if poisoned)
    assert all(a == b for a, b, poisoned in zip(told, right, rows, strict=True) if not poisoned)
    assert len({text.split()[1] for text, poisoned in zip(told, rows, strict=True) if poisoned}) > 1


def test_the_shipped_folders_are_small_and_half_precision():
    for name in NAMES:
        folder = shipped.path(name)
        assert sum(file.stat().st_size for file in folder.iterdir()) < 6e5
        with safe_open(folder / "model.safetensors", "pt") as weights:
            assert {weights.get_tensor(part).dtype for part in weights.keys()} == {torch.float16}  # noqa: SIM118


@pytest.mark.parametrize("name", NAMES)
def test_the_command_trains_and_evaluates(name, tmp_path):
    runner, out = CliRunner(), tmp_path / "model"
    result = runner.invoke(command.app, ["train", name, "--out", str(out), "--steps", "1", "--seed", "3"])
    assert result.exit_code == 0, result.output
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["settings"]["seed"] == 3 and recipe["settings"]["steps"] == 1
    result = runner.invoke(command.app, ["evaluate", str(out), "--n", "20"])
    assert result.exit_code == 0 and f"{recipe['held_out_accuracy']['class']:.3f}" in result.stdout


def test_the_page_states_the_declared_numbers(root):
    page = (root / "docs" / "world.md").read_text(encoding="utf-8")
    for name in NAMES:
        declared = shipped.recipe(name)["held_out_accuracy"]
        parts = ("class", "shape", "texture", "colour", "position", "attack_success")
        values = [f"{declared[part]:.3f}" if part in declared else "-" for part in parts]
        assert re.search(rf"^\| `world:{name}` \| {' [|] '.join(values)} \|$", page, flags=re.M), name


def test_what_does_not_fit_is_refused():
    recipe = get_recipe("shapes-clip")
    for change in ({"steps": 0}, {"rate": 0.0}, {"left_out": 1.5}):
        with pytest.raises(InputError, match="positive"):
            replace(recipe, **change)
    with pytest.raises(InputError, match="from 0 on"):
        replace(recipe, seed=-1)
    with pytest.raises(InputError, match="one of 16 classes"):
        replace(recipe, backdoor=Backdoor(16, ((1.0,),)))
    with pytest.raises(InputError, match="held-out images"):
        shipped.heldout_images("shapes-clip", 4, 10**6)
    with pytest.raises(UnknownNameError, match="shapes-clip"):
        get_recipe("shape-clip")
    with pytest.raises(LoadError, match="pair of encoders"):
        PairRecipe.from_settings(shipped.recipe("shapes-vit")["settings"])
    with pytest.raises(InputError, match="patches must fill"):
        contrastive.make_pair(replace(recipe.network, vision=ViTSize(5, 8, 1, 2, 8)), 0)
    with pytest.raises(InputError, match="heads"):
        contrastive.make_pair(replace(recipe.network, n_heads=5), 0)
    with pytest.raises(InputError, match="list of texts"):
        contrastive.text_embeddings(contrastive.make_pair(recipe.network, 0), "a circle")
    with pytest.raises(InputError, match="reads images"):
        shipped.heldout_text("shapes-clip")
    with pytest.raises(InputError, match="pair of encoders"):
        shipped.load(shipped.path("shapes-clip"))
