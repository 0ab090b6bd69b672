"""How much of a later layer is carried linearly from an earlier one: by feature, by rank, and at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from actinium.circuits.subspaces.transport import TransportOperator, paired, whitening
from actinium.core.errors import InputError
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_rows

__all__ = ["cca_ceiling", "feature_transport_scores", "transport_efficiency"]

LOWEST = -1e6
"""R2 is clipped here, where a feature hardly varies over the tokens that count."""
SLUG = "activation-transport-operators"


def feature_transport_scores(
    op: TransportOperator, x: Any, y: Any, decoder: Any, active: Any = None, names: Sequence[str] | None = None
) -> Result:
    """How well an operator predicts each feature of the later layer.

    Args:
        op: a fitted operator.
        x: (n, d_x) activations of the earlier place.
        y: (n, d_y) activations of the later place, same tokens.
        decoder: (feature, d_y) directions, of any length.
        active: (n, feature) bool or activations of the features (above 0 counts): the tokens that a feature is
            scored on; all by default.
        names: of the features.

    Returns:
        Result over "feature": `r2` (high: carried over; near 0: made in between), `mse`, `pearson`, `calibration`
        (cosine of the two rows of numbers), `rms_ratio`, `mean_ratio`, `relative_error` (|a^ - a| / |a|), and
        `n_active`. A feature on fewer than two tokens has NaN, and `never_active` counts those on none.

    Raises:
        InputError: the decoder has another width, a direction is zero, shapes do not fit.

    Source: Szablewski and Masiak, 2025, section 3.
    """
    a, b = paired(x, y)
    rows = as_rows(decoder, "decoder", dtype=torch.float64).cpu()
    if rows.shape[1] != b.shape[1]:
        raise InputError(f"decoder rows have {rows.shape[1]} entries, Y {b.shape[1]}")
    size = rows.norm(dim=1, keepdim=True)
    if not bool((size > 0).all()):
        raise InputError("a decoder row is zero")
    if names is not None and len(names) != len(rows):
        raise InputError(f"{len(names)} names for {len(rows)} features")
    on = torch.ones(len(b), len(rows), dtype=torch.bool)
    if active is not None:
        given = torch.as_tensor(active).cpu()
        if given.shape != on.shape:
            raise InputError(f"active must be (n, feature) = {tuple(on.shape)}, got {tuple(given.shape)}")
        on = given > 0
    predicted = op.predict(a)
    if predicted.shape != b.shape:
        raise InputError(f"the operator predicts {predicted.shape[1]} dimensions, Y has {b.shape[1]}")
    unit = (rows / size).T
    true, guess = b @ unit, predicted @ unit
    data = {name: (("feature",), _array(values)) for name, values in _scores(true, guess, on).items()}
    data["n_active"] = (("feature",), on.sum(0).numpy())
    never = int((on.sum(0) == 0).sum())
    hints = {"kind": "bar", "variables": ["r2"], "ylabel": "R2"}
    coords = {"feature": np.array(list(names)) if names is not None else np.arange(len(rows))}
    found = xr.Dataset({**data, "never_active": ((), never)}, coords=coords, attrs={"plot": hints})
    inputs = {"x": a, "y": b, "decoder": rows, "active": on}
    record = provenance(None, inputs, operator=op.get_params(), rank=op.rank_, alpha=op.alpha_)
    return Result(found, "feature_transport_scores", SLUG, record)


def _scores(true: Tensor, guess: Tensor, on: Tensor) -> dict[str, Tensor]:
    """(feature,) of each score; NaN where fewer than two tokens count or a denominator is zero."""
    count = on.sum(0)
    n = count.double()
    a, g = (torch.where(on, values, 0.0) for values in (true, guess))
    mean_a, mean_g = a.sum(0) / n, g.sum(0) / n
    a0, g0 = (torch.where(on, v - m, 0.0) for v, m in ((true, mean_a), (guess, mean_g)))
    error, total = (a - g).square().sum(0), a0.square().sum(0)
    exact = (error == 0) & (total == 0)
    length_a, length_g = a.norm(dim=0), g.norm(dim=0)
    out = {
        "r2": torch.where(exact, torch.nan, (1 - error / total).clamp_min(LOWEST)),
        "mse": error / n,
        "pearson": (a0 * g0).sum(0) / (a0.norm(dim=0) * g0.norm(dim=0)),
        "calibration": (a * g).sum(0) / (length_a * length_g),
        "rms_ratio": length_g / length_a,
        "mean_ratio": mean_g / mean_a,
        "relative_error": error.sqrt() / length_a,
    }
    return {name: torch.where(count >= 2, values, torch.nan) for name, values in out.items()}


def _covariances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x0, y0 = x - x.mean(0), y - y.mean(0)
    return x0.T @ x0 / len(x), x0.T @ y0 / len(x), y0.T @ y0 / len(x)


def _canonical(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Canonical correlations, largest first (the smaller width)."""
    xx, xy, yy = _covariances(x, y)
    rho: Tensor = torch.linalg.svdvals(whitening(yy, ridge) @ xy.T @ whitening(xx, ridge))
    return rho


