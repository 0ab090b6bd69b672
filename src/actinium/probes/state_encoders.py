"""Encoders of stacked internal states: a small residual CNN, a transformer over the layers, and a perceptron."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ENCODERS", "StateCNN", "StateMLP", "StateTransformer"]

WIDTHS = (32, 64, 128)


class _Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class StateCNN(nn.Module):
    """Reads the stack as an image: states are channels, layers its height, the stream its width.

    The order of the stream's entries is that of the model, the same in training and use. Entries have no
    neighbourhood, so what a filter finds in one place need not mean the same in another. A stream wider than `width` is
    read at every s-th place, by filters that are wide enough to miss none.
    """

    size = WIDTHS[-1]

    def __init__(self, states: int, layers: int, d: int, width: int) -> None:
        super().__init__()
        first, second, third = WIDTHS
        step = -(-d // width)
        self.stem = nn.Sequential(
            nn.Conv2d(states, first, (3, 2 * step + 1), (1, step), (1, step), bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(
            _Residual(first, first, 1), _Residual(first, second, 2), _Residual(second, third, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, size) from (n, state, layer, d)."""
        return self.blocks(self.stem(x)).mean((-2, -1))


class StateTransformer(nn.Module):
    """Reads each layer's states as one token, and takes the mean over the layers."""

    def __init__(self, states: int, layers: int, d: int, width: int) -> None:
        super().__init__()
        self.size = width
        self.token = nn.Linear(states * d, self.size)
        self.layer = nn.Parameter(0.02 * torch.randn(layers, self.size))
        self.body = nn.ModuleList(
            nn.TransformerEncoderLayer(self.size, 4, 2 * self.size, batch_first=True) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, size) from (n, state, layer, d)."""
        x = self.token(x.transpose(1, 2).flatten(2)) + self.layer
        for block in self.body:
            x = block(x)
        return x.mean(1)


class StateMLP(nn.Module):
    """Reads all states side by side."""

    size = 128

    def __init__(self, states: int, layers: int, d: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(states * layers * d, width), nn.ReLU(), nn.Linear(width, self.size), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, size) from (n, state, layer, d)."""
        return self.body(x)


ENCODERS: dict[str, type[StateCNN] | type[StateTransformer] | type[StateMLP]] = {
    "cnn": StateCNN,
    "transformer": StateTransformer,
    "mlp": StateMLP,
}
