"""The approximation that hurts the guard most while the model stays useful, and the blocks where it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.guard.audit.approximations.activation_perturbation import ActivationPerturbation
from actinium.guard.audit.approximations.approximation_sweep import checked_grid, fitted_for
from actinium.guard.audit.guard_failure import measured_rate, measured_utility

__all__ = ["most_vulnerable_approximation", "sensitive_layers", "vulnerable_strengths"]

PAPER = "quada"


def most_vulnerable_approximation(
    model: Model,
    guard: Callable[[Model], float],
    utility: Callable[[Model], float],
    grid: Sequence[float],
    *,
    perturbation: ActivationPerturbation | None = None,
    layers: Iterable[int] | None = None,
    tolerance: float = 0.1,
    draws: int = 1,
    calibration: Any = None,
    progress: bool = False,
) -> Result:
    """Of each block, the strength of largest failure among those that leave the model useful.

    Args:
        model: the model.
        guard, utility: as of `approximation_safety_sweep`.
        grid: strengths from weak to strong.
        perturbation: what is done, but for strength and blocks; Gaussian noise at the norms of blocks by default.
        layers: blocks; all by default.
        tolerance: the utility may fall by this share of the clean one.
        draws: times that noise is drawn.
        calibration: texts, where the kind needs them.
        progress: show a progress bar.

    Returns:
        Result over layer and strength: `failure`, `utility_ratio`. Over layer: `chosen`, the strength (the weakest
        one where several tie; NaN where every strength costs too much), `chosen_failure`, `chosen_utility_ratio`.

    Raises:
        InputError: a grid or settings out of range, or callables that give something else than they should.

    Source: Zhang et al., 2025, QuadA, most vulnerable approximation.
    """
    base = perturbation if perturbation is not None else ActivationPerturbation()
    strengths = checked_grid(base, grid)
    blocks = list(range(model.n_layers)) if layers is None else [int(i) for i in layers]
    if not blocks or draws < 1 or not 0 <= tolerance < 1:
        raise InputError("expected blocks, draws from 1 and a tolerance from 0 to below 1")
    clean = measured_rate(guard, model), measured_utility(utility, model)
    found = np.zeros((2, len(blocks), len(strengths)))
    work = [(i, j) for i in range(len(blocks)) for j in range(len(strengths))]
    for i, j in shown(work, "blocks", progress):
        one = fitted_for(base, model, strengths[j], [blocks[i]], calibration)
        for draw in range(draws):
            with one.but(seed=base.seed + draw).on(model):
                found[0, i, j] += measured_rate(guard, model) / draws
                found[1, i, j] += measured_utility(utility, model) / clean[1] / draws
    useful = found[1] >= 1 - tolerance
    best = np.where(useful, found[0], -1).argmax(1)
    known = useful.any(1)
    rows = np.arange(len(blocks))
    over = ("layer", "strength")
    values: dict[str, Any] = {"failure": (over, found[0]), "utility_ratio": (over, found[1])}
    chosen = {"chosen": np.array(strengths)[best], "chosen_failure": found[0, rows, best]}
    for name, column in (chosen | {"chosen_utility_ratio": found[1, rows, best]}).items():
        values[name] = ("layer", np.where(known, column, np.nan))
    data = xr.Dataset(values, coords={"layer": blocks, "strength": strengths})
    data.attrs = {"clean_failure": clean[0], "clean_utility": clean[1]}
    settings = {"grid": strengths, "tolerance": tolerance, "draws": draws, "guard": guard, "utility": utility}
    record = provenance(model, None, base.seed, perturbation=base.get_params(), **settings)
    return Result(data, "most_vulnerable_approximation", PAPER, record)


def vulnerable_strengths(found: Result) -> dict[int, float]:
    """{block: strength} of `most_vulnerable_approximation`, for `ActivationPerturbation`; blocks without are left out.

    Raises:
        InputError: every strength cost too much in every block.
    """
    chosen = found["chosen"]
    out = {int(b): float(s) for b, s in zip(chosen["layer"].values, chosen.values, strict=True) if np.isfinite(s)}
    if not out:
        raise InputError("every strength of the grid cost more utility than the tolerance; begin with weaker ones")
    return out


def sensitive_layers(
    model: Model,
    guard: Callable[[Model], float],
    utility: Callable[[Model], float],
    found: Result,
    *,
    perturbation: ActivationPerturbation | None = None,
    share: float = 0.9,
    draws: int = 1,
    calibration: Any = None,
    progress: bool = False,
) -> Result:
    """The smallest number of first blocks whose most vulnerable approximations do most of what those of all do.

    Args:
        model: the model.
        guard, utility: as of `approximation_safety_sweep`.
        found: of `most_vulnerable_approximation`, with the same perturbation.
        perturbation: what is done, but for strength and blocks.
        share: of the rise of failure under all blocks.
        draws: times that noise is drawn.
        calibration: texts, where the kind needs them.
        progress: show a progress bar.

    Returns:
        Result over tau, 0 to the number of blocks: `failure` and `utility_ratio` with the first tau blocks
        approximated. Attribute `tau` is the smallest that reaches the share, NaN where all blocks raise nothing.

    Raises:
        InputError: settings out of range.

    Source: Zhang et al., 2025, QuadA, sensitive layers; a scan of every tau takes the place of their search.
    """
    if not 0 < share <= 1 or draws < 1:
        raise InputError("expected a share above 0 and up to 1, and draws from 1")
    base = perturbation if perturbation is not None else ActivationPerturbation()
    strengths = vulnerable_strengths(found)
    taus = list(range(max(strengths) + 2))
    whole = measured_utility(utility, model)
    rates, useful = [measured_rate(guard, model)], [1.0]
    for tau in shown(taus[1:], "first blocks", progress):
        first = {block: s for block, s in strengths.items() if block < tau}
        rate = ratio = 0.0
        one = fitted_for(base, model, first, None, calibration) if first else None
        for draw in range(draws) if one is not None else ():
            assert one is not None
            with one.but(seed=base.seed + draw).on(model):
                rate += measured_rate(guard, model) / draws
                ratio += measured_utility(utility, model) / whole / draws
        rates.append(rate if first else rates[0])
        useful.append(ratio if first else 1.0)
    gained = np.array(rates) - rates[0]
    reached = gained >= share * gained[-1] - 1e-9
    enough = float(taus[int(reached.argmax())]) if gained[-1] > 0 else float("nan")
    data = xr.Dataset({"failure": ("tau", rates), "utility_ratio": ("tau", useful)}, coords={"tau": taus})
    data.attrs = {"tau": enough}
    settings = {"strengths": strengths, "share": share, "draws": draws, "guard": guard, "utility": utility}
    record = provenance(model, None, base.seed, perturbation=base.get_params(), **settings)
    return Result(data, "sensitive_layers", PAPER, record)
