"""Fartale et al., 2025: are recalling a fact and reasoning over several the work of different circuits?"""

from __future__ import annotations

from typing import Any

import numpy as np

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    1,
    claim=(
        "Heads chosen for recall (one fact) and for reasoning (a fact that follows from others) dissociate: taking "
        "away those of either task hurts it more than the other task, on prompts on which they were not chosen, and "
        "more than random heads of the same layers do."
    ),
)
CLAIMED = (
    "Qwen and LLaMA models: ablating recall circuits lowers the accuracy of fact retrieval by up to 15 % and leaves "
    "reasoning intact, ablating reasoning circuits lowers that of multi-step inference by a comparable margin; neurons "
    "fire for one of the tasks, but less robustly. Abstract; sizes, thresholds and the formula are not public."
)
RECALL, REASONING = "recall", "reasoning"
SIGNIFICANT = 0.05


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Choose heads (and whole layers, and neurons) for each task on one half of the prompts, ablate on the other.

    The claim holds if for every seed the index of double dissociation of the heads is above 0 with p < 0.05 and
    each of the two circuits costs its own task more accuracy than the other task. A circuit of nothing, where no
    head is selective, costs nothing. Layers and neurons are reported and not judged.

    Args:
        seed: of prompts, splits and random sets; this and the ones that follow are examined.
        model: a causal language model of the small world; the shipped `world:lm` by default.
        quick: 3 seeds of 48 prompts a task instead of 5 of 128, without whole layers and a second pair of tasks.

    Raises:
        InputError: the model does not predict the next token, or does not do both tasks.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm":
        raise InputError(f"this experiment needs a causal language model, not {model.name}")
    n, seeds = (48, range(seed, seed + 3)) if quick else (128, range(seed, seed + 5))
    runs = [_heads(model, _tasks(model, n, s), s) for s in seeds]
    measured: dict[str, Any] = {"model": model.name, "prompts of a task": n, "seeds": len(seeds)}
    for what in runs[0][0]:
        values = [numbers[what] for numbers, _ in runs]
        measured |= {
            f"{what}, mean": float(np.mean(values)),
            f"{what}, least": min(values),
            f"{what}, most": max(values),
        }
    measured |= _others(model, _tasks(model, n, seed), seed, layers=not quick)
    if not quick:
        measured |= _in_context(model, n, seeds)
    shown = [
        r["index"] > 0
        and r["p"] < SIGNIFICANT
        and all(r[f"{own} heads, loss of {own}"] > r[f"{own} heads, loss of {other}"] for own, other in _ORDERS)
        for r, _ in runs
    ]
    measured["seeds that show it"] = sum(shown)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=all(shown),
        notes=(
            "Recall: an elementary fact about a person, reasoning: a fact of two or three hops about a person, both "
            "from the weights, in the same words. Heads are chosen by the difference of their denoising effects, 5 % "
            "of them a task, of those whose interval excludes 0; ablated with the mean over all prompts of both "
            "tasks. Losses are of accuracy among the answers of a task. Both tasks share the way from a person to "
            "what is said of them; in the corpus of this model facts of several hops are stated, too, so that it may "
            "have learnt to recall them."
        ),
        result=runs[0][1],
        settings={"seed": seed, "seeds": len(seeds), "model": model.name, "prompts": n},
    )


_ORDERS = ((RECALL, REASONING), (REASONING, RECALL))


def _tasks(model: Any, n: int, seed: int) -> dict[str, Any]:
    """The two tasks.

    Raises:
        InputError: the model does not do both.
    """
    found = ac.circuits.suitable_tasks(model, ["facts", "two_hop"], n=n, seed=seed)
    missing = [name for name in ("facts", "two_hop") if name not in found]
    if missing:
        raise InputError(
            f"this experiment compares facts and two_hop, and {model.name} does not do {' and '.join(missing)}; it "
            "needs a model of the small world"
        )
    return {RECALL: found["facts"], REASONING: found["two_hop"]}


def _heads(model: Any, tasks: dict[str, Any], seed: int) -> tuple[dict[str, float], Any]:
    """Selectivity of heads on one half and what ablating them costs on the other."""
    chosen_on, tested_on = ac.circuits.split_tasks(tasks, seed=seed)
    contrast = ac.circuits.task_selectivity(model, chosen_on, seed=seed)
    circuits = contrast.circuits()
    loss = ac.circuits.double_dissociation(model, tested_on, circuits, seed=seed)
    names = list(tasks)
    out = {f"selective heads (q < {SIGNIFICANT})": float((contrast["q"] < SIGNIFICANT).sum())}
    for own in names:
        out[f"{own} heads"] = float(len(circuits[own]))
        for task in names:
            out[f"{own} heads, loss of {task}"] = float(loss["drop"].sel(circuit=own, task=task))
    for name in names:
        out[f"accuracy of {name}"] = float(loss["full_accuracy"].sel(task=name))
    out |= {"index": float(loss["index"]), "p": float(loss["p"])}
    out["normalised index"] = float(loss["normalised_index"])
    return out, loss


def _others(model: Any, tasks: dict[str, Any], seed: int, layers: bool) -> dict[str, Any]:
    """The same for neurons and, if wanted, for whole attention and MLP outputs, with one seed."""
    chosen_on, tested_on = ac.circuits.split_tasks(tasks, seed=seed)
    parts = [f"blocks.*.{part}" for part in ("attn.out", "mlp.out") if model.has(f"blocks.*.{part}")]
    contrasts = {"layers": ac.circuits.task_selectivity(model, chosen_on, parts, seed=seed)} if layers else {}
    if model.has("blocks.*.mlp.post"):
        contrasts["neurons"] = ac.circuits.neuron_selectivity(model, chosen_on, seed=seed)
    out: dict[str, Any] = {}
    for name, contrast in contrasts.items():
        loss = ac.circuits.double_dissociation(model, tested_on, contrast.circuits(), seed=seed)
        out[f"{name}: selective (q < {SIGNIFICANT})"] = float((contrast["q"] < SIGNIFICANT).mean())
        out |= {f"{name}: index": float(loss["index"]), f"{name}: p": float(loss["p"])}
    return out


def _in_context(model: Any, n: int, seeds: Any) -> dict[str, Any]:
    """Heads for recall against heads for a fact about what the text says, by seed."""
    runs = []
    for seed in seeds:
        tasks = {RECALL: ac.world.tasks.facts(model, n=n, seed=seed)}
        tasks["reasoning from the text"] = ac.world.tasks.visitors(model, n=n, seed=seed)
        runs.append(_heads(model, tasks, seed)[0])
    return {
        "reasoning from the text: index, mean": float(np.mean([r["index"] for r in runs])),
        "reasoning from the text: seeds with p < 0.05": sum(r["p"] < SIGNIFICANT for r in runs),
    }
