"""Settings of a training run. The command line takes them by the same names."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from actinium.core.errors import InputError, UnknownNameError, unknown

__all__ = ["TrainConfig"]

CHOICES = {
    "optimizer": ("adam", "adamw", "sgd", "signum"),
    "schedule": ("constant", "linear", "cosine"),
    "precision": ("float32", "bfloat16", "float16"),
    "revive": ("auxiliary", "resample", "none"),
}
LOGS = ("console", "jsonl", "tensorboard", "wandb")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run.

    Args:
        batch_size: rows in a step.
        rows: rows to train on in all; by default so many epochs of the data.
        epochs: passes over the data, where `rows` is not given.
        lr: learning rate; by default 2e-4 / sqrt(d_sae / 16384).
        optimizer: "adam", "adamw", "sgd" or "signum" (the sign of a running mean of gradients).
        betas, eps, weight_decay: of the optimizer (signum uses the first beta).
        warmup: steps over which the learning rate rises from 0, or a share of all steps if below 1.
        schedule: "constant", "linear" (falls to zero) or "cosine" (falls to a tenth) after the warm-up.
        decay_start: share of all steps after which a linear schedule falls.
        sparsity_warmup: share of all steps over which the sparsity penalty rises from 0.
        clip: largest norm of the gradient; None for no clipping.
        accumulate: batches whose gradients are added up in one step.
        precision: of the products in the forward and backward pass; parameters and sums stay float32.
        compile: compile the loss with `torch.compile`.
        dead_after: rows after which a latent that was not active counts as dead.
        revive: "auxiliary" (the loss of TopK dictionaries), "resample" or "none".
        resample_every: rows between two resamplings, of latents that were not active since the last one.
        resample_times: most resamplings.
        sample: rows that normalisation and the decoder's bias are measured on.
        log_every: steps between two entries of the log.
        logs: where they go: "console", "jsonl", "tensorboard", "wandb".
        folder: of logs and checkpoints; without it nothing is kept on the way.
        checkpoint_every: steps between two checkpoints; one is made at the end, too. After an interruption the steps
            since the last one are done again.
        device: where to train; where the dictionary is by default.
        seed: of the order of rows and of resampling.

    Raises:
        InputError: a number is out of range.
        UnknownNameError: there is no such choice.
    """

    batch_size: int = 4096
    rows: int | None = None
    epochs: float = 1.0
    lr: float | None = None
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: float = 0.05
    schedule: str = "linear"
    decay_start: float = 0.8
    sparsity_warmup: float = 0.05
    clip: float | None = 1.0
    accumulate: int = 1
    precision: str = "float32"
    compile: bool = False
    dead_after: int = 10_000_000
    revive: str = "auxiliary"
    resample_every: int = 100_000_000
    resample_times: int = 4
    sample: int = 16384
    log_every: int = 50
    logs: tuple[str, ...] = ()
    folder: str | None = None
    checkpoint_every: int = 1000
    device: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UnknownNameError(unknown(name, str(getattr(self, name)), known))
        for log in self.logs:
            if log not in LOGS:
                raise UnknownNameError(unknown("log", log, LOGS))
        whole = ("batch_size", "accumulate", "dead_after", "resample_every", "sample", "log_every", "checkpoint_every")
        for name in whole:
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "resample_times"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 < self.decay_start <= 1 or not 0 <= self.sparsity_warmup <= 1:
            raise InputError("decay_start must be above 0 and at most 1, sparsity_warmup between 0 and 1")
        if (
            not self.epochs > 0
            or (self.rows is not None and self.rows < 1)
            or (self.lr is not None and not self.lr > 0)
        ):
            raise InputError("epochs, rows and lr must be above 0")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be above 0, or None, not {self.clip}")
        if any(log != "console" for log in self.logs) and self.folder is None:
            raise InputError("logs other than the console's need a folder")

    def rate(self, d_sae: int) -> float:
        """Largest learning rate for a dictionary of so many latents."""
        return 2e-4 / math.sqrt(d_sae / 2**14) if self.lr is None else self.lr

    def steps(self, rows: int) -> int:
        """Optimiser steps, for data of so many rows."""
        wanted = self.rows if self.rows is not None else int(self.epochs * rows)
        return max(1, round(wanted / (self.batch_size * self.accumulate)))

    def record(self) -> dict[str, Any]:
        """Plain values of what changes the numbers: not where they are logged."""
        left = ("logs", "folder", "log_every", "checkpoint_every", "device")
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k not in left}
