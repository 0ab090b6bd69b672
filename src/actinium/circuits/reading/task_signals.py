"""What two tasks look like layer by layer: norms, and where and how widely attention looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.reading.task_examples import check_contrast
from actinium.core.errors import InputError, SiteError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.statistics import benjamini_hochberg, permutation_test
from actinium.core.task import Task

__all__ = ["cohens_d", "task_signals"]

PLACES = ("last", "mean")


def cohens_d(one: Any, other: Any) -> np.ndarray:
    """Difference of two means in units of the pooled standard deviation.

    Args:
        one, other: (row, ...) numbers, two rows or more.

    Returns:
        (...); 0 where the means are equal, infinite where nothing varies and they are not.

    Source: Cohen, 1988, Statistical power analysis, section 2.2.
    """
    a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    n, m = len(a), len(b)
    pooled = np.sqrt(((n - 1) * a.var(0, ddof=1) + (m - 1) * b.var(0, ddof=1)) / (n + m - 2))
    difference = a.mean(0) - b.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / pooled)


def task_signals(
    model: Model,
    tasks: Mapping[str, Task],
    *,
    tokens: str = "last",
    facts: Mapping[str, Any] | None = None,
    permutations: int = 999,
    seed: int = 0,
    batch_size: int | None = None,
) -> Result:
    """How the clean prompts of two tasks differ in each layer's norms and attention.

    Args:
        model: a causal language model.
        tasks: two tasks by name, A and B, with prompts of similar length: entropy grows with the number of tokens.
        tokens: where to look: at the "last" token, or the "mean" over all tokens of a prompt.
        facts: by task (row, pos) bool, the tokens that hold the facts; by default those in which clean and corrupt
            prompts differ.
        permutations: most rearrangements of each test.
        seed: of the tests.
        batch_size: rows run at a time, by default all.

    Returns:
        Result: `cohens_d` over signal and layer, with `p` (permutation test of the means) and `q` (adjusted for the
        false discovery rate), and `mean` over task, signal and layer. Signals: `residual_norm` (of resid_post),
        `mlp_norm` (of mlp.out), `attention_entropy` (nats) and `fact_mass` (attention on the facts), the last two
        as means over heads. `head_d`, `head_p` and `head_q` over head_signal, layer and head. Signals that
        the architecture has no sites for are left out.

    Raises:
        InputError: not two tasks, fewer than 20 examples, or facts of another shape.
        UnknownNameError: `tokens` is neither.

    Source: Fartale et al., 2025 (layer-wise attention and activation analysis; its exact measures are not public).
    """
    names = check_contrast(tasks)
    if tokens not in PLACES:
        raise UnknownNameError(unknown("place", str(tokens), PLACES))
    if permutations < 1:
        raise InputError(f"permutations must be at least 1, not {permutations}")
    marks = [_facts(tasks[name], None if facts is None else facts.get(name), name) for name in names]
    found = [_signals(model, tasks[name], mark, tokens, batch_size) for name, mark in zip(names, marks, strict=True)]
    per_head = [s for s in ("attention_entropy", "fact_mass") if s in found[0]]
    layers = {s: [f[s].mean(2) if f[s].ndim == 3 else f[s] for f in found] for s in found[0]}
    data: dict[str, Any] = {}
    dims = ("signal", "layer")
    one, other = (np.stack([layers[s][i] for s in layers], 1) for i in range(2))
    data["cohens_d"] = (dims, cohens_d(one, other))
    data["p"] = (dims, _tests(one, other, permutations, seed))
    data["q"] = (dims, benjamini_hochberg(data["p"][1]))
    data["mean"] = (("task", *dims), np.stack([one.mean(0), other.mean(0)]))
    coords: dict[str, Any] = {"task": names, "signal": list(layers), "layer": list(range(model.n_layers))}
    if per_head:
        one, other = (np.stack([f[s] for s in per_head], 1) for f in found)
        by = ("head_signal", "layer", "head")
        data["head_d"] = (by, cohens_d(one, other))
        data["head_p"] = (by, _tests(one, other, permutations, seed))
        data["head_q"] = (by, benjamini_hochberg(data["head_p"][1]))
        coords |= {"head_signal": per_head, "head": list(range(one.shape[-1]))}
    inputs = {name: (tasks[name].clean_ids, mark) for name, mark in zip(names, marks, strict=True)}
    record = provenance(model, inputs, seed, tokens=tokens, permutations=permutations, tasks=names)
    dataset = xr.Dataset(data, coords=coords, attrs={"tokens": tokens, "tasks": names})
    return Result(dataset, "task_signals", "recall-vs-reasoning-circuits", record)


def _facts(task: Task, given: Any, name: str) -> Tensor:
    """(row, pos) bool."""
    mark = task.subject if given is None else torch.as_tensor(given)
    if mark.shape != task.mask.shape or mark.dtype != torch.bool:
        raise InputError(f"facts of {name} must be bool of shape {tuple(task.mask.shape)}, not {tuple(mark.shape)}")
    return mark & task.mask


def _signals(model: Model, task: Task, facts: Tensor, tokens: str, batch_size: int | None) -> dict[str, np.ndarray]:
    """(row, layer) or (row, layer, head) float64 by signal."""
    parts = {"residual_norm": "resid_post", "mlp_norm": "mlp.out", "pattern": "attn.pattern"}
    sites = {s: f"blocks.*.{part}" for s, part in parts.items() if model.has(f"blocks.*.{part}")}
    # A hybrid model has attention in some blocks only, and layers could not be compared.
    sites = {s: at for s, at in sites.items() if len(model.sites(at)) == model.n_layers}
    if not sites:
        raise SiteError(f"{model.name} has no streams, MLPs or attention patterns that we can read")
    rec = model.record(task.prompts(), list(sites.values()), batch_size=batch_size)
    real = task.mask.to(model.device)
    out = {}
    for signal in ("residual_norm", "mlp_norm"):
        if signal in sites:
            norms = rec.stack(sites[signal]).double().norm(dim=-1)  # (layer, row, pos)
            out[signal] = _at(norms, real, tokens).movedim(0, 1)
    if "pattern" in sites:
        pattern = rec.stack(sites["pattern"]).double()  # (layer, row, head, query, key)
        entropy = -torch.special.xlogy(pattern, pattern).sum(-1)
        mass = (pattern * facts.to(pattern)[None, :, None, None, :]).sum(-1)
        for signal, values in (("attention_entropy", entropy), ("fact_mass", mass)):
            out[signal] = _at(values.movedim(2, 0), real, tokens).permute(2, 1, 0)
    return {signal: values.cpu().numpy() for signal, values in out.items()}


def _at(values: Tensor, real: Tensor, tokens: str) -> Tensor:
    """(..., row, pos) -> (..., row), at the last token or as mean over the real ones."""
    if tokens == "last":
        return values[..., -1]
    return torch.where(real, values, 0.0).sum(-1) / real.sum(-1)


def _tests(one: np.ndarray, other: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """p values of (row, ...) columns."""
    shape = one.shape[1:]
    pairs = zip(one.reshape(len(one), -1).T, other.reshape(len(other), -1).T, strict=True)
    return np.array([permutation_test(a, b, n=permutations, seed=seed) for a, b in pairs]).reshape(shape)
