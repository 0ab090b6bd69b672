"""The least error of a code of n activations on d Gaussian dimensions, and the error of a given encoder."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError, unknown

__all__ = [
    "Nonlinearity",
    "autoencoder_lower_bound",
    "autoencoder_risk",
    "best_decoder",
    "nonlinearity",
    "rate_distortion",
]

Function = Callable[[Tensor], Tensor]
Floats = NDArray[np.float64]
TERMS = 41
EVEN = 1e-6
# arcsin has infinite slope at 1: cosines of different rows stay this far from it.
NEAR = 1e-9

NAMED: dict[str, Function] = {
    "sign": lambda t: torch.where(t >= 0, 1.0, -1.0).to(t),
    "linear": lambda t: t,
    "tanh": torch.tanh,
    "erf": torch.erf,
}


@dataclass(frozen=True)
class Nonlinearity:
    """An odd activation under a standard normal input.

    Attributes:
        name: how it is called.
        function: elementwise.
        c1: first Hermite coefficient E[t sigma(t)].
        f1: f(1) = E[sigma(t)^2] / c1^2, at least 1.
        terms: (c_l / c_1)^2 for l = 1, 3, 5, … up to 41, without the sign's and the linear map's, which are known.
    """

    name: str
    function: Function
    c1: float
    f1: float
    terms: tuple[float, ...] = ()

    @property
    def linear(self) -> bool:
        """Whether it is the linear map."""
        return not self.terms and self.f1 == 1

    def kernel(self, cosines: Tensor) -> Tensor:
        """f(u) = sum over l of (c_l / c_1)^2 u^l, entry by entry: E[sigma(s) sigma(t)] / c_1^2 at correlation u."""
        if not self.terms:  # known: the sign and the linear map
            return cosines if self.linear else torch.asin(cosines.clamp(-1 + NEAR, 1 - NEAR))
        out, power = torch.zeros_like(cosines), cosines
        for term in self.terms:
            out, power = out + term * power, power * cosines**2
        return out


def nonlinearity(activation: str | Function) -> Nonlinearity:
    """An odd activation with its Hermite coefficients.

    Args:
        activation: "sign", "linear", "tanh", "erf", or an odd elementwise function of a float64 tensor.

    Raises:
        InputError: an unknown name, a function that is not odd, or whose first coefficient is zero (as for even ones).
    """
    if isinstance(activation, str):
        if activation not in NAMED:
            raise InputError(unknown("activation", activation, NAMED))
        return _named(activation)
    return _analysed(getattr(activation, "__name__", "function"), activation)


@functools.cache
def _named(name: str) -> Nonlinearity:
    if name == "sign":
        return Nonlinearity(name, NAMED[name], math.sqrt(2 / math.pi), math.pi / 2)
    return Nonlinearity(name, NAMED[name], 1.0, 1.0) if name == "linear" else _analysed(name, NAMED[name])


def _analysed(name: str, function: Function) -> Nonlinearity:
    # A fine grid, because functions with a jump or a kink defeat Gauss-Hermite quadrature; both signs of each point.
    half = (torch.arange(200_000, dtype=torch.float64) + 0.5) * (12 / 200_000)
    t = torch.cat([-half.flip(0), half])
    value = function(t)
    if not isinstance(value, Tensor) or value.shape != t.shape or not bool(value.isfinite().all()):
        raise InputError(f"{name}: expected an elementwise function with finite values")
    weight = torch.exp(-(t**2) / 2)
    weight = weight / weight.sum()
    square = float((value**2 * weight).sum())
    coefficients, below, here = [], torch.ones_like(t), t
    for order in range(1, TERMS + 1):
        coefficients.append(float((value * here * weight).sum()))
        # Normalised Hermite polynomials: sqrt(l + 1) h_{l+1} = t h_l - sqrt(l) h_{l-1}.
        below, here = here, (t * here - math.sqrt(order) * below) / math.sqrt(order + 1)
    c1 = coefficients[0]
    if abs(c1) < EVEN * math.sqrt(max(square, 1e-300)):
        raise InputError(
            f"{name}: its first Hermite coefficient is zero, as for every even function; none can decode it"
        )
    if float(((value + value.flip(0)) ** 2 * weight).sum()) > EVEN * square:
        raise InputError(f"{name} is not odd; subtract the even part, sigma(t) - sigma(-t)")
    return Nonlinearity(name, function, c1, square / c1**2, tuple((c / c1) ** 2 for c in coefficients[::2]))


def autoencoder_risk(
    encoder: Any, activation: str | Function = "sign", decoder: Any = None, covariance: Any = None
) -> Tensor:
    """Population risk E||x - A sigma(B x)||^2 / d for Gaussian x, as a differentiable number.

    Rows of the encoder are scaled so that each pre-activation has variance 1 (which a sign does not see).

    Args:
        encoder: B (n, d).
        activation: as in `nonlinearity`.
        decoder: A (d, n); the best one by default.
        covariance: of x (d, d) or its diagonal (d,); white by default.

    Returns:
        float64 scalar; gradients flow to encoder and decoder.

    Raises:
        InputError: shapes do not fit, values are not finite, or a row of B reads no variance.

    Source: Shevchenko et al., 2022: R = 1 - tr(B^T f(B B^T)^-1 B) / d with the best decoder A = B^T f(B B^T)^-1 / c_1.
    """
    sigma = nonlinearity(activation)
    b = _matrix(encoder, "encoder")
    n, d = b.shape
    root, total = _root(covariance, d)
    reads = b if root is None else b @ root  # pre-activations are these times a white vector
    norms = reads.norm(dim=1, keepdim=True)
    if bool((norms == 0).any()):
        raise InputError("a row of the encoder reads no variance")
    reads = reads / norms
    second = _second(reads, sigma)
    cross = reads if root is None else reads @ root.T  # E[sigma x^T] / c_1
    if decoder is None:
        explained = (cross * _solved(second, cross, sigma)).sum()
        return torch.as_tensor((total - explained) / d)
    a = _matrix(decoder, "decoder")
    if a.shape != (d, n):
        raise InputError(f"expected a decoder {(d, n)}, got {tuple(a.shape)}")
    return torch.as_tensor((total - 2 * sigma.c1 * (a.T * cross).sum() + sigma.c1**2 * ((a @ second) * a).sum()) / d)


def best_decoder(encoder: Any, activation: str | Function = "sign", covariance: Any = None) -> Tensor:
    """The decoder A (d, n) of least population risk for an encoder, as in `autoencoder_risk`."""
    sigma = nonlinearity(activation)
    b = _matrix(encoder, "encoder")
    root, _ = _root(covariance, b.shape[1])
    reads = b if root is None else b @ root
    reads = reads / reads.norm(dim=1, keepdim=True)
    cross = reads if root is None else reads @ root.T
    return _solved(_second(reads, sigma), cross, sigma).T / sigma.c1


def autoencoder_lower_bound(r: Any, activation: str | Function = "sign", spectrum: Any = None) -> Any:
    """Least risk per dimension of a two-layer autoencoder with n = r d units, as d grows.

    Args:
        r: rate n / d, a number or an array, not negative.
        activation: as in `nonlinearity`.
        spectrum: eigenvalues (d,) of the covariance; all 1 by default.

    Returns:
        float, or an array in the shape of `r`: in the units of the spectrum, and above 0.

    Raises:
        InputError: a negative rate or eigenvalue, or values that are not finite.

    Source: Shevchenko et al., 2022, for white data: 1 - r / f(1) up to r = 1, (f(1) - 1) / (r + f(1) - 1) beyond it.
    Other spectra: derived here (see `_flat`), not proved to be a bound. Encoders trained at d = 100 come within 2 % of
    it and do not go below, while they go up to 8 % below the best division of the units between blocks of equal
    eigenvalues that are coded each on its own.
    """
    sigma = nonlinearity(activation)
    rates = np.asarray(r, dtype=np.float64)
    if not np.isfinite(rates).all() or (rates < 0).any():
        raise InputError("rates are finite and not negative")
    if spectrum is None:
        found = _white(rates, sigma.f1)
    else:
        values = _spectrum(spectrum)
        found = np.array([_flat(float(x), values, sigma.f1) for x in rates.ravel()]).reshape(rates.shape)
    return float(found) if found.ndim == 0 else found


def rate_distortion(r: Any, spectrum: Any = None) -> Any:
    """Least mean squared error per dimension of any code of r bits per dimension for a Gaussian.

    Args:
        r: bits per dimension, a number or an array, not negative.
        spectrum: eigenvalues (d,) of the covariance; all 1 by default.

    Returns:
        float, or an array in the shape of `r`.

    Raises:
        InputError: a negative rate or eigenvalue, or values that are not finite.

    Source: Shannon, 1959: 2^(-2 r) where white; Kolmogorov's reverse water-filling else (Cover and Thomas, 2006, 10.3).
    """
    rates = np.asarray(r, dtype=np.float64)
    if not np.isfinite(rates).all() or (rates < 0).any():
        raise InputError("rates are finite and not negative")
    if spectrum is None:
        found = 2.0 ** (-2 * rates)
    else:
        found = np.array([_reverse_filled(float(x), _spectrum(spectrum)) for x in rates.ravel()]).reshape(rates.shape)
    return float(found) if found.ndim == 0 else found


def _matrix(given: Any, what: str) -> Tensor:
    out = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
    if out.ndim != 2 or not out.numel() or not bool(out.detach().isfinite().all()):
        raise InputError(f"{what}: expected a finite matrix, got shape {tuple(out.shape)}")
    return out.double()


def _root(covariance: Any, d: int) -> tuple[Tensor | None, float]:
    """A square root of the covariance (None for white), and its trace."""
    if covariance is None:
        return None, float(d)
    c = torch.as_tensor(covariance).detach().double()
    if c.shape not in ((d,), (d, d)) or not bool(c.isfinite().all()):
        raise InputError(f"expected a finite covariance ({d}, {d}) or its diagonal ({d},), got {tuple(c.shape)}")
    values, vectors = torch.linalg.eigh(torch.diag(c) if c.ndim == 1 else (c + c.T) / 2)
    if float(values.min()) < -1e-8 * max(float(values.max()), 1e-300):
        raise InputError("a covariance has no negative eigenvalues")
    return vectors * values.clamp(min=0).sqrt() @ vectors.T, float(values.clamp(min=0).sum())


def _second(reads: Tensor, sigma: Nonlinearity) -> Tensor:
    """E[sigma sigma^T] / c_1^2 (n, n); the diagonal is known and stays out of the gradient."""
    diagonal = torch.eye(len(reads), dtype=torch.bool)
    return torch.where(diagonal, sigma.f1, sigma.kernel((reads @ reads.T).masked_fill(diagonal, 0.0)))


def _solved(second: Tensor, cross: Tensor, sigma: Nonlinearity) -> Tensor:
    """Least-squares weights (n, d); the shortest of a linear map, whose units may repeat each other."""
    if sigma.linear:
        solved: Tensor = torch.linalg.pinv(second, rtol=1e-10, hermitian=True) @ cross
    else:
        solved = torch.linalg.solve(second, cross)
    return solved


def _white(r: Floats, f1: float) -> Floats:
    beyond = (f1 - 1) / np.where(r > 1, r + f1 - 1, f1)
    return np.where(r <= 1, 1 - r / f1, beyond)


def _spectrum(given: Any) -> Floats:
    values = np.asarray(given, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise InputError("spectrum: expected eigenvalues (d,), finite, not negative and not all zero")
    return values


def _flat(r: float, spectrum: Floats, f1: float) -> float:
    """Least mean of v c / (p + c) over the n largest eigenvalues v, with c = f(1) - 1 and sum p = n; the rest is lost.

    B B^T has eigenvalues p and unit diagonal; what the activation adds to it is c I where rows are nearly orthogonal.
    """
    v, c = np.sort(spectrum)[::-1], f1 - 1
    n = r * len(v)
    seen = np.clip(n - np.arange(len(v)), 0.0, 1.0)
    if n == 0 or c < 1e-12:
        return float(((1 - seen) * v).mean())

    def wanted(price: float) -> Floats:
        return np.maximum(np.sqrt(v * c / price) - c, 0.0)

    high = float(v[0]) / c
    low = high * 1e-30
    for _ in range(300):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if (seen * wanted(middle)).sum() >= n else (low, middle)
    return float((v * (1 - seen + seen * c / (wanted(low) + c))).mean())


def _reverse_filled(r: float, spectrum: Floats) -> float:
    low, high = 0.0, float(spectrum.max())
    for _ in range(200):
        level = (low + high) / 2
        bits = np.log2(np.maximum(spectrum / level, 1)).mean() / 2 if level > 0 else np.inf
        low, high = (level, high) if bits > r else (low, level)
    return float(np.minimum(spectrum, high).mean())
