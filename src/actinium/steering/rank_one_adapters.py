"""What rank-one adapters do: each is one scalar per token, z = A a, that writes s z B to the residual stream."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actinium.core.adapter import Adapter, read_adapter
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.steering.vector import SteeringVector

__all__ = ["RankOneAdapters"]


class RankOneAdapters:
    """The rank-one adapters of a fine-tune, on maps that write to the residual stream.

    Args:
        base: the model that they belong to.
        adapter: an adapter, or a folder with one in PEFT's format.

    Attributes:
        names: modules, in the order of the blocks.
        sites: {module: site that it reads}, such as "blocks.3.mlp.post".

    Raises:
        InputError: an adapter has another rank, or is not on a down-projection or an output projection of attention.
        LoadError: the folder holds no adapter, or one of another kind.

    Source: Soligo et al., 2025, section 5.
    """

    def __init__(self, base: Model, adapter: Adapter | str | os.PathLike[str]) -> None:
        self.base = base
        self.adapter = adapter if isinstance(adapter, Adapter) else read_adapter(Path(adapter))
        for name, (a, _) in self.adapter.factors.items():
            if a.shape[0] != 1:
                raise InputError(f"the adapter of {name} has rank {a.shape[0]}; a scalar is read of rank 1")
        modules = dict(base.module.named_modules())
        self.sites: dict[str, str] = {}
        for site, tap in base.anatomy.taps.items():
            if tap.kind != "input" or base.anatomy.sites[site].part not in ("mlp.post", "attn.z"):
                continue
            for name in self.adapter.factors:
                if modules.get(name) is tap.module:
                    self.sites[name] = site
        missing = [name for name in self.adapter.factors if name not in self.sites]
        if missing:
            raise InputError(f"{missing[0]} of {base.name} is no map that writes to the residual stream")
        self.names = list(self.sites)

    def scalars(self, inputs: Any, merged: bool = True) -> dict[str, Tensor]:
        """z = A a at every token, {module: (batch, pos)}, zero on padding.

        Args:
            inputs: texts or tokens.
            merged: read the activations of the fine-tuned model (all adapters in place), not those of the base.
        """
        model = self.merged() if merged else self.base
        rec = model.record(inputs, list(self.sites.values()))
        out = {}
        for name, site in self.sites.items():
            a = self.adapter.factors[name][0].float()[0].to(rec[site].device)
            out[name] = rec[site].float().flatten(2) @ a
        return out

    def pooled(self, inputs: Any, spans: Tensor | None = None, how: str = "mean", merged: bool = True) -> Tensor:
        """Scalars of whole texts, (n, adapters): what a logistic regression reads.

        Args:
            inputs: texts or tokens.
            spans: (n, pos) bool, tokens that count; all real ones by default.
            how: "mean" or "sum" over tokens.
            merged: as in `scalars`.

        Raises:
            InputError: a text has no token that counts, or `how` is something else.
        """
        if how not in ("mean", "sum"):
            raise InputError(f"how is 'mean' or 'sum', not {how!r}")
        tokens = self.base.prepare(inputs).tokens
        if tokens is None:
            raise InputError("texts or tokens are needed")
        mask = tokens.mask if spans is None else tokens.mask & spans
        if not bool(mask.any(1).all()):
            raise InputError(f"text {int((~mask.any(1)).nonzero()[0])} has no token that counts")
        rows = self.scalars(Tokens(tokens.ids, tokens.mask, tokens.rows), merged)
        weight = mask.float() / mask.sum(1, keepdim=True) if how == "mean" else mask.float()
        return torch.stack([(z.cpu() * weight).sum(1) for z in rows.values()], 1)

    def written(self) -> SteeringVector:
        """What each adapter writes per unit of z, s B, as a vector at the map's own output."""
        out = {}
        for name, site in self.sites.items():
            place = site.replace(".mlp.post", ".mlp.out").replace(".attn.z", ".attn.out")
            out[place] = self.adapter.scales[name] * self.adapter.factors[name][1].float()[:, 0]
        made = {"model": self.base.fingerprint(), "name": self.base.name}
        return SteeringVector(out, "rank-one adapters", made)

    def merged(self, only: Iterable[str] | None = None, without: Sequence[str] = ()) -> Model:
        """A copy of the base with some of the adapters merged in.

        Args:
            only: modules whose adapters are kept; all by default.
            without: modules whose adapters are left out.

        Raises:
            UnknownNameError: there is no such adapter.
        """
        wanted = list(self.names if only is None else only)
        for name in (*wanted, *without):
            if name not in self.sites:
                raise UnknownNameError(unknown("adapter", name, self.names))
        kept = {n: self.adapter.factors[n] for n in wanted if n not in without}
        module = copy.deepcopy(self.base.module)
        replace(self.adapter, factors=kept).merge(module)
        return Model(module, self.base.tokenizer, self.base.processor, f"{self.base.name} with {len(kept)} adapters")
