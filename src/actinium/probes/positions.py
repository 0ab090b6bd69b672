"""One activation for each text: that of a token position, of another one in each text, or the mean over the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.progress import shown

__all__ = ["activations_at", "as_places", "pick"]

MEAN = "mean"


def as_places(positions: Any) -> dict[str, Any]:
    """Positions by label.

    Args:
        positions: a number (0 first token, -1 last), "mean", a tensor (n,) of numbers, a mask (n, pos) over whose
            tokens the mean is taken, a list of numbers and "mean", or {label: one of these}.

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
        each = each or (isinstance(place, Tensor) and place.ndim == 2 and place.dtype == torch.bool)
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
        place: a number, a tensor (n,) of numbers, "mean", or a mask (n, pos) over whose tokens the mean is taken.
        what: what they are called in messages.

    Raises:
        InputError: a text does not have the position.
    """
    if values.ndim < 3:
        raise InputError(f"{what}: shape {tuple(values.shape)} has no positions to choose from")
    real = torch.ones(values.shape[:2], dtype=torch.bool) if mask is None else mask
    real = real.to(values.device)
    length = real.sum(1)
    masked = isinstance(place, Tensor) and place.dtype == torch.bool
    if masked or isinstance(place, str):
        chosen = _masked(place.to(values.device), real) if masked else real
        weights = (chosen / chosen.sum(1, keepdim=True)).to(values.dtype)
        return torch.einsum("np,np...->n...", weights, values).flatten(1)
    token = _token(place, length)
    # The column of a text's token is where so many real columns have been seen.
    column = (real.cumsum(1) == (token + 1)[:, None]).int().argmax(1)
    return values[torch.arange(len(values), device=values.device), column].flatten(1)


def _token(place: Any, length: Tensor) -> Tensor:
    """Number (n,) of the token that is read in texts of these lengths."""
    wanted = torch.as_tensor(place, device=length.device)
    if wanted.ndim and len(wanted) != len(length):
        raise InputError(f"positions: {len(wanted)} given for {len(length)} texts")
    wanted = wanted.expand(len(length))
    token = torch.where(wanted < 0, wanted + length, wanted)
    bad = (token < 0) | (token >= length)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise InputError(f"text {row} has {int(length[row])} tokens, and no position {int(wanted[row])}")
    return token


def _masked(mask: Tensor, real: Tensor) -> Tensor:
    if mask.shape != real.shape:
        raise InputError(f"a mask of shape {tuple(mask.shape)} does not fit texts of shape {tuple(real.shape)}")
    chosen = mask & real
    empty = ~chosen.any(1)
    if bool(empty.any()):
        raise InputError(f"text {int(empty.nonzero()[0])}: the mask holds none of its tokens")
    return chosen


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
    for place in places.values():
        if isinstance(place, Tensor) and place.dtype == torch.bool:
            _masked(place.to(tokens.mask.device), tokens.mask)
        elif not isinstance(place, str):
            _token(place, tokens.mask.sum(1))
    step = batch_size or 64
    # Texts of like length stand together, so that little of a pass is padding.
    order = tokens.mask.sum(1).argsort(stable=True)
    found: dict[tuple[str, str], Tensor] = {}
    for start in shown(range(0, len(tokens), step), "recording", progress):
        rows = order[start : start + step]
        columns = tokens.mask[rows].any(0).nonzero()[:, 0]
        columns = slice(int(columns[0]), int(columns[-1]) + 1)
        now = Tokens(tokens.ids[rows][:, columns], tokens.mask[rows][:, columns], torch.arange(len(rows)))
        rec = model.record(now, sites)
        for site in rec.sites:
            for label, place in places.items():
                here = place
                if isinstance(place, Tensor):
                    here = place[rows][:, columns] if place.ndim == 2 else place[rows]
                values = pick(rec[site], now.mask, here, site).cpu()
                whole = found.setdefault((site, label), values.new_empty(len(tokens), *values.shape[1:]))
                whole[rows] = values
    return found
