"""Distributed alignment search: learn the subspace whose exchange makes the model answer as the source does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actinium.circuits.patching.contrast import check_task
from actinium.circuits.patching.nodes import node_sets
from actinium.circuits.subspaces.directions import orthonormal
from actinium.circuits.subspaces.subspace_patch import ENDS, subspace_patch
from actinium.core.edits import ReplaceWithin
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.result import Result
from actinium.core.task import Task

__all__ = ["DAS"]

LOSSES = ("cross_entropy", "logit_diff")
# The rate goes linearly from the first share of `lr` to the second over the epochs.
RATES = (1 / 3, 0.1)


class DAS(SavedEstimator):
    """Learns a subspace of a site by gradient descent over orthonormal directions.

    Only the first k rows of the rotation enter the exchange, so only these are learned. Positions that differ from
    row to row are given to `fit`, `score` and `evaluate`.

    Args:
        site: name of the site.
        k: dimensions of the subspace.
        positions: token positions that are patched together (0 first, -1 last); None for all.
        head: of a site with heads.
        mode: which run of a pair is the base, "noise" (the clean one), "denoise" or "both".
        loss: "cross_entropy" of the source's answer over the vocabulary, or "logit_diff" of the base's answer over it.
        lr: learning rate of Adam; it is used from a third to a tenth, falling linearly over the epochs.
        batch_size: pairs in a step.
        epochs: passes over the pairs.
        seed: of the first directions and of the order of the pairs.

    Attributes:
        directions_: (k, d) float64, orthonormal.
        loss_: (epoch,) mean loss of each epoch.

    Source: Geiger et al., 2023 (the search); Makelov, Lange and Nanda, 2023, section 4 (the settings).
    """

    fitted = "directions_"
    saved_as = "alignment search"

    def __init__(
        self,
        site: str,
        k: int = 1,
        *,
        positions: int | list[int] | None = -1,
        head: int | None = None,
        mode: str = "both",
        loss: str = "cross_entropy",
        lr: float = 0.01,
        batch_size: int = 20,
        epochs: int = 30,
        seed: int = 0,
    ) -> None:
        self.site, self.k, self.positions, self.head = site, k, positions, head
        self.mode, self.loss, self.lr = mode, loss, lr
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed

    def fit(self, model: Model, task: Task, *, positions: Any = None, progress: bool = False) -> Self:
        """Learn the directions on the pairs of a task.

        Args:
            model: a causal language model.
            task: pairs that differ in the feature; keep names or templates apart for `score`.
            positions: in place of those of the constructor, for example (row, m) other ones in each row.
            progress: show a progress bar.

        Raises:
            InputError: k does not fit the site, a setting is out of range, or clean and corrupt runs do not differ at
                the site.
            SiteError: the site does not exist.
            UnknownNameError: there is no such mode or loss.
        """
        where = self.positions if positions is None else positions
        width = self._check(model, task, where)
        pairs = _pairs(model, task, self, where)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            layer = nn.utils.parametrizations.orthogonal(nn.Linear(width, self.k, bias=False, device=model.device))
        optimiser = torch.optim.Adam(layer.parameters(), lr=self.lr)
        start, end = RATES
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, start, end, total_iters=self.epochs)
        random = torch.Generator().manual_seed(self.seed)
        losses = []
        for _ in shown(range(self.epochs), "learning directions", progress):
            total = 0.0
            for rows in torch.randperm(len(pairs.source_ids), generator=random).split(self.batch_size):
                optimiser.zero_grad()
                loss = self._loss(model, pairs, rows, layer.weight)
                # The gradient of the directions alone: none is left behind in the model's parameters.
                grads = torch.autograd.grad(loss, list(layer.parameters()))
                for parameter, grad in zip(layer.parameters(), grads, strict=True):
                    parameter.grad = grad
                optimiser.step()
                total += float(loss.detach()) * len(rows)
            schedule.step()
            losses.append(total / len(pairs.source_ids))
        self.directions_ = orthonormal(layer.weight.detach())
        self.loss_: NDArray[np.float64] = np.array(losses)
        return self

    def _check(self, model: Model, task: Task, positions: Any) -> int:
        """Width of the site."""
        check_task(model, task)
        if self.mode not in ENDS:
            raise UnknownNameError(unknown("mode", str(self.mode), ENDS))
        if self.loss not in LOSSES:
            raise UnknownNameError(unknown("loss", str(self.loss), LOSSES))
        if self.epochs < 1 or self.batch_size < 1 or not self.lr > 0:
            raise InputError(
                f"expected epochs >= 1, batch_size >= 1 and lr > 0, got {self.epochs}, {self.batch_size}, {self.lr}"
            )
        nodes = node_sets(model, task, self.site, "layer", positions, self.head)
        if len(nodes.sites) != 1:
            raise InputError(f"{self.site!r} means {len(nodes.sites)} sites; a subspace belongs to one")
        ((site, _, _),) = model.resolve(self.site)
        size = site.sizes.get(site.dims[-1]) if site.dims else None
        if size is None or site.dims[-1] == "key":
            raise InputError(f"{site.name}: a subspace needs a site whose last dimension has a known size")
        if {"head", "kv_head"} & set(site.dims) and self.head is None:
            raise InputError(f"{site.name}: a direction belongs to one head; give head=")
        if not 1 <= self.k <= size:
            raise InputError(f"k must be from 1 to {size} at {site.name}, got {self.k}")
        if bool((task.answer_ids == task.wrong_ids).all()):
            raise InputError("every pair has the same answer twice: no feature differs between base and source")
        return int(size)

    def _loss(self, model: Model, pairs: _Pairs, rows: Tensor, directions: Tensor) -> Tensor:
        value = pairs.source[rows]
        where = pairs.positions[rows] if isinstance(pairs.positions, Tensor) else pairs.positions
        edit = ReplaceWithin(value, directions).at(positions=where, heads=self.head)
        with torch.enable_grad(), model.edit({self.site: edit}):
            logits = model.logits(Tokens(pairs.ids[rows], pairs.mask[rows], torch.arange(len(rows))))[:, -1]
        base, source = (ids[rows].to(logits.device) for ids in (pairs.base_ids, pairs.source_ids))
        if self.loss == "cross_entropy":
            return nn.functional.cross_entropy(logits.float(), source)
        return (logits.gather(1, base[:, None]) - logits.gather(1, source[:, None])).float().mean()

    def evaluate(self, model: Model, task: Task, *, positions: Any = None, **options: Any) -> Result:
        """Effect of exchanging the learned subspace on the pairs of a task; see `subspace_patch`.

        Args:
            model: the model.
            task: pairs, best with names or templates that `fit` has not seen.
            positions: in place of those of the constructor.
            **options: of `subspace_patch`.

        Raises:
            InputError: `fit` was not called.
        """
        found = self._fitted()
        where = self.positions if positions is None else positions
        options = {"mode": self.mode, **options}
        return subspace_patch(model, task, self.site, {"DAS": found}, positions=where, heads=self.head, **options)

    def score(self, model: Model, task: Task, *, positions: Any = None) -> float:
        """Interchange accuracy on the pairs of a task, from 0 to 1.

        Raises:
            InputError: `fit` was not called.
        """
        found = self.evaluate(model, task, positions=positions, compare=False)
        return float(found["interchange_accuracy"].sel(patch="DAS"))

    def _fitted(self) -> Tensor:
        self.check_fitted()
        return self.directions_

    def _state(self) -> State:
        return {"directions": self.directions_, "loss": torch.from_numpy(self.loss_)}, {}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.directions_, self.loss_ = tensors["directions"], tensors["loss"].numpy()


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Base prompts (row, pos), their answers and the sources' (row,), and the sources' activations."""

    ids: Tensor
    mask: Tensor
    base_ids: Tensor
    source_ids: Tensor
    source: Tensor
    positions: Any


def _pairs(model: Model, task: Task, search: DAS, positions: Any) -> _Pairs:
    forward = task.clean_ids, task.corrupt_ids, task.answer_ids, task.wrong_ids
    backward = task.corrupt_ids, task.clean_ids, task.wrong_ids, task.answer_ids
    ends = [{"noise": forward, "denoise": backward}[end] for end in ENDS[search.mode]]
    base, source, base_ids, source_ids = (torch.cat(parts) for parts in zip(*ends, strict=True))
    mask = task.mask.repeat(len(ends), 1)
    rows = torch.arange(len(mask))
    own, other = (model.record(Tokens(ids, mask, rows), search.site)[search.site] for ids in (base, source))
    where = positions.repeat(len(ends), 1) if isinstance(positions, Tensor) and positions.ndim == 2 else positions
    if torch.equal(own, other):
        raise InputError(f"clean and corrupt runs are the same at {search.site}: there is nothing to exchange")
    return _Pairs(base, mask, base_ids, source_ids, other, where)
