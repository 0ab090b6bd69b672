"""Whether a rule that fits noisy labels exactly still predicts well: benign, tempered or catastrophic overfitting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.estimator import Estimator
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_rows

__all__ = ["KernelInterpolator", "NoisyTask", "TwoClusters", "benign_overfitting_report"]

PAPER = "lazy-benign-overfitting"
# Relative to the mean of the diagonal; small beside the eigenvalues of kernels that can be inverted at all.
JITTER = 1e-10

Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class NoisyTask:
    """Two classes with labels of which some are flipped.

    Args:
        x: training inputs (n, d).
        y: their true labels (n,), -1 and 1.
        noisy: the labels to train on (n,).
        x_test, y_test: inputs (m, d) and true labels (m,) to judge by.
        bayes_error: smallest error that a rule can have on true labels.
    """

    x: Tensor
    y: Tensor
    noisy: Tensor
    x_test: Tensor
    y_test: Tensor
    bayes_error: float


class Draw(Protocol):
    """Draws a task in d dimensions with a share eta of flipped labels."""

    def __call__(self, d: int, eta: float, seed: int) -> NoisyTask: ...


@dataclass(frozen=True, kw_only=True)
class TwoClusters:
    """Two Gaussian clusters, x = y mu + N(0, I) with mu = separation e_1 and y = -1 or 1 at even odds.

    Scaling the inputs to unit length leaves sign(x_1), and with it the Bayes error, as it is.

    Args:
        n: training inputs.
        test: test inputs.
        separation: length of mu.
        normalize: bring the inputs to unit length.

    Raises:
        InputError: a number below 1, or a negative separation.

    Source: Zhu et al., 2023, section 3 (well-separated mixture with flipped labels).
    """

    n: int = 200
    test: int = 400
    separation: float = 6.0
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.n < 2 or self.test < 1 or self.separation < 0:
            raise InputError(f"expected n >= 2, test >= 1 and separation >= 0, got {self}")

    def __call__(self, d: int, eta: float, seed: int) -> NoisyTask:
        """Draw the task; round(eta n) labels are flipped.

        Raises:
            InputError: d below 1, or eta outside [0, 1/2).
        """
        from scipy.stats import norm

        if d < 1 or not 0 <= eta < 0.5:
            raise InputError(f"expected d >= 1 and 0 <= eta < 1/2, got d={d}, eta={eta}")
        random = torch.Generator().manual_seed(seed)
        parts = []
        for size in (self.n, self.test):
            y = torch.randint(0, 2, (size,), generator=random).double() * 2 - 1
            x = torch.randn(size, d, generator=random, dtype=torch.float64)
            x[:, 0] += self.separation * y
            parts += [x / x.norm(dim=1, keepdim=True) if self.normalize else x, y]
        x, y, x_test, y_test = parts
        noisy = y.clone()
        noisy[torch.randperm(self.n, generator=random)[: round(eta * self.n)]] *= -1
        bayes = float(norm.cdf(-self.separation))
        return NoisyTask(x=x, y=y, noisy=noisy, x_test=x_test, y_test=y_test, bayes_error=bayes)


class KernelInterpolator(Estimator):
    """f(x) = K(x, X) (K(X, X) + ridge I)^-1 y: for ridge 0, the function of least norm through all points.

    Args:
        kernel: (n1, d), (n2, d) -> (n1, n2), such as `analytic_ntk_relu`.
        ridge: added to the diagonal.

    Attributes:
        weights_: (n,) or (n, c), one for each training input.
        norm_: sqrt(y^T (K + ridge I)^-1 y), for ridge 0 the norm of f in the kernel's space; over all outputs.
        jitter_: what was added to the diagonal beyond the ridge so that it can be inverted.

    Source: Jacot et al., 2018, section 5 (training for infinite time is this regression).
    """

    fitted = "weights_"

    def __init__(self, kernel: Kernel, ridge: float = 0.0) -> None:
        self.kernel = kernel
        self.ridge = ridge

    def fit(self, X: Any, y: Any) -> Self:
        """Solve for the weights.

        Args:
            X: inputs (n, d).
            y: targets (n,) or (n, c).

        Raises:
            InputError: numbers differ, values are not finite, a negative ridge, or a kernel that has no inverse.
        """
        if self.ridge < 0:
            raise InputError(f"ridge is 0 or more, got {self.ridge}")
        x = as_rows(X, "X", flat=False, dtype=torch.float64)
        targets = torch.as_tensor(y).detach().double()
        if targets.ndim not in (1, 2) or len(targets) != len(x) or not bool(torch.isfinite(targets).all()):
            raise InputError(f"y: expected {len(x)} finite targets (n,) or (n, c), got shape {tuple(targets.shape)}")
        k = self.kernel(x, x).detach().double()
        self.jitter_ = JITTER * float(k.diagonal().mean()) if self.ridge == 0 else 0.0
        k = k + (self.ridge + self.jitter_) * torch.eye(len(x), dtype=k.dtype, device=k.device)
        factor, bad = torch.linalg.cholesky_ex(k)
        if int(bad):
            raise InputError("the kernel matrix has no inverse: inputs that are the same, or a kernel of low rank")
        columns = targets[:, None] if targets.ndim == 1 else targets
        solved = torch.cholesky_solve(columns, factor)
        self.X_ = x
        self.norm_ = float((columns * solved).sum().clamp(min=0).sqrt())
        self.weights_ = solved[:, 0] if targets.ndim == 1 else solved
        return self

    def predict(self, X: Any) -> Tensor:
        """Values (m,) or (m, c) at inputs (m, d); gradients go back to inputs that require them."""
        self.check_fitted()
        as_rows(X, "X", self.X_.shape[1], flat=False)
        return self.kernel(torch.as_tensor(X).double(), self.X_) @ self.weights_


Fit = Callable[[Tensor, Tensor], Any]


def benign_overfitting_report(
    fit: Fit,
    data: Draw,
    etas: Sequence[float],
    dims: Sequence[int],
    seeds: Sequence[int] = (0,),
    *,
    interpolates: float = 0.01,
    benign: float = 0.02,
    catastrophic: float = 0.5,
    progress: bool = False,
) -> Result:
    """Train on noisy labels, judge on true ones, and name what fitting the noise costs in each dimension.

    Kinds, of the means over the seeds: "does not interpolate": the largest training error is above `interpolates`;
    "benign": the largest excess error is at most `benign`; "catastrophic": it is at least `catastrophic` of the way
    from the Bayes error to chance, 1/2; "tempered": between the two.

    Args:
        fit: takes inputs (n, d) and labels (n,) of -1 and 1; gives an object whose `predict`, or a function that, maps
            inputs (m, d) to values (m,) or (m, 1) whose sign is the label. Its `norm_`, if it has one, is kept.
        data: draws a task for a dimension, a share of flipped labels and a seed.
        etas: shares of flipped labels, below 1/2.
        dims: dimensions.
        seeds: one task for each.
        interpolates, benign, catastrophic: bounds of the kinds.
        progress: show a progress bar.

    Returns:
        over eta and dim, as means over the seeds: `excess` (test_error - bayes_error), `train_error` (against the
        labels trained on), `test_error` (against true labels), `bayes_error`, `norm` (NaN where there is none);
        over dim: `kind`; over eta, dim and seed: `<name>_by_seed` of the first three and `norm`.

    Raises:
        InputError: nothing to do, labels of one class, or predictions that are not (m,) finite numbers.

    Source: Zhu et al., 2023; Mallinar et al., 2022, section 2 (the three kinds). The bounds are ours.
    """
    if not len(etas) or not len(dims) or not len(seeds):
        raise InputError("give one share, one dimension and one seed or more")
    names = ("excess", "train_error", "test_error", "norm")
    found = {name: np.zeros((len(etas), len(dims), len(seeds))) for name in (*names, "bayes_error")}
    places = [(i, j, k) for i in range(len(etas)) for j in range(len(dims)) for k in range(len(seeds))]
    for i, j, k in shown(places, "overfitting", progress):
        for name, value in _one(fit, data(dims[j], etas[i], seeds[k])).items():
            found[name][i, j, k] = value
    means = {name: values.mean(2) for name, values in found.items()}
    chance = catastrophic * (0.5 - means["bayes_error"])
    kinds = []
    for j in range(len(dims)):
        excess = means["excess"][:, j]
        if means["train_error"][:, j].max() > interpolates:
            kinds.append("does not interpolate")
        elif excess.max() <= benign:
            kinds.append("benign")
        else:
            kinds.append("catastrophic" if (excess >= chance[:, j]).any() else "tempered")
    values: dict[str, Any] = {name: (("eta", "dim"), means[name]) for name in (*names[:3], "bayes_error", "norm")}
    values["kind"] = ("dim", kinds)
    values |= {f"{name}_by_seed": (("eta", "dim", "seed"), found[name]) for name in names}
    coords = {"eta": list(etas), "dim": list(dims), "seed": list(seeds)}
    bounds = {"interpolates": interpolates, "benign": benign, "catastrophic": catastrophic}
    record = provenance(fit=fit, data=data, etas=list(etas), dims=list(dims), seeds=list(seeds), **bounds)
    hints = {"plot": {"variables": ["excess"], "x": "dim", "y": "eta"}}
    return Result(xr.Dataset(values, coords, hints), "benign_overfitting", PAPER, record)


def _one(fit: Fit, task: NoisyTask) -> dict[str, float]:
    if len(task.noisy.unique()) < 2:
        raise InputError("the training labels are of one class: there is nothing to tell apart")
    rule = fit(task.x, task.noisy)
    predict = getattr(rule, "predict", rule)
    train = _error(predict(task.x), task.noisy)
    test = _error(predict(task.x_test), task.y_test)
    return {
        "excess": test - task.bayes_error,
        "train_error": train,
        "test_error": test,
        "bayes_error": task.bayes_error,
        "norm": float(getattr(rule, "norm_", float("nan"))),
    }


def _error(values: Any, labels: Tensor) -> float:
    """Share of values without the sign of their label; zero has none."""
    got = torch.as_tensor(values).detach().double().cpu()
    got = got[:, 0] if got.ndim == 2 and got.shape[1] == 1 else got
    if got.shape != labels.shape or not bool(torch.isfinite(got).all()):
        raise InputError(f"predictions: expected {len(labels)} finite values, got shape {tuple(got.shape)}")
    return float((got * labels <= 0).double().mean())
