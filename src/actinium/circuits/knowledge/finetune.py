"""Fine-tuning on the new facts with a limit on how far each weight may move, the baseline of editors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.func import functional_call

from actinium.circuits.knowledge.drafting import check_editable, edit_groups
from actinium.circuits.knowledge.encoding import PromptBatch
from actinium.circuits.knowledge.facts import EditCase, FactEdit, distinct_edits
from actinium.circuits.knowledge.weights import WeightChange, down_projections
from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = ["finetune"]


def finetune(
    model: Model,
    edits: FactEdit | EditCase | Iterable[FactEdit | EditCase],
    layers: Sequence[int],
    *,
    limit: float = 5e-4,
    steps: int = 25,
    lr: float = 5e-4,
    enough: float = 0.01,
    contexts: Sequence[str] = (),
    average_tokens: bool = False,
) -> WeightChange:
    """Adam on the log-probability of the new objects, over down projections whose entries move by `limit` at most.

    Args:
        model: a causal language model; it is left as it was.
        edits: the facts.
        layers: the blocks whose down projections are trained.
        limit: most that an entry may move.
        steps, lr: of Adam.
        enough: mean loss in nats below which training ends.
        contexts: texts put before the prompts, besides the prompts alone.
        average_tokens: allow objects of several tokens, whose log-probabilities are averaged.

    Returns:
        The change, not in force.

    Raises:
        InputError: edits conflict; an object has several tokens; a layer does not exist; a number is out of range.

    Source: Zhu et al., 2020 (constrained fine-tuning); Meng et al., 2022 (FT+L).
    """
    check_editable(model)
    if steps < 1 or not lr > 0 or not limit > 0:
        raise InputError(f"steps, lr and limit must be above 0, got {steps}, {lr} and {limit}")
    wanted, downs = distinct_edits(edits), down_projections(model, layers)
    groups = edit_groups(model, wanted, contexts, average_tokens)
    batch = PromptBatch(model, [p for g in groups for p in g])
    _, args, kwargs = next(batch.inputs.batches(None, model.device))
    start = {d.name: d.module.weight.detach() for d in downs}
    moved = {name: torch.zeros_like(w, requires_grad=True) for name, w in start.items()}
    adam = torch.optim.Adam(moved.values(), lr=lr)
    for _ in range(steps):
        with torch.enable_grad():
            weights = {name: start[name] + delta for name, delta in moved.items()}
            logits = functional_call(model.module, weights, args, kwargs).logits
            loss = -batch.answer_logprob(logits).mean()
        if not bool(loss.isfinite()):
            raise InputError("the loss is not finite; try a smaller lr")
        if float(loss.detach()) < enough:
            break
        for delta, gradient in zip(moved.values(), torch.autograd.grad(loss, list(moved.values())), strict=True):
            delta.grad = gradient
        adam.step()
        with torch.no_grad():
            for delta in moved.values():
                delta.clamp_(-limit, limit)
    about = {"method": "finetune", "layers": [d.layer for d in downs], "limit": limit, "edits": len(wanted)}
    return WeightChange(model, {name: d.detach() for name, d in moved.items()}, about)
