"""Plain remedies for a backdoor, to hold others against: training on clean images, pruning what these do not use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError, SiteError, unknown
from actinium.core.progress import shown
from actinium.guard.audit.backdoors.backdoor_metrics import clean_accuracy
from actinium.guard.audit.backdoors.suspect import Suspect

__all__ = ["Pruned", "fine_prune", "fine_tune"]


def fine_tune(
    suspect: Suspect,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int = 10,
    batch_size: int = 64,
    rate: float = 1e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
    progress: bool = False,
) -> Suspect:
    """Train a copy of the network on clean images and their classes.

    For a dual encoder the scores are those of the bank, so that an image is drawn to its class's text; the texts stay.

    Args:
        suspect: the model.
        images: clean images (n, channel, height, width).
        labels: their classes (n,).
        epochs, batch_size, rate, weight_decay: of AdamW.
        seed: of the order of the images.
        progress: show a progress bar.

    Returns:
        The suspect around the trained copy, in evaluation mode.

    Raises:
        InputError: images, labels or settings cannot be used.
    """
    images = suspect.check_images(images)
    labels = suspect.check_labels(labels, images)
    if min(epochs, batch_size) < 1 or not rate > 0:
        raise InputError(f"epochs, batch size and rate are positive, not {epochs}, {batch_size} and {rate}")
    new = suspect.copy()
    # Batch norms keep their statistics, so that this differs from other remedies in the loss alone.
    new.module.eval()
    optimiser = torch.optim.AdamW(new.module.parameters(), lr=rate, weight_decay=weight_decay)
    random = torch.Generator().manual_seed(seed)
    for _ in shown(range(epochs), "fine-tuning", progress):
        for rows in torch.randperm(len(images), generator=random).to(images.device).split(batch_size):  # type: ignore[no-untyped-call]
            functional.cross_entropy(new.read(images[rows])[1], labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
    return new


@dataclass(frozen=True, eq=False)
class Pruned:
    """What `fine_prune` made.

    Args:
        suspect: around the pruned copy.
        order: (unit,) int64, the units from the one that clean images use least.
        accuracy: (unit + 1,) clean accuracy with the first 0, 1, ... units of that order pruned, NaN where not tried.
        pruned: number of units that are pruned.
    """

    suspect: Suspect
    order: Tensor
    accuracy: Tensor
    pruned: int


def fine_prune(
    suspect: Suspect,
    images: Tensor,
    labels: Tensor,
    layer: str,
    *,
    site: str | None = None,
    loss: float = 0.04,
    epochs: int = 0,
    rate: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
) -> Pruned:
    """Silence the units that clean images use least, as long as clean accuracy lasts, and train the rest.

    Units are pruned in the order of their mean activation over clean images. Pruning stops before clean accuracy falls
    by more than `loss`; at least one unit stays.

    Args:
        suspect: the model.
        images: clean images (n, channel, height, width).
        labels: their classes (n,).
        layer: path of a linear or convolutional layer whose outputs are the units; their weights and biases become 0.
        site: where the activation of the units is read, units first (maps) or last (tokens); by default the positive
            part of the layer's output, which is what a ReLU behind it lets through.
        loss: largest loss of clean accuracy, as a share of the images.
        epochs: of `fine_tune` afterwards, 0 for none.
        rate, seed: of `fine_tune`; pruned units may come back in it.
        progress: show progress bars.

    Raises:
        InputError: images, labels or settings cannot be used, or the site does not have the layer's units.
        SiteError: there is no such layer or site.

    Source: Liu, Dolan-Gavitt and Garg, 2018, section 4.
    """
    images = suspect.check_images(images)
    labels = suspect.check_labels(labels, images)
    if not 0 <= loss < 1 or epochs < 0:
        raise InputError(f"a loss of accuracy lies within 0..1 and epochs are not negative, not {loss} and {epochs}")
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d
    layers = [name for name, part in suspect.module.named_modules() if isinstance(part, kinds)]
    if layer not in layers:
        raise SiteError(unknown("linear or convolutional layer", layer, layers))
    order = _least_used(suspect, images, layer, site)
    new = suspect.copy()
    new.module.eval()
    weights = new.module.get_submodule(layer)
    start = clean_accuracy(new, images, labels)
    accuracy = torch.full((len(order) + 1,), torch.nan, dtype=torch.float64)
    accuracy[0], pruned = start, 0
    for i in shown(range(len(order) - 1), "pruning", progress):
        unit = int(order[i])
        before = {name: p.detach()[unit].clone() for name, p in weights.named_parameters(recurse=False)}
        with torch.no_grad():
            for parameter in weights.parameters(recurse=False):
                parameter[unit] = 0
        accuracy[i + 1] = clean_accuracy(new, images, labels)
        if float(accuracy[i + 1]) < start - loss:
            with torch.no_grad():
                for name, parameter in weights.named_parameters(recurse=False):
                    parameter[unit] = before[name]
            break
        pruned = i + 1
    if epochs:
        new = fine_tune(new, images, labels, epochs=epochs, rate=rate, seed=seed, progress=progress)
    return Pruned(new, order.cpu(), accuracy, pruned)


def _least_used(suspect: Suspect, images: Tensor, layer: str, site: str | None) -> Tensor:
    """Units from the smallest mean activation to the largest."""
    module: Any = suspect.module.get_submodule(layer)
    units = int(module.weight.shape[0])
    names = [found.name for found in suspect.model.sites(f"module:{layer}" if site is None else site)]
    if len(names) != 1:
        raise InputError(f"{site!r} means {len(names)} sites; one is needed")
    total, count = torch.zeros(units, dtype=torch.float64, device=images.device), 0
    with torch.no_grad():
        for part in torch.split(images, 256):
            values = suspect.activations(part, names)[0][names[0]]
            values = values.clamp_min(0) if site is None else values
            dim = 1 if values.ndim == 4 else values.ndim - 1
            if values.shape[dim] != units:
                raise InputError(f"{names[0]} has {values.shape[dim]} units, and {layer} has {units}")
            rows = values.movedim(dim, -1).reshape(-1, units)
            total, count = total + rows.double().sum(0), count + len(rows)
    return torch.argsort(total / count, stable=True)
