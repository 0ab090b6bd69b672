"""Base of functions that hold arrays of weights: for all values, for each channel, or for each unit."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.registry import functional
from actinium.functions.units.channel_units import ChannelUnit

__all__ = ["ArrayUnit", "fitted_weights", "member", "normal_points"]

Function = Callable[[Tensor], Tensor]


def member(function: str | Function) -> Function:
    """A function of the catalogue by its name, at its defaults; callables are given back.

    Raises:
        UnknownNameError: there is no such function.
        InputError: it has a state, or is neither a name nor callable.
    """
    if isinstance(function, str):
        return functional(function)
    if not callable(function):
        raise InputError(f"an activation function is a name or a callable, not {function!r}")
    return function


def normal_points() -> tuple[Tensor, Tensor]:
    """Points (n,) and the standard normal mass at each, in float64."""
    x = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    return x, torch.exp(-x.square() / 2) * (1e-3 / math.sqrt(2 * math.pi))


def fitted_weights(terms: Callable[[Tensor], Tensor], function: str | Function, x: Tensor, mass: Tensor) -> Tensor:
    """Coefficients (k,) of the terms that are nearest to a function in weighted mean square.

    Args:
        terms: x (n,) -> values (k, n), in float64.
        function: what is to be approximated.
        x: points (n,), float64.
        mass: weights of their squared errors (n,).

    Raises:
        InputError: the function is not finite there.
    """
    wanted = member(function)(x)
    if not wanted.isfinite().all():
        raise InputError(f"the function to start from is not finite on [{float(x.min()):g}, {float(x.max()):g}]")
    root = mass.sqrt()
    return torch.linalg.lstsq((terms(x) * root).T, (wanted * root)[:, None]).solution[:, 0]


class ArrayUnit(ChannelUnit):
    """A function whose weights are arrays.

    Subclasses call `learn` for each array in their constructor and define `response(x, **weights)`, which gets every
    array as it broadcasts with x: its own dimensions first, then those of the channels.

    Args:
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels; -1 for the units of a linear layer.

    Raises:
        InputError: num_parameters is below 1.
    """

    response: Callable[..., Tensor]

    def learn(self, name: str, start: Tensor) -> None:
        """A parameter (num_parameters, *shape) that starts at `start` (*shape) in every channel."""
        every = start.to(torch.get_default_dtype()).expand(self.num_parameters, *start.shape)
        self.register_parameter(name, nn.Parameter(every.clone()))

    def respond(self, x: Tensor) -> Tensor:
        """The function of a tensor in float32 or float64."""
        weights = {name: self.spread(value, x) for name, value in self.named_parameters(recurse=False)}
        return self.response(x, **weights).to(x.dtype)

    def spread(self, value: Tensor, x: Tensor) -> Tensor:
        """A parameter (num_parameters, *shape) as (*shape, 1, .., num_parameters, .., 1), of the type of x."""
        if self.num_parameters == 1:
            return value[0].to(x.dtype)
        channels = super().spread(torch.arange(self.num_parameters), x).shape
        return value.movedim(0, -1).reshape(*value.shape[1:], *channels).to(x.dtype)

    def pick(self, table: Tensor, index: Tensor) -> Tensor:
        """Entries of a parameter table (num_parameters, k), each value's from the row of its channel."""
        if self.num_parameters == 1:
            return table[0][index]
        return table[super().spread(torch.arange(self.num_parameters, device=index.device), index), index]

    def extra_repr(self) -> str:
        """Shapes of the weights."""
        return ", ".join(f"{k}={tuple(v.shape)}" for k, v in self.named_parameters(recurse=False))
