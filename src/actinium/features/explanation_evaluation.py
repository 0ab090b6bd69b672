"""How well a text describes a unit over all inputs, from few ratings: sampling guided by the unit and a cheap model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.estimator import Estimator
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.features.explanation_sampling import (
    FEWEST,
    NOTHING,
    check_presence,
    model_guided_sampling,
    sampling_density,
    standardised,
)
from actinium.features.rating_aggregation import BayesRatingAggregator, majority_vote, mean_rating
from actinium.features.rating_table import RatingTable

__all__ = [
    "Agreement",
    "ExplanationEvaluator",
    "compare_explainers",
    "importance_sampling_correlation",
]

Floats = NDArray[np.float64]
PAPER = "crowd-neuron-eval"
MOMENTS = ("sample", "population")
NORMALISATIONS = ("self", "plain")
VOTES = {"majority": majority_vote, "mean": mean_rating}


@dataclass(frozen=True)
class Agreement:
    """How well an explanation fits a unit.

    Attributes:
        correlation: of activation and presence over all inputs; NaN where the sample holds only one kind of input.
        low, high: ends of the bootstrap interval of the correlation; NaN where it was not asked for.
        precision: share of the active inputs that have the concept.
        recall: share of the inputs with the concept that are active.
        f1, iou: of active inputs and inputs with the concept.
        presence: share of inputs with the concept.
        ess: effective sample size (sum w)^2 / sum w^2.
        n: sampled inputs.
        positives: sum of the labels in the sample.
        undefined: share of the bootstrap samples without a correlation, which the interval leaves out.
    """

    correlation: float
    low: float
    high: float
    precision: float
    recall: float
    f1: float
    iou: float
    presence: float
    ess: float
    n: int
    positives: float
    undefined: float


def importance_sampling_correlation(
    a: ArrayLike,
    indices: ArrayLike,
    weights: ArrayLike,
    labels: ArrayLike,
    *,
    top: float = 0.05,
    moments: str = "sample",
    normalise: str = "self",
    bootstrap: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """Correlation of a unit with a concept over all inputs, from the labels of a weighted sample.

    With E the weighted mean over the sample, z the activation standardised over all inputs and c the label:
    (E[z c] - E[z] E[c]) / sqrt(Var[z] E[c] (1 - E[c])).

    Args:
        a: activation (N,) of the unit on all inputs; further dimensions are averaged.
        indices, weights: (n,) the sample, see `model_guided_sampling`.
        labels: (n,) presence of the concept in each, 0 or 1, or its probability.
        top: share of the inputs, those with the largest activations, that count as active for precision and recall.
        moments: "sample" takes E[z] and Var[z] from the sample too, which lowers the variance; "population" takes
            those of all inputs, 0 and 1.
        normalise: "self" divides weighted sums by the sum of the weights, "plain" by n (unbiased sums, more variance).
        bootstrap: resamples of (input, weight, label) for the interval; none by default.
        level: share of the resamples inside the interval.
        seed: of the bootstrap.

    Raises:
        InputError: constant activations, a sample of fewer than 10, indices that are no inputs, weights that are not
            positive, labels outside 0 and 1, or settings out of range.
        UnknownNameError: no such moments or normalisation.

    Source: Oikarinen, Yan, Kulkarni and Weng, 2025; Owen, 2013, Monte Carlo theory, chapter 9 (self-normalised
    importance sampling, whose bias is of order 1/n).
    """
    z = standardised(a)
    where, w, c = _check_sample(len(z), indices, weights, labels)
    if not 0 < top < 1 or bootstrap < 0 or not 0 < level < 1:
        raise InputError(f"expected 0 < top < 1, bootstrap >= 0 and 0 < level < 1, got {top}, {bootstrap}, {level}")
    for name, value, known in (("moments", moments, MOMENTS), ("normalisation", normalise, NORMALISATIONS)):
        if value not in known:
            raise UnknownNameError(unknown(name, str(value), known))
    cut = np.quantile(z, 1 - top)
    on = z[where] >= cut if cut > z.min() else z[where] > cut
    x = z[where]
    terms = np.stack([w, w * x, w * x**2, w * c, w * x * c, w * on, w * on * c], 1)
    settings = moments, len(w) if normalise == "plain" else None
    correlation, low, high, undefined = float(_correlation(terms.sum(0), *settings)), np.nan, np.nan, 0.0
    if bootstrap:
        times = np.random.default_rng(seed).multinomial(len(w), np.full(len(w), 1 / len(w)), size=bootstrap)
        drawn = _correlation(times @ terms, *settings)
        undefined = float(np.isnan(drawn).mean())
        if undefined < 1:
            low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    total, _, _, has, _, active, both = terms.sum(0)
    return Agreement(
        correlation=correlation,
        low=float(low),
        high=float(high),
        precision=_ratio(both, active),
        recall=_ratio(both, has),
        f1=_ratio(2 * both, active + has),
        iou=_ratio(both, active + has - both),
        presence=float(has / (total if normalise == "self" else len(w))),
        ess=float(w.sum() ** 2 / (w**2).sum()),
        n=len(w),
        positives=float(c.sum()),
        undefined=undefined,
    )


class ExplanationEvaluator(Estimator):
    """Rates explanations of one unit with few labels: chooses the inputs to ask about, then reads the answers.

    Args:
        n: draws, with replacement, of inputs to label.
        eps, floor: see `sampling_density`.
        aggregator: "majority", "mean", or a `BayesRatingAggregator` (its fitted errors if it is fitted, else its
            constants); None fits one by EM to the ratings at hand.
        top, moments, normalise, bootstrap, level: see `importance_sampling_correlation`.
        seed: of the draw and of the bootstrap.

    Attributes:
        indices_: (n,) places of the drawn inputs.
        weights_: (n,) their importance weights.
        density_: (N,) probability with which each input was drawn.
        explanations_: the names of the explanations.

    Source: Oikarinen, Yan, Kulkarni and Weng, 2025.
    """

    fitted = "indices_"

    def __init__(
        self,
        n: int = 200,
        *,
        eps: float = 0.1,
        floor: float = 0.1,
        aggregator: BayesRatingAggregator | str | None = None,
        top: float = 0.05,
        moments: str = "sample",
        normalise: str = "self",
        bootstrap: int = 1000,
        level: float = 0.95,
        seed: int = 0,
    ) -> None:
        self.n, self.eps, self.floor, self.aggregator, self.top = n, eps, floor, aggregator, top
        self.moments, self.normalise, self.bootstrap, self.level, self.seed = moments, normalise, bootstrap, level, seed

    def fit(self, a: ArrayLike, explanations: Sequence[str] | Mapping[str, ArrayLike | None]) -> Self:
        """Choose the inputs to ask about.

        Args:
            a: activation (N,) of the unit on all inputs; further dimensions are averaged.
            explanations: the texts to compare; as a mapping with the probability (N,) that each input has the
                concept according to a cheap model (None: not known for any).

        Raises:
            InputError: see `model_guided_sampling`; no explanations; presence for some explanations only.
        """
        if isinstance(explanations, str) or not len(explanations):
            raise InputError("expected a list of explanations, or a mapping from each to its presence")
        z = standardised(a)
        given = list(explanations.values()) if isinstance(explanations, Mapping) else [None] * len(explanations)
        missing = [p is None for p in given]
        if any(missing) and not all(missing):
            raise InputError("a cheap model's presence is needed for all explanations, or for none")
        presence = None if all(missing) else check_presence(np.stack([np.asarray(p) for p in given]), len(z))
        if (
            presence is not None
            and not isinstance(self.aggregator, str)
            and not ((presence > 0) & (presence < 1)).all()
        ):
            raise InputError(
                "presence is the prior of the ratings, and 0 or 1 cannot be changed by any; keep it between"
            )
        self.density_ = sampling_density(a, presence, eps=self.eps, floor=self.floor)
        self.indices_, self.weights_ = model_guided_sampling(a, n=self.n, density=self.density_, seed=self.seed)
        self.explanations_ = [str(name) for name in explanations]
        self._a, self._presence = z, presence
        return self

    def questions(self) -> pd.DataFrame:
        """What raters are asked: one row (item, explanation) for each drawn input and each explanation.

        Raises:
            InputError: `fit` was not called.
        """
        self.check_fitted()
        items = np.unique(self.indices_)
        rows = [(int(item), name) for name in self.explanations_ for item in items]
        return pd.DataFrame(rows, columns=["item", "explanation"])

    def evaluate(self, answers: RatingTable | Mapping[str, ArrayLike]) -> Result:
        """How well each explanation fits the unit.

        Args:
            answers: ratings of the questions, whose items are the inputs' places; or for each explanation the labels
                (n,) of the drawn inputs.

        Returns:
            by explanation the fields of `Agreement`; where ratings were aggregated by Bayes' rule with the prior of a
            cheap model also `correlation_base_rate`, which does not depend on that model's bias.

        Raises:
            InputError: `fit` was not called, answers that do not fit, or inputs without ratings in a vote.
            UnknownNameError: no such aggregator.
        """
        self.check_fitted()
        labels, plain = self._labels(answers)
        found = {name: self._estimate(labels[name]) for name in self.explanations_}
        fields = {field: [asdict(one)[field] for one in found.values()] for field in Agreement.__dataclass_fields__}
        data = xr.Dataset({k: ("explanation", v) for k, v in fields.items()}, {"explanation": self.explanations_})
        if plain:
            values = [self._estimate(plain[name]).correlation for name in self.explanations_]
            data["correlation_base_rate"] = ("explanation", values)
        data.attrs["plot"] = {"kind": "bar", "variables": ["correlation"], "ylabel": "correlation with the unit"}
        used = {k: v for k, v in self.get_params().items() if k not in ("seed", "aggregator")}
        record = provenance(inputs=[self._a, labels], seed=self.seed, aggregator=str(self.aggregator), **used)
        return Result(data, "ExplanationEvaluator", PAPER, record)

    def _estimate(self, labels: ArrayLike) -> Agreement:
        names = ("top", "moments", "normalise", "bootstrap", "level", "seed")
        settings = {name: getattr(self, name) for name in names}
        return importance_sampling_correlation(self._a, self.indices_, self.weights_, labels, **settings)

    def _labels(self, answers: RatingTable | Mapping[str, ArrayLike]) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Labels of the draws by explanation, and again without a cheap model's prior where there is one."""
        if not isinstance(answers, RatingTable):
            for name in self.explanations_:
                if name not in answers:
                    raise InputError(unknown("explanation", name, answers))
            return {name: np.asarray(answers[name], dtype=np.float64) for name in self.explanations_}, {}
        items, place = np.unique(self.indices_, return_inverse=True)
        lists = {name: answers.lists(name, items.tolist()) for name in self.explanations_}
        if isinstance(self.aggregator, str):
            if self.aggregator not in VOTES:
                raise UnknownNameError(unknown("aggregator", self.aggregator, VOTES))
            votes = {name: VOTES[self.aggregator](ratings) for name, (ratings, _) in lists.items()}
            for name, vote in votes.items():
                if np.isnan(vote).any():
                    raise InputError(f"{name!r}: {int(np.isnan(vote).sum())} of the drawn inputs have no rating")
            return {name: vote[place] for name, vote in votes.items()}, {}
        # An input's weight stands for all its draws.
        weights = np.bincount(place, self.weights_)
        priors: dict[str, Floats | None] = dict.fromkeys(self.explanations_)
        if self._presence is not None:
            priors = {name: p[items] for name, p in zip(self.explanations_, self._presence, strict=True)}
        bayes = self._fitted_aggregator(lists, priors, weights)
        out = [
            {
                name: bayes.posterior(*lists[name], prior=prior[name], weights=weights)[place]
                for name in self.explanations_
            }
            for prior in (priors, dict.fromkeys(priors))
        ]
        return out[0], out[1] if self._presence is not None else {}

    def _fitted_aggregator(
        self, lists: dict[str, Any], priors: dict[str, Floats | None], weights: Floats
    ) -> BayesRatingAggregator:
        if self.aggregator is not None:
            return self.aggregator
        ratings = [row for name in lists for row in lists[name][0]]
        workers = [row for name in lists for row in lists[name][1]]
        prior = None if self._presence is None else np.concatenate(list(priors.values()))
        return BayesRatingAggregator().fit_em(ratings, workers, prior=prior, weights=np.tile(weights, len(lists)))


