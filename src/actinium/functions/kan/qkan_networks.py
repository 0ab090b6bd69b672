"""Networks of QKAN layers, their hybrid with linear maps, and the growth of their circuits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.kan.daruan import DARUAN, QKANLayer
from actinium.functions.kan.kan_network import KANNetwork

__all__ = ["HQKAN", "QKAN", "layer_extension"]

M = TypeVar("M", bound=nn.Module)


class QKAN(KANNetwork):
    """A Kolmogorov-Arnold network whose functions are circuits of one qubit.

    Args:
        sizes: number of inputs, and of outputs of each layer.
        reps: repetitions of the circuits.
        head: number of outputs of a linear map behind the last layer; none if not given.
        options: further arguments of `QKANLayer`.

    Raises:
        InputError: a size or an option is wrong.

    Source: Jiang et al., 2025, arXiv 2509.14026.
    """

    def __init__(self, sizes: Sequence[int], reps: int = 3, head: int | None = None, **options: Any) -> None:
        super().__init__(sizes, "daruan", reps, head, **options)


class HQKAN(nn.Module):
    """Linear map to few nodes, QKAN among them, linear map back: in the place of an MLP, such as that of a transformer.

    Args:
        in_dim: number of inputs.
        hidden: number of nodes of the QKAN.
        out_dim: number of outputs; as many as inputs if not given.
        depth: layers of the QKAN.
        reps: repetitions of the circuits.
        options: further arguments of `QKANLayer`.

    Raises:
        InputError: a size or an option is wrong.

    Source: Jiang et al., 2025, arXiv 2509.14026.
    """

    def __init__(
        self, in_dim: int, hidden: int, out_dim: int | None = None, depth: int = 1, reps: int = 3, **options: Any
    ) -> None:
        super().__init__()
        if min(in_dim, hidden, depth) < 1 or (out_dim is not None and out_dim < 1):
            raise InputError(f"sizes and depth are 1 or more, got {in_dim}, {hidden}, {out_dim} and {depth}")
        self.down = nn.Linear(in_dim, hidden)
        self.kan = QKAN([hidden] * (depth + 1), reps, **options)
        self.up = nn.Linear(hidden, in_dim if out_dim is None else out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., out) at x (..., in)."""
        return self.up(self.kan(self.down(x)))


def layer_extension(module: M, reps: int) -> M:
    """A copy of a module whose circuits all have more repetitions, and which computes the same.

    The new angles are 0 and the new weights of the input 1, so that training goes on from where it was, with optimisers
    that are made again.

    Args:
        module: a DARUAN, a QKANLayer, or what holds some.
        reps: repetitions of all of them.

    Raises:
        InputError: the module holds no circuit, some has as many repetitions already, or an ansatz is not pz or rpz.

    Source: Jiang et al., 2025, arXiv 2509.14026 (layer extension).
    """
    out = copy.deepcopy(module)
    circuits = [part for part in out.modules() if isinstance(part, DARUAN | QKANLayer)]
    if not circuits:
        raise InputError(f"{type(module).__name__} holds no DARUAN and no QKANLayer")
    for part in circuits:
        part.extend(reps)
    return out
