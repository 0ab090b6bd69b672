"""Concept attribution maps point at the pixels that a concept's coefficient comes from."""

from __future__ import annotations

import pytest
import torch
from concept_nets import cifar, random_cnn
from torch import nn

from actinium.core.errors import InputError, UnknownNameError
from actinium.core.model import Model
from actinium.features.concept_maps import METHODS, concept_attribution_map
from actinium.features.craft import CRAFT

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def images_with_squares(n=24, seed=0):
    """Grey images (n, 3, 16, 16) with a red and a blue square of 4 pixels in places of their own, and their masks."""
    random = torch.Generator().manual_seed(seed)
    images = 0.3 + 0.02 * torch.rand(n, 3, 16, 16, generator=random)
    masks = torch.zeros(n, 2, 16, 16, dtype=torch.bool)
    for i in range(n):
        places = torch.randperm(9, generator=random)[:2]
        for k, place in enumerate(places.tolist()):
            top, left = 1 + 5 * (place // 3), 1 + 5 * (place % 3)
            images[i, :, top : top + 4, left : left + 4] = 0.1
            images[i, 2 * k, top : top + 4, left : left + 4] = 0.9
            masks[i, k, top : top + 4, left : left + 4] = True
    return images, masks


def colour_net():
    """Detectors of red and of blue, averaged over 2 x 2 pixels."""
    conv = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]])[:, :, None, None])
        conv.bias.fill_(0.1)
    return nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(2))


@pytest.fixture(scope="module")
def fitted():
    images, masks = images_with_squares()
    craft = CRAFT(colour_net(), lambda a: a.mean((2, 3)), 2, 4, stride=2).fit(images)
    # Concept of each colour: the one whose vector lies in its channel.
    return craft, images, masks, craft.bank_.bank_.argmax(0).tolist()


def overlap(maps, mask):
    """IoU of the mask and as many of the brightest pixels as it has."""
    flat, mask = maps.flatten(1), mask.flatten(1)
    k = int(mask[0].sum())
    top = torch.zeros_like(mask).scatter(1, flat.topk(k, 1).indices, True)
    return float(((top & mask).sum(1) / (top | mask).sum(1)).mean())


@pytest.mark.parametrize("method", METHODS)
def test_every_map_lies_on_the_square_of_its_concept(fitted, method):
    craft, images, masks, concept_of = fitted
    images, masks = images[:6], masks[:6]
    for colour, concept in enumerate(concept_of):
        options = {"window": 2, "stride": 1, "fill": 0.3} if method == "occlusion" else {}
        options |= {"samples": 5} if method == "smoothgrad" else {}
        maps = concept_attribution_map(craft, images, concept, method, **options)
        assert maps.shape == (6, 16, 16)
        own, other = overlap(maps, masks[:, colour]), overlap(maps, masks[:, 1 - colour])
        assert own > 0.6 and own > other + 0.4


def small():
    images = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    net = random_cnn(torch.float64)
    return CRAFT(net[:2], net[2:], 3, 6, batch_size=4).fit(images), images


def coefficient(craft, images, concept):
    return craft.transform(images)[..., concept].mean((1, 2))


def test_saliency_is_the_finite_difference_of_the_coefficient():
    craft, images = small()
    maps = concept_attribution_map(craft, images, 1)
    for row, column in ((3, 4), (7, 7), (0, 11)):
        slopes = []
        for channel in range(3):
            step = torch.zeros_like(images)
            step[:, channel, row, column] = 1e-5
            slopes.append((coefficient(craft, images + step, 1) - coefficient(craft, images - step, 1)) / 2e-5)
        assert torch.allclose(maps[:, row, column], torch.stack(slopes).abs().amax(0), atol=1e-4)
    assert float(maps.max()) > 1e-3


