"""Activation functions that are small networks or ensembles of normalised functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.units.array_units import ArrayUnit, Function
from actinium.functions.units.blending_units import PoolUnit

__all__ = ["ActivationEnsemble", "VariableUnit", "onto_simplex"]


class VariableUnit(ArrayUnit):
    """sum_k b_k ReLU(a_k x + c_k) + d: a network of one hidden layer from a number to a number (VAF).

    Args:
        k: hidden units; their weights start as those of linear layers do, uniform on [-1, 1] and [-1, 1] / sqrt(k).
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: k is below 1.

    Source: Apicella et al., 2019.
    """

    def __init__(self, k: int = 5, num_parameters: int = 1, channel_dim: int = 1) -> None:
        super().__init__(num_parameters, channel_dim)
        if k < 1:
            raise InputError(f"a variable activation function has one hidden unit or more, not {k}")
        for name, width in (("a", 1.0), ("c", 1.0), ("b", 1 / math.sqrt(k))):
            self.learn(name, torch.zeros(k))
            nn.init.uniform_(getattr(self, name), -width, width)
        self.learn("d", torch.zeros(()))

    def response(self, x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        """The network's output at x with weights (k, ...)."""
        return sum(w * torch.relu(rate * x + shift) for rate, w, shift in zip(a, b, c, strict=True)) + d


def onto_simplex(v: Tensor) -> Tensor:
    """The nearest point (Euclidean) whose entries are not negative and add up to 1 along dimension 0."""
    ordered = v.sort(dim=0, descending=True).values
    excess = ordered.cumsum(0) - 1
    count = torch.arange(1, len(v) + 1, dtype=v.dtype, device=v.device).view(-1, *[1] * (v.ndim - 1))
    kept = (ordered * count > excess).sum(0, keepdim=True)
    return torch.relu(v - excess.gather(0, kept - 1) / kept)


class ActivationEnsemble(PoolUnit):
    """sum_j a_j (h_j(x) - min_j) / (max_j - min_j + eps) * eta_j + delta_j with a on the simplex.

    Least and largest value of each function are those of the batch while training, for each channel; evaluation uses
    their running means.

    Args:
        pool: names of the catalogue, or functions.
        momentum: weight of a new batch in the running means.
        eps: added to the range.
        num_parameters: 1, or the size of `channel_dim`.
        channel_dim: dimension of the channels.

    Raises:
        InputError: momentum lies outside of (0, 1], or eps is not positive.

    Source: Harmon and Klabjan, 2017, eq. 1-3.
    """

    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(
        self,
        pool: Sequence[str | Function] = ("sigmoid", "tanh", "relu"),
        momentum: float = 0.1,
        eps: float = 1e-5,
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(pool, num_parameters, channel_dim)
        if not 0 < momentum <= 1 or not eps > 0:
            raise InputError(f"momentum lies in (0, 1] and eps is positive, got {momentum} and {eps}")
        self.momentum, self.eps = momentum, eps
        n = len(self.functions)
        self.learn("a", torch.full((n,), 1 / n))
        self.learn("eta", torch.ones(n))
        self.learn("delta", torch.zeros(n))
        self.register_buffer("low", torch.zeros(num_parameters, n))
        self.register_buffer("high", torch.ones(num_parameters, n))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def response(self, x: Tensor, a: Tensor, eta: Tensor, delta: Tensor) -> Tensor:
        """The ensemble at x with weights (n, ...)."""
        values = torch.stack([h(x) for h in self.functions])
        if self.training and x.numel():
            low, high = self._ends(values)
            self._remember(low, high)
        else:
            low, high = self.spread(self.low, x), self.spread(self.high, x)
        low, high = (end.view(len(end), *[1] * (x.ndim + 1 - end.ndim), *end.shape[1:]) for end in (low, high))
        total = torch.zeros_like(x)
        for j, weight in enumerate(onto_simplex(a)):
            total = total + weight * ((values[j] - low[j]) / (high[j] - low[j] + self.eps) * eta[j] + delta[j])
        return total

    def _ends(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest value of each function in each channel, (n, ...) as they broadcast with x."""
        dims = list(range(1, values.ndim))
        if self.num_parameters > 1:
            dims.remove(self.channel_dim % (values.ndim - 1) + 1)
        if not dims:
            return values, values
        return values.amin(dims, keepdim=True), values.amax(dims, keepdim=True)

    def _remember(self, low: Tensor, high: Tensor) -> None:
        share = self.momentum if int(self.batches) else 1.0
        with torch.no_grad():
            for held, new in ((self.low, low), (self.high, high)):
                held.lerp_(new.detach().reshape(len(new), -1).T.to(held.dtype), share)
            self.batches += 1
