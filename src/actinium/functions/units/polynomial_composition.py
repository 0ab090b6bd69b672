"""Polynomial compositions: PolyReLU, PolyNorm, and the two types that they are of.

mlp.act = ac.functions.PolyNorm()          # between the two matrices of a feed-forward block
unit.coefficients                          # a_0 .. a_r; a_i belongs to the i-th power
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from actinium.core.errors import InputError, unknown
from actinium.functions.units.array_units import member

__all__ = ["PolyCom", "PolyNorm", "PolyReLU"]

Function = Callable[[Tensor], Tensor]
KINDS = ("I", "II")


class PolyCom(nn.Module):
    """Type I: sum_i a_i rho(x)^i; type II: a_0 + sum_i a_i rho(x^i), i up to the order.

    The scalars a (order + 1,), one set for a layer, are trained; a_0 starts at 0 and the others at 1 / order, and a_i
    belongs to the i-th power (the authors' code stores the highest power first: `from_official`). Half precision is
    computed in float32, as cubes of numbers above 40 are beyond float16. Type I with an unbounded rho grows like a
    power: it wants normalised inputs and clipped gradients. The authors' configurations decay the scalars with the
    other weights; here that is up to the optimiser's groups.

    Args:
        rho: name of the catalogue, function or module; of type II it may act on whole rows.
        order: highest power r.
        kind: "I" or "II".
        recompute: keep no intermediate values for the backward pass but compute them again there.

    Raises:
        UnknownNameError: there is no function of that name.
        InputError: the order is below 1, or the kind is neither.

    Source: Zhuo et al., 2025.
    """

    def __init__(self, rho: str | Function, order: int = 3, kind: str = "I", *, recompute: bool = False) -> None:
        super().__init__()
        if isinstance(order, bool) or not isinstance(order, int) or order < 1:
            raise InputError(f"the order is a whole number, 1 or more, not {order!r}")
        if kind not in KINDS:
            raise InputError(unknown("type of composition", kind, list(KINDS)))
        self.rho, self.order, self.kind, self.recompute = member(rho), order, kind, recompute
        self.coefficients = nn.Parameter(torch.tensor([0.0] + [1 / order] * order))

    @classmethod
    def from_official(cls, weight: Tensor | Sequence[float], bias: Tensor | float = 0.0, **settings: Any) -> Self:
        """A unit with the coefficients of the authors' code.

        Args:
            weight: (order,), the first one of the highest power.
            bias: a_0.
            settings: of the unit, but for its order.

        Raises:
            InputError: these are not one or more finite weights and one finite bias.
        """
        w, b = (torch.as_tensor(v, dtype=torch.get_default_dtype()).detach().flatten() for v in (weight, bias))
        if not len(w) or len(b) != 1 or not bool(torch.cat([w, b]).isfinite().all()):
            raise InputError(f"official coefficients are finite weights and one bias, not {weight!r} and {bias!r}")
        unit = cls(order=len(w), **settings)
        with torch.no_grad():
            unit.coefficients.copy_(torch.cat([b, w.flip(0)]))
        return unit

    def forward(self, x: Tensor) -> Tensor:
        """The function of a tensor (..., d), in the same shape.

        Raises:
            InputError: it is no floating-point tensor.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"{type(self).__name__} takes a floating-point tensor, not {what}")
        self.check(x)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        a = self.coefficients.to(wide.dtype)
        if self.recompute and torch.is_grad_enabled():
            y = checkpoint(self.compose, wide, a, use_reentrant=False)
        else:
            y = self.compose(wide, a)
        return y.to(x.dtype)

    def check(self, x: Tensor) -> None:
        """Raises InputError for a shape that the composition cannot take."""

    def compose(self, x: Tensor, a: Tensor) -> Tensor:
        """The polynomial of x with coefficients (order + 1,)."""
        if self.kind == "II":
            return a[0] + sum(a[i] * self.rho(x**i) for i in range(1, self.order + 1))
        base = self.rho(x)
        y = a[self.order].expand_as(base)
        for i in range(self.order - 1, -1, -1):
            y = y * base + a[i]
        return y

    def fit_to(self, target: Function, lo: float = -3.0, hi: float = 3.0) -> None:
        """Take the coefficients that are nearest to a function in mean square on an interval: a linear problem.

        Args:
            target: elementwise function or module.
            lo, hi: the interval, of which 2001 points are taken.

        Raises:
            InputError: the interval is empty, or the composition looks at whole rows.
        """
        if not lo < hi:
            raise InputError(f"a fit needs an interval, not {lo:g}..{hi:g}")
        x = torch.linspace(lo, hi, 2001, dtype=torch.float64)[:, None]
        self.check(x)
        with torch.no_grad():
            wanted = _values(target, x)
            powers = range(1, self.order + 1)
            rows = [_values(self.rho, x**i) if self.kind == "II" else _values(self.rho, x) ** i for i in powers]
            terms = torch.cat([torch.ones_like(x), *rows], 1)
            found = torch.linalg.lstsq(terms, wanted, driver="gelsd").solution[:, 0]
            self.coefficients.copy_(found)

    def extra_repr(self) -> str:
        """Order and type."""
        return f"order={self.order}, kind={self.kind!r}"


