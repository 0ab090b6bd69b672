"""Ablation: take activations away, or a part of them, and see what is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from actinium.circuits.patching.ablations import ActivationNoise, Directional, all_prompts
from actinium.circuits.patching.corruption import GaussianNoise
from actinium.circuits.patching.effects import Effects
from actinium.circuits.patching.nodes import node_sets
from actinium.circuits.patching.sweep import Sweep, result_of
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["ablate"]

METHODS = ("zero", "mean", "resample", "noise")


def ablate(
    model: Model,
    task: Task,
    at: Any = "blocks.*.attn.z",
    over: str | None = "layer",
    *,
    method: str | ActivationNoise | Directional = "zero",
    metric: str | Callable[..., Tensor] | None = None,
    positions: Any = None,
    heads: int | Sequence[int] | None = None,
    units: int | Sequence[int] | None = None,
    reference: Any = None,
    per_position: bool = False,
    normalise: bool = False,
    by_row: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    resume: str | os.PathLike[str] | None = None,
) -> Effects:
    """Loss of the metric when each node, or each of several named sets of nodes, is taken away in the clean run.

    Args:
        model, task, at, over, positions, heads, units, by_row, seed, batch_size, progress, resume: as in `patch`.
        method: "zero"; "mean" (over the reference, by default the task's clean and corrupt prompts together);
            "resample" (activations of random reference prompts, by default the corrupt prompt of the pair); "noise" or
            an `ActivationNoise` (Gaussian noise added to the activation); a `Directional` (the part along given
            directions is removed).
        metric: as in `patch`.
        reference: texts, Tokens or a Task (its clean prompts) for "mean" and "resample".
        per_position: keep a mean for each position; prompts of one length.
        normalise: divide by the difference of the clean and the corrupt run, instead of the loss in the metric's own
            units.

    Returns:
        Effects: `effect` is how much worse the metric of the clean run became (positive: the node was needed).

    Raises:
        InputError, SiteError, UnknownNameError, Interrupted: as `patch`.

    Source: Heimersheim and Nanda, 2024; Arditi et al., 2024, equation 4 (directional).
    """
    if isinstance(method, GaussianNoise):
        raise InputError("GaussianNoise corrupts prompts, see patch(); to ablate with noise pass an ActivationNoise")
    if isinstance(method, str) and method not in METHODS:
        raise UnknownNameError(unknown("method of ablation", method, METHODS))
    if method == "noise":
        method = ActivationNoise()
    if method == "mean" and reference is None:
        reference = all_prompts([task])
    sweep = Sweep(
        model, task, "noise", method, metric, reference, per_position, seed, batch_size, progress, resume=resume
    )
    nodes = node_sets(model, task, at, over, positions, heads, units)
    if isinstance(method, Directional):
        for site in nodes.sites:
            ((known, _, _),) = model.resolve(site)
            method.edit(site).bound(known)
    runs = sweep.run(nodes)
    about = {"at": at, "over": over, **_settings(method)}
    return sweep.finish(
        result_of(sweep, nodes, runs, "ablate", normalise, by_row, "activation-patching-guide", **about)
    )


def _settings(method: str | ActivationNoise | Directional) -> dict[str, Any]:
    if isinstance(method, ActivationNoise):
        return {"noise": vars(method)}
    return {"directions": method.directions} if isinstance(method, Directional) else {}
