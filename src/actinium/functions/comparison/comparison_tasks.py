"""Small tasks on which activation functions are compared: digits, shapes, language, regression, or one of one's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError, unknown

__all__ = ["TASKS", "ComparisonTask", "task"]

Factory = Callable[[], nn.Module]


@dataclass(frozen=True, eq=False)
class ComparisonTask:
    """A network without its activation function, data, and what is measured.

    Args:
        name: what results call it.
        build: from a factory of activation modules to a network; weights come from the global generator.
        train, test: inputs and targets, (n, ...) each.
        loss: of outputs and targets, a scalar.
        score: of outputs and targets, a number.
        metric: name of the score.
        higher_is_better: whether a larger score is.
        epochs, batch_size, rate: of training with Adam.
        continuous: whether inputs are real numbers, to which noise can be added.
        facts: what else the provenance of a comparison holds, such as a model's fingerprint.
    """

    name: str
    build: Callable[[Factory], nn.Module]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    metric: str
    higher_is_better: bool = True
    epochs: int = 15
    batch_size: int = 64
    rate: float = 2e-3
    continuous: bool = True
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part, (x, y) in (("training", self.train), ("test", self.test)):
            if len(x) != len(y) or not len(x):
                raise InputError(
                    f"{part} has {len(x)} inputs and {len(y)} targets; as many of both, one or more, are needed"
                )
            if x.is_floating_point() and not bool(x.isfinite().all()):
                raise InputError(f"inputs of {part} are not finite")
        if min(self.epochs, self.batch_size) < 1 or self.rate <= 0:
            raise InputError("epochs and batch_size are one or more, and the rate is above 0")

    def batches(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in a new order."""
        for part in torch.randperm(len(self.train[0]), generator=generator).split(self.batch_size):
            yield self.train[0][part], self.train[1][part]


def mlp(sizes: list[int], activation: Factory) -> nn.Sequential:
    """Linear layers of these sizes with an activation between them."""
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        parts += [*([activation()] if i else []), nn.Linear(a, b)]
    return nn.Sequential(*parts)


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(-1) == targets).double().mean())


def _digits(epochs: int = 15, depth: int = 3, width: int = 64) -> ComparisonTask:
    from actinium.world import digits

    parts = [digits.load(split) for split in ("train", "test")]
    mean, sd = parts[0].images.flatten(1).mean(0), parts[0].images.flatten(1).std(0).clamp(min=1e-3)
    train, test = (((p.images.flatten(1) - mean) / sd, p.labels) for p in parts)
    sizes = [64, *[width] * depth, 10]
    return ComparisonTask(
        "digits",
        lambda act: mlp(sizes, act),
        train,
        test,
        functional.cross_entropy,
        _accuracy,
        "accuracy",
        epochs=epochs,
    )


def _shapes(epochs: int = 4, n: int = 1200) -> ComparisonTask:
    from actinium.world import shapes

    parts = [shapes.render(size, seed=seed) for size, seed in ((n, 0), (n // 3, 1))]

    def build(activation: Factory) -> nn.Module:
        layers: list[nn.Module] = []
        for a, b in ((3, 16), (16, 24), (24, 32)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), activation(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, len(parts[0].classes)))

    train, test = ((p.images.float() - 0.5, p.labels) for p in parts)
    return ComparisonTask("shapes", build, train, test, functional.cross_entropy, _accuracy, "accuracy", epochs=epochs)


def _regression(epochs: int = 60, n: int = 1000) -> ComparisonTask:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(n + n // 2, 6, generator=source)
    y = torch.stack([x[:, i] * x[:, j] for i in range(6) for j in range(i)]).sum(0)
    y = ((y - y[:n].mean()) / y[:n].std())[:, None]
    return ComparisonTask(
        "regression", lambda act: mlp([6, 32, 32, 1], act), (x[:n], y[:n]), (x[n:], y[n:]), functional.mse_loss,
        lambda out, target: float((out - target).square().mean()), "mean squared error", higher_is_better=False,
        epochs=epochs, rate=5e-3, facts={"target": "sum of the products of pairs of 6 normal inputs, standardised"},
    )  # fmt: skip


class _Decoder(nn.Module):
    """A transformer of two blocks over token ids, whose MLPs have the activation."""

    def __init__(
        self, vocabulary: int, activation: Factory, width: int = 48, heads: int = 4, context: int = 32
    ) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(2))
        self.mlps = nn.ModuleList(mlp([width, 4 * width, width], activation) for _ in range(2))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        later = torch.ones(n, n, dtype=torch.bool, device=ids.device).triu(1)
        x = self.embed(ids) + self.place(torch.arange(n, device=ids.device))
        for i in range(2):
            y = self.norms[2 * i](x)
            x = x + self.attention[i](y, y, y, attn_mask=later, need_weights=False)[0]
            x = x + self.mlps[i](self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x))


def _lm(epochs: int = 3, windows: int = 900, context: int = 32) -> ComparisonTask:
    from actinium.world import corpus, tokenizer

    reader: Any = tokenizer.build(corpus.vocabulary(), context)
    count, length = windows + windows // 3, context + 1
    ids: list[int] = []
    source = random.Random(0)
    while len(ids) < count * length:
        ids += [i for document in corpus.documents(source, 100) for i in reader(document.text)["input_ids"]]
    rows = torch.tensor(ids[: count * length]).view(count, length)
    some, rest = rows[:windows], rows[windows:]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return ComparisonTask(
        "lm", lambda act: _Decoder(len(reader), act), (some[:, :-1], some[:, 1:]), (rest[:, :-1], rest[:, 1:]), loss,
        lambda out, target: float(loss(out, target)), "cross-entropy (nats)", higher_is_better=False, epochs=epochs,
        batch_size=32, rate=3e-3, continuous=False,
    )  # fmt: skip


TASKS: dict[str, Callable[..., ComparisonTask]] = {
    "digits": _digits,
    "shapes": _shapes,
    "lm": _lm,
    "regression": _regression,
}


def task(name: str, **settings: Any) -> ComparisonTask:
    """A task that comes with the package.

    Args:
        name: "digits" (an MLP of three layers of 64), "shapes" (a small convolutional network), "lm" (a transformer of
            two blocks on the text of the small world) or "regression" (products of inputs).
        settings: such as `epochs`.

    Raises:
        InputError: there is no such task.
    """
    if name not in TASKS:
        raise InputError(unknown("task", name, list(TASKS)))
    return TASKS[name](**settings)
