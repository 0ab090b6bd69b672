"""What a study of explanations will cost: the labels and ratings that a given error of the correlation needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import binom

from actinium.core.errors import InputError
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.features.explanation_sampling import sampling_density, standardised

__all__ = ["plan_cost"]

Floats = NDArray[np.float64]
SAMPLINGS = ("uniform", "activation", "guided")
AGGREGATIONS = ("majority", "mean", "bayes")


def plan_cost(
    a: ArrayLike,
    truth: ArrayLike,
    target_rmse: float,
    price: float,
    *,
    presence: ArrayLike | None = None,
    ratings: Sequence[int] = (1, 3, 5),
    tpr: float = 0.8,
    fpr: float = 0.1,
    eps: float = 0.1,
    floor: float = 0.1,
) -> Result:
    """Inputs, ratings and money for a root mean squared error of the correlation, for each way to sample and to vote.

    The error has two parts: the variance of the sample, from the influence function of the correlation (self-normalised
    weights, sample moments; right for large samples), and the bias of labels that are not the truth. More inputs lower
    the first alone, so some targets are out of reach.

    Args:
        a: activation (N,) of the unit on all inputs.
        truth: presence (N,) of the concept as far as it is known: labels of a pilot study or of a similar concept, or
            probabilities.
        target_rmse: wanted error of the correlation.
        price: of one rating, in any currency.
        presence: probability (N,) according to the cheap model, which guides the sampling and is the prior of Bayes'
            rule; `truth` where it is not given, which then may not be 0 or 1.
        ratings: numbers of ratings of one input to compare.
        tpr, fpr: errors of the raters.
        eps, floor: see `sampling_density`.

    Returns:
        by sampling ("uniform", "activation", "guided"), aggregation ("majority", "mean", "bayes") and ratings:
        `cost`, `items` (draws), both infinite where the target is out of reach, `bias`, and `spread`, the standard
        deviation of the estimate times the root of the number of draws.

    Raises:
        InputError: see `sampling_density`; no concept or nothing but the concept in `truth`; a prior of 0 or 1;
            settings out of range.

    Source: derived for Oikarinen, Yan, Kulkarni and Weng, 2025; influence function of the correlation: Devlin,
    Gnanadesikan and Kettenring, 1975.
    """
    counts = [int(r) for r in ratings]
    if not target_rmse > 0 or not price > 0 or not 0 < fpr < tpr < 1 or not counts or min(counts) < 1:
        raise InputError(
            f"expected target_rmse > 0, price > 0, 0 < fpr < tpr < 1 and ratings >= 1, got {target_rmse}, {price}, "
            f"fpr={fpr}, tpr={tpr}, {counts}"
        )
    t = np.asarray(truth, dtype=np.float64)
    prior = t if presence is None else np.asarray(presence, dtype=np.float64)
    if not ((prior > 0) & (prior < 1)).all():
        raise InputError("a prior of 0 or 1 cannot be changed by any rating; give presence between 0 and 1")
    densities = {
        "uniform": sampling_density(a, floor=1.0),
        "activation": sampling_density(a, eps=eps, floor=floor),
        "guided": sampling_density(a, prior, eps=eps, floor=floor),
    }
    z = standardised(a)
    if t.shape != z.shape or not ((t >= 0) & (t <= 1)).all() or not 0 < t.mean() < 1:
        raise InputError(f"expected truth {z.shape} from 0 to 1 of which some has the concept and some has not")
    aim = float((z * t).mean() / np.sqrt(t.mean() * (1 - t.mean())))
    shape = len(SAMPLINGS), len(AGGREGATIONS), len(counts)
    bias, spread = np.empty(shape), np.empty(shape)
    for k, count in enumerate(counts):
        yes = np.arange(count + 1)
        chance = t[:, None] * binom.pmf(yes, count, tpr) + (1 - t[:, None]) * binom.pmf(yes, count, fpr)
        for j, labels in enumerate(_labels(count, prior, tpr, fpr)):
            rho, square = _influence(z, labels, chance)
            bias[:, j, k] = rho - aim
            spread[:, j, k] = [np.sqrt((square / densities[name]).sum()) / len(z) for name in SAMPLINGS]
    room = target_rmse**2 - bias**2
    items = np.where(room > 0, np.ceil(spread**2 / np.where(room > 0, room, 1.0)), np.inf)
    dims = ("sampling", "aggregation", "ratings")
    data = xr.Dataset(
        {"cost": (dims, items * np.array(counts) * price), "items": (dims, items), "bias": (dims, bias)},
        {"sampling": list(SAMPLINGS), "aggregation": list(AGGREGATIONS), "ratings": counts},
    )
    data["spread"] = (dims, spread)
    settings = {"target_rmse": target_rmse, "price": price, "ratings": counts, "tpr": tpr, "fpr": fpr}
    record = provenance(inputs=[z, t, prior], **settings, eps=eps, floor=floor)
    return Result(data, "plan_cost", "crowd-neuron-eval", record)


def _labels(count: int, prior: Floats, tpr: float, fpr: float) -> list[Floats]:
    """Label (N or 1, count + 1) of an input with 0 to `count` votes, for each aggregation."""
    yes = np.arange(count + 1)[None]
    majority = np.sign(yes - count / 2) / 2 + 0.5
    evidence = yes * np.log(tpr / fpr) + (count - yes) * np.log((1 - tpr) / (1 - fpr))
    return [majority, yes / count, expit(logit(prior)[:, None] + evidence)]


def _influence(z: Floats, labels: Floats, chance: Floats) -> tuple[float, Floats]:
    """Correlation that such labels have in the limit, and the mean square (N,) of each input's influence on it."""
    mean = (chance * labels).sum(1)
    c = mean.mean()
    s = np.sqrt(c * (1 - c))
    rho = float((z * (mean - c)).mean() / s)
    away = (labels - c) / s
    influence = z[:, None] * away - rho / 2 * (z[:, None] ** 2 + 1) - rho * (1 - 2 * c) / (2 * s) * away
    return rho, (chance * influence**2).sum(1)