def compare_explainers(correlations: Mapping[str, ArrayLike]) -> Result:
    """Mean agreement of each method that explains units, over the same units.

    Args:
        correlations: for each method its correlation (unit,) with every unit; NaN where it is not known.

    Returns:
        by method: `mean`, `standard_error` over units, `units` with a value and `undefined` without one.

    Raises:
        InputError: no methods, different numbers of units, or fewer than two units with a value.

    Source: Oikarinen, Yan, Kulkarni and Weng, 2025, the comparison of methods.
    """
    if not correlations:
        raise InputError("expected the correlations of one method or more")
    rows = [np.asarray(v, dtype=np.float64) for v in correlations.values()]
    if any(r.ndim != 1 or r.shape != rows[0].shape for r in rows):
        raise InputError(f"expected one value for each unit, got shapes {[r.shape for r in rows]}")
    values = np.stack(rows)
    known = (~np.isnan(values)).sum(1)
    if (known < 2).any():
        raise InputError("a method needs two units with a correlation or more")
    spread = np.nanstd(values, 1, ddof=1) / np.sqrt(known)
    data = xr.Dataset(
        {
            "mean": ("method", np.nanmean(values, 1)),
            "standard_error": ("method", spread),
            "units": ("method", known),
            "undefined": ("method", values.shape[1] - known),
        },
        {"method": list(correlations)},
        {"plot": {"kind": "bar", "variables": ["mean"], "ylabel": "mean correlation"}},
    )
    return Result(data, "compare_explainers", PAPER, provenance(inputs=dict(correlations)))


