"""Vectors that, added at the subject's last token, make a model say the new object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from actinium.circuits.knowledge.encoding import Prompt, PromptBatch
from actinium.core.edits import Add
from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = ["TargetOptimisation", "Targets", "target_vectors"]


@dataclass(frozen=True)
class TargetOptimisation:
    """How target vectors are found.

    Args:
        steps: steps of Adam.
        lr: its learning rate.
        clamp: the vector's norm is at most this share of the norm of the activation that it is added to.
        kl: weight of the divergence of what the model says about the subject in general.
        weight_decay: weight of |delta| / |h|^2.
        enough: an edit whose loss is below this many nats is left as it is.

    Raises:
        InputError: a number is out of range.

    Source: Meng et al., 2023 (MEMIT), with the hyper-parameters of its code for GPT-J.
    """

    steps: int = 25
    lr: float = 0.5
    clamp: float = 0.75
    kl: float = 0.0625
    weight_decay: float = 0.5
    enough: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.lr > 0 or not self.clamp > 0 or min(self.kl, self.weight_decay, self.enough) < 0:
            raise InputError(f"steps, lr and clamp must be above 0, the rest 0 or more: {self}")


@dataclass(frozen=True, eq=False)
class Targets:
    """What was found.

    Attributes:
        delta: (edit, d_model), to be added.
        initial: (edit, d_model), the activation in the first prompt of each edit.
        logprob: (edit,) mean log-probability of the new object with delta, over the prompts of the edit, in nats.
    """

    delta: Tensor
    initial: Tensor
    logprob: Tensor


def target_vectors(
    model: Model,
    site: str,
    groups: Sequence[Sequence[Prompt]],
    at: str = "subject",
    essence: Sequence[Prompt] | None = None,
    how: TargetOptimisation | None = None,
) -> Targets:
    """One vector for each edit, by gradient descent on the log-probability of the new object.

    All edits are optimised side by side; none sees another's.

    Args:
        model: the model.
        site: where the vectors are added, (batch, pos, d_model).
        groups: for each edit its prompts, the first of which gives the activation that `clamp` and `weight_decay`
            refer to.
        at: "subject" or "last", the position in each prompt.
        essence: for each edit a prompt such as "{} is a", whose next-token distribution is to stay.
        how: the optimisation.

    Raises:
        InputError: the loss is not finite.

    Source: Meng et al., 2022 (ROME), equation 4. Weight decay is that of the authors' code, |delta| / |h|^2.
    """
    how = how or TargetOptimisation()
    prompts = [p for group in groups for p in group]
    kept = list(essence or [])
    owner = torch.tensor(
        [i for i, group in enumerate(groups) for _ in group] + list(range(len(kept))), device=model.device
    )
    batch = PromptBatch(model, [*prompts, *kept])
    positions = batch.last if at == "last" else batch.subject
    if kept and at == "last":
        raise InputError("essence prompts hold the subject, and vectors at the last token do not act there")
    with torch.no_grad():
        rec = model.record(batch.inputs, [site, "logits"])
    rows = torch.arange(len(batch))
    here = rec[site][rows, positions[:, 0]]
    first = list(accumulate((len(group) for group in groups[:-1]), initial=0))
    initial = here[first].detach().float()
    general = _general(batch, len(prompts), rec["logits"]) if kept else None
    run = _Run(model, site, batch, positions, owner, len(prompts), general, initial, how)
    delta, logprob = run.optimise(len(groups))
    return Targets(delta, initial, logprob)


def _general(batch: PromptBatch, first: int, logits: Tensor) -> Tensor:
    """(row, d_vocab) log-probabilities after the subject's last token in the essence prompts."""
    rows = torch.arange(first, len(batch), device=logits.device)
    return torch.log_softmax(logits[rows, batch.subject[first:, 0].to(logits.device)].float(), -1)


@dataclass(frozen=True, eq=False)
class _Run:
    """One optimisation: the prompts with their owners (the first `edited` are of edits, the rest of essences)."""

    model: Model
    site: str
    batch: PromptBatch
    positions: Tensor
    owner: Tensor
    edited: int
    general: Tensor | None
    initial: Tensor
    how: TargetOptimisation

    def optimise(self, n: int) -> tuple[Tensor, Tensor]:
        """Vectors (edit, d_model) of n edits, and the log-probabilities (edit,) that they give."""
        how, size = self.how, self.initial.norm(dim=-1)
        delta = torch.zeros_like(self.initial).requires_grad_()
        adam = torch.optim.Adam([delta], lr=how.lr)
        for step in range(how.steps):
            with torch.enable_grad():
                said, divergence = self._score(delta, n)
                decay = delta.norm(dim=-1) / size**2
                loss = -said + how.kl * divergence + how.weight_decay * decay
            if not bool(loss.isfinite().all()):
                raise InputError("the loss of a target vector is not finite; try another layer, or dtype float32")
            open_ = loss.detach() >= how.enough
            if step == how.steps - 1 or not bool(open_.any()):
                break
            (delta.grad,) = torch.autograd.grad(loss.sum(), delta)
            before = delta.detach().clone()
            adam.step()
            with torch.no_grad():
                norm = delta.norm(dim=-1)
                delta *= (how.clamp * size / norm.clamp_min(1e-12)).clamp_max(1.0)[:, None]
                delta.copy_(torch.where(open_[:, None], delta, before))
        return delta.detach(), said.detach()

    def _score(self, delta: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Mean log-probability of the object over the prompts of each edit, and divergence of its essence (edit,)."""
        with self.model.edit({self.site: Add(delta[self.owner][:, None]).at(positions=self.positions)}):
            logits = self.model.logits(self.batch.inputs)
        each = self.batch.answer_logprob(logits)[: self.edited]
        owner = self.owner[: self.edited]
        count = torch.bincount(owner, minlength=n)
        said = torch.zeros(n, device=each.device).index_add(0, owner, each) / count
        if self.general is None:
            return said, torch.zeros_like(said)
        now = _general(self.batch, self.edited, logits)
        return said, (self.general.exp() * (self.general - now)).sum(-1)
