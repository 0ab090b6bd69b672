"""Li, Yong and Bach, 2024: preference tuning in one language makes an attribute rarer in another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    5,
    claim=(
        "A few MLP units write an attribute in two languages: their value vectors raise its words in both, and they "
        "are active before its words in both. Shifting them up makes the attribute more frequent in both. Preference "
        "tuning in the first language alone makes it rarer in both and lowers these units' activations in both, while "
        "their value vectors stay as they were."
    ),
)
CLAIMED = (
    "English-only DPO cuts the toxic continuations of mGPT-1.3B from 46.8 % to 3.9 % over 17 languages; 36 of 100 "
    "candidate units are actual sources of toxicity in many languages; DPO lowers their activations in all languages "
    "while weights hardly change; retrieval of translations predicts the transfer."
)
PROMPT, NEW, SHIFTED, DELTA = 3, 8, 10, 3.0


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Train a model of two invented languages with marked words, find the units that write them, tune it in one.

    The claim holds if, in every seed, (1) the units among the ten best that are actual sources have marked words of
    both languages among the words that they raise most, (2) adding 3 to them raises the share of marked words in both
    languages, (3) after tuning in the first language the share falls in both, in the second by at least half of the
    first's fall, and (4) the mean activation of the sources falls in both while the mean cosine of their value vectors
    before and after is above .95.

    Args:
        seed: the first of the seeds.
        model: not used: the experiment trains its own model.
        quick: one seed instead of five.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError("this experiment trains its own model; ac.circuits.concept_value_vectors takes yours")
    runs = [_run(s) for s in range(seed, seed + (1 if quick else 5))]
    numbers = [numbers for numbers, _ in runs]
    measured: dict[str, Any] = {name: float(np.mean([one[name] for one in numbers])) for name in numbers[0]}

    def fell(one: dict[str, float], way: str) -> list[float]:
        return [one[f"{way} before, language {i}"] - one[f"{way} after, language {i}"] for i in (1, 2)]

    parts = {
        "sources raise marked words of both languages": all(
            min(one["marked words of language 1 raised"], one["marked words of language 2 raised"]) > 0
            for one in numbers
        ),
        "shifting the sources up raises the share in both": all(
            one[f"share shifted, language {i}"] > one[f"share before, language {i}"] for one in numbers for i in (1, 2)
        ),
        "tuning in one lowers the share in both": all(
            fell(one, "share")[0] > 0 and fell(one, "share")[1] >= fell(one, "share")[0] / 2 for one in numbers
        ),
        "activations fall and value vectors stay": all(
            min(fell(one, "activation")) > 0 and one["cosine of value vectors"] > 0.95 for one in numbers
        ),
    }
    measured |= claims_of(parts)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Means over seeds. Marked words stand for the attribute; the scorer is exact. Two blocks of width 64 that "
            "read both languages and translations. That retrieval predicts transfer is not examined: two languages "
            "give one number."
        ),
        result=runs[0][1],
        settings={"first seed": seed, "seeds": len(runs), "new tokens": NEW, "delta": DELTA},
    )


def _run(seed: int) -> tuple[dict[str, float], Any]:
    """Train, find, shift and tune once."""
    world = ac.world.bilingual
    model, loss = world.train_bilingual(seed)
    random = torch.Generator().manual_seed(seed + 1000)
    prompts = {f"language {i + 1}": _prompts(i, 96, random) for i in range(2)}
    direction = _probe(model, random)
    found = ac.circuits.concept_value_vectors(
        model, direction, top=SHIFTED, prompts=torch.cat(list(prompts.values())), new_tokens=NEW
    )
    units = list(zip(found["layer"].values.tolist(), found["neuron"].values.tolist(), strict=True))
    out: dict[str, float] = {
        "loss [nats]": loss,
        "candidates": float(found["candidates"]),
        "sources": float(len(units)),
    }
    if not units:
        raise InputError("no unit with a positive mean activation was found")
    raised = [[int(w) for w in str(words).split()] for words in found["words"].values]
    for i in range(2):
        low = world.FIRST + i * world.WORDS + world.WORDS - world.MARKED
        hits = [sum(low <= w < low + world.MARKED for w in words) for words in raised]
        out[f"marked words of language {i + 1} raised"] = float(np.mean(hits))
    tuned = ac.Model(_tuned(model, random, seed), name="tuned")
    drop = ac.circuits.activation_drop(model, tuned, prompts, units, NEW)
    for i, (name, given) in enumerate(prompts.items(), start=1):
        out[f"share before, {name}"] = _share(model, given, seed)
        with ac.circuits.shift_neurons(model, units, delta=DELTA):
            out[f"share shifted, {name}"] = _share(model, given, seed)
        out[f"share after, {name}"] = _share(tuned, given, seed)
        out[f"activation before, language {i}"] = float(drop["before"].sel(group=name).mean())
        out[f"activation after, language {i}"] = float(drop["after"].sel(group=name).mean())
    out["cosine of value vectors"] = float(drop["cosine"].mean())
    pairs = [_texts(i, 64, torch.Generator().manual_seed(seed), None)[0] for i in range(2)]
    both = [ac.circuits.sentence_embeddings(model, ids) for ids in pairs]
    out["retrieval of translations"] = float(ac.circuits.bilingual_retrieval(*both)["accuracy"].mean())
    return out, drop


def _texts(language: int, n: int, random: torch.Generator, marked: bool | None) -> tuple[Tensor, Tensor]:
    """Sentences (n, pos) in one language and whether they are about marked things."""
    world = ac.world.bilingual
    about = torch.arange(n) % 2 == 0 if marked is None else torch.full((n,), marked)
    words = world.translate(world.sentences(n, about, random), language)
    return torch.cat([torch.full((n, 1), world.BOS), words], 1), about


def _prompts(language: int, n: int, random: torch.Generator) -> Tensor:
    """First words of sentences, half of them about marked things."""
    return _texts(language, n, random, None)[0][:, : 1 + PROMPT]


def _probe(model: Any, random: torch.Generator) -> Tensor:
    """Direction (d_model,) by logistic regression on mean final states of sentences of the first language."""
    ids, about = _texts(0, 400, random, None)
    states = model.record(ids, "final_norm")["final_norm"].mean(1)
    weight = torch.zeros(states.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(states @ weight, about.float())
        value = value + 1e-3 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weight.detach()


def _tuned(model: Any, random: torch.Generator, seed: int) -> Any:
    """The module after DPO on sentences of the first language: continuations without marked words are better."""
    world = ac.world.bilingual
    prompts = _prompts(0, 512, random)
    good, bad = (world.translate(world.sentences(512, marked, random, NEW), 0) for marked in (False, True))
    return ac.world.preference.dpo(model.module, prompts, good, bad, steps=150, rate=5e-4, seed=seed)


def _share(model: Any, prompts: Tensor, seed: int) -> float:
    """Mean share of marked words in sampled continuations."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        out = model.generate(prompts, max_new_tokens=NEW, do_sample=True)
    return float(ac.world.bilingual.marked_share(out[:, prompts.shape[1] :]).mean())
