"""Activation functions compared in the same networks, on the same batches, with paired tests over seeds."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.journal import Journal
from actinium.core.progress import shown
from actinium.core.provenance import fingerprint, provenance
from actinium.core.result import Result
from actinium.functions.comparison.comparison_tasks import ComparisonTask, task
from actinium.functions.comparison.landscapes import filter_normalised
from actinium.functions.comparison.run_statistics import holm, paired_comparison, t_interval
from actinium.functions.comparison.task_training import trained_network
from actinium.functions.registry import get

__all__ = ["compare_activations"]

NOISE = (0.25, 0.5, 1.0)
"""Standard deviations of the noise that is added to test inputs."""
DEAD = 1e-6
"""A unit whose output varies less than this over the test inputs, relative to the others, is dead."""
STEPS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Places along a random direction, in lengths of each filter, at which the loss is read."""


@dataclass
class _Run:
    """What one network showed."""

    curve: list[float]
    score: float
    figures: dict[str, float]
    noisy: list[float]

    def plain(self) -> dict[str, Any]:
        """As JSON has it, where a number that is not finite is null."""
        values = asdict(self)
        return {key: _each(value, lambda x: x if math.isfinite(x) else None) for key, value in values.items()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> _Run:
        """The inverse of `plain`, but that infinities come back as NaN."""
        return cls(**{key: _each(value, lambda x: math.nan if x is None else x) for key, value in values.items()})


def _each(value: Any, f: Callable[[Any], Any]) -> Any:
    """A function of each number in lists and mappings."""
    if isinstance(value, Mapping):
        return {k: _each(v, f) for k, v in value.items()}
    return [_each(v, f) for v in value] if isinstance(value, list) else f(value)


def compare_activations(
    activations: Sequence[str] | Mapping[str, Callable[[], nn.Module]],
    on: str | ComparisonTask = "digits",
    seeds: Sequence[int] = (0, 1, 2),
    *,
    level: float = 0.95,
    path: str | os.PathLike[str] | None = None,
    progress: bool = False,
    **settings: Any,
) -> Result:
    """Train the same network with each function and compare.

    For one seed all functions get the same initial weights and the same batches, so that differences are paired.

    Args:
        activations: names of the catalogue, or factories of modules by name. The first one is the reference.
        on: name of a task (see `task`), or a `ComparisonTask`.
        seeds: of weights and batches, two or more for intervals and tests.
        level: coverage of the intervals.
        path: a file that keeps finished runs; the same call goes on from it, and may add functions and seeds. A task of
            one's own is known by its data, its network and the names of its loss and score.
        progress: show a progress bar.
        settings: of a task that is given by its name.

    Returns:
        Result by activation: "score" (seed too), "mean", "low", "high" (Student's t), "rank", and against the reference
        "difference", "p" (paired t-test), "p_holm" (corrected for the number of functions), "effect" (Cohen's d of
        the paired differences); "curve" (seed and epoch: mean training loss); "latent_variance", "gradient_norm" (of
        the last epoch), "gradient_decay" (first over last layer), "dead_units" (share), "roughness" (mean absolute
        second difference of the test loss along filter-normalised random directions, over the loss); "noisy" (score
        with noise on the inputs). A run whose loss is not finite has the score NaN and counts as failed ("failed").

    Raises:
        InputError: fewer than two functions, no seeds, a seed twice, settings for a task of one's own, or a file that
            cannot be written.
        LoadError: the file belongs to another task, or is damaged.
        UnknownNameError: there is no function of a name.

    Source: what Lee, 2023 and Misra, 2020 compare; the directions are those of Li et al., 2018.
    """
    if len(activations) < 2 or isinstance(activations, str):
        raise InputError("a comparison needs two activation functions or more")
    if not len(seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are different numbers, one or more, not {list(seeds)}")
    if settings and not isinstance(on, str):
        raise InputError("settings are for tasks that are given by name")
    factories = (
        dict(activations)
        if isinstance(activations, Mapping)
        else {name: (lambda name=name: get(name)) for name in activations}
    )
    # Made once before any work, so that an unknown name is refused.
    known = {name: _identity(factory) for name, factory in factories.items()}
    chosen = task(on, **settings) if isinstance(on, str) else on
    file = Journal(path, "comparison", _described(chosen))
    kept = {(row["activation"], row["module"], row["seed"]): _Run.of(row["run"]) for row in file.rows}
    runs: dict[tuple[str, int], _Run] = {}
    for name, seed in shown(list(itertools.product(factories, seeds)), f"compare on {chosen.name}", progress):
        run = kept.get((name, known[name], seed))
        if run is None:
            run = _run(chosen, factories[name], seed)
            file.add({"activation": name, "module": known[name], "seed": seed, "run": run.plain()})
        runs[name, seed] = run
    return _result(chosen, list(factories), list(seeds), runs, level)


def _identity(factory: Callable[[], nn.Module]) -> str:
    """What a run depends on of its activation module: class, settings and parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = factory()
    return fingerprint([f"{type(module).__module__}.{type(module).__qualname__}", repr(module), module.state_dict()])


def _described(on: ComparisonTask) -> dict[str, Any]:
    """What runs depend on of their task."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = on.build(nn.ReLU)
    named = {k: f"{f.__module__}.{f.__qualname__}" for k, f in (("loss", on.loss), ("score", on.score))}
    return {
        "task": on.name,
        "epochs": on.epochs,
        "batch_size": on.batch_size,
        "rate": on.rate,
        "data": fingerprint([*on.train, *on.test]),
        "network": fingerprint([repr(network), network.state_dict()]),
        "measures": named,
        "facts": fingerprint(dict(on.facts)),
    }


def _run(on: ComparisonTask, activation: Callable[[], nn.Module], seed: int) -> _Run:
    made: list[nn.Module] = []

    def factory() -> nn.Module:
        made.append(activation())
        return made[-1]

    net, curve, norms = trained_network(on, factory, seed)
    net.eval()
    with torch.no_grad():
        outputs = net(on.test[0])
    good = bool(outputs.isfinite().all()) and math.isfinite(curve[-1])
    score = on.score(outputs, on.test[1]) if good else math.nan
    figures = _figures(on, net, made, seed) | norms
    noisy = [_noisy(on, net, sd, seed) if good and on.continuous else math.nan for sd in NOISE]
    return _Run(curve, score, figures, noisy)


def _figures(on: ComparisonTask, net: nn.Module, activations: list[nn.Module], seed: int) -> dict[str, float]:
    held: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda _, __, y: held.append(y.detach())) for m in activations]
    try:
        with torch.no_grad():
            loss = float(on.loss(net(on.test[0]), on.test[1]))
    finally:
        for hook in hooks:
            hook.remove()
    varied, dead, units = [], 0, 0
    for y in held:
        channels = y.movedim(1, -1) if y.ndim == 4 else y
        variance = channels.flatten(0, -2).var(0)
        varied.append(float(variance.mean()))
        dead += int((variance <= DEAD * variance.mean().clamp(min=1e-30)).sum())
        units += variance.numel()
    return {
        "latent_variance": float(np.mean(varied)) if varied else math.nan,
        "dead_units": dead / units if units else math.nan,
        "roughness": _roughness(on, net, loss, seed),
    }


