"""Lee et al., 2024: a model refuses where a condition on the prompt holds, by rules, and nowhere else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

import actinium as ac
from actinium.core.errors import InputError
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    77,
    claim=(
        "A small chat model that answers requests about welcome topics is made to decline those that are worded as "
        "questions and no others, by a condition on its activations and without a change of weights; a rule of two "
        "conditions picks out the questions about half of the topics."
    ),
)
CLAIMED = (
    "On chat models of 2 to 13 billion parameters a condition vector with a threshold tells prompts of a category from "
    "others (F1 of about 0.9), a refusal vector then comes into force for them alone (Hermes 2 Pro: refusal of harmful "
    "prompts from about 45 % to about 90 %, of harmless ones about 2 %), and rules join several conditions."
)
# Set before anything was measured.
F1, DECLINED, SPARED, RULE_DECLINED, RULE_SPARED = 0.9, 0.9, 0.05, 0.8, 0.1
CHOSEN = 0.95
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
LAYERS = (2, 3, 4)
BEHAVIOUR, QUESTION, GROUP = "refuse", "question", "group"
Prompts = list[tuple[str, str, bool]]
"""Text, topic, and whether it is worded as a question."""


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Find the conditions and the behaviour on prompts that the model was trained on, and steer held-out ones.

    In each seed half of the welcome topics are drawn as a group. Conditions ("question": the wording is a question;
    "group": the topic is one of the group) are first components of pairwise differences of mean states between
    prompts that differ in this alone; sets of up to two sites, thresholds and sides are searched for the largest F1 of
    the paper's score. The behaviour is the mean difference at the last token between requests that the model declines
    and others; of block (2 to 4) and strength the first pair, weakest strength first, is taken with which 95 % of the
    training questions are declined, or the best one. The claim holds if in every seed, on held-out combinations of
    topic and wording, (1) the F1 of "question" is 0.9 or more, (2) 0.9 or more of the questions are declined and 0.05
    or fewer of the other requests, (3) replies to prompts whose condition did not fire are those without steering, and
    (4) under "if question and not group then refuse" 0.8 or more of the questions about other topics are declined and
    0.1 or fewer of all other requests.

    Args:
        seed: the first of the seeds.
        model: a chat model that knows the world's requests; the shipped `world:lm` by default.
        quick: 2 seeds instead of 6.

    Raises:
        InputError: the model does not predict the next token.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm":
        raise InputError(f"this experiment needs a causal language model, not {model.name}")
    seeds = range(seed, seed + (2 if quick else 6))
    runs = [_one(model, s) for s in seeds]
    measured: dict[str, Any] = {"model": model.name, "held-out requests": runs[0]["requests"]}
    names = [name for name, value in runs[0].items() if isinstance(value, float)]
    measured |= {name: float(np.mean([run[name] for run in runs])) for name in names}
    least = {name: min(run[name] for run in runs) for name in names}
    most = {name: max(run[name] for run in runs) for name in names}
    parts = {
        "the condition is told": least["F1 of the condition"] >= F1,
        "questions are declined": least["questions declined"] >= DECLINED,
        "other requests are not": most["others declined"] <= SPARED,
        "where the condition does not fire nothing changes": all(run["same"] for run in runs),
        "the rule declines what it names": least["declined where the rule says so"] >= RULE_DECLINED,
        "the rule spares the rest": most["declined elsewhere under the rule"] <= RULE_SPARED,
    }
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "The category is the wording of a request, which has nothing to do with what this model declines by "
            "itself; no harmful text is involved. Means over the seeds. The signed cosine is measured beside the "
            "paper's score, which does not know on which side of the plane across the direction a state lies. The "
            "group is an arbitrary half of the topics, and one direction does not tell it on held-out requests (F1 of "
            "the group): the rule does what it says where its conditions fire, but these do not fire where they should."
        ),
        result=_result(model, runs, seed),
        settings={
            "seeds": f"{seeds[0]}-{seeds[-1]}",
            "model": model.name,
            "behaviour": "; ".join(run["behaviour"] for run in runs),
            "condition": "; ".join(run["condition"] for run in runs),
        },
    )


def _one(model: Any, seed: int) -> dict[str, Any]:
    """Conditions and behaviour of one seed, and what they do to held-out prompts."""
    source = random.Random(f"cast {seed}")
    group = set(source.sample(ac.world.lexicon.WELCOME, len(ac.world.lexicon.WELCOME) // 2))
    train, test = (_prompts(ac.world.contrasts.requests(split).answered) for split in ("train", "heldout"))
    vector, strength = _behaviour(model, train, seed)
    (site,) = vector.sites
    sites = [f"blocks.{i}.resid_post" for i in range(int(site.split(".")[1]) + 1)]
    kinds = {QUESTION: lambda p: p[2], GROUP: lambda p: p[1] in group}
    directions = {
        QUESTION: _direction(model, train, sites, lambda p: p[2], lambda p: p[1], source),
        GROUP: _direction(model, train, sites, lambda p: p[1] in group, _wording, source),
    }
    points = {name: _point(model, train, kinds[name], directions[name]) for name in kinds}
    conditions = {name: point.condition for name, point in points.items()}
    steering = {
        "always": f"if {QUESTION} or not {QUESTION} then {BEHAVIOUR}",
        "CAST": f"if {QUESTION} then {BEHAVIOUR}",
        "rule": f"if {QUESTION} and not {GROUP} then {BEHAVIOUR}",
    }
    texts = [p[0] for p in test]
    replies, fired, ruled = {"none": _replies(model, texts)}, {}, np.zeros(len(texts), dtype=bool)
    for name, rule in steering.items():
        cast = ac.steering.ConditionalSteering({BEHAVIOUR: vector}, conditions, rule, strength=strength)
        with cast.applied(model) as now:
            replies[name] = _replies(model, texts)
        fired[name], ruled = now.fired, now.rules[rule].numpy()
    declined = {name: np.array([ac.world.judging.declines(r) for r in said]) for name, said in replies.items()}
    asked = np.array([kinds[QUESTION](p) for p in test])
    named = asked & ~np.array([kinds[GROUP](p) for p in test])
    holds = {name: one.numpy() for name, one in fired["CAST"].items()}
    still = [i for i in range(len(test)) if not holds[QUESTION][i]]
    signed = _point(model, train, kinds[QUESTION], directions[QUESTION], "projection").condition
    chance = directions[QUESTION].random_like(seed)
    guess = _point(model, train, kinds[QUESTION], chance).condition
    return {
        "requests": len(test),
        "F1 of the condition, where it was searched": points[QUESTION].f1,
        "F1 of the condition": _f1(holds[QUESTION], asked),
        "F1 of the condition, signed cosine": _f1(_fires(model, signed, texts), asked),
        "F1 of a random direction": _f1(_fires(model, guess, texts), asked),
        "F1 of the group": _f1(holds[GROUP], np.array([kinds[GROUP](p) for p in test])),
        "declined without steering": float(declined["none"].mean()),
        "declined when always steered": float(declined["always"].mean()),
        "questions declined": float(declined["CAST"][asked].mean()),
        "others declined": float(declined["CAST"][~asked].mean()),
        "declined where the rule says so": float(declined["rule"][named].mean()),
        "declined elsewhere under the rule": float(declined["rule"][~named].mean()),
        "declined where the rule fired": _share(declined["rule"], ruled),
        "declined where the rule did not fire": _share(declined["rule"], ~ruled),
        "same": all(replies["CAST"][i] == replies["none"][i] for i in still),
        "behaviour": f"{site} x {strength:g}",
        "condition": f"{' or '.join(conditions[QUESTION].sites)} {conditions[QUESTION].fire_when}",
        "shares": {
            name: [float(values[asked].mean()), float(values[~asked].mean())] for name, values in declined.items()
        },
    }


def _prompts(requests: Sequence[str]) -> Prompts:
    found = []
    for text in requests:
        topic = next(t for t in ac.world.lexicon.WELCOME if f" {t}" in text)
        found.append((text, topic, "?" in text))
    return found


def _wording(prompt: tuple[str, str, bool]) -> str:
    return prompt[0].replace(prompt[1], "")


def _direction(model: Any, train: Prompts, sites: list[str], kind: Any, same: Any, source: random.Random) -> Any:
    """The direction from prompts that are not of a kind to those that are, of pairs that are otherwise the same."""
    up, down = [], []
    for prompt in filter(kind, train):
        partners = [p for p in train if not kind(p) and same(p) == same(prompt)]
        if partners:
            up.append(prompt[0])
            down.append(source.choice(partners)[0])
    return ac.steering.extract(model, up, down, sites, method="pca_pairwise", position="mean")


def _point(model: Any, train: Prompts, kind: Any, direction: Any, score: str = "cast") -> Any:
    up, down = ([p[0] for p in train if kind(p) == wanted] for wanted in (True, False))
    return ac.steering.find_condition_point(model, up, down, direction, most=2, score=score)


def _behaviour(model: Any, train: Prompts, seed: int) -> tuple[Any, float]:
    """The refusal vector at one block and its strength."""
    pairs = ac.world.contrasts.contrast("refusal", n=48, seed=seed, split="train")
    questions = [p[0] for p in train if p[2]]
    best: tuple[float, Any, float] = (-1.0, None, 0.0)
    for strength in STRENGTHS:
        for layer in LAYERS:
            vector = ac.steering.extract(model, pairs.positive, pairs.negative, f"blocks.{layer}.resid_post")
            with ac.steering.steer(model, vector, strength):
                said = _replies(model, questions)
            share = float(np.mean([ac.world.judging.declines(reply) for reply in said]))
            if share >= CHOSEN:
                return vector, strength
            if share > best[0]:
                best = (share, vector, strength)
    return best[1], best[2]


def _replies(model: Any, texts: list[str]) -> list[str]:
    said: list[str] = model.generate(texts, max_new_tokens=8, do_sample=False)
    return said


def _fires(model: Any, condition: Any, texts: list[str]) -> np.ndarray:
    return condition.holds(condition.scores(model, texts)).numpy()


def _share(declined: np.ndarray, among: np.ndarray) -> float:
    return float(declined[among].mean()) if among.any() else 0.0


def _f1(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(2 * (predicted & true).sum() / max(1, predicted.sum() + true.sum()))


def _result(model: Any, runs: list[dict[str, Any]], seed: int) -> Result:
    shares = np.array([[run["shares"][name] for name in run["shares"]] for run in runs]).mean(0)
    data = xr.Dataset(
        {"declined": (("steering", "prompts"), shares)},
        coords={"steering": list(runs[0]["shares"]), "prompts": ["questions", "other requests"]},
    )
    inputs = ac.world.contrasts.requests("heldout").answered
    return Result(data, "conditional steering", PAPER.slug, provenance(model, inputs, seed=seed))
