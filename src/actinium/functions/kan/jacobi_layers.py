"""Layers of Kolmogorov-Arnold networks from Jacobi polynomials and wavelets: rational, fractional, Padé, wavelet."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError, unknown
from actinium.functions.kan.edge_layers import CoefficientLayer, KANLayer
from actinium.functions.stable import hypot

__all__ = [
    "FractionalKANLayer",
    "PadeKANLayer",
    "RationalJacobiKANLayer",
    "WaveletKANLayer",
    "jacobi_polynomials",
]


def jacobi_polynomials(u: Tensor, order: int, a: Tensor | float, b: Tensor | float) -> Tensor:
    """Jacobi polynomials P_0 .. P_order with parameters a and b above -1, (*u.shape, order + 1).

    a = b = 0 gives those of Legendre; a = b = -1/2 multiples of those of Chebyshev.

    Source: Szegő, 1939, equation 4.5.1.
    """
    found = [torch.ones_like(u)]
    if order > 0:
        found.append((a + 1) + (a + b + 2) * (u - 1) / 2)
    for n in range(2, order + 1):
        s = 2 * n + a + b
        linear = (s - 1) * (s * (s - 2) * u + a * a - b * b)
        before = 2 * (n + a - 1) * (n + b - 1) * s
        found.append((linear * found[-1] - before * found[-2]) / (2 * n * (n + a + b) * (s - 2)))
    return torch.stack(found, -1)


def _logarithms(values: Mapping[str, float]) -> nn.ParameterDict:
    """Positive numbers as the parameters that they are the exponentials of."""
    return nn.ParameterDict({k: nn.Parameter(torch.tensor(math.log(v))) for k, v in values.items()})


class _JacobiLayer(CoefficientLayer):
    """phi(x) = sum_n c_n P_n^(a,b)(m(x)) with learnt a and b above -1; subclasses define the map m to (-1, 1)."""

    constant = True

    def __init__(self, in_dim: int, out_dim: int, order: int, a: float, b: float, **positive: float) -> None:
        super().__init__(in_dim, out_dim)
        if order < 1 or not (a > -1 and b > -1) or any(not 0 < v < math.inf for v in positive.values()):
            raise InputError(
                f"an order of 1 or more, a and b above -1 and a positive {' and '.join(positive)} are wanted, "
                f"got {order}, {a}, {b} and {', '.join(map(str, positive.values()))}"
            )
        self.order = order
        self.coefficients = nn.Parameter(torch.randn(in_dim, out_dim, order + 1) / (in_dim * (order + 1)))
        self.logarithms = _logarithms({"a": a + 1, "b": b + 1, **positive})

    def number(self, name: str) -> Tensor:
        """The value of one of the learnt numbers."""
        value = self.logarithms[name].exp()
        return value - 1 if name in ("a", "b") else value

    @abstractmethod
    def mapped(self, x: Tensor) -> Tensor:
        """x in (-1, 1)."""

    def terms(self, x: Tensor) -> Tensor:
        """The polynomials at the mapped inputs, (..., in, order + 1)."""
        return jacobi_polynomials(self.mapped(x), self.order, self.number("a"), self.number("b"))

    def weights(self) -> Tensor:
        """The coefficients, (out, in, order + 1)."""
        return self.coefficients.transpose(0, 1)


class RationalJacobiKANLayer(_JacobiLayer):
    """phi(x) = sum_n c_n P_n^(a,b)(x / sqrt(x^2 + L^2)) with learnt a, b > -1 and L > 0, one of each for a layer.

    Args:
        in_dim: number of inputs.
        out_dim: number of outputs.
        order: highest degree.
        a, b: first parameters of the polynomials.
        scale: first L.

    Raises:
        InputError: a size or the order is below 1, a or b not above -1, or the scale not positive.

    Source: Afzal Aghaei, 2024, arXiv 2406.14495 (rKAN); the map is that of Boyd, 1987.
    """

    def __init__(
        self, in_dim: int, out_dim: int, order: int = 3, a: float = 0.0, b: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__(in_dim, out_dim, order, a, b, scale=scale)

    def mapped(self, x: Tensor) -> Tensor:
        """x / sqrt(x^2 + L^2)."""
        return x / hypot(x, self.number("scale").to(x.dtype))


class FractionalKANLayer(_JacobiLayer):
    """phi(x) = sum_n c_n P_n^(a,b)(2 sigmoid(x)^g - 1) with learnt a, b > -1 and g > 0, one of each for a layer.

    Args:
        in_dim: number of inputs.
        out_dim: number of outputs.
        order: highest degree.
        a, b: first parameters of the polynomials.
        power: first g.

    Raises:
        InputError: a size or the order is below 1, a or b not above -1, or the power not positive.

    Source: Afzal Aghaei, 2024, arXiv 2406.07456 (fKAN).
    """

    def __init__(
        self, in_dim: int, out_dim: int, order: int = 3, a: float = 0.0, b: float = 0.0, power: float = 1.0
    ) -> None:
        super().__init__(in_dim, out_dim, order, a, b, power=power)

    def mapped(self, x: Tensor) -> Tensor:
        """2 sigmoid(x)^g - 1."""
        return 2 * torch.exp(self.number("power").to(x.dtype) * functional.logsigmoid(x)) - 1


class PadeKANLayer(KANLayer):
    """phi = P(u) / (1 + |Q(u)|) at u = tanh(x / 2), with P and Q sums of Legendre polynomials; Q has no constant.

    Args:
        in_dim: number of inputs.
        out_dim: number of outputs.
        order: degree of P.
        below: degree of Q; that of P if not given.

    Raises:
        InputError: a size or a degree is below 1.

    Source: Afzal Aghaei, 2024, arXiv 2406.14495 (Padé rKAN).
    """

    def __init__(self, in_dim: int, out_dim: int, order: int = 3, below: int | None = None) -> None:
        super().__init__(in_dim, out_dim)
        below = order if below is None else below
        if order < 1 or below < 1:
            raise InputError(f"degrees are one or more, not {order} and {below}")
        self.above = nn.Parameter(torch.randn(out_dim, in_dim, order + 1) / (in_dim * (order + 1)))
        self.below = nn.Parameter(torch.randn(out_dim, in_dim, below) / (in_dim * below))

    def functions(self, x: Tensor) -> Tensor:
        """Values (..., out, in) at inputs (..., in)."""
        highest, lower = self.above.shape[2], self.below.shape[2]
        terms = jacobi_polynomials(torch.tanh(x / 2), max(highest - 1, lower), 0.0, 0.0)
        p = torch.einsum("...ik,oik->...oi", terms[..., :highest], self.above)
        q = torch.einsum("...ik,oik->...oi", terms[..., 1 : lower + 1], self.below)
        return p / (1 + q.abs())


WAVELETS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "mexican hat": lambda z: 2 / (math.sqrt(3) * math.pi**0.25) * (1 - z.square()) * torch.exp(-z.square() / 2),
        "morlet": lambda z: torch.cos(5 * z) * torch.exp(-z.square() / 2),
        "derivative of gaussian": lambda z: -z * torch.exp(-z.square() / 2),
    }
)


class WaveletKANLayer(KANLayer):
    """phi(x) = w psi((x - t) / s) with learnt w, t and s > 0 on every edge.

    Args:
        in_dim: number of inputs.
        out_dim: number of outputs.
        wavelet: "mexican hat", "morlet" or "derivative of gaussian".

    Raises:
        InputError: a size is below 1, or there is no such wavelet.

    Source: Bozorgasl and Chen, 2024, arXiv 2405.12832 (Wav-KAN).
    """

    def __init__(self, in_dim: int, out_dim: int, wavelet: str = "mexican hat") -> None:
        super().__init__(in_dim, out_dim)
        if wavelet not in WAVELETS:
            raise InputError(unknown("wavelet", wavelet, list(WAVELETS)))
        self.wavelet = wavelet
        self.weight = nn.Parameter((2 * torch.rand(out_dim, in_dim) - 1) / math.sqrt(in_dim))
        self.place = nn.Parameter(torch.zeros(out_dim, in_dim))
        self.log_scale = nn.Parameter(torch.zeros(out_dim, in_dim))

    def functions(self, x: Tensor) -> Tensor:
        """Values (..., out, in) at inputs (..., in)."""
        return self.weight * WAVELETS[self.wavelet]((x[..., None, :] - self.place) * torch.exp(-self.log_scale))
