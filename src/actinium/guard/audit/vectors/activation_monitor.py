"""A monitor of activations: how unlike clean ones they are, and which attacks it notices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown
from actinium.core.estimator import Estimator
from actinium.core.fitted import read_fitted, write_fitted
from actinium.core.intervals import area_under_roc
from actinium.core.provenance import provenance
from actinium.core.result import Result

__all__ = ["ActivationMonitor", "detection_curve"]

PAPER = "activation-attack-audit"
METHODS = ("mahalanobis", "norm")
Floats = NDArray[np.float64]


class ActivationMonitor(Estimator):
    """Scores how unlike the clean activations of one site an activation is; larger is more suspicious.

    Args:
        method: "mahalanobis", the distance (h - mu)^T (S + ridge I)^-1 (h - mu), squared; or "norm", |z| of the
            activation's norm.
        ridge: added to the covariance.

    Attributes:
        mean_: (d,). covariance_: (d, d), the population's. norm_: (2,) mean and standard deviation of clean norms.

    Source: Lee et al., 2018 (Mahalanobis detector).
    """

    fitted = "mean_"

    def __init__(self, method: str = "mahalanobis", ridge: float = 0.01) -> None:
        self.method, self.ridge = method, ridge

    def fit(self, clean: Any) -> Self:
        """Learn what is usual.

        Args:
            clean: (n, d) activations without an attack.

        Raises:
            InputError: fewer than two, not finite, all alike, or a ridge that is not above 0.
            UnknownNameError: there is no such method.
        """
        if self.method not in METHODS:
            raise UnknownNameError(unknown("method", str(self.method), METHODS))
        if not self.ridge > 0:
            raise InputError(f"ridge must be above 0, got {self.ridge}")
        rows = _rows(clean)
        if len(rows) < 2 or not np.ptp(rows, axis=0).any():
            raise InputError(f"a monitor needs two different clean activations or more, got {len(rows)}")
        sizes = np.linalg.norm(rows, axis=1)
        self.mean_ = torch.as_tensor(rows.mean(0))
        self.covariance_ = torch.as_tensor(np.cov(rows.T, bias=True).reshape(rows.shape[1], -1))
        self.norm_ = torch.tensor([sizes.mean(), sizes.std()], dtype=torch.float64)
        return self

    def score_samples(self, x: Any) -> Floats:
        """Scores (n,) of activations (n, d).

        Raises:
            InputError: not fitted, another width, or values that are not finite.
        """
        self.check_fitted()
        rows = _rows(x)
        if rows.shape[1] != len(self.mean_):
            raise InputError(f"expected activations (n, {len(self.mean_)}), got {rows.shape}")
        if self.method == "norm":
            mean, spread = self.norm_.tolist()
            gap = np.abs(np.linalg.norm(rows, axis=1) - mean)
            return gap / spread if spread > 0 else np.where(gap > 0, np.inf, 0.0)
        centred = rows - self.mean_.numpy()
        covariance = self.covariance_.numpy() + self.ridge * np.eye(rows.shape[1])
        return np.einsum("nd,nd->n", centred, np.linalg.solve(covariance, centred.T).T)

    def auc(self, clean: Any, attacked: Any) -> float:
        """Share of pairs of a clean and an attacked activation in which the attacked one scores higher.

        Args:
            clean, attacked: (n, d), none of them used by `fit`.
        """
        scores = [self.score_samples(clean), self.score_samples(attacked)]
        return area_under_roc(np.concatenate(scores), np.repeat([0.0, 1.0], [len(s) for s in scores]))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one safetensors file.

        Raises:
            InputError: not fitted, or the file cannot be written.
        """
        self.check_fitted()
        tensors = {"mean": self.mean_, "covariance": self.covariance_, "norm": self.norm_}
        return write_fitted(path, "activation monitor", tensors, self.get_params())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged or something else.
        """
        about, tensors = read_fitted(path, "activation monitor")
        try:
            monitor = cls(**about["settings"])
            monitor.mean_, monitor.covariance_ = tensors["mean"], tensors["covariance"]
            monitor.norm_ = tensors["norm"]
        except (KeyError, TypeError) as error:
            raise LoadError(f"{path} is damaged: {error}") from None
        return monitor


def _rows(x: Any) -> Floats:
    values = np.asarray(x.detach().cpu().double() if isinstance(x, Tensor) else x, np.float64)
    if values.ndim != 2 or not values.size:
        raise InputError(f"activations are (n, d), not of shape {values.shape}")
    if not np.isfinite(values).all():
        raise InputError("activations hold NaN or infinite values")
    return values


def detection_curve(fit: Any, clean: Any, attacked: Mapping[float, Any], *, ridge: float = 0.01) -> Result:
    """How well monitors tell attacked activations from clean ones, by strength of the attack.

    Args:
        fit: (n, d) clean activations that the monitors learn from.
        clean: (m, d) other clean ones.
        attacked: {strength: (m, d)}.
        ridge: of the Mahalanobis monitor.

    Returns:
        Result over coef and monitor ("mahalanobis", "norm"): `auc`; over coef: `shift`, the mean change of an
        activation over the mean clean norm.

    Raises:
        InputError: no strengths, or activations that do not fit.
    """
    if not attacked:
        raise InputError("no attacked activations given")
    monitors = [ActivationMonitor(method, ridge).fit(fit) for method in METHODS]
    usual = _rows(clean)
    area = np.array([[monitor.auc(usual, x) for monitor in monitors] for x in attacked.values()])
    moved = [
        np.linalg.norm(_rows(x).mean(0) - usual.mean(0)) / np.linalg.norm(usual, axis=1).mean()
        for x in attacked.values()
    ]
    coords = {"coef": [float(c) for c in attacked], "monitor": list(METHODS)}
    data = xr.Dataset({"auc": (("coef", "monitor"), area), "shift": ("coef", moved)}, coords=coords)
    record = provenance(None, [fit, clean, *attacked.values()], ridge=ridge)
    return Result(data, "detection_curve", PAPER, record)
