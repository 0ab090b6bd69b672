"""Take a backdoor out: train until a trigger no longer moves the neurons that it moved most, and embeddings stay."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.progress import shown
from actinium.guard.audit.backdoors.suspect import Suspect
from actinium.guard.audit.backdoors.trigger_inversion import InvertedTrigger

__all__ = ["Tuned", "activation_tune", "critical_neurons", "layer_impacts", "split_in_two"]


@dataclass(frozen=True, eq=False)
class Tuned:
    """What `activation_tune` made.

    Args:
        suspect: around the tuned copy of the network; the examined one is as it was.
        impacts: by site, how much the trigger moves it in the examined network.
        neurons: by chosen site, a mask (...) bool of the activations of one input that were aligned.
        losses: (epoch, 2): distance of the chosen activations, and of the embeddings to those before.
        epoch: the epoch whose weights were kept, the one of the lowest total loss.
    """

    suspect: Suspect
    impacts: dict[str, float]
    neurons: dict[str, Tensor]
    losses: Tensor
    epoch: int

    @property
    def module(self) -> nn.Module:
        """The tuned network."""
        return self.suspect.module


def _means(suspect: Suspect, images: Tensor, sites: Sequence[str], batch_size: int = 256) -> dict[str, Tensor]:
    """Mean activation (...) of each site over images, without gradient."""
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        for part in images.split(batch_size):
            found, _, _ = suspect.activations(part, sites)
            for site, values in found.items():
                sums[site] = sums.get(site, 0) + values.double().sum(0)
    return {site: (total / len(images)).float() for site, total in sums.items()}


def layer_impacts(
    suspect: Suspect, images: Tensor, changed: Tensor, sites: Sequence[str] | None = None
) -> dict[str, float]:
    """How much a change of the images moves the mean activation of each site, relative to its length.

    Args:
        suspect: the model.
        images, changed: images (n, channel, height, width) without and with the trigger.
        sites: names of sites; by default the suspect's.

    Returns:
        By site ||mean a(x) - mean a(x~)|| / ||mean a(x)||, whose scale does not depend on that of the activations.

    Raises:
        InputError: the images do not fit each other, or a site's mean activation is zero.
        SiteError: there is no such site.

    Source: Sun et al., 2025, section on activation tuning, layer selection.
    """
    images, changed = suspect.check_images(images), suspect.check_images(changed)
    if images.shape != changed.shape:
        raise InputError(f"images and changed images have one shape, not {tuple(images.shape)}, {tuple(changed.shape)}")
    names = _names(suspect, sites)
    clean, moved = _means(suspect, images, names), _means(suspect, changed, names)
    return {site: _relative(clean[site] - moved[site], clean[site], site) for site in names}


def _names(suspect: Suspect, sites: Sequence[str] | None) -> list[str]:
    if sites is None:
        return suspect.sites
    return [
        site.name for pattern in ([sites] if isinstance(sites, str) else sites) for site in suspect.model.sites(pattern)
    ]


def _relative(difference: Tensor, clean: Tensor, site: str) -> float:
    length = float(clean.norm())
    if length == 0:
        raise InputError(f"the mean activation of {site} is zero: nothing can be said relative to it")
    return float(difference.norm()) / length


def split_in_two(values: Tensor) -> float:
    """The threshold that cuts numbers into two groups with the least squares within them.

    This is what k-means with two clusters looks for; on a line every cut of the sorted numbers can be tried.

    Args:
        values: numbers, two different ones at least.

    Returns:
        The middle between the means of the groups, which lies between the groups: the upper one is above it.

    Raises:
        InputError: all numbers are equal, or one is not finite.
    """
    line = values.detach().double().flatten().sort().values
    if not len(line) or not bool(torch.isfinite(line).all()) or bool(line[0] == line[-1]):
        raise InputError("numbers can be split in two where they are finite and not all equal")
    n = len(line)
    left = torch.arange(1, n, device=line.device).double()
    # Squares within both groups are those of all less the squares between: the largest of these wins.
    sums = line.cumsum(0)[:-1]
    between = sums**2 / left + (line.sum() - sums) ** 2 / (n - left)
    between[line[1:] == line[:-1]] = -torch.inf
    cut = int(between.argmax()) + 1
    return float((line[:cut].mean() + line[cut:].mean()) / 2)


def critical_neurons(difference: Tensor) -> Tensor:
    """The activations that a trigger moves most: the upper of two clusters of the absolute differences.

    Args:
        difference: mean activation without and with the trigger, one minus the other (...).

    Returns:
        (...) bool.

    Raises:
        InputError: all differences are equal.

    Source: Sun et al., 2025, section on activation tuning, neurons by k-means with k = 2.
    """
    moved = difference.abs()
    return moved.double() > split_in_two(moved)


def activation_tune(
    suspect: Suspect,
    images: Tensor,
    trigger: InvertedTrigger,
    *,
    sites: Sequence[str] | None = None,
    n_sites: int = 3,
    align: float = 1.0,
    keep: float = 0.5,
    epochs: int = 200,
    batch_size: int | None = None,
    rate: float = 2e-6,
    weight_decay: float = 1e-4,
    lowest_rate: float = 1e-7,
    half_period: int = 100,
    clip: float = 1.0,
    train_norms: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Tuned:
    """Train a copy of the network on clean images so that the trigger no longer moves what it moved most.

    The loss is align * sum_l ||M_l (a_l(x) - a_l(x~))|| / ||M_l a_l(x)|| + keep * ||u(x) - u_0(x)||_F: means a_l over
    the batch at the sites of the largest impact, masks M_l of their critical neurons, unit embeddings u, and u_0 of the
    network before. AdamW with a rate that swings on a cosine between `rate` and `lowest_rate`.

    Args:
        suspect: the model.
        images: clean images (n, channel, height, width), no labels needed.
        trigger: from `invert_trigger`.
        sites: candidates; by default the suspect's.
        n_sites: how many of them are aligned, those of the largest impact.
        align, keep: weights of the two parts; `keep` weighs a norm over the batch, which grows with its size.
        epochs: passes over the images.
        batch_size: images in a step; all at once by default, as the authors do with one batch.
        rate, weight_decay, lowest_rate, half_period: of AdamW; after `half_period` epochs the rate is lowest and then
            climbs again. The authors' rate is for a CLIP of 10^8 parameters: small networks need more.
        clip: largest norm of the gradient.
        train_norms: put the network into training mode, where batch norms take statistics of clean and changed images
            together, as the authors' program does.
        seed: of the order of the images.
        progress: show a progress bar.

    Raises:
        InputError: images or settings cannot be used, or the trigger moves nothing.
        SiteError: there is no such site.

    Source: Sun et al., 2025, section on activation tuning.
    """
    images = suspect.check_images(images)
    size = len(images) if batch_size is None else batch_size
    if min(epochs, size, n_sites, half_period) < 1 or not 0 < lowest_rate <= rate or not min(align, keep) >= 0:
        raise InputError("epochs, batch size, sites and rates are positive, lowest_rate <= rate, weights not negative")
    changed = trigger.apply(images)
    names = _names(suspect, sites)
    clean, moved = _means(suspect, images, names), _means(suspect, changed, names)
    impacts = {site: _relative(clean[site] - moved[site], clean[site], site) for site in names}
    if max(impacts.values()) == 0:
        raise InputError("the trigger changes no activation: its mask is zero, or it shows what is there")
    chosen = sorted(names, key=lambda site: -impacts[site])[:n_sites]
    chosen = [site for site in chosen if impacts[site] > 0]
    neurons = {site: critical_neurons(clean[site] - moved[site]) for site in chosen}
    before = suspect.embed(images)
    new = suspect.copy()
    new.module.train(train_norms)
    parameters = [p for p in new.module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay)
    swing = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, half_period, eta_min=lowest_rate)
    random = torch.Generator().manual_seed(seed)
    kept, losses = _Lowest(new.module), []
    for epoch in shown(range(epochs), "activation tuning", progress):
        total = torch.zeros(2, dtype=torch.float64)
        for rows in torch.randperm(len(images), generator=random).to(images.device).split(size):
            parts = torch.stack(_losses(new, images[rows], changed[rows], before[rows], neurons))
            total += parts.detach().double().cpu() * len(rows) / len(images)
            if len(rows) == len(images):
                # The weights that gave this loss are those before the step.
                kept.offer(float(align * total[0] + keep * total[1]), epoch)
            (align * parts[0] + keep * parts[1]).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        swing.step()
        losses.append(total)
        if size < len(images):
            kept.offer(float(align * total[0] + keep * total[1]), epoch)
    new.module.load_state_dict(kept.state)
    new.module.eval()
    return Tuned(new, impacts, {k: v.cpu() for k, v in neurons.items()}, torch.stack(losses), kept.epoch)


class _Lowest:
    """The weights of the lowest loss so far."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.loss, self.epoch = module, float("inf"), 0
        self.state = copy.deepcopy(module.state_dict())

    def offer(self, loss: float, epoch: int) -> None:
        if loss < self.loss:
            self.loss, self.epoch, self.state = loss, epoch, copy.deepcopy(self.module.state_dict())


def _losses(
    new: Suspect, images: Tensor, changed: Tensor, before: Tensor, neurons: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Distance of the aligned activations over all sites, and of the embeddings to those before."""
    clean, embeddings, _ = new.activations(images, list(neurons))
    moved, _, _ = new.activations(changed, list(neurons))
    apart = torch.zeros((), device=images.device)
    for site, where in neurons.items():
        a, b = (values[site].mean(0)[where] for values in (clean, moved))
        # The norm of a zero vector has the gradient 0 here, where the square root of a sum would have none.
        length = torch.linalg.vector_norm(a).clamp_min(torch.finfo(a.dtype).tiny)
        apart = apart + torch.linalg.vector_norm(a - b) / length
    return apart, torch.linalg.vector_norm(embeddings - before)
