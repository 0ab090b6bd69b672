"""Whether weights are pseudo-iid, and whether the layers of wide random networks are Gaussian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import stats
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.signal.nngp import NNGPKernel, matrix

__all__ = ["check_pseudo_iid", "gp_convergence_test"]

PAPER = "pseudo-iid-gp"
GAUSSIAN_EIGHTH = 105.0
"""Eighth moment of a standard normal number."""
CELLS = 24
"""Rows and columns whose entries are compared with each other."""
DIRECTIONS = 16


def check_pseudo_iid(samples: Any, sw: float, *, level: float = 0.001, bound: float = 1e5, seed: int = 0) -> Result:
    """What can be seen in independent draws of the conditions of a pseudo-iid matrix of variance sw^2 / n.

    Args:
        samples: draws (R, m, n), R of 50 or more, m and n of 4 or more.
        sw: standard deviation of an entry times the root of n.
        level: chance that a condition which holds is reported as broken, for each that is a test.
        bound: largest ratio of an eighth moment to sw^8 that counts as bounded; 105 for independent Gaussians, 105 /
            density^3 for a single entry of sparse ones. A single width cannot say more.
        seed: of random directions.

    Returns:
        Result over condition: `value`, `expected`, `p_value` (NaN where there is no test) and `holds`:
        "mean" (standard error units), "variance" (n E W^2 / sw^2), "row variance" (spread of the variances of rows and
        columns), "correlation" (largest of pairs of entries, in standard error units), "eighth random", "eighth
        constant", "eighth one-hot" (E (a W_i)^8 n^4 / (|a|^8 sw^8)), "fourth equal" and "fourth crossed" (condition iv:
        n^2 E[W_ia W_ia W_i'c W_i'c] / sw^4 and n^2 E[W_ia W_ib W_i'a W_i'b] / sw^4: 1 and 0 in the limit; within 0.25),
        "rows alike" and "columns alike" (first and last have one distribution of entries and of their group).

    Raises:
        InputError: too few draws or entries, NaN, or sw not above 0.

    Source: Nait Saada, Naderi and Tanner, 2023, definition 2.
    """
    w = torch.as_tensor(samples if isinstance(samples, Tensor) else np.asarray(samples)).detach().cpu().double()
    if w.ndim != 3 or w.shape[0] < 50 or min(w.shape[1:]) < 4:
        raise InputError(f"draws are (R, m, n) with R of 50 or more and sides of 4 or more, got {tuple(w.shape)}")
    if not bool(w.isfinite().all()):
        raise InputError("the draws hold NaN or infinite values")
    if not (np.isfinite(sw) and sw > 0):
        raise InputError(f"sw is above 0, not {sw}")
    w = w / sw * w.shape[2] ** 0.5
    rows = [*_moments(w, level), *_eighth(w, bound, seed), *_fourth(w), *_alike(w, level)]
    names, value, expected, p, holds = (list(column) for column in zip(*rows, strict=True))
    data = {"value": value, "expected": expected, "p_value": p, "holds": holds}
    hints = {"plot": {"variables": ["value", "expected"], "kind": "bar", "yscale": "log"}}
    record = provenance(inputs=w, seed=seed, sw=sw, level=level, bound=bound)
    dataset = xr.Dataset({k: ("condition", np.array(v)) for k, v in data.items()}, {"condition": names}, hints)
    return Result(dataset, "check_pseudo_iid", PAPER, record)


Row = tuple[str, float, float, float, bool]


def _moments(w: Tensor, level: float) -> list[Row]:
    """Mean, variance and correlations, by the spread of independent draws. Entries have variance 1 here."""
    reps = len(w)
    root = reps**0.5
    each = w.mean((1, 2))
    z = float(each.mean() / (each.std() / root)) if float(each.std()) > 0 else 0.0
    p = float(2 * stats.norm.sf(abs(z)))
    rows: list[Row] = [("mean", z, 0.0, p, p > level)]
    energy = (w**2).mean((1, 2))
    error = float(energy.std()) / root
    off = float(energy.mean()) - 1
    # Of orthogonal weights the mean square is fixed: rounding is all that differs.
    p = float(2 * stats.norm.sf(abs(off) / error)) if error > 1e-9 else float(abs(off) < 1e-6)
    rows.append(("variance", 1 + off, 1.0, p, p > level))
    sides = [(w**2).mean(2), (w**2).mean(1)]
    rows.append(("row variance", *_largest(torch.cat([s - s.mean(1, keepdim=True) for s in sides], 1), level)))
    cells = w[:, : CELLS // 4, : CELLS // 4].reshape(reps, -1)
    products = torch.einsum("ra,rb->rab", cells, cells)
    pairs = torch.triu_indices(cells.shape[1], cells.shape[1], 1)
    rows.append(("correlation", *_largest(products[:, pairs[0], pairs[1]], level)))
    return rows


def _largest(draws: Tensor, level: float) -> tuple[float, float, float, bool]:
    """Largest mean (in standard errors) of columns (R, k) that should have mean 0: value, expected, p and whether."""
    # A column that is the same in every draw has no spread but that of rounding.
    errors = (draws.std(0) / len(draws) ** 0.5).clamp(min=1e-9)
    z = float((draws.mean(0).abs() / errors).max())
    p = min(1.0, draws.shape[1] * float(2 * stats.norm.sf(z)))
    return z, 0.0, p, p > level


def _eighth(w: Tensor, bound: float, seed: int) -> list[Row]:
    n = w.shape[2]
    random = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one = torch.zeros(n, dtype=torch.float64)
    one[0] = 1
    rows: list[Row] = []
    for name, a in (("random", random), ("constant", torch.ones_like(one)), ("one-hot", one)):
        value = float(((w @ (a / a.norm())) ** 8).mean())
        rows.append((f"eighth {name}", value, GAUSSIAN_EIGHTH, float("nan"), value <= bound))
    return rows


def _fourth(w: Tensor) -> list[Row]:
    """n^2 E[W_ia W_ib W_i'c W_i'd] over pairs of rows i, i' and of columns, from means over all of them."""
    m, n = w.shape[1:]
    square = w**2
    column = square.sum(1)
    # Pairs of different rows and different columns of squares: inclusion and exclusion of the equal ones.
    total, by_row = square.sum((1, 2)), square.sum(2)
    different = total**2 - (by_row**2).sum(1) - (column**2).sum(1) + (square**2).sum((1, 2))
    equal = float((different / (m * (m - 1) * n * (n - 1))).mean())
    gram = torch.einsum("rin,rjn->rij", w, w)
    squares = torch.einsum("rin,rjn->rij", square, square)
    crossed = gram**2 - squares
    off = crossed.sum((1, 2)) - torch.diagonal(crossed, dim1=1, dim2=2).sum(1)
    cross = float((off / (m * (m - 1) * n * (n - 1))).mean())
    nan = float("nan")
    return [
        ("fourth equal", equal, 1.0, nan, abs(equal - 1) <= 0.25),
        ("fourth crossed", cross, 0.0, nan, abs(cross) <= 0.25),
    ]


