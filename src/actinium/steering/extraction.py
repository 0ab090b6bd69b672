"""Steering vectors from pairs of texts, from a dictionary's latents, and at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError, MissingExtraError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.probes.site_vectors import check_pairs, site_activations
from actinium.steering.held_out import text_marks
from actinium.steering.paired_reading import paired_activations
from actinium.steering.text_places import text_places
from actinium.steering.vector import SteeringVector

__all__ = ["METHODS", "direction_of", "extract", "from_latents"]

Floats = NDArray[np.float64]
BLOCKS = "blocks.*.resid_post"

METHODS: dict[str, str] = {
    "mean_difference": "mean of the differences (CAA), at its own length",
    "pca_pairwise": "first component of the differences, not centred (CAST; repeng's pca_center)",
    "pca_centred": "first component of all activations, their mean subtracted",
    "pca_difference": "first component of the centred differences (repeng's pca_diff)",
    "repe": "first component of differences of randomly ordered pairs (RepE)",
    "logistic": "weights of a logistic regression without intercept on pairs whose midpoints are subtracted",
    "lda": "difference of the means, whitened by the covariance within the two kinds (a tenth of it its mean)",
    "cluster_means": "difference of the two kinds' means; the texts need not be pairs",
    "mean_centring": "mean of the positive texts minus that of any other texts",
    "reading": "mean of the positive texts, with nothing subtracted",
    "random": "a random direction as long as the mean difference: the control",
}
"""Name -> what it is."""

COMPONENTS = ("pca_pairwise", "pca_centred", "pca_difference", "repe")
PAIRED = ("mean_difference", "pca_pairwise", "pca_difference", "repe", "logistic")
ONE_SIDED = ("reading",)


def extract(
    model: Model | None,
    positive: Any,
    negative: Any = None,
    sites: str | Sequence[str] = BLOCKS,
    *,
    method: str = "mean_difference",
    position: int | str | Tensor = -1,
    unit: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> SteeringVector:
    """Find a direction at each site that leads from negative texts to positive ones.

    Args:
        model: that reads the texts; None where activations are given.
        positive: texts that show the property; or activations, as a Recording or {site: (n, d)}.
        negative: texts that do not, each the partner of the positive one in its place; methods "lda",
            "cluster_means", "mean_centring" and "pca_centred" need no pairs, and "reading" takes none.
        sites: names and patterns.
        method: a key of `METHODS`.
        position: the token that is read: a number (0 first, -1 last), "mean" over each text, "suffix", the mean over
            the tokens behind those that the two texts of a pair begin with alike, or a tensor (n,) for each text.
        unit: give every direction unit length. Components, "logistic" and "lda" have it in any case.
        seed: of "repe" and "random".
        batch_size: texts in a pass.
        progress: show a progress bar.

    Returns:
        SteeringVector; methods of one component are turned so that most pairs lie along them, and leave in
        `made["explained_variances"]` by site the share of the variance along each (`vector.normalize` of it weighs
        the sites by it).

    Raises:
        InputError: no or too few texts, negatives missing or not wanted, numbers that differ, activations that are
            not finite, or texts that do not differ at any site.
        UnknownNameError: there is no such method.
        SiteError: a site does not exist.
        MissingExtraError: scikit-learn is not installed ("logistic").

    Source: Rimsky et al., 2024 (mean difference); Lee et al., 2024, CAST (pairwise PCA); Zou et al., 2023 (RepE);
    Jorgensen et al., 2023 (mean-centring); Vogel, 2024, repeng.
    """
    if method not in METHODS:
        raise UnknownNameError(unknown("method", str(method), METHODS))
    if method in ONE_SIDED and negative is not None:
        raise InputError("'reading' takes positive texts only; 'mean_centring' subtracts the mean of others")
    if method not in ONE_SIDED and negative is None:
        raise InputError(f"{method!r} contrasts two kinds of texts: give negative ones, too")
    for texts, what in ((positive, "positive"), (negative, "negative")):
        if isinstance(texts, str):
            raise InputError(f"{what} texts: give a list, not one text")
        if isinstance(texts, Sequence) and not len(texts):
            raise InputError(f"there are no {what} texts")
    marks = [*text_marks(positive), *text_marks(negative)]
    if model is not None:
        # Both ways of reading them, and the choice of places, begin with tokens.
        positive, negative = _tokens(model, positive), _tokens(model, negative)
    places = text_places(model, positive, negative, position)
    options = {"batch_size": batch_size, "progress": progress}
    pairs = None
    if model is not None and negative is not None:
        pairs = paired_activations(model, positive, negative, sites, places, **options)
    if pairs is None:
        up = site_activations(model, positive, sites, places[0], **options)
        down = None if negative is None else site_activations(model, negative, sites, places[1], **options)
    else:
        up, down = pairs
    if down is not None and method in PAIRED:
        check_pairs(up, down)
    found, shares = {}, {}
    for site, rows in up.items():
        other = None if down is None else down[site]
        direction = direction_of(rows, other, method, seed)
        size = np.linalg.norm(direction)
        # Rounding alone must not be made a direction of unit length.
        if not size > 1e-9 * max(1e-30, float(np.abs(rows).max())):
            direction = np.zeros_like(direction)
        elif unit:
            direction = direction / size
        found[site] = torch.from_numpy(direction)
        if method in COMPONENTS and other is not None:
            shares[site] = _explained(_component_rows(rows, other, method, seed), direction)
    if not any(bool((v != 0).any()) for v in found.values()):
        raise InputError(f"positive and negative texts do not differ at {', '.join(found)}: there is no direction")
    made: dict[str, Any] = {"pairs": len(next(iter(up.values()))), "position": _named(position), "seed": seed}
    made["texts"] = marks
    if shares:
        made["explained_variances"] = shares
    if model is not None:
        made |= {"model": model.fingerprint(), "name": model.name}
        kind = getattr(model.config, "model_type", None)
        made |= {"model_type": kind} if isinstance(kind, str) and kind else {}
    return SteeringVector(found, method, made)


def direction_of(positive: Any, negative: Any = None, method: str = "mean_difference", seed: int = 0) -> Floats:
    """The direction (d,) of one method, of activations (n, d).

    Args:
        positive, negative: activations; as in `extract`.
        method: a key of `METHODS`.
        seed: of "repe" and "random".

    Raises:
        InputError: there are too few activations for the method.
    """
    up = np.asarray(positive, dtype=np.float64)
    if method == "reading":
        return up.mean(0)
    down = np.asarray(negative, dtype=np.float64)
    if method in PAIRED and up.shape != down.shape:
        raise InputError(f"{method!r} needs pairs, got {len(up)} and {len(down)}")
    gap = up.mean(0) - down.mean(0)
    if method in ("mean_difference", "cluster_means", "mean_centring"):
        return gap
    if method == "random":
        draw = np.random.default_rng(seed).normal(size=up.shape[1])
        return draw * (np.linalg.norm(gap) / np.linalg.norm(draw))
    if min(len(up), len(down)) < 2:
        raise InputError(f"{method!r} needs two pairs or more, got {min(len(up), len(down))}")
    if not np.abs(gap).any() and method in ("logistic", "lda"):
        return gap
    if method == "logistic":
        return _logistic(up, down)
    if method == "lda":
        return _lda(up, down, gap)
    axis = _component(_component_rows(up, down, method, seed))
    # Without pairs there are no votes; a tie is decided by how far the kinds lie apart.
    votes = 0.0 if method == "pca_centred" else float(np.sign((up - down) @ axis).sum())
    turned = votes < 0 or (votes == 0 and float(gap @ axis) < 0)
    return -axis if turned else axis


def from_latents(
    model: Model,
    site: str,
    dictionary: Dictionary,
    latents: int | Sequence[int],
    weights: Sequence[float] | None = None,
) -> SteeringVector:
    """The sum of decoder rows of some latents, as a steering vector.

    Args:
        model: that is steered.
        site: which the dictionary writes to.
        dictionary: a fitted dictionary.
        latents: one or several.
        weights: as many; 1 each by default.

    Raises:
        InputError: a latent is out of range, numbers differ, or the dictionary does not fit the site.
    """
    from actinium.features.latent_amplification import check_autoencoder, latent_numbers

    check_autoencoder(model, site, dictionary)
    chosen = latent_numbers(dictionary, latents)
    given = torch.ones(len(chosen)) if weights is None else torch.as_tensor(list(weights), dtype=torch.float32)
    if len(given) != len(chosen):
        raise InputError(f"{len(given)} weights for {len(chosen)} latents")
    direction = given @ dictionary.W_dec.detach().cpu().float()[chosen]
    name = model.sites(site)[0].name
    made = {"model": model.fingerprint(), "name": model.name, "latents": chosen.tolist(), "weights": given.tolist()}
    return SteeringVector({name: direction}, "latents", made)


def _component_rows(up: Floats, down: Floats, method: str, seed: int) -> Floats:
    """What the first component is taken of, by method."""
    if method == "pca_centred":
        rows = np.concatenate([up, down])
    elif method == "repe":
        rows = (up - down) * np.random.default_rng(seed).choice([-1.0, 1.0], size=(len(up), 1))
    else:
        rows = up - down
    return rows if method == "pca_pairwise" else np.asarray(rows - rows.mean(0))


def _explained(rows: Floats, direction: Floats) -> float:
    """Share of the variance of rows that lies along a direction of unit length; 0 where they do not vary."""
    whole = float((rows**2).sum())
    return float(((rows @ direction) ** 2).sum()) / whole if whole > 0 else 0.0


def _component(rows: Floats) -> Floats:
    """First right singular vector (d,), unit length; zero where all rows are."""
    if not np.abs(rows).max() > 1e-12:
        return np.zeros(rows.shape[1])
    n, d = rows.shape
    # Of the two Gram matrices the smaller one has all that is needed.
    if d <= n:
        return np.asarray(np.linalg.eigh(rows.T @ rows)[1][:, -1])
    axis = rows.T @ np.linalg.eigh(rows @ rows.T)[1][:, -1]
    return np.asarray(axis / np.linalg.norm(axis))


def _lda(up: Floats, down: Floats, gap: Floats) -> Floats:
    """Covariance within the kinds, shrunk (Ledoit and Wolf's target at a tenth), inverse times the gap; unit length."""
    within = np.concatenate([up - up.mean(0), down - down.mean(0)])
    covariance = within.T @ within / max(1, len(within) - 2)
    d = len(gap)
    shrunk = 0.9 * covariance + 0.1 * (np.trace(covariance) / d) * np.eye(d)
    if not np.trace(covariance) > 0:
        return np.asarray(gap / np.linalg.norm(gap))
    axis = np.linalg.solve(shrunk, gap)
    return np.asarray(axis / np.linalg.norm(axis))


def _logistic(up: Floats, down: Floats) -> Floats:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtraError("scikit-learn", "learn") from None
    half = (up - down) / 2
    rows, labels = np.concatenate([half, -half]), np.repeat([1, 0], len(half))
    weights = LogisticRegression(fit_intercept=False, C=1.0, max_iter=1000).fit(rows, labels).coef_[0]
    size = np.linalg.norm(weights)
    return np.asarray(weights / size if size > 0 else weights)


def _tokens(model: Model, given: Any) -> Any:
    """Tokens of texts; what holds none is left as it is."""
    if given is None:
        return None
    found = model.prepare(given).tokens
    return given if found is None else found


def _named(position: Any) -> Any:
    if isinstance(position, Tensor):
        return "given"
    return position
