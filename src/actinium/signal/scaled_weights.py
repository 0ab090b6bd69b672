"""Scaled weight standardisation, and the gains that keep the variance of a signal through a non-linearity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.elementwise_function import elementwise
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.gaussian_moments import normal_nodes

__all__ = [
    "RELEASED_GAINS",
    "GainedActivation",
    "ScaledWSConv1d",
    "ScaledWSConv2d",
    "ScaledWSLinear",
    "decay_groups",
    "nonlinearity_gain",
    "standardise_weight",
]

EPS = 1e-4
RELEASED_GAINS: Mapping[str, float] = MappingProxyType(
    {
        "identity": 1.0,
        "celu": 1.270926833152771,
        "elu": 1.2716004848480225,
        "gelu": 1.7015043497085571,
        "leaky_relu": 1.70590341091156,
        "logsigmoid": 1.9193484783172607,
        "relu": 1.7139588594436646,
        "relu6": 1.7131484746932983,
        "selu": 1.0008515119552612,
        "sigmoid": 4.803835391998291,
        "silu": 1.7881293296813965,
        "softsign": 2.338853120803833,
        "softplus": 1.9203323125839233,
        "tanh": 1.5939117670059204,
    }
)
"""Gains of the authors' release, estimated from samples: within 0.1 % of `nonlinearity_gain`."""

FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "identity": lambda x: x,
        "celu": functional.celu,
        "elu": functional.elu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "leaky_relu": functional.leaky_relu,
        "logsigmoid": functional.logsigmoid,
        "mish": functional.mish,
        "relu": functional.relu,
        "relu6": functional.relu6,
        "selu": functional.selu,
        "sigmoid": torch.sigmoid,
        "silu": functional.silu,
        "softplus": functional.softplus,
        "softsign": functional.softsign,
        "tanh": torch.tanh,
    }
)


