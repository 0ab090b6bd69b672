"""Activation patching: put activations of one run into another and see how the behaviour changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from actinium.circuits.patching.corruption import GaussianNoise
from actinium.circuits.patching.effects import Effects
from actinium.circuits.patching.nodes import node_sets
from actinium.circuits.patching.sweep import Sweep, result_of
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["patch"]


def patch(
    model: Model,
    task: Task,
    at: Any = "blocks.*.resid_pre",
    over: str | None = None,
    *,
    mode: str = "denoise",
    ablation: str | GaussianNoise = "resample",
    metric: str | Callable[..., Tensor] | None = None,
    positions: Any = None,
    heads: int | Sequence[int] | None = None,
    units: int | Sequence[int] | None = None,
    reference: Any = None,
    per_position: bool = False,
    normalise: bool = True,
    by_row: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    resume: str | os.PathLike[str] | None = None,
) -> Effects:
    """Effect of patching each node of a grid, or each of several named sets of nodes.

    Denoising runs the corrupt prompts and puts in activations of the clean ones: does the node suffice? Noising runs
    the clean prompts and takes the node's activation away: is it needed?

    Args:
        model: a causal language model, or a module from tokens (batch, pos) to logits (batch, pos, d_vocab).
        task: prompt pairs of equal length with answers.
        at: site names or patterns; or {name: node, site or list of them}, each set patched jointly.
        over: what is swept besides the sites: "pos" (the default), "layer" (nothing: whole sites), "head" (all
            positions together), "head_pos", or "unit" (entries of the last dimension: neurons at mlp.post); named sets
            have none. At attn.pattern and attn.scores positions are those of the query; at attn.k and attn.v heads
            are key/value heads, which several query heads may share.
        mode: "denoise" or "noise".
        ablation: "resample": activations of the other prompt of the pair (of random reference prompts, if there is a
            reference); "gaussian" or a `GaussianNoise`: the other run is that of the clean prompts with noise on the
            embeddings of their key tokens; with mode "noise" also "zero" and "mean" (over the reference).
        metric: a name in `actinium.metrics`, or a function of (logits, answer_ids, wrong_ids, reference_logits) that
            gives one value for each row, higher is better; the task's own by default. The reference logits of "kl" are
            the clean ones.
        positions: the positions swept, by default all; where positions are not swept, those patched together. Integers
            count from each prompt's first token, negative ones from its last (-1). {name: position, or one for each
            row} sweeps named positions.
        heads, units: the ones swept, or where they are not swept those patched together.
        reference: texts, Tokens or a Task (its clean prompts) for "mean" and "resample".
        per_position: keep a mean for each position.
        normalise: divide by the difference of the two runs.
        by_row: keep the metric of each row.
        seed: of noise and resampling.
        batch_size: rows run at a time, by default all.
        progress: show a progress bar.
        resume: a file (safetensors) that keeps the finished patches; the same call goes on from it.

    Returns:
        Effects: `effect` over ("layer" | "part", "layer" | "site" | "set") and what is swept. Normalised it is 0 where
        the patched run stays as it was and 1 where it gives the other run's metric. Where prompts differ in
        length, positions are counted from the end and each effect is over the prompts that have the position.

    Raises:
        InputError: lengths differ; the metric is (almost) the same in both runs; a mean has no reference; what is
            restored is a zero or a mean; a choice is outside the site.
        SiteError: a site does not exist or lacks what is swept.
        UnknownNameError: `over`, `mode`, `ablation` or `metric` is not one of the names.
        Interrupted: stopped by Ctrl-C; `partial` holds the effects found until then.

    Source: Heimersheim and Nanda, 2024; Zhang and Nanda, 2023, section 2.
    """
    sweep = Sweep(model, task, mode, ablation, metric, reference, per_position, seed, batch_size, progress, resume)
    nodes = node_sets(model, task, at, over, positions, heads, units)
    runs = sweep.run(nodes)
    effects = result_of(sweep, nodes, runs, "patch", normalise, by_row, "activation-patching-guide", at=at, over=over)
    return sweep.finish(effects)
