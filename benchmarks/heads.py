"""A head x layer patching sweep beside the same sweep of TransformerLens, and beside one pass for each patch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import actinium as ac
from actinium.core import replay
from actinium.core.inputs import Tokens
from benchmarks.page import alone
from benchmarks.paired import Goal, Ratio, Row, agree, interleave
from benchmarks.patching import OURS, PLAIN, difference, mean_difference, random_pairs
from benchmarks.peers import Lens, lenses
from benchmarks.settings import Settings, gpt2

__all__ = ["rows"]

SITE = "blocks.*.attn.z"
ABSENT = "TransformerLens get_act_patch_attn_head_out_all_pos"


def rows(settings: Settings) -> list[Row]:
    """How many times faster than each peer; every sweep includes its clean run."""
    model, goal = ac.Model(gpt2(settings.tiny)), Goal(">=", 5.0)
    found = lenses(model.module)
    table = []
    for batch, rounds in ((1, 5), (4, 3)):
        length = 6 if settings.tiny else 16
        task = random_pairs(model, batch, length)
        runs = _runs(model, task, found)
        for name, run in runs.items():
            agree(f"{name}, patched", runs[OURS](), run(), 1e-4)
        times = interleave(runs, settings.repeats(rounds), settings.clock, f"heads, batch {batch}")
        what = f"head x layer patching sweep, {batch} prompt pair{'s' if batch > 1 else ''} of {length} tokens"
        what += ": times faster"
        table += [Row(what, lens.name, Ratio.of(times[lens.name], times[OURS]), goal) for lens in found]
        if not found:
            table.append(Row(what, ABSENT, "not installed", goal))
        table.append(Row(what, PLAIN, Ratio.of(times[PLAIN], times[OURS])))
    return table


def _runs(model: ac.Model, task: ac.Task, found: list[Lens]) -> dict[str, Callable[[], Tensor]]:
    runs: dict[str, Callable[[], Tensor]] = {OURS: partial(_ours, model, task), PLAIN: partial(_plain, model, task)}
    for lens in found:
        runs[lens.name] = partial(lens.sweep_heads, task.clean_ids, task.corrupt_ids, partial(mean_difference, task))
    return runs


def _ours(model: ac.Model, task: ac.Task) -> Tensor:
    return torch.from_numpy(ac.circuits.patch(model, task, at=SITE, over="head").data["patched"].to_numpy())


def _plain(model: ac.Model, task: ac.Task) -> Tensor:
    """(layer, head) from one edited forward pass for each patch."""
    clean = model.record(task.clean_ids, SITE)
    variants = [{site: ac.edits.Replace(clean[site]).at(heads=h)} for site in clean.sites for h in range(model.n_heads)]
    logits = replay.plain(model, Tokens(task.corrupt_ids, task.mask, torch.arange(len(task))), variants)
    return difference(task, logits).mean(-1).view(-1, model.n_heads)


if __name__ == "__main__":
    alone(rows, __doc__)