def cca_ceiling(x: Any, y: Any, ridge: float = 0.0) -> Result:
    """The most that a linear map of each rank can explain of Y in the metric in which Y is white.

    Canonical correlations are too high by chance: about sqrt(d / n) where nothing is related. Use 20 rows or more
    for each dimension.

    Args:
        x: (n, d_x).
        y: (n, d_y), the same tokens.
        ridge: added to the eigenvalues of both covariances.

    Returns:
        Result over "rank": `ceiling`, (1/d_y) times the sum of the first squared canonical correlations, and
        `correlation`, the rank's own. `dim_lin`: (sum rho)^2 / sum rho^2; `d_eff`: sum rho^2; `rank_90`, `rank_99`:
        smallest rank with that share of the full ceiling.

    Raises:
        InputError: shapes do not fit, values are not finite, ridge is below 0.

    Source: Szablewski and Masiak, 2025, section 3 (`d_eff` and the shares are ours).
    """
    a, b = paired(x, y)
    if not ridge >= 0:
        raise InputError(f"ridge must be 0 or more, got {ridge}")
    rho = _canonical(a, b, ridge)
    ceiling = rho.square().cumsum(0) / b.shape[1]
    squares = float(rho.square().sum())
    data: dict[str, Any] = {"ceiling": (("rank",), _array(ceiling)), "correlation": (("rank",), _array(rho))}
    data["dim_lin"] = ((), float(rho.sum()) ** 2 / squares if squares else 0.0)
    data["d_eff"] = ((), squares)
    for percent in (90, 99):
        reached = ceiling >= percent / 100 * ceiling[-1] * (1 - 1e-12)
        data[f"rank_{percent}"] = ((), int(reached.int().argmax()) + 1)
    found = xr.Dataset(data, coords={"rank": np.arange(1, len(rho) + 1)}, attrs={"plot": {"ylabel": "R2, correlation"}})
    return Result(found, "cca_ceiling", SLUG, provenance(None, {"x": a, "y": b}, ridge=ridge))


def transport_efficiency(
    op: TransportOperator,
    x_train: Any,
    y_train: Any,
    x_test: Any,
    y_test: Any,
    ranks: Sequence[int] | None = None,
    *,
    optimal: bool = False,
    ridge: float = 0.0,
) -> Result:
    """What an operator of each rank explains on test rows, beside the most that a linear map can.

    Args:
        op: an operator fitted on the training rows.
        x_train, y_train: (n, d_x) and (n, d_y).
        x_test, y_test: rows of other texts.
        ranks: to truncate to; powers of two up to the smaller width, and that width, by default.
        optimal: as in `TransportOperator.truncate`.
        ridge: of the ceilings.

    Returns:
        Result over "rank": `r2` on the test rows where Y is white in the metric of the training rows, `r2_train`,
        `ceiling` of the training rows, `ceiling_test`, and `eta` = r2 / ceiling.

    Raises:
        InputError: shapes do not fit, or a rank is out of range.

    Source: Szablewski and Masiak, 2025, section 3 (their code whitens the test rows with the second moment that is
        not centred; here it is the covariance of the training rows).
    """
    a, b = paired(x_train, y_train)
    c, d = paired(x_test, y_test)
    if c.shape[1] != a.shape[1] or d.shape[1] != b.shape[1]:
        raise InputError("training and test rows differ in width")
    most = min(a.shape[1], b.shape[1])
    if ranks is None:
        ranks = sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})
    wanted = [int(r) for r in ranks]
    if not wanted or any(not 1 <= r <= most for r in wanted):
        raise InputError(f"ranks must be from 1 to {most}, got {wanted}")
    white, mean = whitening(_covariances(a, b)[2]), b.mean(0)
    ceilings = [
        (_canonical(x, y, ridge).square().cumsum(0) / b.shape[1])[[r - 1 for r in wanted]] for x, y in ((a, b), (c, d))
    ]
    values = []
    for rank in wanted:
        low = op.truncate(rank, optimal)
        values.append([_white_r2(low, x, y, white, mean) for x, y in ((c, d), (a, b))])
    test, train = torch.tensor(values, dtype=torch.float64).T
    data = {
        "r2": test,
        "ceiling": ceilings[0],
        "r2_train": train,
        "ceiling_test": ceilings[1],
        "eta": test / ceilings[0],
    }
    hints = {"variables": ["r2", "ceiling", "eta"], "ylabel": "share of the variance of white Y"}
    found = xr.Dataset(
        {name: (("rank",), _array(v)) for name, v in data.items()}, coords={"rank": wanted}, attrs={"plot": hints}
    )
    inputs = {"x_train": a, "y_train": b, "x_test": c, "y_test": d}
    record = provenance(None, inputs, operator=op.get_params(), alpha=op.alpha_, optimal=optimal, ridge=ridge)
    return Result(found, "transport_efficiency", SLUG, record)


def _white_r2(op: TransportOperator, x: Tensor, y: Tensor, white: Tensor, mean: Tensor) -> float:
    error, total = (y - op.predict(x)) @ white, (y - mean) @ white
    return float(1 - error.square().sum() / total.square().sum())


def _array(values: Tensor) -> NDArray[np.float64]:
    """float64 numbers for a result."""
    array: NDArray[np.float64] = values.double().cpu().numpy()
    return array
