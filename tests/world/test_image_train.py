"""Training of the image classifiers: the same recipe gives the same weights, and what it declares is what they do."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional
from typer.testing import CliRunner

import actinium as ac
from actinium.cli import world as command
from actinium.core.errors import InputError, LoadError, UnknownNameError
from actinium.world import digits, image_train, shapes, shipped
from actinium.world.image_models import CNNSize, ViTSize
from actinium.world.image_recipe import RECIPES, DigitsData, ImageRecipe, ShapesData, get_recipe

NAMES = sorted(RECIPES)
SAMPLE = 400


def few_steps(name):
    return replace(get_recipe(name), steps=3, batch_size=8)


@pytest.mark.parametrize("name", NAMES)
def test_the_declared_recipe_is_the_one_in_the_package(name):
    content = shipped.recipe(name)
    assert ImageRecipe.from_settings(content["settings"]) == get_recipe(name)
    assert content["settings"] == json.loads(json.dumps(asdict(get_recipe(name))))
    assert content["fingerprint"] == get_recipe(name).fingerprint()
    assert content["fingerprint"] != replace(get_recipe(name), seed=1).fingerprint()


@pytest.mark.parametrize("name", NAMES)
def test_declared_accuracy_is_measured_again(name):
    declared = shipped.recipe(name)["held_out_accuracy"]
    # The test part of the digits is the same 300; shapes are rendered anew with another seed.
    n = 300 if name.startswith("digits") else SAMPLE
    measured = image_train.accuracies(ac.load(f"world:{name}").module, get_recipe(name), n, seed=7)
    assert set(measured) == set(declared)
    for concept, value in declared.items():
        error = math.sqrt(max(value * (1 - value), 0.005) * (1 / SAMPLE + 1 / image_train.HELD_OUT))
        allowed = 5e-3 if name.startswith("digits") else 3.5 * error
        assert measured[concept] == pytest.approx(value, abs=allowed), concept
    assert declared["class"] >= (0.96 if name.startswith("digits") else 0.9 if name.endswith("cnn") else 0.85)


@pytest.mark.parametrize("name", NAMES)
def test_training_repeats_itself_and_another_seed_gives_other_weights(name):
    recipe, before = few_steps(name), torch.get_rng_state()
    losses: list[list[float]] = [[], []]
    first, second = (image_train.train(recipe, lambda step, loss, kept=kept: kept.append(loss)) for kept in losses)
    other = image_train.train(replace(recipe, seed=1))
    assert losses[0] == losses[1] and len(losses[0]) == 3
    pairs = zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True)
    for (part, a), b, c in pairs:
        assert torch.equal(a, b), part
        assert not torch.equal(a, c), part
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_step_is_one_of_adamw_on_the_first_batch():
    recipe = replace(few_steps("shapes-cnn"), steps=1)
    module = image_train.make_model(recipe)
    drawn = shapes.render(8, 10**6)
    optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.rate / recipe.warmup, weight_decay=0.05)
    functional.cross_entropy(module(drawn.images), drawn.labels).backward()
    optimiser.step()
    for a, b in zip(module.parameters(), image_train.train(recipe).parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


def test_batches_of_shapes_begin_with_plain_ones_and_carry_the_planted_shortcuts():
    data = ShapesData(plain_share=0.5, plain_steps=2)
    drawn = shapes.render(40, 2 * 10**6 + 1)
    images, labels = data.batch(40, 1, 1)
    assert torch.equal(images[20:], drawn.images[20:]) and torch.equal(labels[20:], drawn.labels[20:])
    assert set((labels[:20] % 4).tolist()) == {0} and torch.equal(labels[:20] // 4, drawn.labels[:20] // 4)
    assert torch.equal(data.batch(40, 1, 2)[0], shapes.render(40, 2 * 10**6 + 2).images)
    shortcut = ShapesData(rule=("shape",), planted={1: 1.0}, correlation={"colour": 1.0})
    images, labels = shortcut.batch(40, 0, 0)
    assert torch.equal((images[:, :, :3, :3] == 1).flatten(1).all(1), labels == 1)
    assert not shortcut.held_out(40, 0).concepts["marker"].any()


def test_batches_of_digits_are_moved_training_images():
    train = digits.load("train")
    for shift in (0, 1):
        images, labels = DigitsData(shift).batch(30, 0, 0)
        wide = functional.pad(train.images, [shift] * 4)
        views = [wide[:, :, y : y + 8, x : x + 8] for y in range(2 * shift + 1) for x in range(2 * shift + 1)]
        for image, label in zip(images, labels, strict=True):
            found = [(view == image).flatten(1).all(1) for view in views]
            assert any(bool((same & (train.labels == label)).any()) for same in found)
    assert len({tuple(image.flatten().tolist()) for image in DigitsData(1).batch(200, 0, 0)[0]}) > 150


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    recipe = ImageRecipe(DigitsData(), CNNSize((4,), 1), steps=100, warmup=10)
    factors = [image_train.rate_factor(recipe, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9:51] == [1.0] * 42
    assert factors[75] == pytest.approx(0.5) and factors[99] == pytest.approx(0.02)


def test_counted_answers_are_those_of_the_highest_logit():
    model, held = ac.load("world:shapes-cnn"), shipped.heldout_images("shapes-cnn", 100, seed=5)
    found = model.logits(held.images).argmax(1)
    measured = image_train.accuracies(model.module, get_recipe("shapes-cnn"), 100, seed=5)
    names = [held.classes[i].split() for i in found]
    right = {
        "class": [" ".join(n) == held.classes[i] for n, i in zip(names, held.labels, strict=True)],
        "texture": [
            n[0] == shapes.CONCEPTS["texture"][i] for n, i in zip(names, held.concepts["texture"], strict=True)
        ],
        "shape": [n[1] == shapes.CONCEPTS["shape"][i] for n, i in zip(names, held.concepts["shape"], strict=True)],
    }
    assert measured == pytest.approx({concept: sum(hits) / 100 for concept, hits in right.items()})


def test_an_untrained_network_does_not_pass():
    for name in NAMES:
        recipe = get_recipe(name)
        assert image_train.accuracies(image_train.make_model(recipe).eval(), recipe, 200)["class"] < 0.25


def test_training_restores_the_number_of_threads():
    before = torch.get_num_threads()
    image_train.train(replace(few_steps("digits-cnn"), threads=before + 1, steps=1))
    assert torch.get_num_threads() == before


def test_the_shipped_folders_are_small_and_half_precision():
    folders = [shipped.path(name) for name in NAMES]
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 2e6
    for folder in folders:
        assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors", "recipe.json"}
        with safe_open(folder / "model.safetensors", "pt") as weights:
            assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118


@pytest.mark.parametrize("name", NAMES)
def test_the_command_trains_and_evaluates(name, tmp_path):
    runner, out = CliRunner(), tmp_path / "model"
    result = runner.invoke(command.app, ["train", name, "--out", str(out), "--steps", "2", "--seed", "3"])
    assert result.exit_code == 0, result.output
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["settings"]["seed"] == 3 and recipe["settings"]["steps"] == 2
    assert ac.load(str(out)).kind == "vision"
    result = runner.invoke(command.app, ["evaluate", str(out), "--n", "20"])
    assert result.exit_code == 0 and f"{recipe['held_out_accuracy']['class']:.3f}" in result.stdout
    (out / "recipe.json").unlink()
    assert isinstance(runner.invoke(command.app, ["evaluate", str(out)]).exception, LoadError)


def test_the_command_lists_and_evaluates_the_shipped_ones():
    result = CliRunner().invoke(command.app, ["list"])
    assert all(f"world:{name} " in result.stdout for name in NAMES) and set(NAMES) < set(command.TRAINABLE)
    result = CliRunner().invoke(command.app, ["evaluate", "world:digits-cnn"])
    declared = shipped.recipe("digits-cnn")["held_out_accuracy"]["class"]
    assert result.exit_code == 0 and f"{declared:.3f}" in result.stdout


def test_the_page_states_the_declared_accuracies(root):
    page = (root / "docs" / "world.md").read_text(encoding="utf-8")
    for name in NAMES:
        declared = shipped.recipe(name)["held_out_accuracy"]
        values = [f"{declared[part]:.3f}" if part in declared else "-" for part in ("class", "shape", "texture")]
        assert re.search(rf"^\| `world:{name}` \|.*\| {' [|] '.join(values)} \|$", page, flags=re.M), name


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DigitsData(shift=8), "moved"),
        (lambda: ShapesData(plain_share=1.5), "between 0 and 1"),
        (lambda: ShapesData(correlation={"shape": 0.5}), "follows from shape"),
        (lambda: ShapesData(rule=("shape",), correlation={"texture": 0.5}, plain_share=0.5), "both"),
        (lambda: replace(RECIPES["digits-cnn"], steps=0), "positive"),
        (lambda: replace(RECIPES["digits-cnn"], rate=0.0), "positive"),
        (lambda: replace(RECIPES["digits-cnn"], seed=-1), "from 0 on"),
        (lambda: replace(RECIPES["digits-cnn"], block_rate=1e-3), "no blocks"),
        (lambda: ShapesData().held_out(4, 10**6), "held-out images"),
    ],
)
def test_senseless_settings_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_unknown_names_and_other_settings_are_refused():
    with pytest.raises(UnknownNameError, match="shapes-vit"):
        get_recipe("shape-vit")
    for settings in ({}, shipped.recipe("lm")["settings"], shipped.recipe("modular")["settings"]):
        with pytest.raises(LoadError, match="image classifier"):
            ImageRecipe.from_settings(settings)
    odd = ImageRecipe(
        ShapesData({"a": {"colour": "red"}, "b": {}}, planted={0: 0.5}),
        ViTSize(8, 8, 1, 2, 16),
        steps=5,
        block_rate=1e-3,
    )
    assert ImageRecipe.from_settings(json.loads(json.dumps(asdict(odd)))) == odd
