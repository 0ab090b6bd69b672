"""The adaptive parametric activation: a trained gate, attention with it, and what belongs to long-tailed data.

gate = ac.functions.APA(64)                              # between 0 and 1, a shape for each channel
block = ac.functions.SEWithAPA(64)                       # images (batch, 64, height, width) -> same
ac.functions.fit_preactivation_family(z)                 # which gate's shape pre-activations have
ac.functions.calibrate_long_tail(logits, counts)         # at test time
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.functions.stable import floor_at_lowest, softplus
from actinium.functions.units.channel_units import ChannelUnit

__all__ = [
    "AGLU",
    "APA",
    "CBAMWithAPA",
    "CosineClassifier",
    "FamilyFit",
    "SEWithAPA",
    "calibrate_long_tail",
    "fit_preactivation_family",
]

Start = float | tuple[float, float]
LOW, HIGH = -1e6, 1e3
"""Arguments kappa z beyond which the gate is 0 or 1 in every precision, for lambda up to 1000."""


class APA(ChannelUnit):
    """The gate (lambda e^(-kappa z) + 1)^(-1 / lambda), computed as e^(-softplus(ln lambda - kappa z) / lambda).

    It is the logistic function at lambda = kappa = 1, Gumbel's e^(-e^(-kappa z)) as lambda goes to 0; it rises where
    kappa > 0. In the authors' classification networks kappa starts in (-1, 0), so that gates fall at first: pass
    `kappa_init=(-1, 0)`. Lambda and kappa belong into an optimiser's group without weight decay.

    Args:
        num_parameters: 1, or the size of `channel_dim`.
        lambda_init, kappa_init: a number, or the ends between which starts are drawn.
        lambda_min: lambda is held from below; near 0 the gradient with respect to it is a difference of large numbers.
        channel_dim: dimension of the channels.

    Raises:
        InputError: lambda does not start above 0, ends are not finite or not in their order, or lambda_min is not
            positive.

    Source: Alexandridis et al., 2024.
    """

    def __init__(
        self,
        num_parameters: int = 1,
        lambda_init: Start = (0.0, 1.0),
        kappa_init: Start = (0.0, 1.0),
        lambda_min: float = 1e-4,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        if not 0 < lambda_min < math.inf:
            raise InputError(f"lambda_min is above 0, not {lambda_min}")
        self.lambda_min = float(lambda_min)
        low, high = _ends("lambda", lambda_init)
        if low < 0 or high <= 0:
            raise InputError(f"lambda starts above 0, not in {low:g}..{high:g}")
        self.lam = nn.Parameter(torch.empty(num_parameters).uniform_(max(low, min(lambda_min, high)), high))
        self.kap = nn.Parameter(torch.empty(num_parameters).uniform_(*_ends("kappa", kappa_init)))

    def gate(self, z: Tensor, exact: bool = True) -> Tensor:
        """The gate of a tensor; without `exact` the gradient of lambda lacks that of the outer power."""
        lam = self.spread(self.lam, z).to(z.dtype).clamp(min=self.lambda_min)
        kap = self.spread(self.kap, z).to(z.dtype)
        share = softplus(lam.log() - (kap * z).clamp(LOW, HIGH))
        return torch.exp(-share / (lam if exact else lam.detach()))

    def respond(self, x: Tensor) -> Tensor:
        """The gate of a tensor in float32 or float64."""
        return self.gate(x)

    def extra_repr(self) -> str:
        """Channels and the least lambda."""
        return f"{super().extra_repr()}, lambda_min={self.lambda_min:g}"


class AGLU(APA):
    """z APA(z): SiLU at lambda = kappa = 1, near GELU at kappa = 1.702, ReLU as kappa grows.

    Args:
        num_parameters, lambda_init, kappa_init, lambda_min, channel_dim: as in `APA`.
        exact_lambda_grad: with False the gradient of lambda is the one of the authors' code, -(z / lambda) p / (lambda
            + e^(kappa z)), which leaves out the first of two terms.

    Raises:
        InputError: as in `APA`.

    Source: Alexandridis et al., 2024.
    """

    def __init__(
        self,
        num_parameters: int = 1,
        lambda_init: Start = (0.0, 1.0),
        kappa_init: Start = (0.8, 1.2),
        lambda_min: float = 1e-4,
        channel_dim: int = 1,
        exact_lambda_grad: bool = True,
    ) -> None:
        super().__init__(num_parameters, lambda_init, kappa_init, lambda_min, channel_dim)
        self.exact_lambda_grad = exact_lambda_grad

    def respond(self, x: Tensor) -> Tensor:
        """The function of a tensor in float32 or float64."""
        return floor_at_lowest(x) * self.gate(x, self.exact_lambda_grad)


class SEWithAPA(nn.Module):
    """Squeeze and excitation: mean over places, LayerNorm, C -> C / reduction -> C with ReLU, dropout, gate, product.

    Args:
        channels: C.
        reduction: of the inner layer, which has one unit at least.
        dropout: share that is dropped before the gate.
        gate: what makes a factor of each channel's number; `APA(kappa_init=(-1, 0))` if not given.
        normalise: whether LayerNorm comes before the first layer.

    Raises:
        InputError: a number is below 1, or dropout is outside of 0..1.

    Source: Alexandridis et al., 2024, and the authors' code.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        dropout: float = 0.1,
        gate: nn.Module | None = None,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.mlp = _squeeze(channels, reduction, dropout, normalise)
        self.gate = APA(kappa_init=(-1.0, 0.0)) if gate is None else gate

    def scores(self, x: Tensor) -> Tensor:
        """What the gate gets, (batch, C)."""
        _check_images(x, self.channels)
        y: Tensor = self.mlp(x.mean((2, 3)))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, C, height, width), each channel multiplied by its gate.

        Raises:
            InputError: they have another shape.
        """
        return x * self.gate(self.scores(x))[:, :, None, None]


class CBAMWithAPA(nn.Module):
    """Gate of channels from mean and maximum over places, then of places from a convolution of those over channels.

    Args:
        channels, reduction, dropout, normalise: as in `SEWithAPA`.
        kernel: of the spatial convolution, odd.
        channel_gate, spatial_gate: what makes a factor; `APA(kappa_init=(-1, 0))` if not given.

    Raises:
        InputError: a number is below 1, the kernel is even, or dropout is outside of 0..1.

    Source: Alexandridis et al., 2024, and the authors' code.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        dropout: float = 0.1,
        kernel: int = 7,
        channel_gate: nn.Module | None = None,
        spatial_gate: nn.Module | None = None,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise InputError(f"a spatial gate has an odd kernel, not {kernel}")
        self.channels = channels
        self.mlp = _squeeze(channels, reduction, dropout, normalise)
        self.spatial = nn.Sequential(
            nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(1, momentum=0.01)
        )
        self.channel_gate = APA(kappa_init=(-1.0, 0.0)) if channel_gate is None else channel_gate
        self.spatial_gate = APA(kappa_init=(-1.0, 0.0)) if spatial_gate is None else spatial_gate

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, C, height, width), multiplied by both gates.

        Raises:
            InputError: they have another shape.
        """
        _check_images(x, self.channels)
        scores = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        x = x * self.channel_gate(scores)[:, :, None, None]
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        y: Tensor = x * self.spatial_gate(self.spatial(pooled))
        return y


class CosineClassifier(nn.Module):
    """scale * (x / (1 + |x|)) . (w / |w|): a last layer whose logits do not grow with the class's frequency.

    Args:
        inputs, classes: numbers of units.
        scale: of the logits.

    Raises:
        InputError: a number is below 1, or the scale is not positive.

    Source: Alexandridis et al., 2024, and the authors' code.
    """

    def __init__(self, inputs: int, classes: int, scale: float = 16.0) -> None:
        super().__init__()
        if min(inputs, classes) < 1 or not scale > 0:
            raise InputError(f"a classifier has inputs, classes and a positive scale, not {inputs}, {classes}, {scale}")
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(classes, inputs).uniform_(-1, 1) / math.sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., inputs) to logits (..., classes)."""
        length = x.norm(dim=-1, keepdim=True)
        return self.scale * nn.functional.linear(x / (1 + length), nn.functional.normalize(self.weight, dim=1))


