"""Højer, Jarvis and Heinrich, 2025: a direction read from solved tasks, and what adding it does to answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import actinium as ac
from actinium.core.errors import InputError
from actinium.core.intervals import wilson
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    115,
    claim=(
        "The mean difference of activations at right and at wrong answers to training questions tells right from wrong "
        "answers to held-out ones, and adding it to the residual stream raises the accuracy of tasks that the model "
        "does not solve, where random vectors of equal norm do not, and moves the distribution of answers more."
    ),
)
CLAIMED = (
    "Vectors derived from activations on solved tasks, added to the residual stream of Mistral-7B-Instruct and Pythia "
    "models, improve inductive, deductive and mathematical reasoning without training (bAbI, indirect objects, GSM8K; "
    "gains of several points); the effect shows in KL divergence and entropy."
)
TASKS = ("two_hop", "arithmetic", "ioi", "multiple_choice")
SITES = "blocks.*.resid_post"
# Set before anything was measured. Above the last of these an accuracy leaves nothing to raise.
READ, SOLVED = 0.75, 0.95
CONTROLS = 3


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Read right and wrong answers by layer, and add the contrast vector at every token of the questions.

    For each task the vector of each layer comes from training questions with their right and their wrong answer, at
    the answer. Layer and strength are chosen on other training questions, everything is measured on held-out ones.
    The claim holds if (1) in most tasks the vector of the chosen layer scores the right answer above the wrong one in
    more than 0.75 of held-out pairs and in more than that of the answer's embedding alone does, (2) in most tasks
    whose accuracy is at most 0.95 adding it has an accuracy whose 95 % Wilson interval lies above the accuracy
    without it, and above the accuracy with each of 3 random vectors of equal norm, and (3) at strength 1 its mean KL
    divergence is larger than that of each random vector in most tasks. (2) is not judged where no task has room.

    Args:
        seed: the first of the seeds of questions and of random vectors.
        model: a causal language model with a tokenizer; the shipped `world:lm` by default.
        quick: one seed, 64 training, 48 validation and 96 test questions in each task, instead of 3 with 128, 96 and
            200.

    Raises:
        InputError: the model does not predict the next token, or its tokenizer fits none of the tasks.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm":
        raise InputError(f"this experiment needs a causal language model, not {model.name}")
    sizes = (64, 48, 96) if quick else (128, 96, 200)
    seeds = range(seed, seed + (1 if quick else 3))
    runs = [(name, run) for s in seeds for name in TASKS if (run := _one(model, name, s, sizes)) is not None]
    if not runs:
        raise InputError(f"the tokenizer of {model.name} fits none of the tasks {', '.join(TASKS)}")
    measured: dict[str, Any] = {"model": model.name}
    for name in dict.fromkeys(name for name, _ in runs):
        of = [run["measured"] for other, run in runs if other == name]
        measured |= {f"{name}: {what}": float(np.mean([m[what] for m in of])) for what in of[0]}
    room = [run for _, run in runs if run["measured"]["accuracy"] <= SOLVED]
    measured["tasks and seeds with room for a gain"] = len(room)
    parts = {
        "right answers are read": _most([run["read"] for _, run in runs]),
        "adding the vector raises accuracy": _most([run["raised"] for run in room]) if room else None,
        "the distribution moves more than with random vectors": _most([run["moved"] for _, run in runs]),
    }
    measured |= claims_of(parts)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Means over seeds. Accuracy: the answer is the likeliest next token, of the whole vocabulary. KL in nats "
            "from the distribution without the vector, entropy in bits, at the answer. Reading accuracy is the share "
            "of held-out pairs in which the right answer scores above the wrong one. Reading is examined as the paper "
            "uses it; generation with control vectors belongs to steering. Questions that the shipped model solves "
            "leave no room for a gain."
        ),
        result=_figure(runs),
        settings={
            "seeds": f"{seeds[0]}-{seeds[-1]}",
            "model": model.name,
            "train, validation, test": ", ".join(map(str, sizes)),
            "layers": ", ".join(f"{name} {run['layer']}" for name, run in runs),
        },
    )


def _most(shown: list[bool]) -> bool:
    return sum(shown) * 2 > len(shown)


def _figure(runs: list[tuple[str, dict[str, Any]]]) -> Any:
    """Reading accuracy over task and layer, of the first seed."""
    first = {name: run["by_layer"] for name, run in reversed(runs)}
    names = [name for name in TASKS if name in first]
    values = np.stack([first[name] for name in names])
    data = xr.Dataset(
        {"reading_accuracy": (("task", "layer"), values)}, {"task": names, "layer": np.arange(values.shape[1])}
    )
    return ac.Result(data, "pair_accuracy", PAPER.slug)


def _one(model: Any, name: str, seed: int, sizes: tuple[int, int, int]) -> dict[str, Any] | None:
    """Reading and adding in one task; nothing where the tokenizer does not fit."""
    train, validation, test = sizes
    make = getattr(ac.world.tasks, name)
    try:
        known = make(model, n=train + validation, seed=seed, split="train")
        held = make(model, n=test, seed=seed)
    except InputError:
        return None
    fit, choose = known[:train], known[train:]
    vectors = ac.probes.ContrastReadingVector(SITES).fit(model, *_answered(fit))
    chosen_by = ac.probes.pair_accuracy(vectors, model, *_answered(choose))["accuracy"]
    reading = str(chosen_by["site"].values[chosen_by.values.argmax()])
    test_reading = ac.probes.pair_accuracy(vectors, model, *_answered(held))["accuracy"]
    token = ac.probes.ContrastReadingVector("embed").fit(model, *_answered(fit))
    alone = float(ac.probes.pair_accuracy(token, model, *_answered(held))["accuracy"].squeeze())
    read = float(test_reading.sel(site=reading))
    probed = _probed(model, fit, held, reading)

    trials = {}
    for site in vectors.directions_:
        for strength in (0.5, 1.0):
            trials[site, strength] = _accuracy(_logits(model, choose, {site: vectors[site] * strength}), choose)
    site, strength = max(trials, key=lambda key: trials[key])
    vector = vectors[site]
    base = _logits(model, held, {})
    added = _logits(model, held, {site: vector * strength})
    full, reverse = (_logits(model, held, {site: vector * a}) for a in (1.0, -1.0))
    random = [_random(vector, seed * CONTROLS + i) for i in range(CONTROLS)]
    others = [_logits(model, held, {site: v * strength}) for v in random]
    moved = [_kl(_logits(model, held, {site: v}), base) for v in random]
    accuracy, with_vector = _accuracy(base, held), _accuracy(added, held)
    controls = [_accuracy(o, held) for o in others]
    low, _ = wilson(with_vector, len(held))
    found = {
        "reading accuracy": read,
        "reading accuracy from the embedding": alone,
        "accuracy of a logistic probe of right and wrong": probed,
        "accuracy": accuracy,
        "accuracy with the vector": with_vector,
        "accuracy with the best random vector": max(controls),
        "accuracy with the vector reversed": _accuracy(reverse, held),
        "strength": strength,
        "KL at strength 1": _kl(full, base),
        "largest KL of a random vector": max(moved),
        "entropy": _entropy(base),
        "entropy at strength 1": _entropy(full),
        "mass of the right answer": _mass(base, held),
        "mass of the right answer at strength 1": _mass(full, held),
    }
    return {
        "measured": found,
        "by_layer": test_reading.values,
        "layer": f"{reading.split('.')[1]} (added at {site.split('.')[1]})",
        "read": read > READ and read > alone,
        "raised": low > accuracy and with_vector > max(controls),
        "moved": found["KL at strength 1"] > max(moved),
    }


def _answered(task: Any) -> tuple[list[str], list[str]]:
    """The questions with their right and with their wrong answers."""
    pairs = [(task.clean, task.answers), (task.clean, task.wrong)]
    right, wrong = ([a + b for a, b in zip(*pair, strict=True)] for pair in pairs)
    return right, wrong


def _probed(model: Any, fit: Any, held: Any, site: str) -> float:
    """Held-out accuracy of a logistic regression of right and wrong answers at the same place."""
    acts, labels = [], []
    for task in (fit, held):
        texts = _answered(task)
        rows = [model.record(part, site, positions=-1)[site][:, 0] for part in texts]
        acts.append(torch.cat(rows))
        labels.append(np.repeat([1, 0], len(task)))
    return ac.probes.LinearProbe(C=0.1).fit(acts[0], labels[0]).score(acts[1], labels[1])


def _logits(model: Any, task: Any, vectors: dict[str, Tensor]) -> Tensor:
    """(n, d_vocab) at the answer, with vectors added at every token of the question."""
    with torch.no_grad():
        if not vectors:
            return model.logits(task.prompts())[:, -1].double()
        with model.edit({site: ac.edits.Add(v.float()) for site, v in vectors.items()}):
            return model.logits(task.prompts())[:, -1].double()


def _random(vector: Tensor, seed: int) -> Tensor:
    drawn = torch.randn(len(vector), generator=torch.Generator().manual_seed(seed), dtype=vector.dtype)
    return drawn * (vector.norm() / drawn.norm())


def _accuracy(logits: Tensor, task: Any) -> float:
    return float((logits.argmax(1) == task.answer_ids).double().mean())


def _kl(logits: Tensor, base: Tensor) -> float:
    """Mean KL(base || logits), in nats."""
    p, q = base.log_softmax(1), logits.log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


def _entropy(logits: Tensor) -> float:
    """Mean entropy in bits."""
    log_p = logits.log_softmax(1)
    return float(-(log_p.exp() * log_p).sum(1).mean() / np.log(2))


def _mass(logits: Tensor, task: Any) -> float:
    return float(logits.softmax(1).gather(1, task.answer_ids[:, None]).mean())
