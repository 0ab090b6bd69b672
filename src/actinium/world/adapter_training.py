"""Training low-rank adapters on a frozen model of the world: factors, merged weights, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from actinium.core.errors import InputError
from actinium.world import shipped

if TYPE_CHECKING:
    from actinium.world.organisms import Organism
    from actinium.world.variants import Variant

__all__ = ["AdapterTraining", "Factors", "Progress", "first_factors", "run"]

Factors = dict[str, tuple[Tensor, Tensor]]
Progress = Callable[[int, float], None]
"""Called after every step with the number of finished steps and the loss, or the mean reward."""


def first_factors(
    model: nn.Module, rank: int, seed: int, maps: Sequence[str] = (), layers: Sequence[int] = ()
) -> Factors:
    """A drawn from the seed and B zero for matrices of the blocks, so that training starts at the base.

    Args:
        model: the base.
        rank: of the product.
        seed: of A.
        maps: last parts of the names of the matrices, for example "down_proj"; all of them by default.
        layers: numbers of the blocks; all of them by default.

    Raises:
        InputError: there is no such matrix.
    """
    source = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or ".layers." not in f".{name}":
            continue
        block = int(name.split("layers.")[1].split(".")[0])
        if (maps and name.rpartition(".")[2] not in maps) or (layers and block not in layers):
            continue
        wide = module.in_features
        a = (torch.rand(rank, wide, generator=source) * 2 - 1) / math.sqrt(wide)
        found[name] = (a.requires_grad_(), torch.zeros(module.out_features, rank, requires_grad=True))
    if not found:
        raise InputError(f"the model has no matrices {', '.join(maps)} in the blocks {', '.join(map(str, layers))}")
    return found


class AdapterTraining:
    """The state of one training: the frozen base, the factors, their optimiser.

    Args:
        settings: of the adapter and its training.
        maps, layers: see `first_factors`.
    """

    def __init__(self, settings: Variant | Organism, maps: Sequence[str] = (), layers: Sequence[int] = ()) -> None:
        self.settings, self.step = settings, 0
        self.base, self.tokenizer = shipped.load(shipped.path(settings.base))
        self.weights = {name: p.requires_grad_(False) for name, p in self.base.named_parameters()}
        self.factors = first_factors(self.base, settings.rank, settings.seed, maps, layers)
        self.source = torch.Generator().manual_seed(settings.seed)
        pieces = [piece for pair in self.factors.values() for piece in pair]
        self.optimiser = torch.optim.AdamW(pieces, lr=settings.rate, weight_decay=0.0, betas=(0.9, 0.95))

    def merged(self) -> dict[str, Tensor]:
        """The weights of the base with the updates added, as functions of the factors."""
        scale = self.settings.alpha / self.settings.rank
        changed = {f"{name}.weight": scale * (b @ a) for name, (a, b) in self.factors.items()}
        return {name: p + changed[name] if name in changed else p for name, p in self.weights.items()}

    def logits(self, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
        """Logits (row, pos, token) of ids that are padded on the right, where a causal model does not look."""
        found: Tensor = functional_call(self.base, weights, (ids,), {"use_cache": False}).logits
        return found

    def loss(self, weights: dict[str, Tensor]) -> tuple[Tensor, float]:
        """The loss of the next step at merged weights, and the number to show for it."""
        raise TypeError(f"{type(self).__name__} must define loss()")

    def advance(self) -> float:
        """Take one step; returns the loss, or the mean reward."""
        loss, shown = self.loss(self.merged())
        rise = min(1.0, (self.step + 1) / self.settings.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.rate * rise * (1 - self.step / self.settings.steps)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.step += 1
        return shown


def run(make: Callable[[], AdapterTraining], settings: Variant | Organism, progress: Progress | None = None) -> Factors:
    """Train to the last step; deterministic for the seed on one kind of machine.

    Args:
        make: makes the training, when the number of processor threads is set.
        settings: `threads` processor threads are used.
        progress: called after every step.

    Returns:
        The factors of the adapter by module.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        training = make()
        while training.step < settings.steps:
            shown = training.advance()
            if progress is not None:
                progress(training.step, shown)
        return {name: (a.detach(), b.detach()) for name, (a, b) in training.factors.items()}
    finally:
        torch.set_num_threads(before)
