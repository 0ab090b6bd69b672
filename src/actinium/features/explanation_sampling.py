"""Which inputs to ask about: those that decide the correlation of a unit with a concept."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actinium.core.errors import InputError

__all__ = ["check_presence", "model_guided_sampling", "sampling_density", "standardised"]

Floats = NDArray[np.float64]
FEWEST = 10
# Below this the variance of what is correlated is rounding.
NOTHING = 1e-12


def sampling_density(
    a: ArrayLike, presence: ArrayLike | None = None, *, eps: float = 0.1, floor: float = 0.1
) -> Floats:
    """Probability (N,) with which each input should be drawn to estimate a correlation with few labels.

    Proportional to sqrt(p) (|z| + eps), averaged over explanations, and mixed with the uniform density so that none
    is below floor / N.

    Args:
        a: activation (N,) of the unit on all inputs; further dimensions (height, width) are averaged.
        presence: p, probability (N,) or (explanation, N) that an input has the concept, from a cheap model; the same
            for all inputs if not given.
        eps: added to the standardised activation, for the share of the concept is estimated as well.
        floor: share of the uniform density, above 0 and up to 1.

    Raises:
        InputError: activations that are constant or not finite, probabilities outside 0 and 1 or all 0, or eps or
            floor out of range.

    Source: Oikarinen, Yan, Kulkarni and Weng, 2025 (MG-IS; without p: importance sampling). The density of the paper
    was not at hand; this one minimises the variance of E[z c] for independent c ~ Bernoulli(p). The floor is
    Hesterberg's defensive mixture, 1995; the average over explanations is the balance heuristic of Veach
    and Guibas, 1995.
    """
    z = standardised(a)
    if not eps >= 0 or not 0 < floor <= 1:
        raise InputError(f"expected eps >= 0 and 0 < floor <= 1, got {eps} and {floor}")
    p = np.ones((1, len(z))) if presence is None else check_presence(presence, len(z))
    q = np.sqrt(p) * (np.abs(z) + eps)
    if (q.sum(1) == 0).any():
        raise InputError("a concept is present in no input, says the cheap model; then there is nothing to sample")
    mixed = (1 - floor) * (q / q.sum(1, keepdims=True)).mean(0) + floor / len(z)
    return mixed / mixed.sum()


def model_guided_sampling(
    a: ArrayLike,
    presence: ArrayLike | None = None,
    n: int = 200,
    *,
    eps: float = 0.1,
    floor: float = 0.1,
    density: ArrayLike | None = None,
    seed: int = 0,
) -> tuple[NDArray[np.int64], Floats]:
    """Draw inputs to be labelled (MG-IS); one sample serves every explanation whose presence is given.

    Args:
        a, presence, eps, floor: see `sampling_density`.
        n: draws, with replacement; an input that is drawn twice is labelled once.
        density: (N,) in place of that of `sampling_density`; scaled to sum to 1.
        seed: of the draw.

    Returns:
        places (n,) of the inputs and importance weights (n,) 1 / (N q).

    Raises:
        InputError: see `sampling_density`; n below 10; a density that is 0 where the concept may be present.
    """
    z = standardised(a)
    if n < FEWEST:
        raise InputError(f"expected {FEWEST} draws or more, got {n}")
    if density is None:
        q = sampling_density(a, presence, eps=eps, floor=floor)
    else:
        q = np.asarray(density, dtype=np.float64)
        if q.shape != z.shape or not np.isfinite(q).all() or (q < 0).any() or not q.sum() > 0:
            raise InputError(f"expected a density ({len(z)},) of values that are 0 or more, got shape {q.shape}")
        possible = np.ones(len(z), bool) if presence is None else (check_presence(presence, len(z)) > 0).any(0)
        if (possible & (q == 0)).any():
            raise InputError("the density is 0 at inputs that may have the concept; they would never be seen")
        q = q / q.sum()
    drawn = np.random.default_rng(seed).choice(len(z), size=n, p=q)
    return drawn, 1 / (len(z) * q[drawn])


def standardised(a: ArrayLike) -> Floats:
    """Activations (N,) with mean 0 and standard deviation 1 over all inputs; further dimensions are averaged.

    Raises:
        InputError: no activations, values that are not finite, or the same one everywhere.
    """
    values = np.asarray(a, dtype=np.float64)
    if values.ndim == 0 or values.size == 0:
        raise InputError(f"expected the activation of a unit on every input (N,), got shape {values.shape}")
    if not np.isfinite(values).all():
        raise InputError("the activations hold NaN or infinite values")
    values = values.reshape(len(values), -1).mean(1)
    spread = values.std()
    if spread <= NOTHING * np.abs(values).max():
        raise InputError("the activation is the same on every input; nothing correlates with it")
    return (values - values.mean()) / spread


def check_presence(presence: ArrayLike, n: int) -> Floats:
    """Presence as (explanation, n).

    Raises:
        InputError: another shape, or values outside 0 and 1.
    """
    p = np.atleast_2d(np.asarray(presence, dtype=np.float64))
    if p.ndim != 2 or p.shape[1] != n:
        raise InputError(f"expected presence ({n},) or (explanation, {n}), got shape {np.shape(presence)}")
    if not ((p >= 0) & (p <= 1)).all():
        raise InputError("presence is a probability from 0 to 1; fit a sigmoid to the scores of the cheap model first")
    return p
