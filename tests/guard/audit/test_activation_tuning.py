"""Which layers and neurons a trigger moves, and the training that lets it move them no more."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import InputError, SiteError
from actinium.guard.audit.backdoors.activation_tuning import (
    activation_tune,
    critical_neurons,
    layer_impacts,
    split_in_two,
)
from actinium.guard.audit.backdoors.suspect import image_classifier
from actinium.guard.audit.backdoors.trigger_inversion import InvertedTrigger
from actinium.world import backdoors, digits


@pytest.fixture(scope="module")
def poisoned():
    return image_classifier(ac.load("world:digits-backdoor"), bounds=(0, 1))


@pytest.fixture(scope="module")
def validation():
    return digits.load("validation")


@pytest.fixture(scope="module")
def known():
    """The planted trigger, as if it had been found exactly."""
    planted = backdoors.planted("digits-backdoor")
    mask = planted.mask(8, 8)[None].float()
    shown = planted.stamp(torch.zeros(1, 1, 8, 8))[0]
    return InvertedTrigger(planted.target, mask, shown, 1.0, torch.zeros(1, dtype=torch.float64))


def test_the_split_is_the_best_of_all_splits_into_two():
    torch.manual_seed(0)
    for _ in range(5):
        values = torch.randn(9).abs()

        def within(upper, values=values):
            held = torch.zeros(9, dtype=torch.bool)
            held[list(upper)] = True
            return sum(float(((v - v.mean()) ** 2).sum()) for v in (values[held], values[~held]))

        best = min((c for k in range(1, 9) for c in itertools.combinations(range(9), k)), key=within)
        found = critical_neurons(values)
        upper = set(found.nonzero()[:, 0].tolist())
        assert upper in (set(best), set(range(9)) - set(best))
        means = [float(values[found].mean()), float(values[~found].mean())]
        assert split_in_two(values) == pytest.approx(sum(means) / 2) and means[0] > means[1]
    for wrong in (torch.ones(4), torch.tensor([1.0, float("nan")]), torch.empty(0)):
        with pytest.raises(InputError, match="split in two"):
            split_in_two(wrong)


def test_equal_values_are_never_parted():
    assert critical_neurons(torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])).tolist() == [False, True, True, True, True]


def test_impacts_are_relative_changes_of_mean_activations(poisoned, validation, known):
    images = validation.images[:50]
    changed = known.apply(images)
    found = layer_impacts(poisoned, images, changed)
    rec = [poisoned.model.record(x, list(found)) for x in (images, changed)]
    for site, value in found.items():
        a, b = (r[site].double().mean(0) for r in rec)
        assert value == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-5)
    assert set(layer_impacts(poisoned, images, images).values()) == {0.0}
    assert list(layer_impacts(poisoned, images, changed, ["module:stage3"])) == ["module:stage3"]


def test_impact_does_not_depend_on_the_scale_of_the_activations():
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.layer1 = nn.Flatten()
            self.layer2 = nn.Linear(4, 3, bias=False)
            self.head = nn.Linear(3, 2)
            with torch.no_grad():
                self.layer2.weight.copy_(factor * torch.arange(12.0).view(3, 4))

        def forward(self, x):
            return self.head(self.layer2(self.layer1(x)))

    x, y = torch.rand(5, 1, 2, 2), torch.rand(5, 1, 2, 2)
    small, large = (layer_impacts(image_classifier(Scaled(f), bounds=(0, 1)), x, y) for f in (1.0, 100.0))
    assert small == pytest.approx(large, rel=1e-5)


def test_tuning_takes_the_trigger_s_effect_away_and_leaves_the_examined_network_as_it_was(poisoned, validation, known):
    before = {name: p.clone() for name, p in poisoned.module.named_parameters()}
    tuned = activation_tune(poisoned, validation.images[:100], known, epochs=150, rate=1e-3)
    assert all(torch.equal(p, before[name]) for name, p in poisoned.module.named_parameters())
    test = digits.load("test")
    planted = backdoors.planted("digits-backdoor")
    success = [planted.success(s.predict(planted.stamp(test.images)), test.labels) for s in (poisoned, tuned.suspect)]
    accuracy = [float((s.predict(test.images) == test.labels).double().mean()) for s in (poisoned, tuned.suspect)]
    assert success[0] > 0.9 and success[1] < 0.2 and accuracy[1] > accuracy[0] - 0.05
    assert tuned.losses.shape == (150, 2) and tuned.losses[0, 1] == 0
    totals = tuned.losses @ torch.tensor([1.0, 0.5], dtype=torch.float64)
    assert tuned.epoch == int(totals.argmin())
    assert set(tuned.neurons) == set(poisoned.sites) and not tuned.module.training
    assert all(0 < int(mask.sum()) < mask.numel() for mask in tuned.neurons.values())


def test_without_alignment_the_first_gradient_is_zero_and_nothing_is_kept_but_the_start(poisoned, validation, known):
    tuned = activation_tune(poisoned, validation.images[:30], known, align=0.0, epochs=3, rate=1e-4, weight_decay=0.0)
    assert tuned.losses[:, 1].tolist() == [0.0] * 3 and tuned.epoch == 0
    for a, b in zip(poisoned.module.parameters(), tuned.module.parameters(), strict=True):
        assert torch.equal(a, b) and bool(torch.isfinite(b).all())


def test_the_first_loss_is_the_papers(poisoned, validation, known):
    images = validation.images[:40]
    tuned = activation_tune(poisoned, images, known, n_sites=2, epochs=1)
    impacts = layer_impacts(poisoned, images, known.apply(images))
    assert set(tuned.neurons) == set(sorted(impacts, key=lambda site: -impacts[site])[:2])
    value = 0.0
    for site, mask in tuned.neurons.items():
        a, b = (poisoned.model.record(x, site)[site].double().mean(0) for x in (images, known.apply(images)))
        assert torch.equal(mask, critical_neurons((a - b).float()))
        value += float((mask * (a - b)).norm() / (mask * a).norm())
    assert float(tuned.losses[0, 0]) == pytest.approx(value, rel=1e-4)


def test_batches_and_training_mode_work_and_the_same_seed_gives_the_same_weights(poisoned, validation, known):
    runs = [activation_tune(poisoned, validation.images[:40], known, batch_size=16, epochs=2, rate=1e-3) for _ in "ab"]
    assert torch.equal(runs[0].losses, runs[1].losses)
    for a, b in zip(*(run.module.parameters() for run in runs), strict=True):
        assert torch.equal(a, b)


def test_batch_norms_keep_their_statistics_unless_asked():
    torch.manual_seed(0)
    module = nn.Sequential()
    module.add_module("layer1", nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)))
    module.add_module("flat", nn.Flatten())
    module.add_module("head", nn.Linear(12, 2))
    suspect = image_classifier(module.eval(), bounds=(0, 1))
    trigger = InvertedTrigger(0, torch.ones(1, 4, 4), torch.rand(1, 4, 4), 1.0, torch.zeros(1))
    for train_norms in (False, True):
        tuned = activation_tune(suspect, torch.rand(8, 1, 4, 4), trigger, epochs=2, train_norms=train_norms)
        same = torch.equal(tuned.module.layer1[1].running_mean, module.layer1[1].running_mean)
        # The kept weights may be those of the start, whose statistics are not yet others.
        assert same or train_norms
    assert not module.training


def test_what_cannot_be_tuned_is_refused(poisoned, validation, known):
    images = validation.images[:10]
    nothing = InvertedTrigger(7, torch.zeros(1, 8, 8), known.trigger, 0.0, torch.zeros(1))
    with pytest.raises(InputError, match="changes no activation"):
        activation_tune(poisoned, images, nothing)
    with pytest.raises(SiteError, match="stage3"):
        activation_tune(poisoned, images, known, sites=["module:stage33"])
    with pytest.raises(InputError, match="lowest_rate"):
        activation_tune(poisoned, images, known, rate=1e-8)
    with pytest.raises(InputError, match="one shape"):
        layer_impacts(poisoned, images, images[:5])
