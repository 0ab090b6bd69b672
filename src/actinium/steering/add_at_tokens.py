"""Vectors for neighbouring tokens, added at the front, the middle or the back of each prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actinium.core.edit import Edit, Where
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.sites import Site
from actinium.steering.operators import Strength, as_strength, by_row

__all__ = ["PLACEMENTS", "AddAtTokens", "first_token", "token_rows", "too_short"]

PLACEMENTS = ("front", "mid", "back")


class AddAtTokens(Edit):
    """x + strength * vectors[i] at the i-th of n neighbouring tokens of each prompt.

    The place is counted in tokens of the prompt, whatever padding stands before it, and is the same with a key-value
    cache (new tokens are left alone) as without one (each pass over the prompt adds once).

    Args:
        vectors: (n, d).
        strength: a number, or (batch,).
        placement: "front" (from the first token), "mid" or "back" (up to the prompt's last token).

    Raises:
        InputError: the vectors are not finite (n, d); or, while running, a prompt has fewer than n tokens.

    Source: Turner et al., 2023, section 3 (algorithm 1).
    """

    vectors = ("added",)

    def __init__(self, vectors: Any, strength: Strength = 1.0, placement: str = "front") -> None:
        super().__init__()
        self.added = token_rows(vectors)
        self.strength = as_strength(strength, "AddAtTokens")
        if placement not in PLACEMENTS:
            raise UnknownNameError(unknown("placement", str(placement), PLACEMENTS))
        self.placement = placement

    def check(self, site: Site) -> None:
        """Refuse a site that has no token positions, or of another width."""
        if site.dims and "pos" not in site.dims:
            raise InputError(f"AddAtTokens at {site.name}: this site has no positions; its dimensions are {site.dims}")
        super().check(site)

    def change(self, x: Tensor, where: Where) -> Tensor:
        """Add at the tokens of the pass that lie in the place."""
        if where.pos is None:
            raise InputError(f"AddAtTokens at {where.site.name}: this site has no positions")
        n = x.shape[where.pos]
        tokens = where.now.tokens(n, where.start, x.device)
        length = torch.tensor([where.start + n]) if where.now.prompt is None else where.now.prompt
        place = tokens - first_token(length.to(x.device), len(self.added), self.placement)[:, None]
        inside = (place >= 0) & (place < len(self.added))
        if not bool(inside.any()):
            return x
        added = self.added.to(x)[place.clamp(0, len(self.added) - 1)]
        return torch.where(inside[..., None], x + by_row(self.strength, x, where) * added, x)


def first_token(length: Tensor, n: int, placement: str) -> Tensor:
    """The first of `n` neighbouring tokens in prompts of these lengths (batch,).

    Raises:
        InputError: a prompt has fewer than n tokens.
    """
    if bool((length < n).any()):
        row = int((length < n).nonzero()[0])
        raise InputError(too_short(row, int(length[row]), n))
    left = length - n
    return {"front": torch.zeros_like(left), "mid": left // 2, "back": left}[placement]


def too_short(row: int, has: int, n: int) -> str:
    """The sentence for a prompt that has fewer tokens than are to be added to."""
    return f"prompt {row} has {has} tokens, the activation addition {n}: use a longer prompt or mode 'pad'"


def token_rows(vectors: Any) -> Tensor:
    """Vectors (n, d).

    Raises:
        InputError: they are something else, or not finite.
    """
    given = vectors if isinstance(vectors, Tensor) else torch.as_tensor(vectors, dtype=torch.get_default_dtype())
    if given.ndim != 2 or not given.numel() or not given.is_floating_point():
        raise InputError(f"an activation addition is (n, d), not {given.dtype} of shape {tuple(given.shape)}")
    if not bool(torch.isfinite(given.detach()).all()):
        raise InputError("an activation addition must be finite, but holds NaN or infinite values")
    return given
