"""Safety neurons: feed-forward neurons that tell guarded prompts from benign ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.intervals import area_under_roc
from actinium.core.model import Model
from actinium.guard.audit.neurons.logistic import adam_logistic, ridge_logistic, standardised
from actinium.guard.audit.neurons.neuron_sites import (
    SiteNames,
    binary_labels,
    neuron_layers,
    neuron_sites,
    pooled_neurons,
)

__all__ = ["SafetyNeurons", "find_safety_neurons"]

PROBES = ("adam", "ridge")
NAN_ROWS = 0.1


@dataclass(frozen=True, eq=False)
class SafetyNeurons:
    """The neurons that were chosen at each site, and what they were chosen by.

    Attributes:
        indices: {site: (k,) int64}, in ascending order.
        weights: {site: (f,)} of the probe. biases: {site: ()}.
        z: {site: (f,)} weights with mean 0 and population standard deviation 1.
        activity: {site: (f,)} mean absolute value over prompts and tokens.
        layers: {site: block}.
        auc_train: {site: area under the ROC curve of the probe on its own prompts}.
        auc_heldout: the same of a probe that has not seen the prompts; NaN where none were kept apart.
        dropped: {site: prompts left out because a value was not finite}.
    """

    indices: dict[str, Tensor]
    weights: dict[str, Tensor]
    biases: dict[str, Tensor]
    z: dict[str, Tensor]
    activity: dict[str, Tensor]
    layers: dict[str, int]
    auc_train: dict[str, float]
    auc_heldout: dict[str, float]
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of chosen neurons."""
        return sum(map(len, self.indices.values()))

    @property
    def total(self) -> int:
        """Number of neurons at all sites."""
        return sum(map(len, self.weights.values()))

    def chosen(self, tau: float | None = 3.0, top_fraction: float | None = None) -> SafetyNeurons:
        """The same probes with another choice of neurons.

        Args:
            tau: neurons with z > tau and a positive weight.
            top_fraction: instead of it, this share of the neurons of each site (rounded), those of largest z, as far
                as their weights are positive: z above its quantile 1 - top_fraction.

        Raises:
            InputError: neither or both are given, or the share is out of range.
        """
        picked = {name: _choice(w, self.z[name], tau, top_fraction) for name, w in self.weights.items()}
        return replace(self, indices=picked)

    def table(self) -> Any:
        """One row for each site: block, width, neurons chosen and their share, and the areas of the probe."""
        import pandas as pd

        rows = [
            {
                "site": name,
                "block": self.layers[name],
                "neurons": len(w),
                "chosen": len(self.indices[name]),
                "share": len(self.indices[name]) / len(w),
                "auc_train": self.auc_train[name],
                "auc_heldout": self.auc_heldout[name],
            }
            for name, w in self.weights.items()
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"SafetyNeurons({self.count} of {self.total} neurons at {len(self.indices)} sites)"


def _choice(w: Tensor, z: Tensor, tau: float | None, top_fraction: float | None) -> Tensor:
    if (tau is None) == (top_fraction is None):
        raise InputError("choose neurons by tau or by top_fraction, one of the two")
    if tau is not None:
        return ((z > tau) & (w > 0)).nonzero()[:, 0]
    if not 0 <= top_fraction <= 1:  # type: ignore[operator]
        raise InputError(f"top_fraction is a share from 0 to 1, not {top_fraction}")
    first = z.argsort(descending=True, stable=True)[: round(len(z) * top_fraction)]  # type: ignore[operator]
    return first[w[first] > 0].sort().values


def find_safety_neurons(
    model: Model,
    prompts: Any,
    labels: Any,
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
    batch_size: int | None = 32,
    progress: bool = False,
) -> SafetyNeurons:
    """Find the neurons whose probe weights for "guarded" lie far above the others of their site.

    A topic that only the guarded prompts have is found as well as the guard: compare with prompts that share the topics
    (`controls` of `safety_fragility_curve`), and give both classes the same lengths, with which maxima grow. The value
    that is read stands before the non-linearity, where negative is not "off".

    Args:
        model: the model under audit.
        prompts: texts as the model reads them (see `chat_prompts`), `Tokens`, images or a dict of inputs.
        labels: (n,) 1 for prompts that the guard is to decline, 0 for benign ones.
        sites: where neurons are read; see `neuron_sites`.
        tau, top_fraction: how neurons are chosen; see `SafetyNeurons.chosen`. Small models may have no z above 3.
            A `top_fraction` is used instead of `tau`, whatever that is.
        pool: "max", "mean" or "last" over the tokens of a prompt.
        probe: "adam" (published: values as they are, not converged), or "ridge" (standardised values, minimum).
        lr, weight_decay, epochs, runs: of "adam"; weights are means over `runs` starts from seeds seed, seed + 1, ...
        ridge: penalty of "ridge".
        heldout: share of each class kept apart for `auc_heldout`, which needs a second probe; 0 for none. The weights
            are of the probe on all prompts.
        legacy: take maxima over padding, too, as the released code does.
        seed: of the starts and of the prompts that are kept apart.
        batch_size: prompts in a pass.
        progress: show progress bars.

    Raises:
        InputError: one class, fewer than two prompts of a class, labels other than 0 and 1, more than a tenth of the
            prompts with values that are not finite, or settings out of range.
        SiteError: a pattern matches nothing.

    Source: Wu et al., 2026, NeuroStrike, white-box steps 1 and 2.
    """
    y = binary_labels(labels)
    if probe not in PROBES:
        raise UnknownNameError(unknown("probe", str(probe), PROBES))
    if epochs < 1 or runs < 1 or not 0 <= heldout < 1:
        raise InputError(f"expected epochs and runs from 1 and heldout in [0, 1), got {epochs}, {runs}, {heldout}")
    names = neuron_sites(model, sites)
    layers = neuron_layers(model, names)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    pooled, size = pooled_neurons(model, prompts, names, pool=pool, padding=legacy, **options)
    rows = len(next(iter(pooled.values())))
    if rows != len(y):
        raise InputError(f"{len(y)} labels for {rows} prompts")
    finite = {name: x.isfinite().all(1) for name, x in pooled.items()}
    for name, kept in finite.items():
        if (~kept).sum() > NAN_ROWS * len(kept):
            raise InputError(f"{name}: {int((~kept).sum())} of {len(kept)} prompts give values that are not finite")
    data = {name: (pooled[name][finite[name]], y[finite[name]]) for name in names}
    settings = {"probe": probe, "lr": lr, "weight_decay": weight_decay, "epochs": epochs, "runs": runs, "ridge": ridge}
    fit = _Probe(seed=seed, progress=progress, **settings)
    weights, biases = fit.all(data)
    found = SafetyNeurons(
        indices={},
        weights=weights,
        biases=biases,
        z={name: (w - w.mean()) / w.std(correction=0) for name, w in weights.items()},
        activity={name: size[name][finite[name]].mean(0) for name in names},
        layers=layers,
        auc_train={name: fit.area(weights[name], data[name], data[name]) for name in names},
        auc_heldout=_heldout_areas(fit, data, heldout, seed),
        dropped={name: int((~finite[name]).sum()) for name in names},
    )
    return found.chosen(None if top_fraction is not None else tau, top_fraction)


def _heldout_areas(fit: _Probe, data: Mapping[str, tuple[Tensor, Tensor]], share: float, seed: int) -> dict[str, float]:
    """Areas of probes of the other prompts on those kept apart."""
    if not share:
        return dict.fromkeys(data, float("nan"))
    rows = {name: _apart(y, share, seed) for name, (_, y) in data.items()}
    train, test = ({name: (x[rows[name][i]], y[rows[name][i]]) for name, (x, y) in data.items()} for i in (0, 1))
    weights, _ = fit.all(train)
    return {name: fit.area(w, test[name], train[name]) for name, w in weights.items()}


def _apart(y: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to learn from and rows kept apart, the same share of each class and one at least of each on either side."""
    random, train, test = np.random.default_rng(seed), [], []
    for value in (0, 1):
        rows = random.permutation((y == value).nonzero()[:, 0].numpy())
        k = min(max(1, round(len(rows) * share)), len(rows) - 1)
        test.append(rows[:k])
        train.append(rows[k:])
    return torch.as_tensor(np.sort(np.concatenate(train))), torch.as_tensor(np.sort(np.concatenate(test)))


@dataclass
class _Probe:
    """How the weights of each site are found."""

    probe: str
    lr: float
    weight_decay: float
    epochs: int
    runs: int
    ridge: float
    seed: int
    progress: bool

    def all(self, data: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and biases of each site from (values, labels)."""
        if self.probe == "ridge":
            pairs = {name: ridge_logistic(x.numpy(), y.numpy(), self.ridge) for name, (x, y) in data.items()}
            return (
                {name: torch.as_tensor(w).float() for name, (w, _) in pairs.items()},
                {name: torch.tensor(b) for name, (_, b) in pairs.items()},
            )
        weights: dict[str, Tensor] = {}
        biases: dict[str, Tensor] = {}
        # Sites of one shape with the same prompts are fitted in one pass: their regressions do not touch each other.
        alike: dict[Any, list[str]] = {}
        for name, (x, y) in data.items():
            alike.setdefault((tuple(x.shape), tuple(y.tolist())), []).append(name)
        for names in alike.values():
            x, y = torch.stack([data[name][0] for name in names]), data[names[0]][1]
            options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay, "epochs": self.epochs}
            drawn = [
                adam_logistic(x, y, seed=self.seed + run, progress=self.progress, **options) for run in range(self.runs)
            ]
            for i, name in enumerate(names):
                weights[name] = torch.stack([w[i] for w, _ in drawn]).mean(0)
                biases[name] = torch.stack([b[i] for _, b in drawn]).mean()
        return {name: weights[name] for name in data}, {name: biases[name] for name in data}

    def area(self, w: Tensor, rows: tuple[Tensor, Tensor], fitted: tuple[Tensor, Tensor]) -> float:
        """Area under the ROC curve on rows, of weights found on others."""
        x, y = rows
        if self.probe == "ridge":
            x = torch.as_tensor(standardised(x.double().numpy(), fitted[0].double().numpy()))
        return area_under_roc(x.double() @ w.double(), y)
