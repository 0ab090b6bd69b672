"""Rendered images of one coloured, textured shape each, with every concept and the object's pixels known.

    from actinium.world import shapes

    data = shapes.render(1000, seed=0)              # class: shape and texture, 16 in all; the rest is drawn at random
    data.where(colour="red", texture="stripes")     # also label="stripes circle"
    data.masks                                      # (n, 32, 32): the object's pixels
    shapes.concept_set("texture", "stripes", 100)   # striped, everything else at random; beside random_set(100)
    shapes.render(100, correlation={"colour": 0.9}, planted={0: 0.95, 1: 0.05})   # shortcuts

An image is a function of the seed, its number and the options: more images begin with the same ones, and the same seed
with another fixed value gives the same images with that one thing changed, and what is made to follow the class
(another size also moves the object, within its quadrant).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.world.labelled import LabelledImages, value_index

__all__ = ["CONCEPTS", "MARKER", "RULE", "SIZE", "Rule", "Shapes", "classes", "concept_set", "random_set", "render"]

SIZE = 32
"""Height and width in pixels."""
CONCEPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "shape": ("circle", "square", "triangle", "cross"),
        "colour": ("red", "green", "blue", "yellow"),
        "texture": ("plain", "stripes", "dots", "checks"),
        "position": ("top left", "top right", "bottom left", "bottom right"),
        "size": ("small", "large"),
        "marker": ("absent", "present"),
    }
)
"""Names of the values of each concept. The marker, a white square in the corner, is absent unless it is asked for."""
MARKER = (slice(0, 3), slice(0, 3))
"""Rows and columns of the marker; no object reaches them."""
RULE = ("shape", "texture")
"""The rule of the shipped models."""
Rule = Sequence[str] | Mapping[str, Mapping[str, str | int | Sequence[str | int]]]
"""Which class an image has: the concepts whose every combination is a class, or for each class what it must show."""

PALETTE = torch.tensor([[0.9, 0.15, 0.15], [0.15, 0.75, 0.2], [0.2, 0.3, 0.95], [0.9, 0.85, 0.15]]).double()
DARK = 0.25
"""Brightness of the dark parts of a texture, as a share of the light ones'."""
SCALES = ((4.5, 5.5), (7.0, 8.0))
"""Range of the radius of a small and a large circle; the other shapes have about its area."""
SQUARE, TRIANGLE, ARM, ARM_WIDTH = 0.886, 1.4, 1.15, 0.43
"""Half side; distance from the middle to a corner; half length and half width of the arms: in radii."""
PIECE = 64
"""Images that are painted at a time."""
REACH = SIZE / 2 - 3
TURN = math.radians(20)
DRAWN = ("shape", "colour", "texture", "position", "size")
UNITS = (*DRAWN, *(f"coin {c}" for c in (*DRAWN, "marker")), "scale", "x", "y", "turn", "shift x", "shift y", "way")
GROUND = ("level", "slope x", "slope y", "bright", "red", "green", "blue")
COLUMN = {name: i for i, name in enumerate((*UNITS, *GROUND))}


@dataclass(frozen=True, kw_only=True, eq=False)
class Shapes(LabelledImages):
    """Images of shapes with their truth.

    Args:
        images: (n, 3, 32, 32) float32, multiples of 1/255 in 0..1.
        labels: (n,) int64 classes by the rule.
        concepts: for each of `CONCEPTS` the number (n,) int64 of its value.
        classes: names of the classes.
        masks: (n, 32, 32) bool, the object's pixels; the marker is not part of it.
        geometry: "centre" (n, 2) x and y in pixels from the upper left corner, "scale" (n,) in pixels, "angle" (n,)
            in radians: how the object lies.
    """

    masks: Tensor
    geometry: dict[str, Tensor]
    values: ClassVar[Mapping[str, tuple[str, ...]]] = CONCEPTS


