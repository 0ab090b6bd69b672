"""Lieberum et al., 2023: the few parts that answer multiple choice, and what their queries and keys mean."""

from __future__ import annotations

from typing import Any

import numpy as np

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    27,
    claim=(
        "A few parts write the answer's label directly; among them are heads that attend to the right label. Three "
        "axes of such a head's queries, keys and values carry what tells four options apart as long as labels are the "
        "usual ones, and carry less of it where labels are other letters: they partly stand for the place in the list."
    ),
)
CLAIMED = (
    "In Chinchilla 70B 45 nodes (32 heads, 13 MLPs) carry most of the effect on multiple choice; heads that attend to "
    "the correct letter compress to three-dimensional query, key and value subspaces without loss on normal labels; on "
    "random letters the compressed heads explain the behaviour only in part."
)
RANK = 3


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Find the output nodes of the shipped model of multiple choice, classify its heads and compress one.

    The claim holds if, for every draw of prompts, (1) at most a third of the parts keep 80 % of the metric by their
    direct paths, (2) one of those that are heads is of the class "correct letter", (3) three axes of the one with the
    largest direct effect keep the accuracy within two points while one axis loses more than 20, and (4) three axes,
    found on the usual labels, lose more accuracy on random letters than on the usual ones.

    Args:
        seed: the first of the draws.
        model: another model of these prompts (`ac.world.choices`), such as one that was trained anew; the shipped
            `world:choices` by default.
        quick: two draws of 200 prompts instead of five of 400.

    Raises:
        InputError: the model does not answer these prompts.
    """
    model = ac.load("world:choices") if model is None else model
    usual = ac.world.choices.accuracy(model)
    if usual < 0.6:
        raise InputError(
            f"{model.name} gives the right label to {usual:.0%} of the prompts; there is no circuit to find"
        )
    n = 200 if quick else 400
    runs = [_run(model, s, n) for s in range(seed, seed + (2 if quick else 5))]
    numbers = [run[0] for run in runs]
    measured: dict[str, Any] = {
        "accuracy, usual labels": usual,
        "accuracy, random letters": ac.world.choices.accuracy(model, "random"),
        **{name: float(np.mean([one[name] for one in numbers])) for name in numbers[0]},
        "head that was compressed": ", ".join(dict.fromkeys(run[1] for run in runs)),
        "classes of heads": ", ".join(dict.fromkeys(run[2] for run in runs)),
    }
    parts = {
        "a few parts write the answer": all(one["share of parts that keep 80 %"] <= 1 / 3 for one in numbers),
        "some attend to the right label": all(one["heads of class correct letter among them"] >= 1 for one in numbers),
        "three axes suffice and one does not": all(
            one["accuracy"] - one["accuracy, rank 3"] <= 0.02 and one["accuracy"] - one["accuracy, rank 1"] > 0.2
            for one in numbers
        ),
        "less is carried on random letters": all(
            one["lost on random letters, rank 3"] > one["accuracy"] - one["accuracy, rank 3"] for one in numbers
        ),
    }
    measured |= claims_of(parts)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "A transformer of three blocks and width 64, trained on prompts that ask for the label of a value; one in "
            "five of its training prompts had random letters, which it hardly learnt to use, so that little can be "
            "lost on them. A label stands before its value, so a head can tell that it is right only at the value "
            "behind it; attention is counted at the labels, as in the paper. Accuracy is among the four labels. Means "
            "over draws. The head with the largest direct effect of its class is compressed; where there is none, the "
            "one with the largest direct effect."
        ),
        result=runs[0][3],
        settings={"first seed": seed, "draws": len(runs), "prompts": n, "model": model.name},
    )


def _run(model: Any, seed: int, n: int) -> tuple[dict[str, float], str, str, Any]:
    """Numbers, the compressed head, the classes found, and the loss by rank, of one draw of prompts."""
    choices = ac.world.choices
    task, other = choices.task(n, seed, "usual"), choices.task(n, seed, "random")
    metric = ac.circuits.choice_metric(range(4))
    nodes = ac.circuits.output_nodes(model, task, metric=metric, cover=0.8, seed=seed)
    chosen = [str(p) for p, c in zip(nodes["part"].values, nodes["chosen"].values, strict=True) if c]
    kinds = ac.circuits.classify_heads(model, task, choices.LABEL_POSITIONS)["kind"]
    heads = [
        (p, kinds.sel(layer=int(layer), head=int(head)).item())
        for p in nodes["part"].values
        for layer, head in _head(p)
    ]
    right = [p for p, kind in heads if kind == "correct letter"]
    name = str((right or [p for p, _ in heads])[0])
    ((layer, head),) = _head(name)
    made = ac.circuits.HeadCompression(int(layer), int(head)).fit(model, task, choices.LABEL_POSITIONS)
    found = made.evaluate(model, task, choices.LABEL_POSITIONS, ranks=[0, 1, 2, 3, 4])
    moved = made.evaluate(model, other, choices.LABEL_POSITIONS, ranks=[RANK])
    numbers = {
        "parts": float(nodes.data.sizes["part"]),
        "parts that keep 80 %": float(len(chosen)),
        "share of parts that keep 80 %": len(chosen) / nodes.data.sizes["part"],
        "heads of class correct letter": float(len(right)),
        "heads of class correct letter among them": float(sum(p in chosen for p in right)),
        "accuracy": float(found["full_accuracy"]),
        **{f"accuracy, rank {r}": float(found["accuracy"].sel(rank=r)) for r in (0, 1, 2, 3)},
        "lost on random letters, rank 3": float(moved["full_accuracy"] - moved["accuracy"].sel(rank=RANK)),
    }
    counts = {kind: sum(k == kind for _, k in heads) for kind in sorted({k for _, k in heads})}
    return numbers, name, "; ".join(f"{count} {kind}" for kind, count in counts.items()), found


def _head(part: Any) -> list[tuple[str, str]]:
    """Layer and head in the name of a part, nothing where it is no head."""
    layer, _, rest = str(part)[1:].partition(".h")
    return [(layer, rest)] if str(part).startswith("a") and rest else []
