"""Signal propagation plots: mean and variance of what leaves each residual block or layer of any network."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from actinium.core.errors import ActiniumWarning, InputError, UnknownNameError, unknown
from actinium.core.inputs import Inputs
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.reducers import Context, Moments, feature_rows
from actinium.core.result import Result
from actinium.signal.residual_sums import residual_blocks

__all__ = ["noise_inputs", "signal_propagation_plot"]

PAPER = "signal-propagation-plots"
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYOUTS = ("auto", "channels_first", "channels_last")
FEWEST = 64
TRIED = 2


@dataclass(frozen=True)
class _Point:
    """What is measured at one depth: a site, and the sites whose sum was added there."""

    site: str
    branch: tuple[str, ...] = ()


def noise_inputs(model: Model, shape: Sequence[int] | None = None, rows: int = 64, seed: int = 0) -> Inputs:
    """Inputs for a network without data: standard normal images or vectors, or token ids drawn evenly.

    Args:
        model: the network.
        shape: of one input without its batch dimension: (channel, height, width) or (feature,). By default it is read
            from the configuration; a language model gets token ids, 32 in a row or as many as its context has.
        rows: inputs.
        seed: of the draw.

    Raises:
        InputError: no rows, or the model's configuration says neither a vocabulary nor an image size.

    Source: Brock, De and Smith, 2021, section 3 (x from N(0, 1)).
    """
    if rows < 1:
        raise InputError(f"rows must be at least 1, not {rows}")
    random = torch.Generator().manual_seed(seed)
    config = model.config
    if shape is None and model.kind != "vision" and getattr(config, "vocab_size", None):
        ids = torch.randint(config.vocab_size, (rows, min(32, model.context or 32)), generator=random)
        # A decoder that is given its start token alone has nothing to vary over.
        return model.prepare({"input_ids": ids, "decoder_input_ids": ids} if model.kind == "encoder-decoder" else ids)
    if shape is None:
        size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
        if size is None:
            raise InputError(f"{model.name} does not say what it takes; pass inputs, or a shape such as (3, 32, 32)")
        shape = (channels, *((size, size) if isinstance(size, int) else size))
    if not shape or min(shape) < 1:
        raise InputError(f"the shape of an input has positive sizes, not {tuple(shape)}")
    return model.prepare(torch.randn(rows, *shape, generator=random).to(model.dtype))


def signal_propagation_plot(
    model: Model | nn.Module,
    inputs: Any = None,
    at: str | Sequence[str] | None = None,
    *,
    branches: Mapping[str, str] | None = None,
    input_shape: Sequence[int] | None = None,
    batch_statistics: bool = False,
    layout: str = "auto",
    rows: int = 64,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Result:
    """How mean and variance of the signal change along the depth of a network.

    Each feature (a channel of images, an entry of d_model for tokens) has a mean and a population variance over all
    rows and places; padding is left out. Depth 0 is what enters the first residual block.

    Args:
        model: a Model or a module; it is left as it was, running statistics included.
        inputs: texts, tokens, images or tensors; None for `noise_inputs`.
        at: sites. By default what leaves each addition to the residual stream of a transformer, else each residual
            block (`residual_blocks`), else each linear or convolutional layer.
        branches: {site: site of the end of its residual branch}, beside those that are found.
        input_shape, rows, seed: of the noise, where no inputs are given.
        batch_statistics: batch normalisation by the statistics of these inputs, as in training. It then needs all
            inputs in one pass.
        layout: where modules keep their features: "channels_first", "channels_last", or "auto": first in outputs of
            four dimensions or more, and of three in a network with `nn.Conv1d`s that is no transformer; else last.
        batch_size: rows in a pass, all by default.
        progress: show a progress bar.

    Returns:
        Result over depth (with the name of the site): `squared_mean`, mean over channels of the squared channel mean;
        `variance`, mean over channels of the channel variance; `residual_variance`, the same at the end of the residual
        branch before it is scaled and added, NaN where there is none; `channels`; `count`, values of a channel;
        `dropped`, values that are NaN or infinite. It draws the first three on a log scale.

    Raises:
        InputError: inputs with fewer than 64 places for a mean, inputs that are empty or not finite, batch statistics
            over several passes, or nothing to read.
        SiteError: a site does not exist or did not run.
        UnknownNameError: no such layout.

    Source: Brock, De and Smith, 2021, section 3.
    """
    if layout not in LAYOUTS:
        raise UnknownNameError(unknown("layout", layout, LAYOUTS))
    model = model if isinstance(model, Model) else Model(model)
    first = _first_from(model, layout)
    noise = inputs is None
    ready = noise_inputs(model, input_shape, rows, seed) if inputs is None else model.prepare(inputs)
    _check(ready, first)
    if batch_statistics and batch_size is not None and batch_size < ready.size:
        raise InputError("batch statistics are those of one pass: leave out batch_size")
    with _batch_norms(model.module, batch_statistics):
        points = _points(model, ready, at, dict(branches or {}))
        reducer = _ChannelStatistics(points, first)
        names = list(dict.fromkeys(n for p in points for n in (p.site, *p.branch)))
        model.record(ready, names, reduce=reducer, batch_size=batch_size, progress=progress)
    record = provenance(
        model,
        [ready.arguments, ready.positional],
        seed if noise else None,
        at=[p.site for p in points],
        branches={p.site: list(p.branch) for p in points},
        batch_statistics=batch_statistics,
        layout=layout,
    )
    return _result(points, reducer, record)


def _first_from(model: Model, layout: str) -> int:
    """Number of dimensions from which on a module's output has its channels second and not last."""
    if layout != "auto":
        return 3 if layout == "channels_first" else 99
    return 3 if not model.anatomy.towers and any(isinstance(m, nn.Conv1d) for m in model.module.modules()) else 4