def _check_sample(
    n: int, indices: ArrayLike, weights: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.int64], Floats, Floats]:
    where, w, c = np.asarray(indices), np.asarray(weights, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if where.ndim != 1 or w.shape != where.shape or c.shape != where.shape:
        raise InputError(
            f"expected indices, weights and labels of one length, got {where.shape}, {w.shape} and {c.shape}"
        )
    if len(where) < FEWEST:
        raise InputError(f"expected a sample of {FEWEST} or more, got {len(where)}")
    if where.dtype.kind not in "iu" or where.min() < 0 or where.max() >= n:
        raise InputError(f"indices are whole numbers from 0 to {n - 1}")
    if not np.isfinite(w).all() or (w <= 0).any():
        raise InputError("importance weights are above 0")
    if not ((c >= 0) & (c <= 1)).all():
        raise InputError("labels are 0 or 1, or probabilities between them")
    return where, w, c


def _correlation(sums: Floats, moments: str, count: int | None) -> Floats:
    """Correlation from sums (..., 7) over the sample of w, w z, w z^2, w c, w z c (and two more)."""
    total, z, zz, c, zc = np.moveaxis(sums[..., :5], -1, 0)
    scale = total if count is None else np.full_like(total, count)
    z, zz, c, zc = z / scale, zz / scale, c / scale, zc / scale
    if moments == "population":
        z, zz = np.zeros_like(z), np.ones_like(zz)
    spread = (zz - z**2) * c * (1 - c)
    return np.where(spread > NOTHING, (zc - z * c) / np.sqrt(np.where(spread > NOTHING, spread, 1.0)), np.nan)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
