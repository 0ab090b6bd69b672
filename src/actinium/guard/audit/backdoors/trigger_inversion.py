"""The trigger of a backdoor, found again from the model: a mask and what it shows, for a given class."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.progress import shown
from actinium.guard.audit.backdoors.ssim import structural_similarity
from actinium.guard.audit.backdoors.suspect import Suspect

__all__ = [
    "InversionWeights",
    "InvertedTrigger",
    "anomaly_index",
    "apply_trigger",
    "invert_every_class",
    "invert_trigger",
]

MAD_SCALE = 1.4826
"""Makes the median absolute deviation that of a normal distribution's standard deviation."""
PATIENCE, FASTER = 5, 1.5
"""Epochs after which the weight of the mask changes, and by what; Wang et al. 2019."""


@dataclass(frozen=True)
class InversionWeights:
    """Weights of the parts of an inversion's loss, as Sun et al. 2025 set them.

    Args:
        target: of the cross-entropy of the target's class.
        embedding: of the distance to embeddings of real images of the target's class.
        looks: of 1 - SSIM with the clean images.
        mask: of the sum of the mask.
    """

    target: float = 5.0
    embedding: float = 0.5
    looks: float = 1.0
    mask: float = 0.01

    def __post_init__(self) -> None:
        values = (self.target, self.embedding, self.looks, self.mask)
        if not all(math.isfinite(v) and v >= 0 for v in values) or self.target == 0:
            raise InputError(f"weights are finite, not negative, and that of the target is positive: {self}")


@dataclass(frozen=True, eq=False)
class InvertedTrigger:
    """What `invert_trigger` found.

    Args:
        target: the class.
        mask: (1 or channel, height, width) in 0..1, how much of the trigger shows.
        trigger: (channel, height, width), in pixels of the images.
        success: share of the images of other classes that it takes to the target.
        losses: (epoch,) mean loss.
    """

    target: int
    mask: Tensor
    trigger: Tensor
    success: float
    losses: Tensor

    @property
    def mask_norm(self) -> float:
        """Sum of the mask, averaged over its channels: pixels."""
        return float(self.mask.mean(0).sum())

    def apply(self, images: Tensor) -> Tensor:
        """Images with the trigger."""
        return apply_trigger(images, self.mask.to(images), self.trigger.to(images))


def apply_trigger(images: Tensor, mask: Tensor, trigger: Tensor) -> Tensor:
    """mask * trigger + (1 - mask) * images.

    Args:
        images: (n, channel, height, width).
        mask: (1 or channel, height, width) in 0..1.
        trigger: (channel, height, width).
    """
    return mask * trigger + (1 - mask) * images


def _others(suspect: Suspect, images: Tensor, target: int) -> Tensor:
    others = images[suspect.predict(images) != target]
    if not len(others):
        raise InputError(f"the model takes all images for class {target} as they are; pass images of other classes")
    return others


def _real(suspect: Suspect, target_images: Tensor | None, target: int, weights: InversionWeights) -> Tensor | None:
    """Embeddings of real images of the target's class, None where they do not count."""
    if weights.embedding == 0:
        return None
    if target_images is None or len(target_images) < 2:
        warnings.warn(
            f"fewer than two images of class {target} are there: the distance to their embeddings is left out",
            ActiniumWarning,
            stacklevel=3,
        )
        return None
    return suspect.embed(suspect.check_images(target_images))


