"""Answers as paths through a hierarchy: how far they are right, and how much of a gap an easier prompt closes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import xarray as xr

from actinium.core.errors import InputError
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.statistics import bootstrap_interval

__all__ = ["gap_recovered", "hierarchy_path_score", "lca_distance"]

PAPER = "fact-vs-query-similarity"
Path = Sequence[Hashable]


def hierarchy_path_score(
    predicted: Sequence[Path], true: Sequence[Path], parents: Mapping[Hashable, Hashable] | None = None
) -> Result:
    """How far predicted paths from the root agree with the true ones.

    Args:
        predicted: for each item the nodes from the root on; may be empty where no answer was given.
        true: the same, never empty.
        parents: parent of every node but the root. Given, the distance is that between the two end nodes in the tree;
            else the predicted path itself is taken for its place.

    Returns:
        by item: `exact` (1 if the paths are equal); `prefix`, number of equal nodes from the root on over the length of
        the true path; `edge_f1` of the edges between neighbouring nodes; `lca_distance`, number of edges between the
        ends over their lowest common ancestor (NaN for an empty prediction with `parents`); `depth` of the true path
        in edges.

    Raises:
        InputError: lists of different length, no items, an empty true path, a text instead of a path, a node that is
            not in the tree.

    Source: Zhang, Kaniselvan, Mireshghallah, 2025, the evaluation of retrieval paths.
    """
    if len(predicted) != len(true) or not len(true):
        raise InputError(f"paths are paired by place; got {len(predicted)} predicted and {len(true)} true ones")
    for i, (one, other) in enumerate(zip(predicted, true, strict=True)):
        if isinstance(one, str) or isinstance(other, str):
            raise InputError(f"item {i} is a text; a path is a sequence of nodes")
        if not len(other):
            raise InputError(f"the true path of item {i} is empty")
    pairs = [(list(one), list(other)) for one, other in zip(predicted, true, strict=True)]
    columns = {
        "exact": [float(one == other) for one, other in pairs],
        "prefix": [_common(one, other) / len(other) for one, other in pairs],
        "edge_f1": [_edge_f1(one, other) for one, other in pairs],
        "lca_distance": [_distance(one, other, parents) for one, other in pairs],
        "depth": [len(other) - 1 for _, other in pairs],
    }
    data = xr.Dataset({name: ("item", np.array(values)) for name, values in columns.items()})
    data.attrs["plot"] = {"kind": "bar", "variables": ["prefix", "edge_f1"]}
    inputs = [[list(map(str, path)) for path in pair] for pair in pairs]
    return Result(data, "hierarchy_path_score", PAPER, provenance(inputs=inputs, tree=parents is not None))


def lca_distance(node: Hashable, other: Hashable, parents: Mapping[Hashable, Hashable]) -> int:
    """Number of edges between two nodes of a tree, over their lowest common ancestor.

    Args:
        node, other: nodes.
        parents: parent of every node but the root.

    Returns:
        0 for equal nodes.

    Raises:
        InputError: a node is not in the tree, the two are in different trees, or following parents goes in a circle.
    """
    up, down = _ancestors(node, parents), _ancestors(other, parents)
    places = {ancestor: steps for steps, ancestor in enumerate(up)}
    for steps, ancestor in enumerate(down):
        if ancestor in places:
            return places[ancestor] + steps
    raise InputError(f"{node!r} and {other!r} have no common ancestor")


def gap_recovered(
    plain: Sequence[float], structured: Sequence[float], reference: Sequence[float], *, n: int = 1000, seed: int = 0
) -> Result:
    """Share of the gap between a model and a better one that another prompt closes without training.

    Args:
        plain: score of each item with the plain prompt, for example 0 or 1.
        structured: of the same items with a prompt that asks to walk the hierarchy level by level.
        reference: of the same items by the better model with the plain prompt.
        n: resamples of the items for the interval (95 %).
        seed: of the resampling.

    Returns:
        `recovered`, (structured - plain) / (reference - plain) of the means, with `low` and `high` (infinite where
        resamples have no gap); the means `plain`, `structured`, `reference`.

    Raises:
        InputError: lists of different length, fewer than two items, scores that are not finite, or no gap.

    Source: Zhang, Kaniselvan, Mireshghallah, 2025, structured prompting.
    """
    lengths = {len(scores) for scores in (plain, structured, reference)}
    if len(lengths) != 1 or min(lengths) < 2:
        raise InputError(f"expected scores of the same two items or more, got {sorted(lengths)} of them")
    rows = np.column_stack([plain, structured, reference]).astype(np.float64)
    if not np.isfinite(rows).all():
        raise InputError("the scores hold NaN or infinite values")
    means = rows.mean(0)
    if means[2] <= means[0]:
        raise InputError(f"there is no gap to close: the reference has {means[2]:.3g}, the plain prompt {means[0]:.3g}")

    def share(drawn: np.ndarray) -> float:
        low, middle, high = drawn.mean(0)
        return (middle - low) / (high - low) if high > low else np.inf

    ends = bootstrap_interval(rows, share, n=n, seed=seed)
    values = {"recovered": share(rows), "low": ends[0], "high": ends[1]}
    values |= dict(zip(("plain", "structured", "reference"), means, strict=True))
    data = xr.Dataset({name: ((), float(value)) for name, value in values.items()})
    data.attrs["plot"] = {"variables": ["plain", "structured", "reference"]}
    return Result(data, "gap_recovered", PAPER, provenance(inputs=rows, seed=seed, n=n))


def _common(one: list[Hashable], other: list[Hashable]) -> int:
    """Number of equal nodes from the start on."""
    differ = (i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)
    return next(differ, min(len(one), len(other)))


def _edge_f1(one: list[Hashable], other: list[Hashable]) -> float:
    found, wanted = set(pairwise(one)), set(pairwise(other))
    if not found and not wanted:
        return float(one == other)
    return 2 * len(found & wanted) / (len(found) + len(wanted))


def _distance(one: list[Hashable], other: list[Hashable], parents: Mapping[Hashable, Hashable] | None) -> float:
    if parents is None:
        # Paths from different roots meet in a node above both.
        return len(one) + len(other) - 2 * _common(one, other)
    return lca_distance(one[-1], other[-1], parents) if one else np.nan


def _ancestors(node: Hashable, parents: Mapping[Hashable, Hashable]) -> list[Hashable]:
    """The node, its parent, and so on up to the root."""
    if node not in parents and node not in parents.values():
        raise InputError(f"{node!r} is not in the tree")
    line = [node]
    while line[-1] in parents:
        line.append(parents[line[-1]])
        if len(line) > len(parents) + 1:
            raise InputError(f"following the parents of {node!r} goes in a circle")
    return line