class FamilyFit(NamedTuple):
    """A distribution fitted to pre-activations.

    Args:
        params: location and scale.
        loglik: log-likelihood of all values (nats).
        ks: distance of Kolmogorov and Smirnov to the values.
    """

    params: tuple[float, float]
    loglik: float
    ks: float


def fit_preactivation_family(z: Tensor) -> dict[str, FamilyFit]:
    """Logistic, normal and Gumbel distributions fitted to values by maximum likelihood, the likeliest first.

    The distribution function of the first is a sigmoid gate, of the second GELU's, of the third Gumbel's gate (APA as
    lambda goes to 0); "gumbel (left)" is that of -z.

    Args:
        z: pre-activations of any shape, ten or more that are not all equal.

    Raises:
        InputError: there are too few, all are equal, or some are not finite.

    Source: our reading of the analysis in Alexandridis et al., 2024.
    """
    from scipy import stats

    values = torch.as_tensor(z).detach().double().flatten().cpu().numpy()
    if len(values) < 10 or not bool(torch.isfinite(torch.from_numpy(values)).all()) or values.std() == 0:
        raise InputError(f"a distribution is fitted to ten finite values or more that differ, not to {len(values)}")
    families = {
        "logistic": stats.logistic,
        "normal": stats.norm,
        "gumbel": stats.gumbel_r,
        "gumbel (left)": stats.gumbel_l,
    }
    found = {}
    for name, family in families.items():
        place, scale = family.fit(values)
        fitted = family(place, scale)
        found[name] = FamilyFit(
            (float(place), float(scale)),
            float(fitted.logpdf(values).sum()),
            float(stats.kstest(values, fitted.cdf).statistic),
        )
    return dict(sorted(found.items(), key=lambda item: -item[1].loglik))


