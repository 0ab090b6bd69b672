"""Findings about rounding the weights to few bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from actinium.core.result import Result
from actinium.report.rules.rule import Evidence, Found

__all__ = ["int4_breaks", "int8_is_safe", "weak_layers"]


def _name(layer: str) -> str:
    """The layer as the report calls it: `layer 3` for a block, else its module path."""
    head, _, number = layer.rpartition("blocks.")
    return f"{head}layer {number}" if number.isdigit() else f"module {layer}"


def int4_breaks(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Predictions that change when every weight is rounded to four bits."""
    kept = float(result["agreement_all"].sel(bits=4))
    if kept >= limits["agreement"]:
        return
    alone = result["sqnr"].sel(bits=4)
    worst = str(alone["layer"].values[int(np.nanargmin(alone.values))])
    yield Found(
        f"rounding all weights to int4 changes {100 * (1 - kept):.1f} % of the top predictions",
        f"all layers; alone, {_name(worst)} does most harm",
        float(result["sqnr_all"].sel(bits=4)),
        "dB signal to noise of the output",
        "measure = ac.measure.quantisation_sensitivity\n"
        "found = measure(model, inputs, bits=(4,))\n"
        "print(found.data['sqnr'].to_series().sort_values())",
    )


def weak_layers(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Layers that lose a bit more than the others when they are rounded."""
    noise = result["sqnr"].sel(bits=4)
    values = noise.values
    if len(values) < limits["layers"] or not np.isfinite(values).all():
        return
    middle = float(np.median(values))
    places = np.flatnonzero(values <= middle - limits["decibels"])
    if not len(places):
        return
    names = [str(noise["layer"].values[i]) for i in places[np.argsort(values[places])]]
    shown = ", ".join(map(_name, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    yield Found(
        f"{_name(names[0])} suffers more from int4 than the others: {values.min():.1f} dB against a median of "
        f"{middle:.1f} dB",
        shown,
        float(middle - values.min()),
        "dB below the median layer",
        "measure = ac.measure.quantisation_sensitivity\n"
        "found = measure(model, inputs, bits=(4, 5, 6))\n"
        f"print(found.data['sqnr'].sel(layer={names[0]!r}))",
    )


def int8_is_safe(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Predictions that stay when every weight is rounded to eight bits."""
    kept = float(result["agreement_all"].sel(bits=8))
    if kept < limits["agreement"]:
        return
    yield Found(
        f"rounding all weights to int8 keeps {100 * kept:.1f} % of the top predictions",
        "all layers",
        float(result["sqnr_all"].sel(bits=8)),
        "dB signal to noise of the output",
        "measure = ac.measure.quantisation_sensitivity\n"
        "found = measure(model, inputs, bits=(8,))\n"
        "print(found.data['sqnr'].to_series().sort_values())",
    )
