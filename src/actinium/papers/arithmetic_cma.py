"""Stolfo et al., 2023: which layers move the operands of a sum, and which produce its result."""

from __future__ import annotations

from typing import Any

import numpy as np

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    31,
    claim=(
        "In sums the information about the operands is in early layers at their own positions, attention moves it to "
        "the last token, and there MLPs of late layers produce the result: their share of the indirect effects falls "
        "where the result stays the same, and is larger than in retrieving a number and in recalling a fact."
    ),
)
CLAIMED = (
    "GPT-J, Pythia 2.8B, LLaMA 7B and Goat, on sums, differences, products and quotients: information relevant to the "
    "query goes from early layers in the middle of the sequence to the last token by attention, where a set of late "
    "MLPs generates result-related information. Number retrieval and factual queries show another pattern."
)
OPERANDS = ["operand 1", "operand 2"]
# Share of the neurons of a layer whose overlap between tasks is reported.
TOP = 0.1


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Indirect effects of attention and MLP outputs for sums, and for retrieval and facts to compare with.

    RI(S) is the share of log(1 + mean indirect effect) that sites S have. Four parts, each of which has to hold for
    every seed; the claim holds if all do. Operands: at their positions the first half of the layers has more than the
    last. Attention: of all attention outputs those at the last token have more than all others. Result: of the MLPs at
    the last token the last half of the layers has more than the first; and RI of the MLPs of the last half at the
    last token, among all MLPs, falls to less than half where both prompts have the same result (both with |P(r) -
    P*(r)|, the form for one result). Specificity: this RI is larger for sums than for each task to compare with (not
    judged where none fits the model).

    Args:
        seed: of the prompts; this and the ones that follow are examined.
        model: a causal language model that adds numbers of two digits, each of which is one token of its tokenizer;
            the shipped `world:lm` by default.
        quick: 3 seeds of 24 pairs instead of 5 of 64.

    Raises:
        InputError: the model does not predict the next token, its tokenizer splits numbers, or it does not add.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm":
        raise InputError(f"this experiment needs a causal language model, not {model.name}")
    n, seeds = (24, range(seed, seed + 3)) if quick else (64, range(seed, seed + 5))
    found = [_sums(model, n, s) for s in seeds]
    compared = [_compared(model, n, s) for s in seeds]
    names = list(compared[0])
    measured: dict[str, Any] = {"model": model.name, "pairs": n, "seeds": len(seeds)}
    for what in found[0][0]:
        measured |= _spread(what, [numbers[what] for numbers, _ in found])
    for name in names:
        measured |= _spread(f"RI, {name}", [numbers[name] for numbers in compared])
    measured |= _neurons(model, n, seed, names)
    parts = _parts([numbers for numbers, _ in found], compared)
    measured |= claims_of(parts)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "RI without another word is that of the MLPs of the last half of the layers at the last token, among the "
            "MLPs of all layers and positions. Sums only, as the small world knows no other operation; so no pairs "
            "differ in the operator alone. The number to retrieve is a century of two digits. Both operands differ "
            "in a pair, and every number is one token. Effects of the relative form are heavy-tailed, as the model "
            "gives the other result almost no probability; logarithms are taken of their means, as in the paper."
        ),
        result=found[0][1],
        settings={"seed": seed, "seeds": len(seeds), "model": model.name, "pairs": n},
    )


def _spread(what: str, values: list[float]) -> dict[str, float]:
    return {f"{what}, mean": float(np.mean(values)), f"{what}, least": min(values), f"{what}, most": max(values)}


def _sums(model: Any, n: int, seed: int) -> tuple[dict[str, float], Any]:
    """Shares of the indirect effects for sums, and the effects."""
    share = ac.circuits.relative_importance
    task = ac.world.tasks.arithmetic(model, n=n, seed=seed, both=True)
    where = ac.circuits.equation_positions(task)
    effects = ac.circuits.causal_mediation(model, task, positions=where, direct=False)
    layers = effects["layer"].values
    early, late = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    mlps = {"part": "mlp.out", "pos": "last"}
    out = {
        "operands, share of early layers": share(effects, {"pos": OPERANDS, "layer": early}, among={"pos": OPERANDS}),
        "attention, share of the last token": share(effects, {"pos": "last"}, among={"part": "attn.out"}),
        "MLPs at the last token, share of late layers": share(effects, mlps | {"layer": late}, among=mlps),
        "RI, sums": share(effects),
        "accuracy": float(effects["accuracy_clean"]),
        "prediction becomes the other result, last MLP": float(effects["desired"].sel(pos="last", part="mlp.out")[-1]),
        "prediction becomes the other result, first MLP at operand 1": float(
            effects["desired"].sel(pos="operand 1", part="mlp.out")[0]
        ),
    }
    same = ac.world.tasks.arithmetic(model, n=n, seed=seed, same_result=True)
    for name, pairs in (("other result", task), ("same result", same)):
        places = ac.circuits.equation_positions(pairs)
        single = ac.circuits.causal_mediation(model, pairs, positions=places, effect="single", direct=False)
        out[f"RI of |P(r) - P*(r)|, {name}"] = share(single)
    return out, effects


def _tasks(model: Any, n: int, seed: int) -> dict[str, Any]:
    """Tasks to compare with that fit the tokenizer."""
    out = {}
    for name, make in (("number retrieval", "number_retrieval"), ("facts", "facts")):
        try:
            out[name] = getattr(ac.world.tasks, make)(model, n=n, seed=seed)
        except InputError:
            continue
    return out


def _compared(model: Any, n: int, seed: int) -> dict[str, float]:
    """RI of each task to compare with that the model does."""
    out = {}
    for name, task in _tasks(model, n, seed).items():
        try:
            effects = ac.circuits.causal_mediation(model, task, direct=False)
        except InputError:
            continue
        out[name] = ac.circuits.relative_importance(effects)
    return out


def _neurons(model: Any, n: int, seed: int, names: list[str]) -> dict[str, float]:
    """Share of the top neurons of the last MLP at the last token that sums have in common with other tasks."""
    at = f"blocks.{model.n_layers - 1}.mlp.out"
    tasks = {"sums": ac.world.tasks.arithmetic(model, n=n, seed=seed, both=True)}
    tasks["other sums"] = ac.world.tasks.arithmetic(model, n=n, seed=seed + 1, both=True)
    tasks |= {name: task for name, task in _tasks(model, n, seed).items() if name in names}
    effects = {
        name: ac.circuits.causal_mediation(model, task, at, "unit", positions=-1, direct=False)
        for name, task in tasks.items()
    }
    k = max(1, int(TOP * effects["sums"]["indirect"].size))
    return {
        f"top {k} neurons of the last MLP, in common with {name}": ac.circuits.top_overlap(effects["sums"], other, k)
        for name, other in effects.items()
        if name != "sums"
    }


def _parts(sums: list[dict[str, float]], compared: list[dict[str, float]]) -> dict[str, bool | None]:
    """The four parts by the rules of `reproduce`."""
    specific = [
        numbers["RI, sums"] > value for numbers, others in zip(sums, compared, strict=True) for value in others.values()
    ]
    return {
        "operands are in early layers": all(s["operands, share of early layers"] > 0.5 for s in sums),
        "attention moves them to the last token": all(s["attention, share of the last token"] > 0.5 for s in sums),
        "late MLPs produce the result": all(
            s["MLPs at the last token, share of late layers"] > 0.5
            and s["RI of |P(r) - P*(r)|, same result"] < 0.5 * s["RI of |P(r) - P*(r)|, other result"]
            for s in sums
        ),
        "the pattern is that of sums only": all(specific) if specific else None,
    }
