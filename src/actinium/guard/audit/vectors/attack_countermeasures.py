"""What helps against an added vector: noticing it, and putting the activations back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.edits import Add, Edit, ProjectOut
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.guard.audit.vectors.activation_attack import ActivationAttackAudit
from actinium.guard.audit.vectors.activation_monitor import detection_curve
from actinium.guard.audit.vectors.attack_targets import Target, target_scores

__all__ = ["attack_detection", "attack_restoration"]

PAPER = "activation-attack-audit"
DEFENCES = ("none", "project out", "subtract drift", "add back")


def _last_tokens(model: Model, prompts: Sequence[str], site: str, edits: dict[str, Edit] | None = None) -> Tensor:
    """Activations (n, d) of the last token of each prompt, as later layers get them."""
    if edits is None:
        return model.record(list(prompts), site, positions=-1)[site].flatten(1).double()
    with model.edit(edits):
        return model.record(list(prompts), site, positions=-1)[site].flatten(1).double()


def attack_detection(
    audit: ActivationAttackAudit,
    model: Model,
    fit: Sequence[str],
    test: Sequence[str],
    coefs: Sequence[float],
    *,
    block: int | None = None,
    watch: str | None = None,
    ridge: float = 0.01,
) -> Result:
    """How well a monitor of the last prompt token notices an attack, by its strength.

    Args:
        audit: a fitted audit.
        model: the model.
        fit: prompts that the monitors learn clean activations from.
        test: other prompts, run clean and attacked.
        coefs: strengths.
        block: where the vector is added; the chosen layer by default.
        watch: site that the monitor reads; that of the attack by default.
        ridge: of the Mahalanobis monitor.

    Returns:
        As of `detection_curve`.

    Raises:
        InputError: the attack leaves prompts alone (inject="generated"), or there are too few prompts.
    """
    audit.check_fitted()
    if audit.inject == "generated":
        raise InputError("this attack starts after the prompt, where a monitor of prompts sees nothing")
    site = audit.site(audit.layer_ if block is None else block) if watch is None else watch
    attacked = {float(c): _last_tokens(model, test, site, audit.attack(model, test, float(c), block)) for c in coefs}
    return detection_curve(_last_tokens(model, fit, site), _last_tokens(model, test, site), attacked, ridge=ridge)


def attack_restoration(
    audit: ActivationAttackAudit,
    model: Model,
    target: Target,
    prompts: Sequence[str],
    reference: Sequence[str],
    *,
    block: int | None = None,
    defence: int | None = None,
    coefs: Sequence[float] | None = None,
) -> Result:
    """How far a score comes back when a later layer takes the attack out.

    "project out" removes the direction of the vector there, whatever its strength; "subtract drift" subtracts the mean
    change of the last token of reference prompts between attacked and clean runs; "add back" adds the opposite of what
    was added. The two last know the strength, the first one only the direction. At coef 0 stands what a defence costs.

    Args:
        audit: a fitted audit.
        model: the model.
        target: as of `ActivationAttackAudit.audit`.
        prompts: texts for the target.
        reference: other texts, for the drift.
        block: where the vector is added; the chosen layer by default.
        defence: block at whose end the defence acts; the one after the attack by default, or the last.
        coefs: strengths; those of the audit by default.

    Returns:
        Result over coef and defence ("none", ...): `score`.

    Raises:
        InputError: the defence stands before the attack, or there are no prompts.
    """
    audit.check_fitted()
    at = audit.layer_ if block is None else block
    where = min(at + 1, model.n_layers - 1) if defence is None else defence
    if not at <= where < model.n_layers:
        raise InputError(f"a defence against block {at} stands there or later, up to {model.n_layers - 1}")
    if not len(prompts) or not len(reference) or isinstance(prompts, str) or isinstance(reference, str):
        raise InputError("prompts and reference are lists of texts, neither of them empty")
    site, v, rows = audit.site(where), audit.vectors_[at], list(prompts)
    direction = audit.vectors_.get(where, v)
    clean, grid = _last_tokens(model, reference, site), [float(c) for c in (audit.coefs if coefs is None else coefs)]
    table = np.zeros((len(grid), len(DEFENCES)))
    for i, coef in enumerate(grid):
        drift = (_last_tokens(model, reference, site, audit.attack(model, reference, coef, at)) - clean).mean(0)
        back = Add(v, -coef * (2 if audit.legacy else 1))
        answers: list[Any] = [None, ProjectOut(direction), Add(-drift.float()), back]
        for j, answer in enumerate(answers):
            edits = list(audit.attack(model, rows, coef, at).items())
            if answer is not None:
                place = audit.places(model, rows)
                edits.append((site, answer if place is None else answer.at(positions=place)))
            with model.edit(edits), torch.no_grad():
                table[i, j] = target_scores(target, model, rows).mean()
    data = xr.Dataset({"score": (("coef", "defence"), table)}, {"coef": grid, "defence": list(DEFENCES)})
    record = provenance(model, [rows, list(reference), v], block=at, defence=where, target=target)
    return Result(data, "attack_restoration", PAPER, record)
