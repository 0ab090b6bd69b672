"""Networks in evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating"]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode; each of its parts is in its own mode again afterwards, also after an error.

    `module.train(was)` does not do that: parts that were frozen in evaluation would begin to train.
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training
