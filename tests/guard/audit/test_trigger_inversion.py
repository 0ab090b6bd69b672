"""Target search and inversion of triggers: their parts against closed forms, and a planted trigger that is found."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import actinium as ac
from actinium.core.errors import ActiniumWarning, InputError, SiteError
from actinium.guard.audit.backdoors.ssim import structural_similarity
from actinium.guard.audit.backdoors.suspect import Suspect, dual_encoder, image_classifier, unit
from actinium.guard.audit.backdoors.target_search import identify_target, universal_patch
from actinium.guard.audit.backdoors.trigger_inversion import (
    InversionWeights,
    anomaly_index,
    apply_trigger,
    invert_every_class,
    invert_trigger,
)
from actinium.world import backdoors, digits

PLAIN = InversionWeights(target=1.0, embedding=0.0, looks=0.0, mask=0.0)


class Bright(nn.Module):
    """Three classes of images of one pixel row: which of three pixels is the brightest; the embedding is the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Flatten()
        self.head = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(10 * torch.eye(3))

    def forward(self, x):
        return self.head(self.layer1(x))


@pytest.fixture
def bright():
    return image_classifier(Bright().eval(), bounds=(0, 1))


@pytest.fixture(scope="module")
def poisoned():
    return image_classifier(ac.load("world:digits-backdoor"), bounds=(0, 1))


@pytest.fixture(scope="module")
def validation():
    return digits.load("validation")


def direct_ssim(x, y, window, sigma, span):
    """Equation 13 of Wang et al. at every place of the window, in float64, with loops."""
    places = np.arange(window) - window // 2
    bell = np.exp(-(places**2) / (2 * sigma**2))
    weights = np.outer(bell, bell) / bell.sum() ** 2
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = []
    for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True):
        each = []
        for p, q in zip(a, b, strict=True):
            for i in range(p.shape[0] - window + 1):
                for j in range(p.shape[1] - window + 1):
                    u, v = p[i : i + window, j : j + window], q[i : i + window, j : j + window]
                    mu, mv = (weights * u).sum(), (weights * v).sum()
                    su, sv = (weights * (u - mu) ** 2).sum(), (weights * (v - mv) ** 2).sum()
                    cov = (weights * (u - mu) * (v - mv)).sum()
                    each.append((2 * mu * mv + c1) * (2 * cov + c2) / ((mu**2 + mv**2 + c1) * (su + sv + c2)))
        values.append(np.mean(each))
    return torch.tensor(np.array(values))


@pytest.mark.parametrize(("window", "sigma", "span"), [(11, 1.5, 1.0), (7, 1.0, 2.0)])
def test_structural_similarity_is_the_papers_equation(window, sigma, span):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 15, 13)
    y = (x + 0.3 * torch.randn_like(x)).clamp(0, 1)
    found = structural_similarity(x.double(), y.double(), window, sigma, span)
    torch.testing.assert_close(found, direct_ssim(x, y, window, sigma, span))


def test_an_image_is_like_itself_and_small_images_take_a_smaller_window():
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(structural_similarity(x, x), torch.ones(3))
    y = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(structural_similarity(x, y), structural_similarity(x, y, window=7))
    with pytest.raises(InputError, match="window is odd"):
        structural_similarity(x, y, window=4)
    with pytest.raises(InputError, match="one shape"):
        structural_similarity(x, y[:2])


def test_a_mask_of_zeros_gives_the_image_and_one_of_ones_the_trigger():
    x, trigger = torch.rand(4, 3, 5, 5), torch.rand(3, 5, 5)
    assert torch.equal(apply_trigger(x, torch.zeros(3, 5, 5), trigger), x)
    assert torch.equal(apply_trigger(x, torch.ones(1, 5, 5), trigger), trigger.expand(4, -1, -1, -1))


def test_bounds_of_clip_are_those_of_its_normalisation():
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    low, high = ([(v - m) / s for m, s in zip(mean, std, strict=True)] for v in (0, 1))
    suspect = image_classifier(Bright(), bounds=(low, high), mean=mean, std=std)
    torch.testing.assert_close(suspect.displayed(suspect.low.expand(2, 3, 1, 1)), torch.zeros(2, 3, 1, 1))
    torch.testing.assert_close(suspect.displayed(suspect.high.expand(2, 3, 1, 1)), torch.ones(2, 3, 1, 1))
    assert float(suspect.low.min()) == pytest.approx(-1.7922, abs=1e-3)
    assert float(suspect.high.max()) == pytest.approx(2.1461, abs=1e-3)


