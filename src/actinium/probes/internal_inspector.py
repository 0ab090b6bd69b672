"""InternalInspector: how probable is it that an answer is right, judged from the states of all layers."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from actinium.core.errors import ActiniumWarning, InputError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State, below, prefixed
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.probes.calibration import TemperatureScaling, auroc
from actinium.probes.internal_states import StackedStates
from actinium.probes.membership import binary_labels
from actinium.probes.splits import group_split
from actinium.probes.state_encoders import ENCODERS
from actinium.probes.supervised_contrast import supervised_contrastive_loss

__all__ = ["InternalInspector"]

PROJECTION = 64
NORMALISED = {"unit": (0,), "layer": (0, 3)}
States = StackedStates | Tensor | NDArray[Any]


class _Network(nn.Module):
    """An encoder with its projection for the contrast and its classifier."""

    def __init__(self, encoder: str, width: int, states: int, layers: int, d: int) -> None:
        super().__init__()
        self.encoder = ENCODERS[encoder](states, layers, d, width)
        self.projection = nn.Linear(self.encoder.size, PROJECTION)
        self.classifier = nn.Linear(self.encoder.size, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n,) of being right and unit vectors (n, 64)."""
        z = self.encoder(x)
        return self.classifier(z)[:, 0], nn.functional.normalize(self.projection(z), dim=-1)


