"""Handwritten digits of 8 x 8 pixels (scikit-learn's, 1797 of them) with concepts that are computed from the images.

    from actinium.world import digits

    data = digits.load("test")                      # images (n, 1, 8, 8) in 0..1, labels, concepts
    data.where(label="8", slant="right")
    digits.concept_set("loop", "present", 60)       # from the training part; beside random_set(60)

The parts are the same always, and so is a set for its seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from actinium.core.errors import InputError, MissingExtraError, UnknownNameError, unknown
from actinium.world.labelled import LabelledImages, value_index

__all__ = [
    "CONCEPTS",
    "SIZE",
    "SPLITS",
    "Digits",
    "concept_set",
    "load",
    "loop_depth",
    "random_set",
    "slant",
    "thickness",
]

SIZE = 8
"""Height and width in pixels."""
SPLITS: Mapping[str, int] = MappingProxyType({"train": 1197, "validation": 300, "test": 300})
"""Number of images in each part. Which they are is drawn once, with seed 0."""
CONCEPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "loop": ("absent", "present"),
        "thickness": ("thin", "medium", "thick"),
        "slant": ("left", "upright", "right"),
    }
)
"""Names of the values of each concept."""
LOOP_DEPTH = 0.25
"""Depth from which on a hole is a loop."""
THICKNESS = (1.4, 1.55)
"""Width in pixels up to which a stroke is thin, and from which on it is thick."""
SLANT = (-0.1, 0.1)
"""Shear up to which a digit leans to the left, and from which on to the right."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Digits(LabelledImages):
    """Images of digits with their concepts.

    Args:
        images: (n, 1, 8, 8) float32, multiples of 1/16 in 0..1; ink is bright.
        labels: (n,) int64, the digit.
        concepts: "loop", "thickness" and "slant": the number (n,) int64 of the value.
        classes: "0" to "9".
        measures: what the concepts were cut from: `loop_depth`, `thickness` and `slant` of the images, (n,) each.
    """

    measures: dict[str, Tensor]
    values: ClassVar[Mapping[str, tuple[str, ...]]] = CONCEPTS


def load(split: str = "train") -> Digits:
    """The images of one part of scikit-learn's digits.

    Args:
        split: "train", "validation" or "test".

    Raises:
        UnknownNameError: there is no such part.
        MissingExtraError: scikit-learn is not installed.
    """
    if split not in SPLITS:
        raise UnknownNameError(unknown("part of the digits", str(split), SPLITS))
    held = _parts()[split]
    # A copy, which the caller may change.
    return held[torch.arange(len(held))]


@cache
def _parts() -> dict[str, Digits]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None
    values, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(values).float().view(-1, 1, SIZE, SIZE) / 16
    measures = {"loop": loop_depth(images), "thickness": thickness(images), "slant": slant(images)}
    bounds = {"loop": (LOOP_DEPTH,), "thickness": THICKNESS, "slant": SLANT}
    whole = Digits(
        images=images,
        labels=torch.as_tensor(labels).long(),
        concepts={c: torch.bucketize(measures[c], torch.tensor(bounds[c]), right=True) for c in CONCEPTS},
        classes=tuple(str(digit) for digit in range(10)),
        measures=measures,
    )
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    return {name: whole[rows] for name, rows in zip(SPLITS, order.split(list(SPLITS.values())), strict=True)}


def _checked(images: Tensor) -> Tensor:
    """The images (n, height, width) in float64."""
    if images.ndim != 4 or images.shape[1] != 1 or not len(images):
        raise InputError(f"images of digits are (n, 1, height, width), not {tuple(images.shape)}")
    if not bool(torch.isfinite(images).all()) or float(images.min()) < 0:
        raise InputError("ink is finite and not negative")
    if bool((images.flatten(1).sum(1) == 0).any()):
        raise InputError("an image has no ink")
    return images[:, 0].double()


