"""Uncentred covariance of the keys of MLPs, E[k k^T]: what the weights were asked for before an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from actinium.circuits.knowledge.weights import down_projections
from actinium.core.errors import InputError
from actinium.core.fitted import opened, write_fitted
from actinium.core.model import Model
from actinium.core.reducers import Covariance

__all__ = ["KeyCovariance", "key_covariance"]

KIND = "key covariance"
# Eigenvalues below this share of the largest are rounding: the matrix counts as singular.
SMALLEST = 1e-12


class KeyCovariance:
    """E[k k^T] by layer, with solutions of linear systems in float64.

    Args:
        matrices: by layer, (unit, unit) symmetric.
        tokens: by layer, the number of keys averaged over.
        ridge: added to each diagonal as a share of its mean, 0 for none.

    Raises:
        InputError: a matrix is not square or not finite, or `ridge` is negative.
    """

    def __init__(self, matrices: Mapping[int, Tensor], tokens: Mapping[int, int], ridge: float = 0.0) -> None:
        if not ridge >= 0:
            raise InputError(f"ridge must be 0 or more, not {ridge}")
        for layer, matrix in matrices.items():
            if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not bool(matrix.isfinite().all()):
                raise InputError(f"layer {layer}: expected a finite square matrix, got {tuple(matrix.shape)}")
        self.matrices = {int(layer): m.detach().double().cpu() for layer, m in matrices.items()}
        self.tokens, self.ridge = {int(k): int(v) for k, v in tokens.items()}, float(ridge)
        self._sound: set[int] = set()

    def __getitem__(self, layer: int) -> Tensor:
        """(unit, unit) float64 of a layer, with the ridge on its diagonal.

        Raises:
            InputError: the layer is missing, or its matrix is singular.
        """
        if layer not in self.matrices:
            have = ", ".join(map(str, sorted(self.matrices))) or "none"
            raise InputError(
                f"no covariance of the keys of layer {layer}, only of: {have}; see key_covariance(layers=...)"
            )
        matrix = self.matrices[layer]
        if self.ridge:
            matrix = matrix + self.ridge * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype)
        if layer not in self._sound:
            values = torch.linalg.eigvalsh(matrix)
            if not float(values[0]) > SMALLEST * float(values[-1]):
                raise InputError(
                    f"the covariance of layer {layer} is singular: {self.tokens.get(layer, 0)} tokens for "
                    f"{len(matrix)} units, some of which never act; give more text, or ridge=1e-6 or more"
                )
            self._sound.add(layer)
        return matrix

    def solve(self, layer: int, keys: Tensor) -> Tensor:
        """C^-1 k of keys (unit,) or (unit, n), float64."""
        right = keys.detach().double().cpu()
        out: Tensor = torch.linalg.solve(self[layer], right if right.ndim == 2 else right[:, None])
        return out if right.ndim == 2 else out[:, 0]

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"layer {k}: {len(m)} units, {self.tokens.get(k, 0)} tokens" for k, m in self.matrices.items()
        )
        return f"KeyCovariance({sizes}; ridge {self.ridge:g})"

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file."""
        matrices = {str(k): m for k, m in self.matrices.items()}
        return write_fitted(path, KIND, matrices, {"ridge": self.ridge}, tokens=self.tokens)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged or something else.
        """
        with opened(path, KIND) as (about, matrices):
            return cls({int(k): m for k, m in matrices.items()}, about["tokens"], **about["settings"])


def key_covariance(
    model: Model,
    texts: Any,
    layers: Sequence[int] | None = None,
    *,
    ridge: float = 0.0,
    batch_size: int | None = 32,
    progress: bool = False,
) -> KeyCovariance:
    """E[k k^T] of the keys that reach the down projections, over every token of some texts.

    Texts are run in batches and only sums are kept. Tokens should number ten times the units or more.

    Args:
        model: a model with MLPs.
        texts: texts or tokens like those that the model was trained on.
        layers: blocks; all by default.
        ridge: added to each diagonal as a share of its mean, where units never act or texts are few.
        batch_size: rows in a pass.
        progress: show a progress bar.

    Returns:
        The matrices, float64.

    Raises:
        InputError: a layer does not exist or has no down projection, or the texts cannot be read.

    Source: Meng et al., 2022, section 3.1; Meng et al., 2023 (MEMIT), equation 15.
    """
    downs = down_projections(model, range(model.n_layers) if layers is None else layers)
    sites = [d.site for d in downs]
    rec = model.record(texts, sites, reduce=Covariance, batch_size=batch_size, progress=progress)
    found = {d.layer: rec[d.site] for d in downs}
    matrices = {layer: c.cov + torch.outer(c.mean, c.mean) for layer, c in found.items()}
    return KeyCovariance(matrices, {layer: c.count for layer, c in found.items()}, ridge)
