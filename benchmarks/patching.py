"""A position x layer patching sweep beside the same sweep of TransformerLens, and beside what its operations take."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

import actinium as ac
from actinium.core import replay
from actinium.core.inputs import Tokens
from benchmarks.operations import Shape
from benchmarks.page import alone
from benchmarks.paired import Goal, Ratio, Row, agree, interleave
from benchmarks.peers import Lens, lenses
from benchmarks.settings import Settings, gpt2, tokens

__all__ = ["difference", "mean_difference", "random_pairs", "rows"]

OURS, PLAIN, PRODUCT = "actinium", "one edited forward pass for each patch", "matrix product"


def rows(settings: Settings) -> list[Row]:
    """How many times faster than each peer; every sweep includes its clean run."""
    module = gpt2(settings.tiny)
    found = lenses(module)
    table = []
    for batch, goal, rounds in ((1, 10.0, 5), (4, 7.0, 3)):
        table += _rows(settings, module, found, batch, Goal(">=", goal), rounds)
    return table


def _rows(
    settings: Settings, module: GPT2LMHeadModel, found: list[Lens], batch: int, goal: Goal, rounds: int
) -> list[Row]:
    length = 6 if settings.tiny else 16
    shape = Shape.of(module.config, length, batch)
    model = ac.Model(module)
    task = random_pairs(model, batch, length)
    runs: dict[str, Callable[[], object]] = {OURS: partial(_ours, model, task), PLAIN: partial(_plain, model, task)}
    for lens in found:
        runs[lens.name] = partial(lens.sweep, task.clean_ids, task.corrupt_ids, partial(mean_difference, task))
    _check(model, task, found, runs)
    product, operations = _product(module.config.n_embd, 1 if settings.tiny else 8)
    times = interleave({**runs, PRODUCT: product}, settings.repeats(rounds), settings.clock, f"patching, batch {batch}")
    size = f"{batch} prompt pair{'s' if batch > 1 else ''} of {length} tokens"
    what = f"position x layer patching sweep, {size}: times faster"
    peers = [lens.name for lens in found]
    table = [Row(what, peer, Ratio.of(times[peer], times[OURS]), goal) for peer in peers]
    if not peers:
        table.append(Row(what, "TransformerLens get_act_patch_resid_pre", "not installed", goal))
    table.append(Row(what, PLAIN, Ratio.of(times[PLAIN], times[OURS])))
    fewer = shape.plain_sweep() / shape.needed()
    table.append(
        Row(f"operations of one pass for each patch / operations needed, {size}", "counted", Ratio(fewer, fewer, fewer))
    )
    bound = [seconds * shape.needed() / operations for seconds in times[PRODUCT]]
    table.append(
        Row(
            f"sweep, {size}: time / bound",
            "the operations needed at the rate of a large matrix product",
            Ratio.of(times[OURS], bound),
        )
    )
    return table


def random_pairs(model: ac.Model, batch: int, length: int) -> ac.Task:
    """Random prompts that differ at every position, so that no patch can be left out."""
    clean = tokens(model.module, batch, length)
    corrupt = clean % (model.config.vocab_size - 1) + 1
    with torch.no_grad():
        last = model.logits(clean)[:, -1]
    words = [""] * batch
    return ac.Task(
        name="random",
        clean=words,
        corrupt=words,
        answers=words,
        wrong=words,
        clean_ids=clean,
        corrupt_ids=corrupt,
        mask=torch.ones_like(clean, dtype=torch.bool),
        answer_ids=last.argmax(-1),
        wrong_ids=last.argmin(-1),
        clean_tokens=[[""] * length] * batch,
        corrupt_tokens=[[""] * length] * batch,
    )


def difference(task: ac.Task, logits: Tensor) -> Tensor:
    """Answer minus wrong answer, of logits (..., batch, d_vocab)."""
    rows = torch.arange(len(task))
    return logits[..., rows, task.answer_ids] - logits[..., rows, task.wrong_ids]


def mean_difference(task: ac.Task, logits: Tensor) -> Tensor:
    """Mean over rows at the last position of logits (batch, pos, d_vocab)."""
    return difference(task, logits[:, -1]).mean()


def _ours(model: ac.Model, task: ac.Task) -> Tensor:
    effects = ac.circuits.patch(model, task, at="blocks.*.resid_pre", over="pos")
    return torch.from_numpy(effects.data["patched"].to_numpy())


def _plain(model: ac.Model, task: ac.Task) -> Tensor:
    """(layer, pos) from one edited forward pass for each patch."""
    clean = model.record(task.clean_ids, "blocks.*.resid_pre")
    length = task.clean_ids.shape[1]
    variants = [{site: ac.edits.Replace(clean[site]).at(positions=p)} for site in clean.sites for p in range(length)]
    inputs = Tokens(task.corrupt_ids, task.mask, torch.arange(len(task)))
    logits = replay.plain(model, inputs, variants)
    return difference(task, logits).mean(-1).view(-1, length)


def _check(model: ac.Model, task: ac.Task, found: list[Lens], runs: dict[str, Callable[[], object]]) -> None:
    """Logits and every patched value are the same numbers."""
    with torch.no_grad():
        logits = model.logits(task.corrupt_ids)
        for lens in found:
            agree(f"{lens.name}, logits", logits, lens.model(task.corrupt_ids), 1e-4)
    ours = runs[OURS]()
    for name, run in runs.items():
        agree(f"{name}, patched", ours, run(), 1e-4)


def _product(width: int, times: int) -> tuple[Callable[[], object], int]:
    """Products of the shape of a block's largest map on many tokens, and their number of operations."""
    left, right = torch.randn(1024, width), torch.randn(width, 4 * width)

    def run() -> None:
        for _ in range(times):
            left @ right

    return run, times * 2 * left.numel() * right.shape[1]


if __name__ == "__main__":
    alone(rows, __doc__)
