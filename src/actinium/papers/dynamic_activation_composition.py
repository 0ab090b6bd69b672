"""Scalena, Sarti and Nissim, 2024: a strength from the divergence of each step steers several properties at once."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

import actinium as ac
from actinium.core.errors import InputError
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper
from actinium.papers.steered_behaviours import is_world

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    104,
    claim=(
        "With two properties, Velic and a topic, steered at once, strengths that follow the divergence of each step "
        "give each property at least as often as the best constant strength, at less perplexity of texts that have "
        "both."
    ),
)
CLAIMED = (
    "In Mistral-7B-Instruct, with language, safety and formality from 4 examples in 30 prompts and answers of 30 "
    "tokens, the best strength of a constant schedule depends on the property, and dynamic strengths keep the "
    "conditioning high at the least cost to fluency, alone and composed."
)
# Set before anything was measured: what dynamic steering must add to each property, and may lack of the constant one.
GAIN, SHORT = 0.3, 0.05
TOP_P = 0.5
# Every answer has five tokens ("has the job judge ." and "vo ridey kelur shen .").
STEPS = 5
# So that one impossible token does not decide a perplexity.
MOST_NATS = 20.0
AGAINST, OTHERS = "pet", ("job", "pet", "city")
DYNAMIC = "dynamic"


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Steer bare names to sentences that are Velic and about a topic, with each schedule.

    Prompts that show a property end with a name: "The job of Ann is judge. In Velic: Ann" shows Velic and the job.
    Velic is taken against bare names (which the model goes on from in English), the topic against the same prompts
    about pets. The claim holds if in every seed and topic, on names that made no deltas, (1) dynamic strengths
    raise the share of texts with each property by 0.3 over no steering; (2) they give each property as often as the
    better constant schedule (1 or 2, by the rarer property), to within 0.05; and (3) sentences that the model writes
    from prompts that show both properties have a lower perplexity under them than under that constant schedule.

    Args:
        seed: the first of the seeds of names.
        model: a causal language model of the world; the shipped `world:lm` by default.
        quick: one seed and one topic with 24 names for the deltas and 32 others, instead of three seeds, two topics,
            30 names and 50 others.

    Raises:
        InputError: the model does not predict the next token, or its tokenizer does not keep the words of the world.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm":
        raise InputError(f"this experiment needs a causal language model, not {model.name}")
    if not is_world(model):
        raise InputError(f"{model.name} does not keep the words of the world whole, and its prompts are of the world")
    seeds = range(seed, seed + (1 if quick else 3))
    topics = ("job",) if quick else ("job", "city")
    support, tests = (24, 32) if quick else (30, 50)
    runs = [_one(model, s, topic, support, tests) for s in seeds for topic in topics]
    names = list(runs[0]["table"])
    measured: dict[str, Any] = {"model": model.name}
    for name in names:
        for quantity in runs[0]["table"][name]:
            measured[f"{name}: {quantity}"] = float(np.mean([run["table"][name][quantity] for run in runs]))
    for quantity in runs[0]["strengths"]:
        measured[quantity] = float(np.mean([run["strengths"][quantity] for run in runs]))
    parts = {name: all(run["parts"][name] for run in runs) for name in runs[0]["parts"]}
    measured |= claims_of(parts)
    first = runs[0]["table"]
    quantities = list(first[DYNAMIC])
    data = {q: ("schedule", np.array([first[name][q] for name in names])) for q in quantities}
    shown = xr.Dataset(data, coords={"schedule": names}, attrs={"plot": {"variables": ["Velic", "topic"]}})
    record = provenance(model, None, seed=seed, support=support, tests=tests, top_p=TOP_P)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Means over seeds and topics. 'Delta perplexity' is that of reference sentences under steering minus that "
            "under the prompts that the model wrote them from. This model hardly follows examples in its context (four "
            "Velic sentences made 4 of 24 continuations Velic, against 2 without), so one sentence that calls for the "
            "property stands in their place. 'true' is the share of texts that name the right fact. Start and "
            "diminishing schedules begin at 2, the limit of dynamic strengths. 'KL(steered || plain)' is the direction "
            "in which the paper's formula is commonly read; '/ |Q|' is the division of the authors' program."
        ),
        result=Result(shown, "dynamic_activation_composition", PAPER.slug, record),
        settings={
            "seeds": f"{seeds[0]}-{seeds[-1]}",
            "model": model.name,
            "topics": ", ".join(topics),
            "names for the deltas": support,
            "other names": tests,
            "top_p": TOP_P,
            "better constant schedule": ", ".join(run["constant"] for run in runs),
        },
    )


def _one(model: Any, seed: int, topic: str, support: int, tests: int) -> dict[str, Any]:
    """All schedules in one seed, with one topic."""
    people = random.Random(f"composition {seed} {topic}").sample(ac.world.lexicon.NAMES, support + tests)
    made, asked = people[:support], people[support:]
    velic = ac.steering.fit_property(
        model, [_prompt(name, OTHERS[i % len(OTHERS)]) for i, name in enumerate(made)], made, STEPS
    )
    about = ac.steering.fit_property(
        model, [_prompt(name, topic) for name in made], [_prompt(name, AGAINST) for name in made], STEPS
    )
    properties = {"Velic": velic, "topic": about}
    none = ac.steering.DynamicActivationComposition(properties, ac.steering.ConstantSchedule(0.0))
    prompts = [_prompt(name, topic) for name in asked]
    texts = none.generate(model, prompts, STEPS).texts
    # Decoding drops the space between the prompt and what follows.
    references = [f" {text.strip()}" for text in texts]
    judged = _judge(asked, topic)
    base = _perplexity(none, model, prompts, references)
    table = {"prompts that show both": judged(texts) | {"Delta perplexity": 0.0}}
    strengths: dict[str, float] = {}
    for name, schedule in _schedules().items():
        composition = ac.steering.DynamicActivationComposition(properties, schedule)
        found = composition.generate(model, asked, STEPS)
        cost = _perplexity(composition, model, asked, references) - base
        table[name] = judged(found.texts) | {"Delta perplexity": cost}
        if name == DYNAMIC:
            for kind, values in found.strengths.items():
                strengths[f"mean strength of {kind} at the first token"] = float(values[:, 0].nanmean())
                strengths[f"mean strength of {kind} at later tokens"] = float(values[:, 1:].nanmean())

    def rarer(name: str) -> tuple[float, float]:
        return min(table[name]["Velic"], table[name]["topic"]), -table[name]["Delta perplexity"]

    constant = max(("constant 1", "constant 2"), key=rarer)
    ours, theirs, plain = table[DYNAMIC], table[constant], table["none"]
    parts = {
        "dynamic strengths give both properties": all(ours[k] - plain[k] >= GAIN for k in properties),
        "as often as the better constant schedule": all(ours[k] >= theirs[k] - SHORT for k in properties),
        "at less perplexity": ours["Delta perplexity"] < theirs["Delta perplexity"],
    }
    return {"table": table, "strengths": strengths, "parts": parts, "constant": constant}


def _schedules() -> dict[str, Any]:
    room = ac.steering
    return {
        "none": room.ConstantSchedule(0.0),
        "constant 1": room.ConstantSchedule(1.0),
        "constant 2": room.ConstantSchedule(2.0),
        "start 2": room.StartSchedule(2.0),
        "diminishing 2": room.DiminishingSchedule(2.0, STEPS),
        DYNAMIC: room.DynamicKLSchedule(TOP_P),
        "dynamic, KL(steered || plain)": room.DynamicKLSchedule(TOP_P, direction="steered_plain"),
        "dynamic / |Q|": room.DynamicKLSchedule(TOP_P, reduction="mean_q"),
    }


def _prompt(name: str, noun: str) -> str:
    """A text that calls for a Velic sentence about a topic."""
    return f"The {noun} of {name} is {ac.world.facts.fact(name, noun)}. In Velic: {name}"


def _judge(people: Sequence[str], topic: str) -> Callable[[Sequence[str]], dict[str, float]]:
    """Shares of texts about these people that are Velic, about the topic, both, and true."""
    words = ac.world.lexicon.VELIC
    own = {topic, *ac.world.lexicon.ENTITIES[topic]}
    own |= {words[word] for word in own}

    def judged(texts: Sequence[str]) -> dict[str, float]:
        rows = []
        for name, text in zip(people, texts, strict=True):
            said = set(re.findall(r"\w+", text))
            answer = ac.world.facts.fact(name, topic)
            velic, about = ac.world.judging.language(text) == "Velic", bool(said & own)
            rows.append((velic, about, velic and about, bool(said & {answer, words[answer]})))
        return dict(zip(("Velic", "topic", "both", "true"), np.mean(rows, 0).tolist(), strict=True))

    return judged


def _perplexity(composition: Any, model: Any, prompts: Sequence[str], references: Sequence[str]) -> float:
    nats = composition.surprisal(model, prompts, references)
    return float(nats.clamp(max=MOST_NATS).nanmean().exp())
