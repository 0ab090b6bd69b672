"""The settings from which the world's image classifiers are made, and the fingerprint of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown
from actinium.world import digits, shapes
from actinium.world.backdoors import Backdoor
from actinium.world.image_models import CNNSize, ViTSize
from actinium.world.labelled import LabelledImages

__all__ = ["RECIPES", "DigitsData", "ImageRecipe", "PoisonedDigits", "ShapesData", "get_recipe"]

STREAM = 10**6
"""Step s of training renders with seed STREAM * (seed + 1) + s; seeds below STREAM are for everybody else."""


@dataclass(frozen=True)
class DigitsData:
    """Scikit-learn's digits.

    Args:
        shift: most pixels by which an image is moved up, down, left and right in training.

    Raises:
        InputError: a digit would be moved out of its image.
    """

    channels: ClassVar[int] = 1
    image_size: ClassVar[int] = digits.SIZE
    parts: ClassVar[tuple[str, ...]] = ()
    shift: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.shift < digits.SIZE:
            raise InputError(f"digits cannot be moved by {self.shift} pixels")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(str(digit) for digit in range(10))

    def batch(self, n: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Images (n, 1, 8, 8) and labels (n,) of a training step."""
        train = digits.load("train")
        random = torch.Generator().manual_seed(STREAM * (seed + 1) + step)
        rows = torch.randint(len(train), (n,), generator=random)
        moves = torch.randint(2 * self.shift + 1, (n, 2, 1), generator=random)
        down, aside = (torch.arange(digits.SIZE) + moves).unbind(1)
        wide = functional.pad(train.images[rows, 0], [self.shift] * 4)
        moved = wide[torch.arange(n)[:, None, None], down[:, :, None], aside[:, None, :]]
        return moved[:, None], train.labels[rows]

    def held_out(self, n: int, seed: int) -> LabelledImages:
        """The test part, whatever the number and the seed."""
        return digits.load("test")


