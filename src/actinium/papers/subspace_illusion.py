"""Makelov, Lange and Nanda, 2023: a subspace patch can work through a pathway that the model does not use."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import actinium as ac
from actinium.core.errors import InputError
from actinium.core.result import Result
from actinium.papers.contract import Evidence, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    42,
    claim=(
        "A subspace patch can act as if it changed a feature by waking a dormant pathway: along the part of the "
        "subspace that is read alone it does little. Directions that distributed alignment search finds in the hidden "
        "layer of an MLP are of this kind, and those that it finds in the residual stream are not."
    ),
)
CLAIMED = (
    "GPT-2 small, indirect objects: the direction found in MLP 8 at the last token works where patching the whole MLP "
    "does not, and fails along its row-space part; the one in the residual stream of layer 8 keeps its effect. The "
    "same is seen in factual recall (GPT-2 XL), and such directions should be common in MLP layers."
)
# The stream carries the feature from the first layer at which patching it whole restores this share of the behaviour.
ARRIVED = 0.8
NAMES = ("Lily", "Tim", "Tom", "Ben", "Sam", "Max", "Mia", "Lucy", "Anna", "Sara")
STORIES = (
    "There was a child named {name}. The child was happy. One day,",
    "Once upon a time, there was a little child named {name}. One day,",
    "There was a friend named {name}. The friend was happy. One day,",
    "There lived a child named {name}. The child was sad. One day,",
)


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Test a constructed dormant pathway, and directions learned in an MLP and in the stream of a trained model.

    Constructed: a hidden layer whose read-out is orthogonal to all that the layer does; the direction that mixes the
    feature with the read-out must work (every pair flips) and be called illusory, and the feature alone and the
    read-out alone must do nothing. Trained model: for each seed and task, one direction is learned at the last
    position on training pairs, in the stream that enters the first layer at which patching it whole restores 0.8
    of the behaviour, and in the hidden layer of that layer's MLP; both are tested on held-out pairs by
    `illusion_test` with its thresholds. The MLP's part holds if most runs are called illusory, the stream's if most
    are called faithful; neither is judged where the stream's direction works in no run. The claim holds if all three
    parts do.

    Args:
        seed: the first seed of the pairs and of the search.
        model: a causal language model with a tokenizer; the shipped `world:lm` by default. Where its tokenizer does
            not fit the tasks of the small world, stories that repeat one of two names are used.
        quick: 3 seeds of one task with 8 pairs, instead of 5 seeds of two tasks with 64.

    Raises:
        InputError: the model does not predict the next token, or has no MLP whose hidden layer is read by one map.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm" or not model.has("blocks.*.mlp.post"):
        raise InputError(f"this experiment needs a causal language model with plain MLPs, not {model.name}")
    seeds = range(seed, seed + (3 if quick else 5))
    toys = [_constructed(s) for s in seeds]
    measured: dict[str, Any] = {
        "constructed, flips along the mixed direction": float(np.mean([t["mixed"] for t in toys])),
        "constructed, flips along the feature alone": float(np.mean([t["feature"] for t in toys])),
        "constructed, flips along the read-out alone": float(np.mean([t["readout"] for t in toys])),
        "constructed, flips with the whole layer": float(np.mean([t["full"] for t in toys])),
        "constructed, called illusory": float(np.mean([t["illusory"] for t in toys])),
    }
    shown = all((t["mixed"], t["feature"], t["readout"], t["illusory"]) == (1, 0, 0, 1) for t in toys)
    runs = [_learned(model, name, s, quick) for name in _task_names(model, quick) for s in seeds]
    runs = [run for run in runs if run]
    measured |= {"model": model.name, "runs in which some layer has the feature": len(runs)} | _summary(runs)
    works = [r for r in runs if r["stream"].data["fldd"].sel(patch="subspace") >= 0.5]
    parts: dict[str, bool | None] = {
        "a constructed dormant pathway is found out": shown,
        "directions in the MLP are illusory": _most(runs, "MLP", "illusory") if works else None,
        "directions in the stream are faithful": _most(runs, "stream", "faithful") if works else None,
    }
    measured |= {f"claim: {name}": "not judged" if value is None else value for name, value in parts.items()}
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "FLDD is the fractional logit-difference decrease on held-out pairs, 2 for a full flip. world:lm has no "
            "feature of name order at the last token of its indirect objects, where one head copies the name itself, "
            "so tasks with two answers are used (happy or sad; Sorry or Sure). What reads the stream is the gradient "
            "of the logit difference (99 % of its squared length); what reads the MLP's hidden layer is its down "
            "projection. 'Exceeds full' counts runs in which the direction has more than twice the effect of the whole "
            "layer. MLPs behind the feature's arrival take part in the answer themselves in this model, so that the "
            "row part of a direction carries the feature, too."
        ),
        result=_figure(runs) if runs else toys[0]["result"],
        settings={"seeds": f"{seeds[0]}-{seeds[-1]}", "model": model.name, "pairs": _pairs(quick), "arrived": ARRIVED},
    )


def _figure(runs: list[dict[str, Any]]) -> Result:
    """Mean effect of each patch in both places."""
    means = {place: sum(run[place]["fldd"] for run in runs) / len(runs) for place in ("stream", "MLP")}
    hints = {"kind": "bar", "variables": list(means), "ylabel": "fractional logit-difference decrease"}
    return Result(xr.Dataset(means, attrs={"plot": hints}), "illusion_test", PAPER.slug)


def _pairs(quick: bool) -> int:
    return 8 if quick else 64


def _most(runs: list[dict[str, Any]], place: str, verdict: str) -> bool:
    return sum(int(run[place].data[verdict]) for run in runs) * 2 > len(runs)


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the runs, by place."""
    out: dict[str, Any] = {}
    for place in ("stream", "MLP") if runs else ():
        results = [run[place].data for run in runs]
        for patch, name in (("full", "whole"), ("subspace", "direction"), ("null", "null part"), ("row", "row part")):
            values = [float(r["fldd"].sel(patch=patch)) for r in results]
            out[f"{place}, FLDD, {name}"] = float(np.mean(values))
        flips = [float(r["interchange_accuracy"].sel(patch="subspace")) for r in results]
        kept = [float(r["fldd"].sel(patch="row") / r["fldd"].sel(patch="subspace")) for r in results]
        out[f"{place}, interchange accuracy, direction"] = float(np.mean(flips))
        out[f"{place}, share that the row part keeps"] = float(np.mean(kept))
        out[f"{place}, null share of the direction"] = float(
            np.mean([float(r["share"].sel(part="null")) for r in results])
        )
        for verdict in ("illusory", "faithful", "exceeds_full"):
            out[f"{place}, runs: {verdict.replace('_', ' ')}"] = sum(int(r[verdict]) for r in results)
    return out