def test_grad_cam_weighs_maps_by_the_closed_form_of_the_active_set():
    craft, images = small()
    found = craft.g(images).detach()
    codes, bank = craft.transform(images), craft.bank_.bank_
    slope = torch.zeros(6, 6, 6, 8, dtype=torch.float64)
    for place in torch.cartesian_prod(torch.arange(6), torch.arange(6), torch.arange(6)).tolist():
        active = (codes[tuple(place)] > 0).nonzero()[:, 0]
        if 1 in active.tolist():
            w = bank[active]
            slope[tuple(place)] = torch.linalg.solve(w @ w.T, w)[active.tolist().index(1)] / 36
    want = (slope.mean((1, 2))[:, :, None, None] * found).sum(1).relu()
    want = nn.functional.interpolate(want[:, None], size=12, mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(concept_attribution_map(craft, images, 1, "gradcam"), want, atol=1e-10)
    up = nn.functional.interpolate(codes[None, ..., 1].movedim(0, 1), size=12, mode="bilinear", align_corners=False)
    assert torch.allclose(concept_attribution_map(craft, images, 1, "upsample"), up[:, 0])


def test_smoothgrad_of_little_noise_is_saliency_and_does_not_depend_on_the_batch():
    craft, images = small()
    quiet = concept_attribution_map(craft, images, 1, "smoothgrad", samples=2, noise=1e-9)
    assert torch.allclose(quiet, concept_attribution_map(craft, images, 1), atol=1e-6)
    noisy = concept_attribution_map(craft, images, 1, "smoothgrad", samples=4)
    assert torch.allclose(concept_attribution_map(craft, images[5:], 1, "smoothgrad", samples=4), noisy[5:])
    assert not torch.allclose(noisy, quiet, rtol=0.01)


def test_occlusion_is_the_mean_fall_over_the_windows_of_a_pixel():
    craft, images = small()
    maps = concept_attribution_map(craft, images, 0, "occlusion", window=5, stride=4, fill=0.2)
    falls = {}
    for top in (0, 4, 7):
        for left in (0, 4, 7):
            covered = images.clone()
            covered[:, :, top : top + 5, left : left + 5] = 0.2
            falls[top, left] = coefficient(craft, images, 0) - coefficient(craft, covered, 0)
    assert torch.allclose(maps[:, 0, 0], falls[0, 0])
    corner = (falls[0, 0] + falls[0, 4] + falls[4, 0] + falls[4, 4]) / 4
    assert torch.allclose(maps[:, 4, 4], corner)
    assert torch.allclose(maps[:, 11, 8], (falls[7, 4] + falls[7, 7]) / 2)


@pytest.mark.parametrize("method", ["kmeans", "pca"])
def test_baselines_have_maps_as_far_as_they_can(method):
    images, _ = images_with_squares(8)
    craft = CRAFT(colour_net(), lambda a: a.mean((2, 3)), 2, 4, method=method).fit(images)
    assert concept_attribution_map(craft, images, 0, "upsample").shape == (8, 16, 16)
    if method == "kmeans":
        with pytest.raises(InputError, match="no gradient"):
            concept_attribution_map(craft, images, 0)
    else:
        assert float(concept_attribution_map(craft, images, 0).max()) > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "salience"}, UnknownNameError, "saliency"),
        ({"concept": 3}, InputError, "from 0 to 2"),
        ({"concept": -1}, InputError, "from 0 to 2"),
        ({"method": "smoothgrad", "samples": 0}, InputError, "one sample"),
        ({"method": "smoothgrad", "noise": 0.0}, InputError, "noise above 0"),
        ({"method": "occlusion", "window": 13}, InputError, "do not cover"),
        ({"method": "occlusion", "window": 2, "stride": 3}, InputError, "do not cover"),
        ({"images": torch.zeros(2, 3, 8, 8).double()}, InputError, "12 pixels"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, error, message):
    craft, images = small()
    with pytest.raises(error, match=message):
        concept_attribution_map(**{"craft": craft, "images": images, "concept": 0, **options})


def test_activations_without_positions_have_gradients_and_nothing_to_enlarge():
    g = nn.Sequential(nn.Flatten(), nn.ReLU())
    images = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    craft = CRAFT(g, lambda a: a[:, :2], 3, 3).fit(images)
    assert concept_attribution_map(craft, images, 0).shape == (12, 6, 6)
    with pytest.raises(InputError, match="no height and width"):
        concept_attribution_map(craft, images, 0, "upsample")


def test_on_a_trained_resnet_the_gradient_through_the_codes_is_a_finite_difference(outside_data):
    net, x, y = cifar(outside_data)
    ships = x[y == 8][:12].double()
    craft = CRAFT.at(Model(net.double()), "module:layer2", 4, 16).fit(ships)
    some, concept = ships[:3], int(craft.transform(ships[:3]).sum((0, 1, 2)).argmax())
    leaf = some.clone().requires_grad_()
    (grad,) = torch.autograd.grad(craft.codes(leaf)[..., concept].mean((1, 2)).sum(), leaf)
    step = torch.randn(some.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    up, down = (coefficient(craft, some + sign * 1e-6 * step, concept) for sign in (1, -1))
    assert torch.allclose((grad * step).sum((1, 2, 3)), (up - down) / 2e-6, rtol=2e-2, atol=1e-3)
    assert torch.equal(concept_attribution_map(craft, some, concept), grad.abs().amax(1))
