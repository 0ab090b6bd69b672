"""ACDC beside the algorithm as it is written, one whole pass for each edge, and beside its authors' code."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import actinium as ac
from actinium.circuits.graph.layout import Layout
from actinium.circuits.graph.visits import reaching
from benchmarks.page import alone
from benchmarks.paired import Goal, Ratio, Row, agree, interleave
from benchmarks.patching import random_pairs
from benchmarks.peers import hooked_lens, optional
from benchmarks.settings import Settings

__all__ = ["rows"]

OURS, PLAIN = "actinium", "one wired pass for each edge"
AUTHORS = "Automatic-Circuit-Discovery, TLACDCExperiment"
# Thresholds are this share of the divergence of the corrupt run.
SHARE = 0.01


def rows(settings: Settings) -> list[Row]:
    """How many times faster than each peer, the recording of both runs included."""
    module = _model(settings.tiny)
    model = ac.Model(module)
    prompts, length = (2, 6) if settings.tiny else (4, 16)
    task = random_pairs(model, prompts, length)
    tau = SHARE * float(ac.circuits.Wiring(model, task, metric="kl").corrupt.mean())
    table = []
    size = f"{Layout.of(model).n_edges:,} edges, {prompts} prompt pairs of {length} tokens"
    what = f"ACDC, {size}: times faster"
    table.append(_row(settings, what, PLAIN, partial(_plain, model, task, tau), partial(_ours, model, task, tau)))
    found = _authors(module, task, tau)
    ours = partial(_ours, model, task, tau, order=_authors_order(Layout.of(model)), whole_inputs=True)
    what = f"ACDC with whole inputs tried first, {size}: times faster"
    if found is None:
        table.append(Row(what, AUTHORS, "not installed", Goal(">=", 10.0)))
    else:
        table.append(_row(settings, what, AUTHORS, found, ours, Goal(">=", 10.0)))
    return table


def _row(
    settings: Settings,
    what: str,
    peer: str,
    run: Callable[[], Tensor],
    ours: Callable[[], Tensor],
    goal: Goal | None = None,
) -> Row:
    """Both kept the same edges; then they take turns."""
    agree(f"{peer}, kept edges", run(), ours(), 0.0)
    times = interleave({OURS: ours, peer: run}, settings.repeats(3), settings.clock, peer)
    return Row(what, peer, Ratio.of(times[peer], times[OURS]), goal)


def _model(tiny: bool) -> GPT2LMHeadModel:
    """Four blocks of GPT-2's shape with weights so wide that edges differ in what they do."""
    size = {"n_layer": 2, "n_embd": 32, "n_head": 2} if tiny else {"n_layer": 4, "n_embd": 256, "n_head": 8}
    torch.manual_seed(0)
    config = GPT2Config(**size, vocab_size=101 if tiny else 5000, n_positions=64, bos_token_id=0, eos_token_id=0)
    config.initializer_range = 0.1
    return GPT2LMHeadModel(config).eval()


def _ours(model: ac.Model, task: ac.Task, tau: float, **options: Any) -> Tensor:
    return ac.circuits.acdc(model, task, tau, **options).kept


def _plain(model: ac.Model, task: ac.Task, tau: float) -> Tensor:
    """The algorithm as it is written; what nothing reads is dropped at once here, too."""
    wiring = ac.circuits.Wiring(model, task, metric="kl")
    # A run that no other shares an edge with: every pass computes all blocks.
    wiring.hold(torch.full((wiring.layout.n_edges,), 0.5))
    kept = torch.ones(wiring.layout.n_edges, dtype=torch.bool)
    current = float(wiring.clean.mean())
    receivers = wiring.layout.pairs[:, 1]
    for edge in reversed(range(len(kept))):
        if not bool(reaching(wiring.layout, kept)[receivers[edge]]):
            kept[edge] = False
            continue
        tried = kept.clone()
        tried[edge] = False
        value = float(wiring.run(tried).mean())
        if value - current < tau:
            kept, current = tried, value
    return kept


# The authors' code --------------------------------------------------------------------------------------------


def _authors(module: GPT2LMHeadModel, task: ac.Task, tau: float) -> Callable[[], Tensor] | None:
    """Their experiment on the same weights, or None where it or a TransformerLens that it runs on is not installed.

    Its drawing of the graph after each step is left out.
    """
    model, experiment = hooked_lens(module), optional("acdc.TLACDCExperiment")
    if model is None or experiment is None:
        return None
    experiment.show = lambda *_, **__: None  # type: ignore[attr-defined]
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    return partial(_authors_run, model, experiment, task, tau)


@torch.no_grad()
def _authors_run(model: Any, experiment: Any, task: ac.Task, tau: float) -> Tensor:
    model.reset_hooks()
    clean = model(task.clean_ids)[:, -1].log_softmax(-1)

    def divergence(logits: Tensor) -> Tensor:
        return (clean.exp() * (clean - logits[:, -1].log_softmax(-1))).sum(-1).mean()

    with contextlib.redirect_stdout(io.StringIO()):
        run = experiment.TLACDCExperiment(
            model=model,
            ds=task.clean_ids,
            ref_ds=task.corrupt_ids,
            threshold=tau,
            metric=divergence,
            online_cache_cpu=False,
            corrupted_cache_cpu=False,
        )
        while run.current_node is not None:
            run.step()
    layout = Layout(model.cfg.n_layers, model.cfg.n_heads)
    kept = torch.zeros(layout.n_edges, dtype=torch.bool)
    for (receiver, place, sender, origin), edge in run.corr.all_edges().items():
        # Other kinds of edges join the parts of a head.
        if edge.present and edge.edge_type.name == "ADDITION":
            kept[layout.index[f"{_sender(sender, origin)}->{_receiver(receiver, place)}"]] = True
    return kept


def _sender(name: str, index: Any) -> str:
    layer = name.split(".")[1]
    if name.endswith("hook_result"):
        return f"a{layer}.h{index.hashable_tuple[2]}"
    return f"m{layer}" if name.endswith("hook_mlp_out") else "input"


def _receiver(name: str, index: Any) -> str:
    layer, last = name.split(".")[1], name.rpartition(".")[2]
    if last == "hook_mlp_in":
        return f"m{layer}"
    return "logits" if last == "hook_resid_post" else f"a{layer}.h{index.hashable_tuple[2]}<{last[5]}>"


def _authors_order(layout: Layout) -> list[str]:
    """Receivers from the last, and their senders block by block from the last, heads of a block upwards."""

    def key(edge: int) -> tuple[int, int, int, int]:
        s, r = layout.pairs[edge].tolist()
        sender = layout.senders[s]
        return -r, -sender.layer, sender.kind != "mlp", sender.head or 0

    return [layout.edges[edge] for edge in sorted(range(layout.n_edges), key=key)]


if __name__ == "__main__":
    alone(rows, __doc__)
