"""Kolmogorov-Arnold networks for tables, in the form of scikit-learn's estimators."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.functions.kan.kan_network import KANNetwork
from actinium.functions.kan.kan_training import grpo_tune
from actinium.functions.kan.tabkan_estimator import TabKANEstimator, from_sklearn

__all__ = ["TabKANClassifier", "TabKANRegressor"]


class TabKANClassifier(TabKANEstimator):
    """A Kolmogorov-Arnold network with a linear head that tells classes by the numbers of a table.

    Settings are those of `TabKANEstimator`.

    Attributes:
        classes_: (classes,).
        network_: the trained `KANNetwork`, in float64.
        losses_: the loss at each step.

    Source: Eslamian et al., 2025, arXiv 2504.06559.
    """

    def _kind(self) -> str:
        return "classifier"

    def _outputs(self) -> int:
        return len(self.classes_)

    def _loss(self, y: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(y, targets)

    def _learn_targets(self, y: np.ndarray) -> Tensor:
        try:
            from_sklearn("utils.multiclass").check_classification_targets(y)
        except ValueError as error:
            raise InputError(str(error)) from None
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError("a classifier needs two classes or more, and y has one class")
        return torch.tensor(numbers).long()

    def _same_targets(self, y: np.ndarray) -> Tensor | None:
        """Numbers of known classes; None where there is another one."""
        known = {label: number for number, label in enumerate(self.classes_.tolist())}
        numbers = [known.get(label) for label in y.tolist()]
        return None if None in numbers else torch.tensor(numbers)

    def _explained(self) -> KANNetwork:
        """The network with logits less their mean, which a constant added to all of them does not move."""
        network = copy.deepcopy(self.network_)
        with torch.no_grad():
            for p in network.head.parameters():
                p.sub_(p.mean(0, keepdim=True))
        return network

    def _unit(self) -> float:
        return 1.0

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n, classes)."""
        return torch.tensor(self._output(X)).softmax(-1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most likely classes (n,)."""
        best = self._output(X).argmax(1)
        return self.classes_[best]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy on rows and classes."""
        return float(from_sklearn("metrics").accuracy_score(y, self.predict(X), sample_weight=sample_weight))

    def tune_grpo(
        self,
        X: Any,
        y: Any,
        *,
        group: int = 6,
        beta: float = 0.01,
        lr: float = 1e-3,
        steps: int = 100,
    ) -> list[float]:
        """Fine-tune the network in place on labels that it samples; see `grpo_tune`.

        Returns:
            the mean reward at each step.

        Raises:
            InputError: rows, classes or settings do not fit.
        """
        self.check_fitted()
        targets = self._same_targets(np.asarray(y))
        if targets is None:
            raise InputError(f"y holds a class that the model does not know; it knows {self.classes_[:6].tolist()}")
        return grpo_tune(
            self.network_, self._inputs(self._table(X)), targets, group=group, beta=beta, lr=lr, steps=steps,
            seed=self.seed, progress=self.progress,
        )  # fmt: skip


class TabKANRegressor(TabKANEstimator):
    """A Kolmogorov-Arnold network with a linear head that predicts a number from the numbers of a table.

    Settings are those of `TabKANEstimator`.

    Attributes:
        network_: the trained `KANNetwork`, in float64, of targets with mean 0 and variance 1.
        losses_: the loss at each step.

    Source: Eslamian et al., 2025, arXiv 2504.06559.
    """

    def _kind(self) -> str:
        return "regressor"

    def _outputs(self) -> int:
        return 1

    def _loss(self, y: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(y[:, 0], targets)

    def _learn_targets(self, y: np.ndarray) -> Tensor:
        values = self._numbers(y)
        if np.ptp(values) == 0:
            raise InputError("y is constant: there is nothing to learn")
        self.middle_, self.spread_ = float(values.mean()), float(values.std())
        return self._same_targets(values)

    def _same_targets(self, y: np.ndarray) -> Tensor:
        return torch.tensor((self._numbers(y) - self.middle_) / self.spread_)

    def _numbers(self, y: np.ndarray) -> np.ndarray:
        try:
            values = np.asarray(y, np.float64)
        except (TypeError, ValueError):
            raise InputError("the targets of a regression are numbers") from None
        if not np.isfinite(values).all():
            raise InputError("y holds NaN or infinity")
        return values

    def _explained(self) -> KANNetwork:
        return self.network_

    def _unit(self) -> float:
        return self.spread_

    def predict(self, X: Any) -> np.ndarray:
        """Predictions (n,), in the units of the targets."""
        return self._output(X)[:, 0] * self.spread_ + self.middle_

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination on rows and targets."""
        return float(from_sklearn("metrics").r2_score(y, self.predict(X), sample_weight=sample_weight))
