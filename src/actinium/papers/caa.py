"""Rimsky et al., 2023: the mean difference of contrast pairs steers behaviour at little cost to other skills."""

from __future__ import annotations

from typing import Any

import numpy as np

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper
from actinium.papers.steered_behaviours import Behaviour, OffTarget, behaviours, off_target

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    78,
    claim=(
        "The mean difference of activations of contrast pairs, added after the prompt at one layer, moves a behaviour "
        "monotonically with its multiplier on held-out prompts, as random vectors of the same length do not, and "
        "there is a multiplier at which it moves it at little cost to other skills."
    ),
)
CLAIMED = (
    "In Llama 2 7B and 13B Chat vectors from a few hundred multiple-choice pairs move seven behaviours with "
    "multipliers from -2 to 2, most at middle layers, beyond system prompts and few-shot examples, with a loss of a "
    "few points on MMLU at most."
)
MULTIPLIERS = (-2.0, -1.0, 0.0, 1.0, 2.0)
# Set before anything was measured: rise from the first to the last multiplier, a step back that still counts as
# monotone, the part of the rise that random vectors may have, and what the chosen cell may cost and must give.
RISE, STEP, RANDOM, PERPLEXITY, ACCURACY, GAIN = 0.5, 0.05, 0.5, 1.1, 0.05, 0.25
SITES = "blocks.*.resid_post"


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Make a vector for each behaviour, choose layer and multiplier on some prompts, and measure on others.

    The layer is the one where multipliers 1 and -1 differ most on prompts for choosing. The claim holds if for every
    behaviour and seed, on other prompts that stand in no pair, (1) success rises by 0.5 from multiplier -2 to 2, and
    by no step falls more than 0.05; (2) three random vectors of the same length move it less than half as far on
    average; and (3) the cell with the highest success among those that raise the perplexity of texts of other skills
    by 10 % and lower the accuracy at one of them by 0.05 at most, chosen on the first prompts, still raises success by
    0.25 on the others, and still costs no more than that, the accuracy being the mean over skills.

    Args:
        seed: the first of the seeds of pairs and prompts.
        model: a causal language model with a tokenizer; the shipped `world:lm` by default. One that does not keep the
            words of the world whole is steered to happy and sad stories, judged by words that were fixed beforehand.
        quick: one seed with 24 pairs and 12 prompts to choose on, instead of three with 96 and 24.

    Raises:
        InputError: the model does not predict the next token, or has no tokenizer.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm":
        raise InputError(f"this experiment needs a causal language model, not {model.name}")
    seeds = range(seed, seed + (1 if quick else 3))
    pairs, prompts, rows = (24, 12, 12) if quick else (96, 24, 48)
    runs: list[tuple[str, dict[str, Any]]] = []
    for s in seeds:
        # Rows of the second draw are measured on; the first one is for choosing.
        others = [off_target(model, 1000 * (part + 1) + s, rows) for part in range(2)]
        for behaviour in behaviours(model, s, pairs, prompts):
            runs.append((behaviour.name, _one(model, behaviour, others, s)))
    measured: dict[str, Any] = {"model": model.name}
    for name in dict.fromkeys(name for name, _ in runs):
        own = [run for kind, run in runs if kind == name]
        for quantity in own[0]["measured"]:
            measured[f"{name}: {quantity}"] = float(np.mean([run["measured"][quantity] for run in own]))
        for claim in own[0]["parts"]:
            measured[f"{name}: share of seeds, {claim}"] = float(np.mean([run["parts"][claim] for run in own]))
    parts: dict[str, bool | None] = {
        claim: all(run["parts"][claim] for _, run in runs) for claim in runs[0][1]["parts"]
    }
    measured |= claims_of(parts)
    chosen = {
        f"{what}, {name}": ", ".join(run[what] for kind, run in runs if kind == name)
        for what in ("layer", "cell")
        for name in dict.fromkeys(kind for kind, _ in runs)
    }
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Means over seeds; the parts of the claim are judged for every behaviour and seed. Success is the share "
            "of greedy continuations that decline, are glad, or are Velic (0.5 where a text says no feeling). The two "
            "texts of a pair call for the behaviour and for its opposite, and are read at their last token. What the "
            "paper compares with, system prompts, few-shot examples and fine-tuning, is not examined: this model was "
            "not taught to follow the first two. Where the unsteered model is glad already a gain has no room, and "
            "success falls with multipliers below 0 alone."
        ),
        result=runs[0][1]["sweep"],
        settings={
            "seeds": f"{seeds[0]}-{seeds[-1]}",
            "model": model.name,
            "pairs": pairs,
            "prompts": prompts,
            **chosen,
        },
    )


