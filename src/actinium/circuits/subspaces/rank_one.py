"""A rank-1 edit of a weight, and the change of the activation behind it that does the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["RankOne", "rank1_equivalent"]


@dataclass(frozen=True, eq=False)
class RankOne:
    """A rank-1 edit W' = W + written reader^T, as a weight and as an intervention on what W reads.

    Attributes:
        weight: (out, in), W'.
        written: (out,), v* - W k.
        reader: (in,), C^-1 k / (k^T C^-1 k): its product with the key is 1.
        direction: (in,), the shortest d with W d = written.
        error: |W d - written| / |written|; 0 up to rounding where the rows of W are independent.
    """

    weight: Tensor
    written: Tensor
    reader: Tensor
    direction: Tensor
    error: float

    def intervene(self, activations: Tensor) -> Tensor:
        """Activations (…, in) that W maps to what W' makes of the given ones: a + <reader, a> d."""
        a = activations.double()
        return (a + (a @ self.reader)[..., None] * self.direction).to(activations.dtype)


def rank1_equivalent(weight: Any, key: Any, value: Any, second_moment: Any = None) -> RankOne:
    """The rank-1 edit that maps a key to a value, and the intervention along one direction with the same outputs.

    With the value W u' of a key u patched within a subspace, u' = u + V V^T (w - u), the edited weight gives on u
    what the patch gives.

    Args:
        weight: W (out, in).
        key: k (in,).
        value: v* (out,).
        second_moment: C (in, in), mean of a a^T over inputs; the identity by default.

    Returns:
        The edit, float64.

    Raises:
        InputError: shapes do not fit, or the key is zero or invisible to C^-1.

    Source: Meng et al., 2022, eq. 2 (the edit); Makelov, Lange and Nanda, 2023, section 6 (the link).
    """
    w, k, v = (torch.as_tensor(t).detach().cpu().double() for t in (weight, key, value))
    if w.ndim != 2 or k.shape != w.shape[1:] or v.shape != w.shape[:1]:
        raise InputError(
            f"expected a weight (out, in), a key (in,) and a value (out,), got {tuple(w.shape)}, {tuple(k.shape)} and "
            f"{tuple(v.shape)}"
        )
    c = torch.eye(len(k), dtype=torch.float64)
    c = c if second_moment is None else torch.as_tensor(second_moment).detach().cpu().double()
    if c.shape != (len(k), len(k)):
        raise InputError(f"second_moment must be ({len(k)}, {len(k)}), got {tuple(c.shape)}")
    # A singular C has no inverse; its pseudo-inverse ignores what no input has.
    asked = torch.linalg.pinv(c, hermitian=True) @ k
    scale = float(k @ asked)
    if not scale > 1e-12 * float(k @ k) / max(float(c.diagonal().max()), 1e-12) or not float(k @ k) > 0:
        raise InputError("the key is zero, or lies where no input of second_moment has anything")
    reader = asked / scale
    written = v - w @ k
    direction = torch.linalg.pinv(w) @ written
    size = float(written.norm())
    error = float((w @ direction - written).norm()) / size if size else 0.0
    return RankOne(w + written[:, None] * reader, written, reader, direction, error)
