"""PPL-p% sparsity: how sparse the feed-forward activations can be made for a fixed loss of quality."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.edits import Edit, Fn
from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.inputs import Inputs
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.measure.sparsity import KeptUnits, fat_sparsity, topk_sparsity
from actinium.measure.streaming import Layers, as_result, choose, loss_sum, ready, real_rows, row_batches, stream
from actinium.measure.truncation import apply_thresholds, cett_curves

__all__ = ["largest_within", "ppl_p_sparsity"]

ENOUGH = 1000


def largest_within(ok: Callable[[float], bool], grid: int = 20, tol: float = 1e-4) -> float:
    """The largest strength in [0, 1] up to which everything tried is in budget.

    Steps of 1 / grid are tried from below until the first that is not; the last step is then bisected. Plain
    bisection over [0, 1] would land beyond a first failure where quality is not monotone.

    Args:
        ok: whether a strength is in budget; 0 is taken to be.
        grid: number of steps.
        tol: width at which the bisection ends.

    Returns:
        a strength for which `ok` held, or 0.
    """
    if grid < 1 or not 0 < tol <= 1:
        raise InputError(f"expected grid >= 1 and tol in (0, 1], got {grid} and {tol}")
    good = 0.0
    for i in range(1, grid + 1):
        if not ok(i / grid):
            bad = i / grid
            break
        good = i / grid
    else:
        return 1.0
    while bad - good > tol:
        middle = (good + bad) / 2
        if ok(middle):
            good = middle
        else:
            bad = middle
    return good


class _Cett:
    """Thresholds with the same CETT in every layer."""

    def __init__(self, model: Model, inputs: Inputs, layers: Layers, max_positions: int) -> None:
        self.model = model
        _, self.curves = cett_curves(model, inputs, layers.names, max_positions=max_positions)
        self.skipped = sum(curve.skipped for curve in self.curves.values())

    def thresholds(self, c: float) -> dict[str, float]:
        return {name: curve.threshold(c) for name, curve in self.curves.items()}

    def edit(self, c: float) -> Any:
        return apply_thresholds(self.model, self.thresholds(c))


class _Fat:
    """One threshold on |a| for all layers: the quantile of all layers' magnitudes at the given strength."""

    def __init__(self, model: Model, inputs: Inputs, layers: Layers, max_positions: int) -> None:
        self.model, self.names, self.skipped = model, layers.names, 0
        sizes = []
        for name in layers.names:
            a = real_rows(model.record(inputs, name), name).abs().float()
            sizes.append(a[torch.linspace(0, len(a) - 1, min(len(a), max_positions)).long()].flatten())
        self.sizes = torch.cat(sizes).sort().values

    def thresholds(self, strength: float) -> dict[str, float]:
        eps = float(self.sizes[min(len(self.sizes) - 1, math.floor(strength * len(self.sizes)))])
        return dict.fromkeys(self.names, eps)

    def edit(self, strength: float) -> Any:
        return _edit(self.model, {n: Fn(_fat(eps)) for n, eps in self.thresholds(strength).items()})


class _TopK:
    """The same share of units kept at every position of every layer."""

    def __init__(self, model: Model, inputs: Inputs, layers: Layers, max_positions: int) -> None:
        self.model, self.names, self.skipped = model, layers.names, 0

    def thresholds(self, strength: float) -> dict[str, float]:
        return dict.fromkeys(self.names, 1 - strength)

    def edit(self, strength: float) -> Any:
        return _edit(self.model, {name: Fn(_top(1 - strength)) for name in self.names})


RULES = {"cett": _Cett, "fat": _Fat, "topk": _TopK}


def _fat(eps: float) -> Callable[[Tensor], Tensor]:
    return lambda a: fat_sparsity(a, eps)


def _top(ratio: float) -> Callable[[Tensor], Tensor]:
    return lambda a: topk_sparsity(a, ratio)


@contextmanager
def _edit(model: Model, edits: Mapping[str, Edit]) -> Any:
    with model.edit(edits):
        yield model


@dataclass(frozen=True)
class _Part:
    """Inputs, with the class of each row where the model is a classifier."""

    inputs: Inputs
    labels: Tensor | None

    def loss(self, model: Model, batch_size: int | None) -> float:
        """Mean cross-entropy in nats: of the next token, or of the labels."""
        total, count, row = 0.0, 0, 0
        for part in row_batches(self.inputs, batch_size):
            labels = None if self.labels is None else self.labels[row : row + part.size]
            losses, targets = loss_sum(model, part, labels)
            total, count, row = total + losses, count + targets, row + part.size
        if not count:
            raise InputError("no target to compute a loss on")
        return total / count


