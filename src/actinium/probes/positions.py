"""One activation for each text: that of a token position, of another one in each text, or the mean over the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model

__all__ = ["activations_at", "as_places", "pick"]

MEAN = "mean"


def as_places(positions: Any) -> dict[str, Any]:
    """Positions by label.

    Args:
        positions: a number (0 first token, -1 last), "mean", a tensor (n,) of numbers, a list of numbers and "mean",
            or {label: one of these}.

    Raises:
        InputError: another kind, or none.
    """
    if isinstance(positions, Mapping):
        named = {str(label): place for label, place in positions.items()}
    elif isinstance(positions, Sequence) and not isinstance(positions, str):
        named = {str(place): place for place in positions}
    else:
        named = {"given" if isinstance(positions, Tensor) else str(positions): positions}
    for label, place in named.items():
        number = isinstance(place, int) and not isinstance(place, bool)
        each = isinstance(place, Tensor) and place.ndim == 1 and not place.is_floating_point()
        if not (number or each or (isinstance(place, str) and place == MEAN)):
            raise InputError(f"position {label!r}: expected an integer, 'mean' or integers (n,), not {place!r}")
    if not named:
        raise InputError("no positions given")
    return named


def pick(values: Tensor, mask: Tensor | None, place: Any, what: str = "activations") -> Tensor:
    """Of activations (n, pos, …) those of one place, (n, d) with all further dimensions in one.

    Args:
        values: activations.
        mask: (n, pos), False on padding; None where there is none.
        place: a number, a tensor (n,) of numbers, or "mean".
        what: what they are called in messages.

    Raises:
        InputError: a text does not have the position.
    """
    if values.ndim < 3:
        raise InputError(f"{what}: shape {tuple(values.shape)} has no positions to choose from")
    real = torch.ones(values.shape[:2], dtype=torch.bool) if mask is None else mask
    real = real.to(values.device)
    length = real.sum(1)
    if isinstance(place, str):
        weights = (real / length[:, None]).to(values.dtype)
        return torch.einsum("np,np...->n...", weights, values).flatten(1)
    wanted = torch.as_tensor(place, device=values.device)
    if wanted.ndim and len(wanted) != len(values):
        raise InputError(f"positions: {len(wanted)} given for {len(values)} texts")
    wanted = wanted.expand(len(values))
    token = torch.where(wanted < 0, wanted + length, wanted)
    bad = (token < 0) | (token >= length)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise InputError(f"text {row} has {int(length[row])} tokens, and no position {int(wanted[row])}")
    # The column of a text's token is where so many real columns have been seen.
    column = (real.cumsum(1) == (token + 1)[:, None]).int().argmax(1)
    return values[torch.arange(len(values), device=values.device), column].flatten(1)


def activations_at(
    model: Model,
    inputs: Any,
    sites: str | Sequence[str],
    places: Mapping[str, Any],
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> dict[tuple[str, str], Tensor]:
    """Activations by site and label of the place, each (n, d) on the CPU; one batch's full ones are held at a time.

    Args:
        model: the model.
        inputs: texts, tokens, or other inputs (whose activations have no positions, and are flattened).
        sites: names and patterns.
        places: as from `as_places`.
        batch_size: rows in a pass; 64 texts by default.
        progress: show a progress bar.

    Raises:
        InputError: a text is longer than the model's context, or does not have a position.
        SiteError: a site does not exist.
    """
    tokens = model.prepare(inputs).tokens
    if tokens is None:
        rec = model.record(inputs, sites, batch_size=batch_size, progress=progress)
        return {(site, label): rec[site].flatten(1).cpu() for site in rec.sites for label in places}
    if len(tokens.rows.unique()) != len(tokens):
        raise InputError("a text is longer than the model's context; cut it, or record windows and probe those")
    step = batch_size or 64
    starts: Any = range(0, len(tokens), step)
    if progress:
        from rich.progress import track

        starts = track(starts, description="recording", transient=True)
    parts: dict[tuple[str, str], list[Tensor]] = {}
    for start in starts:
        rows = slice(start, start + step)
        now = Tokens(tokens.ids[rows], tokens.mask[rows], torch.arange(len(tokens.ids[rows])))
        rec = model.record(now, sites)
        for site in rec.sites:
            for label, place in places.items():
                here = place[rows] if isinstance(place, Tensor) else place
                parts.setdefault((site, label), []).append(pick(rec[site], now.mask, here, site).cpu())
    return {key: torch.cat(values) for key, values in parts.items()}
