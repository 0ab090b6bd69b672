"""Uncertainty of a classifier from the probabilities of one network or of several, and its gradient in the input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import ActiniumWarning, InputError, UnknownNameError, unknown
from actinium.core.rows import as_examples
from actinium.signal.uncertainty_predictors import BayesLinear, MCDropoutPredictor

__all__ = ["METRICS", "UncertaintyMetrics", "entropy", "max_prob", "mutual_information", "variance"]

# Layers whose output in training mode depends on the batch or on chance.
LOOSE = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
# Normalisation by running statistics is affine, and pooling by the mean is linear.
AFFINE = (
    *(nn.Linear, BayesLinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Flatten, nn.Unflatten, nn.Identity),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, *LOOSE),
)
PIECEWISE = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Hardtanh, nn.Threshold, nn.MaxPool1d, nn.MaxPool2d)


def _log_softmax(logits: Tensor) -> Tensor:
    """log-softmax whose largest entry keeps its digits where it is near 0."""
    top = logits.argmax(-1, keepdim=True)
    below = logits - logits.gather(-1, top)
    return below - torch.log1p(below.exp().scatter(-1, top, 0.0).sum(-1, keepdim=True))


def _log_mean(log_p: Tensor) -> Tensor:
    """Logarithm of the mean probabilities (n, C) of members (K, n, C); the largest keeps its digits near 0."""
    mean = torch.logsumexp(log_p, 0) - math.log(len(log_p))
    top = mean.argmax(-1, keepdim=True)
    others = mean.exp().scatter(-1, top, 0.0).sum(-1, keepdim=True)
    return mean.scatter(-1, top, torch.log1p(-others))


def max_prob(log_p: Tensor) -> Tensor:
    """1 - max_c of the mean probability, from log probabilities (K, n, C): 0 where certain, at most 1 - 1/C.

    Summed over the other classes, so that it does not end at the rounding of 1.
    """
    mean = _log_mean(log_p)
    return mean.exp().scatter(-1, mean.argmax(-1, keepdim=True), 0.0).sum(-1)


def entropy(log_p: Tensor) -> Tensor:
    """Entropy of the mean probabilities in nats, from log probabilities (K, n, C): 0 to ln C."""
    mean = _log_mean(log_p)
    return (mean.exp() * -mean).sum(-1)


def variance(log_p: Tensor) -> Tensor:
    """Mean over classes of the variance over members (unbiased), from log probabilities (K, n, C)."""
    return log_p.exp().var(0, correction=1).mean(-1)


def mutual_information(log_p: Tensor) -> Tensor:
    """Entropy of the mean less the mean entropy, in nats, from log probabilities (K, n, C).

    Written as the mean divergence of members from their mean, which does not cancel where both entropies are near 0.
    """
    mean = _log_mean(log_p)
    return (log_p.exp() * (log_p - mean)).sum(-1).mean(0).clamp(min=0)


METRICS: dict[str, Callable[[Tensor], Tensor]] = {
    "max_prob": max_prob,
    "entropy": entropy,
    "variance": variance,
    "mutual_information": mutual_information,
}
"""Name -> uncertainty (n,) of log probabilities (K, n, C); higher is more uncertain."""
OF_SEVERAL = ("variance", "mutual_information")


class UncertaintyMetrics:
    """Scores of a classifier's uncertainty; higher is more uncertain in all of them.

    Probabilities are taken in float64 from log-softmax, so that they reach far below the rounding of 1. A single logit
    z per row is read as the two logits (0, z) of a sigmoid.

    Args:
        predict: from inputs (n, ...) to logits (n, C), or (K, n, C) of K members; a module, or a predictor such as
            `EnsemblePredictor`.
        base: of the logarithms of entropy and mutual information.

    Raises:
        InputError: `predict` cannot be called, is a module with normalisation or dropout in training mode, or `base` is
            not above 1.

    Source: Ulmer and Cina, 2021, section 3 (metrics), with the mutual information of Depeweg et al., 2018.
    """

    def __init__(self, predict: Callable[[Tensor], Tensor], base: float = math.e) -> None:
        if not callable(predict):
            raise InputError(f"expected a function from inputs to logits, not {type(predict).__name__}")
        if not base > 1:
            raise InputError(f"the base of a logarithm is above 1, not {base}")
        _check_modes(predict)
        self.predict, self.base = predict, base

    def log_probabilities(self, x: Any) -> Tensor:
        """(K, n, C) in float64, with graph where x needs gradients.

        Raises:
            InputError: inputs that are no examples or not finite, logits of another shape, or not finite.
        """
        given = x if isinstance(x, Tensor) and x.requires_grad else as_examples(x, "inputs")
        logits = self.predict(given)
        if not isinstance(logits, Tensor) or logits.ndim not in (2, 3) or logits.shape[-2] != len(given):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"expected logits (n, C) or (K, n, C) for {len(given)} inputs, got {shape}")
        if not bool(logits.isfinite().all()):
            raise InputError("the logits hold NaN or infinite values")
        logits = logits.double() if logits.ndim == 3 else logits.double()[None]
        if logits.shape[-1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], -1)
        return _log_softmax(logits)

    def score(self, name: str, x: Any) -> Tensor:
        """One of "max_prob", "entropy", "variance" and "mutual_information" of each input, (n,) float64.

        Raises:
            UnknownNameError: there is no such metric.
            InputError: as `log_probabilities`; or one member only, for the two that compare members.
        """
        return self.of(name, self.log_probabilities(x))

    def of(self, name: str, log_p: Tensor) -> Tensor:
        """The same from log probabilities (K, n, C)."""
        if name not in METRICS:
            raise UnknownNameError(unknown("metric", name, METRICS))
        if name in OF_SEVERAL and len(log_p) < 2:
            raise InputError(f"{name} compares members: it needs two or more, this classifier gives one")
        scale = math.log(self.base) if name in ("entropy", "mutual_information") else 1.0
        return METRICS[name](log_p) / scale

    def max_prob(self, x: Any) -> Tensor:
        """1 - the largest mean probability, (n,)."""
        return self.score("max_prob", x)

    def entropy(self, x: Any) -> Tensor:
        """Entropy of the mean probabilities, (n,)."""
        return self.score("entropy", x)

    def variance(self, x: Any) -> Tensor:
        """Mean over classes of the variance over members, (n,)."""
        return self.score("variance", x)

    def mutual_information(self, x: Any) -> Tensor:
        """Entropy of the mean less the mean entropy of members, (n,)."""
        return self.score("mutual_information", x)

    def gradient_norm(self, name: str, x: Any) -> Tensor:
        """Euclidean norm of the score's gradient in each input, (n,) float64.

        Raises:
            UnknownNameError, InputError: as `score`; or the classifier has no gradient.
        """
        given = as_examples(x, "inputs").clone().requires_grad_()
        with torch.enable_grad():
            score = self.score(name, given)
            if not score.requires_grad:
                raise InputError("the classifier's logits have no gradient in its inputs")
            (gradient,) = torch.autograd.grad(score.sum(), given)
        return gradient.double().flatten(1).norm(dim=1)


def _check_modes(predict: Any) -> None:
    """Refuse a module whose output depends on the batch or on chance."""
    if not isinstance(predict, nn.Module):
        return
    # Its own predictor puts a network with dropout into evaluation mode.
    kept = {m for p in predict.modules() if isinstance(p, MCDropoutPredictor) for m in p.module.modules()}
    loose = [n for n, m in predict.named_modules() if m.training and isinstance(m, LOOSE) and m not in kept]
    if loose:
        raise InputError(
            f"{loose[0] or type(predict).__name__} is in training mode: scores would depend on the batch or on chance; "
            "call .eval(), or use MCDropoutPredictor"
        )


def warn_unless_piecewise(predict: Any) -> None:
    """Say so where a module has parts that are not piecewise affine: limits along rays are then seen, not proven."""
    if not isinstance(predict, nn.Module):
        return
    leaves = {type(m) for m in predict.modules() if next(m.children(), None) is None}
    other = sorted(kind.__name__ for kind in leaves if not issubclass(kind, AFFINE + PIECEWISE))
    if other:
        warnings.warn(
            f"not known to be piecewise affine: {', '.join(other)}; what is measured holds for these radii only",
            ActiniumWarning,
            stacklevel=3,
        )
