"""Relevance patching (RelP): attribution patching with propagation coefficients in place of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.attribution import attribution_sweep, gradients, linear_rows, scores
from actinium.circuits.patching.contrast import Contrast
from actinium.circuits.patching.corruption import GaussianNoise
from actinium.circuits.patching.effects import Effects, mean_over
from actinium.circuits.patching.lrp import RELP, Rules, lrp_rules
from actinium.circuits.patching.nodes import node_sets
from actinium.circuits.patching.sweep import Edits, RunPair, averaged, result_of
from actinium.core.errors import UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["relevance", "relevance_patch"]

PROMPTS = ("clean", "corrupt")


def relevance_patch(
    model: Model,
    task: Task,
    at: Any = "blocks.*.attn.z",
    over: str | None = None,
    *,
    rules: Sequence[str] = RELP,
    mode: str = "denoise",
    ablation: str | GaussianNoise = "resample",
    metric: str | Callable[..., Tensor] | None = None,
    positions: Any = None,
    heads: int | Sequence[int] | None = None,
    units: int | Sequence[int] | None = None,
    normalise: bool = True,
    by_row: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
) -> Effects:
    """Estimate of `patch`: the coefficients of `lrp_rules` in the patched run times the difference of activations.

    Two forward passes and a backward one.

    Args:
        model, task, at, over, mode, ablation, metric, positions, heads, units, normalise, by_row, seed, batch_size: as
            in `attribution_patch`.
        rules: of `lrp_rules`.

    Returns:
        Effects as those of `patch`; `patched` is the estimate of the patched metric. The provenance counts the modules
        that follow each rule (`converted`) and names those left to their gradient (`left`).

    Raises:
        InputError, UnknownNameError: as `attribution_patch` and `lrp_rules`.

    Source: Rezaei Jafari et al., 2025, section 3.
    """
    sweep = attribution_sweep(model, task, mode, ablation, metric, seed, batch_size)
    nodes = node_sets(model, task, at, over, positions, heads, units)
    with lrp_rules(model, rules) as report:
        runs = averaged(sweep, nodes, lambda contrast: linear_rows(sweep, contrast, nodes))
    runs = replace(runs, patched=runs.base + runs.patched)
    about = {"at": at, "over": over, **_followed(report)}
    return result_of(sweep, nodes, runs, "relevance_patch", normalise, by_row, "relp", **about)


def relevance(
    model: Model,
    task: Task,
    at: Any = "blocks.*.resid_pre",
    over: str | None = None,
    *,
    rules: Sequence[str] = (*RELP, "ah"),
    prompts: str = "clean",
    metric: str | Callable[..., Tensor] | None = None,
    positions: Any = None,
    heads: int | Sequence[int] | None = None,
    units: int | Sequence[int] | None = None,
    by_row: bool = False,
    batch_size: int | None = None,
) -> Effects:
    """Relevance of each node in one run: its activations times their coefficients, summed within the node.

    Where no layer has a bias and every non-linearity follows a rule, the relevances of a whole cut through the model,
    such as one layer's residual stream, add up to the metric, as far as that is linear in the logits.

    Args:
        model, task, at, over, metric, positions, heads, units, by_row, batch_size: as in `attribution_patch`.
        rules: of `lrp_rules`; none for gradient times input.
        prompts: "clean" or "corrupt", the run that is explained.

    Returns:
        Effects: `relevance` in units of the metric over ("layer" | "part", "layer" | "site" | "set") and what is swept,
        the mean over rows; `metric`, its mean in the run; with `by_row` also `relevance_by_row`.

    Raises:
        InputError, UnknownNameError: as `attribution_patch` and `lrp_rules`; there are no such prompts.

    Source: Bach et al., 2015, section 2; Rezaei Jafari et al., 2025, section 2.
    """
    if prompts not in PROMPTS:
        raise UnknownNameError(unknown("prompts", str(prompts), PROMPTS))
    mode = "noise" if prompts == "clean" else "denoise"
    sweep = attribution_sweep(model, task, mode, "resample", metric, 0, batch_size)
    nodes = node_sets(model, task, at, over, positions, heads, units)

    def rows(contrast: Contrast) -> tuple[Tensor, Tensor, Tensor]:
        pair = RunPair(sweep, contrast, nodes.sites)
        assert pair.own is not None
        found = gradients(pair, nodes.sites)
        # What the mask rules out has a score of minus infinity and no coefficient.
        parts = {n: found[n] * torch.where(pair.own[n].isinf(), 0.0, pair.own[n]) for n in nodes.sites}
        return pair.clean, pair.corrupt, scores(parts, nodes, Edits(sweep, pair, contrast.rows))

    if len(rules):
        with lrp_rules(model, rules) as report:
            runs = averaged(sweep, nodes, rows)
    else:
        runs, report = averaged(sweep, nodes, rows), Rules(())
    about = {"at": at, "over": over, "prompts": prompts, **_followed(report)}
    made = result_of(sweep, nodes, runs, "relevance", False, by_row, "relp", **about)
    mean = mean_over(runs.patched, runs.present, len(runs.patched)).reshape(nodes.shape)
    data: dict[str, Any] = {
        "relevance": (nodes.dims, mean.numpy()),
        "metric": ((), float(runs.base.mean())),
    }
    if runs.present is not None:
        data["n_rows"] = made.data["n_rows"]
    if by_row:
        data["relevance_by_row"] = ((*nodes.dims, "row"), runs.patched.reshape(*nodes.shape, -1).numpy())
    about = {"prompts": prompts, "metric": made.data.attrs["metric"], "rules": list(rules)}
    return Effects(xr.Dataset(data, coords=nodes.coords, attrs=about), "relevance", "relp", made.provenance)


def _followed(report: Rules) -> dict[str, Any]:
    counts = {rule: sum(r == rule for r in report.converted.values()) for rule in report.names}
    return {"rules": list(report.names), "converted": counts, "left": sorted(report.left)}
