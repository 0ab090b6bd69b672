"""Landscapes: the output of a random network over its two inputs, and the loss of a network around its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.evaluation import evaluating
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.functions.registry import get

__all__ = ["filter_normalised", "loss_landscape", "output_landscape", "weight_noise_landscape"]

Floats = NDArray[np.float64]
Loss = Callable[[Any, Any], Tensor | float]
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
STEADY = 1e-3
"""How far, relative to it, two readings of one loss may differ: kernels of an accelerator may add in any order."""
FLAT = 1e-12
"""An output that varies less than this, relative to its size, is constant."""


def output_landscape(
    activation: str | Callable[[Tensor], Tensor],
    *,
    depth: int = 5,
    width: int = 64,
    extent: float = 4.0,
    resolution: int = 64,
    seed: int = 0,
) -> Result:
    """Output of a random multilayer perceptron over the plane of its two inputs, and how rough it is.

    Weights are normal with variance 2 / fan-in and there are no biases; they depend on the seed alone, so that
    functions with the same seed are compared in the same network. All is computed in float64.

    Args:
        activation: name in the catalogue, or an elementwise callable or module.
        depth: hidden layers.
        width: units of each.
        extent: inputs lie in [-extent, extent] on both axes.
        resolution: points on an axis.
        seed: of the weights.

    Returns:
        `output` (x2, x1), standardised; `roughness` and `largest`, mean and maximum over the inner points of the
        absolute discrete Laplacian (sum of the four neighbours less four times the point, in units of the grid: compare
        only what has the same extent and resolution).

    Raises:
        InputError: a size is too small, or the function changes the shape, or gives a constant or non-finite output.
        UnknownNameError: there is no function of that name.

    Source: Misra, 2020, arXiv 1908.08681 (pictures); the measure of roughness is ours.
    """
    if depth < 1 or width < 1:
        raise InputError(f"a network has one hidden layer of one unit or more, not {depth} of {width}")
    if not (math.isfinite(extent) and extent > 0) or resolution < 3:
        raise InputError(f"a grid needs an extent above 0 and 3 points on an axis, not {extent} and {resolution}")
    name, f = _function(activation)
    axis = np.linspace(-extent, extent, resolution)
    x1, x2 = np.meshgrid(axis, axis)
    x = torch.from_numpy(np.stack([x1.ravel(), x2.ravel()], 1))
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer, (a, b) in enumerate(zip([2] + depth * [width], depth * [width] + [1], strict=True)):
            x = x if layer == 0 else _applied(f, x, name)
            x = x @ (torch.randn(b, a, generator=source, dtype=torch.float64) * math.sqrt(2 / a)).T
    y = x.numpy().reshape(resolution, resolution)
    if not np.isfinite(y).all():
        raise InputError(f"the network with {name} has an output that is not finite")
    if y.std() <= FLAT * max(np.abs(y).max(), np.finfo(float).tiny):
        raise InputError(f"the network with {name} has a constant output: there is no landscape")
    y = (y - y.mean()) / y.std()
    bend = np.abs(y[2:, 1:-1] + y[:-2, 1:-1] + y[1:-1, 2:] + y[1:-1, :-2] - 4 * y[1:-1, 1:-1])
    data = xr.Dataset(
        {"output": (("x2", "x1"), y), "roughness": bend.mean(), "largest": bend.max()},
        {"x1": axis, "x2": axis},
        {"plot": {"x": "x1", "y": "x2"}},
    )
    run = provenance(seed=seed, activation=name, depth=depth, width=width, extent=extent, resolution=resolution)
    return Result(data, "output_landscape", "mish", run)


def _function(activation: str | Callable[[Tensor], Tensor]) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Its name, and the function in float64 and evaluation mode."""
    if isinstance(activation, str):
        return activation, get(activation).double().eval()
    if isinstance(activation, nn.Module):
        return type(activation).__name__, copy.deepcopy(activation).double().eval()
    if not callable(activation):
        raise InputError(f"an activation is a name or a callable of a tensor, not {type(activation).__name__}")
    return getattr(activation, "__name__", type(activation).__name__), activation


def _applied(f: Callable[[Tensor], Tensor], x: Tensor, name: str) -> Tensor:
    y: Any = f(x)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        what = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise InputError(f"{name} makes {what} of a tensor of shape {tuple(x.shape)}; it has to keep the shape")
    return y.double()