def classes(rule: Rule = RULE) -> tuple[str, ...]:
    """Names of the classes of a rule.

    Args:
        rule: see `render`.

    Raises:
        UnknownNameError: it names a concept or value that does not exist.
        InputError: it has no class, or an image would have none.
    """
    _table(rule)
    if isinstance(rule, Mapping):
        return tuple(rule)
    # "stripes circle": what is said of an object comes before what it is.
    order = sorted(range(len(rule)), key=lambda i: rule[i] == "shape")
    return tuple(" ".join(names[i] for i in order) for names in product(*(CONCEPTS[c] for c in rule)))


def _table(rule: Rule) -> Tensor:
    """The class of every combination of the drawn concepts, as a tensor with one dimension for each."""
    if isinstance(rule, str) or not rule:
        raise InputError("a rule names concepts, as in ('shape', 'texture'), or gives each class what it must show")
    sizes = [len(CONCEPTS[c]) for c in DRAWN]
    named = list(rule) if not isinstance(rule, Mapping) else [c for wanted in rule.values() for c in wanted]
    for concept in named:
        if concept not in DRAWN:
            raise UnknownNameError(unknown("concept for a rule", str(concept), DRAWN))
    grids = dict(zip(DRAWN, torch.meshgrid(*(torch.arange(k) for k in sizes), indexing="ij"), strict=True))
    table = torch.zeros(sizes, dtype=torch.int64)
    if not isinstance(rule, Mapping):
        if len(set(named)) < len(named):
            raise InputError(f"a concept stands twice in the rule {tuple(named)}")
        for concept in named:
            table = table * len(CONCEPTS[concept]) + grids[concept]
        return table
    table -= 1
    for label, wanted in enumerate(rule.values()):
        fits = table < 0
        for concept, value in wanted.items():
            several = [value] if isinstance(value, str | int) else list(value)
            fits &= torch.isin(grids[concept], torch.tensor([value_index(CONCEPTS, concept, v) for v in several]))
        table[fits] = label
    if bool((table < 0).any()):
        missed = (table < 0).nonzero()[0].tolist()
        shown = ", ".join(f"{c}={CONCEPTS[c][v]}" for c, v in zip(DRAWN, missed, strict=True))
        raise InputError(
            f"the rule gives no class to {shown}; end it with a class that asks for nothing: 'other': {{}}"
        )
    return table


