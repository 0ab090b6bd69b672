"""Concepts as latents of a dictionary: those that are most active where a concept is, or a tree over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError, LoadError, MissingExtraError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State, below, prefixed
from actinium.core.rows import as_rows

__all__ = ["ConceptDictionary", "log_decay"]

KINDS = ("top_k", "tree")
ORDERS = ("unique_first", "original_order", "unique_only")
TREE = ("feature", "threshold", "left", "right", "value", "root")


def log_decay(n: int, mean: float = 1.0) -> Tensor:
    """Weights (n,) that fall with the logarithm of the rank: w_j proportional to 1 - ln(j + 1) / ln(n + 1), float64.

    Args:
        n: how many.
        mean: to which they are scaled.

    Raises:
        InputError: n is below 1.

    Source: Helff et al., 2025.
    """
    if n < 1:
        raise InputError(f"weights for {n} ranks; expected 1 or more")
    w = 1 - torch.arange(1, n + 1, dtype=torch.float64).log() / torch.tensor(n + 1.0, dtype=torch.float64).log()
    return w * (mean / w.mean())


class ConceptDictionary(SavedEstimator):
    """Which latents stand for which concept, from rows of latents where it is present and where it is not.

    Args:
        kind: "top_k": the latents whose mean rises most with the concept; "tree": a decision tree on all latents, for
            concepts that are relations of several.
        top_k: latents of a concept.
        order: "unique_first": latents that fewer concepts share come first; "original_order": by their rise;
            "unique_only": shared ones are dropped.
        depth: of a tree.
        seed: of the rows that are drawn so that both classes have as many.

    Attributes:
        concepts_: names, in order.
        width_: number of latents m of the dictionary.
        latents_: (concept, top_k) int64, -1 beyond the last; none for trees.
        weights_: (concept, top_k) rise of the mean, 0 there.
        trees_: arrays of all nodes: `feature` (-1 at a leaf), `threshold`, `left`, `right`, `value` (share of the
            concept among the weighted rows), and `root` of each concept.

    Source: Helff et al., 2025, stage 1. Latents that fall with the concept are left out, and those that are dropped as
    shared are absent, where the authors' program puts latent 0.
    """

    fitted = "concepts_"
    saved_as = "concept dictionary"

    def __init__(
        self, kind: str = "top_k", top_k: int = 10, order: str = "unique_first", depth: int = 5, seed: int = 0
    ) -> None:
        self.kind, self.top_k, self.order, self.depth, self.seed = kind, top_k, order, depth, seed

    def fit(self, positive: Mapping[str, Any], negative: Mapping[str, Any]) -> Self:
        """Choose the latents, or grow the trees.

        Args:
            positive: by concept, rows (n, m) of latents where it is present.
            negative: by concept, rows where it is not.

        Raises:
            InputError: a concept lacks positives or negatives or no latent rises with it; rows of different widths or
                with NaN; a setting out of range.
            UnknownNameError: there is no such kind or order.
            MissingExtraError: scikit-learn, which grows the trees, is not installed.
        """
        for what, value, known in (("kind", self.kind, KINDS), ("order", self.order, ORDERS)):
            if value not in known:
                raise UnknownNameError(unknown(what, value, known))
        if self.top_k < 1 or self.depth < 1:
            raise InputError(f"top_k and depth must be 1 or more, got {self.top_k} and {self.depth}")
        rows = paired(positive, negative)
        width = next(iter(rows.values()))[0].shape[1]
        latents, weights = torch.zeros(0, self.top_k, dtype=torch.long), torch.zeros(0, self.top_k, dtype=torch.float64)
        trees: dict[str, Tensor] = {}
        if self.kind == "tree":
            trees = self._grow(rows)
        else:
            latents, weights = self._choose(rows)
        self.width_, self.latents_, self.weights_, self.trees_ = width, latents, weights, trees
        self.concepts_ = tuple(rows)
        return self

    def _choose(self, rows: dict[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        found: dict[str, list[tuple[int, float]]] = {}
        for name, (there, away) in rows.items():
            rise = there.double().mean(0) - away.double().mean(0)
            best = rise.topk(min(self.top_k, len(rise)))
            found[name] = [(int(i), float(v)) for v, i in zip(best.values, best.indices, strict=True) if float(v) > 0]
            if not found[name]:
                raise InputError(f"no latent is more active where {name!r} is present than where it is not")
        shared: dict[int, int] = {}
        for chosen in found.values():
            for latent, _ in chosen:
                shared[latent] = shared.get(latent, 0) + 1
        latents = torch.full((len(found), self.top_k), -1)
        weights = torch.zeros(len(found), self.top_k, dtype=torch.float64)
        for row, (name, chosen) in enumerate(found.items()):
            if self.order == "unique_only":
                chosen = [pair for pair in chosen if shared[pair[0]] == 1]
                if not chosen:
                    raise InputError(f"{name!r} shares all its latents with other concepts; use order='unique_first'")
            elif self.order == "unique_first":
                chosen = sorted(chosen, key=lambda pair: shared[pair[0]])
            for j, (latent, rise_of) in enumerate(chosen):
                latents[row, j], weights[row, j] = latent, rise_of
        return latents, weights

    def _grow(self, rows: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        try:
            from sklearn.tree import DecisionTreeClassifier
        except ImportError:
            raise MissingExtraError("scikit-learn", "learn") from None
        parts: dict[str, list[Any]] = {name: [] for name in TREE}
        random = torch.Generator().manual_seed(self.seed)
        nodes = 0
        for name, pair in rows.items():
            active = [r[(r != 0).any(1)] for r in pair]
            size = min(map(len, active))
            if not size:
                raise InputError(f"{name!r}: no latent is active in any row of one class")
            x = torch.cat([r[torch.randperm(len(r), generator=random)[:size]] for r in active])
            y = np.repeat([1, 0], size)
            tree = DecisionTreeClassifier(
                criterion="gini", class_weight="balanced", max_depth=self.depth, random_state=self.seed
            ).fit(x.float().numpy(), y)
            t = tree.tree_
            leaf = t.children_left < 0
            value = t.value[:, 0] / t.value[:, 0].sum(1, keepdims=True)
            parts["feature"].append(np.where(leaf, -1, t.feature))
            parts["threshold"].append(np.where(leaf, 0.0, t.threshold))
            parts["left"].append(np.where(leaf, -1, t.children_left + nodes))
            parts["right"].append(np.where(leaf, -1, t.children_right + nodes))
            parts["value"].append(value[:, list(tree.classes_).index(1)])
            parts["root"].append([nodes])
            nodes += t.node_count
        kinds = {"threshold": torch.float64, "value": torch.float64}
        return {n: torch.as_tensor(np.concatenate(p), dtype=kinds.get(n, torch.long)) for n, p in parts.items()}

    def tree_scores(self, rows: Tensor) -> Tensor:
        """Share of each concept (n, concept) in the leaf that each row (n, m) comes to."""
        t = self.trees_
        x = rows.float()
        at = t["root"].expand(len(x), -1)
        for _ in range(self.depth):
            feature = t["feature"][at]
            goes_left = x.gather(1, feature.clamp_min(0)).double() <= t["threshold"][at]
            at = torch.where(feature < 0, at, torch.where(goes_left, t["left"][at], t["right"][at]))
        return t["value"][at]

    def index(self, concept: str) -> int:
        """Number of a concept.

        Raises:
            InputError: `fit` was not called.
            UnknownNameError: there is no such concept.
        """
        self.check_fitted()
        if concept not in self.concepts_:
            raise UnknownNameError(unknown("concept", concept, self.concepts_))
        return self.concepts_.index(concept)

    # Files ----------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Settings and everything that was found, in values that JSON can hold."""
        self.check_fitted()
        return {
            "settings": self.get_params(),
            "concepts": list(self.concepts_),
            "width": self.width_,
            "latents": self.latents_.tolist(),
            "weights": self.weights_.tolist(),
            "trees": {name: value.tolist() for name, value in self.trees_.items()},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """What `config` described.

        Raises:
            LoadError: something is missing or of another form.
        """
        try:
            new = cls(**config["settings"])
            new.concepts_, new.width_ = tuple(config["concepts"]), int(config["width"])
            new.latents_ = torch.tensor(config["latents"], dtype=torch.long).reshape(-1, new.top_k)
            new.weights_ = torch.tensor(config["weights"], dtype=torch.float64).reshape(-1, new.top_k)
            real = ("threshold", "value")
            new.trees_ = {
                name: torch.tensor(value, dtype=torch.float64 if name in real else torch.long)
                for name, value in config["trees"].items()
            }
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise LoadError(f"this describes no concept dictionary: {error!r}") from None
        return new

    def _state(self) -> State:
        tensors = {"latents": self.latents_, "weights": self.weights_} | prefixed("tree", self.trees_)
        return tensors, {"concepts": list(self.concepts_), "width": self.width_}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.concepts_, self.width_ = tuple(about["concepts"]), about["width"]
        self.latents_, self.weights_ = tensors["latents"], tensors["weights"]
        self.trees_ = below("tree", tensors)


def paired(positive: Mapping[str, Any], negative: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Rows of latents where each concept is and where it is not, all of one width.

    Raises:
        InputError: there are none, a concept lacks one of both, or rows do not fit.
    """
    if not positive:
        raise InputError("there is no concept: positive is empty")
    names = list(dict.fromkeys([*positive, *negative]))
    width: int | None = None
    rows = {}
    for name in names:
        if not isinstance(name, str) or not name.strip() or '"' in name:
            raise InputError(f"a concept's name is a text without double quotes, not {name!r}")
        pair = []
        for side, given in (("positives", positive), ("negatives", negative)):
            if name not in given or not len(given[name]):
                raise InputError(f"concept {name!r} has no {side}")
            values = given[name]
            if isinstance(values, Sequence):
                values = torch.stack([torch.as_tensor(v) for v in values])
            pair.append(as_rows(values, f"{side} of {name!r}", width).cpu())
            width = pair[-1].shape[1]
        rows[name] = (pair[0], pair[1])
    return rows
