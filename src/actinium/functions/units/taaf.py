"""Transformative adaptive activation functions: any function, moved and stretched by four trained numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.base_functions import base_function

__all__ = ["TAAF"]


class TAAF(nn.Module):
    """a f(b x + c) + d with trained a, b, c and d, for each neuron or for all of them; f itself at the start.

    Args:
        base: f: a name of the catalogue, a module, or a callable.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels; -1 for the units of a linear layer.
        a, b, c, d: initial values.

    Raises:
        InputError: num_parameters is less than one, or the input has other channels.
        UnknownNameError: the catalogue has no such function.

    Source: Kunc and Kléma, 2021, "On transformative adaptive activation functions in neural networks for gene
    expression inference"; 2024, arXiv 2402.09249.
    """

    def __init__(
        self,
        base: str | Callable[[Tensor], Tensor] = "sigmoid",
        num_parameters: int = 1,
        channel_dim: int = 1,
        a: float = 1.0,
        b: float = 1.0,
        c: float = 0.0,
        d: float = 0.0,
    ) -> None:
        super().__init__()
        if num_parameters < 1:
            raise InputError(f"num_parameters is one or more, not {num_parameters}")
        self.base, self.num_parameters, self.channel_dim = base_function(base), num_parameters, channel_dim
        for name, value in (("a", a), ("b", b), ("c", c), ("d", d)):
            self.register_parameter(name, nn.Parameter(torch.full((num_parameters,), float(value))))

    def forward(self, x: Tensor) -> Tensor:
        """The function of a tensor of any shape."""
        a, b, c, d = (self._spread(p, x) for p in (self.a, self.b, self.c, self.d))
        return a * self.base(b * x + c) + d

    def _spread(self, value: Tensor, x: Tensor) -> Tensor:
        if self.num_parameters == 1:
            return value.view(()).to(x.dtype)
        if not -x.ndim <= self.channel_dim < x.ndim or x.shape[self.channel_dim] != self.num_parameters:
            raise InputError(
                f"this TAAF has parameters for {self.num_parameters} channels in dimension {self.channel_dim}, which a "
                f"tensor of shape {tuple(x.shape)} does not have"
            )
        shape = [1] * x.ndim
        shape[self.channel_dim] = self.num_parameters
        return value.view(shape).to(x.dtype)

    def extra_repr(self) -> str:
        """Number of parameter sets."""
        return f"num_parameters={self.num_parameters}, channel_dim={self.channel_dim}"
