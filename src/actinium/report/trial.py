"""One small forward pass before the work: that the model takes the input, and what a row costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import ActiniumError, InputError
from actinium.core.model import Model
from actinium.core.taps import first_tensor

__all__ = ["Cost", "trial"]


@dataclass(frozen=True)
class Cost:
    """What one row of the input costs.

    Attributes:
        operations: floating-point operations of the linear and convolutional maps.
        numbers: numbers that the modules put out.
        modules: paths of the modules without children that ran, in the order in which they did, with the number
            of times.
    """

    operations: float
    numbers: int
    modules: dict[str, int] = field(default_factory=dict)


def trial(model: Model, inputs: Any) -> Cost:
    """Run the model once on a few rows.

    Args:
        model: the model.
        inputs: what `record` takes.

    Returns:
        the cost of one row, counted from the outputs of the modules that hold weight matrices.

    Raises:
        InputError: the input does not fit the model; it says what the model objected to.
    """
    prepared = model.prepare(inputs)
    operations, numbers = 0.0, 0
    ran: Counter[str] = Counter()

    def count(path: str, module: nn.Module, output: Any) -> None:
        nonlocal operations, numbers
        value = first_tensor(output)
        if value is None:
            return
        ran[path] += 1
        numbers += value.numel()
        for weight in module.parameters(recurse=False):
            if weight.ndim >= 2 and not isinstance(module, nn.Embedding):
                operations += 2.0 * weight.numel() * _places(value, module, weight)

    with ExitStack() as stack:
        for path, module in model.module.named_modules():
            if path and not any(True for _ in module.children()):
                hook = partial(_called, count, path)
                stack.callback(module.register_forward_hook(hook).remove)
        try:
            with torch.no_grad():
                _, args, kwargs = next(prepared.batches(None, model.device))
                model.module(*args, **kwargs)
        except ActiniumError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise InputError(
                f"{model.name} does not take this input ({_shape(args, kwargs)}): {type(error).__name__}: {reason}"
            ) from error
    return Cost(operations / prepared.size, max(1, numbers // prepared.size), dict(ran))


def _called(count: Callable[..., None], path: str, module: nn.Module, args: Any, output: Any) -> None:
    count(path, module, output)


def _places(value: Tensor, module: nn.Module, weight: Tensor) -> float:
    """How often a weight is applied: outputs over output channels (Conv1D of GPT-2 keeps these last)."""
    return value.numel() / weight.shape[1 if type(module).__name__ == "Conv1D" else 0]


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    return f"shape {tuple(tensors[0].shape)}" if tensors else "no tensor"
