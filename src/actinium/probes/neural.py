"""What trained probes share: mini-batch training of a small network on class labels, and its file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.fitted import SavedEstimator, State, below, prefixed
from actinium.core.progress import shown
from actinium.probes.rows import as_classes

__all__ = ["NeuralProbe"]

Floats = NDArray[np.float64]


class NeuralProbe(SavedEstimator):
    """Base of probes that are small networks: standardised inputs, cross-entropy, AdamW, a saved state.

    A subclass says what it is `saved_as`, makes its network in `_network(width, classes)` and calls `_trained`. Its
    settings hold `epochs`, `batch_size`, `lr`, `weight_decay` and `seed`.
    """

    fitted = "network_"
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int

    def _network(self, width: int, classes: int) -> nn.Module:
        raise TypeError(f"{type(self).__name__} must define _network()")

    def _check(self) -> None:
        if min(self.epochs, self.batch_size) < 1 or not self.lr > 0 or self.weight_decay < 0:
            raise InputError(f"epochs and batch_size are 1 or more, lr above 0, weight_decay at least 0: {self!r}")

    def _trained(self, inputs: tuple[Tensor, ...], real: Tensor, labels: Any, progress: bool) -> None:
        """Train on inputs whose first is (n, …, d); `real` are its rows (m, d) that are no padding."""
        classes, numbers = as_classes(labels, len(inputs[0]))
        if not bool((real != real[0]).any()):
            raise InputError("all activations are the same: nothing can be read from them")
        self.classes_ = classes
        self.mean_ = real.mean(0)
        spread = real.std(0, correction=0)
        self.scale_ = torch.where(spread > 1e-7 * spread.max(), spread, 1.0)
        wanted = torch.from_numpy(numbers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self._network(real.shape[1], len(classes))
            self.losses_ = self._steps(network, ((inputs[0] - self.mean_) / self.scale_, *inputs[1:]), wanted, progress)
        self.network_ = network.eval().requires_grad_(False)

    def _steps(self, network: nn.Module, inputs: tuple[Tensor, ...], wanted: Tensor, progress: bool) -> list[float]:
        optimiser = torch.optim.AdamW(network.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        losses = []
        with torch.enable_grad():
            for _ in shown(range(self.epochs), self.saved_as, progress):
                total = 0.0
                for rows in torch.randperm(len(wanted)).split(self.batch_size):
                    loss = nn.functional.cross_entropy(network(*(part[rows] for part in inputs)), wanted[rows])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    total += float(loss.detach()) * len(rows)
                losses.append(total / len(wanted))
        return losses

    def _logits(self, *inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network_((inputs[0] - self.mean_) / self.scale_, *inputs[1:])

    def decision_function(self, *inputs: Any, **more: Any) -> Floats:
        """Logits (n, k); of two classes the difference (n,), above 0 for the second."""
        logits = self._read(*inputs, **more).double().numpy()
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, *inputs: Any, **more: Any) -> Floats:
        """Probabilities (n, k) in the order of `classes_`."""
        return np.asarray(self._read(*inputs, **more).double().softmax(1).numpy())

    def predict(self, *inputs: Any, **more: Any) -> NDArray[Any]:
        """Labels (n,)."""
        best = self._read(*inputs, **more).argmax(1).numpy()
        return self.classes_[best]

    def _read(self, *inputs: Any, **more: Any) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define _read()")

    def _accuracy(self, found: NDArray[Any], labels: Any) -> float:
        given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        if given.shape != found.shape:
            raise InputError(f"labels: expected one for each of {len(found)} rows, got shape {given.shape}")
        return float(np.mean(found == given))

    def _state(self) -> State:
        tensors = prefixed("network", self.network_.state_dict()) | {"mean": self.mean_, "scale": self.scale_}
        return tensors, {"classes": self.classes_.tolist(), "losses": self.losses_}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.classes_, self.losses_ = np.array(about["classes"]), list(about["losses"])
        self.mean_, self.scale_ = tensors["mean"], tensors["scale"]
        network = self._network(len(self.mean_), len(self.classes_))
        network.load_state_dict(below("network", tensors))
        self.network_ = network.eval().requires_grad_(False)
