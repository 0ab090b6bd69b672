"""Small modules whose circuit is known because it was written down, and tasks from token ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import architectures
from actinium.core.model import Model
from actinium.core.task import Task


def task_of(clean, corrupt, answers, wrong, mask=None, metric="logit_diff") -> Task:
    """A task from ids (row, pos) and answers (row,)."""
    return Task.from_ids(clean, corrupt, answers, wrong, mask=mask, metric=metric)


def random_task(rows=3, length=7, changed=2, seed=0, padding=(), metric="logit_diff") -> Task:
    """Random ids for the tiny architectures; one token differs, and the first rows are padded on the left."""
    clean = architectures.token_ids(rows, length, seed)
    corrupt = clean.clone()
    corrupt[:, changed] = (clean[:, changed] - 3 + 11) % (architectures.VOCAB - 3) + 3
    mask = torch.ones_like(clean, dtype=torch.bool)
    for row, n in enumerate(padding):
        mask[row, :n] = False
    clean, corrupt = (torch.where(mask, ids, 0) for ids in (clean, corrupt))
    answers, wrong = torch.arange(rows) + 5, torch.arange(rows) + 25
    return task_of(clean, corrupt, answers, wrong, mask, metric)


class Gate(nn.Module):
    """Logit of token 1 = gate(a, b) at every position, where `a` and `b` read the first and the second token."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Identity(), nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        a, b = self.a(ids[:, :1].float()), self.b(ids[:, 1:2].float())
        out = a * b if self.kind == "and" else torch.maximum(a, b)
        return torch.stack([torch.zeros_like(out), out], -1).expand(-1, ids.shape[1], -1)


def gate_task() -> Task:
    """Clean (1, 1), corrupt (0, 0); the metric is the gate's output."""
    return task_of([[1, 1]], [[0, 0]], [1], [0])


class Parallel(nn.Module):
    """Linear: logits are the sum of linear maps of the embeddings' running mean, none of which reads another."""

    def __init__(self, parts: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(20, 6)
        self.parts = nn.ModuleList(nn.Linear(6, 20) for _ in range(parts))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        mean = x.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        return sum(part(mean) for part in self.parts)


def linear_task() -> Task:
    random = torch.Generator().manual_seed(1)
    clean, corrupt = (torch.randint(0, 20, (5, 4), generator=random) for _ in range(2))
    # Left to itself a random model prefers the answer in half of the rows only.
    model = Model(Parallel())
    logits = model.logits(clean)[:, -1]
    return task_of(clean, corrupt, logits.argmax(-1), logits.argmin(-1))


class Suppressed(nn.Module):
    """The clean token raises the answer's logit through `mover` and lowers it through `negative`."""

    def __init__(self) -> None:
        super().__init__()
        self.mover, self.negative = nn.Identity(), nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        on = ids.float()
        answer = 12.0 * self.mover(on) + 3.0 * self.negative(-on)
        other = torch.full_like(answer, 8.0)
        return torch.stack([other, answer], -1)


class Coincidence(nn.Module):
    """`b` is silent in both runs and speaks only where `a` comes from one and the second token from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Identity(), nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        a = self.a(ids[:, :1].float())
        b = self.b(torch.relu(a + ids[:, 1:] - 1.5))
        answer = a + 10.0 * b
        return torch.stack([torch.zeros_like(answer), answer], -1).expand(-1, ids.shape[1], -1)
