"""Thresholds with gradients: steps whose derivative for the threshold is that of a narrow rectangle around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Jump", "Step"]


class Jump(torch.autograd.Function):
    """pre H(pre - theta), whose gradient for theta is that of a rectangle kernel.

    Source: Rajamanoharan et al., 2024 (Jumping Ahead), equations 9 to 12.
    """

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        """Pre-activations and thresholds of one shape; `to_input` gives pre-activations the kernel's gradient, too."""
        _keep(ctx, pre, theta, bandwidth, to_input)
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for the pre-activations and the thresholds."""
        (grad,) = grads
        pre, theta = ctx.saved_tensors
        kernel = _near(ctx, grad) * theta / ctx.bandwidth
        for_pre = grad * (pre > theta)
        return for_pre + kernel if ctx.to_input else for_pre, -kernel, None, None


class Step(torch.autograd.Function):
    """H(pre - theta), with the same kernel."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        """As of `Jump`."""
        _keep(ctx, pre, theta, bandwidth, to_input)
        return (pre > theta).to(pre)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for the pre-activations and the thresholds."""
        (grad,) = grads
        kernel = _near(ctx, grad) / ctx.bandwidth
        return kernel if ctx.to_input else None, -kernel, None, None


def _keep(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float, to_input: bool) -> None:
    ctx.save_for_backward(pre, theta)
    ctx.bandwidth, ctx.to_input = bandwidth, to_input


def _near(ctx: Any, grad: Tensor) -> Tensor:
    """The gradient where a pre-activation is within half a bandwidth of its threshold."""
    pre, theta = ctx.saved_tensors
    near: Tensor = ((pre - theta).abs() < ctx.bandwidth / 2).to(grad) * grad
    return near
