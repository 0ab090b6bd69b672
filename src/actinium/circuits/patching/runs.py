"""The two runs of a contrast, the edits that put parts of one into the other, and the patched runs that follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actinium.circuits.patching.ablations import ActivationNoise, Directional
from actinium.circuits.patching.contrast import Contrast, last_logits, warn_if_failing
from actinium.circuits.patching.nodes import Node
from actinium.core.edits import Edit, Mean, Replace, Where, Zero
from actinium.core.passes import Pass
from actinium.core.recording import Recording

if TYPE_CHECKING:
    from actinium.circuits.patching.sweep import Sweep

__all__ = ["Edits", "RunPair", "by_site", "source_edit"]

# Tokens of patched runs between two moments at which finished patches are kept; the base run is repeated at each.
PIECE = 2**16


class RunPair:
    """The two runs of a contrast, recorded and scored.

    Attributes:
        inputs: of the run that is patched.
        own, other: recordings of that run and of the one whose activations it gets, None where nothing is recorded.
        clean, corrupt, base: (row,) float64, the metric of the two runs and of the one that is patched.
    """

    def __init__(self, sweep: Sweep, contrast: Contrast, sites: list[str], own_sites: list[str] | None = None) -> None:
        self.sweep, self.tokens, self.rows = sweep, contrast.tokens, contrast.rows
        self.inputs, source = contrast.ends(sweep.mode)
        other_logits, self.other = last_logits(sweep.model, source, sites)
        own_logits, self.own = last_logits(sweep.model, self.inputs, sites if own_sites is None else own_sites)
        denoise = sweep.mode == "denoise"
        clean, corrupt = (other_logits, own_logits) if denoise else (own_logits, other_logits)
        warn_if_failing(clean, contrast)
        self.score = sweep.score(contrast, clean)
        self.clean = self.score.run(clean, "clean").cpu().double()
        self.corrupt = self.score.run(corrupt, "corrupt").cpu().double()
        self.base = self.corrupt if denoise else self.clean

    def replay(self, variants: list[list[tuple[str, Edit]]]) -> Tensor:
        """(variant, row) float64: the metric under each variant's edits, and of the run itself where it has none.

        Stopped by Ctrl-C it returns NaN for the variants that were not reached, and the sweep is marked as stopped.
        """
        out = self.base.expand(len(variants), -1).clone()
        running = torch.tensor([bool(v) for v in variants])
        ledger, place = self.sweep.ledger, (self.sweep.draw, self.rows)
        out[running] = torch.nan
        if ledger is not None:
            before = ledger.known(*place)
            running &= before.isnan().any(1)
            out = torch.where(running[:, None] | before.isnan(), out, before)
        left = running.nonzero().flatten().tolist()
        size = max(16, PIECE // self.tokens.mask.numel())
        pieces = [left[i : i + size] for i in range(0, len(left), size)]
        try:
            for piece in _shown(pieces, self.sweep.progress):
                values = self.sweep.model.replay(
                    self.inputs,
                    [by_site(variants[i]) for i in piece],
                    metric=self.score,
                    progress=self.sweep.progress and len(pieces) == 1,
                )
                out[piece] = values.cpu().double()
                if ledger is not None:
                    ledger.keep(*place, piece, out[piece])
        except KeyboardInterrupt:
            self.sweep.stopped = True
        return out


def _shown(pieces: list[list[int]], progress: bool) -> Iterable[list[int]] | Iterator[list[int]]:
    """The pieces, under a progress bar where there are several."""
    if not progress or len(pieces) < 2:
        return pieces
    from rich.progress import track

    return track(pieces, description="patching", transient=True)


def by_site(edits: list[tuple[str, Edit]]) -> dict[str, list[Edit]]:
    """Edits of a variant as `Model.replay` takes them."""
    out: dict[str, list[Edit]] = {}
    for site, edit in edits:
        out.setdefault(site, []).append(edit)
    return out


class Edits:
    """From sets of nodes to the edits of a variant."""

    def __init__(self, sweep: Sweep, pair: RunPair, rows: slice, kept: Recording | None = None) -> None:
        self.sweep, self.pair, self.kept, self.rows = sweep, pair, kept, rows
        mask = pair.tokens.mask
        left = None if bool(mask.all()) else mask.int().argmax(1)
        self.now = Pass(len(mask), 0, mask.shape[1], left, mask.sum(1))
        self.made: dict[str, Edit] = {}
        self.differ: dict[tuple[str, bool], Tensor] = {}

    def of(self, nodes: list[Node]) -> list[tuple[str, Edit]]:
        """Edits of a set of nodes; none if the two runs have all of its activations in common, to the last bit."""
        edits = [(node.site, node.restrict(self._edit(node.site), self.rows)) for node in nodes]
        same = self.pair.other is not None and not any(
            self._differs(node, edit) for node, (_, edit) in zip(nodes, edits, strict=True)
        )
        return [] if same else edits

    def _edit(self, site: str) -> Edit:
        if site not in self.made:
            self.made[site] = self._make(site)
        return self.made[site]

    def _make(self, site: str) -> Edit:
        if self.pair.other is not None:
            return source_edit(self.pair.other, site)
        if self.sweep.kind == "zero":
            return Zero()
        ablation = self.sweep.ablation
        if isinstance(ablation, Directional):
            return ablation.edit(site)
        if isinstance(ablation, ActivationNoise):
            assert self.pair.own is not None
            ((known, _, _),) = self.sweep.model.resolve(site)
            real = self.pair.tokens.mask if "pos" in known.dims[:2] else None
            return ablation.edit(site, self.pair.own[site], real, (self.rows, len(self.sweep.task)), self.sweep.drawn)
        assert self.kept is not None
        if self.sweep.kind == "resample":
            return Replace(self.kept[site][self.sweep.chosen[self.rows]])
        taken = Mean(self.kept, per_position=self.sweep.per_position)
        ((known, _, _),) = self.sweep.model.resolve(site)
        taken.check(known)
        # Handed on as a tensor, so that the mean is taken once and not for each node.
        return Mean(taken.mean, per_position=self.sweep.per_position)

    def _differs(self, node: Node, edit: Edit) -> bool:
        """Whether the two runs differ anywhere within the node."""
        by_unit = node.units is not None
        key = node.site, by_unit
        assert self.pair.own is not None and self.pair.other is not None
        if key not in self.differ:
            changed = self.pair.own[node.site] != self.pair.other[node.site]
            if by_unit:
                changed = changed.flatten(0, -2).any(0)
            self.differ[key] = changed.any(-1, keepdim=True) if changed.ndim > 1 else changed
        changed = self.differ[key]
        if by_unit:
            return bool(changed[edit.units].any())
        ((site, _, _),) = self.sweep.model.resolve(node.site)
        return bool((edit.mask(changed, Where(site, self.now, 0)) & changed).any())


def source_edit(rec: Recording, site: str) -> Edit:
    """Put in the recorded activations of a site."""
    value = rec[site]
    if site.endswith("attn.scores"):
        # What the mask rules out is minus infinity, which an edit refuses; the lowest number has the same softmax.
        value = value.clamp_min(torch.finfo(value.dtype).min)
    return Replace(value)
