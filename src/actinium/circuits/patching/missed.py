"""How large an effect an estimate may have missed: random sets of the nodes that were not verified, patched jointly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from actinium.circuits.patching.corruption import GaussianNoise
from actinium.circuits.patching.effects import Effects
from actinium.circuits.patching.nodes import NodeSets, node_sets
from actinium.circuits.patching.sweep import Sweep, result_of
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.core.task import Task

__all__ = ["bound_missed", "upper_bounds"]

Floats = NDArray[np.float64]


def upper_bounds(effects: Any, chosen: Any, confidence: float = 0.95) -> tuple[Floats, Floats]:
    """For each node an upper confidence bound on the size of its mean effect within random sets.

    A one-sided Welch test with the hypothesis that the effect is theta or more in size, turned round: the smallest
    theta that is rejected.

    Args:
        effects: (set,) effect of each set.
        chosen: (set, node) bool, which nodes each set holds; every node is in two sets or more, and out of two.
        confidence: between 0 and 1.

    Returns:
        (node,) bound, and (node,) difference of the mean effects of sets with and without the node.

    Raises:
        InputError: a node is in or out of fewer than two sets.

    Source: Kramar et al., 2024, section 3.3.
    """
    values, inside = np.asarray(effects, dtype=float)[:, None], np.asarray(chosen, dtype=bool)
    counts = [inside.sum(0), (~inside).sum(0)]
    if min(c.min() for c in counts) < 2:
        raise InputError("every node has to be in two sets or more, and out of two or more")
    means = [np.where(m, values, 0.0).sum(0) / n for m, n in zip((inside, ~inside), counts, strict=True)]
    shares = [
        np.where(m, (values - mean) ** 2, 0.0).sum(0) / (n - 1) / n
        for m, mean, n in zip((inside, ~inside), means, counts, strict=True)
    ]
    variance = shares[0] + shares[1]
    parts = sum(share**2 / (n - 1) for share, n in zip(shares, counts, strict=True))
    freedom = np.where(parts > 0, variance**2 / np.where(parts > 0, parts, 1.0), 1.0)
    difference = means[0] - means[1]
    return np.abs(difference) + stats.t.ppf(confidence, freedom) * np.sqrt(variance), difference


def bound_missed(
    model: Model,
    task: Task,
    estimate: Result | xr.DataArray,
    at: Any = "blocks.*.attn.z",
    over: str | None = None,
    *,
    verified: int = 10,
    samples: int = 100,
    share: float = 0.1,
    confidence: float = 0.95,
    mode: str = "denoise",
    ablation: str | GaussianNoise = "resample",
    metric: str | Callable[..., Tensor] | None = None,
    positions: Any = None,
    heads: int | Sequence[int] | None = None,
    units: int | Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Effects:
    """Upper bound on the effect of any node that the estimate did not rank among the first.

    The nodes with the largest estimates are patched one by one. Of the others random sets are patched jointly; a node
    with a large effect would set sets that hold it apart from those that do not. The bound is on the effect averaged
    over what else is patched, which is the node's own as far as nodes do not depend on each other.

    Args:
        model, task, at, over, mode, ablation, metric, positions, heads, units, seed, batch_size, progress: as in
            `patch`; those that the estimate was made with.
        estimate: effects over the same nodes, of `attribution_patch` or `relevance_patch`.
        verified: number of nodes patched one by one.
        samples: number of random sets.
        share: share of the sets that a node is in, above 0 and below 1.
        confidence: of the bound.

    Returns:
        Effects: `effect` (of the verified nodes, else NaN), `bound` on the size of the others' effect (else NaN),
        `difference` of the mean effects of sets with and without the node, and `estimate`; `largest_bound`, with this
        confidence none of the others has a larger effect.

    Raises:
        InputError: as `patch`; the estimate is over other nodes; no node is left to be bounded; too few sets.

    Source: Kramar et al., 2024, section 3.3.
    """
    array = estimate["effect"] if isinstance(estimate, Result) else estimate
    nodes = node_sets(model, task, at, over, positions, heads, units)
    if tuple(array.dims) != nodes.dims or array.shape != nodes.shape:
        raise InputError(
            f"the estimate is over {dict(array.sizes)}, the nodes are {dict(zip(nodes.dims, nodes.shape, strict=True))}"
        )
    n = len(nodes.sets)
    if not 0 <= verified < n - 1:
        raise InputError(f"verified goes from 0 to {n - 2} of {n} nodes, so that some are left to be bounded")
    if not 0 < share < 1 or not 0 < confidence < 1:
        raise InputError(f"share and confidence lie between 0 and 1, not {share} and {confidence}")
    if samples < 4:
        raise InputError(f"a spread needs 4 sets or more, not {samples}")
    order = np.argsort(-np.abs(np.nan_to_num(array.values.astype(float).ravel())), kind="stable")
    first, rest = order[:verified], np.sort(order[verified:])
    chosen = _drawn(len(rest), samples, share, seed)
    sets = [nodes.sets[i] for i in first]
    sets += [[node for i in rest[row] for node in nodes.sets[i]] for row in chosen]
    sweep = Sweep(model, task, mode, ablation, metric, None, False, seed, batch_size, progress)
    flat = NodeSets(("patch",), {"patch": np.arange(len(sets))}, sets)
    about = {"at": at, "over": over, "verified": verified, "samples": samples, "share": share}
    made = result_of(
        sweep, flat, sweep.run(flat), "bound_missed", True, False, "patching-best-practices", **about, level=confidence
    )
    sweep.finish(made)
    effects = made["effect"].values
    bound, difference = upper_bounds(effects[verified:], chosen, confidence)
    data: dict[str, Any] = {
        "bound": (nodes.dims, _placed(n, rest, bound).reshape(nodes.shape)),
        "effect": (nodes.dims, _placed(n, first, effects[:verified]).reshape(nodes.shape)),
        "difference": (nodes.dims, _placed(n, rest, difference).reshape(nodes.shape)),
        "estimate": (nodes.dims, array.values),
        "largest_bound": ((), float(bound.max())),
        "m_clean": made.data["m_clean"],
        "m_corrupt": made.data["m_corrupt"],
    }
    attrs = {**made.data.attrs, "confidence": confidence, "samples": samples}
    return Effects(xr.Dataset(data, coords=nodes.coords, attrs=attrs), made.method, made.paper, made.provenance)


def _drawn(nodes: int, samples: int, share: float, seed: int) -> NDArray[np.bool_]:
    """(set, node): each node in the same number of sets, at least two, drawn by itself."""
    random = torch.Generator().manual_seed(seed)
    times = min(max(2, round(share * samples)), samples - 2)
    rank = torch.rand(samples, nodes, generator=random).argsort(0).argsort(0)
    return (rank < times).numpy()


def _placed(n: int, at: NDArray[np.intp], values: Floats) -> Floats:
    out = np.full(n, np.nan)
    out[at] = values
    return out