class InternalInspector(SavedEstimator):
    """Learns to tell right answers (label 1) from wrong ones by the internal states of all layers.

    Training batches hold as many right answers as wrong ones. The logit is then moved by the log-odds of right answers
    in the training data, so that confidence is about data like these, and divided by a temperature that is fitted on
    the validation part; neither changes which of two answers is trusted more.

    Args:
        encoder: "cnn", "transformer" or "mlp".
        width: of the image that the CNN reads, at most; of the transformer; or of the hidden layer. Divisible by 4.
        contrast: weight lambda of the supervised contrastive loss beside the cross-entropy; 0 leaves it out.
        temperature: tau of the contrastive loss.
        two_stage: train the encoder by contrast alone for the first half of the epochs, and then the classifier alone.
        normalise: z-score "unit" by unit, or by "layer" (one mean and deviation for each state and layer).
        calibrate: fit the temperature of the logits.
        lr, weight_decay: of AdamW.
        batch_size: texts in a step, half of them of each class.
        epochs: passes over the texts, at most.
        patience: epochs without a lower validation loss after which it stops.
        validation_share: of the texts, to choose the epoch and the temperature by where no validation data are given;
            0 keeps the last epoch and the temperature 1.
        seed: of weights, batches and that share.

    Attributes:
        network_: the `torch.nn.Module`.
        mean_, scale_: (state, layer, d or 1) of the training data.
        shape_: (state, layer, d) of the states.
        shift_: log-odds of right answers in the training data.
        temperature_: that the logits are divided by.
        loss_, validation_nll_: of each epoch.

    Source: Beigi et al., 2024 (states, encoders, contrast); Khosla et al., 2020 (loss); Guo et al., 2017
    (temperature). Sizes, weights and training are ours: the paper's are not published in code.
    """

    fitted = "network_"
    saved_as = "internal inspector"

    def __init__(
        self,
        encoder: str = "cnn",
        *,
        width: int = 256,
        contrast: float = 1.0,
        temperature: float = 0.1,
        two_stage: bool = False,
        normalise: str = "unit",
        calibrate: bool = True,
        lr: float = 1e-4,
        weight_decay: float = 1e-2,
        batch_size: int = 64,
        epochs: int = 30,
        patience: int = 10,
        validation_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.encoder, self.width, self.normalise, self.calibrate = encoder, width, normalise, calibrate
        self.contrast, self.temperature, self.two_stage = contrast, temperature, two_stage
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size
        self.epochs, self.patience, self.validation_share, self.seed = epochs, patience, validation_share, seed

    def fit(
        self,
        states: States,
        labels: Any,
        *,
        validation: tuple[States, Any] | None = None,
        groups: Any = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> Self:
        """Learn from answers that are known to be right or wrong.

        Args:
            states: stacked states, or (n, state, layer, d).
            labels: (n,) 1 for right answers, 0 for wrong ones.
            validation: states and labels to choose the epoch and fit the temperature by.
            groups: (n,) the question of each answer: none stands on both sides where a share is kept apart.
            device: where to train.
            progress: show a progress bar.

        Raises:
            InputError: shapes do not fit, a value is not finite, there is one class only or one text of a class, or a
                setting is out of range.
            UnknownNameError: there is no such encoder or normalisation.
            MissingExtraError: a share is to be kept apart, and scikit-learn is not installed.
        """
        self._check()
        x = _values(states)
        y = binary_labels(labels, len(x))
        if validation is not None:
            held = _values(validation[0], tuple(x.shape[1:]))
            held_y = binary_labels(validation[1], len(held))
        elif self.validation_share:
            rows, kept = group_split(y, groups, self.validation_share, seed=self.seed)
            x, y, held, held_y = x[rows], y[rows], x[kept], y[kept]
        else:
            held, held_y = x[:0], y[:0]
        if min(y.sum(), len(y) - y.sum()) < 2:
            raise InputError("training needs at least two right and two wrong answers")
        self.shape_ = tuple(x.shape[1:])
        over = NORMALISED[self.normalise]
        # In single precision: squares of massive activations leave the range of half precision.
        self.mean_ = x.float().mean(over, keepdim=True)[0]
        spread = x.float().std(over, correction=0, keepdim=True)[0]
        # What does not vary but for rounding says nothing, whatever its unit.
        self.scale_ = torch.where(spread > 1e-6 * self.mean_.abs(), spread, torch.inf)
        if not bool(torch.isfinite(self.scale_).any()):
            raise InputError("the states are the same for every answer: nothing can be read from them")
        self.shift_, self.temperature_ = float(np.log(y.mean() / (1 - y.mean()))), 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = _Network(self.encoder, self.width, *self.shape_)
            self.network_ = network.to(device) if device is not None else network
            self._learn(x, y, held, held_y, progress)
        if self.calibrate and len(held):
            self.temperature_ = _best_temperature(self._logits(held), held_y)
        return self

    def _learn(self, x: Tensor, y: NDArray[np.int64], held: Tensor, held_y: NDArray[np.int64], progress: bool) -> None:
        optimiser = torch.optim.AdamW(self.network_.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        random = torch.Generator().manual_seed(self.seed)
        self.loss_: list[float] = []
        self.validation_nll_: list[float] = []
        first = self.epochs // 2 if self.two_stage else 0
        best, waited = None, 0
        for epoch in shown(range(self.epochs), "training", progress):
            if self.two_stage and epoch == first:
                self.network_.encoder.requires_grad_(False)
            batches = _balanced(y, self.batch_size, random)
            self.loss_.append(sum(self._step(x, y, rows, optimiser, epoch < first) for rows in batches) / len(batches))
            # A classifier that has not been trained says nothing about the epoch.
            if not len(held) or epoch < first:
                continue
            value = _nll(self._logits(held), held_y)
            waited = 0 if best is None or value < min(self.validation_nll_) else waited + 1
            self.validation_nll_.append(value)
            if not waited:
                best = copy.deepcopy(self.network_.state_dict())
            elif waited >= self.patience:
                break
        if best is not None:
            self.network_.load_state_dict(best)
        self.network_.eval().requires_grad_(True)

    def _step(
        self, x: Tensor, y: NDArray[np.int64], rows: Tensor, optimiser: torch.optim.Optimizer, contrast_only: bool
    ) -> float:
        frozen = self.two_stage and not contrast_only
        self.network_.train()
        if frozen:
            self.network_.encoder.eval()
        wanted = torch.from_numpy(y)[rows].to(self._device)
        logits, u = self.network_(self._normalised(x[rows]))
        loss = torch.zeros((), device=self._device)
        if not contrast_only:
            loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted.float())
        if contrast_only or (self.contrast and not frozen):
            weight = 1.0 if contrast_only else self.contrast
            loss = loss + weight * supervised_contrastive_loss(u, wanted, self.temperature)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    @property
    def _device(self) -> torch.device:
        return next(self.network_.parameters()).device

    def _normalised(self, x: Tensor) -> Tensor:
        return ((x.float() - self.mean_) / self.scale_).to(self._device)

    @torch.no_grad()
    def _logits(self, x: Tensor, hidden: tuple[int, int] | None = None) -> NDArray[np.float64]:
        """Logits before the temperature; `hidden` is a state and a layer that is replaced by its mean."""
        self.network_.eval()
        parts = []
        for rows in torch.arange(len(x)).split(256):
            z = self._normalised(x[rows])
            if hidden is not None:
                z[:, hidden[0], hidden[1]] = 0.0
            parts.append(self.network_(z)[0])
        return torch.cat(parts).double().cpu().numpy() + self.shift_

    def decision_function(self, states: States) -> NDArray[np.float64]:
        """Logits (n,) of being right.

        Raises:
            InputError: not fitted, or the states do not fit.
        """
        self.check_fitted()
        return self._logits(_values(states, self.shape_)) / self.temperature_

    def predict_proba(self, states: States) -> NDArray[np.float64]:
        """Probabilities (n, 2) of being wrong and of being right. Raises InputError as `decision_function`."""
        logits = self.decision_function(states)
        return np.stack([expit(-logits), expit(logits)], 1)

    def predict(self, states: States) -> NDArray[np.int64]:
        """Labels (n,). Raises InputError as `decision_function`."""
        return (self.decision_function(states) > 0).astype(np.int64)

    def score(self, states: States, labels: Any) -> float:
        """Accuracy of the labels at a confidence of one half.

        Raises:
            InputError: as `decision_function`, or the labels do not fit.
        """
        found = self.predict(states)
        return float(np.mean(found == binary_labels(labels, len(found))))

    def layer_importance(self, states: States, labels: Any) -> Result:
        """Drop of AUROC when one state of one layer is replaced by its mean over the training data.

        Args:
            states: of answers that were not trained on.
            labels: (n,) of these.

        Returns:
            Result with `drop` over `state` and `layer`, and the `auroc` of the whole.

        Raises:
            InputError: as `decision_function`, or the labels do not fit.
        """
        self.check_fitted()
        x = _values(states, self.shape_)
        y = binary_labels(labels, len(x))
        whole = auroc(self._logits(x), y)
        kinds, layers, _ = self.shape_
        drop = [[whole - auroc(self._logits(x, (c, i)), y) for i in range(layers)] for c in range(kinds)]
        named = isinstance(states, StackedStates)
        coords = {
            "state": list(states.states) if named else list(range(kinds)),
            "layer": list(states.layers) if named else list(range(layers)),
        }
        data = xr.Dataset({"drop": (("state", "layer"), drop), "auroc": whole}, coords=coords)
        about = provenance(
            inputs=x, labels=y, seed=self.seed, **{k: v for k, v in self.get_params().items() if k != "seed"}
        )
        return Result(data, "layer_importance", "internal-inspector", about)

    def _check(self) -> None:
        if self.encoder not in ENCODERS:
            raise UnknownNameError(unknown("encoder", str(self.encoder), ENCODERS))
        if self.normalise not in NORMALISED:
            raise UnknownNameError(unknown("normalisation", str(self.normalise), NORMALISED))
        if self.batch_size < 4 or self.epochs < 1 + self.two_stage or self.patience < 1 or not self.lr > 0:
            raise InputError(
                f"expected batch_size >= 4, epochs >= {1 + self.two_stage}, patience >= 1 and lr > 0, got "
                f"{self.batch_size}, {self.epochs}, {self.patience} and {self.lr}"
            )
        if self.width < 4 or self.width % 4:
            raise InputError(f"width must be divisible by 4, got {self.width}")
        if self.contrast < 0 or not self.temperature > 0 or self.weight_decay < 0:
            raise InputError(
                f"expected contrast >= 0, temperature > 0 and weight_decay >= 0, got {self.contrast}, "
                f"{self.temperature} and {self.weight_decay}"
            )
        if not 0 <= self.validation_share <= 0.5:
            raise InputError(f"validation_share must be from 0 to 0.5, got {self.validation_share}")

    def _state(self) -> State:
        tensors = prefixed("network", self.network_.state_dict()) | {"mean": self.mean_, "scale": self.scale_}
        return tensors, {"shape": self.shape_, "shift": self.shift_, "temperature": self.temperature_}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.shape_ = tuple(about["shape"])
        self.shift_, self.temperature_ = float(about["shift"]), float(about["temperature"])
        self.mean_, self.scale_ = tensors["mean"], tensors["scale"]
        self.network_ = _Network(self.encoder, self.width, *self.shape_).eval()
        self.network_.load_state_dict(below("network", tensors))


def _values(states: States, shape: tuple[int, ...] | None = None) -> Tensor:
    x = states.values if isinstance(states, StackedStates) else torch.as_tensor(states)
    x = x.detach().cpu()
    if x.ndim != 4 or not x.numel() or not x.is_floating_point():
        raise InputError(f"expected states (n, state, layer, d), got shape {tuple(x.shape)} ({x.dtype})")
    if shape is not None and tuple(x.shape[1:]) != shape:
        raise InputError(f"states of shape (state, layer, d) {tuple(x.shape[1:])} do not fit {shape} of the training")
    if not bool(torch.isfinite(x).all()):
        raise InputError("the states hold NaN or infinite values")
    return x


def _balanced(y: NDArray[np.int64], size: int, random: torch.Generator) -> list[Tensor]:
    """Batches of one epoch with half of each class; the rarer class is drawn again and again."""
    half, count = size // 2, -(-len(y) // size)
    columns = []
    for label in (0, 1):
        rows = torch.from_numpy(np.flatnonzero(y == label))
        rounds = -(-half * count // len(rows))
        order = torch.cat([rows[torch.randperm(len(rows), generator=random)] for _ in range(rounds)])
        columns.append(order[: half * count].view(count, half))
    return list(torch.cat(columns, 1))


def _nll(logits: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood of binary labels."""
    return float(np.logaddexp(0, (1 - 2 * y) * logits).mean())


def _best_temperature(logits: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    try:
        return TemperatureScaling().fit(logits, y).temperature_
    except InputError as error:
        warnings.warn(f"the temperature stays 1: {error}", ActiniumWarning, stacklevel=3)
        return 1.0
