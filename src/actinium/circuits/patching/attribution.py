"""Attribution patching: every patch of a sweep estimated from gradients, in a few passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from actinium.circuits.patching.atp_star import Star
from actinium.circuits.patching.contrast import Contrast, sign_of
from actinium.circuits.patching.corruption import GaussianNoise
from actinium.circuits.patching.effects import Effects, Runs
from actinium.circuits.patching.nodes import Node, NodeSets, node_sets
from actinium.circuits.patching.sweep import Edits, RunPair, Sweep, averaged, result_of
from actinium.core.edits import Add, Edit, Replace, Where
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["attribution_patch", "attribution_sweep", "gradients", "linear_rows", "scores"]

METHODS = ("atp", "atp*", "ig")
WITHOUT_GRADIENT = ("rank", "accuracy")


def attribution_patch(
    model: Model,
    task: Task,
    at: Any = "blocks.*.attn.z",
    over: str | None = None,
    *,
    method: str = "atp",
    mode: str = "denoise",
    ablation: str | GaussianNoise = "resample",
    metric: str | Callable[..., Tensor] | None = None,
    positions: Any = None,
    heads: int | Sequence[int] | None = None,
    units: int | Sequence[int] | None = None,
    steps: int = 10,
    normalise: bool = True,
    by_row: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
) -> Effects:
    """Estimate of `patch`: the gradient of the metric in the patched run times the difference of activations.

    Args:
        model, task, at, over, mode, metric, positions, heads, units, normalise, by_row, seed, batch_size: as in
            `patch`.
        method: "atp" (gradient at the run that is patched: two forward passes and a backward one); "ig" (mean gradient
            over `steps` points on the line between the two runs' activations of one site at a time: for a whole site
            exact as they grow); "atp*" (attention recomputed for queries and keys; and no cancelling between paths:
            one backward pass for each layer, in which its contribution to the residual stream carries no gradient, and
            the mean of the absolute scores over layers and rows).
        ablation: "resample", "gaussian" or a `GaussianNoise`.
        steps: points of "ig".

    Returns:
        Effects as those of `patch`; `patched` is the estimate of the patched metric. With "atp*" no effect is below 0.

    Raises:
        InputError: as `patch`; a metric without gradient; zero or mean ablation; gradients that are not finite.
        UnknownNameError: there is no such method.

    Source: Nanda, 2023 (attribution patching); Kramar et al., 2024 (AtP*); Sundararajan et al., 2017 (equation 3).
    """
    if method not in METHODS:
        raise UnknownNameError(unknown("method", method, METHODS))
    if steps < 1:
        raise InputError(f"steps must be at least 1, not {steps}")
    sweep = attribution_sweep(model, task, mode, ablation, metric, seed, batch_size)
    if method == "atp*" and not model.n_layers:
        raise InputError(f"atp* cuts one block after the other, and {model.name} has none that we know")
    nodes = node_sets(model, task, at, over, positions, heads, units)
    runs = averaged(sweep, nodes, lambda contrast: _rows(sweep, contrast, nodes, method, steps))
    along = _direction(runs, sign_of(sweep.metric or ""), normalise) if method == "atp*" else 1.0
    runs = replace(runs, patched=runs.base + along * runs.patched)
    about = {"at": at, "over": over, "method": method, **({"steps": steps} if method == "ig" else {})}
    return result_of(sweep, nodes, runs, "attribution_patch", normalise, by_row, "patching-best-practices", **about)


def attribution_sweep(
    model: Model,
    task: Task,
    mode: str,
    ablation: str | GaussianNoise,
    metric: str | Callable[..., Tensor] | None,
    seed: int,
    batch_size: int | None,
) -> Sweep:
    """The runs of an estimate from gradients.

    Raises:
        InputError: as `Sweep`; activations do not come from another run, or the metric has no gradient.
        UnknownNameError: as `Sweep`.
    """
    sweep = Sweep(model, task, mode, ablation, metric, None, False, seed, batch_size)
    if not sweep.paired:
        raise InputError('attribution compares two runs: ablation is "resample" or "gaussian"')
    if sweep.metric in WITHOUT_GRADIENT:
        raise InputError(f"{sweep.metric} has no gradient; use logit_diff, logprob, prob or kl")
    return sweep


def _direction(runs: Runs, sign: float, normalise: bool) -> float:
    """1 or -1: the way of the metric in which scores without a sign of their own become positive effects."""
    if normalise:
        return 1.0 if float((runs.source - runs.base).mean()) >= 0 else -1.0
    return sign if runs.mode == "denoise" else -sign


def _rows(sweep: Sweep, contrast: Contrast, nodes: NodeSets, method: str, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and corrupt metric (row,) and scores (set, row) of the rows of a contrast."""
    if method == "atp":
        return linear_rows(sweep, contrast, nodes)
    pair, step = _steps(sweep, contrast, nodes)
    edits = Edits(sweep, pair, contrast.rows)
    if method == "ig":
        parts = {n: _path_gradient(pair, n, step[n], steps) * step[n] for n in nodes.sites}
        return pair.clean, pair.corrupt, scores(parts, nodes, edits)
    star = Star(sweep.model, pair, nodes.sites)
    drops = []
    for layer in range(sweep.model.n_layers):
        found = gradients(pair, star.sites, star.cut(layer))
        parts = {n: star.contributions(n, found, step[n]) for n in nodes.sites}
        drops.append(scores(parts, nodes, edits).abs())
    return pair.clean, pair.corrupt, torch.stack(drops).sum(0) / max(len(drops) - 1, 1)


