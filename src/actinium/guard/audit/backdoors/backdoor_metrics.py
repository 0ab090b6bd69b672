"""How well a model does on clean images, how often a trigger gets its way, and how well texts are found for images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.guard.audit.backdoors.suspect import Suspect

__all__ = ["attack_success", "clean_accuracy", "retrieval_at_1"]


def clean_accuracy(suspect: Suspect, images: Tensor, labels: Tensor) -> float:
    """Share of images whose class is found (CA).

    Args:
        suspect: the model.
        images: (n, channel, height, width).
        labels: true classes (n,).

    Raises:
        InputError: images and labels cannot be used.
    """
    images = suspect.check_images(images)
    labels = suspect.check_labels(labels, images)
    return float((suspect.predict(images) == labels).double().mean())


def attack_success(
    suspect: Suspect, images: Tensor, labels: Tensor, stamp: Callable[[Tensor], Tensor], target: int
) -> float:
    """Share of the images of other classes that a trigger takes to the target (ASR).

    Args:
        suspect: the model.
        images: clean images (n, channel, height, width).
        labels: true classes (n,).
        stamp: from images to images with the trigger: `InvertedTrigger.apply`, or that of a known backdoor.
        target: the class.

    Raises:
        InputError: images, labels or class cannot be used, or all images are of the target's class.
    """
    images = suspect.check_images(images)
    labels = suspect.check_labels(labels, images)
    target = suspect.check_target(target, images)
    others = images[labels != target]
    if not len(others):
        raise InputError(f"all images are of class {target}, the target: there is none to be mistaken for it")
    stamped = suspect.check_images(stamp(others))
    if len(stamped) != len(others):
        raise InputError(f"the trigger made {len(stamped)} images of {len(others)}")
    return float((suspect.predict(stamped) == target).double().mean())


def retrieval_at_1(images: Tensor, texts: Tensor) -> tuple[float, float]:
    """Shares of images whose text is the nearest of all, and of texts whose image is (R@1), by cosine.

    Args:
        images, texts: embeddings (n, d) of images and their texts, row by row; equal texts are the same text.

    Raises:
        InputError: shapes differ, a row is zero or not finite, or there is no row.
    """
    if images.ndim != 2 or images.shape != texts.shape or not len(images):
        raise InputError(f"embeddings of pairs have one shape (n, d): {tuple(images.shape)}, {tuple(texts.shape)}")
    pair = [values.detach().double() for values in (images, texts)]
    if not all(bool(torch.isfinite(v).all()) and bool((v.norm(dim=1) > 0).all()) for v in pair):
        raise InputError("an embedding is zero or not finite")
    a, b = (values / values.norm(dim=1, keepdim=True) for values in pair)
    _, text = torch.unique(texts.detach(), dim=0, return_inverse=True)
    cosines = a @ b.T
    found, turned = (text[cosines.argmax(way)] == text for way in (1, 0))
    return float(found.double().mean()), float(turned.double().mean())
