"""Semi-NMF of the features of a semi-NMF: features that are made of features, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.fitted import SavedEstimator, State
from actinium.core.progress import shown
from actinium.core.rows import as_rows
from actinium.features.semi_nmf import SemiNMF, nonnegative_codes

__all__ = ["HierarchicalSemiNMF"]


class HierarchicalSemiNMF(SavedEstimator):
    """Factorises activations X (n, d), then the features found, and so on: X ~ G W_1 ... W_(L-1) C_L.

    The features of a level are the rows that the next level factorises, so that every feature of one level is a
    non-negative combination of those of the next, coarser one: C_l ~ W_l C_(l+1) with W_l >= 0.

    Args:
        sizes: number of features of each level, falling.
        sparsity, init, max_iter, tol, patience: of each level, see `SemiNMF`.
        fine_tune: steps of Adam on all factors together (mean squared error of X) after the levels were fitted; after
            each the activations and weights are put back to 0 where they fell below. Features then are the products
            W_l ... C_L, whose sparsity is no longer enforced.
        lr: rate of these steps.
        seed: of the first activations.

    Attributes:
        components_: features of each level, [(K_l, d)].
        activations_: (n, K_1) of the first level's features at the rows that were fitted.
        weights_: W_l of each step between levels, [(K_l, K_(l+1))].
        loss_curve_: (steps,) mean squared error of X before each step of fine-tuning.

    Source: Shafran, Geiger, Geva, 2025. Their program does not restore W >= 0 while fine-tuning.
    """

    fitted = "components_"
    saved_as = "hierarchy of semi-NMFs"

    def __init__(
        self,
        sizes: Sequence[int] = (400, 200, 100, 50),
        *,
        sparsity: float | None = 0.01,
        init: str = "random",
        max_iter: int = 500,
        tol: float = 1e-4,
        patience: int = 100,
        fine_tune: int = 0,
        lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        self.sizes, self.sparsity, self.init = sizes, sparsity, init
        self.max_iter, self.tol, self.patience = max_iter, tol, patience
        self.fine_tune, self.lr, self.seed = fine_tune, lr, seed

    def fit(self, activations: Any, *, progress: bool = False) -> Self:
        """Find the features of every level.

        Args:
            activations: (n, d) or (…, d).
            progress: show a progress bar for each level.

        Raises:
            InputError: fewer than two levels, sizes that do not fall, or what `SemiNMF` refuses.
        """
        rows = as_rows(activations)
        sizes = [int(size) for size in self.sizes]
        if len(sizes) < 2 or any(a <= b for a, b in pairwise(sizes)):
            raise InputError(f"sizes are those of two levels or more, falling; got {sizes}")
        if self.fine_tune < 0 or not self.lr > 0:
            raise InputError(f"expected fine_tune >= 0 and lr > 0, got {self.fine_tune} and {self.lr}")
        options = {name: getattr(self, name) for name in ("sparsity", "init", "max_iter", "tol", "patience", "seed")}
        levels: list[SemiNMF] = []
        for size in sizes:
            source = levels[-1].components_ if levels else rows
            levels.append(SemiNMF(size, **options).fit(source, progress=progress))
        self.activations_, *self.weights_ = (level.activations_ for level in levels)
        components = [level.components_ for level in levels]
        self.loss_curve_: NDArray[np.float64] = np.zeros(0)
        if self.fine_tune:
            components = self._tuned(rows, components[-1], progress)
        self.components_ = components
        return self

    def _tuned(self, rows: Tensor, top: Tensor, progress: bool) -> list[Tensor]:
        """Features of every level after gradient steps on all factors."""
        factors = [factor.clone().requires_grad_() for factor in (self.activations_, *self.weights_, top)]
        optimiser = torch.optim.Adam(factors, lr=self.lr)
        losses = []
        for _ in shown(range(self.fine_tune), "fine-tuning", progress):
            with torch.enable_grad():
                loss = (rows - _product(factors)).square().mean()
            for factor, gradient in zip(factors, torch.autograd.grad(loss, factors), strict=True):
                factor.grad = gradient
            optimiser.step()
            with torch.no_grad():
                for factor in factors[:-1]:
                    factor.clamp_min_(0)
            losses.append(float(loss.detach()))
        self.loss_curve_ = np.array(losses)
        self.activations_, *self.weights_, top = (factor.detach() for factor in factors)
        return [_product([*self.weights_[level:], top]) for level in range(len(factors) - 1)]

    def transform(self, activations: Any, level: int = 0, *, max_iter: int = 200) -> Tensor:
        """Activations (n, K_l) of the features of a level.

        Args:
            activations: (n, d) or (…, d).
            level: 0 for the finest, -1 for the coarsest.
            max_iter: updates.

        Raises:
            InputError: `fit` was not called, there is no such level, or the rows do not fit.
        """
        features = self._level(level)
        if max_iter < 1:
            raise InputError(f"max_iter must be at least 1, got {max_iter}")
        rows = as_rows(activations, width=features.shape[1]).to(features)
        return nonnegative_codes(rows, features, max_iter)

    def inverse_transform(self, codes: Any, level: int = 0) -> Tensor:
        """Activations (n, d) that activations (n, K_l) of the features of a level add up to.

        Raises:
            InputError: `fit` was not called, there is no such level, or another number of features.
        """
        features = self._level(level)
        return as_rows(codes, "codes", len(features)).to(features) @ features

    def parents(self, level: int, k: int, n: int = 5) -> list[tuple[int, float]]:
        """The features of the next coarser level of which feature k is made, with their weights, largest first.

        Raises:
            InputError: `fit` was not called, or there is no such feature or no coarser level.
        """
        return _heaviest(self._step(level)[self._feature(level, k)], n)

    def children(self, level: int, k: int, n: int = 5) -> list[tuple[int, float]]:
        """The features of the next finer level in which feature k takes part, with the weights, largest first.

        Raises:
            InputError: `fit` was not called, or there is no such feature or no finer level.
        """
        if self._number(level) == 0:
            raise InputError("level 0 is the finest: its features are made of neurons")
        return _heaviest(self._step(self._number(level) - 1)[:, self._feature(level, k)], n)

    def _number(self, level: int) -> int:
        self.check_fitted()
        if not -len(self.components_) <= level < len(self.components_):
            raise InputError(f"levels go from 0 to {len(self.components_) - 1}, not {level}")
        return level % len(self.components_)

    def _level(self, level: int) -> Tensor:
        return self.components_[self._number(level)]

    def _feature(self, level: int, k: int) -> int:
        if not 0 <= k < len(self._level(level)):
            raise InputError(f"features of level {level} go from 0 to {len(self._level(level)) - 1}, not {k}")
        return k

    def _step(self, level: int) -> Tensor:
        number = self._number(level)
        if number == len(self.weights_):
            raise InputError(f"level {number} is the coarsest: its features have no parents")
        return self.weights_[number]

    def _settings(self) -> dict[str, Any]:
        return self.get_params() | {"sizes": [int(size) for size in self.sizes]}

    def _state(self) -> State:
        tensors = {"activations": self.activations_, "loss_curve": torch.from_numpy(self.loss_curve_)}
        tensors |= {f"components.{i}": value for i, value in enumerate(self.components_)}
        tensors |= {f"weights.{i}": value for i, value in enumerate(self.weights_)}
        return tensors, {}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        levels = len(self.sizes)
        self.components_ = [tensors[f"components.{i}"] for i in range(levels)]
        self.weights_ = [tensors[f"weights.{i}"] for i in range(levels - 1)]
        self.activations_, self.loss_curve_ = tensors["activations"], tensors["loss_curve"].numpy()


def _product(factors: Sequence[Tensor]) -> Tensor:
    # From the right, where the matrices are small.
    out = factors[-1]
    for factor in reversed(factors[:-1]):
        out = factor @ out
    return out


def _heaviest(weights: Tensor, n: int) -> list[tuple[int, float]]:
    best = weights.topk(min(n, len(weights)))
    return [(int(i), float(v)) for v, i in zip(best.values, best.indices, strict=True) if float(v) > 0]
