"""Which class a backdoor may call for: where images go that a universal patch drives away from their class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.core.progress import shown
from actinium.guard.audit.backdoors.suspect import Suspect

__all__ = ["TargetSearch", "identify_target", "universal_patch"]

RELATIVE_FROM = 0.001
"""Share of the clean images from which on a class's increase is also given relative to it."""


@dataclass(frozen=True, eq=False)
class TargetSearch:
    """What `identify_target` found.

    Args:
        clean, patched: shares (class,) of the clean and of the patched images that go to each class.
        patch: (channel, height, width), the universal patch, in pixels of the images.
        where: (height, width) bool, the pixels that it covers.
    """

    clean: Tensor
    patched: Tensor
    patch: Tensor
    where: Tensor

    @property
    def increase(self) -> Tensor:
        """Signed increase (class,) of each share."""
        return self.patched - self.clean

    @property
    def relative(self) -> Tensor:
        """Increase over the clean share (class,); NaN where that is 0.1 % or less, or the share has not grown."""
        counted = (self.clean > RELATIVE_FROM) & (self.increase > 0)
        return torch.where(counted, self.increase / self.clean.clamp_min(RELATIVE_FROM), torch.nan)

    @property
    def ranking(self) -> list[int]:
        """Classes from the largest increase to the smallest; ties in the order of the classes."""
        return [int(k) for k in torch.argsort(-self.increase, stable=True)]

    @property
    def target(self) -> int:
        """The class of the largest increase."""
        return self.ranking[0]


def _place(height: int, width: int, area: float, margin: int | None) -> Tensor:
    """A square (height, width) bool of a share of the image in its lower right corner."""
    side = max(1, round(math.sqrt(area * height * width)))
    # 14 of 224 pixels in the authors' program.
    gap = height // 16 if margin is None else margin
    if gap < 0 or side + gap > min(height, width):
        raise InputError(f"a patch of {side} pixels with a margin of {gap} does not fit into {height} x {width}")
    found = torch.zeros(height, width, dtype=torch.bool)
    found[height - gap - side : height - gap, width - gap - side : width - gap] = True
    return found


def universal_patch(
    suspect: Suspect,
    images: Tensor,
    *,
    area: float = 0.03,
    margin: int | None = None,
    steps: int = 200,
    rate: float = 0.05,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """One patch that drives all images away from the classes that they have without it.

    Gradient ascent (Adam) on the cross-entropy of the model's own classes of the clean images, no class being aimed at.

    Args:
        suspect: the model.
        images: clean images (n, channel, height, width).
        area: share of an image that the square patch covers.
        margin: pixels between the patch and the lower right corner's edges; by default a sixteenth of the height.
        steps, rate, batch_size: of the ascent; the rate is a share of the range of a pixel.
        seed: of the first patch and the order of the images.
        progress: show a progress bar.

    Returns:
        patch (channel, height, width), of which only the covered pixels count; covered pixels (height, width) bool.

    Raises:
        InputError: the images or settings cannot be used, or the patch does not fit.

    Source: Brown et al., 2017 (adversarial patch), without a target; Sun et al., 2025, take a trained one.
    """
    images = suspect.check_images(images, 2)
    if not 0 < area < 1 or min(steps, batch_size) < 1 or not rate > 0:
        raise InputError(f"an area within 0..1, steps, batch size and a rate are needed: {area}, {steps}, {rate}")
    where = _place(*images.shape[2:], area, margin).to(images.device)
    random = torch.Generator().manual_seed(seed)
    low, high = suspect.low.to(images), suspect.high.to(images)
    own = suspect.predict(images)
    # Within 0..1 of the range of a pixel, so that a rate means the same for all channels.
    part = torch.rand(images.shape[1:], generator=random).to(images).requires_grad_()
    optimiser = torch.optim.Adam([part], lr=rate)
    for _ in shown(range(steps), "universal patch", progress):
        rows = torch.randperm(len(images), generator=random)[:batch_size].to(images.device)
        patched = torch.where(where, low + part * (high - low), images[rows])
        loss = -functional.cross_entropy(suspect.read(patched)[1], own[rows])
        (part.grad,) = torch.autograd.grad(loss, [part])
        optimiser.step()
        with torch.no_grad():
            part.clamp_(0, 1)
    return (low + part.detach() * (high - low)) * where, where


def identify_target(
    suspect: Suspect,
    images: Tensor,
    patch: tuple[Tensor, Tensor] | None = None,
    *,
    seed: int = 0,
    progress: bool = False,
) -> TargetSearch:
    """Rank the classes by how many images a universal patch drives to each.

    The largest increase is a guess, not a proof: a clean model has a largest one too, and the patch may find another
    class than the trigger's. Invert the first few and keep the one with the smallest mask (see `InverTune`).

    Args:
        suspect: the model.
        images: clean images (n, channel, height, width); classes are counted, so a hundred or more are better.
        patch: patch (channel, height, width) and covered pixels (height, width) bool, for example from
            `universal_patch` with settings of one's own; by default that function with its settings is called.
        seed: of the patch.
        progress: show a progress bar.

    Raises:
        InputError: the images cannot be used, or the patch does not fit them.

    Source: Sun et al., 2025, section on target identification (signed increase of the counts).
    """
    images = suspect.check_images(images, 2)
    k = suspect.count_classes(images)
    made, where = universal_patch(suspect, images, seed=seed, progress=progress) if patch is None else patch
    if made.shape != images.shape[1:] or where.shape != images.shape[2:] or where.dtype != torch.bool:
        raise InputError(f"patch {tuple(made.shape)} and covered pixels {tuple(where.shape)} do not fit the images")
    made, where = made.to(images), where.to(images.device)
    shares = [
        torch.bincount(suspect.predict(x), minlength=k).double().cpu() / len(images)
        for x in (images, torch.where(where, made, images))
    ]
    return TargetSearch(*shares, made.cpu(), where.cpu())
