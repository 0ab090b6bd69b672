"""How steep a network is, and how wide its margin is for its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.func import jacrev, vmap

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.signal.ntk import NTKLinear
from actinium.signal.tangent import TangentFunction

__all__ = ["lipschitz_bounds", "normalized_margin", "spectral_norms"]

PAPER = "lazy-benign-overfitting"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 1.0)
# Entries of a layer's matrix up to which its singular values are computed.
EXACT = 1 << 21
POWER_STEPS = 500
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.modules.batchnorm._BatchNorm, *POOLS)
# Largest slope of each function. That of GELU is at sqrt(2), that of SiLU at 2.3994.
SLOPES: dict[type[nn.Module], float] = {
    nn.ReLU: 1.0,
    nn.Tanh: 1.0,
    nn.Sigmoid: 0.25,
    nn.Softplus: 1.0,
    nn.Hardtanh: 1.0,
    nn.GELU: 1.12905,
    nn.SiLU: 1.09985,
    nn.Identity: 1.0,
    nn.Flatten: 1.0,
    nn.Dropout: 1.0,
}


def spectral_norms(
    model: nn.Module | Model, x: Any, constants: Mapping[type[nn.Module], float] | None = None
) -> dict[str, float]:
    """Lipschitz constant of each layer of a chain, between Euclidean norms.

    Dense layers by their singular values. Convolutions, average pooling and batch normalisation as linear maps of
    inputs of the size that reaches them: by singular values up to 2^21 entries, beyond that by 500 power iterations,
    which end slightly below the norm.

    Args:
        model: an nn.Sequential (of nn.Sequentials), in eval mode.
        x: one input or more (n, …), for the sizes.
        constants: Lipschitz constants of further types of layers.

    Raises:
        InputError: the model is no chain, or the constant of a layer is not known.
    """
    f = TangentFunction(model, (), dtype=torch.float64, some=False)
    if not isinstance(f.module, nn.Sequential):
        raise InputError(
            f"{type(f.module).__name__} is no nn.Sequential: the product of its layers' norms bounds nothing;"
            " ask for the lower bounds alone with upper=False"
        )
    h, out = f.inputs(x)[:1], {}
    for name, layer in _chain(f.module, ""):
        inner = TangentFunction(layer, (), dtype=torch.float64, some=False)
        with torch.no_grad():
            out[name] = _constant(name, inner, h, dict(constants or {}))
            h = inner.raw(h)
    return out


def _chain(module: nn.Sequential, prefix: str) -> list[tuple[str, nn.Module]]:
    layers: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        nested = isinstance(child, nn.Sequential)
        layers += _chain(child, f"{prefix}{name}.") if nested else [(f"{prefix}{name}", child)]
    return layers


def _constant(name: str, inner: TangentFunction, h: Tensor, constants: Mapping[type[nn.Module], float]) -> float:
    layer = inner.module
    if type(layer) in constants:
        return float(constants[type(layer)])
    if isinstance(layer, nn.Linear | NTKLinear):
        scale = layer.scale if isinstance(layer, NTKLinear) else 1.0
        return abs(scale) * float(torch.linalg.matrix_norm(layer.weight.double(), 2))
    if isinstance(layer, nn.LeakyReLU):
        return max(1.0, abs(layer.negative_slope))
    if isinstance(layer, nn.ELU):
        return max(1.0, abs(layer.alpha))
    if isinstance(layer, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d) and _apart(layer):
        return 1.0
    if type(layer) in SLOPES:
        return SLOPES[type(layer)]
    if isinstance(layer, LINEAR):
        return _linear_norm(inner, h)
    raise InputError(
        f"no Lipschitz constant is known for layer {name!r} ({type(layer).__name__}); give it in constants"
    )


def _apart(pool: Any) -> bool:
    """Whether no entry is in two windows: then the largest of each is 1-Lipschitz."""
    size, stride, dilation = (np.asarray(v) for v in (pool.kernel_size, pool.stride, pool.dilation))
    return bool((stride > dilation * (size - 1)).all())


def _linear_norm(inner: TangentFunction, h: Tensor) -> float:
    """Spectral norm of an affine layer as a map of inputs like h."""
    out = inner.raw(h)
    if h.numel() * out.numel() <= EXACT:
        matrix = jacrev(inner.raw)(h).reshape(out.numel(), h.numel())
        return float(torch.linalg.matrix_norm(matrix, 2))
    zero, norm = torch.zeros_like(h), 0.0
    _, back = torch.func.vjp(inner.raw, zero)
    v = torch.randn(h.shape, generator=torch.Generator().manual_seed(0), dtype=h.dtype).to(h.device)
    for _ in range(POWER_STEPS):
        image = inner.raw(v / v.norm()) - inner.raw(zero)
        last, norm = norm, float(image.norm())
        v = back(image)[0]
        if norm == 0 or abs(norm - last) <= 1e-9 * norm:
            break
    return norm


def lipschitz_bounds(
    model: nn.Module | Model,
    X: Any,
    *,
    output: Callable[[Any], Tensor] | None = None,
    upper: bool = True,
    constants: Mapping[type[nn.Module], float] | None = None,
    pairs: int = 32,
    points: int = 8,
    seed: int = 0,
) -> Result:
    """Bounds of a network's Lipschitz constant between Euclidean norms, from above and from below.

    Args:
        model: a module or a Model, in eval mode; an nn.Sequential for the upper bound.
        X: inputs (n, …), as floats.
        output: takes (n,) or (n, c) of what the module returns; without effect on the upper bound.
        upper: compute the product of the layers' norms.
        constants: Lipschitz constants of further types of layers.
        pairs: segments between random pairs of inputs; 0 for none.
        points: places on each segment, its ends included.
        seed: of the pairs.

    Returns:
        `upper`: product of the layers' norms (where asked for); `lower_data`: largest ||d f / d x|| at the inputs;
        `lower_segments`: the same on the segments, and the largest slope between their ends (where there are pairs);
        over layer: `norm`; over input: `gradient`.

    Raises:
        InputError: inputs are no floats, or as `spectral_norms`.

    Source: Szegedy et al., 2014, section 4.3 (product of norms).
    """
    f = TangentFunction(model, (), output, torch.float64, some=False)
    x = f.inputs(X, "X")
    if not x.is_floating_point():
        raise InputError(f"X holds {x.dtype}: a gradient needs inputs that are floats")
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    norms = spectral_norms(model, x, constants) if upper else {}
    slopes = _slopes(f, x)
    if upper:
        data["upper"] = math.prod(norms.values())
        coords["layer"] = list(norms)
    data["lower_data"] = float(slopes.max())
    if pairs and len(x) > 1:
        data["lower_segments"] = _along_segments(f, x, pairs, max(points, 2), seed)
    shown = list(data)
    if upper:
        data["norm"] = ("layer", list(norms.values()))
    data["gradient"] = ("input", slopes.numpy())
    record = provenance(inputs=[x, f.rest()], seed=seed, pairs=pairs, points=points)
    hints = {"plot": {"variables": shown}}
    return Result(xr.Dataset(data, coords, hints), "lipschitz_bounds", PAPER, record)


def _slopes(f: TangentFunction, x: Tensor) -> Tensor:
    """Spectral norm (n,) of the Jacobian of outputs in inputs."""
    rest = f.rest()
    jacobian = vmap(jacrev(lambda row: f({}, rest, row[None])[0]))(x)
    return torch.linalg.matrix_norm(jacobian.detach().flatten(2), 2).cpu()


def _along_segments(f: TangentFunction, x: Tensor, pairs: int, points: int, seed: int) -> float:
    random = torch.Generator().manual_seed(seed)
    first = torch.randint(len(x), (pairs,), generator=random)
    second = (first + torch.randint(1, len(x), (pairs,), generator=random)) % len(x)
    a, b = x[first], x[second]
    t = torch.linspace(0, 1, points, dtype=x.dtype).reshape(-1, 1, *[1] * (x.ndim - 1)).to(x.device)
    steepest = float(_slopes(f, (a + t * (b - a)).flatten(0, 1)).max())
    with torch.no_grad():
        rise = (f({}, f.rest(), a) - f({}, f.rest(), b)).norm(dim=1)
    apart = (a - b).flatten(1).norm(dim=1)
    return max(steepest, float((rise / apart)[apart > 0].max())) if bool((apart > 0).any()) else steepest


def normalized_margin(
    model: nn.Module | Model,
    X: Any,
    y: Any,
    start: Mapping[str, Tensor] | None = None,
    *,
    output: Callable[[Any], Tensor] | None = None,
    spectral: bool = True,
    constants: Mapping[type[nn.Module], float] | None = None,
) -> Result:
    """Margin of each input's label, and the margin for the size of the network.

    Args:
        model: a module or a Model, in eval mode.
        X: inputs (n, …).
        y: labels (n,): -1 and 1 for one output, with margin y f(x); classes from 0 for several, with margin
            f_y - max of the others.
        start: parameters before training by name, such as `LazyMonitor.start`.
        output: takes (n,) or (n, c) of what the module returns.
        spectral: divide by the product of the layers' norms too; needs an nn.Sequential.
        constants: Lipschitz constants of further types of layers.

    Returns:
        over quantile (0 is the smallest margin): `margin`; `lazy_margin`, divided by ||W - W_0|| (where `start` is
        given); `spectral_margin`, divided by the product of the layers' norms (where asked for); over input: `margins`.

    Raises:
        InputError: labels of one class or that do not fit the outputs, weights that have not moved, or as
            `spectral_norms`.

    Source: Bartlett, Foster and Telgarsky, 2017, section 2; Zhu et al., 2023 (distance from the start).
    """
    f = TangentFunction(model, (), output, torch.float64, some=False)
    x = f.inputs(X, "X")
    with torch.no_grad():
        out = f({}, f.rest(), x).cpu()
    margins = _margins(out, y).numpy()
    data: dict[str, Any] = {"margin": ("quantile", np.quantile(margins, QUANTILES))}
    if start is not None:
        distance = _distance(f, start)
        data["lazy_margin"] = ("quantile", np.quantile(margins, QUANTILES) / distance)
        data["distance"] = distance
    if spectral:
        product = math.prod(spectral_norms(model, x, constants).values())
        data["spectral_margin"] = ("quantile", np.quantile(margins, QUANTILES) / product)
        data["spectral_product"] = product
    data["margins"] = ("input", margins)
    record = provenance(inputs=[x, f.rest()])
    hints = {"plot": {"variables": [n for n in data if n.endswith("margin")]}}
    return Result(xr.Dataset(data, {"quantile": list(QUANTILES)}, hints), "normalized_margin", PAPER, record)


def _margins(out: Tensor, y: Any) -> Tensor:
    labels = torch.as_tensor(np.asarray(y))
    if labels.shape != (len(out),):
        raise InputError(f"y: expected {len(out)} labels, got shape {tuple(labels.shape)}")
    if len(labels.unique()) < 2:
        raise InputError("y holds one class: a margin is between two")
    if out.shape[1] == 1:
        if not bool(((labels == 1) | (labels == -1)).all()):
            raise InputError("a network with one output takes labels -1 and 1")
        return labels.double() * out[:, 0]
    if labels.is_floating_point() or int(labels.min()) < 0 or int(labels.max()) >= out.shape[1]:
        raise InputError(f"a network with {out.shape[1]} outputs takes classes from 0 to {out.shape[1] - 1}")
    chosen = nn.functional.one_hot(labels.long(), out.shape[1]).bool()
    return out[chosen] - out.masked_fill(chosen, float("-inf")).amax(1)


def _distance(f: TangentFunction, start: Mapping[str, Tensor]) -> float:
    now = dict(f.module.named_parameters())
    wrong = [k for k, v in start.items() if k not in now or now[k].shape != v.shape]
    if wrong or not start:
        raise InputError(f"start does not fit the model: {wrong[0]!r}" if wrong else "start holds no parameter")
    moved = float(
        torch.stack([(now[k].detach().double() - v.detach().double()).norm() for k, v in start.items()]).norm()
    )
    if moved == 0:
        raise InputError("the weights are those of the start: a margin for the distance moved needs training")
    return moved
