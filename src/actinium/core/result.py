"""Result: labelled values that know how to draw, print and save themselves."""

from __future__ import annotations

import html
import json
import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr

from actinium.core.errors import InputError, LoadError, unknown

__all__ = ["Result"]

FORMAT = 1


@dataclass(eq=False, repr=False)
class Result:
    """The values a method found, with the names of their dimensions.

    The first variable is the main one: it decides what `plot` draws and which variables share its `table`.
    `data.attrs["plot"]` may hold hints: {"kind": "line" | "heatmap" | "bar", "variables": [...], "x":
    dimension, "y": dimension, "yscale": "log", "ylabel": text}.

    Attributes:
        data: the values.
        method: name of the function or estimator that made them.
        paper: slug of the paper it follows, if one.
        provenance: see `actinium.core.provenance`.
    """

    data: xr.Dataset
    method: str
    paper: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.data, xr.Dataset):
            raise InputError(f"Result takes an xarray.Dataset, got {type(self.data).__name__}")

    def __getitem__(self, name: str) -> xr.DataArray:
        if name not in self.data.variables:
            raise InputError(unknown("variable", name, [str(v) for v in self.data.variables]))
        return self.data[name]

    def __eq__(self, other: object) -> bool:
        """Same method, dimensions, coordinates and numbers (NaN equals NaN)."""
        if not isinstance(other, Result):
            return NotImplemented
        return self.method == other.method and self.data.equals(other.data)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {size}" for name, size in self.data.sizes.items())
        variables = ", ".join(f"{v}{tuple(a.dims)}" for v, a in self.data.data_vars.items())
        return f"Result({self.method}; {variables}; {sizes})"

    def _repr_html_(self) -> str:
        paper = f" <small>{html.escape(self.paper)}</small>" if self.paper else ""
        head = f"<p><b>{html.escape(self.method)}</b>{paper}</p>"
        if not self.data.data_vars:
            return f"<div>{head}</div>"
        rows = self.table().to_html(max_rows=20, index=False, float_format="{:.4g}".format)
        return f"<div>{head}{rows}</div>"

    def table(self, variable: str | None = None) -> pd.DataFrame:
        """One row per entry of a variable, with the other variables on its dimensions (or some of them).

        Args:
            variable: the variable; the first one if not given.

        Raises:
            InputError: no such variable.
        """
        main = self[variable if variable is not None else self._first()]
        names = [str(n) for n, v in self.data.data_vars.items() if set(v.dims) <= set(main.dims)]
        if main.ndim == 0:
            return pd.DataFrame({name: [self.data[name].item()] for name in names})
        labels = {d: np.arange(self.data.sizes[d]) for d in main.dims if d not in self.data.coords}
        flat = self.data[names]
        flat = flat.drop_vars([c for c, v in flat.coords.items() if not set(v.dims) <= set(main.dims)])
        return flat.assign_coords(labels).to_dataframe(dim_order=list(main.dims)).reset_index()

    def _first(self) -> str:
        if not self.data.data_vars:
            raise InputError(f"{self.method}: the result holds no variables")
        return str(next(iter(self.data.data_vars)))

    def plot(self, ax: Any = None, variable: str | None = None) -> Any:
        """Draw the main variable: a line over one dimension, a heat map over two, bars for single numbers.

        Args:
            ax: matplotlib Axes to draw on; a new one if not given.
            variable: what to draw; else the hint, else the first variable and those on the same dimension.

        Returns:
            the matplotlib Axes.

        Raises:
            InputError: no such variable, or more than two dimensions.
        """
        hints = dict(self.data.attrs.get("plot", {}))
        names = [variable] if variable is not None else list(hints.get("variables", [])) or [self._first()]
        main = self[names[0]]
        if variable is None and "variables" not in hints and main.ndim < 2:
            names = [str(n) for n, v in self.data.data_vars.items() if v.dims == main.dims and _is_number(v)]
        if main.ndim > 2:
            raise InputError(f"{names[0]} has dimensions {main.dims}: select some with .data.isel(...) to draw it")
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(6.4, 4.0), layout="constrained").subplots()
        kind = hints.get("kind") if main.ndim == 1 and variable is None else None
        if main.ndim == 2:
            _heatmap(ax, main, hints)
        elif main.ndim == 1 and kind != "bar":
            _lines(ax, [self[n] for n in names])
        else:
            _bars(ax, [self[n] for n in names])
        if "yscale" in hints and main.ndim == 1:
            ax.set_yscale(hints["yscale"])
        if "ylabel" in hints and main.ndim == 1:
            ax.set_ylabel(hints["ylabel"])
        ax.set_title(self.method)
        return ax

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to a Zarr store (a folder), replacing an earlier result there.

        Raises:
            InputError: the path holds something that is not a saved result.
            OSError: the folder cannot be written.
        """
        path = Path(path)
        if path.exists() and not (path / "zarr.json").is_file():
            raise InputError(f"{path} exists and is not a saved result; choose another path")
        path.parent.mkdir(parents=True, exist_ok=True)
        note = {"format": FORMAT, "method": self.method, "paper": self.paper, "provenance": self.provenance}
        data = self.data.copy()
        attrs = {str(k): v for k, v in data.attrs.items()}
        order = [str(name) for name in data.data_vars]  # a Zarr group does not keep it
        data.attrs = {"actinium": json.dumps(note | {"variables": order, "attrs": attrs}, sort_keys=True)}
        for name, value in data.variables.items():
            if value.dtype.kind == "U":
                data[name] = data[name].astype(object)
            data[name].encoding = {}
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            data.to_zarr(part, mode="w", zarr_format=3, consolidated=False)
            if path.exists():
                shutil.rmtree(path)
            part.replace(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result that `save` wrote.

        Raises:
            LoadError: the path is not a saved result, or it is damaged.
        """
        if not (Path(path) / "zarr.json").is_file():
            raise LoadError(f"{path} is not a saved result: expected a Zarr folder with zarr.json")
        try:
            with xr.open_zarr(path, consolidated=False, zarr_format=3, chunks=None) as store:
                data = store.load()
            note = json.loads(data.attrs.pop("actinium"))
            data = data[note["variables"]].assign_attrs(note["attrs"])
        except (KeyError, ValueError, OSError, RuntimeError) as error:
            raise LoadError(f"{path} is not a readable saved result: {error}") from error
        if note.get("format") != FORMAT:
            raise LoadError(f"{path} has result format {note.get('format')}; this version reads {FORMAT}")
        return cls(data, note["method"], note["paper"], note["provenance"])


