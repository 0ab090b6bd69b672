"""The distribution of the actions behind an `ERAGaussian` head: a normal distribution cut to -1..1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from actinium.core.errors import InputError
from actinium.functions.layers.entropy_constraint import policy_entropy, widened
from actinium.functions.stable import cdf, pdf

__all__ = ["TruncatedNormalPolicy"]

EDGE = 1e-6
"""How far actions stay from -1 and 1, and the least mass within them that densities are divided by."""
MOST = 20.0
"""Logarithms of densities of one dimension lie between -20 and 20."""


class TruncatedNormalPolicy(Distribution):
    """Independent normal distributions around tanh(mu) with deviations e^log_std, cut to -1..1.

        policy = TruncatedNormalPolicy(*head(mu, s))
        action = policy.rsample()
        loss = (-critic(state, action)).mean()              # no entropy term: the head keeps the entropy up

    Half precision is computed in float32, and so are the actions.

    Args:
        mu: (..., D), before the hyperbolic tangent.
        log_std: (..., D).

    Raises:
        InputError: shapes differ, or values are NaN.

    Source: Kang et al., 2025, arXiv 2510.08549 and its code (policies.py), whose limits these are: actions stay 1e-6
    from the ends, the mass is 1e-6 or more, and the logarithm of each dimension's density lies between -20 and 20.
    """

    arg_constraints: dict[str, Constraint] = {}  # noqa: RUF012 - the name is torch's
    support = constraints.independent(constraints.interval(-1.0, 1.0), 1)
    has_rsample = True

    def __init__(self, mu: Tensor, log_std: Tensor) -> None:
        if mu.shape != log_std.shape or mu.ndim < 1:
            shapes = f"{tuple(mu.shape)} and {tuple(log_std.shape)}"
            raise InputError(f"mu and log_std have one shape (..., D), got {shapes}")
        self.mu, self.log_std = widened(mu, "mu"), widened(log_std, "log_std")
        self.loc, self.scale = torch.tanh(self.mu), self.log_std.exp()
        self._below, self._above = (cdf((end - self.loc) / self.scale) for end in (-1.0, 1.0))
        super().__init__(mu.shape[:-1], mu.shape[-1:], validate_args=False)

    @property
    def mode(self) -> Tensor:
        """The likeliest action, tanh(mu)."""
        return self.loc

    @property
    def mean(self) -> Tensor:
        """Mean action, (..., D)."""
        return self.loc + self.scale * self._slopes()[0]

    @property
    def variance(self) -> Tensor:
        """Variance of the actions, (..., D)."""
        first, second = self._slopes()
        return self.scale.square() * (1 + second - first.square())

    def _slopes(self) -> tuple[Tensor, Tensor]:
        """(pdf(a) - pdf(b)) / mass and (a pdf(a) - b pdf(b)) / mass at the standardised ends."""
        a, b = ((end - self.loc) / self.scale for end in (-1.0, 1.0))
        mass = (self._above - self._below).clamp(min=EDGE)
        return (pdf(a) - pdf(b)) / mass, (a * pdf(a) - b * pdf(b)) / mass

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Actions (*sample_shape, ..., D) with gradients to mu and log_std, by the inverse of the distribution."""
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        p = self._below + u * (self._above - self._below)
        tiny = torch.finfo(p.dtype).eps
        drawn = self.loc + self.scale * torch.special.ndtri(p.clamp(tiny, 1 - tiny))
        return drawn.clamp(-1 + EDGE, 1 - EDGE)

    def log_prob(self, value: Tensor) -> Tensor:
        """Logarithm of the density (...) of actions (..., D)."""
        z = (value - self.loc) / self.scale
        mass = (self._above - self._below).clamp(min=EDGE)
        each = -0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi) - mass.log()
        return each.clamp(-MOST, MOST).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy (...) in nats; see `policy_entropy`."""
        return policy_entropy(log_std=self.log_std, mu=self.mu)