def ppl_p_sparsity(
    model: Model,
    inputs: Any,
    p: float = 1.0,
    at: str | Sequence[str] | None = None,
    *,
    rule: str = "cett",
    labels: Any = None,
    held_out: Any = None,
    held_out_labels: Any = None,
    grid: int = 20,
    tol: float = 1e-4,
    max_positions: int = 4096,
    batch_size: int | None = 8,
) -> Result:
    """The sparsest the feed-forward activations can be with a perplexity at most p percent higher.

    Args:
        model: a causal language model, or a classifier with `labels`. In evaluation mode.
        inputs: calibration texts, tokens or images; some thousand positions.
        p: percent of perplexity (exp of the mean cross-entropy) that may be lost.
        at: sites read by linear maps; each block's `mlp.post` by default.
        rule: what is left out, in all layers with one strength in [0, 1]: "cett" (thresholds on |a_j| ||w_j||
            with the same CETT in every layer; the strength is the CETT), "fat" (one threshold on |a|; the
            strength is its quantile) or "topk" (the smallest |a| of each position; the strength is their
            share).
        labels: class of each row (rows,), for classifiers.
        held_out, held_out_labels: other inputs on which the loss of quality is reported too; the budget is
            spent on `inputs`, so their own figure is optimistic.
        grid, tol: of the search, see `largest_within`. Luo et al. bisect to 1e-6.
        max_positions: positions on which thresholds are calibrated.
        batch_size: rows per pass.

    Returns:
        by layer: `ratio` (share of units kept, mean over positions), `sparsity`, `threshold`; `total_ratio`,
        the mean over layers; `strength` found; `ppl_dense`, `ppl_sparse` and with `held_out`
        `ppl_dense_held_out`, `ppl_sparse_held_out`; `skipped` positions whose layer output is zero; by layer,
        row and position: `per_position`, the share kept (NaN on padding).

    Raises:
        InputError: p < 0, unknown rule, no feed-forward layer, a model in training mode, labels that do not
            fit.

    Source: Luo et al., 2024, Sparsing Law. "fat" and "topk" are its baselines, here
    on the gated product where it has the gate's output.
    """
    if not p >= 0 or rule not in RULES:
        raise InputError(f"expected p >= 0 and rule one of {', '.join(RULES)}, got {p} and {rule!r}")
    if model.module.training:
        raise InputError(f"{model.name} is in training mode; call model.module.eval() first")
    if labels is None and model.kind != "causal-lm":
        raise InputError(
            f"{model.name} does not predict the next token; pass labels=... to measure a classifier's loss"
        )
    prepared, layers = ready(model, inputs), choose(model, "mlp.post", at)
    parts = [_Part(prepared, _labels(labels, prepared))]
    if held_out is not None:
        others = ready(model, held_out)
        parts.append(_Part(others, _labels(held_out_labels, others)))
    search = RULES[rule](model, prepared, layers, max_positions)
    dense = [part.loss(model, batch_size) for part in parts]

    def ok(strength: float) -> bool:
        with search.edit(strength):
            return math.exp(parts[0].loss(model, batch_size) - dense[0]) <= 1 + p / 100

    strength = largest_within(ok, grid, tol)
    with search.edit(strength) if strength > 0 else nullcontext():
        kept: list[KeptUnits] = stream(model, prepared, layers, KeptUnits(), batch_size, False)
        sparse = [part.loss(model, batch_size) for part in parts]
    thresholds = search.thresholds(strength) if strength > 0 else dict.fromkeys(layers.names, 0.0)
    variables = _kept_variables(layers, kept, thresholds)
    variables |= {"strength": ((), strength), "skipped": ((), search.skipped)}
    for suffix, before, after in zip(("", "_held_out"), dense, sparse, strict=False):
        variables |= {f"ppl_dense{suffix}": ((), math.exp(before)), f"ppl_sparse{suffix}": ((), math.exp(after))}
    return as_result(
        model,
        prepared,
        "ppl_p_sparsity",
        variables,
        layers.coords,
        paper="sparsing-law",
        plot={"variables": ["ratio"], "kind": "bar", "ylabel": f"share of units kept at PPL-{p:g}%"},
        at=layers.names,
        p=p,
        rule=rule,
        grid=grid,
        tol=tol,
        max_positions=max_positions,
        held_out=[part.inputs for part in parts[1:]],
    )


def _kept_variables(layers: Layers, kept: Sequence[KeptUnits], thresholds: Mapping[str, float]) -> dict[str, Any]:
    """What was kept, by layer and by position; too few positions are warned of."""
    if (positions := sum(map(len, kept[0].per_row))) < ENOUGH:
        warnings.warn(
            f"{positions} positions are few for thresholds; take {ENOUGH} or more", ActiniumWarning, stacklevel=3
        )
    ratio, one = np.array([k.ratio for k in kept]), (layers.dim,)
    return {
        "ratio": (one, ratio),
        "sparsity": (one, 1 - ratio),
        "threshold": (one, [thresholds[name] for name in layers.names]),
        "total_ratio": ((), ratio.mean()),
        "per_position": ((layers.dim, "row", "pos"), np.stack([_table(k.per_row) for k in kept])),
    }


def _labels(labels: Any, inputs: Inputs) -> Tensor | None:
    if labels is None:
        return None
    classes = torch.as_tensor(labels)
    if classes.shape != (inputs.size,):
        raise InputError(f"expected one label for each of {inputs.size} rows, got shape {tuple(classes.shape)}")
    return classes.long()


def _table(per_row: Sequence[Tensor]) -> np.ndarray:
    width = max(map(len, per_row))
    out = np.full((len(per_row), width), np.nan)
    for i, row in enumerate(per_row):
        out[i, : len(row)] = row.numpy()
    return out
