"""States of guarded and benign prompts, before and after something was done: where they lie between the two."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result

__all__ = ["last_token_states", "state_drift", "states_under"]


def last_token_states(
    model: Model, texts: Sequence[str], layers: Sequence[int] = (-1,), *, batch_size: int | None = None
) -> Tensor:
    """Residual streams (n, layer, d) of the last token of each text, after blocks.

    Args:
        model: the model.
        texts: whole prompts, up to where the reply begins.
        layers: blocks, negative ones from the end.
        batch_size: texts in a pass.

    Raises:
        InputError: no texts, or one that is longer than the context.
        SiteError: there is no such block.
    """
    if isinstance(texts, str) or not len(texts) or not len(layers):
        raise InputError("states are read from a list of texts, at one layer or more")
    tokens = model.to_tokens(list(texts))
    if len(tokens) != len(texts):
        raise InputError(f"a text is longer than the context of {model.context} tokens")
    sites = [model.sites(f"blocks.{layer}.resid_post")[0].name for layer in layers]
    with torch.no_grad():
        found = model.record(tokens, list(dict.fromkeys(sites)), positions=-1, batch_size=batch_size)
    return torch.stack([found[site].detach().float().reshape(len(texts), -1) for site in sites], 1)


def state_drift(
    guarded: Any, benign: Any, moved: Any, *, model: Model | None = None, paper: str | None = None, **settings: Any
) -> Result:
    """Where the moved states of guarded prompts lie between guarded and benign ones.

    Args:
        guarded, benign: (n, d) and (m, d), before. moved: (n, d), the guarded ones after.
        model, paper, **settings: noted in the result.

    Returns:
        Result: `drift`, (mean moved - mean guarded) . v / |v|^2 with v = mean benign - mean guarded, 0 where nothing
        moved along v and 1 at the benign centre; `crossing` and `crossing_before`, shares of guarded states on the
        benign side of the middle between the centres, after and before, and `benign_inside`, that of benign ones;
        `projection` over group ("guarded", "moved", "benign") and prompt (NaN beyond a group's number), 0 at the
        guarded centre and 1 at the benign one; `plane` over group, prompt and axis, the first two principal components
        of guarded and benign states.

    Raises:
        InputError: shapes differ, values are not finite, or the two centres are one.
    """
    groups = {"guarded": guarded, "moved": moved, "benign": benign}
    rows = {name: torch.as_tensor(value).detach().double().cpu().numpy() for name, value in groups.items()}
    if any(x.ndim != 2 or not len(x) or not np.isfinite(x).all() for x in rows.values()):
        raise InputError("states are finite tensors (n, d)")
    if rows["guarded"].shape != rows["moved"].shape or rows["benign"].shape[1] != rows["guarded"].shape[1]:
        raise InputError(f"states have the shapes {[x.shape for x in rows.values()]}, which do not fit each other")
    start = rows["guarded"].mean(0)
    v = rows["benign"].mean(0) - start
    if not v @ v > 0:
        raise InputError("guarded and benign states have one centre, so there is no direction between them")
    along = {name: (x - start) @ v / (v @ v) for name, x in rows.items()}
    both = np.concatenate([rows["guarded"], rows["benign"]])
    axes = np.linalg.svd(both - both.mean(0), full_matrices=False)[2][:2]
    longest = max(map(len, along.values()))
    projection = np.full((3, longest), np.nan)
    plane = np.full((3, longest, len(axes)), np.nan)
    for i, name in enumerate(groups):
        projection[i, : len(along[name])] = along[name]
        plane[i, : len(along[name])] = (rows[name] - both.mean(0)) @ axes.T
    over = ("group", "prompt")
    values: dict[str, Any] = {
        "drift": along["moved"].mean(),
        "crossing": (along["moved"] > 0.5).mean(),
        "crossing_before": (along["guarded"] > 0.5).mean(),
        "benign_inside": (along["benign"] > 0.5).mean(),
        "projection": (over, projection),
        "plane": ((*over, "axis"), plane),
    }
    data = xr.Dataset(values, coords={"group": list(groups)})
    return Result(data, "state_drift", paper, provenance(model, list(rows.values()), None, **settings))


def states_under(
    model: Model,
    guarded: Sequence[str],
    benign: Sequence[str],
    change: AbstractContextManager[Any],
    layer: int = -1,
    *,
    paper: str | None = None,
) -> Result:
    """`state_drift` of the last tokens of guarded prompts under a change, such as `ActivationPerturbation.on(model)`.

    Args:
        model: the model.
        guarded, benign: whole prompts.
        change: a block in which the model is changed.
        layer: block whose residual stream is read.
        paper: noted in the result.

    Raises:
        InputError, SiteError: prompts or a layer that cannot be read.
    """
    before, other = (last_token_states(model, texts, (layer,))[:, 0] for texts in (guarded, benign))
    with change:
        after = last_token_states(model, guarded, (layer,))[:, 0]
    return state_drift(before, other, after, paper=paper, layer=layer, model=model)
