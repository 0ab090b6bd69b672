"""Zhu et al., 2023: in lazy training, networks that fit flipped labels exactly can still predict nearly at best."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    51,
    claim=(
        "In the lazy regime, interpolation of flipped labels is harmless for well-separated classes in high dimension; "
        "of several interpolants the smoother ones generalise better; the error of regression settles at a constant "
        "that noise of labels and of the initialisation decides."
    ),
)
CLAIMED = (
    "For well-separated classes, Bayes-optimal test error with nearly zero training error in the lazy regime; smoother "
    "interpolation generalises better; the error of NTK regression converges to a constant that depends on label and "
    "initialisation noise; lower bounds of the margin and of the kernel's smallest eigenvalue in high dimension."
)
FLIPPED, DIMS = 0.1, (2, 20, 200, 1000)
# Set before anything was measured, but for the width sweep and the dimensions, for which the card holds numbers.
HARMLESS, HARMFUL, SMOOTH, SLOPE = 0.01, 0.02, 0.5, (-0.65, -0.35)
LENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
DEPTHS = (1, 2, 4, 8)
Kernel = Callable[[Tensor, Tensor], Tensor]


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Interpolate clusters with flipped labels by tangent kernels and by wide networks, in several dimensions.

    The claim holds if (1) kernel interpolants fit all noisy labels and err on at most 1 % more clean ones than the best
    rule in 200 and 1000 dimensions; (2) they err on 2 % more or worse in 2; (3) a wide network trained by gradient
    descent in 200 dimensions fits 99 % of the noisy labels and errs on at most 1 % of clean ones; (4) the relative move
    of the weights falls with width with a log-log slope from -0.65 to -0.35; (5) the smallest eigenvalue of the kernel
    and the margin over the norm of the interpolant rise from the lowest to the highest dimension; (6) over ten
    interpolants of the same data the slope has a rank correlation of 0.5 or more with the test error; (7) with noise,
    the error of regression changes by less than a quarter when the data double for the last time, without it it falls
    by more, and more noise of either kind ends higher.

    Args:
        seed: the first of the seeds of data and weights.
        model: not used: the experiment makes its own networks.
        quick: two seeds instead of five (one for networks), narrower networks, fewer data.

    Raises:
        InputError: a model is given.
        MissingExtraError: scikit-learn is not installed.
    """
    if model is not None:
        raise InputError("this experiment makes its own networks; to examine yours use ac.signal.LazyMonitor")
    seeds = list(range(seed, seed + (2 if quick else 5)))
    kernel = partial(ac.signal.analytic_ntk_relu, depth=2)
    report = ac.signal.benign_overfitting_report(
        lambda x, y: ac.signal.KernelInterpolator(kernel).fit(x, y),
        ac.signal.TwoClusters(),
        [FLIPPED] if quick else [0.0, FLIPPED, 0.2],
        DIMS,
        seeds,
    )
    noisy = report.data.sel(eta=FLIPPED)
    measured: dict[str, Any] = {}
    for d in DIMS:
        measured[f"d={d}: clean test accuracy"] = 1 - float(noisy["test_error"].sel(dim=d))
        measured[f"d={d}: norm of the interpolant"] = float(noisy["norm"].sel(dim=d))
        measured[f"d={d}: kind"] = str(report["kind"].sel(dim=d).item())
    eigenvalues = {d: _smallest(kernel, d, seeds) for d in (DIMS[0], DIMS[-1])}
    measured |= {f"d={d}: smallest eigenvalue": value for d, value in eigenvalues.items()}
    wide = _networks(seeds[:1] if quick else seeds, 256 if quick else 2048)
    sweep = _sweep(seeds[:1] if quick else seeds[:3], (64, 256, 1024) if quick else (64, 256, 1024, 4096))
    smooth = _smoothness(seeds)
    curves = _regression(seeds, (50, 100, 200, 400) if quick else (50, 100, 200, 400, 800))
    measured |= wide | sweep | {"rank correlation of slope and test error": smooth}
    measured |= {f"regression, {name}: last error": float(c[-1]) for name, c in curves.items()}
    measured |= {f"regression, {name}: last by last but one": float(c[-1] / c[-2]) for name, c in curves.items()}
    parts = {
        "interpolation of noise is harmless in high dimension": bool(
            noisy["train_error"].max() == 0 and noisy["excess"].sel(dim=[200, 1000]).max() <= HARMLESS
        ),
        "and harmful in the plane": float(noisy["excess"].sel(dim=2)) >= HARMFUL,
        "a trained network does the same": (
            wide["network, d=200: accuracy on noisy training labels"] >= 0.99
            and wide["network, d=200: clean test accuracy"] >= 1 - HARMLESS
        ),
        "wider is lazier": SLOPE[0] <= sweep["digits: slope of the weights' move over width"] <= SLOPE[1],
        "eigenvalue and margin rise with dimension": bool(
            eigenvalues[DIMS[-1]] > eigenvalues[DIMS[0]]
            and noisy["norm"].sel(dim=DIMS[-1]) < noisy["norm"].sel(dim=DIMS[0])
        ),
        "smoother interpolants generalise better": smooth >= SMOOTH,
        "the error of regression settles where noise puts it": _settles(curves),
    }
    measured |= claims_of(parts)
    excess = report.data["excess"].transpose("dim", "eta")
    drawn = xr.Dataset({"excess": excess, "train_error": report.data["train_error"].transpose("dim", "eta")})
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Clusters 12 standard deviations apart, inputs of unit length, 200 to train and 400 to test; kernels of "
            "two hidden layers, networks of one. An interpolant has labels as its values, so its margin for its norm "
            "is the inverse of the norm. The theorems' constants are not examined, only the directions they give; "
            "that the plane is harmful is no theorem of the paper. In many dimensions a network keeps much of the "
            "random function that it starts with where it has no data; the rows on a start at zero, without part in "
            "the verdict, were added after a first run to tell this from the noise of the labels. Slopes are the "
            "largest gradients on segments between training inputs, of clusters 4 standard deviations apart; a first "
            "run looked at the training inputs alone, where narrow bumps are flat, and gave a correlation of 0.13. "
            "All thresholds are those of the first run."
        ),
        result=ac.Result(drawn, "benign_overfitting", PAPER.slug),
        settings={"seeds": len(seeds), "first seed": seed, "flipped": FLIPPED},
    )


