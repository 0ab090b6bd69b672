"""A gated MLP with exact zeros that computes only the units at work, and a predictor of which these are.

Source: Song et al., 2024, arXiv 2406.05955; predictors as in work on contextual sparsity, sizes and training are ours.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.core.estimator import Estimator
from actinium.core.progress import shown
from actinium.core.rows import as_rows
from actinium.functions.exchange.dual_relu import Gated, ShiftedReLU, find_gated_mlps

__all__ = ["NeuronPredictor", "SparseFFN"]


class NeuronPredictor(Estimator):
    """Which units of an MLP are at work for an input: sigmoid(relu(x A) B) above a threshold.

    Args:
        rank: columns of A; the larger of 64 and an eighth of the width if not given.
        threshold: score from which a unit is taken to be at work.
        pos_weight: weight of units at work in the loss; silent ones for each of them if not given.
        steps, rate, batch_size: of Adam.
        seed: of the start and the batches.

    Raises:
        InputError: at `fit`: no rows, or not as many of both.
    """

    fitted = "net_"

    def __init__(
        self,
        rank: int | None = None,
        threshold: float = 0.5,
        pos_weight: float | None = None,
        steps: int = 300,
        rate: float = 1e-2,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        self.rank, self.threshold, self.pos_weight, self.steps = rank, threshold, pos_weight, steps
        self.rate, self.batch_size, self.seed = rate, batch_size, seed

    def fit(self, x: Any, active: Tensor, progress: bool = False) -> Self:
        """Learn from inputs (n, d) and whether units are at work (n, h)."""
        rows = as_rows(x, "inputs", dtype=torch.float32)
        on = torch.as_tensor(active)
        if on.ndim != 2 or len(on) != len(rows):
            raise InputError(f"expected active ({len(rows)}, h), got shape {tuple(on.shape)}")
        on = on.to(rows)
        d, h = rows.shape[1], on.shape[1]
        rank = self.rank or max(64, d // 8)
        share = float(on.mean())
        weight = self.pos_weight or (1 - share) / max(share, 1e-6)
        random = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = nn.Sequential(nn.Linear(d, rank, bias=False), nn.ReLU(), nn.Linear(rank, h, bias=False)).to(
                rows.device
            )
        optimiser = torch.optim.Adam(net.parameters(), self.rate)
        for _ in shown(range(self.steps), "predictor", progress):
            part = torch.randint(len(rows), (self.batch_size,), generator=random).to(rows.device)
            loss = functional.binary_cross_entropy_with_logits(
                net(rows[part]), on[part], pos_weight=torch.tensor(weight, device=rows.device)
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.net_ = net.requires_grad_(False)
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Whether units are taken to be at work, (..., h) of (..., d)."""
        self.check_fitted()
        return torch.sigmoid(self.net_(x.float())) > self.threshold

    def score(self, x: Any, active: Tensor) -> dict[str, float]:
        """ "recall" (share of the units at work that are found) and "precision" on rows (n, d) and (n, h)."""
        found, on = self.predict(as_rows(x, "inputs", dtype=torch.float32)), torch.as_tensor(active).bool()
        both = float((found & on).sum())
        return {"recall": both / max(float(on.sum()), 1.0), "precision": both / max(float(found.sum()), 1.0)}


class SparseFFN(nn.Module):
    """A gated MLP that computes only the units at work for one of the rows it is given.

    Without a predictor its output is the dense one's: the gate is computed, and the rest for the union of the units
    whose gate is open. With one the gate too is computed only for the predicted units, and what is missed is lost.
    """

    def __init__(self, mlp: Gated, predictor: NeuronPredictor | None = None) -> None:
        super().__init__()
        self.gate, self.up, self.down = (mlp.part(i) for i in range(3))
        self.dual, self.shift = mlp.dual, mlp.act.b if isinstance(mlp.act, ShiftedReLU) else 0.0
        self.predictor = predictor
        self.computed = 0
        """Number of units for which the last call computed the map out."""

    @classmethod
    def from_dense(cls, ffn: nn.Module, predictor: NeuronPredictor | None = None) -> Self:
        """The sparse form of a gated MLP that `relufy` has changed, or whose activation is ReLU; weights are shared.

        Raises:
            InputError: it is no gated MLP, or has no exact zeros.
        """
        mlp = find_gated_mlps(ffn).get("")
        if mlp is None:
            raise InputError(f"{type(ffn).__name__} holds gated MLPs and is none; give one of them")
        if not isinstance(mlp.act, nn.ReLU | ShiftedReLU) and type(mlp.act).__name__ != "ReLUActivation":
            raise InputError(
                f"with {type(mlp.act).__name__} no unit is exactly 0; change the network with relufy first"
            )
        return cls(mlp, predictor)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) of (..., d)."""
        rows = x.flatten(0, -2) if x.ndim > 1 else x[None]
        if self.predictor is None:
            gate = functional.relu(self.gate(rows) - self.shift)
            chosen = (gate != 0).any(0).nonzero().flatten()
            gate = gate[:, chosen]
        else:
            wanted = self.predictor.predict(rows)
            chosen = wanted.any(0).nonzero().flatten()
            gate = functional.relu(_columns(self.gate, rows, chosen) - self.shift) * wanted[:, chosen]
        up = _columns(self.up, rows, chosen)
        a = gate * (functional.relu(up) if self.dual else up)
        kept = (a != 0).any(0).nonzero().flatten()
        self.computed = len(kept)
        y = functional.linear(a[:, kept], self.down.weight[:, chosen[kept]], self.down.bias)  # type: ignore[index, arg-type]
        return y.view(*x.shape[:-1], y.shape[-1])


def _columns(layer: Any, rows: Tensor, chosen: Tensor) -> Tensor:
    """A linear map's outputs at some of its units."""
    return functional.linear(rows, layer.weight[chosen], None if layer.bias is None else layer.bias[chosen])
