"""What every measure needs: which sites it reads, batches of rows, and a labelled Result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from actinium.core.errors import InputError, SiteError
from actinium.core.inputs import Inputs, Tokens
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.recording import Recording
from actinium.core.reducers import Context, feature_rows
from actinium.core.result import Result

__all__ = ["Layers", "as_result", "choose", "loss_sum", "padded", "ready", "real_rows", "row_batches", "stream"]

NON_LINEARITIES = (
    *(
        nn.ReLU,
        nn.ReLU6,
        nn.LeakyReLU,
        nn.PReLU,
        nn.RReLU,
        nn.ELU,
        nn.CELU,
        nn.SELU,
        nn.GELU,
        nn.SiLU,
        nn.Mish,
    ),
    *(nn.Softplus, nn.Softsign, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Threshold),
)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Layers:
    """The sites that a measure reads, and how its result names them.

    Attributes:
        names: site names, in order.
        dim: "layer" where each site belongs to another block, else "site".
        labels: block numbers, or site names.
    """

    names: list[str]
    dim: str
    labels: list[int] | list[str]

    @property
    def coords(self) -> dict[str, Any]:
        """The labels, and the site names beside block numbers."""
        if self.dim == "site":
            return {"site": self.labels}
        return {"layer": self.labels, "site": ("layer", self.names)}


def choose(model: Model, part: str, at: str | Sequence[str] | None = None) -> Layers:
    """The sites to read.

    Args:
        model: the model.
        part: the part of each block that is read when `at` is None. Without blocks: for "mlp.post" every
            non-linearity that is a module, else every linear and convolutional map.
        at: site names or patterns.

    Raises:
        InputError: the model has nothing of the kind; it says what to pass instead.
        SiteError: `at` matches nothing.
    """
    if not isinstance(model, Model):
        raise InputError(f"expected a Model (see ac.load), not {type(model).__name__}")
    if at is not None:
        sites = model.sites(at)
    else:
        sites = [s for s in model.sites() if s.part == part and s.stack == _main_stack(model)]
    names = list(dict.fromkeys(s.name for s in sites))
    layers = [s.layer for s in sites]
    if not names and not model.n_layers:
        names, layers = _plain_modules(model, part), []
    if not names:
        have = sorted({s.part for s in model.sites() if s.layer is not None})
        raise InputError(
            f"{model.name} has no {part!r} in its blocks (they have {', '.join(have) or 'nothing we know'}); "
            "choose sites with at=..., for example at='module:<path>'"
        )
    if len(layers) == len(names) and None not in layers and len(set(layers)) == len(names):
        return Layers(names, "layer", [int(i) for i in layers if i is not None])
    return Layers(names, "site", names)


def _main_stack(model: Model) -> str:
    try:
        return model.tower.stack.name
    except SiteError:
        return ""


def _plain_modules(model: Model, part: str) -> list[str]:
    kinds = NON_LINEARITIES if part == "mlp.post" else WEIGHTED
    return [f"module:{path}" for path, m in model.module.named_modules() if path and isinstance(m, kinds)]


def ready(model: Model, inputs: Any) -> Inputs:
    """Inputs brought to what the module's forward takes, so that several passes do it once."""
    if not isinstance(model, Model):
        raise InputError(f"expected a Model (see ac.load), not {type(model).__name__}")
    return model.prepare(inputs)


def row_batches(inputs: Inputs, batch_size: int | None) -> Iterator[Inputs]:
    """Prepared inputs, `batch_size` rows at a time."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    step = batch_size or inputs.size
    for start in range(0, inputs.size, step):
        yield rows_of(inputs, slice(start, start + step))


def rows_of(inputs: Inputs, rows: slice) -> Inputs:
    """Some rows of prepared inputs."""

    def cut(value: Any) -> Any:
        whole = isinstance(value, Tensor) and value.ndim and value.shape[0] == inputs.size
        return value[rows] if whole else value

    tokens = inputs.tokens
    if tokens is not None:
        tokens = Tokens(tokens.ids[rows], tokens.mask[rows], tokens.rows[rows])
    return replace(
        inputs,
        arguments={name: cut(value) for name, value in inputs.arguments.items()},
        positional=tuple(map(cut, inputs.positional)),
        size=len(range(*rows.indices(inputs.size))),
        tokens=tokens,
    )


def stream(
    model: Model,
    inputs: Inputs,
    layers: Layers,
    reduce: Any,
    batch_size: int | None,
    progress: bool,
    at_once: int | None = None,
) -> list[Any]:
    """Results of the reducer (or of each, by name) at each site.

    Args:
        model, inputs, layers: what is run and read.
        reduce: a reducer, or {name: reducer}.
        batch_size: rows per pass.
        progress: show a progress bar.
        at_once: how many sites to read in one pass over the inputs, where memory limits it.
    """
    out = []
    step = at_once or len(layers.names)
    for i in range(0, len(layers.names), step):
        names = layers.names[i : i + step]
        rec = model.record(inputs, names, reduce=reduce, batch_size=batch_size, progress=progress)
        out += [rec[name] for name in names]
    return out


def real_rows(rec: Recording, site: str) -> Tensor:
    """Recorded activations of a site as (n, features), padding left out."""
    value = rec[site]
    dims = rec.dims[site]
    context = Context(dims=dims, mask=rec.mask, tokens=None, rows=torch.arange(len(value)), site=site)
    return feature_rows(value, context)[0]


def loss_sum(model: Model, part: Inputs, labels: Tensor | None = None) -> tuple[float, int]:
    """Sum over targets of the cross-entropy in nats, and the number of targets.

    Args:
        model: the model.
        part: one batch of prepared inputs.
        labels: class of each row (rows,); None for the next token.
    """
    with torch.no_grad():
        if labels is None:
            losses = model.loss(part, reduction="token")
        else:
            logits = model.logits(part).float()
            losses = nn.functional.cross_entropy(logits, labels.to(logits.device), reduction="none")
    return float(losses.double().nansum()), int((~losses.isnan()).sum())


def padded(vectors: Sequence[Tensor]) -> np.ndarray:
    """Vectors of different lengths as rows of one float array; missing entries are NaN."""
    width = max(len(v) for v in vectors)
    rows = [nn.functional.pad(v.detach().double().cpu(), (0, width - len(v)), value=torch.nan) for v in vectors]
    return torch.stack(rows).numpy()


def as_result(
    model: Model,
    inputs: Inputs,
    method: str,
    variables: Mapping[str, Any],
    coords: Mapping[str, Any],
    *,
    paper: str | None = None,
    plot: Mapping[str, Any] | None = None,
    seed: int | None = None,
    **settings: Any,
) -> Result:
    """A Result with its provenance.

    Args:
        model, inputs: what was measured, on what.
        method: name of the measuring function.
        variables, coords: as for `xarray.Dataset`.
        paper: slug of the paper that it follows.
        plot: drawing hints.
        seed, settings: what else changes the numbers.
    """
    data = xr.Dataset(dict(variables), dict(coords))
    if plot:
        data.attrs["plot"] = dict(plot)
    record = provenance(model, inputs, seed, **settings)
    return Result(data, f"measure.{method}", paper, record)
