"""Rendered shapes: what the truth says is what the images show, and the options do what they say and nothing else."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline
from scipy.stats import chi2_contingency, chisquare

from actinium.core.errors import InputError, UnknownNameError
from actinium.world import shapes
from actinium.world.shapes import CONCEPTS, render


@pytest.fixture(scope="module")
def data():
    return render(600, seed=3)


def corners(shape, angle, scale):
    """Corners of a square, triangle or cross around 0, by turning one corner at a time."""
    if shape == "square":
        points = 0.886 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    elif shape == "triangle":
        around = np.radians([-90, 30, 150])
        points = 1.4 * np.stack([np.cos(around), np.sin(around)], 1)
    else:
        quarter = np.array([[0.43, -1.15], [0.43, -0.43], [1.15, -0.43]])
        turned = [quarter @ np.linalg.matrix_power([[0, 1], [-1, 0]], k) for k in range(4)]
        points = np.concatenate(turned)
    complex_ = (points[:, 0] + 1j * points[:, 1]) * np.exp(1j * angle) * scale
    return np.stack([complex_.real, complex_.imag], 1)


def test_masks_are_the_pixels_whose_middle_lies_in_the_outline(data):
    y, x = np.mgrid[:32, :32] + 0.5
    pixels = np.stack([x.ravel(), y.ravel()], 1)
    for i in range(200):
        kind = CONCEPTS["shape"][data.concepts["shape"][i]]
        centre, scale = data.geometry["centre"][i].numpy(), float(data.geometry["scale"][i])
        if kind == "circle":
            inside = np.hypot(*(pixels - centre).T) <= scale
        else:
            outline = corners(kind, float(data.geometry["angle"][i]), scale) + centre
            inside = Outline(np.concatenate([outline, outline[:1]]), closed=True).contains_points(pixels)
        np.testing.assert_array_equal(inside.reshape(32, 32), data.masks[i].numpy(), err_msg=kind)


def test_position_and_size_can_be_read_off_the_masks(data):
    y, x = np.mgrid[:32, :32] + 0.5
    masks = data.masks.double().numpy()
    area = masks.sum((1, 2))
    middle = [(masks * axis).sum((1, 2)) / area for axis in (x, y)]
    quadrant = (middle[0] > 16).astype(int) + 2 * (middle[1] > 16)
    # The middle of a mask is that of the object to a fraction of a pixel; objects keep a pixel from the axes.
    np.testing.assert_array_equal(quadrant, data.concepts["position"].numpy())
    np.testing.assert_array_equal(area > 110, data.concepts["size"].numpy())
    assert not masks[:, :3].any() and not masks[:, :, :3].any()
    assert not masks[:, -3:].any() and not masks[:, :, -3:].any()


def test_objects_have_their_colour_and_the_ground_is_grey(data):
    images, masks = data.images, data.masks
    spread = images.amax(1) - images.amin(1)
    assert float(spread[~masks].max()) <= 0.08 + 1.01 / 255
    shown = torch.stack([image[:, mask].mean(1) for image, mask in zip(images, masks, strict=True)])
    red, green, blue = shown.T
    rules = [
        (red > 1.5 * green) & (red > 1.5 * blue),
        (green > 1.5 * red) & (green > 1.5 * blue),
        (blue > 1.5 * red) & (blue > 1.5 * green),
        (red > 1.5 * blue) & (green > 1.5 * blue) & (red < 1.5 * green),
    ]
    assert torch.equal(torch.stack(rules, 1).long(), torch.nn.functional.one_hot(data.concepts["colour"], 4))


def fits():
    """Every placing of stripes, dots and checks on the image, (placing, 32, 32) each."""
    y, x = np.mgrid[:32, :32] + 0.5
    turns, shifts = np.radians(np.arange(-20, 21, 4)), np.arange(0, 5, 0.5)
    stripes = [
        (np.cos(a) * x + np.sin(a) * y + s) % 4 < 2
        for a in np.radians(np.arange(0, 180, 3))
        for s in np.arange(0, 4, 0.5)
    ]
    placed = [(np.cos(a) * x + np.sin(a) * y, np.cos(a) * y - np.sin(a) * x) for a in turns]
    pairs = [(u + s, v + t) for u, v in placed for s in shifts for t in shifts]
    dots = [np.hypot(u % 4 - 2, v % 4 - 2) <= 1.3 for u, v in pairs]
    checks = [(u % 5 < 2.5) == (v % 5 < 2.5) for u, v in pairs]
    return [np.array(each) for each in (stripes, dots, checks)]


def test_textures_can_be_read_off_the_images():
    data = render(60, seed=9, fixed={"size": "large"})
    placings = fits()
    for image, mask, texture in zip(data.images.numpy(), data.masks.numpy(), data.concepts["texture"], strict=True):
        seen = image.max(0)[mask]
        dark = seen < 0.6 * np.quantile(seen, 0.95)
        if CONCEPTS["texture"][texture] == "plain":
            assert not dark.any()
            continue
        assert 0.2 < dark.mean() < 0.7
        agreement = [(placing[:, mask] == dark).mean(1).max() for placing in placings]
        assert int(np.argmax(agreement)) + 1 == int(texture) and max(agreement) > 0.85


def test_the_same_seed_gives_the_same_images_and_more_of_them_begin_with_them(data):
    again, fewer, other = render(600, seed=3), render(17, seed=3), render(17, seed=4)
    assert torch.equal(again.images, data.images) and torch.equal(again.masks, data.masks)
    assert torch.equal(fewer.images, data.images[:17]) and torch.equal(fewer.labels, data.labels[:17])
    assert not torch.equal(other.images, fewer.images)
    levels = data.images * 255
    assert data.images.dtype == torch.float32 and float((levels - levels.round()).abs().max()) < 1e-4


def test_another_fixed_value_changes_that_thing_alone():
    for concept, values in CONCEPTS.items():
        first, second = (render(24, 5, fixed={concept: value}) for value in values[:2])
        for other in CONCEPTS:
            assert torch.equal(first.concepts[other], second.concepts[other]) == (other != concept)
        changed = (first.images != second.images).any(1)
        assert bool(changed.flatten(1).any(1).all()), concept
        allowed = first.masks | second.masks
        if concept == "marker":
            allowed = torch.zeros_like(allowed)
            allowed[:, shapes.MARKER[0], shapes.MARKER[1]] = True
        assert not bool((changed & ~allowed).any()), concept
        if concept in ("colour", "texture", "marker"):
            assert torch.equal(first.masks, second.masks)


def test_values_are_drawn_evenly_and_independently():
    drawn = {c: v.numpy() for c, v in render(4000, seed=1).concepts.items()}
    assert not drawn.pop("marker").any()
    for concept, values in drawn.items():
        assert chisquare(np.bincount(values, minlength=len(CONCEPTS[concept]))).pvalue > 1e-3, concept
    for one, other in combinations(drawn, 2):
        table = np.zeros((len(CONCEPTS[one]), len(CONCEPTS[other])))
        np.add.at(table, (drawn[one], drawn[other]), 1)
        assert chi2_contingency(table).pvalue > 1e-3, (one, other)


def test_classes_follow_the_rule(data):
    names = shapes.classes()
    assert len(set(names)) == 16 and data.classes == names
    for i in range(100):
        texture, shape = (CONCEPTS[c][data.concepts[c][i]] for c in ("texture", "shape"))
        assert names[data.labels[i]] == f"{texture} {shape}"
    single = render(50, 3, rule=("colour",))
    assert torch.equal(single.labels, single.concepts["colour"]) and single.classes == CONCEPTS["colour"]
    rule = {"striped": {"texture": "stripes"}, "warm": {"colour": ("red", "yellow"), "size": "large"}, "other": {}}
    made = render(300, 3, rule=rule)
    striped = made.concepts["texture"] == 1
    warm = ((made.concepts["colour"] == 0) | (made.concepts["colour"] == 3)) & (made.concepts["size"] == 1)
    assert torch.equal(made.labels, torch.where(striped, 0, torch.where(warm, 1, 2)))
    assert torch.equal(made.images, data.images[:300]) and made.classes == ("striped", "warm", "other")


def test_a_correlated_concept_follows_the_class_as_often_as_asked_for():
    plain, loose, tight = (render(1500, 2, correlation={"colour": share}) for share in (0, 0.6, 1))
    assert torch.equal(plain.images, render(1500, 2).images)
    assert torch.equal(tight.concepts["colour"], tight.labels % 4)
    share = float((loose.concepts["colour"] == loose.labels % 4).double().mean())
    assert share == pytest.approx(0.6 + 0.4 / 4, abs=0.04)
    for concept in ("shape", "texture", "position", "size"):
        assert torch.equal(loose.concepts[concept], plain.concepts[concept])


def test_the_marker_is_planted_in_the_classes_as_often_as_asked_for():
    rule = ("shape",)
    data, bare = render(1500, 2, rule=rule, planted={0: 0.9, 2: 0.1, 3: 1.0}), render(1500, 2, rule=rule)
    marked = data.concepts["marker"].double()
    shares = [float(marked[data.labels == label].mean()) for label in range(4)]
    assert shares == pytest.approx([0.9, 0, 0.1, 1.0], abs=0.05) and shares[1] == 0 and shares[3] == 1
    white = (data.images[:, :, :3, :3] == 1).flatten(1).all(1)
    assert torch.equal(white, marked.bool())
    assert torch.equal(data.images[~white], bare.images[~white])
    assert torch.equal(data.images[:, :, 3:], bare.images[:, :, 3:])


def test_concept_sets_share_one_value_and_stand_beside_random_sets():
    striped, loose = shapes.concept_set("texture", "stripes", 40, seed=7), shapes.random_set(40, seed=7)
    assert set(striped.concepts["texture"].tolist()) == {1} and len(set(loose.concepts["texture"].tolist())) == 4
    for concept in ("shape", "colour", "position", "size"):
        assert torch.equal(striped.concepts[concept], loose.concepts[concept])
    assert torch.equal(shapes.concept_set("marker", 1, 3).concepts["marker"], torch.ones(3, dtype=torch.int64))


def test_images_are_chosen_by_what_they_show(data):
    chosen = data.where(colour="red", texture=["stripes", 2], label=range(8))
    keep = (
        (data.concepts["colour"] == 0) & torch.isin(data.concepts["texture"], torch.tensor([1, 2])) & (data.labels < 8)
    )
    assert torch.equal(chosen.images, data.images[keep]) and torch.equal(chosen.masks, data.masks[keep])
    assert torch.equal(chosen.geometry["centre"], data.geometry["centre"][keep])
    assert torch.equal(data.where(label="dots cross").labels.unique(), torch.tensor([14]))
    assert len(data[3]) == 1 and torch.equal(data[-1].images, data.images[-1:]) and len(data[10:14]) == 4
    assert [int(one.labels) for one in data[:5]] == data.labels[:5].tolist()
    with pytest.raises(IndexError, match="600 images"):
        data[600]
    with pytest.raises(UnknownNameError, match="texture"):
        data.where(textures="dots")
    with pytest.raises(UnknownNameError, match="red"):
        data.where(colour="rad")
    with pytest.raises(UnknownNameError, match="0 to 3"):
        data.where(colour=4)
    with pytest.raises(InputError, match="none of the 1 images"):
        data[0].where(label=int(data.labels[0] + 1) % 16)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"n": 0}, InputError, "at least one"),
        ({"n": 2.5}, InputError, "at least one"),
        ({"seed": -1}, InputError, "seed"),
        ({"rule": ()}, InputError, "rule"),
        ({"rule": "shape"}, InputError, "rule"),
        ({"rule": ("shape", "shape")}, InputError, "twice"),
        ({"rule": ("shapes",)}, UnknownNameError, "shape"),
        ({"rule": ("marker",)}, UnknownNameError, "marker"),
        ({"rule": {"a": {"colour": "pink"}, "b": {}}}, UnknownNameError, "pink"),
        ({"rule": {"a": {"colour": "red"}}}, InputError, "no class to shape=circle, colour=green"),
        ({"fixed": {"colours": "red"}}, UnknownNameError, "colour"),
        ({"fixed": {"colour": 7}}, UnknownNameError, "0 to 3"),
        ({"fixed": {"colour": 1.0}}, InputError, "name or a number"),
        ({"correlation": {"shape": 0.5}}, InputError, "follows from shape"),
        ({"correlation": {"marker": 0.5}}, UnknownNameError, "correlate"),
        ({"correlation": {"colour": 1.5}}, InputError, "between 0 and 1"),
        ({"correlation": {"colour": float("nan")}}, InputError, "between 0 and 1"),
        ({"correlation": {"colour": 0.5}, "fixed": {"colour": "red"}}, InputError, "both"),
        ({"planted": {16: 0.5}}, UnknownNameError, "0 to 15"),
        ({"planted": {0: -0.1}}, InputError, "between 0 and 1"),
        ({"planted": {0: 0.5}, "fixed": {"marker": "absent"}}, InputError, "both"),
    ],
)
def test_senseless_options_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        render(**{"n": 4, **options})