def _one(model: Any, behaviour: Behaviour, others: list[OffTarget], seed: int) -> dict[str, Any]:
    """One behaviour in one seed."""
    vector = ac.steering.extract(model, behaviour.positive, behaviour.negative, SITES)
    common = {
        "judge": behaviour.judge,
        "made_from": behaviour.positive + behaviour.negative,
        "max_new_tokens": behaviour.tokens,
        "positions": "last",
        "batch_size": 128,
    }
    first, second = others
    chosen_on = ac.steering.sweep(
        model, vector, MULTIPLIERS, prompts=behaviour.select, texts=first.texts, tasks=first.tasks, **common
    )
    swing = chosen_on["success"].sel(strength=1.0) - chosen_on["success"].sel(strength=-1.0)
    layer = str(swing.coords["site"][int(np.argmax(swing.values))].item())

    at_layer = ac.steering.sweep(model, vector.only(layer), MULTIPLIERS, prompts=behaviour.test, **common)
    curve = at_layer["success"].values[0]
    moved = []
    for number in range(3):
        control = vector.only(layer).random_like(seed * 10 + number)
        ends = ac.steering.sweep(model, control, (-2.0, 2.0), prompts=behaviour.test, **common)["success"].values[0]
        moved.append(abs(float(ends[-1] - ends[0])))
    out = {f"success at {m:g}": float(value) for m, value in zip(MULTIPLIERS, curve, strict=True)}
    out["success moved by random vectors"] = float(np.mean(moved))
    out["relative norm of the vector"] = float(at_layer["relative_norm"].sel(strength=1.0)[0])

    limits = {"perplexity_ratio": PERPLEXITY} | ({"worst_accuracy_lost": ACCURACY} if first.tasks else {})
    best = chosen_on.best("success", at_most=limits)
    again = ac.steering.sweep(
        model,
        vector.only(best.site),
        [best.strength or 1.0],
        prompts=behaviour.test,
        texts=second.texts,
        tasks=second.tasks,
        **common,
    )
    cell = again.data.sel(site=best.site, strength=best.strength)
    gain = float(cell["success"] - again["success"].sel(strength=0.0)[0])
    lost = float(cell["accuracy_lost"].mean()) if second.tasks else 0.0
    out["gain of the chosen cell"] = gain
    out["its perplexity ratio of other texts"] = float(cell["perplexity_ratio"])
    if second.tasks:
        out["its loss of accuracy, mean over skills"] = lost
    rise = float(curve[-1] - curve[0])
    parts = {
        "success rises with the multiplier": rise >= RISE and float(np.diff(curve).min()) >= -STEP,
        "random vectors do not move it as far": out["success moved by random vectors"] < RANDOM * rise,
        "a cell of little cost raises it": gain >= GAIN
        and lost <= ACCURACY
        and out["its perplexity ratio of other texts"] <= PERPLEXITY,
    }
    where = f"{best.site.split('.')[1]} at {best.strength:g}"
    return {"measured": out, "parts": parts, "layer": layer.split(".")[1], "cell": where, "sweep": chosen_on}
