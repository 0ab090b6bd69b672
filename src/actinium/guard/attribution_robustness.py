"""How much a classifier's attribution maps change under small changes of the input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.provenance import fingerprint, provenance
from actinium.core.result import Result
from actinium.guard.attribution_maps import METHODS, Classifier, attribution_map, refuse_batch_statistics, scores_of
from actinium.guard.perturbation import ifia, pgd

__all__ = ["attribution_robustness", "kendall_from_cosine", "state_agreement", "topk_intersection"]

ATTACKS = ("ifia", "pgd", "noise")


def kendall_from_cosine(cosine: ArrayLike) -> NDArray[np.float64]:
    """Expected Kendall rank correlation of two centred maps with a given cosine, if their entries are Gaussian pairs.

    Args:
        cosine: from -1 to 1, any shape.

    Raises:
        InputError: a value is outside.

    Source: Wang and Kong, 2022, theorem 1 (Greiner's relation).
    """
    value = np.asarray(cosine, dtype=np.float64)
    if not bool((np.abs(value) <= 1).all()):
        raise InputError("a cosine lies between -1 and 1")
    return np.asarray(2 / math.pi * np.arcsin(value))


def topk_intersection(a: Tensor, b: Tensor, k: int) -> Tensor:
    """Share of the k largest entries (by size) of each map that are also among those of the other.

    Args:
        a, b: maps (batch, ...).
        k: how many.

    Returns:
        (batch,) from 0 to 1.

    Raises:
        InputError: shapes differ or `k` is outside a map.
    """
    a, b = a.flatten(1), b.flatten(1)
    if a.shape != b.shape or not 1 <= k <= a.shape[1]:
        raise InputError(f"maps of one shape and k between 1 and their size, not {a.shape}, {b.shape} and {k}")
    marks = [torch.zeros_like(t, dtype=torch.bool).scatter(1, t.abs().topk(k, 1).indices, True) for t in (a, b)]
    return (marks[0] & marks[1]).sum(1) / k


def state_agreement(model: nn.Module, x: Tensor, x_changed: Tensor) -> Tensor:
    """Share of ReLU units whose state (on or off) is the same for two inputs, averaged over layers.

    Args:
        model: a network whose ReLUs are modules.
        x, x_changed: (batch, ...) each.

    Returns:
        (batch,) from 0 to 1.

    Raises:
        InputError: the model has no ReLU module.

    Source: Wang and Kong, 2022, section 4.3.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any) -> None:
        found.append((args[0] > 0).flatten(1))

    relus = [m for m in model.modules() if isinstance(m, nn.ReLU | nn.ReLU6 | nn.LeakyReLU)]
    if not relus:
        raise InputError("the network has no ReLU modules whose states could be compared")
    handles = [m.register_forward_pre_hook(keep) for m in relus]
    try:
        with torch.no_grad():
            scores_of(model, torch.cat([x, x_changed]))
    finally:
        for handle in handles:
            handle.remove()
    halves = [states.chunk(2) for states in found]
    return torch.stack([(one == other).double().mean(1) for one, other in halves]).mean(0)


def attribution_robustness(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    *,
    attack: str = "ifia",
    eps: float = 0.1,
    method: str = "ig",
    k: int | None = None,
    ig_steps: int = 50,
    baseline: float = 0.0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    seed: int = 0,
    **options: Any,
) -> Result:
    """Similarity of the attribution maps of inputs and of attacked inputs, for each input.

    Args:
        model: from inputs (batch, ...) to scores (batch, class), in evaluation mode.
        x: inputs (batch, ...).
        y: their classes (batch,); the same class is attributed in both maps.
        attack: "ifia" (on the map, prediction unchanged), "pgd" (on the classification) or "noise" (a random point).
        eps: radius of the L-infinity ball.
        method: "ig", "saliency", "gradient" or "gradxinput". Maps of "ig" and "gradxinput" are zero where the input
            equals the baseline, before and after, which raises every similarity; look at "gradient" as well.
        k: of the top-k intersection; 100, at most a quarter of the entries, by default.
        ig_steps, baseline: of "ig".
        bounds: lowest and highest value of an input.
        seed: of the attack.
        **options: of `ifia` (objective, steps, restarts) or `pgd` (steps, step).

    Returns:
        Result over row: `kendall` (tau-b), `spearman`, `cosine`, `topk`, `kept` (the prediction is unchanged), `right`
        (of the unchanged input) and `right_attacked`. Rows with a zero map are NaN and counted in `undefined`.

    Raises:
        InputError: `eps` is negative; shapes do not fit; batch statistics in training mode.
        UnknownNameError: there is no such attack or method.

    Source: Wang and Kong, 2022, section 5.1.
    """
    if attack not in ATTACKS:
        raise UnknownNameError(unknown("attack", attack, ATTACKS))
    if method not in METHODS:
        raise UnknownNameError(unknown("attribution method", method, METHODS))
    refuse_batch_statistics(model)
    if attack == "ifia":
        attacked = ifia(model, x, y, eps, method=method, k=k, baseline=baseline, bounds=bounds, seed=seed, **options).x
    else:
        chosen = {"steps": 0} if attack == "noise" else options
        attacked = pgd(model, x, y, eps, bounds=bounds, generator=seed, **chosen)
    first, second = (
        attribution_map(model, one, y, method, steps=ig_steps, baseline=baseline).detach() for one in (x, attacked)
    )
    size = first[0].numel()
    values = _similarities(first, second, min(100, max(1, size // 4)) if k is None else k)
    with torch.no_grad():
        before, after = scores_of(model, x).argmax(1), scores_of(model, attacked).argmax(1)
    values |= {"kept": before == after, "right": before == y, "right_attacked": after == y}
    data: dict[str, Any] = {name: (("row",), value.cpu().numpy()) for name, value in values.items()}
    data["undefined"] = ((), int(values["cosine"].isnan().sum()))
    settings = {"attack": attack, "eps": eps, "attribution": method, "ig_steps": ig_steps, "seed": seed, **options}
    about = provenance(model if isinstance(model, Model) else None, {"x": x, "y": y}, **settings)
    if isinstance(model, nn.Module):
        about["weights"] = fingerprint([p.detach().cpu() for p in model.parameters()])
    hints = {"plot": {"variables": ["kendall", "cosine", "topk"], "ylabel": "similarity of the two maps"}}
    return Result(xr.Dataset(data, attrs=hints), "attribution_robustness", "igr", about)


def _similarities(first: Tensor, second: Tensor, k: int) -> dict[str, Tensor]:
    """Each similarity (row,) float64 of two maps (row, ...), NaN where one is zero."""
    from scipy.stats import kendalltau, spearmanr

    one, other = first.flatten(1).double().cpu(), second.flatten(1).double().cpu()
    values: dict[str, list[float]] = {"kendall": [], "spearman": []}
    for a, b in zip(one.numpy(), other.numpy(), strict=True):
        defined = bool(a.any() and b.any())
        values["kendall"].append(float(kendalltau(a, b).statistic) if defined else math.nan)
        values["spearman"].append(float(spearmanr(a, b).statistic) if defined else math.nan)
    found = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    found |= {"cosine": F.cosine_similarity(one, other, dim=1), "topk": topk_intersection(one, other, k).double()}
    return {name: torch.where(found["kendall"].isnan(), torch.nan, value) for name, value in found.items()}