def linear_rows(sweep: Sweep, contrast: Contrast, nodes: NodeSets) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and corrupt metric (row,), and the change of the metric to first order (set, row), of a contrast's rows."""
    pair, step = _steps(sweep, contrast, nodes)
    found = gradients(pair, nodes.sites)
    parts = {n: found[n] * step[n] for n in nodes.sites}
    return pair.clean, pair.corrupt, scores(parts, nodes, Edits(sweep, pair, contrast.rows))


def _steps(sweep: Sweep, contrast: Contrast, nodes: NodeSets) -> tuple[RunPair, dict[str, Tensor]]:
    """The runs, and at each site the way from the activations of the one that is patched to the other's."""
    pair = RunPair(sweep, contrast, nodes.sites)
    assert pair.own is not None and pair.other is not None
    return pair, {name: _difference(pair.own[name], pair.other[name]) for name in nodes.sites}


def _difference(own: Tensor, other: Tensor) -> Tensor:
    # Scores that the mask rules out are minus infinity in both runs.
    return torch.where(own == other, 0.0, other - own)


def gradients(pair: RunPair, sites: Sequence[str], also: Sequence[tuple[str, Edit]] = ()) -> dict[str, Tensor]:
    """Gradient of each row's metric with respect to the activations of the run that is patched.

    Args:
        pair: the runs.
        sites: where.
        also: edits in force during the pass.

    Raises:
        InputError: a gradient is not finite.
    """
    assert pair.own is not None
    deltas = {name: torch.zeros_like(pair.own[name]).requires_grad_() for name in sites}
    with torch.enable_grad(), pair.sweep.model.edit([*((n, Add(d)) for n, d in deltas.items()), *also]):
        total = pair.score(pair.sweep.model.logits(pair.inputs)[:, -1]).sum()
        if not total.requires_grad:
            return {name: torch.zeros_like(delta) for name, delta in deltas.items()}
        found = torch.autograd.grad(total, list(deltas.values()), allow_unused=True)
    out = {}
    for (name, delta), gradient in zip(deltas.items(), found, strict=True):
        out[name] = torch.zeros_like(delta) if gradient is None else gradient.detach()
        _check_finite(name, out[name])
    return out


def _check_finite(name: str, gradient: Tensor) -> None:
    if not bool(torch.isfinite(gradient).all()):
        raise InputError(f"the gradient at {name} is not finite; half precision may be too narrow, try dtype float32")


def _path_gradient(pair: RunPair, name: str, step: Tensor, steps: int) -> Tensor:
    """Mean gradient over the midpoints of `steps` pieces of the line from the run's own activations."""
    assert pair.own is not None
    own, model = pair.own[name], pair.sweep.model
    total = torch.zeros_like(step)
    lowest = torch.finfo(own.dtype).min
    for i in range(steps):
        point = (own + (i + 0.5) / steps * step).clamp_min(lowest).detach().requires_grad_()
        with torch.enable_grad(), model.edit({name: Replace(point)}):
            value = pair.score(model.logits(pair.inputs)[:, -1]).sum()
            (found,) = torch.autograd.grad(value, point) if value.requires_grad else (torch.zeros_like(point),)
        _check_finite(name, found)
        total += found.detach()
    return total / steps


def scores(parts: Mapping[str, Tensor], nodes: NodeSets, edits: Edits) -> Tensor:
    """(set, row) float64: contributions of a site's entries summed within each node."""
    merged: dict[tuple[str, bool], Tensor] = {}
    out = []
    for each in nodes.sets:
        out.append(torch.stack([_score(parts[n.site], n, edits, merged) for n in each]).sum(0))
    return torch.stack(out)


def _score(part: Tensor, node: Node, edits: Edits, merged: dict[tuple[str, bool], Tensor]) -> Tensor:
    """(row,) of one node."""
    key = node.site, node.units is None
    if key not in merged:
        # Summed first over what no node of this kind splits, so that a long sweep stays cheap.
        values = part.cpu().double()
        merged[key] = values.sum(-1, keepdim=True) if node.units is None and values.ndim > 1 else values
    values = merged[key]
    whole = node.positions is None and node.heads is None
    if whole and node.units is not None:
        return values[..., node.units].flatten(1).sum(1)
    if whole:
        return values.flatten(1).sum(1)
    ((site, _, _),) = edits.sweep.model.resolve(node.site)
    edit = node.restrict(Add(torch.zeros(())), edits.rows)
    return torch.where(edit.mask(values, Where(site, edits.now, 0)), values, 0.0).flatten(1).sum(1)
