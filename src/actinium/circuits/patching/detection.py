"""Which effects stand out: the two-standard-deviations rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from actinium.core.errors import InputError
from actinium.core.result import Result

__all__ = ["detect"]


def detect(effect: Result | xr.DataArray, sds: float = 2.0) -> Result:
    """Components whose effect is more than `sds` standard deviations from the mean effect over all components.

    The rule depends on how many components without any effect are swept along.

    Args:
        effect: a result with a variable `effect`, or the array itself; NaN entries are left out.
        sds: distance in standard deviations (population), above 0.

    Returns:
        Result: `found` (-1, 0, 1: the sign of the deviation) and `z` (the deviation in standard deviations) over the
        axes of the effect, and `effect`. All zero where the effects do not vary.

    Raises:
        InputError: there are fewer than three effects, or `sds` is not above 0.

    Source: Zhang and Nanda, 2023, section 3.
    """
    if not sds > 0:
        raise InputError(f"sds must be above 0, not {sds}")
    array: xr.DataArray = effect["effect"] if isinstance(effect, Result) else effect
    values = array.values.astype(float)
    seen = np.isfinite(values)
    if seen.sum() < 3:
        raise InputError(f"a spread needs three effects or more, not {int(seen.sum())}")
    mean, sd = values[seen].mean(), values[seen].std()
    # Equal numbers may differ by rounding from their own mean.
    flat = sd <= 1e-12 * np.abs(values[seen]).max()
    z = np.where(seen, 0.0 if flat else (values - mean) / (1.0 if flat else sd), np.nan)
    found = np.where(np.nan_to_num(np.abs(z)) > sds, np.sign(np.nan_to_num(z)), 0.0).astype(int)
    data: dict[str, Any] = {"found": (array.dims, found), "z": (array.dims, z), "effect": (array.dims, values)}
    about = {"sds": sds, "mean": float(mean), "sd": float(sd)}
    before = effect.provenance if isinstance(effect, Result) else {}
    return Result(xr.Dataset(data, coords=array.coords, attrs=about), "detect", "patching-best-practices", before)
