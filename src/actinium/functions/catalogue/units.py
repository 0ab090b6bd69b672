"""Trained units that have more to them than a formula: Padé units, polynomial compositions, matrix activations."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from actinium.functions.layers.matrix_activations import (
    BandedMatrixActivation,
    DiagonalMatrixActivation,
    TridiagonalMatrixActivation,
)
from actinium.functions.registry import row
from actinium.functions.units.pade_units import PAU, RandomizedPAU
from actinium.functions.units.polynomial_composition import PolyNorm

__all__ = ["FAMILY", "ROWS"]

FAMILY = "rational, polynomial and matrix units"
LEARNT = {"kind": "trainable"}


def _banded(made: type[DiagonalMatrixActivation | TridiagonalMatrixActivation]) -> Callable[..., nn.Module]:
    """A factory with the keywords of `get`: one set of factors, or one for each of num_parameters units."""

    def make(
        breakpoints: Tensor | int = 20,
        lo: float = -1.0,
        hi: float = 1.0,
        init: str = "relu",
        num_parameters: int | None = None,
        channel_dim: int = 1,
    ) -> nn.Module:
        share = "layer" if num_parameters is None else "neuron"
        found: BandedMatrixActivation = made(num_parameters, breakpoints, lo, hi, share, channel_dim, init)
        return found

    return make


ROWS = (
    row(
        "PAU", r"\frac{\sum_{j\le m}a_jx^j}{1+\sum_{k\le n}|b_k||x|^k}", None, "Molina 2020", module=PAU, **LEARNT,
        aliases=("Padé activation unit", "Pade activation unit"),
        note="Options: init (what it starts near), m, n, version of the denominator, noise.",
    ),
    row(
        "RPAU", r"\frac{\sum_{j\le m}a_jx^j}{1+|\sum_{k\le n}b_kx^k|}", None, "Molina 2020", module=RandomizedPAU,
        **LEARNT, aliases=("randomised PAU", "randomized PAU"),
        note="Coefficients are multiplied by 1 + U(-0.1, 0.1) while training. Options: init, m, n, noise.",
    ),
    row(
        "PolyNorm", r"a_0+\sum_{i\le r}a_i\frac{x^i}{\sqrt{\mathrm{mean}(x^{2i})+\epsilon}}", None, "Zhuo 2025",
        module=PolyNorm, **LEARNT, arity="vector", note="Options: order, eps, dim (of the features), recompute.",
    ),
    row(
        "Diagonal TMAF", r"t_j y\text{ for }y\in(s_{j-1},s_j]", None, "Liu 2021",
        module=_banded(DiagonalMatrixActivation), **LEARNT, aliases=("TMAF",),
        note="Options: breakpoints, lo, hi, init. Starts as ReLU; jumps at break points other than 0 once trained.",
    ),
    row(
        "Tri-diagonal TMAF", r"t_i(y_i)y_i+u_i(y_{i+1})y_{i+1}+v_i(y_{i-1})y_{i-1}", None, "Liu 2021",
        module=_banded(TridiagonalMatrixActivation), **LEARNT, arity="channels",
        note="Options: breakpoints, lo, hi, init. Starts as ReLU. Neighbours are those in channel_dim.",
    ),
)  # fmt: skip
