"""Regression from whole numbers, each embedded, through a residual network whose inside is to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.fitted import SavedEstimator, State, below, prefixed
from actinium.core.progress import shown

__all__ = ["EmbeddingRegressor"]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.outer(torch.relu(self.inner(x))))


class _Network(nn.Module):
    """Embeddings side by side, a linear map with SiLU, residual blocks, a linear read-out."""

    def __init__(self, sizes: Sequence[int], outputs: int, hidden: int, depth: int, init_std: float) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(n, hidden) for n in sizes)
        for table in self.embeddings:
            nn.init.normal_(table.weight, std=init_std)
        self.mix = nn.Linear(len(sizes) * hidden, hidden)
        self.blocks = nn.Sequential(*(_Residual(hidden) for _ in range(depth)))
        self.readout = nn.Linear(hidden, outputs)

    def penultimate(self, embedded: Tensor) -> Tensor:
        """(n, hidden) of embeddings (n, len(sizes) * hidden)."""
        return self.blocks(nn.functional.silu(self.mix(embedded)))

    def embed(self, ids: Tensor) -> Tensor:
        return torch.cat([table(ids[:, i]) for i, table in enumerate(self.embeddings)], 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.readout(self.penultimate(self.embed(ids)))


class EmbeddingRegressor(SavedEstimator):
    """Learns numbers from whole numbers, such as a binding energy from those of protons and neutrons.

    Args:
        vocab_sizes: for each input, how many whole numbers there are (0 to size - 1).
        n_outputs: numbers predicted together, each from a read-out of its own.
        hidden: width of embeddings and network.
        depth: residual blocks.
        init_std: standard deviation of the embeddings at first.
        rate: learning rate of AdamW, which falls as a cosine to nothing.
        weight_decay: of all weights but biases, embeddings included.
        steps: optimiser steps.
        batch_size: rows in each.
        seed: of weights and batches.

    Attributes:
        network_: the trained module: `embeddings`, `mix`, `blocks`, `readout`.
        low_, high_: (n_outputs,) range of the training targets, which are scaled to [0, 1] in between.
        seen_: for each input, which numbers the training data hold.
        loss_: mean squared error of the last steps, scaled.

    Source: Kitouni et al., 2024, section 2.
    """

    fitted = "network_"
    saved_as = "regressor"

    def __init__(
        self,
        vocab_sizes: Sequence[int],
        n_outputs: int = 1,
        *,
        hidden: int = 64,
        depth: int = 2,
        init_std: float = 0.02,
        rate: float = 3e-3,
        weight_decay: float = 0.1,
        steps: int = 6000,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        self.vocab_sizes, self.n_outputs, self.hidden, self.depth = vocab_sizes, n_outputs, hidden, depth
        self.init_std, self.rate, self.weight_decay = init_std, rate, weight_decay
        self.steps, self.batch_size, self.seed = steps, batch_size, seed

    def fit(self, ids: ArrayLike, targets: ArrayLike, progress: bool = False) -> Self:
        """Train.

        Args:
            ids: whole numbers (n, inputs).
            targets: (n,) or (n, n_outputs), in any unit; NaN where a number is not known.
            progress: show a progress bar.

        Raises:
            InputError: shapes do not fit, a number is outside its vocabulary, an output has no or one single value.
        """
        inputs, wanted = self._checked(ids), self._targets(targets)
        if len(inputs) != len(wanted):
            raise InputError(f"{len(inputs)} rows of numbers and {len(wanted)} of targets")
        known = torch.isfinite(wanted)
        filled = wanted.masked_fill(~known, torch.inf)
        self.low_ = filled.amin(0)
        self.high_ = wanted.masked_fill(~known, -torch.inf).amax(0)
        if not bool((self.high_ > self.low_).all()):
            raise InputError("each output needs two different known targets or more")
        self.seen_ = [torch.unique(inputs[:, i]) for i in range(inputs.shape[1])]
        scaled = torch.where(known, (wanted - self.low_) / (self.high_ - self.low_), 0.0).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network_ = _Network(self.vocab_sizes, self.n_outputs, self.hidden, self.depth, self.init_std)
        self._train(inputs, scaled, known.float(), progress)
        return self

    def _train(self, inputs: Tensor, scaled: Tensor, known: Tensor, progress: bool) -> None:
        named = list(self.network_.named_parameters())
        groups = [
            {"params": [p for name, p in named if not name.endswith("bias")], "weight_decay": self.weight_decay},
            {"params": [p for name, p in named if name.endswith("bias")], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        random = torch.Generator().manual_seed(self.seed)
        losses = []
        for _ in shown(range(self.steps), "training", progress):
            rows = torch.randint(len(inputs), (min(self.batch_size, len(inputs)),), generator=random)
            error = (self.network_(inputs[rows]) - scaled[rows]).square() * known[rows]
            loss = error.sum() / known[rows].sum().clamp_min(1.0)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        self.network_.eval()
        self.loss_ = float(np.mean(losses[-50:]))

    def _checked(self, ids: ArrayLike) -> Tensor:
        sizes = list(self.vocab_sizes)
        if not sizes or min(sizes) < 1 or min(self.n_outputs, self.hidden, self.steps, self.batch_size) < 1:
            raise InputError(f"sizes and numbers of steps are 1 or more: {self.get_params()}")
        inputs = torch.as_tensor(np.asarray(ids))
        if inputs.ndim != 2 or inputs.shape[1] != len(sizes) or inputs.is_floating_point() or not len(inputs):
            raise InputError(f"expected whole numbers (n, {len(sizes)}), not {tuple(inputs.shape)} {inputs.dtype}")
        for i, size in enumerate(sizes):
            low, high = int(inputs[:, i].min()), int(inputs[:, i].max())
            if low < 0 or high >= size:
                raise InputError(f"input {i} goes from 0 to {size - 1}, and there is {low if low < 0 else high}")
        return inputs.long()

    def _targets(self, targets: ArrayLike) -> Tensor:
        wanted = torch.as_tensor(np.asarray(targets, dtype=np.float64))
        wanted = wanted[:, None] if wanted.ndim == 1 else wanted
        if wanted.ndim != 2 or wanted.shape[1] != self.n_outputs:
            raise InputError(f"expected targets (n, {self.n_outputs}), not {tuple(wanted.shape)}")
        return wanted

    def _fitted(self) -> _Network:
        self.check_fitted()
        return self.network_

    def predict(self, ids: ArrayLike) -> NDArray[np.float64]:
        """Predictions (n,) or (n, n_outputs) in the targets' units.

        Raises:
            InputError: not fitted, or a number that the training data do not hold.
        """
        return self.read(self.penultimate(ids))

    def penultimate(self, ids: ArrayLike) -> Tensor:
        """Activations (n, hidden) that enter the read-out.

        Raises:
            InputError: as `predict`.
        """
        network, inputs = self._fitted(), self._checked(ids)
        for i, seen in enumerate(self.seen_):
            new = ~torch.isin(inputs[:, i], seen)
            if bool(new.any()):
                raise InputError(f"input {i}: {int(inputs[new, i][0])} was never seen in training")
        with torch.no_grad():
            return network.penultimate(network.embed(inputs))

    def read(self, activations: ArrayLike, output: int | None = None) -> NDArray[np.float64]:
        """Predictions of activations (n, hidden) that enter the read-out, in the targets' units.

        Args:
            activations: numbers.
            output: one of the outputs, (n,); all by default, (n,) if there is one.
        """
        network = self._fitted()
        with torch.no_grad():
            scaled = network.readout(torch.as_tensor(np.asarray(activations)).float()).double()
        values = scaled * (self.high_ - self.low_) + self.low_
        picked = values[:, output] if output is not None else values[:, 0] if self.n_outputs == 1 else values
        return np.asarray(picked.numpy())

    def embedding(self, i: int) -> Tensor:
        """Embeddings (number, hidden) of the numbers of input `i` that training has seen, in their order."""
        table = self._fitted().embeddings[i]
        return table.weight.detach()[self.seen_[i]]  # type: ignore[union-attr,index]

    def score(self, ids: ArrayLike, targets: ArrayLike) -> float:
        """Coefficient of determination R2 of the predictions, over known targets."""
        wanted = self._targets(targets).numpy()
        error = self.predict(ids).reshape(wanted.shape) - wanted
        return float(1 - np.nansum(error**2) / np.nansum((wanted - np.nanmean(wanted, 0)) ** 2))

    def _settings(self) -> dict[str, Any]:
        return self.get_params() | {"vocab_sizes": [int(n) for n in self.vocab_sizes]}

    def _state(self) -> State:
        tensors = prefixed("network", self.network_.state_dict()) | {"low": self.low_, "high": self.high_}
        return tensors | {f"seen.{i}": s for i, s in enumerate(self.seen_)}, {"loss": self.loss_}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.network_ = _Network(self.vocab_sizes, self.n_outputs, self.hidden, self.depth, self.init_std).eval()
        self.network_.load_state_dict(below("network", tensors))
        self.low_, self.high_, self.loss_ = tensors["low"], tensors["high"], float(about["loss"])
        self.seen_ = [tensors[f"seen.{i}"] for i in range(len(self.vocab_sizes))]
