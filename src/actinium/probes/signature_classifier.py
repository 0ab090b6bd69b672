"""Training, prediction and storage that the classifiers of output signatures have in common."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from actinium.core.errors import ActiniumWarning, InputError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.core.progress import shown
from actinium.probes.calibration import auroc
from actinium.probes.membership import binary_labels
from actinium.probes.output_signature import OutputSignature, one_kind
from actinium.probes.signature_networks import SignatureBatch
from actinium.probes.splits import group_split

__all__ = ["SignatureClassifier", "warm_up_then_fall"]

Signatures = Sequence[OutputSignature]
RANKS = ("scale", "one_hot")
WARM = 0.1


class SignatureClassifier(SavedEstimator):
    """Base of the classifiers of output signatures: a subclass gives the network that its settings make.

    Args: see `LOSNet`.
    """

    fitted = "network_"
    k = 0
    network_: nn.Module
    vocab_size_: int
    partial_: bool

    def __init__(
        self,
        n_max: int = 100,
        *,
        d: int = 128,
        layers: int = 2,
        dropout: float = 0.3,
        rank_encoding: str = "scale",
        lr: float = 1e-4,
        weight_decay: float = 1e-3,
        batch_size: int = 64,
        epochs: int = 100,
        patience: int = 100,
        validation_share: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.n_max, self.d, self.layers, self.dropout = n_max, d, layers, dropout
        self.rank_encoding = rank_encoding
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, batch_size
        self.epochs, self.patience, self.validation_share, self.seed = epochs, patience, validation_share, seed

    def _network(self, ranks: int | None) -> nn.Module:
        raise TypeError(f"{type(self).__name__} must define _network()")

    def fit(
        self,
        signatures: Signatures,
        labels: Any,
        *,
        validation: tuple[Signatures, Any] | None = None,
        groups: Any = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> Self:
        """Learn to tell label 1 from label 0.

        The epoch with the highest AUROC on the validation part is kept.

        Args:
            signatures: of the texts, all whole or all partial.
            labels: (text,) 0 or 1.
            validation: signatures and labels to choose the epoch by; else a share of the texts is kept apart.
            groups: (text,) the document, book or question of each text: none stands on both sides of that share.
            device: where to train.
            progress: show a progress bar.

        Raises:
            InputError: signatures or labels do not fit, hold one class only, or a setting is out of range.
            UnknownNameError: there is no such encoding of ranks or pooling.
            MissingExtraError: a share is to be kept apart, and scikit-learn is not installed.
        """
        self._check()
        one_kind(signatures)
        y = binary_labels(labels, len(signatures))
        train, train_y, held, held_y = self._parts(signatures, y, validation, groups)
        if len(train) < 2:
            raise InputError("training needs at least two signatures")
        self.vocab_size_, self.partial_ = max(s.vocab_size for s in train), train[0].partial
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self._network(self.vocab_size_ if self.rank_encoding == "one_hot" else None)
            self.network_ = network.to(device) if device is not None else network
            self._learn(self._batch(train), train_y, self._batch(held) if held else None, held_y, progress)
        return self

    def _parts(
        self, signatures: Signatures, y: NDArray[np.int64], validation: tuple[Signatures, Any] | None, groups: Any
    ) -> tuple[Signatures, NDArray[np.int64], Signatures, NDArray[np.int64]]:
        """Training and validation texts with their labels; the latter may be empty."""
        if validation is not None:
            held, given = validation
            one_kind(held)
            one_kind([signatures[0], held[0]])
            return signatures, y, held, binary_labels(given, len(held))
        if not self.validation_share:
            return signatures, y, [], y[:0]
        rows, kept = group_split(y, groups, self.validation_share, seed=self.seed)
        return [signatures[i] for i in rows], y[rows], [signatures[i] for i in kept], y[kept]

    def _learn(
        self,
        train: SignatureBatch,
        y: NDArray[np.int64],
        held: SignatureBatch | None,
        held_y: NDArray[np.int64],
        progress: bool,
    ) -> None:
        network, wanted = self.network_, torch.from_numpy(y).float()
        device = next(network.parameters()).device
        optimiser = torch.optim.AdamW(network.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        total = self.epochs * len(list(_portions(torch.arange(len(y)), self.batch_size)))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, warm_up_then_fall(int(WARM * total), total))
        random = torch.Generator().manual_seed(self.seed)
        self.loss_: list[float] = []
        self.validation_auroc_: list[float] = []
        best, waited = None, 0
        for _ in shown(range(self.epochs), "training", progress):
            network.train()
            summed = 0.0
            for rows in _portions(torch.randperm(len(y), generator=random), self.batch_size):
                optimiser.zero_grad()
                logits = network(train.rows(rows, device))
                loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted[rows].to(device))
                loss.backward()
                optimiser.step()
                schedule.step()
                summed += float(loss.detach()) * len(rows)
            self.loss_.append(summed / len(y))
            if held is None:
                continue
            value = auroc(self._logits(held), held_y)
            waited = 0 if best is None or value > max(self.validation_auroc_) else waited + 1
            self.validation_auroc_.append(value)
            if not waited:
                best = copy.deepcopy(network.state_dict())
            elif waited >= self.patience:
                break
        if best is not None:
            network.load_state_dict(best)
        network.eval()

    @torch.no_grad()
    def _logits(self, batch: SignatureBatch) -> NDArray[np.float64]:
        network = self.network_.eval()
        device = next(network.parameters()).device
        parts = [network(batch.rows(rows, device)) for rows in torch.arange(len(batch.atp)).split(256)]
        return torch.cat(parts).double().cpu().numpy()

    def _batch(self, signatures: Signatures) -> SignatureBatch:
        """Features of all signatures, in half precision, as the published code keeps them."""
        short = [s.vocab_size for s in signatures if s.vocab_size < self.k]
        if short:
            warnings.warn(
                f"k is {self.k}, but a vocabulary has {min(short)} tokens; the columns that are missing are zero",
                ActiniumWarning,
                stacklevel=4,
            )
        rows = []
        for one in signatures:
            tds, atp, rank, real = one.features(self.k or 1, self.n_max)
            rows.append((tds[:, : self.k].half(), atp.half(), rank, real, torch.tensor(one.vocab_size)))
        return SignatureBatch(*(torch.stack(part) for part in zip(*rows, strict=True)))

    def decision_function(self, signatures: Signatures) -> NDArray[np.float64]:
        """Logits (text,) of label 1.

        Raises:
            InputError: not fitted, or the signatures are not of the kind that was fitted.
        """
        self.check_fitted()
        one_kind(signatures)
        if signatures[0].partial != self.partial_:
            raise InputError(
                f"this network was fitted on {'partial' if self.partial_ else 'whole'} signatures, these are not"
            )
        sizes = {s.vocab_size for s in signatures}
        if self.rank_encoding == "one_hot" and max(sizes) > self.vocab_size_:
            raise InputError(
                f"ranks of a vocabulary of {max(sizes)} are unknown to a one-hot encoding of {self.vocab_size_}; to "
                "read another model's signatures fit with rank_encoding='scale'"
            )
        return self._logits(self._batch(signatures))

    def predict_proba(self, signatures: Signatures) -> NDArray[np.float64]:
        """Probabilities (text, 2) of label 0 and of label 1. Raises InputError as `decision_function`."""
        logits = self.decision_function(signatures)
        return np.stack([expit(-logits), expit(logits)], 1)

    def predict(self, signatures: Signatures) -> NDArray[np.int64]:
        """Labels (text,). Raises InputError as `decision_function`."""
        return (self.decision_function(signatures) > 0).astype(np.int64)

    def score(self, signatures: Signatures, labels: Any) -> float:
        """AUROC, by which such detectors are compared.

        Raises:
            InputError: as `decision_function`, or the labels do not fit.
        """
        return auroc(self.decision_function(signatures), labels)

    def _check(self) -> None:
        counts = {name: getattr(self, name) for name in ("n_max", "d", "layers", "batch_size", "epochs", "patience")}
        if min(counts.values()) < 1 or not self.lr > 0 or self.weight_decay < 0 or not 0 <= self.dropout < 1:
            raise InputError(
                f"expected counts of at least 1, lr > 0, weight_decay >= 0 and dropout in [0, 1), got {counts}, "
                f"lr={self.lr}, weight_decay={self.weight_decay}, dropout={self.dropout}"
            )
        if not 0 <= self.validation_share <= 0.5:
            raise InputError(f"validation_share must be from 0 to 0.5, got {self.validation_share}")
        if self.rank_encoding not in RANKS:
            raise UnknownNameError(unknown("rank encoding", str(self.rank_encoding), RANKS))

    def _state(self) -> State:
        return self.network_.state_dict(), {"vocab_size": self.vocab_size_, "partial": self.partial_}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.vocab_size_, self.partial_ = about["vocab_size"], about["partial"]
        network = self._network(self.vocab_size_ if self.rank_encoding == "one_hot" else None)
        network.load_state_dict(tensors)
        self.network_ = network.eval()


def warm_up_then_fall(warm: int, total: int) -> Callable[[int], float]:
    """Share of the learning rate at each step: linear up to 1 over `warm` steps, then linear to 0 at `total`."""
    return lambda step: step / warm if step < warm else max(0.0, (total - step) / max(1, total - warm))


def _portions(order: Tensor, size: int) -> Iterator[Tensor]:
    """Batches; a single row left over joins the batch before it, for one row has no batch statistics."""
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return iter(parts)
