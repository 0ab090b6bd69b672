"""Functional ANOVA on random forests: the share of an outcome's variance that settings and their pairs account for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError, MissingExtraError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.functions.searches.hyperparameter_space import Choice, Space, as_space, plain_space

__all__ = ["Importance", "fANOVA", "interaction_importance", "marginal_importance"]

MAX_DEPTH = 64
CELLS = 4_000_000
"""Largest grid on which a marginal is laid out; beyond it the overlaps of all pairs of leaves take less memory."""
ROWS = 512
"""Leaves whose overlaps with all others are computed at once."""


@dataclass(frozen=True)
class Importance:
    """Share of the variance that a set of settings accounts for.

    Attributes:
        individual: by the set itself, without its subsets; mean over trees.
        total: with its subsets; mean over trees.
        std: deviation of `individual` over trees.
        trees: `individual` by tree.
    """

    individual: float
    total: float
    std: float
    trees: tuple[float, ...]


@dataclass(frozen=True)
class _Tree:
    """Boxes of the leaves: sides (leaves, settings), values (leaves,) minus their mean `centre`, and the variance."""

    low: np.ndarray
    high: np.ndarray
    value: np.ndarray
    centre: float
    variance: float

    @classmethod
    def of(cls, low: np.ndarray, high: np.ndarray, value: np.ndarray) -> _Tree:
        volume = (high - low).prod(1)
        centre = float(volume @ value)
        value = value - centre
        return cls(low, high, value, centre, float(volume @ value**2))


class fANOVA(SavedEstimator):
    """Functional analysis of variance of an outcome over settings, by a random forest.

    Each tree is constant on boxes, so the variance of its marginals is exact: no grid, no samples. Settings enter by
    their place in their range (logarithms where the scale says so), categories with equal weights.

    Args:
        space: the range of each setting, in the order of the columns; see `as_space`.
        n_trees: trees of the forest.
        seed: of the forest.
        max_features: share of the settings that a split chooses from.
        min_samples_leaf: fewest runs in a leaf.
        cutoffs: values of the trees are clipped to this range: what lies beyond is one bad (or good) outcome.

    Attributes:
        names_: of the settings.
        trees_: boxes of the leaves of each tree.

    Source: Hutter, Hoos and Leyton-Brown, 2014, algorithm 2; defaults of automl/fanova, which drops the leaves beyond
    the cutoffs where here their values are clipped.
    """

    fitted = "trees_"

    def __init__(
        self,
        space: Mapping[str, Any],
        n_trees: int = 16,
        seed: int = 0,
        max_features: float = 0.7,
        min_samples_leaf: int = 1,
        cutoffs: tuple[float, float] | None = None,
    ) -> None:
        self.space, self.n_trees, self.seed = space, n_trees, seed
        self.max_features, self.min_samples_leaf, self.cutoffs = max_features, min_samples_leaf, cutoffs

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the forest.

        Args:
            X: settings (n, d) in the order of the space, n mappings by name, or columns (n,) by name, as a mapping or a
                data frame.
            y: (n,) outcomes.

        Raises:
            InputError: values out of bounds, outcomes that are not finite, other lengths, fewer than two runs, settings
                of the space that are missing, or a forest without variance.
            UnknownNameError: a setting that is not in the space.
            MissingExtraError: scikit-learn is not installed.
        """
        try:
            from sklearn.ensemble import RandomForestRegressor
        except ImportError:
            raise MissingExtraError("scikit-learn", "learn") from None
        space = as_space(self.space)
        self._check()
        outcome = np.asarray(y, np.float64)
        if outcome.ndim != 1 or len(outcome) < 2 or not np.isfinite(outcome).all():
            raise InputError(f"outcomes are two or more finite numbers (n,), got shape {outcome.shape}")
        places = np.column_stack(_columns(space, X))
        if len(places) != len(outcome):
            raise InputError(f"{len(places)} runs and {len(outcome)} outcomes")
        forest = RandomForestRegressor(
            self.n_trees,
            max_depth=MAX_DEPTH,
            max_features=max(1, int(self.max_features * len(space))),
            min_samples_leaf=self.min_samples_leaf,
            random_state=self.seed,
        ).fit(places, outcome)
        self.names_ = list(space)
        self._take([self._boxes(tree.tree_, space) for tree in forest.estimators_])
        return self

    def _check(self) -> None:
        if self.n_trees < 1 or self.min_samples_leaf < 1 or not 0 < self.max_features <= 1:
            raise InputError(
                "expected n_trees and min_samples_leaf above 0 and max_features in (0, 1], "
                f"got {self.n_trees}, {self.min_samples_leaf}, {self.max_features}"
            )
        if self.cutoffs is not None and not self.cutoffs[0] < self.cutoffs[1]:
            raise InputError(f"expected cutoffs (low, high) with low < high, got {self.cutoffs}")

    def _boxes(self, tree: Any, space: Space) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sides and values of the leaves of one of scikit-learn's trees."""
        sizes = [len(kind.values) if isinstance(kind, Choice) else 0 for kind in space.values()]
        low, high, value = [], [], []
        open_nodes = [(0, np.zeros(len(sizes)), np.ones(len(sizes)))]
        while open_nodes:
            node, a, b = open_nodes.pop()
            left, right, by = tree.children_left[node], tree.children_right[node], tree.feature[node]
            if left < 0:
                low.append(a)
                high.append(b)
                value.append(float(tree.value[node].item()))
                continue
            at = float(tree.threshold[node])
            if sizes[by]:
                # Which categories go to the left decides, not where between two of them the threshold stands.
                at = np.floor(at * sizes[by] + 0.5 + 1e-5) / sizes[by]
            inner_b, inner_a = b.copy(), a.copy()
            inner_b[by] = inner_a[by] = at
            open_nodes += [(left, a, inner_b), (right, inner_a, b)]
        values = np.array(value)
        return np.array(low), np.array(high), values if self.cutoffs is None else values.clip(*self.cutoffs)

    def _take(self, boxes: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        trees = [_Tree.of(*box) for box in boxes]
        if not any(tree.variance > 0 for tree in trees):
            raise InputError("no tree has any variance: the outcomes are all the same, or beyond the cutoffs")
        self.trees_ = trees
        self._found: dict[tuple[int, ...], np.ndarray] = {}

    def importance(self, names: str | Sequence[str], clip: bool = True) -> Importance:
        """Share of the variance that a setting, or the interaction of several, accounts for.

        Args:
            names: one name, or several.
            clip: shares below zero by rounding become zero.

        Raises:
            InputError: `fit` was not called, or no name or the same one twice is given.
            UnknownNameError: there is no such setting.
        """
        chosen = self._indices(names)
        trees = [tree.variance for tree in self.trees_]
        kept = np.array(trees) > 0
        whole = np.array(trees)[kept]
        individual = self._individual(chosen, clip)[kept] / whole
        total = self._total(chosen)[kept] / whole
        return Importance(
            float(individual.mean()), float(total.mean()), float(individual.std()), tuple(individual.tolist())
        )

    def _individual(self, chosen: tuple[int, ...], clip: bool) -> np.ndarray:
        """Variance (trees,) of the term of a set of settings, without those of its subsets."""
        below = (subset for size in range(1, len(chosen)) for subset in combinations(chosen, size))
        left = self._total(chosen) - sum(self._individual(subset, clip) for subset in below)
        return left.clip(min=0) if clip else left

    def _total(self, chosen: tuple[int, ...]) -> np.ndarray:
        """Variance (trees,) of the marginal over a set of settings."""
        if chosen not in self._found:
            self._found[chosen] = np.array([_marginal_variance(tree, chosen) for tree in self.trees_])
        return self._found[chosen]

    def marginal(self, names: str | Sequence[str], grid: Any = None, points: int = 50) -> Result:
        """Mean outcome over the ranges of all other settings.

        Args:
            names: one setting, or two.
            grid: values of the setting, or one list for each of two; by default the whole range.
            points: values by setting of the default grid; categories are shown once each.

        Returns:
            by value: `mean` over trees and `std` over trees.

        Raises:
            InputError: `fit` was not called, more than two settings, or values out of bounds.
            UnknownNameError: there is no such setting.
        """
        chosen = self._indices(names)
        if len(chosen) > 2:
            raise InputError(f"a marginal is drawn over one or two settings, got {len(chosen)}")
        space = as_space(self.space)
        labels = [self.names_[i] for i in chosen]
        kinds = [space[label] for label in labels]
        if grid is None:
            lists = [_default_grid(kind, points) for kind in kinds]
        else:
            asked = [names] if isinstance(names, str) else list(names)
            given = dict(zip(asked, [grid] if len(asked) == 1 else grid, strict=True))
            lists = [
                np.asarray(given[label], dtype=object if isinstance(kind, Choice) else None)
                for kind, label in zip(kinds, labels, strict=True)
            ]
        places = [kind.place(values, label) for kind, values, label in zip(kinds, lists, labels, strict=True)]
        rows = np.stack([_marginal(tree, chosen, places) for tree in self.trees_])
        data = xr.Dataset(
            {"mean": (tuple(labels), rows.mean(0)), "std": (tuple(labels), rows.std(0))},
            coords=dict(zip(labels, map(_labels, lists), strict=True)),
        )
        return Result(data, "fanova marginal", "lstm-odyssey", self._about())

    def _indices(self, names: str | Sequence[str]) -> tuple[int, ...]:
        self.check_fitted()
        asked = [names] if isinstance(names, str) else list(names)
        for name in asked:
            if name not in self.names_:
                raise UnknownNameError(unknown("setting", str(name), self.names_))
        if not asked or len(set(asked)) < len(asked):
            raise InputError(f"expected one or more different settings, got {asked}")
        return tuple(sorted(self.names_.index(name) for name in asked))

    def _about(self) -> dict[str, Any]:
        arrays = [np.column_stack([t.low, t.high, t.value]) for t in self.trees_]
        return provenance(inputs=arrays, seed=self.seed, **{k: v for k, v in self._settings().items() if k != "seed"})

    def _settings(self) -> dict[str, Any]:
        return self.get_params() | {"space": plain_space(self.space)}

    def _state(self) -> State:
        leaves = [len(tree.value) for tree in self.trees_]
        whole = {
            "low": np.concatenate([t.low for t in self.trees_]),
            "high": np.concatenate([t.high for t in self.trees_]),
            "value": np.concatenate([t.value + t.centre for t in self.trees_]),
        }
        return {k: torch.from_numpy(v) for k, v in whole.items()}, {"names": self.names_, "leaves": leaves}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.names_ = list(about["names"])
        parts = [tensors[k].numpy() for k in ("low", "high", "value")]
        ends = np.cumsum(about["leaves"])[:-1]
        self._take(list(zip(*(np.split(part, ends) for part in parts), strict=True)))


def marginal_importance(fitted: fANOVA) -> Result:
    """Share of the variance that each setting accounts for by itself: mean and deviation over trees.

    Raises:
        InputError: `fit` was not called.
    """
    fitted.check_fitted()
    found = [fitted.importance(name) for name in fitted.names_]
    data = xr.Dataset(
        {
            "importance": (("setting",), [f.individual for f in found]),
            "std": (("setting",), [f.std for f in found]),
        },
        coords={"setting": fitted.names_},
        attrs={"plot": {"kind": "bar", "variables": ["importance"], "ylabel": "share of the variance"}},
    )
    return Result(data, "fanova", "lstm-odyssey", fitted._about())


def interaction_importance(fitted: fANOVA) -> Result:
    """Share of the variance that each setting (on the diagonal) and each pair beyond its two settings accounts for.

    Raises:
        InputError: `fit` was not called.
    """
    fitted.check_fitted()
    names = fitted.names_
    share = np.zeros((len(names), len(names)))
    std = np.zeros_like(share)
    for i, one in enumerate(names):
        for j, other in enumerate(names[: i + 1]):
            found = fitted.importance(one if i == j else (one, other))
            share[i, j] = share[j, i] = found.individual
            std[i, j] = std[j, i] = found.std
    data = xr.Dataset(
        {"importance": (("setting", "other"), share), "std": (("setting", "other"), std)},
        coords={"setting": names, "other": names},
    )
    return Result(data, "fanova", "lstm-odyssey", fitted._about())


def _columns(space: Space, X: Any) -> list[np.ndarray]:
    """Places (n,) of each setting."""
    if isinstance(X, Mapping):
        given = dict(X)
    elif hasattr(X, "columns"):
        given = {str(name): list(X[name]) for name in X.columns}
    elif len(X) and isinstance(X[0], Mapping):
        given = {name: [run.get(name) for run in X] for name in X[0]}
    else:
        array = np.asarray(X, dtype=object if any(isinstance(k, Choice) for k in space.values()) else None)
        if array.ndim != 2 or array.shape[1] != len(space):
            raise InputError(f"settings are (n, {len(space)}) for {list(space)}, got shape {array.shape}")
        given = dict(zip(space, array.T, strict=True))
    for name in given:
        if name not in space:
            raise UnknownNameError(unknown("setting", str(name), space))
    missing = [name for name in space if name not in given]
    if missing:
        raise InputError(f"the settings {missing} of the space are missing")
    return [kind.place(given[name], name) for name, kind in space.items()]


def _marginal_variance(tree: _Tree, chosen: tuple[int, ...]) -> float:
    """Variance of the marginal over some settings, the mean of the tree being zero."""
    if len(chosen) == tree.low.shape[1]:
        return tree.variance
    cells = np.prod([len(np.unique(tree.high[:, j])) + 1.0 for j in chosen])
    return _variance_on_grid(tree, chosen) if cells <= CELLS else _variance_of_overlaps(tree, chosen)


def _weights(tree: _Tree, chosen: tuple[int, ...]) -> np.ndarray:
    """What each leaf adds to the marginal within its sides: its value times its share of the other settings."""
    others = [j for j in range(tree.low.shape[1]) if j not in chosen]
    return tree.value * (tree.high - tree.low)[:, others].prod(1)


def _variance_on_grid(tree: _Tree, chosen: tuple[int, ...]) -> float:
    """The marginal on all cells between the sides of leaves: differences at the corners of the leaves, summed up."""
    weight = _weights(tree, chosen)
    edges = [np.unique(np.concatenate([tree.low[:, j], tree.high[:, j]])) for j in chosen]
    ends = [
        (np.searchsorted(edge, tree.low[:, j]), np.searchsorted(edge, tree.high[:, j]))
        for j, edge in zip(chosen, edges, strict=True)
    ]
    marginal = np.zeros([len(edge) for edge in edges])
    for corner in product((0, 1), repeat=len(chosen)):
        at = tuple(end[c] for end, c in zip(ends, corner, strict=True))
        np.add.at(marginal, at, weight * (-1) ** sum(corner))
    square = marginal
    for axis in range(len(chosen)):
        square = square.cumsum(axis)
    square = square**2
    for edge in reversed(edges):
        square = square[..., :-1] @ np.diff(edge)
    return float(square)


def _variance_of_overlaps(tree: _Tree, chosen: tuple[int, ...]) -> float:
    """The same as a sum over pairs of leaves: what both add, times the overlap of their sides."""
    weight = _weights(tree, chosen)
    found = 0.0
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        shared = np.ones((len(weight[rows]), len(weight)))
        for j in chosen:
            upper = np.minimum(tree.high[rows, j, None], tree.high[:, j])
            shared *= (upper - np.maximum(tree.low[rows, j, None], tree.low[:, j])).clip(min=0)
        found += float(weight[rows] @ shared @ weight)
    return found


def _marginal(tree: _Tree, chosen: tuple[int, ...], places: Sequence[np.ndarray]) -> np.ndarray:
    weight = _weights(tree, chosen)
    # scikit-learn's trees send what equals a threshold to the left.
    inside = [
        ((at[:, None] > tree.low[:, j]) | (tree.low[:, j] == 0)) & (at[:, None] <= tree.high[:, j])
        for j, at in zip(chosen, places, strict=True)
    ]
    if len(inside) == 1:
        return tree.centre + inside[0] @ weight
    return tree.centre + (inside[0] * weight) @ inside[1].T


def _default_grid(kind: Any, points: int) -> np.ndarray:
    if isinstance(kind, Choice):
        return np.array(kind.values, dtype=object)
    if points < 2:
        raise InputError(f"a grid has two points or more, got {points}")
    return np.unique(kind.value(np.linspace(0, 1, points)))


def _labels(values: np.ndarray) -> Any:
    return [str(v) for v in values] if values.dtype == object else values
