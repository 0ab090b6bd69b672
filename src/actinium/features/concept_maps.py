"""Concept attribution maps: where in an image a concept is, through the derivative of its coefficient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.features.craft import CRAFT

__all__ = ["METHODS", "concept_attribution_map"]

METHODS = ("saliency", "gradcam", "smoothgrad", "occlusion", "upsample")
WHITE = ("saliency", "gradcam", "smoothgrad")


def concept_attribution_map(
    craft: CRAFT,
    images: Tensor,
    concept: int,
    method: str = "saliency",
    *,
    samples: int = 25,
    noise: float = 0.1,
    window: int | None = None,
    stride: int | None = None,
    fill: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """How much each pixel has to do with the coefficient of a concept, the mean over positions.

    Args:
        craft: a fitted one.
        images: (n, channel, size, size).
        concept: the concept.
        method: "saliency" (largest gradient over channels, by size), "smoothgrad" (the same of a gradient averaged over
            noisy copies), "gradcam" (the activation maps weighted by their mean gradient, positive part, enlarged),
            "occlusion" (fall of the coefficient when a window is covered, averaged over the windows that cover a pixel)
            or "upsample" (the coefficients themselves, enlarged).
        samples, noise: of "smoothgrad": copies, and standard deviation as a share of an image's range.
        window, stride: of "occlusion", in pixels; an eighth of the image and half the window by default.
        fill: of "occlusion": what covers a window; 0 is the mean of normalised images.
        seed: of the noise.

    Returns:
        (n, size, size), not negative but for "occlusion" and codes with a sign.

    Raises:
        InputError: images do not fit, there is no such concept, or the method needs what the network lacks: a gradient
            (not of "kmeans"), or activations with a height and a width.
        UnknownNameError: there is no such method.

    Source: Fel et al., 2023, section 3.3; Simonyan et al., 2013; Smilkov et al., 2017; Selvaraju et al., 2017; Zeiler
    and Fergus, 2013.
    """
    if method not in METHODS:
        raise UnknownNameError(unknown("attribution method", str(method), METHODS))
    chosen = craft._concept(concept)
    craft._images(images)
    if method in WHITE and craft.method == "kmeans":
        raise InputError('nearest centres have no gradient; take "occlusion" or "upsample"')
    parts = []
    for part in images.detach().split(craft.batch_size):
        if method == "saliency":
            parts.append(_gradient(craft, part, chosen).abs().amax(1))
        elif method == "smoothgrad":
            parts.append(_smooth(craft, part, chosen, samples, noise, seed))
        elif method == "occlusion":
            parts.append(_occlusion(craft, part, chosen, window, stride, fill))
        else:
            parts.append(_enlarged(craft, part, chosen, method))
    return torch.cat(parts)


def _coefficient(craft: CRAFT, images: Tensor, concept: int) -> Tensor:
    """(n,) mean over positions of one coefficient."""
    return craft.codes(images)[..., concept].reshape(len(images), -1).mean(1)


def _gradient(craft: CRAFT, images: Tensor, concept: int) -> Tensor:
    leaf = images.clone().requires_grad_()
    with torch.enable_grad():
        total = _coefficient(craft, leaf, concept).sum()
        if not total.requires_grad:
            raise InputError("g has no gradient to the images")
        (found,) = torch.autograd.grad(total, leaf)
    return found


def _smooth(craft: CRAFT, images: Tensor, concept: int, samples: int, noise: float, seed: int) -> Tensor:
    if samples < 1 or not noise > 0:
        raise InputError(f"smoothgrad needs one sample or more and noise above 0, got {samples} and {noise}")
    random = torch.Generator().manual_seed(seed)
    spread = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    total = torch.zeros_like(images)
    for _ in range(samples):
        # Each image gets the same noise, so that its map does not depend on its place in the batch.
        drawn = torch.randn(images.shape[1:], generator=random).to(images)
        total += _gradient(craft, images + spread * drawn, concept)
    return (total / samples).abs().amax(1)


def _occlusion(
    craft: CRAFT, images: Tensor, concept: int, window: int | None, stride: int | None, fill: float
) -> Tensor:
    size = images.shape[-1]
    window = max(1, size // 8) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= window <= size or not 1 <= stride <= window:
        raise InputError(f"windows of {window} pixels every {stride} do not cover an image of {size}")
    edges = [*range(0, size - window, stride), size - window]
    with torch.no_grad():
        whole = _coefficient(craft, images, concept)
        total, times = torch.zeros(len(images), size, size).to(images), torch.zeros(size, size).to(images)
        for top in edges:
            for left in edges:
                covered = images.clone()
                covered[:, :, top : top + window, left : left + window] = fill
                fall = whole - _coefficient(craft, covered, concept)
                total[:, top : top + window, left : left + window] += fall[:, None, None]
                times[top : top + window, left : left + window] += 1
    return total / times


def _enlarged(craft: CRAFT, images: Tensor, concept: int, method: str) -> Tensor:
    """Coefficients, or activations weighted by their gradient, brought to the size of the images."""
    with torch.no_grad():
        found = craft.g(images)
    if found.ndim != 4:
        raise InputError(f'activations {tuple(found.shape)} have no height and width; take "saliency" or "occlusion"')
    if method == "upsample":
        small = craft.bank_.transform(found.movedim(1, -1))[..., concept]
    else:
        leaf = found.detach().requires_grad_()
        with torch.enable_grad():
            total = craft.bank_.transform(leaf.movedim(1, -1))[..., concept].flatten(1).mean(1).sum()
            (grad,) = torch.autograd.grad(total, leaf)
        small = (grad.mean((2, 3), keepdim=True) * leaf.detach()).sum(1).relu()
    return F.interpolate(small[:, None], size=images.shape[-1], mode="bilinear", align_corners=False)[:, 0]
