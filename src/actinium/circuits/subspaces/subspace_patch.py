"""Subspace activation patching: exchange only the part of an activation that lies in a subspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.circuits.patching.contrast import Contrast, check_task, contrasts, last_logits, warn_if_failing
from actinium.circuits.patching.effects import mean_over
from actinium.circuits.patching.nodes import Node, NodeSets, node_sets
from actinium.circuits.subspaces.directions import orthonormal, random_directions
from actinium.core.edits import Edit, Replace, ReplaceWithin
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.task import Task

__all__ = ["ENDS", "fractional_decrease", "interchange", "interchange_scores", "subspace_patch", "task_record"]

ENDS = {"noise": ("noise",), "denoise": ("denoise",), "both": ("noise", "denoise")}
"""For each mode, which runs of a pair are the base: the clean one in noising, the corrupt one in denoising."""

SCORES = ("logit_diff", "interchange_accuracy", "flipped")


def interchange(base: Any, source: Any, directions: Any) -> Tensor:
    """Base activations with their part in a subspace exchanged for the source's: u + (w - u) V V^T.

    Args:
        base, source: (…, d), which broadcast.
        directions: (d,) or (k, d), of any length; their span counts.

    Returns:
        (…, d), in the type of `base`.

    Raises:
        InputError: widths differ, or the directions span no subspace of k dimensions.

    Source: Makelov, Lange and Nanda, 2023, section 2.
    """
    u, w = torch.as_tensor(base), torch.as_tensor(source)
    if u.shape[-1:] != w.shape[-1:]:
        raise InputError(f"base {tuple(u.shape)} and source {tuple(w.shape)} differ in width")
    basis = orthonormal(directions, u.shape[-1]).to(u.device)
    shift = (w.double() - u.double()) @ basis.T @ basis
    return u + shift.to(u.dtype)


def fractional_decrease(base: Tensor, patched: Tensor) -> Tensor:
    """Fractional logit-difference decrease: 1 - mean LD(patched) / mean LD(base), with means over rows first.

    Args:
        base: (row,) logit difference between the base's answer and the source's, in the base runs.
        patched: (…, row) the same in the patched runs.

    Returns:
        (…,): 0 where nothing changes, 1 where the difference is gone, 2 for a full flip.

    Raises:
        InputError: the mean over the base runs is (almost) zero.

    Source: Makelov, Lange and Nanda, 2023, section 4.
    """
    mean = base.mean()
    if not abs(float(mean)) > 1e-6 * float(base.abs().mean()):
        raise InputError("the base runs prefer neither answer on average, so no fraction of it can decrease")
    return 1 - patched.mean(-1) / mean


def interchange_scores(logits: Tensor, base_ids: Tensor, source_ids: Tensor) -> Tensor:
    """How far runs answer as the source does: (…, row, d_vocab) -> (…, row, 3).

    The three are the logit difference between the base's answer and the source's, whether the source's answer has
    the largest logit of all, and whether it is above the base's.
    """
    ids = torch.stack([base_ids, source_ids], -1).to(logits.device)
    both = logits.float().gather(-1, ids.expand(*logits.shape[:-1], 2))
    difference = both[..., 0] - both[..., 1]
    top = logits.argmax(-1) == ids[:, 1]
    return torch.stack([difference, top.float(), (difference < 0).float()], -1).double()


def subspace_patch(
    model: Model,
    task: Task,
    site: str,
    directions: Any,
    *,
    positions: Any = None,
    heads: int | Sequence[int] | None = None,
    over: str = "layer",
    mode: str = "noise",
    compare: bool = True,
    draws: int = 4,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Result:
    """Effect of exchanging only a direction or subspace, beside the whole component and random subspaces.

    In each pair the source run's activations replace those of the base run within the subspace. With mode "noise"
    the base is the clean prompt, with "denoise" the corrupt one, with "both" each in turn.

    Args:
        model: a causal language model, or a module from tokens (batch, pos) to logits (batch, pos, d_vocab).
        task: prompt pairs that differ in the feature; the wrong answer is what the corrupt prompt asks for.
        site: a site or a pattern.
        directions: (d,) or (k, d), or {name: directions} for several subspaces.
        positions, heads: as in `patch`: patched together, or swept where `over` says so; all positions by default.
            A direction of a site with heads belongs to one head.
        over: "layer" (only the sites of the pattern are swept), "pos", "head" or "head_pos".
        mode: "noise", "denoise" or "both".
        compare: also patch the whole component ("full") and random subspaces of the largest k ("random", mean over
            the draws).
        draws: number of random subspaces.
        seed: of the draw.
        batch_size: rows run at a time, by default all.
        progress: show a progress bar.

    Returns:
        Result over "patch" and what is swept: `fldd`, the fractional logit-difference decrease (2: a full flip);
        `interchange_accuracy`, the share of runs whose largest logit is the source's answer; `flipped`, the share in
        which it is above the base's answer; `logit_diff`; `random_fldd` by draw.

    Raises:
        InputError: no direction, a wrong width, several heads, prompts of unequal length.
        SiteError, UnknownNameError: as `patch`.

    Source: Makelov, Lange and Nanda, 2023, sections 2 and 4.
    """
    check_task(model, task)
    if mode not in ENDS:
        raise UnknownNameError(unknown("mode", str(mode), ENDS))
    if over == "unit":
        raise InputError("a subspace is not swept over units")
    nodes = node_sets(model, task, site, over, positions, heads)
    width = _width(model, nodes)
    given = dict(directions) if isinstance(directions, Mapping) else {"subspace": directions}
    if not given:
        raise InputError("no directions given")
    patches: dict[str, Tensor | None] = {str(name): orthonormal(value, width) for name, value in given.items()}
    names = list(patches)
    if compare:
        if draws < 1:
            raise InputError(f"draws must be at least 1, not {draws}")
        random = torch.Generator().manual_seed(seed)
        k = max(len(basis) for basis in patches.values() if basis is not None)
        if {"full", "random"} & set(names):
            raise InputError('the names "full" and "random" are those of the comparisons')
        patches["full"] = None
        patches |= {f"random {i}": random_directions(k, width, random) for i in range(draws)}
    base, patched = _run(model, task, nodes, list(patches.values()), mode, batch_size, progress)
    record = provenance(
        model, task_record(task), seed, site=site, directions=given, over=over, mode=mode, positions=positions,
        heads=heads, compare=compare, draws=draws,
    )  # fmt: skip
    present = None if nodes.present is None else nodes.present.repeat(1, len(ENDS[mode]))
    return _result(nodes, names, compare, base, patched, present, record)


def task_record(task: Task) -> dict[str, Tensor]:
    """What a task gives a model, for the provenance."""
    return {
        "clean": task.clean_ids,
        "corrupt": task.corrupt_ids,
        "mask": task.mask,
        "answers": task.answer_ids,
        "wrong": task.wrong_ids,
    }


def _width(model: Model, nodes: NodeSets) -> int:
    """Entries of the last dimension of every site, which must have one head at a time."""
    sizes: dict[int, str] = {}
    for node in {id(n): n for each in nodes.sets for n in each}.values():
        ((site, _, _),) = model.resolve(node.site)
        size = site.sizes.get(site.dims[-1]) if site.dims else None
        if size is None or site.dims[-1] == "key":
            raise InputError(f"{node.site}: a subspace needs a site whose last dimension has a known size")
        heads = [node.heads] if isinstance(node.heads, int) else node.heads
        if {"head", "kv_head"} & set(site.dims) and (heads is None or len(heads) != 1):
            raise InputError(f'{node.site}: a direction belongs to one head; give heads=3, or over="head"')
        sizes.setdefault(size, node.site)
    if len(sizes) > 1:
        raise InputError(f"the sites differ in width ({', '.join(f'{s}: {n}' for n, s in sizes.items())})")
    return next(iter(sizes))


def _run(
    model: Model,
    task: Task,
    nodes: NodeSets,
    patches: list[Tensor | None],
    mode: str,
    batch_size: int | None,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """Logit differences (row,) of the base runs, and scores (set, patch, row, 3) of the patched ones."""
    bases, out = [], []
    for end in ENDS[mode]:
        for contrast in contrasts(model, task, None, 0, batch_size)[0]:
            inputs, source = contrast.ends(end)
            base_ids, source_ids = answers_of(contrast, end)
            logits, _ = last_logits(model, inputs, [])
            other, rec = last_logits(model, source, nodes.sites)
            assert rec is not None
            warn_if_failing(logits if end == "noise" else other, contrast)
            made: dict[tuple[str, int], Edit] = {}
            variants = []
            for each in nodes.sets:
                for i, basis in enumerate(patches):
                    for node in each:
                        if (node.site, i) not in made:
                            value = rec[node.site]
                            made[node.site, i] = Replace(value) if basis is None else ReplaceWithin(value, basis)
                    variants.append(_variant(each, made, i, contrast.rows))

            def score(logits: Tensor, base_ids: Tensor = base_ids, source_ids: Tensor = source_ids) -> Tensor:
                return interchange_scores(logits, base_ids, source_ids)

            values = model.replay(inputs, variants, metric=score, progress=progress).cpu()
            out.append(values.view(len(nodes.sets), len(patches), *values.shape[1:]))
            bases.append(score(logits)[..., 0].cpu())
    return torch.cat(bases), torch.cat(out, 2)


def _variant(nodes: list[Node], made: dict[tuple[str, int], Edit], i: int, rows: slice) -> dict[str, list[Edit]]:
    variant: dict[str, list[Edit]] = {}
    for node in nodes:
        variant.setdefault(node.site, []).append(node.restrict(made[node.site, i], rows))
    return variant


def answers_of(contrast: Contrast, end: str) -> tuple[Tensor, Tensor]:
    """Answers (row,) of the base and of the source where the base is the run that this end patches."""
    answers = contrast.answer_ids, contrast.wrong_ids
    return answers if end == "noise" else answers[::-1]


def _result(
    nodes: NodeSets,
    names: list[str],
    compare: bool,
    base: Tensor,
    patched: Tensor,
    present: Tensor | None,
    record: dict[str, Any],
) -> Result:
    sets = len(nodes.sets)
    means = torch.stack(
        [
            torch.stack([mean_over(patched[:, p, :, s], present, sets) for s in range(3)])
            for p in range(patched.shape[1])
        ]
    )  # (patch, score, set)
    rows = [base if present is None else base[present[i]] for i in range(sets)]
    fldd = torch.stack([fractional_decrease(rows[i], means[:, 0, i, None]) for i in range(sets)], 1)
    n = len(names)
    if compare:
        kept = [means[: n + 1], means[n + 1 :].mean(0, keepdim=True)]
        draws, fldd = fldd[n + 1 :], torch.cat([fldd[: n + 1], fldd[n + 1 :].mean(0, keepdim=True)])
        means, names = torch.cat(kept), [*names, "full", "random"]
    dims, shape = ("patch", *nodes.dims), (len(names), *nodes.shape)
    data: dict[str, Any] = {"fldd": (dims, fldd.reshape(shape).numpy())}
    for score, name in ((1, "interchange_accuracy"), (2, "flipped"), (0, "logit_diff")):
        data[name] = (dims, means[:, score].reshape(shape).numpy())
    data["base_logit_diff"] = ((), float(base.mean()))
    if compare:
        data["random_fldd"] = (("draw", *nodes.dims), draws.reshape(-1, *nodes.shape).numpy())
    if present is not None:
        data["n_rows"] = (nodes.dims, present.sum(1).reshape(nodes.shape).numpy())
    hints = {"kind": "bar", "variables": ["fldd", "interchange_accuracy"]}
    found = xr.Dataset(data, coords={"patch": np.array(names), **nodes.coords}, attrs={"plot": hints})
    # What was not swept is no axis.
    single = {dim: 0 for dim in nodes.dims if found.sizes[dim] == 1}
    return Result(found.isel(single), "subspace_patch", "subspace-illusion", record)