def _alike(w: Tensor, level: float) -> list[Row]:
    """First and last rows, and columns: the distribution of an entry, and of the product of squares of two of them."""
    rows: list[Row] = []
    for name, x in (("rows alike", w), ("columns alike", w.transpose(1, 2))):
        first, last = x[:, 0], x[:, -1]
        ends = [(first[:, 0], last[:, 0]), ((first[:, 0] * first[:, 1]) ** 2, (first[:, 0] * first[:, -1]) ** 2)]
        found = [stats.ks_2samp(a.numpy(), b.numpy(), method="asymp") for a, b in ends]
        p = min(1.0, len(found) * min(float(f.pvalue) for f in found))
        rows.append((name, max(float(f.statistic) for f in found), 0.0, p, p > level))
    return rows


def gp_convergence_test(
    factory: Callable[[int, torch.Generator], nn.Module],
    X: Any,
    kernel: NNGPKernel,
    *,
    widths: Sequence[int] = (8, 32, 128),
    reps: int = 600,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """How Gaussian the pre-activations of random networks are, over independent networks, by width.

    Args:
        factory: makes a network of a width with weights from a generator; its output are the pre-activations of a
            layer with two units or more.
        X: inputs (n, d), two or more.
        kernel: the Gaussian process expected.
        widths: to be tried.
        reps: networks of each width, 20 or more.
        seed: of all.
        progress: show a progress bar.

    Returns:
        Result over width: `variance` and `covariance`, measured of units 0 and 1 over networks (mean over inputs; of
        the first two inputs); `variance_error`, relative; `excess_kurtosis` of unit 0 at the first input; `ks` and
        `ks_p`, Kolmogorov-Smirnov against N(0, K) with the variance of the theory; `unit_correlation` of units 0 and 1
        and `square_correlation` of their squares (0 for independent ones) at the first input; `wasserstein`, mean over
        directions of the distance of the two units to independent Gaussians, in standard deviations;
        `expected_variance` and `expected_covariance`.

    Raises:
        InputError: too few inputs or networks, or outputs of a wrong shape or not finite.

    Source: Nait Saada, Naderi and Tanner, 2023, theorem 1 and section 4.
    """
    x = matrix(X, "X")
    if len(x) < 2 or reps < 20 or not len(widths):
        raise InputError(f"two inputs, 20 networks and a width or more are needed, got {len(x)}, {reps}, {len(widths)}")
    expected = kernel(x)
    table: dict[str, list[float]] = {}
    random = torch.Generator().manual_seed(seed)
    for width in shown(list(widths), "drawing networks", progress):
        drawn = torch.stack([_units(factory(int(width), random), x) for _ in range(reps)])
        for name, value in _gaussianity(drawn, expected, seed).items():
            table.setdefault(name, []).append(value)
    hints = {"plot": {"variables": ["wasserstein", "ks"]}}
    record = provenance(inputs=x, seed=seed, kernel=repr(kernel), widths=list(widths), reps=reps)
    data = xr.Dataset({k: ("width", v) for k, v in table.items()}, {"width": list(widths)}, hints)
    return Result(data, "gp_convergence_test", PAPER, record)


def _units(net: nn.Module, x: Tensor) -> Tensor:
    """Units 0 and 1 of a network's output at each input: (n, 2)."""
    first = next(net.parameters(), None)
    with torch.no_grad():
        out = net(x.to(first) if first is not None else x).double().cpu()
    if out.ndim != 2 or len(out) != len(x) or out.shape[1] < 2:
        raise InputError(f"the network must give (n, 2 or more units), it gives {tuple(out.shape)}")
    if not bool(out.isfinite().all()):
        raise InputError("a network's output is not finite")
    return out[:, :2]


def _gaussianity(h: Tensor, expected: Tensor, seed: int) -> dict[str, float]:
    """Statistics of draws (R, n, 2)."""
    variance = (h**2).mean((0, 2))
    k = float(expected[0, 0])
    unit = h[:, 0, 0].numpy()
    ks = stats.kstest(unit / k**0.5, "norm")
    both = h[:, 0, :] / k**0.5
    angle = torch.rand(DIRECTIONS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * np.pi
    along = both @ torch.stack([angle.cos(), angle.sin()])
    places = torch.from_numpy(stats.norm.ppf((np.arange(len(h)) + 0.5) / len(h)))
    return {
        "variance": float(variance.mean()),
        "expected_variance": float(expected.diagonal().mean()),
        "variance_error": float((variance / expected.diagonal() - 1).abs().mean()),
        "covariance": float((h[:, 0] * h[:, 1]).mean()),
        "expected_covariance": float(expected[0, 1]),
        "excess_kurtosis": float(stats.kurtosis(unit)),
        "ks": float(ks.statistic),
        "ks_p": float(ks.pvalue),
        "unit_correlation": float(np.corrcoef(both.T.numpy())[0, 1]),
        "square_correlation": float(np.corrcoef((both**2).T.numpy())[0, 1]),
        "wasserstein": float((along.sort(0).values - places[:, None]).abs().mean()),
    }
