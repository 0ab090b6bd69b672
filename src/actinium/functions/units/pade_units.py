"""Padé activation units: one trained ratio of two polynomials for a layer, and its fit to a known function.

unit = ac.functions.PAU("gelu")                          # starts as GELU
a, b, max_err, rmse = ac.functions.fit_rational(torch.tanh)
unit.nearest()                                           # which known functions it has come near to
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.registry import every
from actinium.functions.units.array_units import ArrayUnit, Function, member
from actinium.functions.units.rational_fit import (
    FLOOR,
    RationalFit,
    check_degrees,
    check_poles,
    denominator,
    fit_rational,
    grid,
    horner,
    known_version,
    sampled,
)

__all__ = ["LEAKY_RELU", "PAU", "SIGMOID", "RandomizedPAU", "RationalActivation"]

Coefficients = tuple[Sequence[float], Sequence[float]]
NOISE = 0.1
LEAKY_RELU: dict[float, tuple[tuple[float, ...], tuple[float, ...]]] = {
    0.01: (
        (3.35583603e-02, 5.05000375e-01, 1.65343934, 2.01001052, 9.31901999e-01, 1.52424124e-01),
        (3.30847488e-06, 3.98021568, 5.12471206e-07, 3.01830109e-01),
    ),
    0.20: (
        (0.0255777560, 0.6618281545, 1.5818297540, 2.9447875874, 0.9528779431, 0.2331968106),
        (-0.5096260510, 4.1837689022, 0.3783209020, 0.3240731443),
    ),
    0.25: (
        (0.0242348546, 0.6770971779, 1.4385836315, 2.9549799006, 0.8567972160, 0.2322961171),
        (-0.4101474581, 4.1469196374, 0.3029254642, 0.3200284953),
    ),
    0.30: (
        (0.0228236610, 0.6935843818, 1.3084743218, 2.9768159881, 0.7716529650, 0.2325226525),
        (-0.3284954322, 4.1155790175, 0.2415560268, 0.3165936539),
    ),
}
"""Published coefficients of LeakyReLU by its slope, for version A."""
SIGMOID = ((1 / 2, 1 / 4, 1 / 18, 1 / 144, 1 / 2016, 1 / 60480), (0.0, 1 / 9, 0.0, 1 / 1008))
"""Padé approximant [5/4] of the logistic function at 0; the same in versions A, B and N."""


class PAU(ArrayUnit):
    """F(x) = P(x) / Q(x), P = sum_{j<=m} a_j x^j, with all coefficients trained.

    Versions differ in Q; coefficients of one are not those of another, and `load_state_dict` refuses to mix them:
    "A" ("abs-terms", the authors' code) 1 + sum_k |b_k| |x|^k; "B" ("safe", the paper) 1 + |sum_k b_k x^k|; "C" 0.1 +
    |sum_k b_k x^k| with k from 0; "N" ("plain") 1 + sum_k b_k x^k, which can have poles; "D" is B with noise of 0.1. A
    fit holds on [-3, 3] only (LeakyReLU's tails both go to a slope of 0.505), so normalise what comes in. Coefficients
    belong into an optimiser's group without weight decay; |b| has the derivative 1 at 0, so that those of 0 are learnt.
    Half precision is computed in float32; where the powers of x would overflow, F goes on as x^(m - n).

    Args:
        init: what to start from: a name of the catalogue ("leaky_relu" and "sigmoid" have published coefficients), a
            callable, or (a, b). Others are fitted on [-3, 3].
        m, n: degrees above and below.
        version: of the denominator.
        num_parameters: 1, or the size of `channel_dim`.
        noise: coefficients are multiplied by 1 + U(-noise, noise) while training, drawn anew in each call.
        channel_dim: dimension of the channels.

    Raises:
        UnknownNameError: there is no function of that name.
        InputError: degrees below 1, an unknown version, another number of coefficients than the degrees say, noise
            outside of 0..1, or version N with a pole on [-3, 3].

    Source: Molina, Schramowski and Kersting, 2020; versions B to D are those of their later code.
    """

    def __init__(
        self,
        init: str | Function | Coefficients = "leaky_relu",
        m: int = 5,
        n: int = 4,
        version: str = "A",
        num_parameters: int = 1,
        noise: float = 0.0,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        self.a: nn.Parameter
        self.b: nn.Parameter
        self.version = known_version(version)
        if self.version == "D":
            self.version, noise = "B", noise or NOISE
        if not 0 <= noise < 1:
            raise InputError(f"noise is a share of the coefficients, from 0 to below 1, not {noise}")
        self.m, self.n, self.noise = m, n, float(noise)
        a, b = _start(init, m, n, self.version)
        self.learn("a", torch.tensor(a, dtype=torch.float64))
        self.learn("b", torch.tensor(b, dtype=torch.float64))

    def response(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The function at x with coefficients (m + 1, ...) and (n, ...)."""
        if self.noise and self.training:
            a, b = (c * (1 + torch.empty_like(c).uniform_(-self.noise, self.noise)) for c in (a, b))
        reach = torch.finfo(x.dtype).max ** (1 / (2 + max(self.m, self.n)))
        inside = x.clamp(-reach, reach)
        y = horner(inside, a) / denominator(inside, b, self.version)
        beyond = x.abs() > reach
        ratio = torch.where(beyond, x / inside.detach(), 1.0)
        return torch.where(beyond, y * ratio ** (self.m - self.n), y)

    def fit_to(self, target: Function, lo: float = -3.0, hi: float = 3.0) -> RationalFit:
        """Take the coefficients that are nearest to a function on an interval, in every channel."""
        found = fit_rational(target, lo, hi, self.m, self.n, self.version)
        with torch.no_grad():
            self.a.copy_(torch.tensor(found.a, dtype=torch.float64).expand_as(self.a))
            self.b.copy_(torch.tensor(found.b, dtype=torch.float64).expand_as(self.b))
        return found

    @torch.no_grad()
    def curve(self, x: Tensor | Sequence[float]) -> Tensor:
        """Values without noise at points (n,): (n,), or (num_parameters, n) with a function for each channel."""
        points = torch.as_tensor(x, dtype=torch.float64)
        if points.ndim != 1:
            raise InputError(f"a curve is read at points (n,), not at {tuple(points.shape)}")
        rows = [
            horner(points, a) / denominator(points, b, self.version)
            for a, b in zip(self.a.detach().double().cpu(), self.b.detach().double().cpu(), strict=True)
        ]
        return rows[0] if self.num_parameters == 1 else torch.stack(rows)

    def distance_to(self, function: str | Function, lo: float = -3.0, hi: float = 3.0) -> float:
        """Root mean square difference to a function on an interval, over all channels.

        Raises:
            InputError: the interval is empty.
        """
        x = grid(lo, hi, 601)
        return float((self.curve(x) - sampled(member(function), x)).square().mean().sqrt())

    def nearest(self, count: int = 5, lo: float = -3.0, hi: float = 3.0) -> list[tuple[str, float]]:
        """Elementwise functions of the catalogue that are nearest, at their defaults, with their distances.

        Args:
            count: how many.
            lo, hi: the interval.

        Raises:
            InputError: the interval is empty.
        """
        x = grid(lo, hi, 601)
        mine = self.curve(x)
        found = []
        for spec in every():
            if spec.arity != "elementwise" or spec.function is None or spec.kind == "stochastic":
                continue
            values = spec(x)
            if values.isfinite().all():
                found.append((spec.name, float((mine - values).square().mean().sqrt())))
        return sorted(found, key=lambda pair: pair[1])[:count]

    def value_range(self, lo: float, hi: float) -> tuple[float, float]:
        """Least and largest value on an interval, over all channels, from the roots of P'Q - PQ'.

        Rounding of the roots aside this is exact, so that it may serve to verify a network layer by layer.

        Raises:
            InputError: the interval is empty or not finite, or there is a pole in it.
        """
        if not (math.isfinite(lo) and math.isfinite(hi) and lo <= hi):
            raise InputError(f"an interval has finite ends in their order, not {lo} and {hi}")
        values: list[float] = []
        rows = zip(self.a.detach().double().cpu().numpy(), self.b.detach().double().cpu().numpy(), strict=True)
        for a, b in rows:
            if self.version == "N":
                check_poles(b, lo, hi)
            points = torch.tensor(_turns(a, b, self.version, lo, hi), dtype=torch.float64)
            y = horner(points, torch.from_numpy(a)) / denominator(points, torch.from_numpy(b), self.version)
            values += y.tolist()
        return min(values), max(values)

    def get_extra_state(self) -> Tensor:
        """Version and degrees, which make the coefficients mean something."""
        return torch.tensor([ord(self.version), self.m, self.n])

    def set_extra_state(self, state: Tensor) -> None:
        """Compare the version with that of loaded coefficients.

        Raises:
            InputError: they are of another version or have other degrees.
        """
        code, m, n = state.tolist()
        if (chr(code), m, n) != (self.version, self.m, self.n):
            raise InputError(
                f"these are coefficients of version {chr(code)} with degrees {m} over {n}; in version {self.version} "
                f"with degrees {self.m} over {self.n} they are another function"
            )

    def extra_repr(self) -> str:
        """Degrees, version and noise."""
        shape = f"m={self.m}, n={self.n}, version={self.version!r}"
        return f"{shape}, num_parameters={self.num_parameters}, noise={self.noise:g}"


RationalActivation = PAU


class RandomizedPAU(PAU):
    """A Padé unit of version B whose coefficients are noisy while training; in evaluation it is version B.

    The noise is on both polynomials, as in the authors' CUDA, Keras and MXNet code.

    Args:
        init, m, n, num_parameters, channel_dim: as in `PAU`.
        noise: coefficients are multiplied by 1 + U(-noise, noise).

    Raises:
        InputError: as in `PAU`.
    """

    def __init__(
        self,
        init: str | Function | Coefficients = "leaky_relu",
        m: int = 5,
        n: int = 4,
        num_parameters: int = 1,
        noise: float = NOISE,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(init, m, n, "B", num_parameters, noise, channel_dim)


def _start(init: Any, m: int, n: int, version: str) -> Coefficients:
    check_degrees(m, n)
    if isinstance(init, str):
        known = init.lower().replace("_", "").replace(" ", "")
        if (m, n) == (5, 4) and known == "leakyrelu" and version == "A":
            return LEAKY_RELU[0.01]
        if (m, n) == (5, 4) and known == "sigmoid" and version != "C":
            return SIGMOID
        init = (lambda x: x) if known in ("identity", "linear") else init
    if isinstance(init, str) or callable(init):
        found = fit_rational(init, m=m, n=n, version=version)
        return found.a, found.b
    a, b = ([float(c) for c in part] for part in init)
    below = n + (version == "C")
    if len(a) != m + 1 or len(b) != below:
        raise InputError(
            f"degrees {m} over {n} in version {version} have {m + 1} and {below} coefficients, "
            f"not {len(a)} and {len(b)}"
        )
    if not all(math.isfinite(c) for c in (*a, *b)):
        raise InputError("coefficients are finite numbers")
    if version == "N":
        check_poles(np.array(b), -3.0, 3.0)
    return a, b


def _turns(a: np.ndarray, b: np.ndarray, version: str, lo: float, hi: float) -> list[float]:
    """Ends of an interval and what is in it: kinks of Q, and roots of P'Q - PQ' on either side of them."""
    poly = np.polynomial.Polynomial
    above = poly(a)
    inner = poly([0.0, *b]) if version in ("B", "N") else poly(b)
    if version == "A":
        degrees = np.arange(1, len(b) + 1)
        sides = [poly([1.0, *(np.abs(b) * float(sign) ** degrees)]) for sign in (1, -1)]
        kinks = [0.0]
    elif version == "N":
        sides, kinks = [1 + inner], []
    else:
        base = 1.0 if version == "B" else FLOOR
        sides = [base + inner, base - inner]
        kinks = [float(r.real) for r in inner.trim().roots() if abs(r.imag) < 1e-7]
    found = [lo, hi, *kinks]
    for below in sides:
        slope = (above.deriv() * below - above * below.deriv()).trim()
        found += [float(r.real) for r in slope.roots() if abs(r.imag) < 1e-7]
    return [x for x in found if lo <= x <= hi]