def _values(f: Function, x: Tensor) -> Tensor:
    """Values in float64 of a function or of a module, which takes x where and as its parameters are."""
    like = next(f.parameters(), x) if isinstance(f, nn.Module) else x
    return f(x.to(like.device, like.dtype)).double().cpu()


class PolyReLU(PolyCom):
    """a_0 + sum_i a_i max(0, x)^i: ReLU with order 1, and squared ReLU among those of order 2.

    Args:
        order: highest power.
        recompute: as in `PolyCom`.

    Raises:
        InputError: the order is below 1.

    Source: Zhuo et al., 2025.
    """

    def __init__(self, order: int = 3, *, recompute: bool = False) -> None:
        super().__init__(torch.relu, order, "I", recompute=recompute)


def _normalised(v: Tensor, eps: float | Tensor, dim: int) -> Tensor:
    return v * torch.rsqrt(v.square().mean(dim, keepdim=True) + eps)


@dataclass(frozen=True)
class _RootMeanSquare:
    """v over its root mean square, as the base function of PolyNorm."""

    eps: float
    dim: int

    def __call__(self, v: Tensor) -> Tensor:
        return _normalised(v, self.eps, self.dim)


class PolyNorm(PolyCom):
    """a_0 + sum_i a_i N(x^i), N(v) = v / sqrt(mean(v^2) + eps) along one dimension.

    The mean is over the features of one token, never over tokens: a layer that is split over devices or blocks has to
    be put together before. The paper divides by the length of the vector; its code, and this, by the root mean square.

    Args:
        order: highest power.
        eps: added to the mean square.
        dim: dimension of the features.
        recompute: as in `PolyCom`.

    Raises:
        InputError: the order is below 1, or eps is not positive.

    Source: Zhuo et al., 2025, and the authors' code.
    """

    def __init__(self, order: int = 3, eps: float = 1e-6, dim: int = -1, *, recompute: bool = False) -> None:
        if not eps > 0:
            raise InputError(f"eps is above 0, not {eps}")
        super().__init__(_RootMeanSquare(float(eps), dim), order, "II", recompute=recompute)
        self.eps, self.dim = float(eps), dim

    def check(self, x: Tensor) -> None:
        """Raises InputError where there are not two features or more."""
        if not -x.ndim <= self.dim < x.ndim or x.shape[self.dim] < 2:
            raise InputError(
                f"PolyNorm normalises over two features or more of dimension {self.dim}, not over a tensor of shape "
                f"{tuple(x.shape)}; a single feature becomes its sign"
            )

    def compose(self, x: Tensor, a: Tensor) -> Tensor:
        """The polynomial of x with coefficients (order + 1,)."""
        # N(x^i) with eps is N((x/s)^i) with eps / s^2i: so no power overflows, and s needs no gradient.
        s = x.detach().abs().amax(self.dim, keepdim=True).clamp(min=1.0)
        u = x / s
        eps, power, y = torch.full_like(s, self.eps), torch.ones_like(u), a[0].expand_as(x)
        for i in range(1, self.order + 1):
            eps, power = eps / s / s, power * u
            y = y + a[i] * _normalised(power, eps, self.dim)
        return y

    def extra_repr(self) -> str:
        """Order, eps and dimension."""
        return f"order={self.order}, eps={self.eps:g}, dim={self.dim}"
