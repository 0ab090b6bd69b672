"""Attribution maps of a classifier: integrated gradients, saliency and gradient times input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model

__all__ = ["METHODS", "attribution_map", "integrated_gradients", "refuse_batch_statistics", "scores_of"]

METHODS = ("ig", "saliency", "gradient", "gradxinput")
# Inputs in one pass of the integral.
CHUNK = 4096

Classifier = nn.Module | Model | Callable[[Tensor], Tensor]


def scores_of(model: Classifier, x: Tensor) -> Tensor:
    """(batch, class) scores of inputs (batch, ...).

    Raises:
        InputError: the model's output has no logits of that shape.
    """
    output = (model.module if isinstance(model, Model) else model)(x)
    value = getattr(output, "logits", output)
    if not isinstance(value, Tensor) or value.ndim != 2 or len(value) != len(x):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"a classifier gives (batch, class) scores, not {got}")
    return value


def _gradient(model: Classifier, x: Tensor, y: Tensor, graph: bool) -> Tensor:
    """Gradient of the score of class `y` with respect to the input."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    with torch.enable_grad():
        picked = scores_of(model, x).gather(1, y[:, None]).sum()
        if not picked.requires_grad:
            raise InputError("the scores do not depend on the input by differentiable steps")
        (found,) = torch.autograd.grad(picked, x, create_graph=graph)
    return found


def integrated_gradients(
    model: Classifier, x: Tensor, y: Tensor, *, steps: int = 50, baseline: float | Tensor = 0.0, graph: bool = False
) -> Tensor:
    """Integrated gradients of the score of a class, at the midpoints of equal pieces of the line from the baseline.

    Args:
        model: from inputs (batch, ...) to scores (batch, class).
        x: inputs (batch, ...).
        y: classes (batch,) int64.
        steps: pieces.
        baseline: a number, or a tensor that broadcasts to `x`.
        graph: keep the graph, to train through the maps.

    Returns:
        As `x`.

    Raises:
        InputError: shapes do not fit, there is no step, or the model is not differentiable.

    Source: Sundararajan et al., 2017, equation 3.
    """
    _check(x, y)
    if steps < 1:
        raise InputError(f"steps must be at least 1, not {steps}")
    start = torch.as_tensor(baseline, dtype=x.dtype, device=x.device).expand_as(x)
    shares = (torch.arange(steps, dtype=x.dtype, device=x.device) + 0.5) / steps
    total = torch.zeros_like(x)
    for part in shares.split(max(1, CHUNK // len(x))):
        points = start + part.view(-1, *[1] * x.ndim) * (x - start)
        flat = points.flatten(0, 1)
        total = total + _gradient(model, flat, y.repeat(len(part)), graph).view_as(points).sum(0)
    return (x - start) * total / steps


def attribution_map(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    method: str = "ig",
    *,
    steps: int = 50,
    baseline: float | Tensor = 0.0,
    graph: bool = False,
) -> Tensor:
    """Attribution of the score of class `y` to every entry of the input.

    Args:
        model, x, y, steps, baseline, graph: as in `integrated_gradients`.
        method: "ig", "saliency" (size of the gradient), "gradient" or "gradxinput".

    Returns:
        As `x`.

    Raises:
        UnknownNameError: there is no such method.
        InputError: as `integrated_gradients`.
    """
    if method not in METHODS:
        raise UnknownNameError(unknown("attribution method", method, METHODS))
    if method == "ig":
        return integrated_gradients(model, x, y, steps=steps, baseline=baseline, graph=graph)
    _check(x, y)
    found = _gradient(model, x, y, graph)
    return found.abs() if method == "saliency" else found * x if method == "gradxinput" else found


def _check(x: Tensor, y: Tensor) -> None:
    if not x.is_floating_point() or x.ndim < 2 or not len(x):
        raise InputError(f"inputs are floating-point tensors (batch, ...), not {tuple(x.shape)} {x.dtype}")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise InputError(f"one class is needed for each of {len(x)} inputs, not {tuple(y.shape)} {y.dtype}")


def refuse_batch_statistics(model: Classifier) -> None:
    """Refuse a model whose answer for one input depends on the others in the batch.

    Raises:
        InputError: it is in training mode and normalises by batch statistics.
    """
    module = model.module if isinstance(model, Model) else model
    if not isinstance(module, nn.Module):
        return
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            raise InputError(f"{name} normalises by the batch in training mode; call eval() before the audit")
