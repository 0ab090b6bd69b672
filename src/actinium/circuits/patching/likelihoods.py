"""Probabilities of the two answers of a pair, before and after an intervention, and the forms of its effect."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.task import Task

__all__ = ["FORMS", "LOGGED", "Reader", "as_effect", "check_likely", "check_pairs", "indirect_effect"]

FORMS = ("relative", "difference", "sum", "log", "single", "reduced")
"""Forms of an effect; the last two look at the answer r alone."""
LOGGED = ("relative", "single", "reduced")
"""Forms that are above -1, of which the logarithm of 1 + effect is taken."""
LEAST = math.log(1e-12)


def indirect_effect(p_r: Any, p_other: Any, new_r: Any, new_other: Any, effect: str = "relative") -> Tensor:
    """Effect of an intervention from the probabilities of the two results.

    Args:
        p_r, p_other: P(r) and P(r') without it, of any shape.
        new_r, new_other: P*(r) and P*(r') with it.
        effect: a form, see `causal_mediation`.

    Returns:
        effects in the shape of the probabilities, float64.

    Raises:
        InputError: numbers that are no probabilities, or one that the form divides by is below 1e-12.
        UnknownNameError: there is no such form.

    Source: Stolfo et al., 2023, section 3.
    """
    _check_form(effect)
    given = torch.broadcast_tensors(
        *(torch.as_tensor(value, dtype=torch.float64) for value in (p_r, p_other, new_r, new_other))
    )
    if any(not bool(((p >= 0) & (p <= 1)).all()) for p in given):
        raise InputError("probabilities are from 0 to 1")
    before, after = torch.stack(given[:2], -1).log(), torch.stack(given[2:], -1).log()
    check_likely(effect, before, after[None], "given")
    return as_effect(effect, before, after)


def _check_form(effect: str) -> None:
    if effect not in FORMS:
        raise UnknownNameError(unknown("form of an effect", str(effect), FORMS))


def check_pairs(task: Task, effect: str) -> bool:
    """Whether the pairs of a task have one result.

    Raises:
        InputError: some do and a form needs two.
        UnknownNameError: there is no such form.
    """
    _check_form(effect)
    same = task.answer_ids == task.wrong_ids
    if bool(same.any()) and effect not in ("single", "reduced"):
        raise InputError(
            f"{int(same.sum())} of {len(task)} pairs have the same result twice, and the form {effect!r} compares two; "
            "use effect='single' or 'reduced'"
        )
    return bool(same.any())


def as_effect(effect: str, before: Tensor, after: Tensor) -> Tensor:
    """A form of the effect.

    Args:
        effect: which.
        before, after: (..., 2 or more) log-probabilities of r and r' without and with the intervention, float64.

    Returns:
        (...) float64.
    """
    r, other, new_r, new_other = before[..., 0], before[..., 1], after[..., 0], after[..., 1]
    if effect == "relative":
        return 0.5 * (torch.expm1(new_other - other) + torch.expm1(r - new_r))
    if effect == "difference":
        return new_other.exp() - other.exp()
    if effect == "sum":
        return new_other.exp() - other.exp() + r.exp() - new_r.exp()
    if effect == "log":
        return 0.5 * ((new_other - other) + (r - new_r))
    if effect == "single":
        return (r.exp() - new_r.exp()).abs()
    return 0.5 * (torch.expm1(new_r - r) + torch.expm1(r - new_r))


def check_likely(effect: str, before: Tensor, after: Tensor, what: str) -> None:
    """Refuse to divide by probabilities that are nothing but rounding.

    Args:
        effect: the form.
        before: (row, 2 or more) log-probabilities without the intervention.
        after: (set, row, 2 or more), with it.
        what: which effect, for the message.

    Raises:
        InputError: there are any.
    """
    divisors = {"relative": [(before[..., 1], "P(r')"), (after[..., 0], "P*(r)")]}
    divisors["reduced"] = [(before[..., 0], "P(r)"), (after[..., 0], "P*(r)")]
    for values, name in divisors.get(effect, []):
        tiny = values < LEAST
        if bool(tiny.any()):
            raise InputError(
                f"the form {effect!r} divides by {name}, which is below 1e-12 in {int(tiny.sum())} of {tiny.numel()} "
                f"runs ({what} effect; least {float(values.min().exp()):.1g}); use effect='log'"
            )


class Reader:
    """Reads log-probabilities over the full vocabulary, and the prediction among chosen answers.

    Args:
        answer_ids, wrong_ids: (row,).
        among: (answer,) tokens that a prediction is one of.
    """

    def __init__(self, answer_ids: Tensor, wrong_ids: Tensor, among: Tensor) -> None:
        self.ids, self.among = torch.stack([answer_ids, wrong_ids], -1), among

    def __call__(self, logits: Tensor) -> Tensor:
        """(row, d_vocab) -> (row, 3): log P(r), log P(r') and the predicted token, float64; or with variants before."""
        if logits.ndim == 3:
            return torch.stack([self(one) for one in logits])
        logs = logits.double().log_softmax(-1)
        among = self.among.to(logs.device)
        said = among[logs[:, among].argmax(-1)].double()
        return torch.cat([logs.gather(-1, self.ids.to(logs.device)), said[:, None]], -1)