def _function(activation: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    if isinstance(activation, str):
        if activation not in FUNCTIONS:
            raise UnknownNameError(unknown("activation", activation, FUNCTIONS))
        return FUNCTIONS[activation]
    if not callable(activation):
        raise InputError(f"an activation is a name or a function of a tensor, not {type(activation).__name__}")
    return activation


def nonlinearity_gain(activation: str | Callable[[Tensor], Tensor], *, released: bool = False) -> float:
    """The factor gamma after which an activation of a standard normal signal has variance 1: 1 / sqrt(Var[g(Z)]).

    Args:
        activation: a name such as "relu" or "silu", or an elementwise function (a module is one too). Computed by
            quadrature in float64 that is split at its kinks.
        released: the constant of the authors' release instead, for a name; those are estimates from samples.

    Returns:
        The gain, above 0.

    Raises:
        UnknownNameError: there is no such name.
        InputError: the function is constant, not elementwise, or has no finite second moment.

    Source: Brock, De and Smith, 2021, section 4.2 (gamma_g).
    """
    if released:
        if not isinstance(activation, str) or activation not in RELEASED_GAINS:
            raise UnknownNameError(unknown("released gain", str(activation), RELEASED_GAINS))
        return RELEASED_GAINS[activation]
    function = _function(activation)
    return _gain_of(activation) if isinstance(activation, str) else _gain(function)


@cache
def _gain_of(name: str) -> float:
    return _gain(FUNCTIONS[name])


def _gain(function: Callable[[Tensor], Tensor]) -> float:
    f = elementwise(function)
    z, weight = normal_nodes(f, torch.ones(1, dtype=torch.float64))
    value = f(z)
    mean = (weight * value).sum()
    variance = float((weight * (value - mean) ** 2).sum())
    if variance <= 1e-24 * max(1.0, float(mean) ** 2):
        raise InputError("the activation is constant on a normal signal: no gain brings its variance to 1")
    return 1 / math.sqrt(variance)


class GainedActivation(nn.Module):
    """gamma g(x): an activation that keeps the variance of a standard normal signal.

    Args:
        activation: a name or an elementwise function, a module included.
        gain: gamma; `nonlinearity_gain` of the activation by default.

    Raises:
        UnknownNameError, InputError: as `nonlinearity_gain`; the gain is not a positive number, or the activation
            works in place: it would change what the skip path of a block adds.
    """

    def __init__(self, activation: str | Callable[[Tensor], Tensor], gain: float | None = None) -> None:
        super().__init__()
        self.function = _function(activation)
        self.gain = nonlinearity_gain(activation) if gain is None else float(gain)
        if not (math.isfinite(self.gain) and self.gain > 0):
            raise InputError(f"a gain is a positive number, got {gain}")
        inner = self.function.modules() if isinstance(self.function, nn.Module) else ()
        if any(getattr(part, "inplace", False) for part in inner):
            raise InputError("the activation works in place and would change its input; make it with inplace=False")
        self.label = activation if isinstance(activation, str) else type(activation).__name__

    def forward(self, x: Tensor) -> Tensor:
        """gamma g(x), in the shape of x."""
        return self.gain * self.function(x)

    def extra_repr(self) -> str:
        """Name and gain."""
        return f"{self.label}, gain={self.gain:.6f}"


def standardise_weight(weight: Tensor, gain: Tensor | None = None, eps: float = EPS) -> Tensor:
    """Weight whose output channels each have mean 0 and sum of squares 1 over their fan-in, times a gain.

    W_hat = gain (W - mean) / sqrt(max(N var, eps)) with the population variance over the N = fan-in entries of a
    channel. Statistics are taken in float32 at least. A channel that is constant becomes 0.

    Args:
        weight: (out, in / groups, ...) of a linear or convolutional map.
        gain: (out,), or 1 for all.
        eps: smallest value of N var.

    Returns:
        the shape and type of `weight`.

    Raises:
        InputError: a weight without fan-in, an eps that is not positive, or gains of another number.

    Source: Brock, De and Smith, 2021, equation 5 and the released code.
    """
    if weight.ndim < 2 or not weight.numel():
        raise InputError(f"a weight is (out, in, ...), got shape {tuple(weight.shape)}")
    if not eps > 0:
        raise InputError(f"eps must be above 0, got {eps}")
    if gain is not None and gain.shape != weight.shape[:1]:
        raise InputError(f"expected a gain for each of {weight.shape[0]} channels, got shape {tuple(gain.shape)}")
    flat = weight.flatten(1)
    flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    centred = flat - flat.mean(1, keepdim=True)
    scale = torch.rsqrt(centred.square().sum(1, keepdim=True).clamp(min=eps))
    if gain is not None:
        scale = scale * gain[:, None]
    return (centred * scale).to(weight.dtype).view_as(weight)


class _Scaled(nn.Module):
    """What the layers share: the parameters `gain` (ones) and `eps`, and how a layer starts."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def _start(self, gain: bool, eps: float) -> None:
        if not eps > 0:
            raise InputError(f"eps must be above 0, got {eps}")
        self.eps = eps
        self.gain = nn.Parameter(self.weight.new_ones(len(self.weight))) if gain else None
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def standardised(self) -> Tensor:
        """The weight that the layer applies."""
        return standardise_weight(self.weight, self.gain, self.eps)


class ScaledWSConv2d(_Scaled, nn.Conv2d):
    """2-D convolution that applies its weight standardised, each output channel over its fan-in.

    Args:
        in_channels, out_channels, kernel_size, **options: those of `torch.nn.Conv2d`.
        gain: learn a gain for each output channel, 1 at first.
        eps: smallest value of fan-in times variance.

    Raises:
        InputError: `eps` is not above 0.

    Source: Brock, De and Smith, 2021, section 4.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        gain: bool = True,
        eps: float = EPS,
        **options: Any,
    ) -> None:
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, **options)
        self._start(gain, eps)

    def forward(self, input: Tensor) -> Tensor:
        """(n, in_channels, height, width) to (n, out_channels, ...)."""
        return self._conv_forward(input, self.standardised(), self.bias)


class ScaledWSConv1d(_Scaled, nn.Conv1d):
    """1-D convolution that applies its weight standardised; see `ScaledWSConv2d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        *,
        gain: bool = True,
        eps: float = EPS,
        **options: Any,
    ) -> None:
        nn.Conv1d.__init__(self, in_channels, out_channels, kernel_size, **options)
        self._start(gain, eps)

    def forward(self, input: Tensor) -> Tensor:
        """(n, in_channels, length) to (n, out_channels, ...)."""
        return self._conv_forward(input, self.standardised(), self.bias)


class ScaledWSLinear(_Scaled, nn.Linear):
    """Linear map that applies its weight standardised, each output over its inputs; see `ScaledWSConv2d`.

    The last layer of a classifier and the layers of squeeze-and-excite are left as they are in the paper.
    """

    def __init__(
        self, in_features: int, out_features: int, *, gain: bool = True, eps: float = EPS, **options: Any
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, **options)
        self._start(gain, eps)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return functional.linear(input, self.standardised(), self.bias)


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: weights decay; gains, biases and other vectors and scalars do not.

    Args:
        module: the network.
        weight_decay: of the weights, 0 or more.

    Raises:
        InputError: a negative decay, or no parameter that can be trained.

    Source: Brock, De and Smith, 2021, appendix (no weight decay on gains and biases).
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained or weight_decay < 0:
        raise InputError(f"expected trainable parameters and a decay of 0 or more, got {len(trained)}, {weight_decay}")
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
