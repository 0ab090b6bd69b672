"""A probe that learns where in a text to look: attention over positions, then a linear read-out."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.probes.neural import NeuralProbe

__all__ = ["AttentionProbe"]


class _Pooling(nn.Module):
    """Logits sum_h sum_t a_ht (x_t v_h) + b, with a_h = softmax over real positions of x_t q_h."""

    def __init__(self, width: int, classes: int, heads: int) -> None:
        super().__init__()
        self.heads, self.classes = heads, classes
        self.query = nn.Linear(width, heads, bias=False)
        # At first every position weighs the same, so that training starts from the mean of the positions.
        nn.init.zeros_(self.query.weight)
        self.value = nn.Linear(width, heads * classes, bias=False)
        self.bias = nn.Parameter(torch.zeros(classes))

    def weights(self, x: Tensor, mask: Tensor) -> Tensor:
        """(n, pos, head), summing to 1 over real positions."""
        return self.query(x).masked_fill(~mask[..., None], -torch.inf).softmax(1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x.masked_fill(~mask[..., None], 0.0)
        values = self.value(x).unflatten(-1, (self.heads, self.classes))
        return torch.einsum("nth,nthc->nc", self.weights(x, mask), values) + self.bias


class AttentionProbe(NeuralProbe):
    """Classifies texts from the activations of all their positions.

    Args:
        heads: learned queries, each with a read-out of its own.
        epochs: passes over the texts.
        batch_size: texts in a step.
        lr: learning rate of AdamW.
        weight_decay: of AdamW.
        seed: of weights and order.

    Attributes:
        network_: the trained module, on standardised activations.
        classes_: (k,).
        losses_: mean cross-entropy of each epoch, in nats.

    Source: McKenzie et al., 2025, Detecting High-Stakes Interactions with Activation Probes (attention
    probe: softmax over positions of a learned query, mean of a learned value).
    """

    saved_as = "attention probe"

    def __init__(
        self,
        heads: int = 1,
        *,
        epochs: int = 100,
        batch_size: int = 32,
        lr: float = 1e-2,
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        self.heads, self.epochs, self.batch_size = heads, epochs, batch_size
        self.lr, self.weight_decay, self.seed = lr, weight_decay, seed

    def _network(self, width: int, classes: int) -> nn.Module:
        return _Pooling(width, classes, self.heads)

    def fit(self, x: Any, labels: Any, mask: Any = None, progress: bool = False) -> Self:
        """Train.

        Args:
            x: activations (n, pos, d).
            labels: (n,) classes.
            mask: (n, pos), False on padding; without it every position counts.
            progress: show a progress bar.

        Raises:
            InputError: shapes do not fit, a text has no real position, values are not finite or do not vary, or a
                setting is out of range.
        """
        self._check()
        if self.heads < 1:
            raise InputError(f"heads must be 1 or more, got {self.heads}")
        values, real = _texts(x, mask)
        self._trained((values, real), values[real], labels, progress)
        return self

    def _read(self, x: Any, mask: Any = None) -> Tensor:
        return self._logits(*self._fitting(x, mask))

    def _fitting(self, x: Any, mask: Any) -> tuple[Tensor, Tensor]:
        self.check_fitted()
        values, real = _texts(x, mask)
        if values.shape[-1] != len(self.mean_):
            raise InputError(f"activations have {values.shape[-1]} entries, expected {len(self.mean_)}")
        return values, real

    def attention(self, x: Any, mask: Any = None) -> NDArray[np.float32]:
        """How much each head looks at each position: (n, head, pos), 0 on padding, summing to 1.

        Raises:
            InputError: not fitted, or shapes do not fit.
        """
        values, real = self._fitting(x, mask)
        found = self.network_.weights((values - self.mean_) / self.scale_, real)  # type: ignore[operator]
        return np.asarray(found.transpose(1, 2).numpy())

    def score(self, x: Any, labels: Any, mask: Any = None) -> float:
        """Accuracy.

        Raises:
            InputError: not fitted, or shapes do not fit.
        """
        return self._accuracy(self.predict(x, mask=mask), labels)


def _texts(x: Any, mask: Any) -> tuple[Tensor, Tensor]:
    """Activations (n, pos, d) in float32 with zeros on padding, and the mask."""
    given = x.detach().cpu() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    if given.ndim != 3 or not given.numel():
        raise InputError(f"expected activations (n, pos, d), got shape {tuple(given.shape)}")
    real = torch.ones(given.shape[:2], dtype=torch.bool) if mask is None else torch.as_tensor(mask).cpu().bool()
    if real.shape != given.shape[:2]:
        raise InputError(f"mask: expected {tuple(given.shape[:2])}, got {tuple(real.shape)}")
    if not bool(real.any(1).all()):
        raise InputError(f"text {int((~real.any(1)).nonzero()[0])} has no real position")
    values = given.float().masked_fill(~real[..., None], 0.0)
    if not bool(torch.isfinite(values).all()):
        raise InputError("activations hold NaN or infinite values")
    return values, real
