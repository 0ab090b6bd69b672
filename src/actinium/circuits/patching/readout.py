"""The read-out of the residual stream with the scale of the final norm held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from actinium.circuits.patching.norms import ScaleWatch
from actinium.core import replay
from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = ["held_readout", "without_cap"]


def without_cap(model: Model, logits: Tensor) -> Tensor:
    """Logits as they were before the model's soft cap, if it has one, in float32."""
    cap: Any = getattr(model.config, "final_logit_softcapping", None)
    return cap * torch.atanh(logits.float() / cap) if cap else logits.float()


def held_readout(model: Model, stream: Tensor, uncapped: bool = False) -> Callable[[Tensor], Tensor]:
    """Final norm and unembedding with the norm's scale held at that of a run.

    Args:
        model: the model.
        stream: (row, d_model) that enters the final norm.
        uncapped: undo the soft cap of the logits, so that they depend linearly on the stream (float32).

    Returns:
        A function from (..., row, d_model) to logits (..., row, d_vocab), biases included.

    Raises:
        InputError: the final norm computes its scale where it cannot be seen.
    """
    kept: list[Tensor] = []

    def keep(scale: Tensor) -> Tensor:
        kept.append(scale)
        return scale

    with torch.no_grad(), ScaleWatch(keep):
        replay.tail(model, stream)
    if not kept and model.has(f"{model.tower.prefix}final_norm"):
        raise InputError(f"the scale of the final norm of {model.name} cannot be seen from outside")

    def read(x: Tensor) -> Tensor:
        scales = iter(kept)
        with torch.no_grad(), ScaleWatch(lambda _: next(scales)):
            logits = replay.tail(model, x)
        return without_cap(model, logits) if uncapped else logits

    return read
