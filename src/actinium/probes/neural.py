"""What trained probes share: mini-batch training of a small network on class labels, and its file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actinium.core.errors import InputError, LoadError
from actinium.core.estimator import Estimator
from actinium.core.fitted import read_fitted, write_fitted
from actinium.probes.rows import as_classes

__all__ = ["NeuralProbe"]

Floats = NDArray[np.float64]


class NeuralProbe(Estimator):
    """Base of probes that are small networks: standardised inputs, cross-entropy, AdamW, a saved state.

    A subclass names its `kind`, makes its network in `_network(width, classes)` and calls `_trained`. Its settings
    hold `epochs`, `batch_size`, `lr`, `weight_decay` and `seed`.
    """

    kind = ""
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
            for _ in _shown(self.epochs, progress, self.kind):
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

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write settings and fitted values to one safetensors file.

        Raises:
            InputError: not fitted, or the file cannot be written.
        """
        self.check_fitted()
        state = {f"network.{name}": value for name, value in self.network_.state_dict().items()}
        tensors = state | {"mean": self.mean_, "scale": self.scale_}
        return write_fitted(
            path, self.kind, tensors, self.get_params(), classes=self.classes_.tolist(), losses=self.losses_
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged, or holds something else.
        """
        about, tensors = read_fitted(path, cls.kind)
        try:
            out = cls(**about["settings"])
            out.classes_, out.losses_ = np.array(about["classes"]), list(about["losses"])
            out.mean_, out.scale_ = tensors["mean"], tensors["scale"]
            network = out._network(len(out.mean_), len(out.classes_))
            network.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("network.")})
            out.network_ = network.eval().requires_grad_(False)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise LoadError(f"the {cls.kind} in {path} is damaged: {error}") from None
        return out


def _shown(epochs: int, progress: bool, what: str) -> Any:
    if not progress:
        return range(epochs)
    from rich.progress import track

    return track(range(epochs), description=what, transient=True)
