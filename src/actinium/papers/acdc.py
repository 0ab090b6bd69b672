"""Conmy et al., 2023: ACDC finds the circuit of a behaviour."""

from __future__ import annotations

from typing import Any

import numpy as np

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    89,
    claim=(
        "ACDC recovers circuits that are known: every edge of four compiled transformers, and one of two paths of "
        "which one is enough. Of a trained model's behaviour it keeps a small share of the edges, and those alone "
        "still do it."
    ),
)
CLAIMED = (
    "All 5 component types of GPT-2 small's Greater-Than circuit, with 68 of about 32,000 edges. Area under the ROC "
    "curve of edges against circuits found by hand (resampling, divergence): IOI 0.87, Greater-Than 0.88, "
    "docstring 0.43."
)
PROGRAMS = ("both", "fraction_so_far", "induction", "reverse")
REDUNDANT = "either"
TAUS = (1e-4, 1e-3, 1e-2, 1e-1)
TASKS = ("ioi", "greater_than", "facts")
TAU = 0.01
# Of the trained model's edges fewer than the first share may be kept, and on other prompts they alone must bring back
# at least the second share of the logit difference.
SHARE, FAITHFUL = 0.05, 0.8


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Run ACDC on models whose circuit was written down, and on behaviours of a trained model.

    The claim holds if in every draw: the sweep over tau of 1e-4, 1e-3, 1e-2 and 1e-1 ranks all edges of each of four
    compiled programs above all others (area 1); of the program with two paths exactly one is kept, at every tau; with
    tau = 0.01 fewer than 5 % of the trained model's edges are kept, and on prompts that ACDC did not see they alone
    give at least 0.8 of the logit difference between the full model and the corrupt run; and no run of ACDC took as
    many passes as there are edges. It cannot be judged where the model does none of the tasks.

    Args:
        seed: of the compiled models' unused parts and of the prompts.
        model: a pre-norm causal language model with a tokenizer; the shipped `world:lm` by default. Where its tokenizer
            does not fit the tasks of the small world, stories that repeat a name are used.
        quick: three draws, and one behaviour with 8 prompts; otherwise five draws and three behaviours with 32.

    Raises:
        InputError: the model does not predict the next token, or its edges are not known.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm":
        raise InputError(f"this experiment needs a causal language model, not {model.name}")
    draws = range(seed, seed + (3 if quick else 5))
    programs = {name: [_program(name, draw, 8 if quick else 32) for draw in draws] for name in (*PROGRAMS, REDUNDANT)}
    found: dict[str, list[dict[str, Any]]] = {}
    for draw in draws:
        tasks = ac.circuits.suitable_tasks(model, TASKS[:1] if quick else TASKS, n=16 if quick else 64, seed=draw)
        for name, task in tasks.items():
            found.setdefault(name, []).append(_behaviour(model, task))
    measured: dict[str, Any] = {}
    for name, runs in programs.items():
        measured |= {f"{name}: {what}": _shown(what, runs) for what in runs[0]}
    measured |= {"model": model.name, "behaviours": ", ".join(found) or "none"}
    for name, runs in found.items():
        measured |= {f"{name}: {what}": _shown(what, runs) for what in runs[0] if what != "circuit"}
    parts = _claims(programs, found)
    measured |= claims_of(parts)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Numbers are the worst over the draws (the least area and faithfulness, the most edges and passes). Areas "
            "of edge attribution (EAP, logit difference) stand beside those of ACDC (divergence); on the trained model "
            "EAP keeps as many edges as ACDC did, its best ones. Faithfulness is (m_circuit - m_corrupt) / (m_full - "
            "m_corrupt) in logit difference, which ACDC did not minimise; half of the prompts are kept for it. Edges "
            "of the compiled models that only carry positions are the same in both prompts, so resampling does not see "
            "them, and they count as no part of the circuit. Passes are those that ACDC used, wrong guesses included."
        ),
        result=next((runs[0]["circuit"] for runs in found.values()), None),
        settings={"seed": seed, "model": model.name, "draws": len(draws), "tau": TAU, "taus": list(TAUS)},
    )


def _program(name: str, seed: int, n: int) -> dict[str, Any]:
    """ACDC and EAP on a compiled program."""
    known = ac.world.compiled.build(name, seed=seed)
    task = known.task(n=n, seed=seed)
    swept = ac.circuits.acdc(known.model, task, TAUS)
    edges = np.asarray(swept.layout.edges)
    kept = [frozenset(edges[row]) for row in swept["kept_at"].values]
    out: dict[str, Any] = {"edges": len(edges), "passes": int(swept["evaluations"].max())}
    if known.redundant:
        rest = known.edges - frozenset().union(*known.redundant)
        return {**out, "one path kept": all(k in [path | rest for path in known.redundant] for k in kept)}
    eap = ac.circuits.edge_attribution(known.model, task, method="eap", metric="logit_diff")
    out["edges of the circuit"] = len(known.edges)
    for method, graph in (("ACDC", swept), ("EAP", eap)):
        out[f"area, {method}"] = float(ac.circuits.circuit_roc(graph, known.edges)["auc"])
    return out


def _behaviour(model: Any, task: Any) -> dict[str, Any]:
    """ACDC on half of a task's prompts, judged on the other half."""
    half = len(task) // 2
    seen, unseen = task[:half], task[half:]
    circuit = ac.circuits.acdc(model, seen, TAU)
    eap = ac.circuits.edge_attribution(model, seen, method="eap", metric="logit_diff").top(circuit.n_kept)
    faithful = {
        who: float(ac.circuits.evaluate_circuit(model, unseen, graph, metric="logit_diff")["faithfulness"])
        for who, graph in (("ACDC", circuit), ("EAP", eap))
    }
    return {
        "edges": circuit.layout.n_edges,
        "edges kept": circuit.n_kept,
        "passes": int(circuit["evaluations"].max()),
        "divergence with the edges kept": float(circuit["metric_kept"][0]),
        "faithfulness on other prompts, ACDC": faithful["ACDC"],
        "faithfulness on other prompts, EAP": faithful["EAP"],
        "circuit": circuit,
    }


def _shown(what: str, runs: list[dict[str, Any]]) -> Any:
    """The worst of the draws."""
    values = [run[what] for run in runs]
    return min(values) if what.startswith(("area", "faithfulness", "one path")) else max(values)


def _claims(
    programs: dict[str, list[dict[str, Any]]], found: dict[str, list[dict[str, Any]]]
) -> dict[str, bool | None]:
    """The parts by the rules of `reproduce`; None where there is nothing to judge by."""
    behaviours = [run for runs in found.values() for run in runs]
    every = [run for runs in programs.values() for run in runs] + behaviours
    return {
        "compiled circuits are recovered": all(run["area, ACDC"] == 1 for name in PROGRAMS for run in programs[name]),
        "one of two paths is kept": all(run["one path kept"] for run in programs[REDUNDANT]),
        "few edges of the trained model are kept": (
            all(run["edges kept"] < SHARE * run["edges"] for run in behaviours) if behaviours else None
        ),
        "they alone do what the model does": (
            all(run["faithfulness on other prompts, ACDC"] >= FAITHFUL for run in behaviours) if behaviours else None
        ),
        "fewer passes than edges": all(run["passes"] < run["edges"] for run in every),
    }
