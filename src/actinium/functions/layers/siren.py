"""First weights of networks whose activation function is a fast sine."""

from __future__ import annotations

import math

import torch
from torch import nn

from actinium.core.errors import InputError

__all__ = ["siren_init_"]


def siren_init_(layer: nn.Module, w0: float = 30.0, first: bool = False) -> nn.Module:
    """Draw a layer's weights so that sin(w0 (W x + b)) keeps its distribution from layer to layer.

    Uniform on +-sqrt(6 / n) / w0 for n inputs; on +-1 / n for the first layer, whose inputs lie in [-1, 1]. Biases
    stay.

    Args:
        layer: a linear or convolutional layer; changed in place and given back.
        w0: frequency of the sine that follows.
        first: whether it is the network's first layer.

    Raises:
        InputError: the layer has no weight matrix, or w0 is not positive.

    Source: Sitzmann et al., 2020, section 3.2.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim < 2:
        raise InputError(f"a layer with a weight matrix is wanted, not {type(layer).__name__}")
    if not 0 < w0 < math.inf:
        raise InputError(f"w0 is positive, got {w0}")
    inputs = weight[0].numel()
    width = 1 / inputs if first else math.sqrt(6 / inputs) / w0
    with torch.no_grad():
        weight.uniform_(-width, width)
    return layer
