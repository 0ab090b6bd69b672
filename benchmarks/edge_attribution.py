"""Edge attribution with integrated gradients beside the package of its authors, on the same weights and prompts."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import actinium as ac
from benchmarks.page import alone
from benchmarks.paired import Goal, Ratio, Row, agree, interleave
from benchmarks.patching import OURS, difference, random_pairs
from benchmarks.peers import hooked_lens, optional
from benchmarks.settings import Settings, gpt2

__all__ = ["rows"]

PEER = "EAP-IG (hannamw/EAP-IG)"
PASSES = "as many plain passes forward and backward"
STEPS = 5


def rows(settings: Settings) -> list[Row]:
    """How many times faster than the peer, and the time beside that of the passes alone."""
    model, goal = ac.Model(gpt2(settings.tiny)), Goal(">=", 1.5)
    table = []
    for batch in (1, 8):
        length = 6 if settings.tiny else 16
        task = random_pairs(model, batch, length)
        runs: dict[str, Callable[[], object]] = {
            OURS: partial(_ours, model, task),
            PASSES: partial(_passes, model, task),
        }
        peer = _peer(model, task)
        if peer is not None:
            runs[PEER] = peer
            agree(f"{PEER}, scores", _ours(model, task), peer(), 1e-4)
        times = interleave(runs, settings.repeats(3), settings.clock, f"edge attribution, batch {batch}")
        size = f"{batch} prompt pair{'s' if batch > 1 else ''} of {length} tokens"
        what = f"EAP-IG (inputs, {STEPS} steps), {size}"
        ratio = Ratio.of(times[PEER], times[OURS]) if peer is not None else "not installed"
        table.append(Row(f"{what}: times faster", PEER, ratio, goal))
        table.append(Row(f"{what}: time / passes", PASSES, Ratio.of(times[OURS], times[PASSES])))
    return table


def _ours(model: ac.Model, task: ac.Task) -> Tensor:
    """(sender, receiver) scores, zero where there is no edge."""
    found = ac.circuits.edge_attribution(model, task, method="eap-ig-inputs", steps=STEPS)
    return found.layout.matrix(found.scores)


def _passes(model: ac.Model, task: ac.Task) -> None:
    """The passes that the method is made of, without hooks and scores: a clean one, and its steps with gradients."""
    with torch.no_grad():
        model.logits(task.clean_ids)
        embeds = model.module.get_input_embeddings()(task.clean_ids)
    for _ in range(STEPS):
        point = embeds.clone().requires_grad_()
        logits = model.module(inputs_embeds=point, use_cache=False).logits[:, -1]
        torch.autograd.grad(difference(task, logits).sum(), point)


class _OnCpu:
    """torch for a module that makes its tensors on a CUDA device, on machines without one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *sizes: Any, device: Any = None, **options: Any) -> Tensor:
        """`torch.zeros` on the processor."""
        return torch.zeros(*sizes, **options)


def _peer(model: ac.Model, task: ac.Task) -> Callable[[], Tensor] | None:
    """A function that gives the peer's scores (sender, receiver), or None where it is not installed.

    Its texts are replaced by our token ids; its metric, like ours, is a sum over the prompts.
    """
    lens = hooked_lens(model.module)
    if lens is None or optional("eap.attribute") is None:
        return None
    attribute, graphs = importlib.import_module("eap.attribute"), importlib.import_module("eap.graph")
    lens.cfg.use_attn_result = lens.cfg.use_split_qkv_input = lens.cfg.use_hook_mlp_in = True
    lens.setup()
    attribute.torch = _OnCpu()
    lengths = task.mask.sum(1)

    def tokenize(_: Any, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        return ids, task.mask.long(), lengths, ids.shape[1]

    attribute.tokenize_plus = tokenize

    def metric(logits: Tensor, clean_logits: Tensor, lengths: Tensor, label: Any) -> Tensor:
        return difference(task, logits[:, -1]).sum()

    def run() -> Tensor:
        graph = graphs.Graph.from_model(lens)
        batches = [(task.clean_ids, task.corrupt_ids, None)]
        attribute.attribute(lens, graph, batches, metric, "EAP-IG-inputs", ig_steps=STEPS, quiet=True)
        lens.zero_grad()
        return torch.where(graph.real_edge_mask, graph.scores, 0.0)

    return run


if __name__ == "__main__":
    alone(rows, __doc__)
