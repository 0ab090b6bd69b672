"""Sums over a basis with learnt coefficients: powers, orthogonal polynomials and Fourier series."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial import chebyshev, hermite_e, legendre
from torch import Tensor

from actinium.core.errors import InputError, unknown
from actinium.functions.units.array_units import ArrayUnit, Function, fitted_weights, normal_points

__all__ = ["BASES", "FourierUnit", "PolynomialUnit"]

BASES = ("power", "chebyshev", "legendre", "hermite")
LARGEST_DEGREE = 12
TO_POWERS = {"chebyshev": chebyshev.cheb2poly, "legendre": legendre.leg2poly, "hermite": hermite_e.herme2poly}


def in_powers(basis: str, degree: int) -> Tensor:
    """Rows of the coefficients of 1, x, x^2, .. in each member of a basis, (degree + 1, degree + 1).

    Hermite polynomials are those of the statisticians over sqrt(j!), which are orthonormal under the standard normal.
    """
    rows = np.eye(degree + 1)
    if basis != "power":
        for j in range(degree + 1):
            found = TO_POWERS[basis](np.eye(degree + 1)[j])
            rows[j] = np.pad(found, (0, degree + 1 - len(found)))
            if basis == "hermite":
                rows[j] /= math.sqrt(math.factorial(j))
    return torch.tensor(rows, dtype=torch.float64)


class PolynomialUnit(ArrayUnit):
    """sum_j a_j B_j(x) for j up to a degree, with learnt a.

    The first coefficients are those that are nearest to a function in mean square under the standard normal; for the
    Hermite basis without squashing these are its Hermite coefficients.

    Args:
        basis: "power", "chebyshev", "legendre" or "hermite" (orthonormal).
        degree: highest power.
        squash: whether the tanh of x is put in, so that it lies between -1 and 1, where Chebyshev polynomials do.
        start: function to start from, a name of the catalogue or a callable.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: there is no such basis, or the degree is not between 0 and 12.

    Source: Goyal et al., 2019 (powers); Deepthi et al., 2023 (Chebyshev); Venkatappareddy et al., 2021 (Legendre);
    Lokhande et al., 2020 (Hermite, coefficients of ReLU).
    """

    powers: Tensor

    def __init__(
        self,
        basis: str = "hermite",
        degree: int = 5,
        squash: bool = False,
        start: str | Function = "relu",
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        if basis not in BASES:
            raise InputError(unknown("basis", basis, list(BASES)))
        if not 0 <= degree <= LARGEST_DEGREE:
            raise InputError(f"a degree between 0 and {LARGEST_DEGREE} is wanted, got {degree}")
        self.basis, self.degree, self.squash = basis, degree, squash
        self.register_buffer("powers", in_powers(basis, degree), persistent=False)
        x, mass = normal_points()
        self.learn("a", fitted_weights(self.terms, start, x, mass))

    def terms(self, x: Tensor) -> Tensor:
        """The basis at x (n,), (degree + 1, n)."""
        inner = torch.tanh(x) if self.squash else x
        return self.powers.to(x) @ torch.stack([inner**j for j in range(self.degree + 1)])

    def response(self, x: Tensor, a: Tensor) -> Tensor:
        """The polynomial at x with coefficients (degree + 1, ...), by Horner's rule."""
        inner = torch.tanh(x) if self.squash else x
        coefficients = torch.tensordot(self.powers.to(a).T, a, dims=1)
        total = coefficients[-1] + torch.zeros_like(x)
        for c in coefficients.flip(0)[1:]:
            total = total * inner + c
        return total

    def extra_repr(self) -> str:
        """Basis, degree, and shapes of the weights."""
        return f"{self.basis}, degree={self.degree}, squash={self.squash}, {super().extra_repr()}"


class FourierUnit(ArrayUnit):
    """a + sum_j b_j cos(j d x) + c_j sin(j d x) with learnt a, b, c and base frequency d.

    It starts as the Fourier series, up to the last term, of a function on one period [-pi/d, pi/d].

    Args:
        terms: how many frequencies.
        frequency: first value of d.
        start: function to start from, a name of the catalogue or a callable.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: there is no term, or the frequency is not positive.

    Source: Liao, 2020.
    """

    def __init__(
        self,
        terms: int = 5,
        frequency: float = 1.0,
        start: str | Function = "relu",
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        if terms < 1 or not 0 < frequency < math.inf:
            raise InputError(f"a Fourier unit has a term or more and a positive frequency, got {terms}, {frequency}")
        j = torch.arange(1, terms + 1, dtype=torch.float64)[:, None]
        n = 20000
        x = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * math.pi / n) - math.pi

        def series(t: Tensor) -> Tensor:
            t = t * frequency
            return torch.cat([torch.ones_like(t)[None], torch.cos(j * t), torch.sin(j * t)])

        found = fitted_weights(series, start, x / frequency, torch.ones_like(x))
        self.learn("a", found[0])
        self.learn("b", found[1 : terms + 1])
        self.learn("c", found[terms + 1 :])
        self.learn("d", torch.tensor(float(frequency)))

    def response(self, x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        """The series at x with coefficients (terms, ...)."""
        largest = torch.finfo(x.dtype).max
        total = a + torch.zeros_like(x)
        for j, (even, odd) in enumerate(zip(b, c, strict=True), 1):
            angle = (j * d * x).clamp(-largest, largest)
            total = total + even * torch.cos(angle) + odd * torch.sin(angle)
        return total
