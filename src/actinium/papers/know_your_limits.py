"""Ulmer and Cina, 2021: the uncertainty of ReLU classifiers far from their data."""

from __future__ import annotations

import math
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    56,
    claim=(
        "Far from the data the scores of ReLU classifiers (single, temperature-scaled, dropout, ensembles, anchored "
        "ensembles, Bayes by backprop) tend to constants with vanishing gradients, and do not tell far points from "
        "the data."
    ),
)
CLAIMED = (
    "ReLU classifiers generalise their confidence to unseen regions, so that single networks, calibrated ones, "
    "dropout, ensembles and Bayes by backprop cannot reliably identify out-of-distribution samples (abstract); scores "
    "converge to fixed points on the polytopes that extend to infinity, and their gradients vanish there (section 4)."
)
WIDTH, NOISE, RADII = 25, 0.125, (1.0, 2.0, 5.0, 10.0, 100.0, 1000.0)
SMALL, RELIABLE, AGREE, CONFIDENT = 1e-6, 0.9, 0.99, 0.99


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Train classifiers of two half-moons and follow rays out of the data.

    Radii are in units of the largest distance of a training point from their mean. The claim holds if for every
    classifier (1) at radius 100 the median norm of every score's gradient is below a millionth of its median on
    held-out data; (2) at radius 1000 the class on 99 % of rays (and members) is the one that the slope of the logits
    predicts; (3) no score has an area under the ROC curve of 0.9 or more for telling points at radius 10, 100 or 1000
    from held-out data; and (4) the Mahalanobis distance from the training data has 0.9 or more at radius 10.

    Args:
        seed: the first of the seeds of weights; data, dropout and rays follow it.
        model: not used: the experiment trains its own classifiers.
        quick: four classifiers, an ensemble of three and 150 steps, instead of six, ten and 300.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError("this experiment trains its own classifiers; to audit yours use ac.signal.far_field_audit")
    steps, members = (150, 3) if quick else (300, 10)
    x, y = _half_moons(500, seed)
    held, labels = _half_moons(250, seed + 1000)
    test, _ = _half_moons(250, seed + 2000)
    tried = _classifiers(x, y, held, labels, seed, steps, members, quick)
    found: dict[str, ac.Result] = {}
    inside: dict[str, dict[str, float]] = {}
    for name, predict in tried.items():
        found[name] = ac.signal.far_field_audit(
            predict, x, held_out=test, radii=RADII, directions=100 if quick else 200, seed=seed
        )
        metrics = ac.signal.UncertaintyMetrics(predict)
        several = metrics.log_probabilities(test[:1]).shape[0] > 1
        names = ["max_prob", "entropy", *(("variance", "mutual_information") if several else ())]
        inside[name] = {m: float(metrics.gradient_norm(m, test).median()) for m in names}
    measured: dict[str, Any] = {}
    vanish, best, agree, distance = [], [], [], []
    for name, result in found.items():
        own = result.data.sel(metric=list(inside[name]))
        ratios = [float(own["gradient"].sel(metric=m, radius=100.0)) / inside[name][m] for m in inside[name]]
        vanish.append(max(ratios))
        best.append(float(own["auroc"].sel(radius=[10.0, 100.0, 1000.0]).max()))
        agree.append(float(result["limit_agrees"].sel(radius=1000.0)))
        distance.append(float(result["auroc"].sel(metric="mahalanobis", radius=10.0)))
        measured |= {
            f"{name}: largest gradient at radius 100 by that on the data": vanish[-1],
            f"{name}: highest AUROC of a score from radius 10 on": best[-1],
            f"{name}: share with confidence above 0.99 at radius 10": float(result["confident"].sel(radius=10.0)),
            f"{name}: class is that of the slope at radius 1000 (share)": agree[-1],
        }
    measured |= {"Mahalanobis distance: AUROC at radius 10": min(distance)}
    parts = {
        "gradients vanish": max(vanish) < SMALL,
        "limits are those of the affine pieces": min(agree) >= AGREE,
        "no score tells far points from the data": max(best) < RELIABLE,
        "a distance does": min(distance) >= RELIABLE,
    }
    measured |= claims_of(parts)
    data = xr.concat([r["auroc"].sel(metric="entropy", drop=True) for r in found.values()], dim="classifier")
    drawn = xr.Dataset({"auroc": data}).assign_coords(classifier=list(found)).assign_attrs(plot={"x": "radius"})
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Networks of three layers of 25 ReLUs in float64, trained with full batches; the paper's searched learning "
            "rates and early stopping are not followed. The figure shows the AUROC of the entropy by radius: below "
            "0.5, far points are judged more certain than the data. The paper's clinical data are not available here. "
            "Members of an ensemble that disagree along a ray leave a wedge of directions that stay uncertain, whose "
            "share is the rest to 1 of the confident ones."
        ),
        result=ac.Result(drawn, "far_field_audit", PAPER.slug),
        settings={"first seed": seed, "steps": steps, "members": members, "noise": NOISE},
    )


def _half_moons(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points (n, 2) of two interleaved half circles with noise, and which one (n,)."""
    random = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    angle = math.pi * torch.rand(n, generator=random, dtype=torch.float64)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    points = torch.where(label[:, None] == 0, points, lower)
    return points + NOISE * torch.randn(n, 2, generator=random, dtype=torch.float64), label


def _network(seed: int, dropout: float = 0.0, bayes: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    kind = ac.signal.BayesLinear if bayes else nn.Linear
    layers: list[nn.Module] = []
    for i in range(3):
        layers += [kind(WIDTH if i else 2, WIDTH), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, kind(WIDTH, 2)).double()


def _trained(net: nn.Sequential, x: Tensor, y: Tensor, steps: int, anchored: int | None = None) -> nn.Sequential:
    """Full-batch Adam; with an anchor's seed also its penalty, and for Bayesian layers their divergence."""
    layers = [m for m in net.modules() if isinstance(m, ac.signal.BayesLinear)]
    anchors = None if anchored is None else ac.signal.anchors_of(net, anchored)
    if anchors is not None:
        net.load_state_dict(ac.signal.anchors_of(net, anchored + 500))
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(steps):
        for layer in layers:
            layer.redraw()
        loss = nn.functional.cross_entropy(net(x), y)
        if anchors is not None:
            loss = loss + ac.signal.anchor_penalty(net, anchors, len(x))
        if layers:
            loss = loss + 0.1 * torch.stack([layer.divergence() for layer in layers]).sum() / len(x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def _classifiers(
    x: Tensor, y: Tensor, held: Tensor, labels: Tensor, seed: int, steps: int, members: int, quick: bool
) -> dict[str, Any]:
    nets = [_trained(_network(seed + i), x, y, steps) for i in range(members)]
    with torch.no_grad():
        scaling = ac.signal.LogitScaling().fit(nets[0](held), labels)
    dropped = _trained(_network(seed, 0.205), x, y, steps)
    tried: dict[str, Any] = {
        "single": nets[0],
        "temperature": scaling.predictor(nets[0]),
        "dropout": ac.signal.MCDropoutPredictor(dropped, 10, seed),
        "ensemble": ac.signal.EnsemblePredictor(nets),
    }
    if not quick:
        anchored = [_trained(_network(seed + i), x, y, steps, seed + i) for i in range(members)]
        tried["anchored ensemble"] = ac.signal.EnsemblePredictor(anchored)
        bayes = _trained(_network(seed, bayes=True), x, y, 4 * steps)
        tried["Bayes by backprop"] = ac.signal.BayesByBackpropPredictor(bayes, 10, seed)
    return tried