def test_scores_of_a_dual_encoder_are_cosines_over_tau_and_those_of_a_classifier_its_own():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    bank, x = unit(torch.randn(5, 3)), torch.rand(6, 1, 2, 2)
    suspect = dual_encoder(module, bank, bounds=(0, 1), encode=lambda m, images: m(images), sites=["module:1"], tau=0.5)
    embeddings, scores = suspect.read(x)
    expected = nn.functional.cosine_similarity(module(x)[:, None], bank[None], dim=-1) / 0.5
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6))
    classifier = image_classifier(module, bounds=(0, 1), sites=["module:1"])
    embeddings, scores = classifier.read(x)
    assert torch.equal(scores, module(x))
    torch.testing.assert_close(embeddings, unit(x.flatten(1)))


def test_a_universal_patch_stays_in_its_corner_and_drives_images_from_their_classes(poisoned, validation):
    made, where = universal_patch(poisoned, validation.images, area=0.15, margin=1, steps=60, seed=1)
    assert int(where.sum()) == 9 and bool(where[4:7, 4:7].all())
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    clean = poisoned.predict(validation.images)
    random = torch.where(where, torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)), validation.images)
    moved = poisoned.predict(torch.where(where, made, validation.images)) != clean
    assert float(moved.double().mean()) > 1.5 * float((poisoned.predict(random) != clean).double().mean())
    again, _ = universal_patch(poisoned, validation.images, area=0.15, margin=1, steps=60, seed=1)
    assert torch.equal(made, again)


def test_increases_are_signed_differences_of_counted_shares(bright):
    x = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1], [0.1, 0.9, 0.0], [0.2, 0.7, 0.1]])[:, None, None]
    where = torch.tensor([[False, False, True]])
    search = identify_target(bright, x, (torch.tensor([[[0.0, 0.0, 0.85]]]), where))
    assert search.clean.tolist() == [0.5, 0.5, 0.0] and search.patched.tolist() == [0.25, 0.25, 0.5]
    assert search.increase.tolist() == [-0.25, -0.25, 0.5] and search.ranking == [2, 0, 1] and search.target == 2
    # The third class had no clean image, and the others lost some: no increase is relative to anything.
    assert bool(torch.isnan(search.relative).all())


def test_a_planted_trigger_is_found_where_it_is(poisoned, validation):
    backdoor = backdoors.planted("digits-backdoor")
    found = invert_trigger(
        poisoned,
        validation.images,
        backdoor.target,
        weights=InversionWeights(1.0, 0.0, 0.0, 0.05),
        mask_channels=1,
        epochs=60,
        rate=0.05,
    )
    assert found.success > 0.95 and found.mask_norm < 12
    where = backdoor.mask(8, 8)
    # The planted pixels show more of the trigger than the others do.
    assert float(found.mask[0][where].mean()) > 3 * float(found.mask[0][~where].mean())
    assert float(found.losses[-1]) < float(found.losses[0])
    others = validation.images[poisoned.predict(validation.images) != backdoor.target]
    assert found.success == float((poisoned.predict(found.apply(others)) == backdoor.target).double().mean())


def test_the_loss_is_the_weighted_sum_of_its_parts(poisoned, validation):
    images, real = validation.images[:12], validation.where(label=3).images[:5]
    weights = InversionWeights(2.0, 0.25, 0.5, 0.01)
    found = invert_trigger(poisoned, images, 3, target_images=real, weights=weights, epochs=1, batch_size=64, seed=4)
    x = images[poisoned.predict(images) != 3]
    random = torch.Generator().manual_seed(4)
    trigger = torch.rand(1, 8, 8, generator=random)
    x = x[torch.randperm(len(x), generator=random)]
    with torch.no_grad():
        changed = trigger.expand(len(x), -1, -1, -1)
        u, scores = poisoned.read(changed)
        held = poisoned.read(real)[0].double()[torch.arange(len(x)) % 5]
        value = 2 * nn.functional.cross_entropy(scores.double(), torch.full((len(x),), 3)) + 0.01 * 64
        value += 0.25 * ((u.double() - held) ** 2).sum().sqrt()
        value += 0.5 * (1 - direct_ssim(changed, x, 7, 1.5, 1.0).mean())
    assert float(found.losses[0]) == pytest.approx(float(value), rel=1e-4)


