"""A direction that is learned from a model's answers: distributed alignment search in one dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from actinium.core.edits import Edit, ReplaceWithin
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.task import Task
from actinium.probes.directional import Sides, answer_differences, directional_patch
from actinium.probes.directions import Direction, unit_vector

__all__ = ["patching_direction"]


def patching_direction(
    model: Model,
    task: Task,
    site: str,
    *,
    positions: Any = None,
    sides: Sides | None = None,
    lr: float = 0.01,
    epochs: int = 30,
    batch_size: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> Direction:
    """The direction of a site whose exchange flips the answers most: alignment search in one dimension.

    Held-out words show whether it is the concept or the prompts that were learned; and an exchange can also work
    through a pathway that the model does not use: compare with directions that were found without the answers.

    Args:
        model: a causal language model; its weights stay.
        task: clean and flipped prompts.
        site: name of one site.
        positions: token positions that are exchanged together; None for all.
        sides: token ids that stand for each of two answers. The direction points to the first side; without them to
            the answer of the first row.
        lr: learning rate of Adam.
        epochs: passes over the pairs.
        batch_size: pairs in a step.
        seed: of the start and of the order.
        progress: show a progress bar.

    Returns:
        Direction with info `effect`, as of `directional_patch` on these pairs.

    Raises:
        InputError: settings are out of range, or as `directional_patch`.
        SiteError: the site does not exist.

    Source: Tigges et al., 2023; Geiger et al., 2023.
    """
    if epochs < 1 or batch_size < 1 or not lr > 0:
        raise InputError(f"expected epochs >= 1, batch_size >= 1 and lr > 0, got {epochs}, {batch_size}, {lr}")
    source = model.record(task.prompts(corrupt=True), site)[site]
    start = torch.randn(source.shape[-1], generator=torch.Generator().manual_seed(seed))
    # Only its line counts; a step of Adam is as large as the rate in every entry, so its length sets the pace.
    theta = (start / start.norm()).requires_grad_()
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam([theta], lr=lr)
    one = torch.tensor(list(sides[0])) if sides else task.answer_ids[:1]
    tokens = task.prompts()
    for _ in shown(range(epochs), "alignment search", progress):
        for rows in torch.randperm(len(task), generator=random).split(batch_size):
            edit = _edit(source[rows], theta, _rows(positions, rows))
            part = Tokens(tokens.ids[rows], tokens.mask[rows], torch.arange(len(rows)))
            with torch.enable_grad(), model.edit({site: edit}):
                loss = answer_differences(model.logits(part)[:, -1], task[rows.tolist()], sides).mean()
            # The gradient of the direction alone: none is left behind in the model's parameters.
            (theta.grad,) = torch.autograd.grad(loss, [theta])
            optimiser.step()
    found = unit_vector(theta)
    clean = model.record(tokens, site)[site]
    moved = ((clean - source).double().cpu() @ found).masked_fill(~task.mask, 0.0).sum(1)
    towards = torch.where(torch.isin(task.answer_ids, one), moved, -moved).mean()
    found = found if float(towards) >= 0 else -found
    effect = directional_patch(model, task, found, site, positions=positions, sides=sides)
    return Direction(found, 0.0, "das", {"effect": float(effect["effect"])})


def _rows(positions: Any, rows: Tensor) -> Any:
    return positions[rows] if isinstance(positions, Tensor) and positions.ndim == 2 else positions


def _edit(value: Tensor, theta: Tensor, where: Any) -> Edit:
    edit = ReplaceWithin(value, theta)
    return edit if where is None else edit.at(positions=where)