def _smallest(kernel: Kernel, d: int, seeds: list[int]) -> float:
    """Smallest eigenvalue of the kernel of the clusters' training inputs, mean over seeds."""
    inputs = [ac.signal.TwoClusters()(d, FLIPPED, s).x for s in seeds]
    return float(np.mean([float(torch.linalg.eigvalsh(kernel(x, x))[0]) for x in inputs]))


def _descend(net: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float) -> float:
    """Full gradient descent on half the mean squared error for one output, on the mean over entries for several."""
    params = list(net.parameters())
    loss = torch.zeros(())
    for _ in range(steps):
        loss = ((net(x) - y) ** 2).mean()
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for p, g in zip(params, grads, strict=True):
                p -= rate * g
    return float(loss.detach())


def _networks(seeds: list[int], width: int) -> dict[str, float]:
    """Networks of one hidden layer that are trained on noisy labels in 200 dimensions.

    Once as they are, once less the function that they start with, so that they start from zero.
    """
    rows = []
    for s in seeds:
        task = ac.signal.TwoClusters()(200, FLIPPED, s)
        x, noisy, test = task.x.float(), task.noisy.float(), task.x_test.float()
        row: list[float] = []
        for kept in (1.0, 0.0):
            net = ac.signal.ntk_mlp(200, width, seed=s)
            with torch.no_grad():
                start, start_test = ((1 - kept) * net(z)[:, 0] for z in (x, test))
            monitor = ac.signal.LazyMonitor(net, x[:10], dtype=None)
            _descend(net, x, (noisy + start)[:, None], 300, 0.5)
            with torch.no_grad():
                train, clean = (net(x)[:, 0] - start) * noisy, (net(test)[:, 0] - start_test) * task.y_test
            row += [float((values > 0).double().mean()) for values in (train, clean)]
            if kept:
                moved = monitor.step()
                row += [moved["weight_move"], moved["linearisation_error"]]
        rows.append(row)
    names = (
        "accuracy on noisy training labels",
        "clean test accuracy",
        "move of the weights",
        "linearisation error",
        "accuracy on noisy training labels from a start at zero",
        "clean test accuracy from a start at zero",
    )
    means = np.mean(rows, axis=0)
    return {f"network, d=200: {name}": float(value) for name, value in zip(names, means, strict=True)}


