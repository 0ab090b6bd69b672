"""Which latents are dead, and what gives them a new start."""

from __future__ import annotations

import torch
from torch import Tensor

from actinium.features.dictionaries.code import Code
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.normalisation import normalised

__all__ = ["Silence", "fired_in", "resample"]

ENCODER = 0.2
"""Norm of a new latent's encoder weights, as a share of the mean norm of the living."""


class Silence:
    """For each latent the number of rows since it was last active.

    Args:
        d_sae: number of latents.
        device: where to count.
    """

    def __init__(self, d_sae: int, device: torch.device) -> None:
        self.rows = torch.zeros(d_sae, dtype=torch.long, device=device)
        self.window = torch.zeros(d_sae, dtype=torch.long, device=device)

    def update(self, fired: Tensor, n: int) -> None:
        """After a batch of n rows, at `fired` (d_sae,) of which each latent was active."""
        self.rows += n
        self.rows[fired > 0] = 0
        self.window += fired

    def dead(self, after: int) -> Tensor:
        """(d_sae,) bool: not active for so many rows."""
        return self.rows >= after


def fired_in(latents: Code | Tensor) -> Tensor:
    """(d_sae,) rows of a batch at which each latent was active."""
    if isinstance(latents, Code):
        return torch.bincount(latents.latents[latents.values.detach() > 0], minlength=latents.d_sae)
    return (latents.detach() > 0).sum(0)


@torch.no_grad()
def resample(
    dictionary: Dictionary, x: Tensor, y: Tensor | None, dead: Tensor, optimizer: torch.optim.Optimizer, seed: int
) -> int:
    """Point dead latents at rows that are reconstructed badly.

    Rows are drawn without replacement, with probability in proportion to the square of their loss. The decoder row
    becomes the row's own direction (less the decoder's bias), the encoder the same with a fifth of the mean norm of the
    living, the bias 0, and the moments of the optimiser for these weights are forgotten.

    Args:
        dictionary: with an encoder from the space of the decoder.
        x, y: rows (n, d_in) and what they reconstruct, x if None.
        dead: (d_sae,) bool.
        optimizer: of the dictionary.
        seed: of the draw.

    Returns:
        Number of latents resampled: no more than there are rows.

    Source: Bricken et al., 2023, appendix.
    """
    normal, _ = normalised(x, dictionary.normalize, dictionary.scale)
    target = normal if y is None else y
    latents, _, _ = dictionary.active(normal)
    loss = (dictionary.reconstruct(latents) - target).square().sum(1).double()
    # Rows that are reconstructed already have no chance to be drawn.
    count = min(int(dead.sum()), int((loss > 0).sum()))
    if not count:
        return 0
    random = torch.Generator().manual_seed(seed)
    rows = torch.multinomial((loss.square() / loss.square().sum()).cpu(), count, generator=random).to(x.device)
    chosen = dead.nonzero().flatten()[:count]
    ways = target[rows] - dictionary.b_dec
    ways = ways / ways.norm(dim=1, keepdim=True).clamp_min(1e-12)
    inputs = dictionary._shifted(normal[rows])
    inputs = inputs / inputs.norm(dim=1, keepdim=True).clamp_min(1e-12)
    living = dictionary.W_enc[:, ~dead]
    size = ENCODER * float(living.norm(dim=0).mean()) if living.numel() else 1.0
    dictionary.W_dec[chosen] = ways
    dictionary.W_enc[:, chosen] = size * inputs.T
    own = [(dictionary.W_dec, 0), (dictionary.W_enc, 1)]
    own += [(p, 0) for p in (dictionary.b_enc, *dictionary.rule.parameters()) if p is not None]
    if dictionary.b_enc is not None:
        dictionary.b_enc[chosen] = 0.0
    for parameter, axis in own:
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.index_fill_(axis, chosen, 0.0)
    return count
