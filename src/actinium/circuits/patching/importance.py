"""What share of all indirect effects some sites have, and how far two tasks use the same neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from actinium.core.errors import InputError, unknown
from actinium.core.result import Result

__all__ = ["relative_importance", "top_overlap"]

FLOOR = -1.0 + 1e-6


def relative_importance(
    effects: Result | xr.DataArray,
    subset: Mapping[str, Any] | xr.DataArray | None = None,
    *,
    among: Mapping[str, Any] | xr.DataArray | None = None,
    floor: float = FLOOR,
) -> float:
    """Share of a set of sites in the sum of log(1 + indirect effect) over all of them.

    Effects are means over pairs (and over the positions of a class) before the logarithm is taken. The share of all
    sites is 1, and that of disjoint sets adds up; with effects below 0 a share may be outside 0 and 1.

    Args:
        effects: a result of `causal_mediation`, or its indirect effects; NaN entries are left out.
        subset: {axis: label or labels}, or a bool array: which of those that count; by default the last half of the
            layers at the last position (the one named "last", else the last one).
        among: the sites that count, likewise; by default MLP outputs where there is a choice, else everything.
        floor: effects below it are raised to it, above -1. (The authors' code takes 0.1.)

    Returns:
        the share.

    Raises:
        InputError: an axis or a label does not exist, none of the subset counts, an array holds sites that do not
            count, the floor is not above -1, or the effects do not add up to anything above 0.

    Source: Stolfo et al., 2023, section 3 (relative importance).
    """
    if not floor > -1:
        raise InputError(f"floor must be above -1, not {floor}: log(1 + effect) does not exist there")
    array = effects["indirect"] if isinstance(effects, Result) else effects
    every = _mask(array, _mlps(array) if among is None else among)
    chosen = _mask(array, _late(array) if subset is None else subset)
    if isinstance(subset, xr.DataArray) and (chosen & ~every).any():
        raise InputError(f"{int((chosen & ~every).sum())} sites of the subset are not among those that count")
    chosen &= every
    if not chosen.any():
        raise InputError("none of the subset is among the sites that count; MLP outputs are by default (see among)")
    values = array.values.astype(float)
    logs = np.log1p(np.maximum(values, floor))
    total = float(np.nansum(logs[every]))
    if not total > 0:
        raise InputError(f"log(1 + effect) adds up to {total:.3g} over all sites, of which there are no shares")
    return float(np.nansum(logs[chosen])) / total


def _mlps(array: xr.DataArray) -> Mapping[str, Any]:
    if "part" in array.dims and "mlp.out" in array.coords["part"].values:
        return {"part": "mlp.out"}
    if "site" in array.dims:
        names = [str(n) for n in array.coords["site"].values if str(n).endswith("mlp.out")]
        return {"site": names} if names else {}
    return {}


def _late(array: xr.DataArray) -> Mapping[str, Any]:
    missing = [dim for dim in ("layer", "pos") if dim not in array.dims]
    if missing:
        raise InputError(f"the effects have no axis {missing[0]!r} (but {array.dims}); say which subset is meant")
    layers, positions = array.coords["layer"].values, array.coords["pos"].values
    late = layers[len(layers) // 2 :]
    return {"layer": late, "pos": "last" if "last" in positions else positions[-1]}


def _mask(array: xr.DataArray, chosen: Mapping[str, Any] | xr.DataArray) -> np.ndarray:
    """Bool array in the layout of the effects."""
    if isinstance(chosen, xr.DataArray):
        if set(chosen.dims) - set(array.dims) or chosen.dtype != bool:
            raise InputError(f"a set of sites is a bool array over {array.dims}, not {chosen.dtype} over {chosen.dims}")
        return chosen.broadcast_like(array).transpose(*array.dims).values.copy()
    out = np.ones(array.shape, dtype=bool)
    for dim, given in chosen.items():
        if dim not in array.dims:
            raise InputError(unknown("axis", str(dim), [str(d) for d in array.dims]))
        labels = array.coords[dim].values
        wanted = [given] if np.ndim(given) == 0 else list(given)
        for label in wanted:
            if label not in labels:
                raise InputError(f"there is no {label!r} on the axis {dim!r}; it has {labels.tolist()}")
        shape = [-1 if d == dim else 1 for d in array.dims]
        out &= np.isin(labels, wanted).reshape(shape)
    return out


def top_overlap(one: Result | xr.DataArray, other: Result | xr.DataArray, k: int) -> float:
    """Share of the k entries with the largest indirect effect that two tasks have in common.

    Two random choices have k / n of n entries in common.

    Args:
        one, other: results of `causal_mediation` over the same sites, such as single neurons; or their effects.
        k: number of entries, from 1 to their number.

    Raises:
        InputError: the sites differ, or there are fewer than k.

    Source: Stolfo et al., 2023, section 5 (overlap of neurons between tasks).
    """
    arrays = [found["indirect"] if isinstance(found, Result) else found for found in (one, other)]
    if arrays[0].dims != arrays[1].dims or not all(
        np.array_equal(arrays[0].coords[d].values, arrays[1].coords[d].values) for d in arrays[0].dims
    ):
        raise InputError("the two results are over different sites, so their entries cannot be compared")
    values = [array.values.ravel().astype(float) for array in arrays]
    seen = np.isfinite(values[0]) & np.isfinite(values[1])
    if not 1 <= k <= int(seen.sum()):
        raise InputError(f"k goes from 1 to {int(seen.sum())}, not {k}")
    tops = [set(np.argsort(np.where(seen, -v, np.inf), kind="stable")[:k].tolist()) for v in values]
    return len(tops[0] & tops[1]) / k
