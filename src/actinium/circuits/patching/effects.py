"""Effects of patches: how they are normalised, and a result that draws them with their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.result import Result

__all__ = ["Effects", "Runs", "effect_of", "gap_is_nothing", "mean_over"]

# A difference below this share of the metric's own size is rounding, and nothing can be divided by it.
SHARE = 1e-4
SMALLEST = 1e-7


@dataclass(frozen=True, eq=False)
class Runs:
    """The metric in the two runs and in every patched one, by row of the task.

    Attributes:
        clean, corrupt: (row,) float64.
        patched: (set, row) float64.
        present: (set, row) bool, rows that count; None for all.
        mode: "denoise" (the corrupt run is patched) or "noise" (the clean run is).
    """

    clean: Tensor
    corrupt: Tensor
    patched: Tensor
    present: Tensor | None
    mode: str

    @property
    def base(self) -> Tensor:
        """(row,) of the run that is patched."""
        return self.corrupt if self.mode == "denoise" else self.clean

    @property
    def source(self) -> Tensor:
        """(row,) of the run that patches move towards."""
        return self.clean if self.mode == "denoise" else self.corrupt


def mean_over(values: Tensor, present: Tensor | None, sets: int) -> Tensor:
    """Mean over rows: (row,) or (set, row) -> (set,)."""
    values = values.expand(sets, -1)
    if present is None:
        return values.mean(1)
    return torch.where(present, values, 0.0).sum(1) / present.sum(1)


def gap_is_nothing(clean: Tensor, corrupt: Tensor) -> bool:
    """Whether the means over rows differ by no more than rounding."""
    scale = float(clean.abs().mean() + corrupt.abs().mean())
    return not abs(float(clean.mean() - corrupt.mean())) > max(SHARE * scale, SMALLEST)


def effect_of(runs: Runs, normalise: bool, metric: str, sign: float = 1.0) -> Tensor:
    """Effect of every set.

    Normalised, (m_pt - m_base) / (m_source - m_base) with means over rows taken first: 0 is the run that was patched,
    1 the other run. Not normalised, the change of the mean in the direction from the worse run to the better one when
    denoising and the other way round when noising.

    Args:
        runs: the metric by row.
        normalise: divide by the difference of the two runs.
        metric: its name, for the error.
        sign: 1 where a higher metric is better, -1 where a lower one is.

    Returns:
        (set,) float64; NaN where the rows of a set do not differ between the runs.

    Raises:
        InputError: the two runs do not differ over all rows.

    Source: Heimersheim and Nanda, 2024; Zhang and Nanda, 2023, section 2.
    """
    sets = runs.patched.shape[0]
    base = mean_over(runs.base, runs.present, sets)
    change = mean_over(runs.patched, runs.present, sets) - base
    if not normalise:
        return change * (sign if runs.mode == "denoise" else -sign)
    if gap_is_nothing(runs.clean, runs.corrupt):
        raise InputError(
            f"{metric} does not tell the runs apart: its mean is {float(runs.clean.mean()):.4g} clean and "
            f"{float(runs.corrupt.mean()):.4g} corrupt, so there is nothing to normalise by. Rows with opposite "
            "answers may cancel; try another metric, or normalise=False"
        )
    gap = mean_over(runs.source, runs.present, sets) - base
    if runs.present is not None:
        nothing = [gap_is_nothing(runs.clean[rows], runs.corrupt[rows]) for rows in runs.present]
        gap = torch.where(torch.tensor(nothing), torch.nan, gap)
    return change / gap


class Effects(Result):
    """Effects of patches over labelled axes.

    `effect` is the main variable; `patched` the mean metric of each patched run, `m_clean` and `m_corrupt` those of the
    two runs, `n_rows` the number of rows where not every row has a position. With `by_row=True` there are also
    `patched_by_row`, `clean_by_row` and `corrupt_by_row`.
    """

    def plot(self, ax: Any = None, variable: str | None = None) -> Any:
        """Draw a heat map with the tokens at the positions; further axes are stacked as rows.

        Args:
            ax: matplotlib Axes to draw on; a new one if not given.
            variable: what to draw, by default the effect, or the first variable where there is none.

        Returns:
            the matplotlib Axes.
        """
        name = variable or ("effect" if "effect" in self.data else self._first())
        array = self[name]
        if array.ndim > 2:
            array = _stacked(array)
        hints = {"kind": "bar", "variables": [name], "ylabel": name}
        data = xr.Dataset({name: array}, attrs={"plot": hints})
        axes = Result(data, self.method).plot(ax)
        if array.ndim and "token" in array.coords and array.coords["token"].dims[0] in array.dims:
            _label_tokens(axes, array)
        axes.set_title(self.heading())
        return axes

    def heading(self) -> str:
        """Method, mode and metric, with the metric of the two runs."""
        about = self.data.attrs
        words = [self.method, *(str(about[k]) for k in ("mode", "ablation", "metric") if k in about)]
        scalars = [k for k in ("m_clean", "m_corrupt") if k in self.data and not self.data[k].ndim]
        ends = [f"{k} {float(self.data[k]):.3g}" for k in scalars]
        return ", ".join([" ".join(words), *ends])


def _stacked(array: xr.DataArray) -> xr.DataArray:
    """All axes but the last as one, with names such as `3.7` for layer 3, head 7."""
    *front, last = array.dims
    labels = [array.coords[d].values for d in front]
    names = [
        ".".join(str(v) for v in entry)
        for entry in np.array(np.meshgrid(*labels, indexing="ij"), dtype=object).reshape(len(front), -1).T
    ]
    dim = ".".join(map(str, front))
    values = array.values.reshape(-1, array.sizes[last])
    kept = {last: array.coords[last].values}
    kept |= {k: (last, c.values) for k, c in array.coords.items() if k != last and c.dims == (last,)}
    return xr.DataArray(values, dims=(dim, last), coords={dim: names, **kept}, name=array.name)


def _label_tokens(axes: Any, array: xr.DataArray) -> None:
    dim = array.coords["token"].dims[0]
    tokens, places = array.coords["token"].values, array.coords[dim].values
    names = [f"{token} {place}" for token, place in zip(tokens, places, strict=True)]
    at = list(range(len(names))) if array.ndim > 1 else places
    if array.ndim == 1 or array.dims[-1] == dim:
        axes.set_xticks(at, names, rotation=90, fontsize="small")
    else:
        axes.set_yticks(at, names, fontsize="small")
