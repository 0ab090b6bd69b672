"""A trained two-layer autoencoder, and how far a 1-bit code of recorded activations is from its limit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.fitted import SavedEstimator, State
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_rows
from actinium.signal.autoencoder_limits import (
    autoencoder_lower_bound,
    autoencoder_risk,
    best_decoder,
    nonlinearity,
    rate_distortion,
)

__all__ = ["TwoLayerAutoencoder", "compression_report", "optimal_encoder", "random_encoder"]

PAPER = "two-layer-autoencoder-limits"
DECODERS = ("data", "population")
# A direction counts as without variance below this share of the largest eigenvalue.
NOTHING = 1e-10


class TwoLayerAutoencoder(SavedEstimator):
    """x' = A sigma(B x), for activations x (d,) that are centred and, by default, whitened.

    The encoder is trained on the population risk of a Gaussian with the covariance of the data; the decoder is the
    ridge solution on the data. Rows of the encoder have unit length in whitened coordinates.

    Args:
        n: units of the code; n / d bits per dimension for the sign.
        activation: a name of `nonlinearity`.
        tied: the decoder is beta B^T, with the best number beta.
        decoder: "data" (ridge) or "population" (the best one for a Gaussian).
        steps: of Adam on the encoder; 0 keeps a random one with orthonormal rows (up to n = d) or columns.
        learning_rate: of Adam.
        ridge: of the decoder, per row and in units of the variance of a unit.
        seed: of the first encoder.

    Attributes:
        encoder_: B (n, k) on the coordinates below.
        decoder_: A (k, n).
        mean_: (d,).
        basis_: (k, d) from centred activations to coordinates: whitening, or the identity.
        back_: (d, k) from coordinates to activations.
        history_: population risk per coordinate at every step.

    Source: Shevchenko et al., 2022.
    """

    fitted = "encoder_"

    def __init__(
        self,
        n: int,
        activation: str = "sign",
        *,
        tied: bool = False,
        decoder: str = "data",
        steps: int = 400,
        learning_rate: float = 0.02,
        ridge: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.n, self.activation, self.tied, self.decoder = n, activation, tied, decoder
        self.steps, self.learning_rate, self.ridge, self.seed = steps, learning_rate, ridge, seed

    def fit(self, X: Any, whiten: bool = True, *, progress: bool = False) -> TwoLayerAutoencoder:
        """Train encoder and decoder.

        Args:
            X: activations (N, d), or (…, d).
            whiten: work in whitened coordinates. Directions without variance are left out, said so in a warning.
            progress: show a progress bar.

        Raises:
            InputError: fewer rows than units or than two, an unknown setting, or activations without variance.
        """
        nonlinearity(self.activation)
        if self.n < 1 or self.steps < 0 or self.ridge < 0 or self.decoder not in DECODERS:
            raise InputError(
                f"n is positive, steps and ridge not negative, and decoder one of {', '.join(DECODERS)}; got {self!r}"
            )
        x = as_rows(X, dtype=torch.float64).cpu()
        if len(x) < max(self.n, 2):
            raise InputError(f"{len(x)} rows are too few for a decoder of {self.n} units")
        self.mean_ = x.mean(0)
        self.basis_, self.back_ = _coordinates(x - self.mean_, whiten)
        z = (x - self.mean_) @ self.basis_.T
        covariance = None if whiten else z.T @ z / len(z)
        self.encoder_, self.history_ = optimal_encoder(
            z.shape[1],
            self.n,
            self.activation,
            covariance=covariance,
            steps=self.steps,
            learning_rate=self.learning_rate,
            seed=self.seed,
            progress=progress,
        )
        self.decoder_ = self._decoder(z, covariance)
        return self

    def encode(self, X: Any) -> Tensor:
        """The code (N, n): -1 and 1 for the sign."""
        return self._codes(self._inside(X))

    def decode(self, codes: Any) -> Tensor:
        """Activations (N, d) of codes (N, n)."""
        self.check_fitted()
        inside: Tensor = as_rows(codes, "codes", self.n, dtype=torch.float64).cpu() @ self.decoder_.T
        return inside @ self.back_.T + self.mean_

    def risk(self, X: Any) -> float:
        """Squared error over squared distance from the mean of the fit, in the coordinates of the fit.

        Raises:
            InputError: `fit` was not called, or rows of another width or without variance.
        """
        z = self._inside(X)
        size = float((z**2).sum())
        if not size > 0:
            raise InputError("every row is the mean of the fit: there is nothing to reconstruct")
        return float(((z - self._codes(z) @ self.decoder_.T) ** 2).sum()) / size

    @property
    def bits_per_dimension(self) -> float:
        """n / d, for the sign. Other activations give real numbers."""
        self.check_fitted()
        return self.n / len(self.mean_) if self.activation == "sign" else float("inf")

    def _inside(self, X: Any) -> Tensor:
        self.check_fitted()
        centred: Tensor = as_rows(X, width=len(self.mean_), dtype=torch.float64).cpu() - self.mean_
        return centred @ self.basis_.T

    def _codes(self, z: Tensor) -> Tensor:
        return nonlinearity(self.activation).function(z @ self.encoder_.T)

    def _decoder(self, z: Tensor, covariance: Tensor | None) -> Tensor:
        codes = self._codes(z)
        if not self.tied and self.decoder == "population":
            return best_decoder(self.encoder_, self.activation, covariance)
        if not self.tied:
            second = codes.T @ codes / len(z)
            second += self.ridge * second.diagonal().mean() * torch.eye(self.n, dtype=torch.float64)
            solved: Tensor = torch.linalg.solve(second, codes.T @ z / len(z))
            return solved.T
        if self.decoder == "data":
            back = codes @ self.encoder_
            return self.encoder_.T * float((back * z).sum() / (back**2).sum())
        # The risk is quadratic in beta, and its values at -1, 0 and 1 give the minimum.
        low, zero, high = (
            float(autoencoder_risk(self.encoder_, self.activation, beta * self.encoder_.T, covariance))
            for beta in (-1.0, 0.0, 1.0)
        )
        return self.encoder_.T * ((low - high) / (2 * (low + high - 2 * zero)))

    def _state(self) -> State:
        names = ("encoder_", "decoder_", "mean_", "basis_", "back_")
        return {name: getattr(self, name) for name in names}, {"history": list(self.history_)}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        for name, value in tensors.items():
            setattr(self, name, value)
        self.history_ = list(about["history"])


def optimal_encoder(
    d: int,
    n: int,
    activation: str = "sign",
    *,
    covariance: Tensor | None = None,
    start: str = "random",
    steps: int = 400,
    learning_rate: float = 0.02,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Tensor, list[float]]:
    """An encoder trained on the population risk with its best decoder, by Adam; rows are normalised at every step.

    Args:
        d, n: dimensions and units.
        activation: a name of `nonlinearity`.
        covariance: of the data (d, d); white by default.
        start: "random" Gaussian rows, or "orthonormal" as `random_encoder` gives; with `steps` 0 always the latter.
        steps, learning_rate, seed: of the optimiser.
        progress: show a progress bar.

    Returns:
        B (n, d), float64, and the risk before each step and after the last one.

    Raises:
        InputError: sizes below 1, or another start.

    Source: Shevchenko et al., 2022, gradient descent on the risk with rows on the sphere; Adam is ours.
    """
    if start not in ("random", "orthonormal"):
        raise InputError(f"start is 'random' or 'orthonormal', not {start!r}")
    orthonormal = start == "orthonormal" or steps == 0
    b = random_encoder(d, n, seed) if orthonormal else _unit(torch.randn(n, d, generator=_source(seed)).double())
    b = b.requires_grad_()
    optimiser = torch.optim.Adam([b], lr=learning_rate)
    history = []
    for _ in shown(range(steps), "encoder", progress):
        risk = autoencoder_risk(b, activation, covariance=covariance)
        history.append(float(risk.detach()))
        optimiser.zero_grad()
        risk.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            b.copy_(_unit(b))
    b = b.detach()
    return b, [*history, float(autoencoder_risk(b, activation, covariance=covariance))]


def random_encoder(d: int, n: int, seed: int = 0) -> Tensor:
    """Random B (n, d), float64: orthonormal rows up to n = d, else orthonormal columns whose rows are normalised.

    Raises:
        InputError: sizes below 1.
    """
    if d < 1 or n < 1:
        raise InputError(f"d and n are 1 or more, got {d} and {n}")
    q = torch.linalg.qr(torch.randn(max(n, d), min(n, d), generator=_source(seed)).double()).Q
    return q.T.contiguous() if n <= d else _unit(q)


def compression_report(
    acts: Any,
    rates: Sequence[float] = (0.25, 0.5, 1.0, 1.5, 2.0),
    *,
    whiten: bool = True,
    held_out: float = 0.25,
    steps: int = 0,
    ridge: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """What 1-bit codes of activations reach, beside the limit of such codes and of every code.

    Errors are squared errors over variance, in whitened coordinates or, without whitening, in those of the activations.

    Args:
        acts: activations (N, d), or (…, d), without padding.
        rates: bits per dimension, n / d.
        whiten: compress whitened coordinates, for which the limit is that of white data; else the limit is that of
            the spectrum.
        held_out: share of the rows, chosen at random, on which `test` is measured.
        steps: of training the encoder; 0 for a random one, which is near the limit on white data.
        ridge: of the decoder.
        seed: of rows and encoders.
        progress: show a progress bar.

    Returns:
        Result over rate: `test`, `train`, `bound` (of two-layer autoencoders), `rate_distortion` (of any code),
        `random_gaussian` (test error of an encoder with independent rows), `pca` (test error of as many real
        coefficients, which are not bits), `units` (n); `sign_of_coordinates`, the test error of the sign of each
        coordinate alone at one bit per dimension, and `dimensions`, those with variance.

    Raises:
        InputError: rates or shares out of range, or fewer training rows than units.

    Source: Shevchenko et al., 2022; Shannon, 1959.
    """
    x = as_rows(acts, dtype=torch.float64).cpu()
    if not 0 < held_out < 1 or not len(rates) or not all(np.isfinite(r) and r > 0 for r in rates):
        raise InputError("rates are positive, and held_out is between 0 and 1")
    order = torch.randperm(len(x), generator=_source(seed))
    cut = len(x) - max(1, round(held_out * len(x)))
    train, test = x[order[:cut]], x[order[cut:]]
    if len(train) < 2:
        raise InputError(f"{len(x)} rows are too few to hold some out")
    mean = train.mean(0)
    basis, _ = _coordinates(train - mean, whiten)
    train, test = (train - mean) @ basis.T, (test - mean) @ basis.T
    d = train.shape[1]
    spectrum = torch.linalg.eigvalsh(train.T @ train / len(train)).clamp(min=0).flip(0).numpy()
    limits = None if whiten else spectrum / spectrum.mean()
    rows = []
    for rate in shown(list(rates), "compression", progress):
        n = max(1, round(rate * d))
        model = TwoLayerAutoencoder(n, steps=steps, ridge=ridge, seed=seed).fit(train, whiten=False)
        plain = TwoLayerAutoencoder(n, steps=0, ridge=ridge, seed=seed)
        plain = _with_encoder(plain.fit(train, whiten=False), train, seed)
        rows.append(
            {
                "test": model.risk(test),
                "train": model.risk(train),
                "bound": autoencoder_lower_bound(n / d, "sign", limits),
                "rate_distortion": rate_distortion(n / d, limits),
                "random_gaussian": plain.risk(test),
                "pca": _without_top(train, test, n),
                "units": n,
            }
        )
    data: dict[str, Any] = {name: ("rate", [r[name] for r in rows]) for name in rows[0]}
    data["sign_of_coordinates"] = _scalar_sign(train, test)
    data["dimensions"] = d
    hints = {"plot": {"variables": ["test", "bound", "rate_distortion"], "ylabel": "relative error"}}
    settings = {"whiten": whiten, "held_out": held_out, "steps": steps, "ridge": ridge}
    record = provenance(inputs=x, seed=seed, rates=list(rates), **settings)
    coords = {"rate": [r["units"] / d for r in rows]}
    return Result(xr.Dataset(data, coords, hints), "compression_report", PAPER, record)


def _coordinates(x: Tensor, whiten: bool) -> tuple[Tensor, Tensor]:
    """From centred activations to coordinates (k, d), and back (d, k)."""
    d = x.shape[1]
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    if not float(values.max()) > 0:
        raise InputError("the activations have no variance")
    if not whiten:
        return torch.eye(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    kept = values > NOTHING * values.max()
    if not bool(kept.all()):
        warnings.warn(
            f"{d - int(kept.sum())} of {d} directions have no variance and are left out", ActiniumWarning, stacklevel=3
        )
    scale, axes = values[kept].sqrt(), vectors[:, kept]
    return (axes / scale).T.contiguous(), axes * scale


def _with_encoder(model: TwoLayerAutoencoder, z: Tensor, seed: int) -> TwoLayerAutoencoder:
    """The same with independent Gaussian rows."""
    model.encoder_ = _unit(torch.randn(model.encoder_.shape, generator=_source(seed)).double())
    model.decoder_ = model._decoder(z - model.mean_, None)
    return model


def _without_top(train: Tensor, test: Tensor, n: int) -> float:
    """Share of the squared size of test rows outside the n first principal components of the training rows."""
    vectors = torch.linalg.eigh(train.T @ train).eigenvectors.flip(1)[:, :n]
    return float(1 - ((test @ vectors) ** 2).sum() / (test**2).sum())


def _scalar_sign(train: Tensor, test: Tensor) -> float:
    """Each coordinate by its sign times its mean magnitude."""
    guess = torch.where(test >= 0, 1.0, -1.0) * train.abs().mean(0)
    return float(((test - guess) ** 2).sum() / (test**2).sum())


def _unit(rows: Tensor) -> Tensor:
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths


def _source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
