"""Metrics of the logits at the last position: one number per prompt, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch

from actinium.core.errors import InputError, UnknownNameError, unknown

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METRICS", "Metric", "accuracy", "get_metric", "kl", "logit_diff", "logprob", "prob", "rank"]


class Metric(Protocol):
    """What a metric is called with: logits (batch, d_vocab), token ids (batch,), and gives (batch,)."""

    def __call__(
        self, logits: Tensor, answer_ids: Tensor, wrong_ids: Tensor, reference_logits: Tensor | None = None
    ) -> Tensor:
        """Measure each row of the logits."""
        ...


def _checked(logits: Tensor, *ids: Tensor) -> Tensor:
    if logits.ndim != 2:
        raise InputError(f"logits must have the shape (batch, d_vocab), got {tuple(logits.shape)}")
    for given in ids:
        if given.shape != logits.shape[:1]:
            raise InputError(
                f"one token id per row is needed: logits have {logits.shape[0]} rows, "
                f"ids the shape {tuple(given.shape)}"
            )
    return logits.float()


def _at(values: Tensor, ids: Tensor) -> Tensor:
    return values.gather(-1, ids.to(values.device).unsqueeze(-1)).squeeze(-1)


def logit_diff(logits: Tensor, answer_ids: Tensor, wrong_ids: Tensor, reference_logits: Tensor | None = None) -> Tensor:
    """Logit of the answer minus logit of the wrong answer.

    Args:
        logits: (batch, d_vocab), at the last position.
        answer_ids: right tokens (batch,).
        wrong_ids: wrong tokens (batch,).
        reference_logits: not used.

    Returns:
        (batch,) float32.

    Raises:
        InputError: shapes do not fit.

    Source: Zhang and Nanda, 2023, section 2.
    """
    values = _checked(logits, answer_ids, wrong_ids)
    return _at(values, answer_ids) - _at(values, wrong_ids)


def logprob(logits: Tensor, answer_ids: Tensor, wrong_ids: Tensor, reference_logits: Tensor | None = None) -> Tensor:
    """Log probability of the answer, in nats.

    Args:
        logits: (batch, d_vocab), at the last position.
        answer_ids: right tokens (batch,).
        wrong_ids: not used.
        reference_logits: not used.

    Returns:
        (batch,) float32, at most 0.

    Raises:
        InputError: shapes do not fit.

    Source: Heimersheim and Nanda, 2024.
    """
    return _at(torch.log_softmax(_checked(logits, answer_ids), dim=-1), answer_ids)


def prob(logits: Tensor, answer_ids: Tensor, wrong_ids: Tensor, reference_logits: Tensor | None = None) -> Tensor:
    """Probability of the answer.

    Args:
        logits: (batch, d_vocab), at the last position.
        answer_ids: right tokens (batch,).
        wrong_ids: not used.
        reference_logits: not used.

    Returns:
        (batch,) float32, between 0 and 1.

    Raises:
        InputError: shapes do not fit.

    Source: Zhang and Nanda, 2023, section 2.
    """
    return logprob(logits, answer_ids, wrong_ids).exp()


def kl(logits: Tensor, answer_ids: Tensor, wrong_ids: Tensor, reference_logits: Tensor | None = None) -> Tensor:
    """Divergence KL(reference || logits) over the whole vocabulary, in nats.

    Args:
        logits: (batch, d_vocab), at the last position.
        answer_ids: not used.
        wrong_ids: not used.
        reference_logits: logits of the reference run (batch, d_vocab), usually the clean one.

    Returns:
        (batch,) float32, at least 0 up to rounding.

    Raises:
        InputError: no reference is given, or shapes do not fit.

    Source: Zhang and Nanda, 2023, section 2.
    """
    if reference_logits is None:
        raise InputError("the metric 'kl' compares with a reference: pass reference_logits (batch, d_vocab)")
    values = _checked(logits)
    if reference_logits.shape != logits.shape:
        raise InputError(
            f"reference logits have the shape {tuple(reference_logits.shape)}, logits {tuple(logits.shape)}"
        )
    reference = torch.log_softmax(reference_logits.float().to(values.device), dim=-1)
    terms = reference.exp() * (reference - torch.log_softmax(values, dim=-1))
    # A token that is impossible in the reference run adds nothing, though 0 * inf would say nan.
    return torch.where(reference.isneginf(), 0.0, terms).sum(-1)


def rank(logits: Tensor, answer_ids: Tensor, wrong_ids: Tensor, reference_logits: Tensor | None = None) -> Tensor:
    """Number of tokens whose logit is higher than the answer's (0 is the top).

    Args:
        logits: (batch, d_vocab), at the last position.
        answer_ids: right tokens (batch,).
        wrong_ids: not used.
        reference_logits: not used.

    Returns:
        (batch,) float32, whole numbers.

    Raises:
        InputError: shapes do not fit.

    Source: Heimersheim and Nanda, 2024.
    """
    values = _checked(logits, answer_ids)
    return (values > _at(values, answer_ids).unsqueeze(-1)).sum(-1).float()


def accuracy(logits: Tensor, answer_ids: Tensor, wrong_ids: Tensor, reference_logits: Tensor | None = None) -> Tensor:
    """1 where no token has a higher logit than the answer, else 0.

    Args:
        logits: (batch, d_vocab), at the last position.
        answer_ids: right tokens (batch,).
        wrong_ids: not used.
        reference_logits: not used.

    Returns:
        (batch,) float32, each 0 or 1.

    Raises:
        InputError: shapes do not fit.

    Source: Heimersheim and Nanda, 2024.
    """
    return (rank(logits, answer_ids, wrong_ids) == 0).float()


METRICS: dict[str, Metric] = {
    "logit_diff": logit_diff,
    "prob": prob,
    "logprob": logprob,
    "kl": kl,
    "rank": rank,
    "accuracy": accuracy,
}
"""Name -> metric."""


def get_metric(metric: str | Metric | Callable[..., Tensor]) -> Metric:
    """The metric of a name; a callable is handed back.

    Args:
        metric: a key of `METRICS`, or a function of (logits, answer_ids, wrong_ids, reference_logits).

    Returns:
        The metric.

    Raises:
        UnknownNameError: there is no such name.
    """
    if callable(metric):
        return metric
    if metric not in METRICS:
        raise UnknownNameError(unknown("metric", metric, METRICS))
    return METRICS[metric]
