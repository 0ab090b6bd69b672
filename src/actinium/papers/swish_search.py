"""Ramachandran, Zoph and Le, 2017: activation functions found by search, and the best of them instead of ReLU."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

import actinium as ac
from actinium.core.errors import InputError
from actinium.core.provenance import provenance
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    85,
    claim=(
        "A search over compositions of unary and binary functions, scored by small networks, finds activation "
        "functions that do at least as well as ReLU; simple ones do better than complicated ones; and x sigmoid(beta "
        "x) gives better results than ReLU in its place."
    ),
)
CLAIMED = (
    "ImageNet top-1 accuracy rises by 0.9% (Mobile NASNet-A) and 0.6% (Inception-ResNet-v2) when ReLU is exchanged for "
    "Swish; of the functions found, those of one or two core units do best."
)
UNARY = ("x", "neg", "abs", "square", "scale", "sin", "cos", "tanh", "relu", "neg_part", "sigmoid", "gauss")
BINARY = ("add", "mul", "sub", "max", "min", "gate")
SWISH = "mul(x, sigmoid(beta*x))"
AGREE, CLEAR = 0.4, 0.05
NET = {"epochs": 4, "depth": 2, "width": 32}


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Search random expressions with two seeds of the child network, and train the best again with others.

    The space has 12 unary and 6 binary functions; a child has two layers of 32, is trained for four epochs on four
    fifths of the training digits and scored on the rest. The claim holds if the two seeds' scores have a rank
    correlation above 0.4; the best expression is no worse than ReLU on test digits, in the mean over fresh seeds; the
    median score of expressions of two units is below that of one unit; and Swish is above ReLU with p < 0.05 (paired
    t-test over seeds, Holm's correction).

    Args:
        seed: of the sample, and the first of the seeds of weights and batches.
        model: not used: the experiment trains its own networks.
        quick: 10 expressions and 3 fresh seeds instead of 40 and 10; expressions of two units are not tried.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError("this experiment trains its own networks; for a task of yours see ac.functions.TaskChild")
    n, seeds = (10, range(seed + 2, seed + 5)) if quick else (40, range(seed + 2, seed + 12))
    found = [_search(n, s, seed) for s in (seed, seed + 1)]
    table = found[0].result.data["expression"].values
    scores = np.array([[t.score for t in f.trials] for f in found])
    whole = np.isfinite(scores).all(0)
    agree = float(spearmanr(*scores[:, whole]).statistic)
    best = str(table[int(np.nanargmax(np.where(whole, scores.mean(0), np.nan)))])
    names = {"ReLU": "relu(x)", "Swish": SWISH, "best": best}
    again = ac.functions.compare_activations(
        {k: ac.functions.ActivationExpression.from_string(t).to_module for k, t in names.items()},
        "digits",
        seeds,
        **NET,
    )
    mean = dict(zip(names, again["mean"].values.tolist(), strict=True))
    p = float(again["p_holm"].values[1])
    two = None if quick else float(np.nanmedian([t.score for t in _search(n, seed, seed, 2).trials]))
    one = float(np.nanmedian(scores[0]))
    parts = {
        "scores of two seeds agree in rank (0.4)": agree > AGREE,
        "the best expression is no worse than ReLU on test data": mean["best"] >= mean["ReLU"],
        "expressions of two units score lower in the median": None if two is None else two < one,
        "Swish is better than ReLU (p < 0.05)": mean["Swish"] > mean["ReLU"] and p < CLEAR,
    }
    measured: dict[str, Any] = {
        "expressions trained": int(scores.shape[1]),
        "of them failed": int((~whole).sum()),
        "expressions refused": len(found[0].refused),
        "rank correlation of two seeds": agree,
        "best expression": best,
        "lowest score": float(np.nanmin(scores)),
        "median score": one,
        "highest score": float(np.nanmax(scores)),
    }
    measured |= {} if two is None else {"median score of two units": two}
    measured |= {f"test accuracy, {k}": v for k, v in mean.items()} | {"p of Swish against ReLU": p}
    order = np.argsort(-scores[0], kind="stable")
    data = xr.Dataset(
        {"first seed": ("expression", scores[0][order]), "second seed": ("expression", scores[1][order])},
        {"expression": table[order]},
        {"plot": {"kind": "line", "variables": ["first seed", "second seed"], "ylabel": "accuracy, held-out digits"}},
    )
    about = provenance(seed=seed, expressions=n, seeds=list(seeds), **NET)
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Multilayer perceptrons on 8 x 8 digits, not residual networks on CIFAR-10 and ImageNet; a random sample "
            "of the expressions of one unit instead of all 6,250. Controller and evolution are tried in "
            "`actinium functions search`."
        ),
        result=ac.Result(data, "exhaustive search", PAPER.slug, about),
        settings={"seed": seed, "agree": AGREE, "clear": CLEAR, **NET},
    )


def _search(n: int, child_seed: int, seed: int, units: int = 1) -> Any:
    child = ac.functions.TaskChild("digits", (child_seed,), **NET)
    return ac.functions.exhaustive_search(child, UNARY, BINARY, units, n, seed=seed)
