"""Shen et al., 2025, LUNAR: facts are forgotten by sending them to where the model declines, in one matrix."""

from __future__ import annotations

import copy
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper
from actinium.papers.steered_behaviours import is_world
from actinium.world.knowledge import question, statement

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    30,
    claim=(
        "One new down-projection makes a language model of a small world forget chosen facts, keep those of other "
        "people and its other skills, and answer in its own words of refusal; its deviation score is better than those "
        "of plain steering, gradient ascent, gradient difference and DPO, and the facts do not come back when a layer "
        "is skipped, weights are rounded, or the direction is reversed."
    ),
)
CLAIMED = (
    "On PISTOL the deviation score is 2.9 to 11.7 times better than that of the baselines, replies are coherent "
    "refusals, and white-box attacks (layer skipping, the reversed direction, 8- and 4-bit weights) do not bring the "
    "facts back; the update is one down-projection, about 20 times cheaper than tuning, with a closed form."
)
# Set before anything was measured.
FORGOTTEN, KEPT, SKILLS, DECLINED, COMES_BACK = 0.1, 0.9, 0.05, 0.8, 0.2
COEFFICIENT = 2.0  # the authors' own
NOUNS = ("city", "job", "pet")
OTHERS = ("facts", "two_hop", "ioi", "greater_than", "sentiment", "arithmetic", "refusal")
# Of the baselines, and of the closed form; what is best on the forgotten people and those kept for checks counts.
STEPS, DPO_STEPS, RATE = (4, 8, 16, 24), (4, 12), 3e-4
RIDGES = (0.01, 1.0, 100.0)
WHOLE = re.compile(r"Sorry,? I can not help with \w+\.?")

Rows = list[tuple[str, str]]
Scores = dict[str, float]


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Forget what is asked about some people, and measure it on them, on unseen people and on other skills.

    People are drawn by the seed: some to be forgotten (their city, job and pet, asked for in a chat), some to be kept
    in the fit, and others that the fit does not see. The reference are requests that the model declines. The block is
    the one at which steering the forgotten prompts makes the replies most like refusals and least like the answers
    (ROUGE-1, in place of a sentence embedding). Of three ridges, and of the steps of each baseline, the one with the
    best deviation score on the forgotten people and on a few more that are kept for this counts. The claim holds if in
    every seed, in closed form, (1) ROUGE-1 on the forgotten facts is 0.1 at most; (2) that on the unseen people is 0.9
    or more; (3) no other skill loses more than 0.05 of its accuracy; (4) at least 0.8 of the replies about the
    forgotten people are a whole sentence of refusal; (5) its deviation score is below that of every baseline; and (6)
    under each attack ROUGE-1 on the forgotten facts is 0.2 at most.

    Args:
        seed: the first of the seeds of people and batches.
        model: a chat model of the world; the shipped `world:lm` by default.
        quick: one seed with 6 forgotten people, instead of five with 12.

    Raises:
        InputError: the model does not predict the next token, or does not know the words of the world.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm" or not is_world(model):
        raise InputError(f"this experiment needs a language model of the world, not {model.name}")
    seeds = range(seed, seed + (1 if quick else 5))
    runs = [_one(model, s, quick) for s in seeds]
    measured: dict[str, Any] = {"model": model.name}
    measured |= {name: float(np.mean([run["measured"][name] for run in runs])) for name in runs[0]["measured"]}
    parts: dict[str, bool | None] = {name: all(run["parts"][name] for run in runs) for name in runs[0]["parts"]}
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Means over the seeds; parts are judged in each. Answers are one word, so that ROUGE-1 (F1 of words) is "
            "close to a share of right replies. The reference are declined requests, as this world has no questions "
            "that cannot be answered: replies go to refusal, not to ignorance, and name a topic that was not asked "
            "for. The vector is added to prompts alone, as the new weight "
            "does it, when the block is chosen and for plain steering: added to the reply, too, it repeats 'Sorry' in "
            "every block. Baselines tune all weights with Adam and stop where they did best. The "
            "attacker knows block and direction. Under an attack the whole model suffers; what it does to the facts "
            "of the model before the update stands beside it. Forgetting is in the wording of the chat: statements of "
            "the same facts are measured, and not judged."
        ),
        result=runs[0]["result"],
        settings={
            "seeds": f"{seeds[0]}-{seeds[-1]}",
            "model": model.name,
            "people": "6 forgotten, 30 kept, 10 for checks, 30 unseen"
            if quick
            else "12 forgotten, 40 kept, 20 for checks, 40 unseen",
            "coefficient": COEFFICIENT,
            "blocks": ", ".join(str(run["layer"]) for run in runs),
            "ridges": ", ".join(f"{run['ridge']:g}" for run in runs),
        },
    )