def _check(inputs: Inputs, first: int) -> None:
    """Refuse too few places for a variance. Rows of vectors count as one place each."""
    if inputs.tokens is not None:
        places = int(inputs.tokens.mask.sum())
    else:
        given = [v for v in (*inputs.positional, *inputs.arguments.values()) if isinstance(v, Tensor) and v.ndim > 1]
        shape = tuple(given[0].shape) if given else (0,)
        places = shape[0] * int(np.prod(shape[2:] if len(shape) >= first else shape[1:-1]))
    if places < FEWEST:
        raise InputError(
            f"{places} places (rows x height x width, tokens, or rows) are too few for a variance; "
            f"pass {FEWEST} or more"
        )


@contextmanager
def _batch_norms(module: nn.Module, batch_statistics: bool) -> Iterator[None]:
    """Batch statistics where asked for; running statistics and modes as before at the end."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    modes = [m.training for m in norms]
    buffers = [{name: b.clone() for name, b in m.named_buffers(recurse=False)} for m in norms]
    hidden = [m for m in norms if not m.training and m.running_mean is not None]
    if hidden and not batch_statistics:
        warnings.warn(
            f"{len(hidden)} batch norms are in evaluation mode and use their running statistics, not those of these "
            "inputs; pass batch_statistics=True for what training sees",
            ActiniumWarning,
            stacklevel=4,
        )
    try:
        for m in norms:
            m.training = m.training or batch_statistics
        yield
    finally:
        with torch.no_grad():
            for m, mode, kept in zip(norms, modes, buffers, strict=True):
                m.training = mode
                for name, value in kept.items():
                    m.get_buffer(name).copy_(value)


def _points(model: Model, inputs: Inputs, at: str | Sequence[str] | None, branches: dict[str, str]) -> list[_Point]:
    known = _stream(model) if model.anatomy.towers else _blocks(model, inputs)
    if at is None:
        points = known or _layers(model, inputs)
    else:
        found = {p.site: p.branch for p in known}
        points = [_Point(s.name, found.get(s.name, ())) for s in model.sites(at)]
    if not points:
        raise InputError(f"{model.name} has no residual blocks, linear or convolutional layers; choose sites with at=")
    strange = [name for name in branches if name not in {p.site for p in points}]
    if strange:
        raise InputError(
            f"branches: {strange[0]!r} is not among the sites measured: {', '.join(p.site for p in points)}"
        )
    return [_Point(p.site, (branches[p.site],)) if p.site in branches else p for p in points]


def _stream(model: Model) -> list[_Point]:
    """The residual stream of a transformer after each addition."""
    tower = model.tower.stack.name
    sites = [s for s in model.sites() if s.stack == tower and s.layer is not None]
    by_part = {(s.layer, s.part): s.name for s in sites}
    points = [_Point(name) for (layer, part), name in by_part.items() if layer == 0 and part == "resid_pre"]
    for layer in sorted({s.layer for s in sites if s.layer is not None}):
        waiting: list[str] = []
        for part in ("attn.out", "mixer.out", "resid_mid", "cross_attn.out", "resid_cross", "mlp.out", "resid_post"):
            name = by_part.get((layer, part))
            if name is None:
                continue
            if part.startswith("resid"):
                points.append(_Point(name, tuple(waiting)))
                waiting = []
            else:
                waiting.append(name)
    return points


def _blocks(model: Model, inputs: Inputs) -> list[_Point]:
    _, args, kwargs = next(inputs.batches(TRIED, model.device))
    few = Inputs(kwargs, min(TRIED, inputs.size), args)
    found = residual_blocks(model, few)
    points = [_Point(f"module:{b.path}", (f"module:{b.branch}",)) for b in found]
    return [_Point(f"module_in:{found[0].path}"), *points] if found else []


def _layers(model: Model, inputs: Inputs) -> list[_Point]:
    """Linear and convolutional layers in the order in which they run."""
    layers = {path: m for path, m in model.module.named_modules() if path and isinstance(m, WEIGHTED)}
    ran: list[str] = []
    handles = [
        m.register_forward_hook(lambda module, args, out, path=path: ran.append(path)) for path, m in layers.items()
    ]
    _, args, kwargs = next(inputs.batches(TRIED, model.device))
    try:
        with torch.no_grad():
            model.module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return [_Point(f"module:{path}") for path in dict.fromkeys(ran)]


@dataclass
class _ChannelStatistics:
    """Moments of each channel at each site, and of the sums of branches that are added together."""

    points: list[_Point]
    first: int
    wants_context: bool = True
    at: dict[tuple[str, ...], Moments] = field(default_factory=dict)
    parts: dict[tuple[str, ...], dict[str, Tensor]] = field(default_factory=dict)

    def __deepcopy__(self, memo: Any) -> Self:
        # One object for all sites: what two branches add together is known only where both are seen.
        return self

    def update(self, value: Tensor, context: Context) -> None:
        """Take in the tensor of a site."""
        dims = context.dims
        if context.site.startswith("module") and value.ndim > 2:
            inner = [f"place_{i}" for i in range(value.ndim - 2)]
            inner[0] = "pos"
            dims = ("batch", "channel", *inner) if value.ndim >= self.first else ("batch", *inner, "feature")
        rows = feature_rows(value, Context(dims, context.mask, context.tokens, context.rows, context.site))[0]
        wanted = {(p.site,) for p in self.points} | {p.branch for p in self.points}
        for key in wanted:
            if context.site not in key:
                continue
            if len(key) == 1:
                self.at.setdefault(key, Moments()).update(rows)
                continue
            held = self.parts.setdefault(key, {})
            held[context.site] = rows
            if len(held) == len(key):
                self.at.setdefault(key, Moments()).update(torch.stack([r.double() for r in held.values()]).sum(0))
                held.clear()

    def result(self) -> None:
        """Read by the caller from `at`."""


def _result(points: list[_Point], reducer: _ChannelStatistics, record: dict[str, Any]) -> Result:
    columns: dict[str, list[float]] = {name: [] for name in ("squared_mean", "variance", "residual_variance")}
    counts: dict[str, list[int]] = {name: [] for name in ("channels", "count", "dropped")}
    for point in points:
        found = reducer.at[point.site,].result()
        # A channel without a finite value has no mean.
        columns["squared_mean"].append(float(found.mean.square().nanmean()))
        columns["variance"].append(float(found.var.nanmean()))
        added = reducer.at[point.branch].result() if point.branch else None
        columns["residual_variance"].append(np.nan if added is None else float(added.var.nanmean()))
        counts["channels"].append(len(found.mean))
        counts["count"].append(int(found.count.max()))
        counts["dropped"].append(int((found.nan + found.inf).sum()))
    data = xr.Dataset(
        {name: ("depth", np.array(values)) for name, values in {**columns, **counts}.items()},
        {"depth": np.arange(len(points)), "site": ("depth", [p.site for p in points])},
    )
    drawn = [name for name in columns if bool(np.isfinite(data[name]).any())]
    data.attrs["plot"] = {"variables": drawn, "yscale": "log", "ylabel": "mean over channels"}
    return Result(data, "signal_propagation_plot", PAPER, record)
