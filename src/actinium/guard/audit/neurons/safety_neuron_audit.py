"""The safety-neuron audit as an estimator: find the neurons, take them out, keep what was found."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from actinium.core.errors import LoadError
from actinium.core.estimator import Estimator
from actinium.core.fitted import read_fitted, write_fitted
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.guard.audit.neurons.neuron_ablation import ablate_neurons
from actinium.guard.audit.neurons.neuron_fragility import safety_fragility_curve
from actinium.guard.audit.neurons.neuron_sites import SiteNames
from actinium.guard.audit.neurons.safety_neurons import SafetyNeurons, find_safety_neurons

__all__ = ["SafetyNeuronAudit"]


class SafetyNeuronAudit(Estimator):
    """How few feed-forward neurons carry a guard behaviour, and what protects them.

    Args:
        sites, tau, top_fraction, pool, probe, lr, weight_decay, epochs, runs, ridge, heldout, legacy, seed: as of
            `find_safety_neurons`.

    Attributes:
        neurons_: what was found.

    Source: Wu et al., 2026, NeuroStrike.
    """

    fitted = "neurons_"

    def __init__(
        self,
        sites: SiteNames | None = None,
        *,
        tau: float | None = 3.0,
        top_fraction: float | None = None,
        pool: str = "max",
        probe: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 1e-3,
        epochs: int = 5000,
        runs: int = 1,
        ridge: float = 1e-2,
        heldout: float = 0.25,
        legacy: bool = False,
        seed: int = 1234,
    ) -> None:
        self.sites, self.tau, self.top_fraction, self.pool, self.probe = sites, tau, top_fraction, pool, probe
        self.lr, self.weight_decay, self.epochs, self.runs, self.ridge = lr, weight_decay, epochs, runs, ridge
        self.heldout, self.legacy, self.seed = heldout, legacy, seed

    def fit(
        self, model: Model, prompts: Any, labels: Any, *, batch_size: int | None = 32, progress: bool = False
    ) -> Self:
        """Find the neurons; arguments and errors as of `find_safety_neurons`."""
        options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        self.neurons_ = find_safety_neurons(model, prompts, labels, **self.get_params(), **options)
        return self

    def ablate(self, model: Model, blocks: Iterable[int] | None = None) -> AbstractContextManager[Model]:
        """A block in which the neurons are zero; see `ablate_neurons`."""
        self.check_fitted()
        return ablate_neurons(model, self.neurons_, blocks)

    def fragility(self, model: Model, guarded: Any, benign: Any, judge: Any, **options: Any) -> Result:
        """How the guard fails as neurons go, of this model or of a child; see `safety_fragility_curve`."""
        self.check_fitted()
        return safety_fragility_curve(model, self.neurons_, guarded, benign, judge, **options)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one safetensors file.

        Raises:
            InputError: not fitted, a site is a compiled expression, or the file cannot be written.
        """
        self.check_fitted()
        found = self.neurons_
        parts = ("indices", "weights", "biases", "z", "activity")
        tensors = {f"{part}:{name}": v for part in parts for name, v in getattr(found, part).items()}
        plain = {k: getattr(found, k) for k in ("layers", "auc_train", "auc_heldout", "dropped")}
        return write_fitted(path, "safety-neuron audit", tensors, self.get_params(), **plain)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged or something else.
        """
        about, tensors = read_fitted(path, "safety-neuron audit")
        try:
            audit = cls(**about["settings"])
            parts: dict[str, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                part, _, name = key.partition(":")
                parts.setdefault(part, {})[name] = value
            order = list(about["layers"])
            named = {part: {name: values[name] for name in order} for part, values in parts.items()}
            plain = {k: about[k] for k in ("layers", "auc_train", "auc_heldout", "dropped")}
            audit.neurons_ = SafetyNeurons(**named, **plain)
        except (KeyError, TypeError) as error:
            raise LoadError(f"{path} is damaged: {error}") from None
        return audit
