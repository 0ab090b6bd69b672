"""Findings about the units of feed-forward layers, and about their non-linearities in other networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from actinium.core.result import Result
from actinium.report.rules.rule import Evidence, Found, at_layers, count_of

__all__ = ["always_on", "exact_zeros", "never_fire", "quiet_units", "sparse_at_little_cost"]


def _site(result: Result, place: int) -> str:
    return str(result["site"].values[place])


def never_fire(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Units whose output is exactly zero almost everywhere."""
    frequency = result["frequency"].values
    silent = frequency < limits["frequency"]
    total = int(np.isfinite(frequency).sum())
    if not silent.any():
        return
    shares = silent.sum(1) / np.isfinite(frequency).sum(1)
    worst = int(shares.argmax())
    strong = silent.sum() / total >= limits["share"]
    never = int((frequency == 0).sum())
    yield Found(
        f"{count_of(int(silent.sum()), 'unit')} of {total:,} are dead on {evidence.seen} ({never:,} never fire)",
        f"{at_layers(result, np.flatnonzero(silent.any(1)))}, most in {at_layers(result, [worst])}",
        100 * float(silent.sum() / total),
        "% of the units",
        f"site = {_site(result, worst)!r}\n"
        "frequency = ac.measure.dead_units(model, inputs, site)['frequency'][0]\n"
        f"print((frequency < {limits['frequency']:g}).values.nonzero()[0])",
        None if strong else "note",
    )


def quiet_units(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Units that are never exactly zero, but never say anything either."""
    peak, frequency = result["peak"].values, result["frequency"].values
    middle = np.array([[np.median(row[np.isfinite(row)])] if np.isfinite(row).any() else [0.0] for row in peak])
    quiet = (peak < limits["peak"] * middle) & (frequency > 0)
    total = int(np.isfinite(peak).sum())
    if not quiet.any():
        return
    worst = int(quiet.sum(1).argmax())
    yield Found(
        f"{count_of(int(quiet.sum()), 'unit')} of {total:,} stay near zero on {evidence.seen}",
        at_layers(result, np.flatnonzero(quiet.any(1))),
        100 * float(quiet.sum() / total),
        "% of the units",
        f"site = {_site(result, worst)!r}\n"
        "peak = ac.measure.dead_units(model, inputs, site)['peak'][0]\n"
        "print(peak.argsort()[:10].values, peak.sortby(peak)[:10].values)",
    )


def always_on(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Units whose non-linearity never bends."""
    share = result["share"].values
    on = share >= limits["share"]
    total = int(np.isfinite(share).sum())
    if not on.any():
        return
    worst = int(on.sum(1).argmax())
    yield Found(
        f"{count_of(int(on.sum()), 'unit')} of {total:,} have a positive input on nearly all of {evidence.seen}",
        at_layers(result, np.flatnonzero(on.any(1))),
        100 * float(on.sum() / total),
        "% of the units",
        f"site = {_site(result, worst)!r}\n"
        "share = ac.measure.saturated_units(model, inputs, site)['share'][0]\n"
        f"print((share >= {limits['share']:g}).values.nonzero()[0])",
    )


def exact_zeros(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Non-linearities whose outputs are mostly exact zeros."""
    sparsity = result["sparsity"].values
    places = np.flatnonzero(sparsity >= limits["sparsity"])
    if not len(places):
        return
    best = int(sparsity.argmax())
    yield Found(
        f"most outputs of the non-linearities are exact zeros: {100 * sparsity[best]:.0f} % in "
        f"{at_layers(result, [best])}",
        at_layers(result, places),
        100 * float(sparsity[places].mean()),
        "% zeros, mean over these",
        f"site = {_site(result, best)!r}\nprint(ac.measure.activation_sparsity(model, inputs, site).table())",
    )


def sparse_at_little_cost(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Units that can be left out at a cost of one percent of perplexity."""
    share = 1 - float(result["total_ratio"])
    if share < limits["sparsity"]:
        return
    layers = result["sparsity"].values
    held_out = ""
    if "ppl_sparse_held_out" in result.data:
        rise = float(result["ppl_sparse_held_out"] / result["ppl_dense_held_out"]) - 1
        held_out = f" ({100 * rise:+.1f} % on texts that the thresholds were not set on)"
    low, high = int(layers.argmin()), int(layers.argmax())
    yield Found(
        f"{100 * share:.0f} % of the feed-forward units can be left out at each position for 1 % of "
        f"perplexity{held_out}",
        f"{at_layers(result, range(len(layers)))}: from {100 * layers[low]:.0f} % in {at_layers(result, [low])} to "
        f"{100 * layers[high]:.0f} % in {at_layers(result, [high])}",
        100 * share,
        "% of the units",
        "found = ac.measure.ppl_p_sparsity(model, inputs, 1.0, tol=0.01)\n"
        "print(found.table()[['layer', 'sparsity', 'threshold']])",
    )
