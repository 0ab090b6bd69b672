"""Path patching: the effect of a sender on the answer along its direct path to chosen receivers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from actinium.circuits.patching.contrast import Contrast
from actinium.circuits.patching.corruption import GaussianNoise
from actinium.circuits.patching.effects import Effects, Runs
from actinium.circuits.patching.nodes import Node, NodeSets, named_sets, node_sets
from actinium.circuits.patching.norms import NormScales
from actinium.circuits.patching.sweep import Edits, RunPair, Sweep, averaged, result_of, source_edit
from actinium.core.edits import Edit
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = ["path_patch"]

SENDERS = ("embed", "attn.z", "attn.out", "mixer.out", "mlp.post", "mlp.out")
"""What writes into the residual stream."""


def path_patch(
    model: Model,
    task: Task,
    senders: Any = "blocks.*.attn.z",
    receivers: Any = "logits",
    *,
    over: str | None = None,
    mode: str = "noise",
    freeze_heads: bool = True,
    freeze_mlps: bool = True,
    freeze_norms: bool = False,
    ablation: str | GaussianNoise = "resample",
    metric: str | Callable[..., Tensor] | None = None,
    positions: Any = None,
    heads: int | Sequence[int] | None = None,
    normalise: bool = True,
    by_row: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Effects:
    """Effect of each sender through its direct paths to the receivers.

    The run is repeated with the sender's activations of the other run and every other frozen writer at its own; what
    then arrives at the receivers is put into the run, in which all else is computed. With `mode="noise"` the clean run
    is patched with corrupt activations, with "denoise" the other way round. Norms on the paths are computed anew unless
    they are frozen.

    Args:
        model, task, metric, normalise, by_row, seed, batch_size, progress: as in `patch`.
        senders: sites that write into the residual stream (embed, attn.z, attn.out, mlp.post, mlp.out), swept; or
            {name: node, site or list of them}, each set sent jointly.
        receivers: "logits" (the direct effect), or sites or Nodes that read the stream, patched jointly, such as
            Node("blocks.5.attn.q", heads=2) or "blocks.4.mlp.{pre,gate}" for the input of a gated MLP.
        over: "head" (the default where senders have heads), "layer", "pos", "head_pos" or "unit".
        freeze_heads: hold all other attention outputs.
        freeze_mlps: hold all other MLP outputs; if False, paths through MLPs count as direct (Wang et al., 2022).
        freeze_norms: hold the scale of every norm on the paths at that of the run that is patched; with heads and MLPs
            frozen, too, what arrives is then linear in what is sent.
        ablation: "resample", "gaussian" or a `GaussianNoise`.
        positions, heads: of the senders, as in `patch`.

    Returns:
        Effects over the senders.

    Raises:
        InputError: as `patch`; a sender does not write into the residual stream; zero or mean ablation; norms are to be
            frozen whose scale cannot be seen.
        SiteError: a site does not exist.

    Source: Heimersheim and Nanda, 2024; Wang et al., 2022, section 3.1.
    """
    sweep = Sweep(model, task, mode, ablation, metric, None, False, seed, batch_size, progress)
    if not sweep.paired:
        raise InputError('paths carry activations of another run: ablation is "resample" or "gaussian"')
    if over is None and not isinstance(senders, dict):
        over = "head" if all("head" in site.dims for site in model.sites(senders)) else "layer"
    nodes = node_sets(model, task, senders, over, positions, heads)
    for name in nodes.sites:
        if _part(model, name) not in SENDERS:
            raise InputError(f"{name} does not write into the residual stream; senders are {', '.join(SENDERS)}")
    direct = isinstance(receivers, str) and receivers == "logits"
    targets = [] if direct else _receivers(model, task, receivers)
    norms = NormScales(model) if freeze_norms else None
    paths = _Paths(sweep, nodes, targets, _frozen(model, freeze_heads, freeze_mlps), norms)
    runs = paths.run()
    frozen = {"freeze_heads": freeze_heads, "freeze_mlps": freeze_mlps, "freeze_norms": freeze_norms}
    about = {"senders": senders, "receivers": receivers, "over": over, **frozen}
    made = result_of(sweep, nodes, runs, "path_patch", normalise, by_row, "activation-patching-guide", **about)
    return sweep.finish(made)


def _part(model: Model, name: str) -> str:
    ((site, _, _),) = model.resolve(name)
    return site.part


def _receivers(model: Model, task: Task, given: Any) -> list[Node]:
    """Nodes with plain site names."""
    items = [given] if isinstance(given, str | Node) else list(given)
    if any(isinstance(i, str) and i == "logits" for i in items):
        raise InputError('receivers are "logits" alone, or nodes within the model')
    (nodes,) = named_sets(model, task, {"receivers": items}).sets
    return nodes


def _frozen(model: Model, heads: bool, mlps: bool) -> list[str]:
    """Names of the writers that are held, in the order of computation."""
    patterns = []
    if heads:
        # What has no heads to speak of (a state-space mixer) is held as a whole.
        patterns += [p for p in ("blocks.*.attn.z", "blocks.*.mixer.out") if model.has(p)]
    if mlps and model.has("blocks.*.mlp.out"):
        patterns.append("blocks.*.mlp.out")
    return [site.name for site in model.sites(patterns)] if patterns else []


class _Paths:
    """The passes of path patching."""

    def __init__(
        self, sweep: Sweep, nodes: NodeSets, targets: list[Node], frozen: list[str], norms: NormScales | None
    ) -> None:
        self.sweep, self.nodes, self.targets, self.frozen, self.norms = sweep, nodes, targets, frozen, norms
        self.layer = {s.name: -1 if s.layer is None else s.layer for s in sweep.model.sites([*frozen, *nodes.sites])}
        # Where single neurons of an MLP send, its other neurons are held instead of its output.
        self.split = {name: name.replace("mlp.post", "mlp.out") for name in nodes.sites if name.endswith("mlp.post")}

    def run(self) -> Runs:
        """Score every sender."""
        return averaged(self.sweep, self.nodes, self._rows)

    def _rows(self, contrast: Contrast) -> tuple[Tensor, Tensor, Tensor]:
        own = list(dict.fromkeys([*self.frozen, *self.nodes.sites]))
        pair = RunPair(self.sweep, contrast, self.nodes.sites, own)
        edits = Edits(self.sweep, pair, contrast.rows)
        assert pair.own is not None
        held = {name: source_edit(pair.own, name) for name in own}
        if self.norms is not None:
            with torch.no_grad(), self.norms.keep():
                self.sweep.model.logits(pair.inputs)
        variants = []
        for nodes in self.nodes.sets:
            sent = edits.of(nodes)
            variant = [*self._held(nodes, held), *sent] if sent else []
            variants.append(self._arrived(pair, variant, contrast.rows) if variant and self.targets else variant)
        if self.norms is None or self.targets:
            return pair.clean, pair.corrupt, pair.replay(variants)
        return pair.clean, pair.corrupt, torch.stack([self._held_score(pair, variant) for variant in variants])

    def _held_score(self, pair: RunPair, variant: list[tuple[str, Edit]]) -> Tensor:
        """(row,) float64: the metric under a variant's edits with every norm at its kept scale."""
        assert self.norms is not None
        if not variant:
            return pair.base
        with torch.no_grad(), self.norms.hold(), self.sweep.model.edit(variant):
            return pair.score(self.sweep.model.logits(pair.inputs)[:, -1]).cpu().double()

    def _held(self, nodes: list[Node], held: dict[str, Edit]) -> list[tuple[str, Edit]]:
        """Edits that keep every other writer from the first sender's layer on."""
        first = min(self.layer[node.site] for node in nodes)
        sending = {node.site for node in nodes}
        opened = {out for post, out in self.split.items() if post in sending}
        names = [n for n in self.frozen if self.layer[n] >= first and n not in opened]
        if opened & set(self.frozen):
            names += [post for post in self.split if post in sending]
        return [(name, held[name]) for name in names]

    def _arrived(self, pair: RunPair, variant: list[tuple[str, Edit]], rows: slice) -> list[tuple[str, Edit]]:
        """What reaches the receivers under the sender's edits, as edits of the receivers."""
        model = self.sweep.model
        sites = list(dict.fromkeys(node.site for node in self.targets))
        with self.norms.hold() if self.norms is not None else nullcontext(), model.edit(variant):
            rec = model.record(pair.inputs, sites)
        made = {name: source_edit(rec, name) for name in sites}
        return [(node.site, node.restrict(made[node.site], rows)) for node in self.targets]
