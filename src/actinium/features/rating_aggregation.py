"""What several noisy raters say together: Bayes' rule with each rater's errors, and the plain votes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, xlog1py, xlogy
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.fitted import SavedEstimator, State
from actinium.core.progress import shown

__all__ = ["BayesRatingAggregator", "majority_vote", "mean_rating"]

Floats = NDArray[np.float64]
Ratings = Sequence[Sequence[Any]]
Workers = Sequence[Sequence[Hashable]]


def majority_vote(ratings: Ratings | ArrayLike) -> Floats:
    """1 where more than half of an item's ratings are 1, 0 where fewer are, 0.5 in a tie, NaN without ratings.

    Args:
        ratings: for each item its ratings: 0, 1, or None where a rater gave no answer; or an array (item, rater)
            with NaN for None.

    Raises:
        InputError: no items, or a rating that is none of these.
    """
    share = mean_rating(ratings)
    return np.where(np.isnan(share), np.nan, np.sign(share - 0.5) / 2 + 0.5)


def mean_rating(ratings: Ratings | ArrayLike) -> Floats:
    """Share of an item's ratings that are 1, NaN without ratings; see `majority_vote` for the arguments."""
    flat = _flatten(ratings)
    count = np.bincount(flat.item, minlength=flat.items)
    total = np.bincount(flat.item, flat.rating, flat.items)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class BayesRatingAggregator(SavedEstimator):
    """Probability that a concept is present, from binary ratings and the errors that raters make (BRAgg).

    A rater says 1 with probability `tpr` where the concept is present and `fpr` where it is absent (two-coin model).
    The ratings of an item are independent given its presence, and its prior is that of a cheap model or a base rate.

    Args:
        prior: probability of presence: one number, (item,) numbers, or None for the base rate that makes the given
            ratings most likely.
        tpr, fpr: of all raters, until they are fitted.
        tpr_prior, fpr_prior: Beta(a, b) priors of the fitted ones, in pseudo-ratings for and against.
        min_ratings: a rater with fewer shares one pair of errors with all others like that.
        max_iter, tol: EM ends when no parameter moves by more than `tol`.
        allow_adversarial: also accept raters who are no better than chance (tpr <= fpr).

    Attributes:
        tpr_, fpr_: fitted errors of raters without errors of their own.
        worker_tpr_, worker_fpr_: by rater, of those with `min_ratings` ratings or more.
        n_iter_: steps of EM (0 after `fit_gold`).
        log_posterior_: (step,) log of the penalised likelihood before each step of EM.

    Source: Oikarinen, Yan, Kulkarni and Weng, 2025; Dawid and Skene, 1979 (EM). The rater model of the paper was not
    at hand; this is the two-coin form with Beta priors, whose mode is taken over log-odds, so no error is 0 or 1.
    """

    fitted = "tpr_"
    saved_as = "rating aggregator"

    def __init__(
        self,
        prior: ArrayLike | None = None,
        tpr: float = 0.8,
        fpr: float = 0.1,
        *,
        tpr_prior: tuple[float, float] = (8.0, 2.0),
        fpr_prior: tuple[float, float] = (1.0, 9.0),
        min_ratings: int = 20,
        max_iter: int = 1000,
        tol: float = 1e-9,
        allow_adversarial: bool = False,
    ) -> None:
        self.prior, self.tpr, self.fpr = prior, tpr, fpr
        self.tpr_prior, self.fpr_prior = tpr_prior, fpr_prior
        self.min_ratings, self.max_iter, self.tol = min_ratings, max_iter, tol
        self.allow_adversarial = allow_adversarial

    def posterior(
        self,
        ratings: Ratings | ArrayLike,
        workers: Workers | ArrayLike | None = None,
        *,
        prior: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> Floats:
        """Probability that the concept is present in each item; the prior where there is no rating.

        logit P(c = 1 | r) = logit prior + sum_j [r_j ln(tpr / fpr) + (1 - r_j) ln((1 - tpr) / (1 - fpr))]

        Args:
            ratings: for each item its ratings, see `majority_vote`.
            workers: who gave them, in the same shape; all raters alike if not given.
            prior: in place of that of the constructor.
            weights: (item,) importance weights, for a base rate that belongs to all inputs and not to the sample.

        Raises:
            InputError: no items, a rating that is none of these, workers of another shape, a prior not between 0 and
                1, or raters no better than chance.
        """
        flat = _flatten(ratings, workers)
        evidence = self._evidence(flat)
        given = self.prior if prior is None else prior
        odds = logit(_check_prior(given, flat.items) if given is not None else self._base_rate(flat, evidence, weights))
        return expit(odds + evidence)

    def base_rate(
        self,
        ratings: Ratings | ArrayLike,
        workers: Workers | ArrayLike | None = None,
        *,
        weights: ArrayLike | None = None,
    ) -> float:
        """Share of items with the concept that makes their ratings most likely; see `posterior` for the arguments."""
        flat = _flatten(ratings, workers)
        return self._base_rate(flat, self._evidence(flat), weights)

    def fit_gold(
        self, ratings: Ratings | ArrayLike, truth: ArrayLike, workers: Workers | ArrayLike | None = None
    ) -> Self:
        """Raters' errors from items whose truth is known.

        Args:
            ratings, workers: see `posterior`.
            truth: (item,) 0 or 1.

        Raises:
            InputError: see `posterior`; truth that is not 0 or 1; a rater no better than chance.
        """
        flat = _flatten(ratings, workers)
        known = np.asarray(truth, dtype=np.float64)
        if known.shape != (flat.items,) or not np.isin(known, (0, 1)).all():
            raise InputError(f"expected the truth of {flat.items} items as 0 or 1, got shape {known.shape}")
        group, names = self._groups(flat)
        tpr, fpr = self._errors(flat, group, len(names), known, np.ones(flat.items))
        self._keep(tpr, fpr, names, np.empty(0))
        return self

    def fit_em(
        self,
        ratings: Ratings | ArrayLike,
        workers: Workers | ArrayLike | None = None,
        *,
        prior: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        progress: bool = False,
    ) -> Self:
        """Raters' errors where no truth is known, by expectation maximisation.

        Args:
            ratings, workers, prior: see `posterior`.
            weights: (item,) importance weights of items that were not drawn uniformly.
            progress: show a progress bar.

        Raises:
            InputError: see `posterior`; no ratings at all; a rater found to be no better than chance.
        """
        flat = _flatten(ratings, workers)
        if not len(flat.rating):
            raise InputError("there is no rating to fit to")
        given = self.prior if prior is None else prior
        fixed = None if given is None else _check_prior(given, flat.items)
        weight = _check_weights(weights, flat.items)
        group, names = self._groups(flat)
        tpr, fpr = (np.full(len(names), a / (a + b)) for a, b in (self.tpr_prior, self.fpr_prior))
        rate, trace = 0.5, []
        for _ in shown(range(self.max_iter), "expectation maximisation", progress):
            odds = logit(rate if fixed is None else fixed)
            post = expit(odds + _log_ratio(flat, tpr[group], fpr[group]))
            trace.append(self._objective(flat, group, odds, weight, rate if fixed is None else None, tpr, fpr))
            old = np.concatenate([tpr, fpr, [rate]])
            tpr, fpr = self._errors(flat, group, len(names), post, weight)
            rate = _smoothed_rate(post, weight)
            if np.abs(np.concatenate([tpr, fpr, [rate]]) - old).max() < self.tol:
                break
        self._keep(tpr, fpr, names, np.array(trace))
        return self

    def _evidence(self, flat: _Flat) -> Floats:
        """Log-odds (item,) that the ratings add to the prior's."""
        tpr, fpr = (self.tpr_, self.fpr_) if hasattr(self, "tpr_") else (self.tpr, self.fpr)
        self._check_raters({"the raters": (tpr, fpr)})
        own_t, own_f = (getattr(self, name, {}) for name in ("worker_tpr_", "worker_fpr_"))
        t, f = (np.array([own.get(w, base) for w in flat.workers]) for own, base in ((own_t, tpr), (own_f, fpr)))
        return _log_ratio(flat, t[flat.worker], f[flat.worker])

    def _base_rate(self, flat: _Flat, evidence: Floats, weights: ArrayLike | None) -> float:
        weight, rate = _check_weights(weights, flat.items), 0.5
        for _ in range(self.max_iter):
            old, rate = rate, _smoothed_rate(expit(logit(rate) + evidence), weight)
            if abs(rate - old) < self.tol:
                break
        return rate

    def _groups(self, flat: _Flat) -> tuple[NDArray[np.int64], list[Hashable]]:
        """For each rating the number of its pair of errors, and whose they are (None: all without their own)."""
        count = np.bincount(flat.worker, minlength=len(flat.workers))
        own = [i for i, w in enumerate(flat.workers) if w is not None and count[i] >= self.min_ratings]
        place = np.zeros(len(flat.workers), dtype=np.int64)
        place[own] = np.arange(1, len(own) + 1)
        return place[flat.worker], [None, *(flat.workers[i] for i in own)]

    def _errors(
        self, flat: _Flat, group: NDArray[np.int64], groups: int, post: Floats, weight: Floats
    ) -> tuple[Floats, Floats]:
        """The two errors of each group that fit best to items present with probability `post`."""
        found = []
        for share, (a, b) in ((post, self.tpr_prior), (1 - post, self.fpr_prior)):
            mass = (weight * share)[flat.item]
            yes = np.bincount(group, mass * flat.rating, groups)
            found.append((a + yes) / (a + b + np.bincount(group, mass, groups)))
        return found[0], found[1]

    def _objective(
        self,
        flat: _Flat,
        group: NDArray[np.int64],
        odds: Any,
        weight: Floats,
        rate: float | None,
        tpr: Floats,
        fpr: Floats,
    ) -> float:
        """Log-likelihood of the ratings, with the priors of what is fitted."""
        (a, b), (c, d) = self.tpr_prior, self.fpr_prior
        sides = [
            np.bincount(flat.item, xlogy(flat.rating, p[group]) + xlog1py(1 - flat.rating, -p[group]), flat.items)
            for p in (tpr, fpr)
        ]
        fit = np.logaddexp(np.log(expit(odds)) + sides[0], np.log(expit(-np.asarray(odds))) + sides[1])
        penalty = (a * np.log(tpr) + b * np.log1p(-tpr) + c * np.log(fpr) + d * np.log1p(-fpr)).sum()
        return float(weight @ fit + penalty + (np.log(rate) + np.log1p(-rate) if rate is not None else 0.0))

    def _keep(self, tpr: Floats, fpr: Floats, names: list[Hashable], trace: Floats) -> None:
        own = {name: (float(t), float(f)) for name, t, f in zip(names, tpr, fpr, strict=True)}
        self._check_raters({f"rater {n!r}" if n is not None else "the raters": e for n, e in own.items()})
        self.tpr_, self.fpr_ = own.pop(None)
        self.worker_tpr_ = {name: t for name, (t, _) in own.items()}
        self.worker_fpr_ = {name: f for name, (_, f) in own.items()}
        self.n_iter_, self.log_posterior_ = len(trace), trace

    def _check_raters(self, errors: dict[str, tuple[float, float]]) -> None:
        for name, (tpr, fpr) in errors.items():
            if not (0 < tpr < 1 and 0 < fpr < 1):
                raise InputError(f"tpr and fpr are between 0 and 1, got {tpr} and {fpr}")
            if tpr <= fpr and not self.allow_adversarial:
                raise InputError(
                    f"{name}: says yes as often without the concept ({fpr:.3g}) as with it ({tpr:.3g}), which is no "
                    "better than chance; leave these ratings out, or set allow_adversarial"
                )

    def _settings(self) -> dict[str, Any]:
        prior = None if self.prior is None else np.asarray(self.prior, dtype=np.float64).tolist()
        return self.get_params() | {"prior": prior}

    def _state(self) -> State:
        errors = {"tpr": [self.tpr_, *self.worker_tpr_.values()], "fpr": [self.fpr_, *self.worker_fpr_.values()]}
        tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in errors.items()}
        tensors["log_posterior"] = torch.from_numpy(self.log_posterior_)
        # Raters' names are kept as text.
        return tensors, {"raters": [str(w) for w in self.worker_tpr_]}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        # JSON has lists where the constructor was given pairs.
        self.set_params(**{name: tuple(about["settings"][name]) for name in ("tpr_prior", "fpr_prior")})
        self._keep(*(tensors[k].numpy() for k in ("tpr", "fpr")), [None, *about["raters"]], np.empty(0))
        self.log_posterior_ = tensors["log_posterior"].numpy()
        self.n_iter_ = len(self.log_posterior_)