def filter_normalised(direction: Tensor, weights: Tensor, dim: int = 0) -> Tensor:
    """A direction each of whose filters is as long as the same filter of the weights.

    Args:
        direction, weights: (…) of one shape, with two dimensions or more.
        dim: dimension of the filters, which is that of the outputs.

    Returns:
        the direction; a filter of weights that is 0 gets one that is 0.

    Raises:
        InputError: the shapes differ, or there is only one dimension.

    Source: Li et al., 2018, Visualizing the loss landscape of neural nets, section 4.
    """
    if direction.shape != weights.shape or weights.ndim < 2:
        raise InputError(
            f"a direction {tuple(direction.shape)} and weights {tuple(weights.shape)} need one shape of two dimensions "
            "or more"
        )
    others = [d for d in range(weights.ndim) if d != dim % weights.ndim]
    own = torch.linalg.vector_norm(direction, dim=others, keepdim=True)
    wanted = torch.linalg.vector_norm(weights.to(direction.dtype), dim=others, keepdim=True)
    return direction * torch.where(own > 0, wanted / own, 0.0)


def loss_landscape(
    model: nn.Module | Model,
    loss_fn: Loss,
    batch: Any,
    *,
    extent: float = 1.0,
    resolution: int = 15,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Loss over the plane through a network's weights along two random directions, each filter as long as the weights'.

    Weights of two dimensions and more are moved; biases, scales of normalisation and other vectors stay. The network is
    read in evaluation mode; weights and modes are afterwards exactly as before.

    Args:
        model: the network.
        loss_fn: from the network and the batch to a number, such as
            `lambda net, batch: cross_entropy(net(batch[0]), batch[1])` or `lambda model, texts: model.loss(texts)`.
        batch: whatever `loss_fn` reads; the same at every point.
        extent: the plane reaches from -extent to extent; at 1 the noise is as large as the weights.
        resolution: points on an axis; the weights themselves are one of them where it is odd.
        seed: of the directions.
        progress: show a progress bar.

    Returns:
        `loss` (second, first), by steps along the directions; `centre`, the loss of the weights; `roughness` and
        `largest`, mean and maximum of the absolute second differences along both axes (in units of the grid, where both
        are finite); `finite`, the share of finite losses.

    Raises:
        InputError: the grid is too small, nothing can be moved, or the loss is not one finite and reproducible number.

    Source: Li et al., 2018, section 4; Misra, 2020, arXiv 1908.08681; Das et al., 2025, arXiv 2502.03654.
    """
    if not (math.isfinite(extent) and extent > 0) or resolution < 3:
        raise InputError(f"a plane needs an extent above 0 and 3 points on an axis, not {extent} and {resolution}")
    steps = np.linspace(-extent, extent, resolution)
    loss = np.empty((resolution, resolution))
    with _moved(model) as weights:
        centre = _centre(model, loss_fn, batch)
        source = torch.Generator().manual_seed(seed)
        first, second = weights.direction(source), weights.direction(source)
        for i in shown(range(resolution), "loss landscape", progress):
            for j in range(resolution):
                weights.move((float(steps[j]), first), (float(steps[i]), second))
                loss[i, j] = _loss(model, loss_fn, batch)
    rough, largest = _bends(loss, 0, 1)
    found = {"centre": centre, "roughness": rough, "largest": largest, "finite": float(np.isfinite(loss).mean())}
    data = xr.Dataset(
        {"loss": (("second", "first"), loss), **found},
        {"first": steps, "second": steps},
        {"plot": {"x": "first", "y": "second"}},
    )
    return Result(data, "loss_landscape", "mish", _run(model, seed, extent=extent, resolution=resolution))


def weight_noise_landscape(
    model: nn.Module | Model,
    loss_fn: Loss,
    batch: Any,
    scales: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    *,
    directions: int = 10,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Loss of a network with noise on its weights, along several random directions.

    A plane shows two directions; this tells how much directions differ. Weights are moved and put back as in
    `loss_landscape`.

    Args:
        model, loss_fn, batch: as in `loss_landscape`.
        scales: of the noise, in lengths of each filter: three or more, rising in equal steps.
        directions: how many.
        seed: of the directions.
        progress: show a progress bar.

    Returns:
        by scale: `mean`, `least` and `most` of the loss over directions, and `sd`; `loss` (direction, scale); `centre`,
        `roughness`, `largest` (of second differences along directions) and `finite` as in `loss_landscape`.

    Raises:
        InputError: scales are too few or not evenly spaced, no directions, or what `loss_landscape` refuses.

    Source: Das et al., 2025, arXiv 2502.03654 (noise on learnt weights); scales by filter: Li et al., 2018.
    """
    s = np.asarray(scales, dtype=float)
    if s.ndim != 1 or len(s) < 3 or not np.isfinite(s).all() or s[1] <= s[0] or not np.allclose(np.diff(s, 2), 0):
        raise InputError(f"scales are three numbers or more that rise in equal steps, not {list(scales)}")
    if directions < 1:
        raise InputError(f"there is one direction or more, not {directions}")
    loss = np.empty((directions, len(s)))
    with _moved(model) as weights:
        centre = _centre(model, loss_fn, batch)
        source = torch.Generator().manual_seed(seed)
        for i in shown(range(directions), "noise on weights", progress):
            along = weights.direction(source)
            for j, scale in enumerate(s.tolist()):
                weights.move((scale, along))
                loss[i, j] = _loss(model, loss_fn, batch)
    rough, largest = _bends(loss, 1)
    with np.errstate(invalid="ignore"):
        sd = loss.std(0)
    data = xr.Dataset(
        {
            "mean": ("scale", loss.mean(0)),
            "least": ("scale", loss.min(0)),
            "most": ("scale", loss.max(0)),
            "sd": ("scale", sd),
            "loss": (("direction", "scale"), loss),
            "centre": centre,
            "roughness": rough,
            "largest": largest,
            "finite": float(np.isfinite(loss).mean()),
        },
        {"scale": s, "direction": np.arange(directions)},
        {"plot": {"kind": "line", "variables": ["mean", "least", "most"], "ylabel": "loss"}},
    )
    run = _run(model, seed, scales=s.tolist(), directions=directions)
    return Result(data, "weight_noise_landscape", "golu", run)


class _Weights:
    """The weights that are moved, and what they were."""

    def __init__(self, module: nn.Module) -> None:
        self.parts: list[tuple[nn.Parameter, Tensor, int]] = []
        seen: set[int] = set()
        for owner in module.modules():
            # Of GPT-2's Conv1D and of transposed convolutions the second dimension is that of the outputs.
            dim = int(isinstance(owner, TRANSPOSED) or type(owner).__name__ == "Conv1D")
            for p in owner.parameters(recurse=False):
                if p.ndim > 1 and p.is_floating_point() and id(p) not in seen:
                    seen.add(id(p))
                    self.parts.append((p, p.detach().clone(), dim))
        if not self.parts:
            raise InputError(f"{type(module).__name__} has no weights of two dimensions or more")
        if any(p.is_meta for p, _, _ in self.parts):
            raise InputError(f"weights of {type(module).__name__} are not in memory")

    def direction(self, source: torch.Generator) -> list[Tensor]:
        """A random direction; float32 also where the weights are kept with fewer digits."""
        found = []
        for p, kept, dim in self.parts:
            dtype = torch.promote_types(p.dtype, torch.float32)
            noise = torch.randn(p.shape, generator=source, dtype=dtype).to(p.device)
            found.append(filter_normalised(noise, kept, dim))
        return found

    def move(self, *steps: tuple[float, list[Tensor]]) -> None:
        """Put the weights at their place plus steps along directions."""
        for i, (p, kept, _) in enumerate(self.parts):
            p.copy_(kept + sum(scale * along[i] for scale, along in steps))

    def restore(self) -> None:
        """Put the weights back, bit by bit."""
        for p, kept, _ in self.parts:
            p.copy_(kept)


@contextmanager
def _moved(model: nn.Module | Model) -> Iterator[_Weights]:
    """Weights that may be moved while the network is in evaluation mode; all is as before afterwards."""
    module = model.module if isinstance(model, Model) else model
    if not isinstance(module, nn.Module):
        raise InputError(f"expected a network (a module or a Model), not {type(model).__name__}")
    weights = _Weights(module)
    with torch.no_grad(), evaluating(module):
        try:
            yield weights
        finally:
            weights.restore()


def _loss(model: Any, loss_fn: Loss, batch: Any) -> float:
    value = loss_fn(model, batch)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise InputError(f"a loss is one number, not a tensor of shape {tuple(value.shape)}")
    return float(value)


def _centre(model: Any, loss_fn: Loss, batch: Any) -> float:
    """The loss of the weights as they are, if it is a number that can be read again."""
    first, second = (_loss(model, loss_fn, batch) for _ in range(2))
    if not math.isfinite(first):
        raise InputError(f"the loss of the network is {first}")
    if not math.isclose(first, second, rel_tol=STEADY, abs_tol=1e-9):
        raise InputError(
            f"the loss is random ({first:g}, then {second:g}): its roughness would not be that of the weights"
        )
    return first


def _bends(loss: Floats, *axes: int) -> tuple[float, float]:
    """Mean and maximum of the absolute second differences that are finite; NaN where there is none."""
    with np.errstate(invalid="ignore"):
        sizes = np.concatenate([np.abs(np.diff(loss, 2, axis)).ravel() for axis in axes])
    sizes = sizes[np.isfinite(sizes)]
    return (float(sizes.mean()), float(sizes.max())) if len(sizes) else (math.nan, math.nan)


def _run(model: Any, seed: int, **settings: Any) -> dict[str, Any]:
    known = model if isinstance(model, Model) else None
    return provenance(known, seed=seed, network=type(model).__name__ if known is None else known.name, **settings)