def _roughness(on: ComparisonTask, net: nn.Module, loss: float, seed: int, directions: int = 3) -> float:
    """Mean absolute second difference of the loss along random directions whose filters are as long as the weights'."""
    if not math.isfinite(loss):
        return math.nan
    source = torch.Generator().manual_seed(seed)
    weights = [p for p in net.parameters() if p.ndim > 1]
    kept = [p.detach().clone() for p in weights]
    bends = []
    try:
        with torch.no_grad():
            for _ in range(directions):
                move = [filter_normalised(torch.randn(p.shape, generator=source), p) for p in kept]
                along = []
                for t in STEPS:
                    for w, p, d in zip(weights, kept, move, strict=True):
                        w.copy_(p + t * d)
                    along.append(float(on.loss(net(on.test[0]), on.test[1])))
                bends.append(float(np.abs(np.diff(along, 2)).mean()))
    finally:
        with torch.no_grad():
            for w, p in zip(weights, kept, strict=True):
                w.copy_(p)
    return float(np.mean(bends)) / max(loss, 1e-12)


def _noisy(on: ComparisonTask, net: nn.Module, sd: float, seed: int) -> float:
    x = on.test[0]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return on.score(net(x + sd * x.std() * noise), on.test[1])


def _result(
    on: ComparisonTask, names: list[str], seeds: list[int], runs: dict[tuple[str, int], _Run], level: float
) -> Result:
    scores = np.array([[runs[name, s].score for s in seeds] for name in names])
    best = np.argsort(np.argsort(-scores.mean(1) if on.higher_is_better else scores.mean(1), kind="stable"))
    rows: dict[str, list[float]] = {k: [] for k in ("mean", "low", "high", "difference", "p", "effect", "failed")}
    for i, row in enumerate(scores):
        low, high = t_interval(row, level)
        found = paired_comparison(row, scores[0]) if i else {"difference": 0.0, "p": math.nan, "effect": math.nan}
        rows["mean"].append(float(row.mean()))
        rows["low"].append(low)
        rows["high"].append(high)
        rows["failed"].append(float(np.isnan(row).sum()))
        for key, value in found.items():
            rows[key].append(value)
    data: dict[str, Any] = {key: ("activation", np.array(values)) for key, values in rows.items()}
    data["score"] = (("activation", "seed"), scores)
    data["rank"] = ("activation", best + 1)
    data["p_holm"] = ("activation", holm(np.array(rows["p"])))
    data["curve"] = (("activation", "seed", "epoch"), np.array([[runs[n, s].curve for s in seeds] for n in names]))
    for key in ("latent_variance", "gradient_norm", "gradient_decay", "dead_units", "roughness"):
        data[key] = ("activation", np.array([np.mean([runs[n, s].figures[key] for s in seeds]) for n in names]))
    data["noisy"] = (
        ("activation", "noise"),
        np.array([np.mean([runs[n, s].noisy for s in seeds], axis=0) for n in names]),
    )
    plot = {"kind": "bar", "variables": ["mean"], "ylabel": f"{on.metric}, {on.name}"}
    dataset = xr.Dataset(
        data, {"activation": names, "seed": seeds, "noise": list(NOISE)}, {"plot": plot, "metric": on.metric}
    )
    first = ["mean", *[k for k in data if k != "mean"]]
    run = provenance(
        seed=seeds[0], task=on.name, seeds=seeds, activations=names, epochs=on.epochs, batch_size=on.batch_size,
        rate=on.rate, facts=dict(on.facts),
    )  # fmt: skip
    return Result(dataset[first], "compare_activations", "gelu-analysis", run)
