"""A trained model of one's own as a task: its activation functions are exchanged, and training goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.functions.comparison.comparison_tasks import ComparisonTask
from actinium.functions.exchange.replacement import find_activations, replace

__all__ = ["model_task"]


class _Logits(nn.Module):
    """A causal language model as a function of token ids."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, pos, d_vocab)."""
        return self.inner(input_ids=ids, use_cache=False).logits


def model_task(
    model: Model,
    texts: Sequence[str],
    old: str | type[nn.Module] | None = None,
    *,
    context: int = 64,
    test_share: float = 0.25,
    epochs: int = 1,
    batch_size: int = 8,
    rate: float = 1e-4,
) -> ComparisonTask:
    """A comparison in which copies of a trained causal language model go on training with other functions.

    With `epochs` of 1 and few texts the score says how well a function can take the old one's place; the old function
    itself, named first, is the reference.

    Args:
        model: a causal language model; it is not changed.
        texts: cut into windows of `context` tokens; the last share is held out.
        old: which functions are exchanged, as in `replace`; all if not given.
        context: tokens of a window, of the model's context at most.
        test_share: share of the windows that is held out.
        epochs, batch_size, rate: of training.

    Raises:
        InputError: the model is no causal language model or has nothing to exchange, or the texts are too few.
    """
    if model.kind != "causal-lm" or model.tokenizer is None:
        raise InputError(f"{model.name} is a {model.kind}; a causal language model with a tokenizer is needed")
    if not 0 < test_share < 1:
        raise InputError(f"the share that is held out lies between 0 and 1, got {test_share}")
    find_activations(model.module, old)
    length = min(context, model.context or context)
    tokenizer: Any = model.tokenizer
    ids = [i for text in texts for i in tokenizer(text)["input_ids"]]
    count = len(ids) // length
    held = max(1, round(count * test_share))
    if count - held < 1:
        raise InputError(f"the texts have {len(ids)} tokens; two windows of {length} are needed at least")
    rows = torch.tensor(ids[: count * length]).view(count, length).to(model.device)

    def build(activation: Callable[[], nn.Module]) -> nn.Module:
        inner = copy.deepcopy(model.module).train()
        replace(inner, old, activation)
        return _Logits(inner).to(model.device)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    train, test = rows[:-held], rows[-held:]
    return ComparisonTask(
        model.name, build, (train[:, :-1], train[:, 1:]), (test[:, :-1], test[:, 1:]), loss,
        lambda out, target: float(loss(out, target)), "cross-entropy (nats)", higher_is_better=False, epochs=epochs,
        batch_size=batch_size, rate=rate, continuous=False, facts={"model": model.fingerprint()},
    )  # fmt: skip
