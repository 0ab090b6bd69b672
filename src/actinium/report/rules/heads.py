"""Findings about attention heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from actinium.core.result import Result
from actinium.report.rules.rule import Evidence, Found, count_of

__all__ = ["even_heads", "previous_token_heads", "sinks"]


def _named(result: Result, hit: np.ndarray, values: np.ndarray) -> str:
    """Heads as layer.head, the strongest first, at most six."""
    places = np.argwhere(hit)
    order = np.argsort(-values[hit], kind="stable")
    layers = result[str(result["sink"].dims[0])].values
    names = [f"{layers[i]}.{h}" for i, h in places[order]]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return f"head{'s' * (len(names) > 1)} (layer.head) {', '.join(names[:6])}{more}"


def _pattern(result: Result, values: np.ndarray, evidence: Evidence) -> str:
    """Python that shows the attention of the strongest head in one row."""
    i, h = (int(n) for n in np.unravel_index(np.nanargmax(values), values.shape))
    site = str(result["site"].values[i])
    return (
        f"site = {site!r}\n"
        f"pattern = model.record({evidence.first}, site)[site][0, {h}]\n"
        "print(pattern.round(decimals=2))"
    )


def sinks(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Heads that leave much of their attention at one key, mostly the first."""
    values = result["sink"].values
    hit = values >= limits["attention"]
    if not hit.any():
        return
    token, position = "", 0
    if result.data.sizes["sink_rank"]:
        token, position = str(result["sink_token"].values[0]), int(result["sink_position"].values[0])
    at = f"position {position}" + (f", mostly {token!r}" if token else "")
    yield Found(
        f"{count_of(int(hit.sum()), 'head')} of {hit.size} give a large part of their attention to a sink ({at})",
        _named(result, hit, values),
        100 * float(values[hit].mean()),
        "% of the attention of these heads",
        _pattern(result, values, evidence),
    )


def even_heads(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Heads that look almost evenly at everything they can see."""
    values = result["relative_entropy"].values
    hit = values >= limits["entropy"]
    if not hit.any():
        return
    yield Found(
        f"{count_of(int(hit.sum()), 'head')} of {hit.size} attend almost evenly to all that can be seen",
        _named(result, hit, values),
        100 * float(values[hit].max()),
        "% of the entropy of even attention",
        _pattern(result, values, evidence),
    )


def previous_token_heads(result: Result, limits: Mapping[str, float], evidence: Evidence) -> Iterator[Found]:
    """Heads that look at the token before."""
    values = result["previous"].values
    hit = values >= limits["attention"]
    if not evidence.text or not hit.any():
        return
    yield Found(
        f"{count_of(int(hit.sum()), 'head')} of {hit.size} attend mostly to the token before",
        _named(result, hit, values),
        100 * float(values.max()),
        "% of the attention of the strongest",
        _pattern(result, values, evidence),
    )
