"""A network cut into sections, from the activations at one place to those at the next; biases become an input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core import replay, taps
from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = ["Section", "block_sections", "sections_of", "with_constant"]

FOLDABLE = ("Linear", "Conv1D", "LayerNorm")
"""Modules whose output is a sum of something and their bias, along the last dimension."""


class Section:
    """From activations (n, ..., d) to the next ones (n, ..., d'), as a function of them and of a constant.

    The constant (n, ..., 1) multiplies every bias, so that a piecewise linear section is homogeneous in both.

    Args:
        function: a module or function of the activations alone.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        if not callable(function):
            raise InputError(f"a section is a module or a function, not {type(function).__name__}")
        self.function = function

    @property
    def folds(self) -> bool:
        """Whether its biases are known and can be multiplied."""
        if not isinstance(self.function, nn.Module):
            return False
        return all(
            type(m).__name__ in FOLDABLE
            for m in self.function.modules()
            if getattr(m, "bias", None) is not None or getattr(m, "running_mean", None) is not None
        )

    def __call__(self, f: Tensor, constant: Tensor | None = None) -> Tensor:
        """The next activations; with a constant its biases are multiplied by it."""
        with self._scaled(constant):
            out = taps.first_tensor(self.function(f))
        if out is None or len(out) != len(f):
            raise InputError("a section gives one row of activations for each it is given")
        return out

    @contextmanager
    def _scaled(self, constant: Tensor | None) -> Iterator[None]:
        handles = []
        if constant is not None and isinstance(self.function, nn.Module):

            def scale(module: Any, args: Any, output: Tensor) -> Tensor:
                return output + (constant - 1) * module.bias

            for module in self.function.modules():
                if type(module).__name__ in FOLDABLE and isinstance(getattr(module, "bias", None), Tensor):
                    handles.append(module.register_forward_hook(scale))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def with_constant(f: Tensor) -> Tensor:
    """(n, ..., d) -> (n, ..., d + 1), a 1 appended."""
    return torch.cat([f, torch.ones_like(f[..., :1])], -1)


def sections_of(network: Any) -> list[Section]:
    """The sections of an `nn.Sequential` or of a list of modules and functions.

    Raises:
        InputError: it is neither, or empty.
    """
    if isinstance(network, nn.Sequential) or (isinstance(network, Sequence) and not isinstance(network, str)):
        found = [part if isinstance(part, Section) else Section(part) for part in network]
        if found:
            return found
    raise InputError(
        "expected sections in their order: an nn.Sequential, a list of modules or functions, or block_sections(model, "
        "inputs) for a transformer"
    )


def block_sections(model: Model, inputs: Any) -> tuple[list[Section], Tensor]:
    """Every block of a decoder as a section of the residual stream, and the unembedding of the last position as one.

    Args:
        model: a decoder whose blocks are known.
        inputs: texts or tokens of one length; the sections hold for them (masks and positions are theirs).

    Returns:
        The sections, and the stream that enters the first: (n, pos, d_model).

    Raises:
        InputError: the texts differ in length, or the model is no decoder whose blocks are known.
    """
    ready = model.prepare(inputs)
    if ready.tokens is None or not bool(ready.tokens.mask.all()):
        raise InputError("sections of blocks need tokens, of texts of one length")
    if model.kind != "causal-lm" or len(model.anatomy.towers) != 1:
        raise InputError(f"{model.name} is no decoder of one stack of blocks")
    n = ready.tokens.ids.shape[1]
    with torch.no_grad():
        base = replay.record_base(model, ready, torch.full((ready.size, 1), n - 1))

    def block(layer: int) -> Callable[[Tensor], Any]:
        args, kwargs = base.calls[layer]
        return lambda f: model.tower.blocks[layer](f, *args, **kwargs)

    def end(f: Tensor) -> Tensor:
        return replay.tail(model, f[:, -1:])

    return [*(Section(block(i)) for i in range(len(model.tower.blocks))), Section(end)], base.hidden[0].detach()
