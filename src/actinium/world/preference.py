"""Tuning a language model on preferences (DPO): the better of two continuations becomes likelier than the worse."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actinium.core.errors import InputError

__all__ = ["continuation_logprob", "dpo", "dpo_loss"]


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float = 0.1
) -> Tensor:
    """-log sigmoid(beta [(log pi(y+) - log ref(y+)) - (log pi(y-) - log ref(y-))]), mean over pairs.

    Args:
        chosen, rejected: log probability (pair,) of the two continuations under the model that is tuned.
        reference_chosen, reference_rejected: under the one it started from.
        beta: how strongly to stay with the reference, above 0.

    Raises:
        InputError: `beta` is not above 0.

    Source: Rafailov et al., 2023, equation 7.
    """
    if not beta > 0:
        raise InputError(f"beta must be above 0, not {beta}")
    return -F.logsigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected))).mean()


def continuation_logprob(module: nn.Module, prompts: Tensor, continuations: Tensor) -> Tensor:
    """Log probability (pair,) of continuations (pair, k) after prompts (pair, pos), in nats."""
    ids = torch.cat([prompts, continuations], 1)
    output: Any = module(ids)
    logits = output.logits[:, prompts.shape[1] - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(-1, continuations[..., None]).squeeze(-1).sum(1)


def dpo(
    module: nn.Module,
    prompts: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    *,
    steps: int = 200,
    batch_size: int = 32,
    beta: float = 0.1,
    rate: float = 1e-4,
    seed: int = 0,
) -> nn.Module:
    """A copy of a language model tuned on preferences; the module itself stays as it is.

    Args:
        module: from ids (batch, pos) to an output with logits.
        prompts: (pair, pos) ids.
        chosen, rejected: continuations (pair, k) ids.
        steps: of RMSprop.
        batch_size: pairs in each.
        beta: see `dpo_loss`.
        rate: learning rate, reached after a tenth of the steps.
        seed: of the order.

    Raises:
        InputError: shapes do not fit, or there is no step.

    Source: Rafailov et al., 2023; Li et al., 2024, appendix on training.
    """
    if len(prompts) != len(chosen) or chosen.shape != rejected.shape or not len(prompts) or steps < 1:
        raise InputError(
            f"expected prompts and two continuations of one length for each: {tuple(prompts.shape)}, "
            f"{tuple(chosen.shape)}, {tuple(rejected.shape)}, and a step"
        )
    tuned = copy.deepcopy(module).train()
    optimiser = torch.optim.RMSprop(tuned.parameters(), lr=rate)
    random = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randint(len(prompts), (min(batch_size, len(prompts)),), generator=random)
        pair = prompts[rows], chosen[rows], rejected[rows]
        with torch.no_grad():
            reference = [continuation_logprob(module, pair[0], y) for y in pair[1:]]
        own = [continuation_logprob(tuned, pair[0], y) for y in pair[1:]]
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / max(1, steps // 10))
        optimiser.zero_grad(set_to_none=True)
        dpo_loss(*own, *reference, beta=beta).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(tuned.parameters(), 10.0)
        optimiser.step()
    return tuned.eval()