def _constructed(seed: int) -> dict[str, Any]:
    """A layer that knows the feature but does not use it, and a read-out of it that is silent in all inputs."""
    g = torch.Generator().manual_seed(seed)
    feature = torch.randint(0, 2, (2000,), generator=g).double() * 2 - 1
    stream = 0.5 * torch.randn(2000, 16, generator=g).double()
    stream[:, 0] = feature
    hidden = torch.nn.functional.gelu(stream @ (torch.randn(16, 128, generator=g).double() / 4))
    gap = hidden[feature > 0].mean(0) - hidden[feature < 0].mean(0)
    known = torch.linalg.qr(torch.cat([gap[None], ac.circuits.pca_directions(hidden, 100)]).T)[0]
    readout = torch.randn(128, generator=g).double()
    readout = readout - known @ (known.T @ readout)
    readout = readout / readout.norm() * 6 / gap.norm()
    up, down = (feature > 0).nonzero()[:, 0], (feature < 0).nonzero()[:, 0]
    n = min(len(up), len(down))
    base, source = torch.cat([up[:n], down[:n]]), torch.cat([down[:n], up[:n]])

    def logit_difference(activations: Tensor) -> Tensor:
        return feature[base] * (stream[base, 0] + (activations - hidden.mean(0)) @ readout)

    out: dict[str, Any] = {}
    mixed = gap / gap.norm() + readout / readout.norm()
    for name, direction in (("mixed", mixed), ("feature", gap), ("readout", readout)):
        found = ac.circuits.illusion_diagnostics(
            direction, hidden[base], hidden[source], readout, feature[base], logit_difference
        )
        flips = found["interchange_accuracy"]
        out[name] = float(flips.sel(patch="subspace"))
        if name == "mixed":
            out |= {"full": float(flips.sel(patch="full")), "illusory": int(found["illusory"]), "result": found}
    return out


def _task_names(model: Any, quick: bool) -> list[str]:
    fitting = []
    for name in ("sentiment",) if quick else ("sentiment", "refusal"):
        try:
            getattr(ac.world.tasks, name)(model, n=2)
        except InputError:
            continue
        fitting.append(name)
    return fitting or ["stories"]


def _tasks(model: Any, name: str, seed: int, quick: bool) -> tuple[Any, Any] | None:
    """Pairs to learn from and held-out ones, all with the same two answers."""
    n = _pairs(quick)
    if name != "stories":
        make = getattr(ac.world.tasks, name)
        return make(model, n=n, seed=seed, split="train"), make(model, n=2 * n, seed=seed)
    names = list(NAMES)
    random.Random(seed).shuffle(names)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            both = (first, second)
            try:
                parts = [ac.circuits.repeated_names(model, names=both, frames=f) for f in (STORIES[:2], STORIES[2:])]
            except InputError:
                continue
            return parts[0], parts[1]
    return None


def _learned(model: Any, name: str, seed: int, quick: bool) -> dict[str, Any] | None:
    """Test results of the directions learned in the stream and in the MLP; nothing where the task is not done."""
    tasks = _tasks(model, name, seed, quick)
    if tasks is None:
        return None
    train, test = tasks
    streams = ac.circuits.patch(model, train, "blocks.*.resid_pre", over="pos", positions=[-1], normalise=False)
    gap = float(streams["m_clean"] - streams["m_corrupt"])
    arrived = np.flatnonzero(streams["effect"].values[:, 0] >= ARRIVED * gap) if gap > 0 else []
    if not len(arrived):
        return None
    layer = int(arrived[0])
    out: dict[str, Any] = {}
    for place, part in (("stream", "resid_pre"), ("MLP", "mlp.post")):
        site = f"blocks.{layer}.{part}"
        search = ac.circuits.DAS(site, mode="noise", batch_size=4 if quick else 20, seed=seed).fit(model, train)
        readout = ac.circuits.reading_directions(model, test, site) if place == "stream" else None
        out[place] = ac.circuits.illusion_test(model, test, site, search.directions_, readout)
    return out