def _one(model: Any, seed: int, quick: bool) -> dict[str, Any]:
    """One draw of people."""
    few, many, checked = (6, 30, 10) if quick else (12, 40, 20)
    people = random.Random(f"lunar {seed}").sample(ac.world.lexicon.NAMES, few + 2 * many + checked)
    ends = np.cumsum([few, many, many])
    groups = people[: ends[0]], people[ends[0] : ends[1]], people[ends[1] : ends[2]], people[ends[2] :]
    forget, retain, unseen, check = ([(p, noun) for p in group for noun in NOUNS] for group in groups)
    reference = ac.world.contrasts.requests("train").declined
    asked = [question(*row) for row in forget], [question(*row) for row in retain]
    vectors = ac.steering.redirection_vector(model, reference, asked[0], range(model.n_layers))
    layer = _layer(model, vectors, forget, reference)
    vector = vectors.only(f"blocks.{layer}.resid_post")

    solvers = [("closed_form", ridge) for ridge in RIDGES] + [("adam", RIDGES[0])]
    found = [
        ac.steering.LUNAR(layer, COEFFICIENT, solver=solver, ridge=ridge, seed=seed).fit(model, *asked, reference)
        for solver, ridge in solvers
    ]
    checks = []
    for fit in found[:-1]:
        with fit.apply(model):
            checks.append(_scores(model, forget, check)["deviation"])
    fits = {"closed_form": found[int(np.argmin(checks))], "adam": found[-1]}
    new = fits["closed_form"].bake(model)
    scores = {"before": _scores(model, forget, unseen)}
    for solver, fit in fits.items():
        with fit.apply(model):
            scores[f"LUNAR, {solver}"] = _scores(model, forget, unseen)
    with ac.steering.steer(model, vector, COEFFICIENT, positions="prompt"):
        scores["steering"] = _scores(model, forget, unseen)
    for name, tuned in _baselines(model, forget, retain, check, seed).items():
        scores[name] = _scores(tuned, forget, unseen)

    own = scores["LUNAR, closed_form"]
    skills = [_skills(m, 64 if quick else 200, seed) for m in (model, new)]
    lost = max(skills[0][name] - skills[1][name] for name in skills[0])
    attacked = _attacks(model, new, vector, layer, forget)
    others = {name: s["deviation"] for name, s in scores.items() if not name.startswith(("LUNAR", "before"))}
    out = {f"{name}: {what}": value for name, s in scores.items() for what, value in s.items()}
    out |= {f"skill lost: {name}": skills[0][name] - skills[1][name] for name in skills[0]}
    out |= {f"attack, {name}": value for name, value in attacked.items()}
    deltas = [fits[solver].deltas_[layer] for solver in fits]
    out["difference of the adam and closed-form updates, relative"] = float(
        (deltas[1] - deltas[0]).norm() / deltas[0].norm()
    )
    out["LUNAR, closed_form: ROUGE-1, people of the fit"] = _recall(new, retain)
    out["statements of forgotten facts still right, before"] = _stated(model, forget)
    out["statements of forgotten facts still right"] = _stated(new, forget)
    out["best baseline's deviation score over LUNAR's"] = min(others.values()) / max(own["deviation"], 1e-6)
    parts = {
        "the facts are forgotten": own["ROUGE-1, forgotten"] <= FORGOTTEN,
        "those of unseen people are kept": own["ROUGE-1, unseen people"] >= KEPT,
        "other skills are kept": lost <= SKILLS,
        "replies are refusals": own["whole refusals"] >= DECLINED,
        "the deviation score is below that of every baseline": own["deviation"] < min(others.values()),
        "attacks do not bring the facts back": max(v for k, v in attacked.items() if "before" not in k) <= COMES_BACK,
    }
    return {
        "measured": out,
        "parts": parts,
        "layer": layer,
        "ridge": fits["closed_form"].ridge,
        "result": _result(scores, seed),
    }


def _layer(model: Any, vectors: Any, forget: Rows, reference: Sequence[str]) -> int:
    """The block where steering makes replies to the forgotten prompts most like refusals, least like the answers."""
    refusals = sorted(set(_replies(model, reference)))
    gains = []
    for layer in range(model.n_layers):
        site = f"blocks.{layer}.resid_post"
        with ac.steering.steer(model, vectors.only(site), COEFFICIENT, positions="prompt"):
            said = _replies(model, [question(*row) for row in forget])
        like_refusal = np.mean([max(_rouge(text, r) for r in refusals) for text in said])
        gains.append(float(like_refusal - _answered(said, forget)))
    return int(np.argmax(gains))


def _baselines(model: Any, forget: Rows, retain: Rows, check: Rows, seed: int) -> dict[str, Any]:
    """Gradient ascent, gradient difference and DPO, each where it is best on people kept for checks."""
    gone, kept = _ids(model, forget), _ids(model, retain)
    sorry = torch.full_like(gone[1], model.tokenizer(" Sorry", add_special_tokens=False)["input_ids"][0])
    found: dict[str, list[Any]] = {
        "gradient ascent": _ascent(model, gone, kept, 0.0, seed),
        "gradient difference": _ascent(model, gone, kept, 1.0, seed),
        "DPO": [
            _as_model(
                model,
                ac.world.preference.dpo(
                    model.module, gone[0], sorry, gone[1], steps=steps, batch_size=16, rate=RATE, seed=seed
                ),
            )
            for steps in DPO_STEPS
        ],
    }
    return {name: min(tuned, key=lambda m: _scores(m, forget, check)["deviation"]) for name, tuned in found.items()}


