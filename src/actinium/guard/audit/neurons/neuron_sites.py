"""Where feed-forward neurons are read, and one number for each neuron and prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from actinium.core.edits import Fn
from actinium.core.errors import InputError, SiteError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.reducing import Context, feature_rows

__all__ = ["SiteNames", "binary_labels", "neuron_layers", "neuron_sites", "pooled_neurons"]

SiteNames: TypeAlias = str | re.Pattern[str] | Sequence[str | re.Pattern[str]]
POOLS = ("max", "mean", "last")


def neuron_sites(model: Model, sites: SiteNames | None = None) -> list[str]:
    """Names of the sites whose last dimension counts neurons.

    Args:
        model: the model.
        sites: names and patterns of sites (`blocks.*.mlp.gate`, `module:**.up_proj`), or compiled regular expressions
            that the whole path of a module must match, for that module's output. By default what the feed-forward
            non-linearity reads and, in a gated one, the linear branch too: `blocks.*.mlp.gate` and `blocks.*.mlp.pre`.

    Raises:
        SiteError: a pattern matches nothing, or the model has no feed-forward sites that we know.
    """
    if sites is None:
        found = [s.name for s in model.anatomy.sites.values() if s.part in ("mlp.gate", "mlp.pre")]
        if not found:
            raise SiteError(
                f"{model.name} has no sites 'blocks.*.mlp.gate' or 'blocks.*.mlp.pre'; name the modules whose outputs "
                "are neurons, such as 'module:**.up_proj'"
            )
        return found
    names: list[str] = []
    for one in [sites] if isinstance(sites, str | re.Pattern) else sites:
        if isinstance(one, re.Pattern):
            hits = [f"module:{path}" for path, _ in model.module.named_modules() if path and one.fullmatch(path)]
            if not hits:
                raise SiteError(f"no module's whole path matches the regular expression {one.pattern!r}")
            names += hits
        else:
            names += [site.name for site in model.sites(one)]
    if not names:
        raise SiteError("no sites given")
    return list(dict.fromkeys(names))


def neuron_layers(model: Model, sites: Sequence[str]) -> dict[str, int]:
    """The block that each site lies in; where there are no blocks, the place of the site in the list.

    Raises:
        InputError: some modules lie in blocks and some do not.
    """
    blocks = list(model.anatomy.towers[-1].blocks) if model.anatomy.towers else []
    inside = {id(module): i for i, block in enumerate(blocks) for module in block.modules()}
    found: dict[str, int | None] = {}
    for site, tap, _ in model.resolve(list(sites)):
        found[site.name] = site.layer if site.layer is not None else inside.get(id(tap.module))
    known = [layer for layer in found.values() if layer is not None]
    if not known:
        return {name: i for i, name in enumerate(found)}
    if len(known) < len(found):
        outside = next(name for name, layer in found.items() if layer is None)
        raise InputError(f"{outside} lies in no block, other sites do; audit them apart")
    return {name: layer for name, layer in found.items() if layer is not None}


def binary_labels(labels: Any) -> Tensor:
    """Labels as a float tensor (n,) of 0 (benign) and 1 (guarded).

    Raises:
        InputError: another value, or fewer than two of a class.
    """
    given = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if given.ndim != 1 or given.dtype.kind not in "biuf" or not np.isin(given, (0, 1)).all():
        raise InputError("labels are 1 for guarded prompts and 0 for benign ones, one for each prompt")
    for value, name in ((0, "benign"), (1, "guarded")):
        if (count := int((given == value).sum())) < 2:
            raise InputError(f"two prompts or more of each class are needed; there are {count} {name} ones")
    return torch.as_tensor(given.astype(np.float32))


class _Pool:
    """Over the real tokens of each prompt: the largest, mean or last value, and the mean absolute value."""

    wants_context = True

    def __init__(self, how: str) -> None:
        self.how = how
        self.pooled: list[Tensor] = []
        self.size: list[Tensor] = []

    def update(self, values: Tensor, context: Context) -> None:
        flat, which, at = feature_rows(values, context)
        flat, n = flat.float(), len(values)
        spots = torch.zeros(n, device=flat.device).index_add(0, which, torch.ones_like(which, dtype=torch.float32))
        where = which[:, None].expand_as(flat)
        blank = torch.zeros(n, flat.shape[1], device=flat.device)
        if self.how == "max":
            pooled = blank.scatter_reduce(0, where, flat, "amax", include_self=False)
        elif self.how == "mean":
            pooled = blank.scatter_reduce(0, where, flat, "mean", include_self=False)
        else:
            last = torch.zeros(n, dtype=at.dtype, device=at.device).scatter_reduce(0, which, at, "amax")
            pooled = flat[at == last[which]]
        self.pooled.append(pooled.cpu())
        self.size.append((blank.index_add(0, which, flat.abs()) / spots[:, None]).cpu())

    def result(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self.pooled), torch.cat(self.size)


def pooled_neurons(
    model: Model,
    prompts: Any,
    sites: Sequence[str],
    *,
    pool: str = "max",
    padding: bool = False,
    batch_size: int | None = 32,
    progress: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One number for each prompt and neuron.

    Args:
        model: the model.
        prompts: texts, `Tokens`, images or whatever the model reads; one row for each prompt.
        sites: names of sites.
        pool: "max", "mean" or "last" over the real tokens of a prompt (over all places of an image).
        padding: take the largest value over padding columns too, as the released code does.
        batch_size: prompts in a pass.
        progress: show a progress bar.

    Returns:
        {site: (n, f)} pooled values, and {site: (n, f)} mean absolute values over real tokens.

    Raises:
        InputError: a prompt is longer than the context, or `padding` is asked for with another pool than "max".
        UnknownNameError: there is no such pool.
    """
    if pool not in POOLS:
        raise UnknownNameError(unknown("pool", str(pool), POOLS))
    if padding and pool != "max":
        raise InputError(f"only the largest value is taken over padding, not {pool!r}")
    ready = model.prepare(prompts)
    if ready.tokens is not None and len(ready.tokens.rows.unique()) < len(ready.tokens.rows):
        raise InputError(f"a prompt is longer than the context of {model.context} tokens")
    seen: dict[str, list[Tensor]] = {name: [] for name in sites}

    def keep(name: str) -> Fn:
        def look(x: Tensor) -> Tensor:
            seen[name].append(x.detach().flatten(1, -2).amax(1).float().cpu() if x.ndim > 2 else x.float().cpu())
            return x

        return Fn(look)

    options: dict[str, Any] = {"reduce": _Pool(pool), "batch_size": batch_size, "progress": progress}
    with torch.no_grad():
        if padding:
            # Recordings hold zeros at padding; an edit sees what the model really computes there.
            with model.edit({name: keep(name) for name in sites}):
                rec = model.record(prompts, list(sites), **options)
        else:
            rec = model.record(prompts, list(sites), **options)
    found = {name: rec[name] for name in sites}
    largest = {name: torch.cat(seen[name]) if padding else found[name][0] for name in sites}
    return largest, {name: found[name][1] for name in sites}
