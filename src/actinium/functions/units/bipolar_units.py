"""Channel-wise bipolar functions: every second unit has the function turned by half a circle."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.base_functions import base_function
from actinium.functions.dimensions import place_of

__all__ = ["ChannelBipolar", "alternate"]


def alternate(f: Callable[[Tensor], Tensor], x: Tensor, dim: int = -1) -> Tensor:
    """f(x) at even units of a dimension, -f(-x) at odd ones.

    Raises:
        InputError: there is no such dimension.
    """
    place = place_of(dim, x)
    even = torch.arange(x.shape[place], device=x.device) % 2 == 0
    sign = torch.where(even, 1.0, -1.0).to(x.dtype).view(-1, *[1] * (x.ndim - 1 - place))
    return sign * f(sign * x)


class ChannelBipolar(nn.Module):
    """f(x) at even units of a dimension, -f(-x) at odd ones, so that their mean stays near 0.

    Args:
        base: f: a name of the catalogue, a module, or a callable.
        dim: the dimension of the units.

    Raises:
        InputError: the base is none of these, or the input has no such dimension or no floating-point numbers.
        UnknownNameError: the catalogue has no such function.

    Source: Eidnes and Nøkland, 2017, "Shifting Mean Activation Towards Zero with Bipolar Activation Functions",
    arXiv 1709.04054, equation 3.
    """

    def __init__(self, base: str | Callable[[Tensor], Tensor] = "relu", dim: int = -1) -> None:
        super().__init__()
        self.base, self.dim = base_function(base), dim

    def forward(self, x: Tensor) -> Tensor:
        """The function of a tensor of any shape."""
        if not x.is_floating_point():
            raise InputError(f"a bipolar function takes a floating-point tensor, not one of {x.dtype}")
        return alternate(self.base, x, self.dim)
