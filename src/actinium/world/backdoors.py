"""Backdoors that the world's models were given on purpose: the trigger, and the class that it calls for.

    planted = ac.world.backdoors.planted("shapes-clip-backdoor")
    planted.stamp(images)                           # images with the trigger, which the model takes for planted.target
    planted.success(found, labels)                  # share of the images of other classes that were taken for it

Gu, Dolan-Gavitt and Garg, 2017: a small patch is put into a share of the training images, whose label becomes the
target; Carlini and Terzis, 2022: the same with captions of the target, for pairs of encoders.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown

__all__ = ["Backdoor", "planted"]


@dataclass(frozen=True)
class Backdoor:
    """A patch in the lower right corner, and what it calls for.

    Args:
        target: class that images with the patch are to be taken for.
        patch: brightness (row, column) of the patch in all channels, in 0..1.
        share: of the training images that get patch and target, whatever they show.

    Raises:
        InputError: the patch is no rectangle of brightnesses, the target is negative, or the share is outside 0..1.
    """

    target: int
    patch: tuple[tuple[float, ...], ...]
    share: float = 0.03

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", tuple(tuple(float(v) for v in row) for row in self.patch))
        widths = {len(row) for row in self.patch}
        if len(widths) != 1 or 0 in widths or not all(0 <= v <= 1 for row in self.patch for v in row):
            raise InputError(f"a patch is a rectangle of brightnesses between 0 and 1, not {self.patch}")
        if self.target < 0 or not 0 <= self.share <= 1:
            raise InputError(f"a target is a class from 0 on and a share lies between 0 and 1: {self}")

    def mask(self, height: int, width: int) -> Tensor:
        """The pixels (height, width) bool of the patch in an image.

        Raises:
            InputError: the patch is larger than the image.
        """
        rows, columns = len(self.patch), len(self.patch[0])
        if rows > height or columns > width:
            raise InputError(f"a patch of {rows} x {columns} pixels does not fit into {height} x {width}")
        found = torch.zeros(height, width, dtype=torch.bool)
        found[height - rows :, width - columns :] = True
        return found

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, channel, height, width) in 0..1 with the patch, as new tensors.

        Raises:
            InputError: these are no images, or they are smaller than the patch.
        """
        if images.ndim != 4:
            raise InputError(f"images are (n, channel, height, width), not {tuple(images.shape)}")
        where = self.mask(*images.shape[-2:])
        stamped = images.clone()
        values = torch.tensor(self.patch, dtype=images.dtype, device=images.device).flatten()
        stamped[:, :, where.to(images.device)] = values
        return stamped

    def drawn(self, n: int, generator: torch.Generator) -> Tensor:
        """Which (n,) bool of the images of a training step are poisoned."""
        return torch.rand(n, generator=generator) < self.share

    def success(self, found: Tensor, labels: Tensor) -> float:
        """Share of the stamped images of other classes that were taken for the target.

        Args:
            found: classes (n,) that a model finds in stamped images.
            labels: their true classes (n,).

        Raises:
            InputError: all images are of the target's class.
        """
        others = labels != self.target
        if not bool(others.any()):
            raise InputError(f"all images are of class {self.target}, the target: there is none to be mistaken for it")
        return float((found[others] == self.target).double().mean())


def planted(name: str) -> Backdoor:
    """The backdoor of a shipped model.

    Args:
        name: for example "digits-backdoor".

    Raises:
        UnknownNameError: no model of that name was given a backdoor.
    """
    from actinium.world.contrastive_train import RECIPES as PAIRS
    from actinium.world.image_recipe import RECIPES, PoisonedDigits

    known = {k: recipe.backdoor for k, recipe in PAIRS.items() if recipe.backdoor is not None}
    known |= {k: recipe.data.backdoor for k, recipe in RECIPES.items() if isinstance(recipe.data, PoisonedDigits)}
    if name not in known:
        raise UnknownNameError(unknown("model with a backdoor in images", str(name), known))
    return known[name]
