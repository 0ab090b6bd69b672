"""SmartMixed's two phases: a multilayer perceptron that chooses its activation functions, then trains with them.

Source: Omidvar, 2025, arXiv 2510.22450, and its code, omidvaramin/SmartMixed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.core.estimator import Estimator
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.functions.units.smart_mixed import (
    MIXED_POOL,
    GumbelActivationSelector,
    PerNeuronActivation,
    Pool,
    freeze_selectors,
)

__all__ = ["SmartMixedTrainer"]


class SmartMixedTrainer(Estimator):
    """A classifier whose neurons choose their activation functions in a first phase and keep them in a second.

    Each phase keeps the weights with the lowest validation loss.

    Args:
        hidden: widths of the hidden layers.
        pool: see `GumbelActivationSelector`.
        tau, hard, clamp: of the first phase.
        transition: epochs of the first phase.
        epochs: of both phases together.
        lr: of Adam.
        choice_lr: of the logits; `lr` if not given, with which they hardly move in a few hundred steps.
        batch_size, clip: rows of a batch, and the largest norm of a gradient.
        transfer_weights: whether the second phase goes on from the weights of the first; False draws new ones, as the
            published code does.
        double_softmax: whether the loss is of softmax outputs instead of logits, as in the published code.
        seed: of weights, batches and noise.

    Attributes:
        network_: the network after both phases.
        selector_: that of the first phase, with its selectors.
        frozen_: that of the first phase with its choices kept, before the second.
        losses_: (epochs,) validation losses.
        trajectory_: for each layer the choices (transition + 1, neurons) before and after the first phase's epochs.
        result_: by epoch: "validation_loss", "phase", and by epoch, layer and function "count".

    Source: Omidvar, 2025, section 3.
    """

    fitted = "network_"

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        pool: Pool = MIXED_POOL,
        tau: float = 0.5,
        hard: bool = True,
        clamp: float = 10.0,
        transition: int = 50,
        epochs: int = 400,
        lr: float = 1e-4,
        choice_lr: float | None = None,
        batch_size: int = 128,
        clip: float = 1.0,
        transfer_weights: bool = True,
        double_softmax: bool = False,
        seed: int = 0,
    ) -> None:
        self.hidden, self.pool, self.tau, self.hard, self.clamp = hidden, pool, tau, hard, clamp
        self.transition, self.epochs, self.lr, self.choice_lr = transition, epochs, lr, choice_lr
        self.batch_size, self.clip, self.transfer_weights = batch_size, clip, transfer_weights
        self.double_softmax, self.seed = double_softmax, seed

    def fit(
        self, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], *, progress: bool = False
    ) -> SmartMixedTrainer:
        """Train both phases.

        Args:
            train, validation: inputs (n, features) and labels (n,) each.
            progress: show a progress bar for each phase.

        Raises:
            InputError: rows and labels do not match or are not finite, or a setting is out of its range.
        """
        self._check(train, validation)
        classes = int(max(train[1].max(), validation[1].max())) + 1
        sizes = [train[0].shape[1], *self.hidden, classes]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = _mlp(sizes, lambda n: GumbelActivationSelector(n, self.pool, self.tau, self.hard, self.clamp))
            selectors = [m for m in net if isinstance(m, GumbelActivationSelector)]
            chosen = [[s.choices()] for s in selectors]

            def note() -> None:
                for held, selector in zip(chosen, selectors, strict=True):
                    held.append(selector.choices())

            losses = self._phase(net, train, validation, self.transition, "phase 1", note, progress)
            self.selector_ = net
            self.frozen_ = copy.deepcopy(net)
            freeze_selectors(self.frozen_)
            if self.transfer_weights:
                final = copy.deepcopy(self.frozen_)
            else:
                kept = iter([m for m in self.frozen_ if isinstance(m, PerNeuronActivation)])
                final = _mlp(sizes, lambda _: copy.deepcopy(next(kept)))
            losses += self._phase(
                final, train, validation, self.epochs - self.transition, "phase 2", lambda: None, progress
            )
        self.network_, self.losses_ = final, np.array(losses)
        self.trajectory_ = [torch.stack(held) for held in chosen]
        self.result_ = self._result()
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Labels (n,) of inputs (n, features).

        Raises:
            InputError: not fitted.
        """
        self.check_fitted()
        with torch.no_grad():
            return self.network_.eval()(x).argmax(-1)

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(outputs.softmax(-1) if self.double_softmax else outputs, labels)

    def _phase(
        self,
        net: nn.Sequential,
        train: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor],
        epochs: int,
        name: str,
        note: Callable[[], None],
        progress: bool,
    ) -> list[float]:
        """Validation losses; the network has the weights of the lowest one at the end."""
        logits = [p for n, p in net.named_parameters() if n.endswith("logits")]
        others = [p for n, p in net.named_parameters() if not n.endswith("logits")]
        rate = self.lr if self.choice_lr is None else self.choice_lr
        groups = [{"params": others}, *([{"params": logits, "lr": rate}] if logits else [])]
        optimiser = torch.optim.Adam(groups, lr=self.lr)
        best, kept, losses = math.inf, copy.deepcopy(net.state_dict()), []
        for _ in shown(range(epochs), name, progress):
            net.train()
            for rows in torch.randperm(len(train[0])).split(self.batch_size):
                loss = self._loss(net(train[0][rows]), train[1][rows])
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), self.clip)
                optimiser.step()
            note()
            net.eval()
            with torch.no_grad():
                losses.append(float(self._loss(net(validation[0]), validation[1])))
            if losses[-1] < best:
                best, kept = losses[-1], copy.deepcopy(net.state_dict())
        net.load_state_dict(kept)
        return losses

    def _result(self) -> Result:
        functions = list(self.pool)
        epochs = np.arange(1, self.epochs + 1)
        counts = np.array(
            [[row.bincount(minlength=len(functions)).tolist() for row in held] for held in self.trajectory_]
        )
        data = xr.Dataset(
            {
                "validation_loss": ("epoch", self.losses_),
                "phase": ("epoch", 1 + (epochs > self.transition).astype(int)),
                "count": (("layer", "after", "function"), counts),
            },
            {
                "epoch": epochs,
                "layer": np.arange(1, len(counts) + 1),
                "after": np.arange(self.transition + 1),
                "function": functions,
            },
            {"plot": {"kind": "line", "variables": ["validation_loss"], "ylabel": "validation loss"}},
        )
        settings = {k: v for k, v in self.get_params().items() if k != "pool"} | {"pool": functions}
        return Result(data, "SmartMixedTrainer", "smartmixed", provenance(**settings))

    def _check(self, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> None:
        for part, (x, y) in (("training", train), ("validation", validation)):
            if x.ndim != 2 or y.ndim != 1 or len(x) != len(y) or not len(x) or y.is_floating_point():
                raise InputError(
                    f"{part} has inputs (n, features) and n labels, not {tuple(x.shape)} and {tuple(y.shape)}"
                )
            if not bool(x.isfinite().all()):
                raise InputError(f"inputs of {part} are not finite")
        if not len(self.hidden) or min(*self.hidden, self.batch_size) < 1 or not 1 <= self.transition <= self.epochs:
            raise InputError(
                "hidden layers and batch_size are one or more, and the transition lies between 1 and the last epoch"
            )
        if self.lr <= 0 or self.clip <= 0 or (self.choice_lr is not None and self.choice_lr < 0):
            raise InputError("lr and clip are above 0, and choice_lr is 0 or more")


def _mlp(sizes: Sequence[int], activation: Callable[[int], nn.Module]) -> nn.Sequential:
    """Linear layers of these sizes with an activation for so many neurons between them."""
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        parts += [*([activation(a)] if i else []), nn.Linear(a, b)]
    return nn.Sequential(*parts)