def invert_trigger(
    suspect: Suspect,
    images: Tensor,
    target: int,
    *,
    target_images: Tensor | None = None,
    weights: InversionWeights | None = None,
    mask_channels: int | None = None,
    mask_start: float = 1.0,
    epochs: int = 10,
    rate: float = 0.01,
    batch_size: int = 64,
    window: int = 11,
    display: bool = True,
    adapt: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> InvertedTrigger:
    """Find a mask and a trigger that take clean images to a class, with as little mask as possible.

    The loss of a batch is target * CE + embedding * ||f(x~) - f(x_t)||_F + looks * (1 - SSIM(x~, x)) + mask * |m|_1,
    with x~ = m t + (1 - m) x and unit embeddings f. Row i of a batch is held against real image i modulo their number.
    All norms are sums, so weights mean other things for other batch sizes and image sizes.

    Args:
        suspect: the model.
        images: clean images (n, channel, height, width); those that the model takes for the target are left out.
        target: number of the class.
        target_images: real images of the class, two or more; without them that part is left out, with a warning.
        weights: of the parts.
        mask_channels: 1, or the images' number of channels, as in the authors' program (default).
        mask_start: value of the mask at the start, as in the authors' program all of it.
        epochs, rate, batch_size: of Adam.
        window: of the structural similarity, in pixels.
        display: compare the looks of pixels in 0..1; False compares them as the network takes them, as the authors'
            program does.
        adapt: a share of success, such as 0.99: the weight of the mask then rises by 1.5 after five epochs in a row
            with more of it and falls by 1.5^1.5 after five with less, and the smallest mask that reached it is kept.
        seed: of the trigger at the start and the order of the images.
        progress: show a progress bar.

    Raises:
        InputError: images, class or settings cannot be used.

    Source: Sun et al., 2025, section on trigger inversion; `adapt`: Wang et al., 2019 (Neural Cleanse), section V.
    """
    weights = InversionWeights() if weights is None else weights
    images = suspect.check_images(images)
    channels = images.shape[1] if mask_channels is None else mask_channels
    if min(epochs, batch_size) < 1 or not rate > 0 or channels not in (1, images.shape[1]):
        raise InputError(f"epochs, batch size and rate are positive, a mask has 1 or {images.shape[1]} channels")
    if not 0 <= mask_start <= 1 or not (adapt is None or 0 < adapt < 1):
        raise InputError(f"a mask starts within 0..1 and success lies between 0 and 1, not {mask_start} and {adapt}")
    images = _others(suspect, images, suspect.check_target(target, images))
    real = _real(suspect, target_images, target, weights)
    low, high = suspect.low.to(images), suspect.high.to(images)
    random = torch.Generator().manual_seed(seed)
    trigger = torch.rand(images.shape[1:], generator=random).to(images).clamp(low, high).requires_grad_()
    mask = torch.full((channels, *images.shape[2:]), float(mask_start), device=images.device).requires_grad_()
    optimiser = torch.optim.Adam([mask, trigger], lr=rate)
    balance = _Balance(weights.mask, adapt)
    losses = []
    for _ in shown(range(epochs), f"trigger of class {target}", progress):
        total, hits = 0.0, 0
        for rows in torch.randperm(len(images), generator=random).split(batch_size):
            clean = images[rows.to(images.device)]
            changed = apply_trigger(clean, mask, trigger)
            embeddings, scores = suspect.read(changed)
            loss = weights.target * functional.cross_entropy(
                scores, torch.full((len(clean),), target, device=clean.device)
            )
            loss = loss + balance.weight * mask.abs().sum()
            if real is not None:
                held = real[torch.arange(len(clean), device=real.device) % len(real)]
                loss = loss + weights.embedding * torch.linalg.vector_norm(embeddings - held)
            if weights.looks:
                pair = (suspect.displayed(changed), suspect.displayed(clean)) if display else (changed, clean)
                loss = loss + weights.looks * (1 - structural_similarity(*pair, window=window).mean())
            mask.grad, trigger.grad = torch.autograd.grad(loss, [mask, trigger])
            total += float(loss.detach()) * len(clean)
            hits += int((scores.detach().argmax(1) == target).sum())
            balance.keep(mask, trigger, scores.detach().argmax(1) == target)
            optimiser.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
                trigger.copy_(trigger.clamp(low, high))
        losses.append(total / len(images))
        balance.epoch(hits / len(images))
    final, visible = balance.kept(mask, trigger)
    success = float((suspect.predict(apply_trigger(images, final, visible)) == target).double().mean())
    return InvertedTrigger(target, final.cpu(), visible.cpu(), success, torch.tensor(losses, dtype=torch.float64))


class _Balance:
    """The weight of the mask, and the smallest mask that was enough, where success decides on the weight."""

    def __init__(self, weight: float, adapt: float | None) -> None:
        self.weight, self.adapt = weight, adapt
        self.up = self.down = 0
        self.best: tuple[float, Tensor, Tensor] | None = None

    def keep(self, mask: Tensor, trigger: Tensor, right: Tensor) -> None:
        size = float(mask.detach().sum())
        if self.adapt is None or float(right.double().mean()) < self.adapt:
            return
        if self.best is None or size < self.best[0]:
            self.best = (size, mask.detach().clone(), trigger.detach().clone())

    def epoch(self, success: float) -> None:
        if self.adapt is None:
            return
        enough = success >= self.adapt
        self.up, self.down = (self.up + 1, 0) if enough else (0, self.down + 1)
        if self.up >= PATIENCE:
            self.weight, self.up = self.weight * FASTER, 0
        if self.down >= PATIENCE:
            self.weight, self.down = self.weight / FASTER**1.5, 0

    def kept(self, mask: Tensor, trigger: Tensor) -> tuple[Tensor, Tensor]:
        return self.best[1:] if self.best is not None else (mask.detach(), trigger.detach())


def invert_every_class(
    suspect: Suspect,
    images: Tensor,
    classes: Sequence[int] | None = None,
    *,
    epochs: int = 100,
    rate: float = 0.1,
    weight: float = 1e-3,
    success: float = 0.99,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> list[InvertedTrigger]:
    """Invert each class with one plain mask and the cross-entropy alone, to compare how large the masks are.

    Args:
        suspect: the model.
        images: clean images (n, channel, height, width).
        classes: numbers of the classes; all by default.
        epochs, rate, batch_size, seed: see `invert_trigger`.
        weight: of the mask at the start; success decides how it changes.
        success: share that a mask must reach.
        progress: show a progress bar for each class.

    Returns:
        One for each class; see `anomaly_index`.

    Raises:
        InputError: images, classes or settings cannot be used.

    Source: Wang et al., 2019 (Neural Cleanse), section V. Mask and trigger are clamped and not passed through a
        tanh, and the mask starts at one half.
    """
    images = suspect.check_images(images)
    numbers = range(suspect.count_classes(images)) if classes is None else classes
    weights = InversionWeights(target=1.0, embedding=0.0, looks=0.0, mask=weight)
    return [
        invert_trigger(
            suspect,
            images,
            k,
            weights=weights,
            mask_channels=1,
            mask_start=0.5,
            epochs=epochs,
            rate=rate,
            batch_size=batch_size,
            adapt=success,
            seed=seed,
            progress=progress,
        )
        for k in numbers
    ]


def anomaly_index(sizes: Sequence[float] | Tensor) -> Tensor:
    """How far each value lies below the median, in scaled median absolute deviations; above 2 it is flagged.

    Args:
        sizes: (class,) sums of masks, or other numbers of which a small one is odd.

    Returns:
        (class,) float64: (median - size) / (1.4826 MAD); positive for small ones.

    Raises:
        InputError: there are fewer than three, one is not finite, or most are equal, so that the deviation is 0.

    Source: Wang et al., 2019, section V; Hampel, 1974. Only small masks speak for a backdoor, so the sign is kept.
    """
    values = torch.as_tensor(sizes, dtype=torch.float64)
    if values.ndim != 1 or len(values) < 3 or not bool(torch.isfinite(values).all()):
        raise InputError("an anomaly index needs three finite values or more")
    middle = values.quantile(0.5)
    spread = MAD_SCALE * (values - middle).abs().quantile(0.5)
    if float(spread) == 0:
        raise InputError("half of the values or more are the median: their deviation is 0 and nothing can be said")
    return (middle - values) / spread