def calibrate_long_tail(logits: Tensor, counts: Tensor | Sequence[int]) -> Tensor:
    """Logits plus ln((N - n_c) / n_c): the odds of the training classes, taken out at test time.

    Args:
        logits: (..., classes).
        counts: n_c, how many training examples each class had; N is their sum.

    Raises:
        InputError: there are not as many counts as classes, fewer than two, or one that is not positive and finite.

    Source: Alexandridis et al., 2024; the variant "rel" of the authors' code.
    """
    n = torch.as_tensor(counts, dtype=torch.float64)
    if n.ndim != 1 or len(n) < 2 or logits.shape[-1:] != n.shape or not bool(((n > 0) & n.isfinite()).all()):
        raise InputError(
            f"{tuple(logits.shape)} logits need as many positive counts as classes, two or more, not {tuple(n.shape)}"
        )
    return logits + torch.log((n.sum() - n) / n).to(logits)


def _ends(name: str, start: Start) -> tuple[float, float]:
    low, high = (start, start) if isinstance(start, int | float) else start
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise InputError(f"{name} starts at a finite number or between two in their order, not {start}")
    return float(low), float(high)


def _squeeze(channels: int, reduction: int, dropout: float, normalise: bool) -> nn.Sequential:
    if channels < 1 or reduction < 1 or not 0 <= dropout < 1:
        raise InputError(
            "a gate has channels and a reduction of 1 or more and a dropout below 1, not "
            f"{channels}, {reduction} and {dropout}"
        )
    inner = max(1, channels // reduction)
    first = [nn.LayerNorm(channels)] if normalise else []
    return nn.Sequential(*first, nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels), nn.Dropout(dropout))


def _check_images(x: Tensor, channels: int) -> None:
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"attention gates take images (batch, {channels}, height, width), not {shape}")