def _sweep(seeds: list[int], widths: tuple[int, ...]) -> dict[str, float]:
    """How far networks of several widths move while they are trained on 200 digits."""
    data = ac.world.digits.load("train")
    x = nn.functional.normalize(data.images[:200].flatten(1))
    y = nn.functional.one_hot(data.labels[:200], 10).float() - 0.1
    found = ac.signal.lazy_training_report(
        lambda width, s: ac.signal.ntk_mlp(64, width, outputs=10, seed=s),
        lambda net: _descend(net, x, y, 200, 0.5),
        x[:8],
        widths,
        seeds,
        dtype=None,
    )
    moves = {f"digits, width {w}: move of the weights": float(found["weight_move"].sel(width=w)) for w in widths}
    slopes = dict(zip(found["measure"].values, found["slope"].values, strict=True))
    return moves | {
        "digits: slope of the weights' move over width": float(slopes["weight_move"]),
        "digits: slope of the kernel's move over width": float(slopes["kernel_move"]),
        "digits: largest final loss by smallest": float(found["loss"].max() / found["loss"].min()),
    }


def _smoothness(seeds: list[int]) -> float:
    """Rank correlation, over interpolants of the same noisy data, of the largest slope found with the test error."""
    from scipy.stats import spearmanr

    kernels: list[Kernel] = [ac.signal.RBF(length) for length in LENGTHS]
    kernels += [partial(ac.signal.analytic_ntk_relu, depth=depth) for depth in DEPTHS]
    found = []
    for s in seeds:
        task = ac.signal.TwoClusters(separation=2.0)(20, FLIPPED, s)
        slopes, errors = [], []
        x = _beside(task.x, s).requires_grad_()
        for kernel in kernels:
            rule = ac.signal.KernelInterpolator(kernel).fit(task.x, task.noisy)
            (grad,) = torch.autograd.grad(rule.predict(x).sum(), x)
            slopes.append(float(grad.norm(dim=1).max()))
            errors.append(float((rule.predict(task.x_test) * task.y_test <= 0).double().mean()))
        found.append(float(spearmanr(slopes, errors).statistic))
    return float(np.mean(found))


def _beside(x: Tensor, seed: int) -> Tensor:
    """Points on segments from each input to another, from close to the first to the middle.

    None is an input itself, where a tangent kernel has no gradient and that of a narrow bump is zero.
    """
    other = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).roll(1)]
    places = torch.tensor(np.geomspace(0.002, 0.5, 8))[:, None, None]
    return (x + places * (other - x)).flatten(0, 1)


def _regression(seeds: list[int], sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Mean squared test error of tangent regression of a smooth function on the sphere in 5 dimensions, by data size.

    A network that starts at f_0 and is trained to the end says f_0(x) + Theta(x, X) Theta^-1 (y - f_0(X)); f_0 is drawn
    from the Gaussian process of wide networks at their start, times the noise of the initialisation.
    """
    noises = {
        "no noise": (0.0, 0.0),
        "labels 0.25": (0.25, 0.0),
        "labels 0.5": (0.5, 0.0),
        "start 0.5": (0.0, 0.5),
        "start 1": (0.0, 1.0),
    }
    depth, tests = 1, 200
    kernel = partial(ac.signal.analytic_ntk_relu, depth=depth)
    out = {name: np.zeros(len(sizes)) for name in noises}
    for s in seeds:
        random = torch.Generator().manual_seed(s)
        points = torch.randn(max(sizes) + tests, 5, generator=random, dtype=torch.float64)
        x = nn.functional.normalize(points)
        target = x[:, 0] + x[:, 1] ** 2
        labels = torch.randn(len(x), generator=random, dtype=torch.float64)
        start = ac.signal.ntk_mlp(5, 4096, depth, seed=s).double()(x)[:, 0].detach()
        for k, n in enumerate(sizes):
            train, test = slice(0, n), slice(max(sizes), None)
            wanted = torch.stack(
                [target[train] + a * labels[train] - b * start[train] for a, b in noises.values()], dim=1
            )
            rule = ac.signal.KernelInterpolator(kernel).fit(x[train], wanted)
            got = rule.predict(x[test])
            for column, (name, (_, b)) in enumerate(noises.items()):
                error = (got[:, column] + b * start[test] - target[test]) ** 2
                out[name][k] += float(error.mean()) / len(seeds)
    return out


def _settles(curves: dict[str, np.ndarray]) -> bool:
    ratio = {name: c[-1] / c[-2] for name, c in curves.items()}
    last = {name: c[-1] for name, c in curves.items()}
    noisy = [name for name in curves if name != "no noise"]
    ordered = (
        last["no noise"] < last["labels 0.25"] < last["labels 0.5"]
        and last["no noise"] < last["start 0.5"] < last["start 1"]
    )
    return bool(ratio["no noise"] < 0.75 and all(0.75 <= ratio[name] <= 1.25 for name in noisy) and ordered)