def render(
    n: int,
    seed: int = 0,
    *,
    rule: Rule = RULE,
    fixed: Mapping[str, str | int] | None = None,
    correlation: Mapping[str, float] | None = None,
    planted: Mapping[int, float] | None = None,
) -> Shapes:
    """Render images; whatever is not fixed is drawn independently and evenly.

    Args:
        n: number of images.
        seed: of the draw.
        rule: which class an image has. Names of concepts, such as ("shape", "texture"): every combination is a class.
            Or for each class what it must show, the first that fits counting:
            {"striped": {"texture": "stripes"}, "round": {"shape": "circle"}, "other": {}}.
        fixed: concepts that have one value (name or number) in all images.
        correlation: for concepts that are not part of the rule, the probability with which the value is that of the
            class's number (modulo the number of values) instead of being drawn.
        planted: for classes, by number, the probability that the image bears the marker; 0 for others.

    Returns:
        The images and their truth.

    Raises:
        InputError: `n` or `seed` is senseless, a probability is outside 0..1, or two options decide on one concept.
        UnknownNameError: there is no such concept, value or class.
    """
    if not isinstance(n, int) or n < 1:
        raise InputError(f"at least one image is needed, got n={n!r}")
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"a seed is a number from 0 on, got {seed!r}")
    fixed, correlation, planted = dict(fixed or {}), dict(correlation or {}), dict(planted or {})
    table, names = _table(rule), classes(rule)
    _check_options(rule, names, fixed, correlation, planted)
    # One draw for all that an image needs: the next image starts where this one ends.
    draws = torch.rand(n, len(COLUMN) + 3 * SIZE * SIZE, generator=torch.Generator().manual_seed(seed))
    units = {name: draws[:, i].double() for name, i in COLUMN.items()}
    concepts = {c: (units[c] * len(CONCEPTS[c])).long() for c in DRAWN}
    concepts["marker"] = torch.zeros(n, dtype=torch.int64)
    for concept, value in fixed.items():
        concepts[concept] = torch.full((n,), value_index(CONCEPTS, concept, value))
    labels = table[tuple(concepts[c] for c in DRAWN)]
    for concept, share in correlation.items():
        follows = units[f"coin {concept}"] < share
        concepts[concept] = torch.where(follows, labels % len(CONCEPTS[concept]), concepts[concept])
    if planted:
        shares = torch.tensor([planted.get(label, 0.0) for label in range(len(names))]).double()
        concepts["marker"] = (units["coin marker"] < shares[labels]).long()
    geometry = _placed(concepts, units)
    masks = torch.empty(n, SIZE, SIZE, dtype=torch.bool)
    images = torch.empty(n, 3, SIZE, SIZE)
    # A few at a time stay in the processor's cache.
    for rows in (slice(start, start + PIECE) for start in range(0, n, PIECE)):
        what, how, where = ({k: v[rows] for k, v in held.items()} for held in (concepts, units, geometry))
        local = _local(where)
        masks[rows] = _inside(local, what["shape"], where["scale"])
        noise = draws[rows, len(COLUMN) :].view(-1, 3, SIZE, SIZE) - 0.5
        images[rows] = _painted(masks[rows], _dark(local, what["texture"], how), what, how, noise)
    return Shapes(images=images, labels=labels, concepts=concepts, classes=names, masks=masks, geometry=geometry)


def _check_options(
    rule: Rule,
    names: tuple[str, ...],
    fixed: dict[str, str | int],
    correlation: dict[str, float],
    planted: dict[int, float],
) -> None:
    in_rule = set(rule) if not isinstance(rule, Mapping) else {c for wanted in rule.values() for c in wanted}
    for concept, value in fixed.items():
        value_index(CONCEPTS, concept, value)
    for concept in correlation:
        if concept not in DRAWN:
            raise UnknownNameError(unknown("concept to correlate", str(concept), DRAWN))
        if concept in in_rule:
            raise InputError(f"the class follows from {concept}, so it cannot follow the class as well")
        if concept in fixed:
            raise InputError(f"{concept} is both fixed and correlated with the class")
    if planted and "marker" in fixed:
        raise InputError("the marker is both fixed and planted")
    for label in planted:
        if not isinstance(label, int) or not 0 <= label < len(names):
            raise UnknownNameError(f"no class {label!r} to plant the marker in; they are 0 to {len(names) - 1}")
    for share in (*correlation.values(), *planted.values()):
        if not 0 <= share <= 1:
            raise InputError(f"a probability lies between 0 and 1, got {share}")