def _is_number(array: xr.DataArray) -> bool:
    return array.dtype.kind in "biuf"


def _ticks(array: xr.DataArray, dim: Any) -> tuple[Any, list[str] | None]:
    """Where the entries of a dimension are drawn, and their names if they are not numbers."""
    values = array.coords[dim].values if dim in array.coords else np.arange(array.sizes[dim])
    if values.dtype.kind in "biuf":
        return values, None
    return np.arange(len(values)), [str(v) for v in values]


def _name_ticks(axis: Any, names: list[str] | None) -> None:
    """Write names at the ticks, at most thirty of them."""
    if names is not None:
        step = -(-len(names) // 30)
        axis.set_ticks(range(0, len(names), step), names[::step])


def _lines(ax: Any, arrays: list[xr.DataArray]) -> None:
    dim = arrays[0].dims[0]
    places, names = _ticks(arrays[0], dim)
    for array in arrays:
        ax.plot(places, array.values, marker="o", markersize=3, label=str(array.name))
    _name_ticks(ax.xaxis, names)
    if names is not None and max(map(len, names)) > 4:
        ax.tick_params(axis="x", rotation=90)
    ax.set_xlabel(str(dim))
    if len(arrays) > 1:
        ax.legend(fontsize="small")
    else:
        ax.set_ylabel(str(arrays[0].name))


def _bars(ax: Any, arrays: list[xr.DataArray]) -> None:
    if arrays[0].ndim == 0:
        ax.bar([str(a.name) for a in arrays], [float(a) for a in arrays])
        return
    places, names = _ticks(arrays[0], arrays[0].dims[0])
    places = np.arange(len(places)) if names is None else places
    for i, array in enumerate(arrays):
        ax.bar(
            places + 0.8 * i / len(arrays),
            array.values,
            0.8 / len(arrays),
            label=str(array.name),
            align="edge",
        )
    _name_ticks(ax.xaxis, names or [str(v) for v in _ticks(arrays[0], arrays[0].dims[0])[0]])
    ax.set_xlabel(str(arrays[0].dims[0]))
    if len(arrays) > 1:
        ax.legend(fontsize="small")


def _heatmap(ax: Any, array: xr.DataArray, hints: dict[str, Any]) -> None:
    y, x = array.dims
    if hints.get("x") == y or hints.get("y") == x:
        y, x = x, y
    values = array.transpose(y, x).values.astype(float)
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0.0, 1.0)
    signed = low < 0 < high
    limit = max(abs(low), abs(high))
    image = ax.imshow(
        values,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap="RdBu_r" if signed else "viridis",
        vmin=-limit if signed else None,
        vmax=limit if signed else None,
    )
    for axis, dim in ((ax.yaxis, y), (ax.xaxis, x)):
        places, names = _ticks(array, dim)
        if names is not None or not np.array_equal(places, np.arange(len(places))):
            _name_ticks(axis, names or [f"{v:g}" for v in places])
            if axis is ax.xaxis and names is not None and len(names) > 4 and max(map(len, names)) > 4:
                ax.tick_params(axis="x", rotation=90)
    ax.set_xlabel(str(x))
    ax.set_ylabel(str(y))
    ax.figure.colorbar(image, ax=ax, label=str(array.name))
