"""Logistic regressions on recorded activations: the published one, and one that converges."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.intervals import area_under_roc
from actinium.core.progress import shown

__all__ = ["adam_logistic", "cross_validated_area", "ridge_logistic"]

Floats = NDArray[np.float64]


def adam_logistic(
    x: Tensor,
    y: Tensor,
    *,
    lr: float = 1e-3,
    weight_decay: float = 1e-3,
    epochs: int = 5000,
    seed: int = 1234,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Logistic regressions by Adam on the whole set, one for each site, from `nn.Linear`'s random start.

    They are not converged: the weights depend on the start and on the number of steps, which therefore are part of the
    method. The L2 term enters the gradient, for the bias as well.

    Args:
        x: (site, n, f) or (n, f) activations.
        y: (n,) of 0 and 1.
        lr, weight_decay, epochs: of `torch.optim.Adam`.
        seed: of the order of the rows and, after it, of the start; each site begins from this seed.
        progress: show a progress bar.

    Returns:
        Weights (site, f) or (f,) and biases (site,) or ().

    Source: Wu et al., 2026, NeuroStrike (released probe).
    """
    single = x.ndim == 2
    rows, sites, width = x[None] if single else x, 1 if single else len(x), x.shape[-1]
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(rows.shape[1], generator=random)
    bound = 1 / math.sqrt(width)
    start = (torch.rand(width + 1, generator=random) * 2 - 1) * bound
    rows, wanted = rows[:, order.to(x.device)].float(), y.to(x.device)[order.to(x.device)].float()
    theta = start.to(rows).expand(sites, -1).clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=lr, weight_decay=weight_decay)
    steps = shown(range(epochs), "probe", progress)
    columns = rows.transpose(1, 2).contiguous()
    for _ in steps:
        with torch.no_grad():
            # One row times a matrix: several times faster here than a matrix times one column.
            logits = torch.bmm(theta[:, None, :-1], columns)[:, 0] + theta[:, -1:]
            gap = (logits.sigmoid() - wanted) / rows.shape[1]
            theta.grad = torch.cat([torch.bmm(gap[:, None], rows)[:, 0], gap.sum(1, keepdim=True)], 1)
        optimiser.step()
    found = theta.detach()
    return (found[0, :-1], found[0, -1]) if single else (found[:, :-1], found[:, -1])


def ridge_logistic(x: Tensor | Floats, y: Tensor | Floats, ridge: float = 1e-2) -> tuple[Floats, float]:
    """The minimum of mean log loss + ridge/2 |w|^2 on features of standard deviation 1; the bias is free.

    Args:
        x: (n, f) activations.
        y: (n,) of 0 and 1.
        ridge: strength of the penalty, above 0.

    Returns:
        Weights (f,) for the standardised features and, with the bias, scores of them: see `standardised`.

    Raises:
        InputError: the penalty is not above 0.
    """
    if not ridge > 0:
        raise InputError(f"ridge must be above 0, got {ridge}: without it separable classes have no minimum")
    rows, wanted = standardised(np.asarray(x, np.float64)), np.asarray(y, np.float64)

    def loss(theta: Floats) -> tuple[float, Floats]:
        logits = rows @ theta[:-1] + theta[-1]
        value = np.logaddexp(0, logits).mean() - (wanted * logits).mean() + ridge / 2 * (theta[:-1] ** 2).sum()
        gap = (_sigmoid(logits) - wanted) / len(rows)
        return value, np.append(rows.T @ gap + ridge * theta[:-1], gap.sum())

    found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return found.x[:-1], float(found.x[-1])


def _sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(x / 2))


def standardised(x: Floats, reference: Floats | None = None) -> Floats:
    """Columns with the mean and population standard deviation of the reference taken out; constant ones become 0."""
    known = x if reference is None else reference
    spread = known.std(0)
    return (x - known.mean(0)) / np.where(spread > 1e-12 * (1 + np.abs(known).max(0)), spread, np.inf)


def cross_validated_area(x: Floats, y: Floats, groups: Floats, folds: int = 5, ridge: float = 1e-2) -> float:
    """Area under the ROC curve of `ridge_logistic` on rows it has not seen, mean over folds of whole groups.

    Args:
        x: (n, f). y: (n,) of 0 and 1. groups: (n,) numbers of groups that are not split.
        folds: at most the number of groups.
        ridge: strength of the penalty.
    """
    known = np.unique(groups)
    part = {group: i % min(folds, len(known)) for i, group in enumerate(known)}
    fold = np.array([part[group] for group in groups])
    areas = []
    for i in range(min(folds, len(known))):
        train, test = fold != i, fold == i
        w, _ = ridge_logistic(x[train], y[train], ridge)
        areas.append(area_under_roc(standardised(x[test], x[train]) @ w, y[test]))
    return float(np.mean(areas))