def test_mask_and_trigger_stay_in_their_ranges_and_one_channel_is_one(bright):
    x = torch.rand(20, 1, 1, 3)
    suspect = Suspect(bright.module, bright._read, bounds=(-0.5, 0.25), sites=["module:layer1"])
    found = invert_trigger(suspect, x * 0.7 - 0.5, 2, weights=PLAIN, epochs=5, rate=0.3)
    assert float(found.mask.min()) >= 0 and float(found.mask.max()) <= 1
    assert float(found.trigger.min()) >= -0.5 and float(found.trigger.max()) <= 0.25
    assert found.success == 1 and float(found.trigger[0, 0, 2]) == 0.25


def test_each_class_is_inverted_and_the_anomaly_index_is_the_distance_in_scaled_deviations(bright):
    x = torch.rand(60, 1, 1, 3)
    found = invert_every_class(bright, x, epochs=100, weight=0.05)
    assert [t.target for t in found] == [0, 1, 2] and all(t.mask.shape == (1, 1, 3) for t in found)
    assert min(t.success for t in found) > 0.9 and max(t.mask_norm for t in found) < 1.5
    sizes = [9.0, 10.0, 11.0, 2.0, 12.0, 10.5]
    index = anomaly_index(sizes)
    middle = float(np.median(sizes))
    spread = 1.4826 * float(np.median(np.abs(np.array(sizes) - middle)))
    assert index.tolist() == pytest.approx([(middle - s) / spread for s in sizes])
    assert int(index.argmax()) == 3 and float(index[3]) > 2
    for wrong in ([1.0, 2.0], [1.0, math.nan, 2.0], [1.0, 1.0, 1.0, 5.0]):
        with pytest.raises(InputError):
            anomaly_index(wrong)


def test_without_real_images_of_the_target_their_part_is_left_out_with_a_warning(bright):
    x = torch.rand(20, 1, 1, 3)
    weights = InversionWeights(1.0, 0.5, 0.0, 0.1)
    with pytest.warns(ActiniumWarning, match="fewer than two images of class 1"):
        found = invert_trigger(bright, x, 1, target_images=x[:1], weights=weights, epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = invert_trigger(bright, x, 1, weights=InversionWeights(1.0, 0.0, 0.0, 0.1), epochs=3)
    assert torch.equal(found.mask, same.mask)


def test_what_cannot_be_examined_is_refused(bright):
    x, bank = torch.rand(6, 1, 1, 3), torch.eye(3)
    encode = {"encode": lambda module, images: images.flatten(1), "sites": ["module:layer1"]}
    with pytest.raises(InputError, match="length 1"):
        dual_encoder(bright.module, 2 * bank, bounds=(0, 1), **encode)
    with pytest.raises(InputError, match="two classes or more"):
        dual_encoder(bright.module, bank[:1], bounds=(0, 1), **encode)
    with pytest.raises(InputError, match="image encoder"):
        dual_encoder(bright.module, bank, bounds=(0, 1))
    with pytest.raises(TypeError, match="bounds"):
        image_classifier(bright.module)
    with pytest.raises(InputError, match="two bounds"):
        image_classifier(bright.module, bounds=(1, 0))
    with pytest.raises(SiteError, match="layer1"):
        image_classifier(bright.module, bounds=(0, 1), sites=["module:layer2"])
    with pytest.raises(SiteError, match="head"):
        image_classifier(bright.module, bounds=(0, 1), head="heads")
    with pytest.raises(InputError, match="pass sites"):
        image_classifier(nn.Sequential(nn.Flatten(), nn.Linear(3, 3)), bounds=(0, 1))
    with pytest.raises(InputError, match="outside of the bounds"):
        invert_trigger(bright, 2 * x, 0)
    with pytest.raises(InputError, match="NaN"):
        invert_trigger(bright, x * math.nan, 0)
    with pytest.raises(InputError, match="images are a tensor"):
        identify_target(bright, x[:1])
    with pytest.raises(InputError, match="0 to 2"):
        invert_trigger(bright, x, 3)
    with pytest.raises(InputError, match="all images for class 0"):
        invert_trigger(bright, torch.tensor([[[[1.0, 0.0, 0.0]]]]), 0)
    with pytest.raises(InputError, match="1 or 1 channels"):
        invert_trigger(bright, x, 0, mask_channels=3)
    with pytest.raises(InputError, match="do not fit the images"):
        identify_target(bright, x, (torch.zeros(1, 2, 3), torch.zeros(2, 3, dtype=torch.bool)))
    with pytest.raises(InputError, match="weights are finite"):
        InversionWeights(target=0.0)
