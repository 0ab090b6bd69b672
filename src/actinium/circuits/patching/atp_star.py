"""The two corrections of AtP*: attention recomputed for queries and keys, and gradients with one layer cut."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from actinium.circuits.patching.sweep import RunPair, source_edit
from actinium.core.edits import Edit, Fn
from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = ["Star", "key_scores", "query_scores"]

# Rounding of a softmax; a larger difference means that the pattern is made in some other way.
TOLERANCE = 1e-3


def query_scores(gradient: Tensor, scores: Tensor, new: Tensor) -> Tensor:
    """Effect of patching each query through the attention pattern, with the softmax computed exactly.

    Args:
        gradient: (..., query, key), of the metric with respect to the pattern.
        scores: (..., query, key), before the softmax and with the mask.
        new: (..., query, key), with the patched queries.

    Returns:
        (..., query) float64.

    Source: Kramar et al., 2024, section 3.1.
    """
    return (gradient.cpu().double() * (_softmax(new) - _softmax(scores))).sum(-1)


def key_scores(gradient: Tensor, scores: Tensor, new: Tensor) -> Tensor:
    """Effect of patching each key alone: only its column of the scores changes; summed over queries.

    Args:
        gradient: (..., query, key), of the metric with respect to the pattern.
        scores: (..., query, key), before the softmax and with the mask.
        new: (..., query, key), with the patched keys.

    Returns:
        (..., key) float64.

    Source: Kramar et al., 2024, section 3.1.
    """
    g, old, changed = gradient.cpu().double(), scores.cpu().double(), new.cpu().double()
    top = torch.maximum(old.amax(-1, keepdim=True), changed.amax(-1, keepdim=True))
    top = torch.where(top.isneginf(), 0.0, top)
    e, e_new = (old - top).exp(), (changed - top).exp()
    total, weighted = e.sum(-1, keepdim=True), (g * e).sum(-1, keepdim=True)
    before = torch.where(total > 0, weighted / total, 0.0)
    one_changed = total - e + e_new
    after = torch.where(one_changed > 0, (weighted + g * (e_new - e)) / one_changed, 0.0)
    return torch.where(e == e_new, 0.0, after - before).sum(-2)


def _softmax(scores: Tensor) -> Tensor:
    # A row that the mask rules out entirely attends to nothing.
    return torch.softmax(scores.cpu().double(), -1).nan_to_num(0.0)


class Star:
    """What AtP* needs of a pair of runs.

    Args:
        model: the model.
        pair: the runs, recorded at `sites`.
        sites: what is scored.

    Raises:
        InputError: the model's pattern is not the softmax of its scores.
    """

    def __init__(self, model: Model, pair: RunPair, sites: Sequence[str]) -> None:
        self.model, self.pair = model, pair
        self.fixed = {n: n.removesuffix(n[-1]) for n in sites if n.endswith((".attn.q", ".attn.k"))}
        patterns = [prefix + "pattern" for prefix in self.fixed.values()]
        self.sites = list(dict.fromkeys([*(n for n in sites if n not in self.fixed), *patterns]))
        assert pair.own is not None
        self.scores: dict[str, Tensor] = {}
        self.changed: dict[str, Tensor] = {}
        if self.fixed:
            self._record(list(dict.fromkeys(self.fixed.values())))

    def _record(self, prefixes: list[str]) -> None:
        """Scores of the run, and with the other run's queries or keys where all attention outputs are held."""
        wanted = [p + part for p in prefixes for part in ("scores", "pattern", "z")]
        rec = self.model.record(self.pair.inputs, wanted)
        for prefix in prefixes:
            self.scores[prefix] = rec[prefix + "scores"]
            gap = (_softmax(self.scores[prefix]) - rec[prefix + "pattern"].cpu().double()).abs().amax((1, 3))
            if float(gap[self.pair.tokens.mask].max()) > TOLERANCE:
                raise InputError(f"{prefix}pattern is not the softmax of {prefix}scores, so AtP* does not apply")
            # Deltas are shaped after the run's own activations.
            self.pair.own.values.setdefault(prefix + "pattern", rec[prefix + "pattern"])  # type: ignore[union-attr]
        held = [(prefix + "z", source_edit(rec, prefix + "z")) for prefix in prefixes]
        for part in ("q", "k"):
            chosen = [n for n in self.fixed if n.endswith(part)]
            if not chosen:
                continue
            assert self.pair.other is not None
            swapped = [(name, source_edit(self.pair.other, name)) for name in chosen]
            with self.model.edit([*swapped, *held]):
                found = self.model.record(self.pair.inputs, [self.fixed[n] + "scores" for n in chosen])
            for name in chosen:
                self.changed[name] = found[self.fixed[name] + "scores"]

    def cut(self, layer: int) -> list[tuple[str, Edit]]:
        """Edits that stop gradients through what one layer adds to the residual stream."""
        parts = ("attn.out", "mixer.out", "mlp.out")
        names = [f"blocks.{layer}.{part}" for part in parts if self.model.has(f"blocks.{layer}.{part}")]
        return [(name, Fn(torch.Tensor.detach)) for name in names]

    def contributions(self, name: str, found: dict[str, Tensor], step: Tensor) -> Tensor:
        """The score of every entry of a site, in its layout (the last dimension summed for queries and keys)."""
        if name not in self.fixed:
            return found[name] * step
        prefix = self.fixed[name]
        rule = query_scores if name.endswith("q") else key_scores
        # (batch, head, pos) -> (batch, pos, head, 1)
        out = rule(found[prefix + "pattern"], self.scores[prefix], self.changed[name]).movedim(1, 2)
        heads = step.shape[2]
        # Query heads that share a key head follow each other.
        return out.reshape(*out.shape[:2], heads, -1).sum(-1, keepdim=True)
