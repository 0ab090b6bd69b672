"""A probe with hidden layers, for what no single direction tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.probes.neural import NeuralProbe
from actinium.probes.rows import as_rows

__all__ = ["MLPProbe"]


class MLPProbe(NeuralProbe):
    """Classifies activations with a ReLU network on standardised entries.

    What it finds beyond a linear probe may be computed by the probe itself: compare both with a control task
    (`probe_sweep`).

    Args:
        hidden: widths of the hidden layers, one or more.
        dropout: share of hidden units dropped in training, from 0 to below 1.
        epochs: passes over the rows.
        batch_size: rows in a step.
        lr: learning rate of AdamW.
        weight_decay: of AdamW.
        seed: of weights, order and dropout.

    Attributes:
        network_: the trained module, on standardised activations.
        classes_: (k,).
        losses_: mean cross-entropy of each epoch, in nats.

    Source: Hewitt and Liang, 2019 (MLP probes).
    """

    saved_as = "MLP probe"

    def __init__(
        self,
        hidden: Sequence[int] = (64,),
        *,
        dropout: float = 0.0,
        epochs: int = 100,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        self.hidden, self.dropout, self.epochs, self.batch_size = hidden, dropout, epochs, batch_size
        self.lr, self.weight_decay, self.seed = lr, weight_decay, seed

    def _network(self, width: int, classes: int) -> nn.Module:
        layers: list[nn.Module] = []
        for size in self.hidden:
            layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(self.dropout)]
            width = size
        return nn.Sequential(*layers, nn.Linear(width, classes))

    def fit(self, x: Any, labels: Any, progress: bool = False) -> Self:
        """Train.

        Args:
            x: activations (n, d).
            labels: (n,) classes.
            progress: show a progress bar.

        Raises:
            InputError: shapes do not fit, values are not finite or do not vary, or a setting is out of range.
        """
        self._check()
        if isinstance(self.hidden, int | str) or not list(self.hidden) or min(self.hidden) < 1:
            raise InputError(f"hidden: widths of one layer or more, such as (64,), got {self.hidden!r}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be from 0 to below 1, got {self.dropout}")
        rows = torch.from_numpy(as_rows(x)).float()
        self._trained((rows,), rows, labels, progress)
        return self

    def _read(self, x: Any) -> Tensor:
        self.check_fitted()
        return self._logits(torch.from_numpy(as_rows(x, width=len(self.mean_))).float())

    def score(self, x: Any, labels: Any) -> float:
        """Accuracy.

        Raises:
            InputError: not fitted, or shapes do not fit.
        """
        return self._accuracy(self.predict(x), labels)
