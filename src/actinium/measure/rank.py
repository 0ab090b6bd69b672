"""How many dimensions the activations use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.reducers import Covariance
from actinium.core.result import Result
from actinium.measure.streaming import as_result, choose, padded, ready, stream

__all__ = ["components_for", "effective_rank", "entropy_rank", "participation_ratio", "stable_rank"]

# Covariance matrices kept at the same time; further sites are read in another pass over the inputs.
MEMORY = 1 << 30


def _spectrum(variances: Tensor) -> Tensor:
    """Eigenvalues of a covariance in float64; the small negative ones of rounding become zero."""
    x = variances.double()
    if x.ndim != 1 or len(x) == 0 or not bool(x.isfinite().all()):
        raise InputError(f"expected finite eigenvalues (d,), got shape {tuple(x.shape)}")
    if float(x.min()) < -1e-6 * max(float(x.max()), 1e-300):
        raise InputError("a covariance has no negative eigenvalues")
    return x.clamp(min=0)


def entropy_rank(variances: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values.

    Args:
        variances: eigenvalues of the covariance (d,), the squared singular values up to a factor.

    Returns:
        from 1 to d, or 0 where nothing varies.

    Raises:
        InputError: negative or non-finite eigenvalues.

    Source: Roy and Vetterli, 2007, The effective rank, definition 1.
    """
    sigma = _spectrum(variances).sqrt()
    if float(sigma.sum()) == 0:
        return 0.0
    p = sigma / sigma.sum()
    return float(torch.special.entr(p).sum().exp())


def participation_ratio(variances: Tensor) -> float:
    """Squared sum of the eigenvalues (d,) over the sum of their squares: from 1 to d, 0 where nothing varies.

    Source: Gao et al., 2017, A theory of multineuronal dimensionality.
    """
    x = _spectrum(variances)
    return float(x.sum() ** 2 / (x**2).sum()) if float(x.max()) > 0 else 0.0


def stable_rank(variances: Tensor) -> float:
    """Sum of the eigenvalues (d,) over the largest: from 1 to d, 0 where nothing varies.

    Source: Rudelson and Vershynin, 2007 (squared Frobenius norm over squared spectral norm).
    """
    x = _spectrum(variances)
    return float(x.sum() / x.max()) if float(x.max()) > 0 else 0.0


def components_for(variances: Tensor, share: float = 0.9) -> int:
    """Fewest principal components that hold `share` of the variance, from the eigenvalues (d,)."""
    if not 0 < share <= 1:
        raise InputError(f"share must be in (0, 1], got {share}")
    x = _spectrum(variances).sort(descending=True).values
    if float(x.sum()) == 0:
        return 0
    # The last cumulative sum may fall short of 1 by rounding.
    reached = x.cumsum(0) / x.sum() >= share * (1 - 1e-12)
    return int(reached.int().argmax()) + 1


def effective_rank(
    model: Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    centred: bool = True,
    batch_size: int | None = 8,
    progress: bool = False,
) -> Result:
    """Effective dimensions of the activations at each site, from their covariance.

    Args:
        model: the model.
        inputs: texts, tokens or images; with fewer positions than features the ranks are bounded by `count`.
        at: sites; the residual stream after each block by default.
        centred: subtract the mean. Without it one large mean direction counts as a dimension.
        batch_size: rows per pass.
        progress: show a progress bar.

    Returns:
        by layer: `entropy_rank`, `participation_ratio`, `stable_rank`, `components_90` (principal components
        that hold 90 % of the variance), `width` (features), `count` (positions), `dropped` (positions with NaN
        or infinite values); by layer and component: `spectrum`, shares of the variance in falling order.

    Raises:
        InputError, SiteError: nothing to read.

    Source: Roy and Vetterli, 2007; Gao et al., 2017; Rudelson and Vershynin, 2007.
    """
    inputs, layers = ready(model, inputs), choose(model, "resid_post", at)
    at_once = max(1, MEMORY // (8 * max(1, model.d_model) ** 2))
    found = stream(model, inputs, layers, Covariance(), batch_size, progress, at_once)
    spectra = []
    for f in found:
        cov = f.cov if centred else f.cov + torch.outer(f.mean, f.mean)
        spectra.append(torch.linalg.eigvalsh(cov).flip(0).clamp(min=0))
    one = (layers.dim,)
    variables: dict[str, Any] = {
        "entropy_rank": (one, [entropy_rank(s) for s in spectra]),
        "participation_ratio": (one, [participation_ratio(s) for s in spectra]),
        "stable_rank": (one, [stable_rank(s) for s in spectra]),
        "components_90": (one, [components_for(s, 0.9) for s in spectra]),
        "width": (one, [len(s) for s in spectra]),
        "count": (one, np.array([f.count for f in found])),
        "dropped": (one, np.array([f.dropped for f in found])),
        "spectrum": ((layers.dim, "component"), padded([s / s.sum().clamp(min=1e-300) for s in spectra])),
    }
    hints = {"variables": ["entropy_rank", "participation_ratio", "stable_rank"], "ylabel": "dimensions"}
    return as_result(
        model,
        inputs,
        "effective_rank",
        variables,
        layers.coords,
        plot=hints,
        at=layers.names,
        centred=centred,
    )
