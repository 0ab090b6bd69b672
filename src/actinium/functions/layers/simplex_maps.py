"""Maps from scores to sparse probabilities: sparsemax and alpha-entmax."""

from __future__ import annotations

import torch
from torch import Tensor

from actinium.functions.argument_bounds import tensor_like

__all__ = ["entmax", "sparsemax"]

HALVINGS = 60


def sparsemax(z: Tensor, dim: int = -1) -> Tensor:
    """The point of the probability simplex that is nearest to z.

    Args:
        z: scores of any shape.
        dim: dimension of the probabilities.

    Source: Martins and Astudillo, 2016, arXiv 1602.02068, algorithm 1.
    """
    z = z - z.detach().amax(dim, keepdim=True)
    ordered = z.sort(dim=dim, descending=True).values
    shape = [1] * z.ndim
    shape[dim] = -1
    count = torch.arange(1, z.shape[dim] + 1, dtype=z.dtype, device=z.device).view(shape)
    total = ordered.cumsum(dim)
    size = (1 + count * ordered > total).sum(dim, keepdim=True)
    threshold = (total.gather(dim, size - 1) - 1) / size
    return torch.relu(z - threshold)


def entmax(z: Tensor, alpha: Tensor | float = 1.5, dim: int = -1) -> Tensor:
    """The probabilities p that maximise p.z plus Tsallis' alpha-entropy: softmax at 1, sparsemax at 2.

    Args:
        z: scores of any shape.
        alpha: one or more, a number or a tensor of one element.
        dim: dimension of the probabilities.

    Source: Peters, Niculae and Martins, 2019, arXiv 1905.05702, section 3; its threshold by bisection.
    """
    if float(alpha.detach() if isinstance(alpha, Tensor) else alpha) == 1:
        return torch.softmax(z, dim)
    if not isinstance(alpha, Tensor) and alpha == 2:
        return sparsemax(z, dim)
    alpha = tensor_like(alpha, z)
    scaled = (alpha - 1) * (z - z.detach().amax(dim, keepdim=True))
    with torch.no_grad():
        # The largest score has a probability between 1/n and 1.
        low = torch.full_like(scaled.select(dim, 0).unsqueeze(dim), -1.0)
        high = low * z.shape[dim] ** (1 - alpha)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = _raised(scaled - middle, alpha).sum(dim, keepdim=True) >= 1
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    # One Newton step changes the threshold by next to nothing, and carries its gradients with respect to z and alpha.
    excess = _raised(scaled - low, alpha).sum(dim, keepdim=True) - 1
    with torch.no_grad():
        steepness = _raised(scaled - low, alpha, less=1).sum(dim, keepdim=True) / (alpha - 1)
    p = _raised(scaled - (low + excess / steepness), alpha)
    return p / p.sum(dim, keepdim=True).detach()


def _raised(u: Tensor, alpha: Tensor, less: int = 0) -> Tensor:
    """max(u, 0)^(1 / (alpha - 1) - less), 0 where u is not positive."""
    tiny = torch.finfo(u.dtype).tiny
    return torch.where(u > 0, u.clamp(min=tiny) ** (1 / (alpha - 1) - less), 0.0)
