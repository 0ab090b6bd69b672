"""The digits: fixed parts of scikit-learn's set, and concepts that follow from the pixels by the rules as stated."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.datasets import load_digits

from actinium.core.errors import InputError, MissingExtraError, UnknownNameError
from actinium.world import digits


@pytest.fixture(scope="module")
def train():
    return digits.load("train")


def test_the_parts_are_scikit_learns_digits_each_once():
    parts = [digits.load(split) for split in digits.SPLITS]
    assert [len(part) for part in parts] == [1197, 300, 300]
    images, labels = load_digits(return_X_y=True)
    rows = np.concatenate([np.c_[part.images.flatten(1).numpy() * 16, part.labels.numpy()] for part in parts])
    known = np.c_[images, labels]
    assert sorted(map(tuple, rows)) == sorted(map(tuple, known))
    assert all(part.images.dtype == torch.float32 and part.images.shape[1:] == (1, 8, 8) for part in parts)


def test_a_part_is_the_same_each_time_whatever_was_done_to_it(train):
    again = digits.load("train")
    again.images.zero_()
    assert torch.equal(digits.load("train").images, train.images)


def test_a_hole_is_as_deep_as_the_levels_at_which_it_is_closed(train):
    images = train.images[:150]
    found = digits.loop_depth(images)
    for image, depth in zip((images[:, 0] * 16).numpy(), found, strict=True):
        wide = np.pad(image, 1)
        deepest = 0
        for level in range(1, 17):
            parts, count = ndimage.label(wide < level)
            for part in set(range(1, count + 1)) - {parts[0, 0]}:
                deepest = max(deepest, level - wide[parts == part].min())
        assert float(depth) * 16 == deepest


def test_loops_are_where_digits_have_them(train):
    shares = [float(train.where(label=digit).concepts["loop"].double().mean()) for digit in range(10)]
    assert min(shares[0], shares[6], shares[8]) > 0.9 and max(shares[1], shares[5]) < 0.1


def test_thickness_is_twice_the_ink_over_its_edge(train):
    image = train.images[4, 0].double().numpy()
    wide = np.pad(image, 1)
    edge = sum(np.hypot(wide[y, x + 1] - wide[y, x], wide[y + 1, x] - wide[y, x]) for y in range(9) for x in range(9))
    assert float(digits.thickness(train.images[4:5])) == pytest.approx(2 * image.sum() / edge)
    bars = torch.zeros(3, 1, 40, 40)
    for width, bar in zip((1, 2, 4), bars, strict=True):
        bar[0, 10 : 10 + width, 2:38] = 0.5
    # A bar of 36 x w has an edge of 72 + 2 w, less 2 - sqrt(2) at the corner whose two steps fall on one pixel.
    wanted = [2 * 36 * w / (72 + 2 * w - 2 + 2**0.5) for w in (1, 2, 4)]
    assert digits.thickness(bars).tolist() == pytest.approx(wanted)


def test_slant_is_the_slope_of_the_line_through_the_ink(train):
    y, x = np.mgrid[:8, :8]
    for image, slant in zip(train.images[:60, 0].double().numpy(), digits.slant(train.images[:60]), strict=True):
        slope = np.polyfit(-y.ravel(), x.ravel(), 1, w=np.sqrt(image.ravel()))[0]
        assert float(slant) == pytest.approx(slope, abs=1e-9)
    leaning = torch.zeros(1, 1, 8, 8)
    leaning[0, 0, range(8), range(7, -1, -1)] = 1
    assert float(digits.slant(leaning)) == pytest.approx(1)
    flat = torch.zeros(1, 1, 8, 8)
    flat[0, 0, 3, 2:6] = 1
    assert float(digits.slant(flat)) == 0


def test_values_are_cut_from_the_measures_at_the_stated_bounds(train):
    bounds = {"loop": (0.25,), "thickness": (1.4, 1.55), "slant": (-0.1, 0.1)}
    for concept, values in train.concepts.items():
        measured = train.measures[concept].numpy()
        assert torch.equal(values, torch.as_tensor(np.digitize(measured, bounds[concept])))
        assert len(values.unique()) == len(digits.CONCEPTS[concept])


def test_concept_sets_hold_different_images_of_one_value():
    thick = digits.concept_set("thickness", "thick", 50, seed=2)
    assert set(thick.concepts["thickness"].tolist()) == {2}
    assert len(thick.images.flatten(1).unique(dim=0)) == 50
    assert torch.equal(thick.images, digits.concept_set("thickness", 2, 50, seed=2).images)
    assert not torch.equal(thick.images, digits.concept_set("thickness", 2, 50, seed=3).images)
    loose = digits.random_set(300, split="test")
    assert loose.labels.bincount().tolist() == digits.load("test").labels.bincount().tolist()
    assert set(loose.where(label="8", slant="right").labels.tolist()) == {8}


def test_what_does_not_fit_is_refused():
    with pytest.raises(UnknownNameError, match="validation"):
        digits.load("valid")
    with pytest.raises(UnknownNameError, match="loop"):
        digits.concept_set("loops", "present")
    with pytest.raises(UnknownNameError, match="present"):
        digits.concept_set("loop", "presnt")
    with pytest.raises(InputError, match="there are 300 in test"):
        digits.random_set(301, split="test")
    with pytest.raises(InputError, match="drawn"):
        digits.concept_set("loop", "present", 0)
    with pytest.raises(InputError, match="seed"):
        digits.random_set(3, seed=-1)
    for measure in (digits.loop_depth, digits.thickness, digits.slant):
        with pytest.raises(InputError, match="no ink"):
            measure(torch.zeros(2, 1, 8, 8))
        with pytest.raises(InputError, match="height"):
            measure(torch.ones(2, 8, 8))
        with pytest.raises(InputError, match="finite"):
            measure(torch.full((1, 1, 8, 8), float("nan")))


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._parts.cache_clear()
    with pytest.raises(MissingExtraError, match=r"actinium\[learn\]"):
        digits.load()
