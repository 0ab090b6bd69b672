"""The task head: classes from similarities by a penalised linear model, fitted to its optimum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError

__all__ = ["fit_linear_head"]


def fit_linear_head(
    scores: Tensor, labels: Tensor, n_classes: int, *, multilabel: bool = False, bias: bool = True, l2: float = 1e-4
) -> nn.Linear:
    """Minimise the mean cross-entropy + l2 / 2 * |W|^2 over linear maps of scores.

    Args:
        scores: (n, features).
        labels: classes (n,), or (n, n_classes) of 0 and 1 if `multilabel`.
        n_classes: classes.
        multilabel: several classes may hold at once; each has a cross-entropy of its own.
        bias: also fit a constant, which is not penalised.
        l2: strength of the penalty, above 0.

    Raises:
        InputError: labels that do not fit, or that are all the same.
    """
    if not l2 > 0:
        raise InputError(f"the penalty of the head must be above 0, got {l2}")
    shape = (len(scores), n_classes) if multilabel else (len(scores),)
    wanted = "0 or 1" if multilabel else f"classes from 0 to {n_classes - 1}"
    top = 1 if multilabel else n_classes - 1
    if labels.shape != shape or bool((labels < 0).any() | (labels > top).any() | (labels != labels.long()).any()):
        raise InputError(f"expected labels {shape}, {wanted}, got shape {tuple(labels.shape)}")
    if bool((labels == labels[:1]).all()):
        raise InputError("all images have the same label: there is nothing to tell apart")
    x = scores.detach().double()
    y = labels.to(x.device, torch.float64 if multilabel else torch.long)
    weight = torch.zeros(n_classes, x.shape[1], dtype=torch.float64, device=x.device, requires_grad=True)
    constant = torch.zeros(n_classes, dtype=torch.float64, device=x.device, requires_grad=bias)
    parameters = [weight, constant] if bias else [weight]
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )
    loss_of = nn.functional.binary_cross_entropy_with_logits if multilabel else nn.functional.cross_entropy

    def closure() -> Tensor:
        optimiser.zero_grad()
        # Summed over classes, as the cross-entropy of one class among several is.
        loss = loss_of(x @ weight.T + constant, y) * (n_classes if multilabel else 1)
        loss = loss + l2 / 2 * (weight**2).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    # Without the random start that would only move the generator.
    head = nn.utils.skip_init(nn.Linear, x.shape[1], n_classes, bias=bias, device=scores.device, dtype=scores.dtype)
    head.requires_grad_(False)
    head.weight.copy_(weight.detach())
    if bias:
        head.bias.copy_(constant.detach())
    return head