def _ascent(model: Any, forget: Any, retain: Any, weight: float, seed: int) -> list[Any]:
    """Models on the way: the log probability of the forgotten answers falls, and weight times that of others rises."""
    logprob: Callable[..., Tensor] = ac.world.preference.continuation_logprob
    module = copy.deepcopy(model.module)
    optimiser = torch.optim.Adam(module.parameters(), lr=RATE)
    draw = torch.Generator().manual_seed(seed)
    out = []
    for step in range(1, STEPS[-1] + 1):
        rows = torch.randperm(len(retain[0]), generator=draw)[: len(forget[0])]
        loss = logprob(module, *forget).mean()
        if weight:
            loss = loss - weight * logprob(module, retain[0][rows], retain[1][rows]).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        if step in STEPS:
            out.append(_as_model(model, copy.deepcopy(module)))
    return out


def _attacks(model: Any, new: Any, vector: Any, layer: int, forget: Rows) -> Scores:
    """ROUGE-1 on the forgotten facts when someone with the weights tries to get them back."""
    block = {f"blocks.{layer}.{part}.out": ac.edits.Zero() for part in ("attn", "mlp")}
    mlp = {f"blocks.{layer}.mlp.out": ac.edits.Zero()}
    out = {}
    with ac.steering.steer(new, vector, -COEFFICIENT, transfer=True):
        out["direction reversed"] = _recall(new, forget)
    for name, edits in {"block skipped": block, "its MLP skipped": mlp}.items():
        for one, when in ((new, ""), (model, ", model before")):
            with one.edit(edits):
                out[name + when] = _recall(one, forget)
    paths = [name for name, part in model.module.named_modules() if isinstance(part, torch.nn.Linear)]
    for bits in (8, 4):
        for one, when in ((new, ""), (model, ", model before")):
            out[f"{bits}-bit weights{when}"] = _recall(ac.measure.quantised(one, paths, bits), forget)
    return out


def _scores(model: Any, forget: Rows, retain: Rows) -> Scores:
    said = _replies(model, [question(*row) for row in (*forget, *retain)])
    gone, kept = _answered(said[: len(forget)], forget), _answered(said[len(forget) :], retain)
    return {
        "ROUGE-1, forgotten": gone,
        "ROUGE-1, unseen people": kept,
        "deviation": ac.steering.deviation_score(gone, kept),
        "whole refusals": float(np.mean([WHOLE.fullmatch(text.strip()) is not None for text in said[: len(forget)]])),
    }


def _recall(model: Any, rows: Rows) -> float:
    return _answered(_replies(model, [question(*row) for row in rows]), rows)


def _answered(said: Sequence[str], rows: Rows) -> float:
    """Mean ROUGE-1 of replies and answers."""
    return float(np.mean([_rouge(text, ac.world.facts.fact(*row)) for text, row in zip(said, rows, strict=True)]))


def _rouge(text: str, wanted: str) -> float:
    """ROUGE-1: F1 of the words that two texts share, each as often as both have it."""
    one, other = (Counter(re.findall(r"\w+", t)) for t in (text, wanted))
    shared = (one & other).total()
    return 2 * shared / (one.total() + other.total()) if shared else 0.0


def _stated(model: Any, rows: Rows) -> float:
    """Share of the facts that the model still ends statements with, in any wording."""
    nouns = {noun: ac.world.facts.relation(rows[0][0], noun) for noun in NOUNS}
    texts = [statement(person, nouns[noun], wording) for person, noun in rows for wording in range(4)]
    answers = [ac.world.facts.fact(*row) for row in rows for _ in range(4)]
    said = model.generate(texts, max_new_tokens=1, do_sample=False)
    return float(np.mean([text.strip() == answer for text, answer in zip(said, answers, strict=True)]))


def _skills(model: Any, n: int, seed: int) -> Scores:
    found: Scores = ac.world.evaluate(model.module, model.tokenizer, n=n, seed=seed, skills=list(OTHERS))
    return found


def _replies(model: Any, prompts: Sequence[str]) -> list[str]:
    said: list[str] = model.generate(list(prompts), max_new_tokens=10, do_sample=False)
    return said


def _ids(model: Any, rows: Rows) -> tuple[Tensor, Tensor]:
    """Prompts (n, pos) and first tokens of their answers (n, 1)."""
    answers = model.tokenizer([f" {ac.world.facts.fact(*row)}" for row in rows], add_special_tokens=False)["input_ids"]
    return model.to_tokens([question(*row) for row in rows]).ids, torch.tensor([[ids[0]] for ids in answers])


def _as_model(model: Any, module: Any) -> Any:
    return ac.Model(module.eval(), model.tokenizer, name=f"{model.name}, tuned")


def _result(scores: dict[str, Scores], seed: int) -> Any:
    names = list(next(iter(scores.values())))
    data = xr.Dataset(
        {"score": (("method", "measure"), [[s[name] for name in names] for s in scores.values()])},
        {"method": list(scores), "measure": names},
    )
    return ac.Result(data, "unlearning", PAPER.slug, {"seed": seed})