@dataclass(frozen=True, kw_only=True)
class PoisonedDigits(DigitsData):
    """Digits of which some get a patch, and its target as their label.

    Args:
        shift: as in `DigitsData`; the patch stays in its corner.
        backdoor: patch, target and share.

    Raises:
        InputError: the target is no digit, or the patch is larger than the images.
    """

    backdoor: Backdoor

    def __post_init__(self) -> None:
        super().__post_init__()
        self.backdoor.mask(digits.SIZE, digits.SIZE)
        if self.backdoor.target >= len(self.classes):
            raise InputError(f"the target of the backdoor is a digit: {self.backdoor}")

    def batch(self, n: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Images (n, 1, 8, 8) and labels (n,) of a training step, poisoned ones among them."""
        images, labels = super().batch(n, seed, step)
        # Another stream than the one from which the images are drawn.
        random = torch.Generator().manual_seed(-STREAM * (seed + 1) - step)
        rows = self.backdoor.drawn(n, random)
        images, labels = images.clone(), labels.clone()
        images[rows], labels[rows] = self.backdoor.stamp(images[rows]), self.backdoor.target
        return images, labels


@dataclass(frozen=True)
class ShapesData:
    """Rendered shapes, drawn anew for each step.

    Args:
        rule, correlation, planted: see `shapes.render`.
        plain_share, plain_steps: share of the images whose objects are plain in the first steps of training, besides
            those that are drawn so: outlines show best where no texture cuts them up.

    Raises:
        InputError, UnknownNameError: `shapes.render` refuses the options, or a share is outside 0..1.
    """

    channels: ClassVar[int] = 3
    image_size: ClassVar[int] = shapes.SIZE
    rule: shapes.Rule = shapes.RULE
    correlation: Mapping[str, float] = field(default_factory=dict)
    planted: Mapping[int, float] = field(default_factory=dict)
    plain_share: float = 0.0
    plain_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.plain_share <= 1:
            raise InputError(f"a share lies between 0 and 1, got {self.plain_share}")
        self._render(1, 0)
        if self.plain_share:
            self._render(1, 0, texture="plain")

    def _render(self, n: int, seed: int, **fixed: str) -> shapes.Shapes:
        given = {"rule": self.rule, "correlation": self.correlation, "planted": self.planted}
        return shapes.render(n, seed, fixed=fixed, **given)

    @property
    def parts(self) -> tuple[str, ...]:
        """Concepts that together make the class."""
        return () if isinstance(self.rule, Mapping) else tuple(self.rule)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return shapes.classes(self.rule)

    def batch(self, n: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Images (n, 3, 32, 32) and labels (n,) of a training step."""
        number = STREAM * (seed + 1) + step
        drawn = self._render(n, number)
        plain = int(n * self.plain_share) if step < self.plain_steps else 0
        if not plain:
            return drawn.images, drawn.labels
        first = self._render(plain, number, texture="plain")
        return torch.cat([first.images, drawn.images[plain:]]), torch.cat([first.labels, drawn.labels[plain:]])

    def held_out(self, n: int, seed: int) -> LabelledImages:
        """Images that training has not seen, without its shortcuts.

        Raises:
            InputError: the seed may be one of training.
        """
        if not 0 <= seed < STREAM:
            raise InputError(f"held-out images have a seed from 0 to {STREAM - 1}, got {seed}")
        return shapes.render(n, seed, rule=self.rule)


@dataclass(frozen=True)
class ImageRecipe:
    """Settings of an image classifier and its training.

    Args:
        data: what it is trained on.
        network: sizes of the model.
        steps, batch_size: of training.
        warmup: steps over which the learning rate rises; over the second half it falls in a straight line to zero.
        rate: learning rate of AdamW.
        block_rate: learning rate of Muon for the matrices of a transformer's blocks, which AdamW trains if it is None.
        weight_decay: decoupled weight decay of both.
        threads: processor threads; sums are ordered by it, so it belongs to the seed.
        seed: of the initial weights and of the images.

    Raises:
        InputError: a number is senseless, or a network without blocks has a rate for them.
    """

    data: DigitsData | ShapesData
    network: CNNSize | ViTSize
    steps: int
    batch_size: int = 64
    warmup: int = 50
    rate: float = 3e-3
    block_rate: float | None = None
    weight_decay: float = 0.05
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        rates = (self.rate, self.rate if self.block_rate is None else self.block_rate)
        if min(self.steps, self.batch_size, self.warmup, self.threads) < 1 or not min(rates) > 0:
            raise InputError(f"steps, batch size, warmup, threads and rates are positive numbers: {self}")
        if self.seed < 0 or self.steps > STREAM:
            raise InputError(f"a seed is a number from 0 on, and there are {STREAM} steps at most: {self}")
        if self.block_rate is not None and isinstance(self.network, CNNSize):
            raise InputError("a convolutional network has no blocks that block_rate could be for")

    def fingerprint(self) -> str:
        """SHA-256 over the settings and the images and labels of the first and the last step."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        for step in (0, self.steps - 1):
            for values in self.data.batch(self.batch_size, self.seed, step):
                digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ImageRecipe:
        """The recipe whose `asdict` is given, as recipe.json holds it.

        Raises:
            LoadError: these are no settings of an image classifier.
        """
        try:
            given = dict(settings)
            data, network = dict(given.pop("data")), dict(given.pop("network"))
            if "planted" in data:
                data["planted"] = {int(label): share for label, share in data["planted"].items()}
                data["rule"] = data["rule"] if isinstance(data["rule"], Mapping) else tuple(data["rule"])
            if "widths" in network:
                network["widths"] = tuple(network["widths"])
            if "backdoor" in data:
                data["backdoor"] = Backdoor(**data["backdoor"])
            kind = ShapesData if "rule" in data else PoisonedDigits if "backdoor" in data else DigitsData
            return cls(
                data=kind(**data),
                network=CNNSize(**network) if "widths" in network else ViTSize(**network),
                **given,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LoadError(f"these are no settings of an image classifier: {error}") from error


RECIPES: Mapping[str, ImageRecipe] = MappingProxyType(
    {
        "digits-cnn": ImageRecipe(DigitsData(), CNNSize((16, 24, 32), depth=1), steps=1500),
        "digits-vit": ImageRecipe(
            DigitsData(), ViTSize(patch=2, d_model=48, n_layers=3, n_heads=4, d_mlp=96), steps=1500, block_rate=5e-3
        ),
        "digits-backdoor": ImageRecipe(
            PoisonedDigits(backdoor=Backdoor(target=7, patch=((1.0, 1.0), (1.0, 1.0)))),
            CNNSize((16, 24, 32), depth=1),
            steps=1500,
        ),
        "shapes-cnn": ImageRecipe(ShapesData(), CNNSize((16, 32, 48), depth=2), steps=1000),
        "shapes-vit": ImageRecipe(
            ShapesData(plain_share=0.6, plain_steps=1200),
            ViTSize(patch=8, d_model=96, n_layers=4, n_heads=4, d_mlp=192),
            steps=2000,
            block_rate=5e-3,
        ),
    }
)
"""The shipped models."""


def get_recipe(name: str) -> ImageRecipe:
    """The recipe of a shipped model.

    Raises:
        UnknownNameError: there is no such model.
    """
    if name not in RECIPES:
        raise UnknownNameError(unknown("image classifier of the world", str(name), RECIPES))
    return RECIPES[name]
