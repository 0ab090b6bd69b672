"""The Cauchy activation, shallow networks of it, and sums of it without training.

net = ac.functions.XNet(1, (40,), 1).spread_biases(x)    # the activation is local: centres belong where the data are
sum_ = ac.functions.cauchy_expansion(x, y, centres, d=0.2)
sum_.network()                                           # the same function as an XNet
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, unknown
from actinium.functions.stable import finite
from actinium.functions.units.channel_units import ChannelUnit

__all__ = ["CauchyActivation", "CauchySum", "XNet", "cauchy_contour", "cauchy_expansion"]

SHARING = ("layer", "neuron")


class CauchyActivation(ChannelUnit):
    """(l1 x + l2) / (x^2 + d^2 + min_d^2) with trained l1, l2 and d.

    It falls off like l1 / x, so inputs are to be of the size of d: standardise them. d and -d are one function; compare
    |d|.
    Weight decay would drive d to 0, where the function becomes a spike: leave it out. Starts of (1, 1, 1) are for
    regression; follow-up code for classifiers uses (0.01, 0.01, 1).

    Args:
        num_parameters: 1 (one triple for all), or the size of `channel_dim`.
        init: l1, l2 and d to start from.
        channel_dim: dimension of the channels; -1 for the units of a linear layer.
        min_d: keeps a d of 0 from being a pole; with 0 the function is that of the paper.

    Raises:
        InputError: num_parameters is below 1, or a number is not finite, or min_d is negative.

    Source: Li, Xia and Zhang, 2024.
    """

    def __init__(
        self,
        num_parameters: int = 1,
        init: tuple[float, float, float] = (1.0, 1.0, 1.0),
        channel_dim: int = 1,
        min_d: float = 1e-3,
    ) -> None:
        super().__init__(num_parameters, channel_dim)
        if len(init) != 3 or not all(math.isfinite(v) for v in init):
            raise InputError(f"l1, l2 and d start from three finite numbers, not {init}")
        if not 0 <= min_d < math.inf:
            raise InputError(f"min_d is 0 or more, not {min_d}")
        self.min_d = float(min_d)
        self.l1, self.l2, self.d = (nn.Parameter(torch.full((num_parameters,), float(v))) for v in init)

    def respond(self, x: Tensor) -> Tensor:
        """The function of a tensor in float32 or float64."""
        l1, l2, d = (self.spread(p, x) for p in (self.l1, self.l2, self.d))
        # Beyond 1e15 the square overflows in float32; there it is l1 / x to all digits.
        near = x.clamp(-1e15, 1e15)
        y = (l1 * near + l2) / (near.square() + d.square() + self.min_d**2)
        beyond = x != near
        return torch.where(beyond, l1 / torch.where(beyond, finite(x), 1.0), y).to(x.dtype)


class XNet(nn.Module):
    """A network of one or two hidden layers with the Cauchy activation.

    Args:
        inputs, outputs: numbers of units.
        hidden: widths of the hidden layers.
        per: "neuron" (a triple for each unit, as in the theorem) or "layer" (one for all units of a layer).
        init: l1, l2 and d to start from.
        min_d: as in `CauchyActivation`.

    Raises:
        InputError: a size is below 1, there are no hidden layers or more than two, or sharing is unknown.

    Source: Li, Xia and Zhang, 2024.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        per: str = "neuron",
        init: tuple[float, float, float] = (1.0, 1.0, 1.0),
        min_d: float = 1e-3,
    ) -> None:
        super().__init__()
        if per not in SHARING:
            raise InputError(unknown("sharing", per, list(SHARING)))
        if len(hidden) not in (1, 2) or min(inputs, outputs, *hidden) < 1:
            raise InputError(f"an XNet has one or two hidden layers of one unit or more, not {list(hidden)}")
        layers: list[nn.Module] = []
        before = inputs
        for width in hidden:
            unit = CauchyActivation(width if per == "neuron" else 1, init, -1, min_d)
            layers += [nn.Linear(before, width), unit]
            before = width
        self.layers = nn.Sequential(*layers, nn.Linear(before, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (..., inputs) to outputs (..., outputs)."""
        y: Tensor = self.layers(x)
        return y

    @torch.no_grad()
    def spread_biases(self, x: Tensor, seed: int = 0) -> Self:
        """Move the centre of each unit of the first layer to a row of the data, to all rows before any is taken twice.

        Args:
            x: (n, inputs), finite.
            seed: of the draw.

        Raises:
            InputError: the data have another shape, or are empty or not finite.
        """
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        if x.ndim != 2 or x.shape[1] != first.in_features or not len(x) or not bool(x.isfinite().all()):
            raise InputError(f"biases are spread over finite rows (n, {first.in_features}), not {tuple(x.shape)}")
        source = torch.Generator().manual_seed(seed)
        order = torch.cat([torch.randperm(len(x), generator=source) for _ in range(-(-first.out_features // len(x)))])
        rows = x[order[: first.out_features].to(x.device)].to(first.weight)
        first.bias.copy_(-(first.weight * rows).sum(1))
        return self


@dataclass(frozen=True, eq=False)
class CauchySum:
    """sum_k (l1_k (x - a_k) + l2_k) / ((x - a_k)^2 + d_k^2), in float64.

    Args:
        l1, l2: coefficients (m,).
        centres: a (m,).
        d: half widths (m,).
    """

    l1: Tensor
    l2: Tensor
    centres: Tensor
    d: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Values at x, of any shape."""
        t = x.double()[..., None] - self.centres
        return ((self.l1 * t + self.l2) / (t.square() + self.d.square())).sum(-1)

    @torch.no_grad()
    def network(self) -> XNet:
        """An XNet of one hidden layer that is this sum: weights of 1, biases of -a."""
        net = XNet(1, (len(self.centres),), 1, min_d=0.0).double()
        first, unit, last = net.layers
        first.weight.fill_(1.0)
        first.bias.copy_(-self.centres)
        for p, value in ((unit.l1, self.l1), (unit.l2, self.l2), (unit.d, self.d)):
            p.copy_(value)
        last.weight.fill_(1.0)
        last.bias.zero_()
        return net


def cauchy_expansion(x: Tensor, y: Tensor, centres: Tensor, d: float | Tensor) -> CauchySum:
    """The sum of Cauchy functions with given centres and widths that is nearest to values in mean square.

    Args:
        x, y: points and values (n,).
        centres: (m,).
        d: half width, above 0; one, or (m,). The error of analytic functions falls fastest where it stays the same for
            every m.

    Raises:
        InputError: shapes do not fit, a number is not finite, or a width is not positive.
    """
    x, y, centres = (torch.as_tensor(t).double().cpu() for t in (x, y, centres))
    if x.ndim != 1 or x.shape != y.shape or not len(x) or centres.ndim != 1 or not len(centres):
        raise InputError(
            f"an expansion needs points and values (n,) and centres (m,), not {tuple(x.shape)}, {tuple(y.shape)} and "
            f"{tuple(centres.shape)}"
        )
    widths = torch.as_tensor(d, dtype=torch.float64).cpu()
    if widths.numel() not in (1, len(centres)) or not bool((widths > 0).all() and widths.isfinite().all()):
        raise InputError(f"widths are positive and finite, one or {len(centres)} of them")
    if not all(bool(t.isfinite().all()) for t in (x, y, centres)):
        raise InputError("points, values and centres are finite numbers")
    widths = widths.flatten().expand(len(centres)).clone()
    t = x[:, None] - centres
    below = t.square() + widths.square()
    features = torch.cat([t / below, 1 / below], 1)
    scale = features.norm(dim=0).clamp(min=1e-300)
    found = torch.linalg.lstsq(features / scale, y[:, None], rcond=1e-14, driver="gelsd").solution[:, 0] / scale
    return CauchySum(found[: len(centres)], found[len(centres) :], centres, widths)


def cauchy_contour(
    f: Callable[[np.ndarray], np.ndarray], terms: int, centre: float = 0.0, radius: tuple[float, float] = (2.0, 1.0)
) -> CauchySum:
    """Cauchy's integral formula on an ellipse, in equal steps of its angle: a sum of Cauchy functions without a fit.

    The error at points inside falls geometrically with the number of terms where f is analytic in and around the
    ellipse.

    Args:
        f: complex function of complex arrays, analytic inside, real on the real axis.
        terms: points of the upper half of the ellipse; those below add their complex conjugates.
        centre: of the ellipse, on the real axis.
        radius: half axes, along the real and the imaginary axis.

    Raises:
        InputError: there are no terms, a half axis is not positive, or f is not finite on the ellipse.

    Source: Li, Xia and Zhang, 2024.
    """
    if terms < 1 or not all(0 < r < math.inf for r in radius) or not math.isfinite(centre):
        raise InputError(f"a contour has one term or more and positive half axes, not {terms} and {radius}")
    angle = math.pi * (np.arange(terms) + 0.5) / terms
    at = centre + radius[0] * np.cos(angle) + 1j * radius[1] * np.sin(angle)
    along = -radius[0] * np.sin(angle) + 1j * radius[1] * np.cos(angle)
    values = np.asarray(f(at), dtype=complex)
    if values.shape != at.shape or not np.isfinite(values).all():
        raise InputError("f gives a finite value for each point of the contour")
    # 1 / (2 pi i) times the step, twice the real part for the half below.
    p = 2 * values * along / (2j * terms)
    parts = (-p.real, p.imag * at.imag, at.real, at.imag)
    l1, l2, a, d = (torch.from_numpy(np.ascontiguousarray(v)) for v in parts)
    return CauchySum(l1, l2, a, d)