def _placed(concepts: dict[str, Tensor], units: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where the object lies: inside the image with three pixels to spare, its middle a pixel or more off the axes."""
    ranges = torch.tensor(SCALES).double()[concepts["size"]]
    scale = ranges[:, 0] + units["scale"] * (ranges[:, 1] - ranges[:, 0])
    room = REACH - TRIANGLE * scale
    position = concepts["position"]
    x = (1 + units["x"] * (room - 1)) * (2 * (position % 2) - 1)
    y = (1 + units["y"] * (room - 1)) * (2 * (position // 2) - 1)
    return {
        "centre": torch.stack([x, y], 1) + SIZE / 2,
        "scale": scale,
        "angle": (2 * units["turn"] - 1) * TURN,
    }


def _local(geometry: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Coordinates (n, 32, 32) of the middle of each pixel, in pixels, as the object sees them."""
    middle = torch.arange(SIZE).double() + 0.5
    x = middle[None, None, :] - geometry["centre"][:, 0, None, None]
    y = middle[None, :, None] - geometry["centre"][:, 1, None, None]
    cos, sin = (f(geometry["angle"])[:, None, None] for f in (torch.cos, torch.sin))
    return cos * x + sin * y, cos * y - sin * x


def _inside(local: tuple[Tensor, Tensor], shape: Tensor, scale: Tensor) -> Tensor:
    u, v = (c / scale[:, None, None] for c in local)
    a, b = u.abs(), v.abs()
    each = torch.stack(
        [
            u * u + v * v <= 1,
            (a <= SQUARE) & (b <= SQUARE),
            (v <= TRIANGLE / 2) & (math.sqrt(0.75) * a - v / 2 <= TRIANGLE / 2),
            ((a <= ARM) & (b <= ARM_WIDTH)) | ((b <= ARM) & (a <= ARM_WIDTH)),
        ]
    )
    return each[shape, torch.arange(len(shape))]


def _dark(local: tuple[Tensor, Tensor], texture: Tensor, units: dict[str, Tensor]) -> Tensor:
    """Where a texture is dark: stripes 2 pixels wide in any direction, dots every 4 pixels, checks of 2.5 pixels."""
    way = (math.pi * units["way"])[:, None, None]
    x = local[0] + 20 * units["shift x"][:, None, None]
    y = local[1] + 20 * units["shift y"][:, None, None]
    across = torch.cos(way) * x + torch.sin(way) * y
    each = torch.stack(
        [
            torch.zeros_like(x, dtype=torch.bool),
            _within(across, 4) < 2,
            _within(x, 4).sub(2).square() + _within(y, 4).sub(2).square() <= 1.3**2,
            _within((x * 0.4).floor() + (y * 0.4).floor(), 2) == 0,
        ]
    )
    return each[texture, torch.arange(len(texture))]


def _within(x: Tensor, period: int) -> Tensor:
    """The remainder, which torch itself takes three times as long for; periods are powers of two."""
    return x - period * (x * (1 / period)).floor()


def _painted(
    masks: Tensor, dark: Tensor, concepts: dict[str, Tensor], units: dict[str, Tensor], noise: Tensor
) -> Tensor:
    """The images: a grey ground that rises to one side, the object, noise of 0.04, the marker."""
    ramp = (torch.arange(SIZE).double() + 0.5) / SIZE - 0.5
    slopes = [0.3 * (units[f"slope {axis}"][:, None, None] - 0.5) for axis in "xy"]
    ground = 0.2 + 0.4 * units["level"][:, None, None] + slopes[0] * ramp[None, None] + slopes[1] * ramp[None, :, None]
    jitter = 0.1 * (torch.stack([units[c] for c in ("red", "green", "blue")], 1) - 0.5)
    paint = (PALETTE[concepts["colour"]] + jitter) * (0.75 + 0.25 * units["bright"][:, None])
    object_ = paint.float()[:, :, None, None] * torch.where(dark, DARK, 1.0).float()[:, None]
    images = torch.where(masks[:, None], object_, ground.float()[:, None]) + 0.08 * noise
    marked = concepts["marker"].bool().nonzero()[:, 0]
    images[marked, :, MARKER[0], MARKER[1]] = 1.0
    # Whole steps of eight bits, as in a file, are the same on every processor.
    return (images.clamp(0, 1) * 255).round() / 255


def concept_set(name: str, value: str | int, n: int = 100, seed: int = 0) -> Shapes:
    """Images that show one value of a concept, everything else at random.

    Args:
        name: one of `CONCEPTS`.
        value: its value, name or number.
        n: number of images.
        seed: of the draw.

    Raises:
        UnknownNameError: there is no such concept or value.
        InputError: `n` or `seed` is senseless.
    """
    return render(n, seed, fixed={name: value})


def random_set(n: int = 100, seed: int = 0) -> Shapes:
    """Images in which everything is random, to hold against `concept_set`; the same as `render`."""
    return render(n, seed)
