"""Probes of hidden states for guarded content and for refusals, with a loss that edits of a text can lower."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator
from actinium.core.intervals import area_under_roc
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.guard.audit.drifted_states import last_token_states
from actinium.guard.audit.neurons.logistic import ridge_logistic
from actinium.guard.audit.neurons.neuron_sites import binary_labels
from actinium.guard.audit.replies import Judge, refused_share, replies_to

__all__ = ["HiddenStateGuardProbe", "guard_probe_layers", "reply_labels"]

PAPER = "agile-audit"


class HiddenStateGuardProbe(SavedEstimator):
    """Tells guarded (1) from benign (0) prompts, or refused from answered ones, by the state of the last token.

    The loss of a state is softplus(z_1 - z_0) = -log p(benign): log 2 on the boundary, 0 far on the benign side.
    With several layers there is a probe for each, and logits are their means.

    Args:
        layers: blocks whose residual streams are read; the last one as published (it encodes the next token: compare
            with `guard_probe_layers`).
        kind: "mlp" (d-100-50-2, ReLU) or "linear" (logistic regression with a ridge; logits are 0 and w . a + b).
        hidden: widths of the MLP.
        lr, iterations: of Adam on the whole set ("mlp").
        ridge: of the linear one, on features of standard deviation 1.
        heldout: share of each class that is kept apart, two of each at least; whole groups where groups are given.
        seed: of the order, the division and the first weights.

    Attributes:
        auc_, accuracy_: on what was held out. n_train_: rows that were trained on.

    Source: Wang et al., 2025, AGILE (released probe); linear and multi-layer forms and groups are additions.
    """

    fitted = "networks_"
    saved_as = "guard probe"

    def __init__(
        self,
        layers: Sequence[int] = (-1,),
        *,
        kind: str = "mlp",
        hidden: Sequence[int] = (100, 50),
        lr: float = 1e-3,
        iterations: int = 200,
        ridge: float = 1e-2,
        heldout: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.layers, self.kind, self.hidden, self.lr, self.iterations = layers, kind, hidden, lr, iterations
        self.ridge, self.heldout, self.seed = ridge, heldout, seed

    def states(self, model: Model, prompts: Sequence[str], batch_size: int | None = None) -> Tensor:
        """States (n, layer, d) of whole prompts at the probe's layers."""
        return last_token_states(model, prompts, list(self.layers), batch_size=batch_size)

    def fit(self, acts: Any, labels: Any, groups: Any = None, *, progress: bool = False) -> Self:
        """Train on states.

        Args:
            acts: (n, d), or (n, layer, d) with one layer for each of `layers`.
            labels: (n,) of 0 and 1. Classes are made equal: each is shuffled, and the larger one cut.
            groups: (n,) names of groups, such as topics, that are not divided between training and held-out rows.
            progress: show a progress bar.

        Raises:
            InputError: one class only, too few rows, states that do not fit or are not finite.
            UnknownNameError: there is no such kind.
        """
        if self.kind not in ("mlp", "linear"):
            raise UnknownNameError(unknown("kind of probe", str(self.kind), ("mlp", "linear")))
        if self.iterations < 1 or not self.lr > 0 or not 0 < self.heldout < 1:
            raise InputError("iterations and lr are positive, and heldout is a share between 0 and 1")
        x, y = self._rows(acts), binary_labels(labels)
        if len(y) != len(x):
            raise InputError(f"{len(x)} states and {len(y)} labels")
        named = np.arange(len(y)).astype(str) if groups is None else np.array([str(g) for g in groups])
        if len(named) != len(y):
            raise InputError(f"{len(y)} labels and {len(named)} groups")
        train, test = self._division(y.numpy(), named)
        networks = [
            self._trained(x[train, i], y[train], i)
            for i in shown(range(x.shape[1]), "probes", progress and x.shape[1] > 1)
        ]
        self.networks_, self.n_train_ = networks, len(train)
        logits = self.logits(x[test])
        score = (logits[:, 1] - logits[:, 0]).numpy()
        self.auc_ = area_under_roc(score, y[test].numpy())
        self.accuracy_ = float(((score > 0) == (y[test].numpy() == 1)).mean())
        return self

    def _rows(self, acts: Any) -> Tensor:
        x = torch.as_tensor(acts).detach().float().cpu()
        x = x[:, None] if x.ndim == 2 else x
        if x.ndim != 3 or not len(x) or x.shape[1] != len(self.layers):
            raise InputError(
                f"states are (n, {len(self.layers)}, d) for {len(self.layers)} layers, got {tuple(x.shape)}"
            )
        if not bool(torch.isfinite(x).all()):
            raise InputError("states are NaN or infinite")
        return x

    def _division(self, y: Any, groups: Any) -> tuple[list[int], list[int]]:
        """Rows to train on and rows held out, as many of each class."""
        random = np.random.default_rng(self.seed)
        least = int(min((y == 0).sum(), (y == 1).sum()))
        wanted = max(2, round(self.heldout * least))
        train: list[int] = []
        test: list[int] = []
        for value in (0, 1):
            rows = random.permutation(np.flatnonzero(y == value))[:least]
            names = random.permutation(np.unique(groups[rows]))
            apart: set[str] = set()
            for name in names:
                if np.isin(groups[rows], list(apart)).sum() >= wanted:
                    break
                apart.add(name)
            inside = np.isin(groups[rows], list(apart))
            test += rows[inside].tolist()
            train += rows[~inside].tolist()
        # A group of both classes that was held out for one of them is held out for the other.
        shared = set(groups[test].tolist())
        train = [row for row in train if groups[row] not in shared]
        if any(sum(y[rows] == v) < 2 for rows in (train, test) for v in (0, 1)):
            raise InputError("too few rows or groups: two of each class are needed to train on, and two held out")
        return train, test

    def _trained(self, x: Tensor, y: Tensor, place: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1009 + place)
            network = self._network(x.shape[1])
        if self.kind == "linear":
            w, b = ridge_logistic(x, y, self.ridge)
            known = x.double().numpy()
            spread = known.std(0)
            w = w / np.where(spread > 1e-12 * (1 + np.abs(known).max(0)), spread, np.inf)
            with torch.no_grad():
                network.weight.copy_(torch.tensor(np.stack([np.zeros_like(w), w])))
                network.bias.copy_(torch.tensor([0.0, b - float(w @ known.mean(0))]))
            return network.requires_grad_(False)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.lr)
        for _ in range(self.iterations):
            optimiser.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(network(x), y.long()).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return network.requires_grad_(False)

    def _network(self, width: int) -> Any:
        if self.kind == "linear":
            return nn.Linear(width, 2)
        sizes = [width, *self.hidden]
        parts: list[nn.Module] = []
        for one, other in pairwise(sizes):
            parts += [nn.Linear(one, other), nn.ReLU()]
        return nn.Sequential(*parts, nn.Linear(sizes[-1], 2))

    def logits(self, acts: Any) -> Tensor:
        """(n, 2), means over layers."""
        self.check_fitted()
        x = self._rows(acts)
        with torch.no_grad():
            return torch.stack([network(x[:, i]) for i, network in enumerate(self.networks_)]).mean(0)

    def loss(self, acts: Any) -> Tensor:
        """softplus(z_1 - z_0) of each state (n,)."""
        logits = self.logits(acts)
        return nn.functional.softplus(logits[:, 1] - logits[:, 0])

    def predict(self, acts: Any) -> Tensor:
        """1 (guarded) or 0 for each state (n,)."""
        logits = self.logits(acts)
        return (logits[:, 1] > logits[:, 0]).long()

    def margin(self, acts: Any) -> Tensor:
        """Distance (w . a + b) / |w| of each state to the boundary (n,), above 0 on the guarded side.

        A state that moves less than this cannot cross.

        Raises:
            InputError: the probe is not linear, or has several layers.
        """
        self.check_fitted()
        if self.kind != "linear" or len(self.layers) != 1:
            raise InputError("a margin is known for a linear probe of one layer")
        logits = self.logits(acts)
        w = self.networks_[0].weight
        distance: Tensor = (logits[:, 1] - logits[:, 0]) / (w[1] - w[0]).norm()
        return distance

    def check_meaningful(self, least: float = 0.7) -> None:
        """Refuse a probe that does not know its classes.

        Raises:
            InputError: the area under the ROC curve on held-out rows is below `least`.
        """
        self.check_fitted()
        if self.auc_ < least:
            raise InputError(
                f"the probe's area under the ROC curve on held-out rows is {self.auc_:.2f}, below {least}: what edits "
                "do to it says nothing; read other layers or more prompts"
            )

    def _settings(self) -> dict[str, Any]:
        return self.get_params() | {"layers": [int(i) for i in self.layers], "hidden": [int(i) for i in self.hidden]}

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        found = {f"{i}.{k}": v for i, network in enumerate(self.networks_) for k, v in network.state_dict().items()}
        return found, {"auc": self.auc_, "accuracy": self.accuracy_, "n_train": self.n_train_}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        networks = []
        for i in range(len(self.layers)):
            state = {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{i}.")}
            width = next(v for v in state.values() if v.ndim == 2).shape[1]
            network = self._network(width)
            network.load_state_dict(state)
            networks.append(network.requires_grad_(False))
        self.networks_ = networks
        self.auc_, self.accuracy_, self.n_train_ = about["auc"], about["accuracy"], about["n_train"]


def reply_labels(model: Model, prompts: Sequence[str], judge: Judge, **options: Any) -> Tensor:
    """1 for prompts whose reply refuses, 0 for the others: what the refusal probe is trained on.

    Args:
        model: the model.
        prompts: whole prompts.
        judge: from prompt and reply to whether the reply refuses. One by keywords takes partial answers for either.
        **options: of `replies_to`.
    """
    replies = replies_to(model, prompts, **options)
    return torch.tensor([refused_share(judge, [p], [r]) for p, r in zip(prompts, replies, strict=True)])


def guard_probe_layers(
    model: Model,
    prompts: Sequence[str],
    labels: Any,
    groups: Any = None,
    *,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    **settings: Any,
) -> Result:
    """How well probes of single layers tell the classes: the last one knows the next token best, not the content.

    Args:
        model: the model.
        prompts, labels, groups: as of `HiddenStateGuardProbe.fit`, with whole prompts in place of states.
        layers: blocks; all by default.
        batch_size: prompts in a pass.
        progress: show a progress bar.
        **settings: of `HiddenStateGuardProbe`.

    Returns:
        Result over layer: `auc` and `accuracy` on held-out rows.

    Raises:
        InputError, SiteError: as of `HiddenStateGuardProbe.fit`.
    """
    blocks = list(range(model.n_layers)) if layers is None else [int(i) for i in layers]
    states = last_token_states(model, prompts, blocks, batch_size=batch_size)
    probes = [
        HiddenStateGuardProbe([block], **settings).fit(states[:, i], labels, groups)
        for i, block in enumerate(shown(blocks, "layers", progress))
    ]
    values = {"auc": ("layer", [p.auc_ for p in probes]), "accuracy": ("layer", [p.accuracy_ for p in probes])}
    record = provenance(model, [list(prompts), torch.as_tensor(labels)], settings.get("seed", 0), **settings)
    return Result(xr.Dataset(values, coords={"layer": blocks}), "guard_probe_layers", PAPER, record)