def loop_depth(images: Tensor) -> Tensor:
    """How deep the deepest hole of each image is.

    Water that is poured over the image, ink being high, stays in its holes: a pixel is filled up to the lowest height
    over which a path of neighbours (up, down, left, right) leads to the outside. The depth is how far the water stands
    above the ground, at most.

    Args:
        images: (n, 1, height, width), ink bright.

    Returns:
        (n,) depths, 0 where nothing stays.

    Raises:
        InputError: wrong shape, no ink, or values that are not finite or negative.
    """
    ground = functional.pad(_checked(images), (1, 1, 1, 1))
    water = torch.full_like(ground, float(ground.max()))
    water[:, 0], water[:, -1], water[:, :, 0], water[:, :, -1] = 0, 0, 0, 0
    while True:
        around = functional.pad(water, (1, 1, 1, 1), value=float("inf"))
        beside = torch.stack([around[:, :-2, 1:-1], around[:, 2:, 1:-1], around[:, 1:-1, :-2], around[:, 1:-1, 2:]])
        lower = torch.maximum(ground, torch.minimum(water, beside.amin(0)))
        if torch.equal(lower, water):
            return (water - ground).flatten(1).amax(1)
        water = lower


def thickness(images: Tensor) -> Tensor:
    """Width of the strokes in pixels: twice the ink over the length of its edge.

    A stroke of width w and length l has w l of ink and an edge of 2 l. The edge is the total variation: the sum over
    pixels of the length of the gradient (differences to the next pixel on the right and below), which does not change
    when the edge is blurred.

    Args:
        images: (n, 1, height, width), ink bright.

    Returns:
        (n,) widths.

    Raises:
        InputError: wrong shape, no ink, or values that are not finite or negative.
    """
    ink = functional.pad(_checked(images), (1, 1, 1, 1))
    right, below = ink[:, :-1, 1:] - ink[:, :-1, :-1], ink[:, 1:, :-1] - ink[:, :-1, :-1]
    return 2 * ink.sum((1, 2)) / (right**2 + below**2).sqrt().sum((1, 2))


def slant(images: Tensor) -> Tensor:
    """How far a digit leans: pixels to the right per pixel upwards, by least squares over its ink.

    Args:
        images: (n, 1, height, width), ink bright.

    Returns:
        (n,) shears; positive leans to the right, 0 for ink in one row.

    Raises:
        InputError: wrong shape, no ink, or values that are not finite or negative.
    """
    ink = _checked(images)
    share = ink / ink.sum((1, 2), keepdim=True)
    y, x = (torch.arange(size).double() for size in ink.shape[1:])
    down = y[None, :, None] - (share.sum(2) @ y)[:, None, None]
    aside = x[None, None, :] - (share.sum(1) @ x)[:, None, None]
    height = (share * down**2).sum((1, 2))
    lean = -(share * down * aside).sum((1, 2))
    return torch.where(height > 0, lean / height.clamp_min(1e-12), 0.0)


def _drawn(found: Digits, n: int, seed: int, what: str) -> Digits:
    if not isinstance(n, int) or not 1 <= n <= len(found):
        raise InputError(f"n={n!r} images cannot be drawn without repetition: there are {len(found)} {what}")
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"a seed is a number from 0 on, got {seed!r}")
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:n]]


def concept_set(name: str, value: str | int, n: int = 60, seed: int = 0, split: str = "train") -> Digits:
    """Images that show one value of a concept, drawn without repetition.

    Args:
        name: one of `CONCEPTS`.
        value: its value, name or number.
        n: number of images.
        seed: of the draw.
        split: "train", "validation" or "test".

    Raises:
        UnknownNameError: there is no such concept, value or part.
        InputError: there are not so many.
    """
    value_index(CONCEPTS, name, value)
    return _drawn(load(split).where(**{name: value}), n, seed, f"with {name}={value!r} in {split}")


def random_set(n: int = 60, seed: int = 0, split: str = "train") -> Digits:
    """Images of any kind, drawn without repetition, to hold against `concept_set`.

    Args:
        n: number of images.
        seed: of the draw.
        split: "train", "validation" or "test".

    Raises:
        UnknownNameError: there is no such part.
        InputError: there are not so many.
    """
    return _drawn(load(split), n, seed, f"in {split}")
