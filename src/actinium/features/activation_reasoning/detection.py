"""Concepts in a text: scores of latents at every token, thresholds, and the propositions that come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.estimator import Estimator
from actinium.core.rows import as_rows
from actinium.features.activation_reasoning.concepts import ConceptDictionary, log_decay, paired

__all__ = ["ConceptDetector", "Detection", "Proposition", "balanced_threshold"]


@dataclass(frozen=True)
class Proposition:
    """A concept that was found.

    Attributes:
        concept: its name.
        position: number of the token.
        confidence: its score above the threshold.
    """

    concept: str
    position: int
    confidence: float


@dataclass(frozen=True, eq=False)
class Detection:
    """Concepts at every token of a text.

    Attributes:
        concepts: names.
        scores: (token, concept) above the local thresholds, 0 at masked tokens.
        global_scores: (concept,) mean over tokens, above the global thresholds.
        propositions: those with a score above 0, by position and then from the strongest.
    """

    concepts: tuple[str, ...]
    scores: Tensor
    global_scores: Tensor
    propositions: tuple[Proposition, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Concepts in the order in which they first appear."""
        return tuple(dict.fromkeys(p.concept for p in self.propositions))


def balanced_threshold(scores: Any, present: Any) -> tuple[float, float]:
    """The threshold with the best balanced accuracy of `score > threshold`, and that accuracy.

    Args:
        scores: (n,).
        present: (n,) bool.

    Returns:
        The middle between two neighbouring scores, of equally good ones in the widest gap, so that no score lies on it.

    Raises:
        InputError: shapes differ, scores are not finite, or one class is missing.

    Source: Helff et al., 2025, whose program takes a score itself and so loses the positive that has it.
    """
    s, y = torch.as_tensor(scores).double().flatten(), torch.as_tensor(present).bool().flatten()
    if len(s) != len(y) or not len(s) or not bool(s.isfinite().all()):
        raise InputError(f"expected finite scores (n,) and presence (n,), got {len(s)} and {len(y)}")
    if bool(y.all()) or not bool(y.any()):
        raise InputError("a threshold needs texts or tokens with and without the concept")
    levels = torch.unique(s)
    if len(levels) == 1:
        return float(levels[0]), 0.5
    middles, gaps = (levels[1:] + levels[:-1]) / 2, levels.diff()
    above = s[:, None] > middles
    accuracy = (above[y].double().mean(0) + (~above[~y]).double().mean(0)) / 2
    best = accuracy >= accuracy.max() - 1e-12
    chosen = int(torch.where(best, gaps, -1.0).argmax())
    return float(middles[chosen]), float(accuracy[chosen])


