"""Contrast-consistent search: a direction on which a statement and its negation get opposite truth, without labels."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.fitted import SavedEstimator, State
from actinium.core.progress import shown
from actinium.probes.rows import as_classes, as_rows, tensor_of

__all__ = ["CCS", "ccs_loss"]

Floats = NDArray[np.float64]


def ccs_loss(p_yes: Tensor, p_no: Tensor) -> Tensor:
    """Mean of (p_yes - (1 - p_no))^2 + min(p_yes, p_no)^2 over the last dimension.

    Args:
        p_yes, p_no: probabilities (…, n) that the statement with "yes" and that with "no" is true.

    Source: Burns et al., 2022, section 2.2.
    """
    consistent = (p_yes - (1 - p_no)).square()
    confident = torch.minimum(p_yes, p_no).square()
    return (consistent + confident).mean(-1)


class CCS(SavedEstimator):
    """Finds a direction by consistency alone; which of its ends means "true" needs labels of a few pairs, or a guess.

    Activations of both sides are normalised by a mean (and deviation) of their own, so that what merely tells "yes"
    from "no" is gone. Each restart is a logistic probe p(x) = sigmoid(w x + b); that of least loss is kept.

    Args:
        scale: also divide by the standard deviation of each entry.
        restarts: independent starts.
        epochs: full-batch steps of AdamW.
        lr: learning rate.
        weight_decay: of AdamW.
        seed: of the starts.

    Attributes:
        coef_: (d,) for normalised activations.
        intercept_: of the same.
        means_, scales_: (2, d) of the "yes" and the "no" side.
        loss_: the least loss; losses_: (restarts,).

    Source: Burns et al., 2022, section 2.2.
    """

    fitted = "coef_"
    saved_as = "contrast-consistent search"

    def __init__(
        self,
        *,
        scale: bool = True,
        restarts: int = 10,
        epochs: int = 1000,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        self.scale, self.restarts, self.epochs = scale, restarts, epochs
        self.lr, self.weight_decay, self.seed = lr, weight_decay, seed

    def fit(self, yes: Any, no: Any, labels: Any = None, progress: bool = False) -> Self:
        """Search.

        Args:
            yes: activations (n, d) of statements completed with "yes" or "true".
            no: activations (n, d) of the same statements completed with "no" or "false".
            labels: (n,), 1 where "yes" is right. They turn the direction, and nothing else; without them its sign is
                arbitrary.
            progress: show a progress bar.

        Raises:
            InputError: shapes do not fit, a setting is out of range, or a side does not vary.
        """
        if min(self.restarts, self.epochs) < 1 or not self.lr > 0 or self.weight_decay < 0:
            raise InputError(f"restarts and epochs are 1 or more, lr above 0, weight_decay at least 0: {self!r}")
        sides = [as_rows(yes, "the 'yes' side"), as_rows(no, "the 'no' side")]
        if sides[0].shape != sides[1].shape:
            raise InputError(f"both sides must have one shape (n, d), got {sides[0].shape} and {sides[1].shape}")
        truth = None if labels is None else as_classes(labels, len(sides[0]), two=True)[1]
        if any(not (side != side[0]).any() for side in sides):
            raise InputError("a side is the same activation in every pair: there is nothing to search in")
        self.means_ = np.stack([side.mean(0) for side in sides])
        spread = np.stack([side.std(0) for side in sides]) if self.scale else np.ones_like(self.means_)
        self.scales_ = np.where(spread > 1e-12 * spread.max(), spread, 1.0)
        weights, bias, losses = self._searched(*(self._normal(side, i) for i, side in enumerate(sides)), progress)
        best = int(losses.argmin())
        self.losses_, self.loss_ = losses.numpy(), float(losses[best])
        self.coef_, self.intercept_ = weights[best].numpy(), float(bias[best])
        if truth is not None and np.mean(self.predict(*sides) == truth) < 0.5:
            self.coef_, self.intercept_ = -self.coef_, -self.intercept_
        return self

    def _normal(self, rows: Floats, side: int) -> Tensor:
        return torch.from_numpy((rows - self.means_[side]) / self.scales_[side])

    def _searched(self, yes: Tensor, no: Tensor, progress: bool) -> tuple[Tensor, Tensor, Tensor]:
        random = torch.Generator().manual_seed(self.seed)
        d = yes.shape[1]
        # The start of a linear layer of d inputs; all restarts are rows of one tensor, and do not touch each other.
        draw = (torch.rand(self.restarts, d + 1, generator=random, dtype=torch.float64) * 2 - 1) / d**0.5
        weights = draw[:, :d].clone().requires_grad_()
        bias = draw[:, d:].clone().requires_grad_()
        optimiser = torch.optim.AdamW([weights, bias], lr=self.lr, weight_decay=self.weight_decay)

        def losses() -> Tensor:
            return ccs_loss(torch.sigmoid(weights @ yes.T + bias), torch.sigmoid(weights @ no.T + bias))

        for _ in shown(range(self.epochs), "searching", progress):
            optimiser.zero_grad()
            losses().sum().backward()
            optimiser.step()
        with torch.no_grad():
            return weights.detach(), bias.detach()[:, 0], losses()

    def predict_proba(self, yes: Any, no: Any) -> Floats:
        """(n,) probability that "yes" is right: the mean of p(yes) and 1 - p(no).

        Args:
            yes, no: activations (n, d) of both sides; they are normalised as those of `fit` were.

        Raises:
            InputError: not fitted, or shapes do not fit.
        """
        self.check_fitted()
        width = len(self.coef_)
        sides = [as_rows(yes, "the 'yes' side", width), as_rows(no, "the 'no' side", width)]
        if len(sides[0]) != len(sides[1]):
            raise InputError(f"{len(sides[0])} rows on the 'yes' side and {len(sides[1])} on the 'no' side")
        p = [torch.sigmoid(self._normal(s, i) @ tensor_of(self.coef_) + self.intercept_) for i, s in enumerate(sides)]
        return np.asarray((0.5 * (p[0] + 1 - p[1])).numpy())

    def predict(self, yes: Any, no: Any) -> NDArray[np.int64]:
        """(n,) 1 where "yes" is taken to be right.

        Raises:
            InputError: as `predict_proba`.
        """
        return (self.predict_proba(yes, no) > 0.5).astype(np.int64)

    def score(self, yes: Any, no: Any, labels: Any) -> float:
        """Accuracy. Of a direction fitted without labels, 1 - accuracy is that of its other end.

        Raises:
            InputError: as `predict_proba`, or labels do not fit.
        """
        found = self.predict(yes, no)
        return float(np.mean(found == as_classes(labels, len(found), two=True)[1]))

    @property
    def direction_(self) -> Tensor:
        """Unit direction (d,) float64 in the space of the activations of the "yes" side, towards "true".

        Raises:
            InputError: not fitted.
        """
        self.check_fitted()
        w = self.coef_ / self.scales_[0]
        return tensor_of(w / np.linalg.norm(w))

    def _state(self) -> State:
        arrays = {"coef": self.coef_, "means": self.means_, "scales": self.scales_, "losses": self.losses_}
        return {name: tensor_of(array) for name, array in arrays.items()}, {"intercept": self.intercept_}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        for name in ("coef", "means", "scales", "losses"):
            setattr(self, f"{name}_", tensors[name].numpy())
        self.intercept_, self.loss_ = float(about["intercept"]), float(self.losses_.min())
