"""Greff et al., 2015: which parts of an LSTM matter, and which of its settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    57,
    claim=(
        "On a task that needs forgetting an LSTM without a forget gate fails, one whose input and forget gates are "
        "coupled does not, and of its settings the learning rate accounts for most of the variance of the error. With "
        "all nine variants: none is significantly better than the LSTM, and leaving out the forget gate and the output "
        "activation function hurts most."
    ),
)
CLAIMED = (
    "In 5400 runs on speech, handwriting and music no variant is significantly better than the LSTM; the forget gate "
    "and the output activation function are its most critical parts; coupled gates and no peepholes do not hurt; the "
    "learning rate accounts for over two thirds of the variance, then the hidden size; settings hardly interact."
)
# Set before anything was measured. The paper says that the learning rate has more than two thirds.
FAILS, MOST = 3.0, 0.5
TIME, RESET, HIDDEN = 24, 0.15, 16
QUICK = ("V", "NFG", "CIFG")
SPACE = {
    "lr": (1e-5, 1e-1, "log"),
    "hidden": {"low": 4, "high": 32, "scale": "log", "integer": True},
    "noise": (0.0, 1.0),
}


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Train variants of an LSTM to add up numbers since the last reset, and draw settings at random.

    The claim holds if (1) without a forget gate the test error is more than three times that of the LSTM, (2) with
    coupled gates it is no higher than that of the LSTM, and (3) the learning rate has the largest share of the variance
    over random settings by itself, above one half. A whole run also judges whether (4) no variant is significantly
    better than the LSTM in the best tenth of its random trials (Welch, p < 0.05), and (5) the two variants with the
    highest mean error of their best tenth are those without forget gate and without output activation function.

    Args:
        seed: the first of the seeds of weights and data.
        model: not used: the experiment trains its own networks.
        quick: one seed of three variants, and one search of few short trials; else three of all, and one search each.

    Raises:
        InputError: a model is given.
        MissingExtraError: scikit-learn is not installed.
    """
    if model is not None:
        raise InputError("this experiment trains its own networks; for yours use ac.functions.fANOVA on their runs")
    seeds = range(seed, seed + (1 if quick else 3))
    variants = QUICK if quick else tuple(ac.functions.LSTM_VARIANTS)
    steps, trials, short = (250, 16, 20) if quick else (250, 40, 60)
    errors = np.array([[_error_of(v, HIDDEN, 1e-2, 0.0, steps, s) for s in seeds] for v in variants])
    mean = dict(zip(variants, errors.mean(1), strict=True))
    searches = {v: _search(v, trials, short, seed) for v in (variants if not quick else ("V",))}
    shares = _shares(searches["V"], seed)
    measured: dict[str, Any] = {f"{v}: test error": float(e) for v, e in mean.items()}
    measured |= {f"share of the variance: {name}": share for name, share in shares.items()}
    lr = shares["lr"]
    parts: dict[str, bool | None] = {
        "without a forget gate the error is more than three times as large": bool(mean["NFG"] > FAILS * mean["V"]),
        "coupled gates are no worse": bool(mean["CIFG"] <= mean["V"]),
        "the learning rate matters most": lr > MOST and lr == max(shares.values()),
    }
    if not quick:
        best = ac.functions.compare_best({v: s["outcome"].values for v, s in searches.items()}, "V").data
        measured |= {f"{v}: mean error of the best tenth": float(best["mean"].sel(search=v)) for v in variants}
        better = best["significant"] & (best["mean"] < best["mean"].sel(search="V"))
        worst = set(best["search"].values[np.argsort(best["mean"].values)[-2:]])
        parts |= {
            "no variant is significantly better": not bool(better.any()),
            "forget gate and output activation matter most": worst == {"NFG", "NOAF"},
        }
    data = xr.Dataset(
        {"test error": (("variant",), errors.mean(1))},
        coords={"variant": list(variants)},
        attrs={"plot": {"kind": "bar", "ylabel": "mean squared error"}},
    )
    return Evidence(
        measured=measured | claims_of(parts),
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Sums of uniform numbers since the last reset, halved, over 24 steps with a reset at 15 % of them, in the "
            "place of speech, handwriting and music; Adam in the place of SGD with momentum, and fewer settings. The "
            "shares belong to the ranges, and to short trials. On a task where nothing has to be forgotten the LSTM "
            "without a forget gate is no worse: which part matters is a matter of the task. The rate of learning falls "
            "to zero: with a constant one, tried first, the error of a run changed by a factor of two with the order "
            "in which sums were rounded, and part (1) with it."
        ),
        result=ac.Result(data, "lstm_odyssey", "lstm-odyssey"),
        settings={"seeds": len(seeds), "first seed": seed, "steps": steps, "trials": trials, "steps of a trial": short},
    )


def _sums(size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers and reset flags (size, 24, 2), and half of the sum since the last flag (size, 24, 1)."""
    x = torch.rand(size, TIME, generator=rng)
    flag = (torch.rand(size, TIME, generator=rng) < RESET).float()
    whole = x.cumsum(1)
    since = (flag * torch.arange(1.0, TIME + 1)).cummax(1).values.long()  # 0 where there was no flag yet
    before = torch.cat([torch.zeros(size, 1), whole - x], 1).gather(1, since)
    return torch.stack([x, flag], -1), (whole - before)[..., None] / 2


def _error_of(variant: str, hidden: int, lr: float, noise: float, steps: int, seed: int) -> float:
    """Mean squared error on other sequences after training, with noise of that deviation on the inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, head = ac.functions.LSTMVariant(2, hidden, variant), nn.Linear(hidden, 1)
    weights = [*net.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(weights, lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
    rng = torch.Generator().manual_seed(seed + 1)
    for _ in range(steps):
        x, y = _sums(64, rng)
        seen = x + noise * torch.randn(x.shape, generator=rng)
        optimiser.zero_grad()
        functional.mse_loss(head(net(seen)[0]), y).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
    x, y = _sums(512, torch.Generator().manual_seed(10_000))
    with torch.no_grad():
        return float(functional.mse_loss(head(net(x)[0]), y))


def _search(variant: str, trials: int, steps: int, seed: int) -> ac.Result:
    def outcome(settings: dict[str, Any], trial_seed: int) -> float:
        return _error_of(variant, settings["hidden"], settings["lr"], settings["noise"], steps, trial_seed)

    return ac.functions.random_search(SPACE, outcome, trials, seed)


def _shares(search: ac.Result, seed: int) -> dict[str, float]:
    """Share of the variance of each setting and each pair."""
    fitted = ac.functions.fANOVA(SPACE, seed=seed).fit({n: search[n].values for n in SPACE}, search["outcome"].values)
    pairs = ac.functions.interaction_importance(fitted)["importance"]
    names = list(SPACE)
    return {
        " and ".join(dict.fromkeys([one, other])): float(pairs.sel(setting=one, other=other))
        for i, one in enumerate(names)
        for other in names[i:]
    }