class ConceptDetector(Estimator):
    """Which concepts of a dictionary are present at which tokens.

    Local score of concept c at token t: max(sum_j w_j a_tj - tau_c, 0), a_tj the activation of the concept's j-th
    latent and w_j weights that fall with the logarithm of j, of mean 1. Of each token only its largest latents are
    looked at. Of trees the score is the share of the concept in the leaf, on all latents. Global score: max(mean over
    tokens of the sum - tau_c, 0).

    Args:
        concepts: a fitted dictionary.
        top_k_output: latents of a token that are looked at. A concept whose latents are never among them is invisible.
        latents_per_concept: n of the weights.
        threshold: local threshold; by concept; or "auto", found by `fit`.
        global_threshold: the same for global scores.
        allow_multi: several concepts at a token; if False only the one with the largest score before thresholds.

    Attributes:
        thresholds_, global_thresholds_: (concept,).
        accuracy_: (concept,) balanced accuracy that local thresholds reach on the rows given to `fit`: optimistic, for
            they were chosen on them; NaN for thresholds that were given.

    Source: Helff et al., 2025, stage 2. Weights are applied once (the authors' program applies them twice to local
    scores), and what rules read is the score above the threshold (there: above 0).
    """

    fitted = "thresholds_"

    def __init__(
        self,
        concepts: ConceptDictionary,
        top_k_output: int = 2,
        latents_per_concept: int = 1,
        threshold: float | str | Mapping[str, float] = 0.0,
        global_threshold: float | str | Mapping[str, float] = 0.0,
        allow_multi: bool = True,
    ) -> None:
        self.concepts, self.top_k_output, self.latents_per_concept = concepts, top_k_output, latents_per_concept
        self.threshold, self.global_threshold, self.allow_multi = threshold, global_threshold, allow_multi

    def fit(
        self,
        positive: Mapping[str, Any] | None = None,
        negative: Mapping[str, Any] | None = None,
        texts: Any = None,
        present: Mapping[str, Any] | None = None,
    ) -> Self:
        """Set the thresholds.

        Args:
            positive, negative: rows of latents as for `ConceptDictionary.fit`, for `threshold="auto"`. Rows that the
                concepts were not chosen on give a less optimistic threshold.
            texts: rows (token, m) of each text, for `global_threshold="auto"`.
            present: by concept whether each text has it, (text,) bool.

        Raises:
            InputError: what "auto" needs is missing, or rows do not fit.
            UnknownNameError: a threshold is neither a number nor "auto", or for a concept that is not there.
        """
        c = self.concepts
        c.check_fitted()
        if self.top_k_output < 1 or self.latents_per_concept < 1:
            raise InputError(
                f"top_k_output and latents_per_concept must be 1 or more, got {self.top_k_output} and "
                f"{self.latents_per_concept}"
            )
        local, accuracy = self._given(self.threshold), torch.full((len(c.concepts_),), torch.nan, dtype=torch.float64)
        if local is None:
            if positive is None or negative is None:
                raise InputError("threshold='auto' needs rows with and without each concept")
            rows = paired(positive, negative)
            local = torch.zeros(len(c.concepts_), dtype=torch.float64)
            for i, name in enumerate(c.concepts_):
                if name not in rows:
                    raise InputError(f"concept {name!r} has no rows to find its threshold on")
                scores = torch.cat([self._raw(as_rows(r, width=c.width_))[:, i] for r in rows[name]])
                there = torch.arange(len(scores)) < len(rows[name][0])
                local[i], accuracy[i] = balanced_threshold(scores, there)
        whole = self._given(self.global_threshold)
        if whole is None:
            if texts is None or present is None:
                raise InputError("global_threshold='auto' needs texts and whether each has the concepts")
            means = torch.stack([self._raw(as_rows(t, width=c.width_)).mean(0) for t in texts])
            for name in c.concepts_:
                if name not in present:
                    raise InputError(f"present does not say which texts have {name!r}")
            found = [balanced_threshold(means[:, i], present[name])[0] for i, name in enumerate(c.concepts_)]
            whole = torch.tensor(found, dtype=torch.float64)
        self.thresholds_, self.global_thresholds_, self.accuracy_ = local, whole, accuracy
        return self

    def _given(self, threshold: float | str | Mapping[str, float]) -> Tensor | None:
        """Thresholds (concept,), None for "auto"."""
        names = self.concepts.concepts_
        if isinstance(threshold, str):
            if threshold != "auto":
                raise UnknownNameError(unknown("threshold", threshold, ["auto"]))
            return None
        if isinstance(threshold, Mapping):
            for name in threshold:
                self.concepts.index(name)
            missing = [name for name in names if name not in threshold]
            if missing:
                raise InputError(f"no threshold for {', '.join(map(repr, missing))}")
            threshold = [threshold[name] for name in names]  # type: ignore[assignment]
        found = torch.as_tensor(threshold, dtype=torch.float64).expand(len(names)).clone()
        if not bool(found.isfinite().all()):
            raise InputError("thresholds must be finite")
        return found

    def _raw(self, rows: Tensor) -> Tensor:
        """(n, concept) scores before thresholds, float64."""
        c = self.concepts
        if c.kind == "tree":
            return c.tree_scores(rows)
        k = min(self.top_k_output, rows.shape[1])
        best = rows.topk(k, dim=1)
        kept = torch.zeros_like(rows).scatter(1, best.indices, best.values).double()
        n = min(self.latents_per_concept, c.top_k)
        chosen = c.latents_[:, :n]
        active = torch.where(chosen >= 0, kept[:, chosen.clamp_min(0)], 0.0)
        return active @ log_decay(n)

    def detect(self, latents: Any, mask: Any = None) -> Detection:
        """Concepts of one text.

        Args:
            latents: (token, m) of the dictionary.
            mask: (token,) bool, False at special tokens, whose concepts do not count.

        Raises:
            InputError: another width, values that are not finite, no token left, or `fit` was not called.
        """
        self.check_fitted()
        rows = as_rows(latents, "latents", self.concepts.width_).cpu()
        real = torch.ones(len(rows), dtype=torch.bool) if mask is None else torch.as_tensor(mask).bool().cpu()
        if real.shape != (len(rows),):
            raise InputError(f"the mask has shape {tuple(real.shape)} for {len(rows)} tokens")
        if not bool(real.any()):
            raise InputError("no token is left: all are masked")
        raw = self._raw(rows).masked_fill(~real[:, None], 0.0)
        scores = (raw - self.thresholds_).clamp_min(0).masked_fill(~real[:, None], 0.0)
        if not self.allow_multi:
            # Before thresholds, so that raising one never lets another concept in.
            strongest = torch.zeros_like(scores).scatter(1, raw.argmax(1, keepdim=True), 1.0)
            scores = scores * strongest
        whole = (raw.sum(0) / real.sum() - self.global_thresholds_).clamp_min(0)
        names = self.concepts.concepts_
        found = [Proposition(names[int(c)], int(t), float(scores[t, c])) for t, c in scores.nonzero()]
        found.sort(key=lambda p: (p.position, -p.confidence))
        return Detection(names, scores, whole, tuple(found))
