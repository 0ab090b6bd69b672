"""Ouyang et al., 2025, RAST: what tuning did to a small model's logits makes a large one answer as if tuned."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import xarray as xr

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper
from actinium.papers.steered_behaviours import is_world

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    36,
    claim=(
        "The logit difference between a small model of a small world and the same model trained by reward, added to a "
        "large model at every step, gives it most of what reward training gives the large model itself, on questions "
        "of parts that no model was trained on; it is better than the small tuned model alone, than contrastive "
        "decoding and than an unrelated difference, and nearest to the tuned large model near strength 1."
    ),
)
CLAIMED = (
    "Differences of Qwen2.5-1.5B to 14B and their models tuned by reinforcement learning, added to Qwen2.5-14B and "
    "32B at strength 1, give consistent gains on mathematical benchmarks, recover most of the gain of tuning the large "
    "model and sometimes exceed it; shifts are similar across sizes, and results are robust to the strength."
)
# Set before anything was measured.
RECOVERED, SIMILAR, COVERED, OTHERS = 0.5, 0.5, 0.1, 0.5
NEAR = (0.5, 1.5)
STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
PARTS = ("pair", "person")
SAMPLES = 8
EXPERTS = ("world:lm-small-reward", "world:lm-small")
CEILING = "world:lm-reward"
UNRELATED = ("world:lm-lenient-rank8", "world:lm")


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Answer nested questions with the sum of logits, and compare it with the large model that was tuned itself.

    Questions such as "the tool of the job of Ann" are of two held-out parts: facts that no text states, and people of
    whom no text states a fact of several hops. The claim holds if in every draw (1) strength 1 recovers at least 0.5
    of the tuned large model's gain in accuracy over the base, in each part; (2) its accuracy is not below that of the
    small tuned model alone, in each part; (3) contrastive decoding and a pair tuned for something else recover less
    than half as much, in each part; (4) the share of the tuned model's tokens that are the likeliest rises by 0.1 or
    more over the base's; (5) KL(tuned || sum) over strengths 0, 0.5, 1, 1.5 and 2 is smallest from 0.5 to 1.5; and (6)
    the differences of the small and of the large pair have a mean cosine of 0.5 or more at the question's end.

    Args:
        seed: the first of the seeds that draw the questions and samples.
        model: the large model; the shipped `world:lm` by default.
        quick: one draw of 64 questions of each part, instead of three of 160.

    Raises:
        InputError: the model does not predict the next token, or does not know the words of the world.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm" or not is_world(model):
        raise InputError(f"this experiment needs a language model of the world, not {model.name}")
    pair, ceiling = (ac.load(EXPERTS[0]), ac.load(EXPERTS[1])), ac.load(CEILING)
    unrelated = (ac.load(UNRELATED[0]), ac.load(UNRELATED[1]))
    seeds = range(seed, seed + (1 if quick else 3))
    runs = [_one(model, pair, ceiling, unrelated, s, 64 if quick else 160) for s in seeds]
    measured: dict[str, Any] = {"model": model.name}
    measured |= {name: float(np.mean([run["measured"][name] for run in runs])) for name in runs[0]["measured"]}
    transfer = ac.steering.LogitDeltaTransfer(model, pair)
    size = sum(p.numel() for p in model.module.parameters())
    measured["parameters read for each token, base"] = size
    measured["parameters read for each token, with the pair"] = transfer.parameters
    parts: dict[str, bool | None] = {name: all(run["parts"][name] for run in runs) for name in runs[0]["parts"]}
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Means over draws; parts are judged in each. All models are tuned on nested questions of other facts. "
            "Replies are a word, where the paper's are long chains of reasoning, so that one step decides; the large "
            "model has 6.4 times the parameters of the small one, and the tuned small one is nearly as good. The "
            "unrelated pair was tuned to comply with requests. Chances with several samples are at temperature 1, on "
            "16 questions of each part. Three passes for a token: the cost is a count of parameters, not a clock."
        ),
        result=runs[0]["result"],
        settings={
            "seeds": f"{seeds[0]}-{seeds[-1]}",
            "model": model.name,
            "experts": ", ".join(EXPERTS),
            "ceiling": CEILING,
            "unrelated": ", ".join(UNRELATED),
            "questions": 64 if quick else 160,
        },
    )


def _one(model: Any, pair: Any, ceiling: Any, unrelated: Any, seed: int, n: int) -> dict[str, Any]:
    """One draw of questions of each part."""
    asked = {p: random.Random(f"rast {p} {seed}").sample(ac.world.nested.queries(p), n) for p in PARTS}
    transfer = ac.steering.LogitDeltaTransfer
    by_strength = {s: transfer(model, pair, s) for s in STRENGTHS}
    systems = {
        "base": model,
        "small": pair[1],
        "small, tuned": pair[0],
        "large, tuned": ceiling,
        **{f"strength {s:g}": by_strength[s] for s in STRENGTHS if s},
        "contrastive decoding": transfer(model, (model, pair[1])),
        "average with the small tuned one": transfer(model, (pair[0], model), 0.5),
        "unrelated pair": transfer(model, unrelated),
    }
    right = {name: {p: _accuracy(one, asked[p]) for p in PARTS} for name, one in systems.items()}
    out = {f"accuracy, {p}, {name}": right[name][p] for p in PARTS for name in right}
    recovered = {
        name: {p: ac.steering.recovery_rate(right[name][p], right["base"][p], right["large, tuned"][p]) for p in PARTS}
        for name in ("strength 1", "small, tuned", "contrastive decoding", "unrelated pair")
    }
    out |= {f"recovery rate, {p}, {name}": recovered[name][p] for p in PARTS for name in recovered}

    texts = [q.text() for p in PARTS for q in asked[p][:16]]
    paths = {s: ac.steering.path_coverage(one, ceiling, texts, 6) for s, one in by_strength.items()}
    cover, apart = ({s: float(r[v].sel(what="transferred")) for s, r in paths.items()} for v in ("coverage", "kl"))
    out |= {f"coverage of the tuned path, strength {s:g}": value for s, value in cover.items()}
    out |= {f"KL(tuned || strength {s:g}), nats": value for s, value in apart.items()}
    nearest = min(apart, key=lambda s: apart[s])
    out["strength of the smallest KL"] = nearest
    out["share of the KL that is closed at strength 1"] = 1 - apart[1.0] / apart[0.0]
    out["cosine of the differences"] = _similar(pair, (ceiling, model), texts)
    out["cosine of the unrelated difference"] = _similar(unrelated, (ceiling, model), texts)
    for name in ("base", "strength 1", "large, tuned"):
        chances = _chances(systems[name], [q for p in PARTS for q in asked[p][:16]], seed)
        out |= {f"{what}, {name}": value for what, value in chances.items()}
    others = [recovered[name][p] for name in ("contrastive decoding", "unrelated pair") for p in PARTS]
    least = min(recovered["strength 1"].values())
    parts = {
        "most of the gain is recovered": least >= RECOVERED,
        "it is not below the small tuned model": all(right["strength 1"][p] >= right["small, tuned"][p] for p in PARTS),
        "other differences recover less": max(others) < OTHERS * least,
        "it walks the tuned model's path": cover[1.0] - cover[0.0] >= COVERED,
        "it is nearest to the tuned model near strength 1": NEAR[0] <= nearest <= NEAR[1],
        "differences are similar across sizes": out["cosine of the differences"] >= SIMILAR,
    }
    data = xr.Dataset(
        {"accuracy": (("system", "part"), [[right[name][p] for p in PARTS] for name in right])},
        {"system": list(right), "part": list(PARTS)},
    )
    return {"measured": out, "parts": parts, "result": ac.Result(data, "logit transfer", PAPER.slug, {"seed": seed})}


def _accuracy(system: Any, asked: Any) -> float:
    said = system.generate([q.text() for q in asked], max_new_tokens=16, do_sample=False)
    return float(np.mean([_right(text, q) for text, q in zip(said, asked, strict=True)]))


def _right(reply: str, query: Any) -> bool:
    return str(ac.world.judging.answer_verdict(reply, query.person, query.then)) == "true"


def _similar(small: Any, large: Any, texts: list[str]) -> float:
    """Mean cosine at the last token of the questions."""
    found = ac.steering.delta_similarity(small, large, texts)
    last = small[1].to_tokens(texts).mask.sum(1) - 1
    return float(found[torch.arange(len(texts)), last].mean())


def _chances(system: Any, asked: Any, seed: int) -> dict[str, float]:
    """How often one of several samples is right, and the most frequent one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        texts = [q.text() for q in asked for _ in range(SAMPLES)]
        said = system.generate(texts, max_new_tokens=16, do_sample=True, temperature=1.0, top_k=0)
    rows = [said[i : i + SAMPLES] for i in range(0, len(said), SAMPLES)]
    hits = [sum(_right(text, q) for text in row) for row, q in zip(rows, asked, strict=True)]
    out = {f"pass@{k}": float(np.mean([ac.steering.pass_at_k(SAMPLES, c, k) for c in hits])) for k in (1, 4, SAMPLES)}
    voted = [
        ac.steering.majority_at_k([t.strip() for t in row], q.answer, SAMPLES)
        for row, q in zip(rows, asked, strict=True)
    ]
    return out | {f"majority@{SAMPLES}": float(np.mean(voted))}
