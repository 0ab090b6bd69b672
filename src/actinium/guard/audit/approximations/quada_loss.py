"""QuadA: preferences are learnt under the noise of approximations, and guarded prompts are pulled together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.inputs import Tokens, pad
from actinium.core.model import Model
from actinium.guard.audit.approximations.activation_perturbation import ActivationPerturbation
from actinium.world.preference import dpo_loss

__all__ = ["Preference", "QuadALoss", "answer_span", "mean_cosine", "span_logprob"]

Preference: TypeAlias = tuple[str, str, str]
"""A prompt, the reply that is wanted, and one that is not; replies as they continue the prompt."""


def answer_span(chosen: Sequence[int], rejected: Sequence[int]) -> int:
    """Index of the first token in which two sequences differ (the length of the shorter one where it is a beginning).

    Raises:
        InputError: they are identical, or differ in the first token, which nothing predicts.
    """
    if list(chosen) == list(rejected):
        raise InputError("the chosen and the rejected reply are identical")
    first = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    k = min(len(chosen), len(rejected)) if first is None else first
    if k == 0:
        raise InputError("the two sequences differ in their first token, which no token predicts")
    return k


def span_logprob(logits: Tensor, ids: Tensor, first: Tensor, last: Tensor, legacy: bool = False) -> Tensor:
    """Log probability (row,) of tokens first to last of each row, in nats.

    Args:
        logits: (row, pos, vocab), padding on the right.
        ids: (row, pos).
        first, last: (row,) indices, both included; last is that of the row's last real token.
        legacy: the sum of the released loss, over tokens first + 1 to last + 1 (as far as there are columns): it skips
            the first token that differs and, where there is padding, takes in one padding token.

    Source: Zhang et al., 2025, QuadA (released trainer, for the legacy form).
    """
    shifted = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    # The log probability of token j stands at j - 1.
    column = torch.arange(shifted.shape[1], device=ids.device)[None]
    low, high = (first, last + 1) if legacy else (first - 1, last)
    wanted = (column >= low[:, None]) & (column < high[:, None])
    return torch.where(wanted, shifted, 0.0).sum(1)


def mean_cosine(states: Tensor) -> Tensor:
    """Mean cosine similarity over all pairs of different rows (n, d).

    Raises:
        InputError: fewer than two rows.
    """
    if len(states) < 2:
        raise InputError("the cosine of guarded prompts needs two of them or more in a batch")
    unit = nn.functional.normalize(states, dim=-1)
    n = len(unit)
    return (unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1))


class QuadALoss:
    """The objective of QuadA for a batch of preferences and of guarded prompts.

    Its first term is -log sigmoid(beta log[pi(y+|x) / pi0(y+|x)] - beta log[pi(y-|x) / pi0(y-|x)]), mean over
    pairs, with pi under fresh noise and the reference pi0 without any. From it lambda times the mean cosine of guarded
    prompts after the first block, under noise too, is subtracted. Only guarded prompts may be pulled together: all
    prompts alike would collapse the states.

    Args:
        policy: the model in training.
        reference: a frozen copy of it, which shares no parameter with it.
        beta: of the preferences, above 0.
        lambda_: weight of the cosine, from 0.
        perturbation: the noise in the policy; None for plain preferences.
        legacy_span: the released sum of log probabilities; see `span_logprob`.
        pool: "mean" over tokens of a prompt, or "last".
        seed: of the noise, which goes on from call to call.

    Raises:
        InputError: the reference has parameters that learn or that are the policy's, or settings are out of range.

    Source: Zhang et al., 2025, QuadA, training objective.
    """

    def __init__(
        self,
        policy: Model,
        reference: Model,
        beta: float = 0.1,
        lambda_: float = 0.1,
        perturbation: ActivationPerturbation | None = None,
        *,
        legacy_span: bool = False,
        pool: str = "mean",
        seed: int = 0,
    ) -> None:
        if not beta > 0 or not lambda_ >= 0 or pool not in ("mean", "last"):
            raise InputError("expected beta above 0, lambda_ from 0, and pool 'mean' or 'last'")
        if any(p.requires_grad for p in reference.module.parameters()):
            raise InputError("the reference is not frozen: copy the model and call requires_grad_(False) on it")
        own = {id(p) for p in policy.module.parameters()}
        if policy.module is reference.module or any(id(p) in own for p in reference.module.parameters()):
            raise InputError("policy and reference share parameters, so the reference would see noise and change")
        if reference.module.training:
            raise InputError("the reference is in training mode; call eval() on it")
        if perturbation is not None:
            perturbation.names(policy)
        self.policy, self.reference, self.beta, self.lambda_ = policy, reference, beta, lambda_
        self.perturbation, self.legacy_span, self.pool = perturbation, legacy_span, pool
        self.random = torch.Generator().manual_seed(seed)

    def _noise(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.perturbation is None else self.perturbation.on(self.policy, self.random)

    def tokens(self, preferences: Sequence[Preference]) -> tuple[Tokens, Tensor, Tensor]:
        """Ids of chosen then rejected sequences, and the first and last index (2 n,) of what is summed.

        Raises:
            InputError: no preferences, identical replies, or a sequence that is longer than the context.
        """
        if not len(preferences):
            raise InputError("no preferences given")
        tokenizer = self.policy.tokenizer
        texts = [
            [prompt + reply for prompt, reply, _ in preferences],
            [prompt + reply for prompt, _, reply in preferences],
        ]
        rows = [[list(ids) for ids in tokenizer(side, verbose=False)["input_ids"]] for side in texts]
        starts = [answer_span(*pair) for pair in zip(*rows, strict=True)]
        flat = rows[0] + rows[1]
        if self.policy.context is not None and max(map(len, flat)) > self.policy.context:
            raise InputError(f"a prompt with its reply is longer than the context of {self.policy.context} tokens")
        ids, mask = pad(flat, getattr(tokenizer, "pad_token_id", None) or 0)
        last = torch.tensor([len(row) - 1 for row in flat])
        return Tokens(ids, mask, torch.arange(len(ids))), torch.tensor(starts * 2), last

    def _logprobs(self, model: Model, tokens: Tokens, first: Tensor, last: Tensor) -> Tensor:
        logits = model.logits(tokens)
        place = logits.device
        found = span_logprob(logits, tokens.ids.to(place), first.to(place), last.to(place), self.legacy_span)
        if not bool(torch.isfinite(found).all()):
            raise InputError("log probabilities are NaN or infinite: lower the strength of the noise or the rate")
        return found

    def preference(self, preferences: Sequence[Preference]) -> Tensor:
        """The first term, mean over pairs."""
        tokens, first, last = self.tokens(preferences)
        with self._noise():
            own = self._logprobs(self.policy, tokens, first, last)
        with torch.no_grad():
            known = self._logprobs(self.reference, tokens, first, last)
        n = len(preferences)
        return dpo_loss(own[:n], own[n:], known[:n], known[n:], self.beta)

    def states(self, prompts: Sequence[str]) -> Tensor:
        """States (n, d) of prompts after the first block of the policy, under noise, with their graph."""
        tokens = self.policy.to_tokens(list(prompts))
        with self._noise():
            found: Tensor = self.policy.record(tokens, "blocks.0.resid_post", grad=True)["blocks.0.resid_post"]
        mask = tokens.mask.to(found.device)
        if self.pool == "last":
            return found[torch.arange(len(found), device=found.device), mask.sum(1) - 1]
        return (found * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def __call__(self, preferences: Sequence[Preference], guarded: Sequence[str] = ()) -> Tensor:
        """The loss of a batch.

        Args:
            preferences: prompts with wanted and unwanted replies.
            guarded: guarded prompts, two or more where lambda_ is above 0.

        Raises:
            InputError: replies are identical, prompts are missing, or numbers are not finite.
        """
        loss = self.preference(preferences)
        if self.lambda_ == 0:
            return loss
        return loss - self.lambda_ * mean_cosine(self.states(guarded))
