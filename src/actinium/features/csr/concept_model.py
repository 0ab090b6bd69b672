"""Where a concept is, learned from image-level labels: a 1x1 convolution whose pooled map says whether it is there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.progress import shown
from actinium.features.csr.images import Data, batches, feature_map

__all__ = ["fit_concept_maps", "local_concept_vectors"]


def local_concept_vectors(features: Tensor, maps: Tensor) -> Tensor:
    """Features averaged with each concept map's softmax over places.

    Args:
        features: (b, d, H, W).
        maps: concept activation maps (b, K, H, W).

    Returns:
        v (b, K, d).

    Raises:
        InputError: maps of another size.

    Source: Huy et al., 2025, local concept vectors.
    """
    if (
        features.ndim != 4
        or maps.ndim != 4
        or features.shape[0] != maps.shape[0]
        or features.shape[2:] != maps.shape[2:]
    ):
        raise InputError(f"expected (b, d, H, W) and (b, K, H, W), got {tuple(features.shape)}, {tuple(maps.shape)}")
    weights = maps.flatten(2).softmax(-1)
    return weights @ features.flatten(2).transpose(1, 2)


def fit_concept_maps(
    backbone: nn.Module,
    data: Data,
    n_concepts: int,
    *,
    train_backbone: bool = True,
    lr: float = 1e-3,
    epochs: int = 20,
    batch_size: int = 32,
    generator: torch.Generator,
    progress: bool = False,
) -> tuple[nn.Conv2d, list[float]]:
    """Train the backbone and a 1x1 convolution with the cross-entropy of each concept; changes the backbone.

    Returns:
        the convolution (d -> K), and the mean loss of each epoch.

    Raises:
        InputError: see `images.batches` and `images.feature_map`; a concept that is never present.
    """
    present = torch.zeros(n_concepts)
    first: Tensor | None = None
    for images, concepts, _ in batches(data, batch_size, n_concepts):
        present += concepts.sum(0).cpu()
        first = images if first is None else first
    if bool((present == 0).any()):
        missing = (present == 0).nonzero().flatten().tolist()
        raise InputError(f"concepts {missing} are present in no image: nothing can be learned of them")
    backbone.eval()
    with torch.no_grad():
        example = feature_map(backbone, first[:1])
    layer = nn.Conv2d(example.shape[1], n_concepts, 1).to(example)
    parameters = [*layer.parameters(), *(backbone.parameters() if train_backbone else ())]
    optimiser = torch.optim.Adam(parameters, lr=lr)
    losses = []
    for _ in shown(range(epochs), "concept maps", progress):
        backbone.train(train_backbone)
        total, count = 0.0, 0
        for images, concepts, _ in batches(data, batch_size, n_concepts, generator):
            optimiser.zero_grad()
            with torch.set_grad_enabled(train_backbone):
                features = feature_map(backbone, images)
            logits = layer(features).mean((2, 3))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, concepts.to(logits))
            loss.backward()
            optimiser.step()
            total, count = total + float(loss.detach()) * len(images), count + len(images)
        losses.append(total / count)
    backbone.eval()
    return layer.requires_grad_(False), losses