@dataclass(frozen=True, eq=False)
class _Flat:
    """Answers one by one: their item, their rater (as a place in `workers`) and their value."""

    items: int
    item: NDArray[np.int64]
    worker: NDArray[np.int64]
    rating: Floats
    workers: list[Hashable]


def _flatten(ratings: Ratings | ArrayLike, workers: Workers | ArrayLike | None = None) -> _Flat:
    if isinstance(ratings, str) or not hasattr(ratings, "__len__") or not len(ratings):
        raise InputError("expected for each item a list of its ratings, got none")
    if workers is not None and [len(r) for r in ratings] != [len(w) for w in workers]:
        raise InputError("workers must have the shape of the ratings: one rater for each rating")
    items = len(ratings)
    if getattr(ratings, "ndim", None) == 2:
        value = np.asarray(ratings, dtype=np.float64).ravel()
        item, given = np.repeat(np.arange(items), len(value) // items), ~np.isnan(value)
    else:
        item = np.repeat(np.arange(items), [len(row) for row in ratings])
        answers = [r for row in ratings for r in row]
        given = np.array([r is not None for r in answers], dtype=bool)
        value = np.array([r if r in (0, 1) else -1 if r is not None else 0 for r in answers], dtype=np.float64)
    wrong = given & (value != 0) & (value != 1)
    if wrong.any():
        raise InputError(f"item {item[wrong.argmax()]}: a rating is 0, 1 or None")
    if workers is None:
        return _Flat(items, item[given], np.zeros(int(given.sum()), dtype=np.int64), value[given], [None])
    everyone = [w for row in workers for w in row]
    who = [w for w, there in zip(everyone, given, strict=True) if there]
    place = {name: k for k, name in enumerate(dict.fromkeys(who))}
    return _Flat(items, item[given], np.array([place[w] for w in who], dtype=np.int64), value[given], list(place))


def _log_ratio(flat: _Flat, tpr: Floats, fpr: Floats) -> Floats:
    """Sum over each item's ratings of the log-likelihood ratio of presence."""
    each = flat.rating * np.log(tpr / fpr) + (1 - flat.rating) * np.log((1 - tpr) / (1 - fpr))
    return np.bincount(flat.item, each, flat.items)


def _smoothed_rate(post: Floats, weight: Floats) -> float:
    # One pseudo-item of each kind, so that the rate of a concept that nobody saw is not 0.
    return float((1 + weight @ post) / (2 + weight.sum()))


def _check_prior(prior: ArrayLike, items: int) -> Floats:
    values = np.asarray(prior, dtype=np.float64)
    if values.shape not in ((), (items,)):
        raise InputError(f"expected one prior or {items}, one for each item, got shape {values.shape}")
    if not ((values > 0) & (values < 1)).all():
        raise InputError("a prior of 0 or 1 cannot be changed by any rating; expected values between 0 and 1")
    return values


def _check_weights(weights: ArrayLike | None, items: int) -> Floats:
    """Weights with mean 1, so that the Beta priors weigh as much against them as against single items."""
    values = np.ones(items) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.shape != (items,) or not np.isfinite(values).all() or (values < 0).any() or not values.sum() > 0:
        raise InputError(f"expected {items} weights that are 0 or more and not all 0, got shape {values.shape}")
    return values * (items / values.sum())
