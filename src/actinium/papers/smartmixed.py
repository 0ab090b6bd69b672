"""Omidvar, 2025: each neuron chooses its activation function from a pool, and keeps it for the rest of training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    20,
    claim=(
        "Where each neuron learns which of six activation functions it has, layers differ in what they prefer: early "
        "ones ReLU and LeakyReLU, deeper ones ELU and SELU; and training on with the choices kept is more accurate."
    ),
)
CLAIMED = (
    "On MNIST 98.22% validation and 98.03% test accuracy, 2 to 3 points above the first phase; early layers prefer "
    "ReLU and LeakyReLU, deeper ones ELU and SELU."
)
RATE, BATCH = 2e-3, 128
FEW = ("relu", "elu", "selu")
UNEVEN, DIFFER, DRAWS = 1e-3, 0.05, 5


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Train both phases on digits, look at the choices, and train the same network with each function everywhere.

    The claim holds if (1) in every layer and run the choices are not uniform (chi-square, p < 0.001); (2) the first
    and the last layer choose differently in the runs taken together (p < 0.05); (3) ReLU and LeakyReLU are more than
    a third of the choices in the first layer, which is their share of the pool, and ELU and SELU in the last; and (4)
    in every run the network after both phases is more accurate on test digits than that of the first phase, whose
    functions are drawn (mean of 5 draws).

    Args:
        seed: the first of the seeds.
        model: not used: the experiment trains its own networks.
        quick: two hidden layers, 12 + 12 epochs, two seeds and three single functions instead of three, 50 + 150, five
            and six.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError("this experiment trains its own networks; for yours see ac.functions.GumbelActivationSelector")
    depth, transition, epochs, runs = (2, 12, 24, 2) if quick else (3, 50, 200, 5)
    task = dataclasses.replace(ac.functions.task("digits", depth=depth, epochs=epochs), batch_size=BATCH)
    images = ac.world.digits.load("validation")
    flat = ac.world.digits.load("train").images.flatten(1)
    mean, sd = flat.mean(0), flat.std(0).clamp(min=1e-3)
    validation = ((images.images.flatten(1) - mean) / sd, images.labels)
    rows, reports, moved = [], [], []
    for run in range(seed, seed + runs):
        trainer = ac.functions.SmartMixedTrainer(
            (64,) * depth, transition=transition, epochs=epochs, lr=RATE, batch_size=BATCH, seed=run
        ).fit(task.train, validation)
        rows.append(_accuracies(trainer, task, run))
        reports.append(ac.functions.activation_preference_report(trainer.frozen_))
        moved.append(np.mean([float((t[0] != t[-1]).double().mean()) for t in trainer.trajectory_]))
    sampled, frozen, final = np.array(rows).T
    singles = ac.functions.compare_activations(
        FEW if quick else list(ac.functions.MIXED_POOL), task, range(seed, seed + (1 if quick else runs))
    )
    others = dict(zip(singles.data["activation"].values.tolist(), singles["score"].values, strict=True))
    ranks = ac.functions.mean_reciprocal_rank(
        {"SmartMixed": final[: 1 if quick else runs]} | {k: v.tolist() for k, v in others.items()}
    )
    counts = np.sum([r["count"].values for r in reports], axis=0)
    rectified = counts[:, [0, 3]].sum(1) / counts.sum(1)
    linear = counts[:, [4, 5]].sum(1) / counts.sum(1)
    differ = _p_same(counts[0], counts[-1])
    parts = {
        "choices are not uniform in any layer": all(bool((r["p"].values < UNEVEN).all()) for r in reports),
        "the first and the last layer choose differently": differ < DIFFER,
        "the first layer prefers ReLU and LeakyReLU, the last one ELU and SELU": bool(
            rectified[0] > 1 / 3 and linear[-1] > 1 / 3
        ),
        "both phases are more accurate than the first": bool((final > sampled).all()),
    }
    measured: dict[str, Any] = {
        "accuracy, phase 1 (drawn functions)": float(sampled.mean()),
        "accuracy, choices kept": float(frozen.mean()),
        "accuracy, after phase 2": float(final.mean()),
        "share of neurons that changed their choice": float(np.mean(moved)),
        "p that the first and the last layer choose alike": differ,
        "ReLU and LeakyReLU, first layer": float(rectified[0]),
        "ReLU and LeakyReLU, last layer": float(rectified[-1]),
        "ELU and SELU, first layer": float(linear[0]),
        "ELU and SELU, last layer": float(linear[-1]),
    }
    for i, row in enumerate(counts):
        measured[f"choices, layer {i + 1}"] = ", ".join(
            f"{n} {c}" for n, c in zip(ac.functions.MIXED_POOL, row, strict=True)
        )
    measured |= {f"accuracy, {k} everywhere": float(v.mean()) for k, v in others.items()}
    measured |= {"mean reciprocal rank of SmartMixed": ranks["SmartMixed"], "best rank of a single one": max(
        v for k, v in ranks.items() if k != "SmartMixed"
    )}  # fmt: skip
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "8 x 8 digits instead of MNIST, layers of 64, a learning rate of 2e-3 instead of 1e-4 so that choices move "
            "in few epochs. The second phase goes on from the weights of the first, as the abstract says; the "
            "published code draws new ones. Both phases keep the weights of the lowest validation loss; networks of a "
            "single function, which only the ranks compare, keep the last ones."
        ),
        result=reports[0],
        settings={"seeds": list(range(seed, seed + runs)), "epochs": [transition, epochs], "depth": depth, "lr": RATE},
    )


def _accuracies(trainer: Any, task: Any, seed: int) -> tuple[float, float, float]:
    """Of the first phase with drawn functions, with its choices kept, and after the second phase."""
    x, y = task.test
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        sampled = float(np.mean([task.score(trainer.selector_.eval()(x), y) for _ in range(DRAWS)]))
        return sampled, task.score(trainer.frozen_.eval()(x), y), task.score(trainer.network_.eval()(x), y)


def _p_same(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import chi2_contingency

    table = np.stack([a, b])
    return float(chi2_contingency(table[:, table.sum(0) > 0], correction=False)[1])
