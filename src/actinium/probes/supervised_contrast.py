"""Supervised contrast: vectors of one label are drawn together, those of others apart."""

from __future__ import annotations

import torch
from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["supervised_contrastive_loss"]


def supervised_contrastive_loss(u: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Pulls vectors of one label together and pushes those of others away.

    Args:
        u: (n, d) vectors of length 1.
        labels: (n,) of each.
        temperature: tau, above 0.

    Returns:
        The mean over the vectors that have another one of their label.

    Raises:
        InputError: the shapes do not fit, the temperature is not above 0, or no vector has another one of its label.

    Source: Khosla et al., 2020, equation 2.
    """
    if u.ndim != 2 or labels.shape != u.shape[:1] or not temperature > 0:
        raise InputError(
            f"expected (n, d) vectors, n labels and a temperature above 0, got {tuple(u.shape)}, "
            f"{tuple(labels.shape)} and {temperature}"
        )
    itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(1)
    if not bool((count > 0).any()):
        raise InputError("no vector has another one of its label")
    alike = (u @ u.T / temperature).masked_fill(itself, -torch.inf)
    logp = (alike - alike.logsumexp(1, keepdim=True)).masked_fill(~positive, 0.0)
    each = -logp.sum(1) / count.clamp_min(1)
    return each[count > 0].mean()
