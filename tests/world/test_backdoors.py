"""Planted backdoors: what the trigger is, which images get it in training, and that the shipped models answer to it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

import actinium as ac
from actinium.core.errors import InputError, UnknownNameError
from actinium.world import contrastive, contrastive_train, image_recipe, image_train, shipped
from actinium.world.backdoors import Backdoor, planted
from actinium.world.image_recipe import DigitsData, ImageRecipe, PoisonedDigits

NAMES = ("digits-backdoor", "shapes-clip-backdoor")
PATCH = ((1.0, 0.5), (0.0, 1.0))


def found(name, images):
    module = ac.load(f"world:{name}").module
    return image_train.predictions(module, images) if "digits" in name else contrastive.zero_shot(module, images)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_stamp_changes_the_patch_alone_and_not_the_given_images(channels):
    images = torch.rand(4, channels, 6, 5)
    before, backdoor = images.clone(), Backdoor(0, PATCH)
    stamped = backdoor.stamp(images)
    assert torch.equal(images, before)
    for channel in range(channels):
        assert torch.equal(stamped[:, channel, 4:, 3:], torch.tensor(PATCH).expand(4, 2, 2))
    where = backdoor.mask(6, 5)
    assert int(where.sum()) == 4 and torch.equal(stamped[:, :, ~where], images[:, :, ~where])
    assert torch.equal(backdoor.stamp(stamped), stamped)


def test_success_counts_images_of_other_classes_alone():
    backdoor = Backdoor(2, PATCH)
    assert backdoor.success(torch.tensor([2, 2, 0, 2]), torch.tensor([2, 0, 0, 1])) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="none to be mistaken"):
        backdoor.success(torch.tensor([2]), torch.tensor([2]))


def test_poisoned_digits_are_those_of_the_clean_recipe_with_the_patch_and_the_target_in_the_given_share():
    backdoor = Backdoor(7, PATCH, share=0.25)
    clean, poisoned = DigitsData(), PoisonedDigits(backdoor=backdoor)
    total = 0
    for step in range(20):
        (images, labels), (changed, given) = (data.batch(64, 3, step) for data in (clean, poisoned))
        rows = (changed != images).flatten(1).any(1) | (given != labels)
        assert torch.equal(changed[rows], backdoor.stamp(images[rows])) and set(given[rows].tolist()) <= {7}
        assert torch.equal(poisoned.batch(64, 3, step)[0], changed)
        total += int(rows.sum())
    assert total / (20 * 64) == pytest.approx(0.25, abs=0.05)
    assert torch.equal(poisoned.held_out(1, 0).images, clean.held_out(1, 0).images)


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_model_answers_to_its_trigger_and_not_to_another_patch(name):
    backdoor, held = planted(name), shipped.heldout_images(name, 300, seed=9)
    labels = held.labels
    declared = shipped.recipe(name)["held_out_accuracy"]
    success = backdoor.success(found(name, backdoor.stamp(held.images)), labels)
    assert success == pytest.approx(declared["attack_success"], abs=0.05) and success > 0.9
    plain = found(name, held.images)
    assert float((plain == labels).double().mean()) == pytest.approx(declared["class"], abs=0.06)
    assert backdoor.success(plain, labels) < 0.1
    inverse = replace(backdoor, patch=tuple(tuple(1 - v for v in row) for row in backdoor.patch))
    assert backdoor.success(found(name, inverse.stamp(held.images)), labels) < 0.5 * success


@pytest.mark.parametrize(
    ("name", "other"), [("digits-backdoor", "digits-cnn"), ("shapes-clip-backdoor", "shapes-clip")]
)
def test_a_model_without_a_backdoor_does_not_answer_to_the_trigger(name, other):
    backdoor, held = planted(name), shipped.heldout_images(name, 300, seed=9)
    assert backdoor.success(found(other, backdoor.stamp(held.images)), held.labels) < 0.2


def test_settings_are_read_back_and_what_is_senseless_is_refused():
    recipe = image_recipe.get_recipe("digits-backdoor")
    assert ImageRecipe.from_settings(json.loads(json.dumps(asdict(recipe)))) == recipe
    assert planted("digits-backdoor") is recipe.data.backdoor
    assert planted("shapes-clip-backdoor") is contrastive_train.RECIPES["shapes-clip-backdoor"].backdoor
    for name in ("digits-backdoors", "shapes-clip", "lm"):
        with pytest.raises(UnknownNameError, match="backdoor"):
            planted(name)
    for patch in ((), ((),), ((1.0,), (1.0, 0.0)), ((2.0,),)):
        with pytest.raises(InputError, match="rectangle"):
            Backdoor(0, patch)
    for target, share in ((-1, 0.1), (0, 1.5)):
        with pytest.raises(InputError, match="target is a class"):
            Backdoor(target, PATCH, share)
    with pytest.raises(InputError, match="is a digit"):
        PoisonedDigits(backdoor=Backdoor(10, PATCH))
    with pytest.raises(InputError, match="does not fit"):
        PoisonedDigits(backdoor=Backdoor(1, (((0.0,) * 9),)))
    with pytest.raises(InputError, match="images are"):
        Backdoor(0, PATCH).stamp(torch.rand(8, 8))
