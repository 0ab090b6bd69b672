"""Whether massive activations matter: perplexity after setting them to zero or to their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actinium.core.edits import Edit, Replace, Zero
from actinium.core.errors import InputError
from actinium.core.inputs import Inputs
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.measure.massive import MassiveActivationReport, bos_variants, massive_entries
from actinium.measure.streaming import as_result, loss_sum, ready, row_batches

__all__ = ["MassiveIntervention", "massive_intervention", "perplexity"]

# A position that no text reaches, for rows with fewer massive positions than others.
NOWHERE = 2**31


@dataclass(frozen=True)
class MassiveIntervention:
    """Perplexity before and after an intervention on massive entries.

    Attributes:
        ppl_before, ppl_after: exp of the mean next-token cross-entropy.
        n_set: entries that were set.
        mode: "zero" or "mean".
        verdict: "detrimental" if the perplexity rises by more than the factor `limit`, else "benign";
            "absent" where nothing was massive.
        result: the same numbers, labelled.
    """

    ppl_before: float
    ppl_after: float
    n_set: int
    mode: str
    verdict: str
    result: Result


def perplexity(model: Model, inputs: Any, batch_size: int | None = 8) -> float:
    """Exponential of the mean next-token cross-entropy over all targets.

    Args:
        model: a causal language model.
        inputs: texts or tokens.
        batch_size: rows per pass.

    Raises:
        InputError: the model does not predict the next token, or there is no target.
    """
    total, count = 0.0, 0
    for part in row_batches(ready(model, inputs), batch_size):
        losses, targets = loss_sum(model, part)
        total, count = total + losses, count + targets
    if not count:
        raise InputError("perplexity needs a text of two tokens or more")
    return math.exp(min(total / count, 700.0))


def massive_intervention(
    model: Model,
    report: MassiveActivationReport,
    inputs: Any,
    *,
    mode: str = "zero",
    calibration: Any = None,
    bos: str | None = None,
    limit: float = 1.5,
    batch_size: int | None = 8,
) -> MassiveIntervention:
    """Set the massive entries of the first massive layer, and measure the perplexity.

    In each sequence the entries at (positions with a massive entry there) x (massive channels of the report)
    are set, at the first massive layer only.

    Args:
        model: a causal language model.
        report: of `find_massive_activations`; gives the layer, the channels and the limits.
        inputs: held-out texts or tokens; given or freed of the BOS token as `bos` says.
        mode: "zero", or "mean": the mean over the calibration sequences, one for the first position of a
            sequence and one for all other massive positions, signs kept.
        calibration: texts or tokens for "mean"; Owen et al. use 100 sequences.
        bos: variant of the report; the first by default.
        limit: factor of the perplexity above which the activations are detrimental to lose (ours).
        batch_size: rows per pass.

    Raises:
        InputError: unknown mode or variant, "mean" without calibration, calibration without massive entries
            where the held-out texts have some, a model without next-token loss.

    Source: Owen et al., 2025, intervention analysis.
    """
    if mode not in ("zero", "mean"):
        raise InputError(f'mode is "zero" or "mean", got {mode!r}')
    if mode == "mean" and calibration is None:
        raise InputError('mode "mean" needs calibration texts')
    bos = report.variants[0] if bos is None else bos
    layer, channels = report.first_layer(bos), report.channels(bos)
    held_out = _variant(model, inputs, bos)
    before = perplexity(model, held_out, batch_size)
    after, n_set = before, 0
    if layer is not None:
        site = report.sites[layer]
        means: dict[bool, Tensor] = {}
        if mode == "mean":
            means = _means(model, report, site, channels, _variant(model, calibration, bos), batch_size)
        after, n_set = _perplexity_with(model, report, site, channels, held_out, mode, means, batch_size)
    verdict = "absent" if layer is None or not n_set else "detrimental" if after > limit * before else "benign"
    result = as_result(
        model,
        held_out,
        "massive_intervention",
        {"ppl": (("state",), [before, after]), "n_set": ((), n_set)},
        {"state": ["before", mode]},
        paper="refined-massive-activations",
        mode=mode,
        bos=bos,
        layer=layer,
        channels=channels,
        limit=limit,
    )
    return MassiveIntervention(before, after, n_set, mode, verdict, result)


def _variant(model: Model, inputs: Any, bos: str) -> Inputs:
    """Inputs with or without BOS as the report's variant had it."""
    prepared = ready(model, inputs)
    return bos_variants(model, prepared).get(bos, prepared)


def _massive_positions(
    model: Model, report: MassiveActivationReport, site: str, channels: Sequence[int], part: Inputs
) -> tuple[list[list[int]], list[Tensor]]:
    """Positions of each row with a massive entry in these channels, and the values (positions, channels)."""
    rec = model.record(part, site)
    positions, values = [], []
    for row, h in enumerate(rec[site].float()):
        h = h if rec.mask is None else h[rec.mask[row]]
        found, _ = massive_entries(h, report.abs_thr, report.rel_thr)
        here = sorted({p for p, c in found.tolist() if c in set(channels)})
        positions.append(here)
        values.append(h[here][:, list(channels)])
    return positions, values


def _means(
    model: Model,
    report: MassiveActivationReport,
    site: str,
    channels: Sequence[int],
    calibration: Inputs,
    batch_size: int | None,
) -> dict[bool, Tensor]:
    """Mean of each channel at massive positions: True for the first of a sequence, False for others."""
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    for part in row_batches(calibration, batch_size):
        for positions, values in zip(*_massive_positions(model, report, site, channels, part), strict=True):
            for position, value in zip(positions, values, strict=True):
                seen[position == 0].append(value.double())
    return {start: torch.stack(some).mean(0) for start, some in seen.items() if some}


def _perplexity_with(
    model: Model,
    report: MassiveActivationReport,
    site: str,
    channels: Sequence[int],
    held_out: Inputs,
    mode: str,
    means: dict[bool, Tensor],
    batch_size: int | None,
) -> tuple[float, int]:
    total, count, n_set = 0.0, 0, 0
    for part in row_batches(held_out, batch_size):
        positions, _ = _massive_positions(model, report, site, channels, part)
        n_set += sum(map(len, positions)) * len(channels)
        edits = _edits(model, site, channels, positions, mode, means)
        with model.edit([(site, edit) for edit in edits]) if edits else nullcontext():
            losses, targets = loss_sum(model, part)
        total, count = total + losses, count + targets
    return math.exp(min(total / count, 700.0)), n_set


def _edits(
    model: Model,
    site: str,
    channels: Sequence[int],
    positions: list[list[int]],
    mode: str,
    means: dict[bool, Tensor],
) -> list[Edit]:
    """Edits for one batch: at the first positions, and at the others."""
    out: list[Edit] = []
    for start in (True, False):
        chosen = [[p for p in row if (p == 0) == start] for row in positions]
        width = max(map(len, chosen))
        if not width:
            continue
        edit: Edit = Zero()
        if mode == "mean":
            if start not in means:
                kind = "first" if start else "later"
                raise InputError(f"the calibration texts have no massive entry at {kind} positions; give more of them")
            (d_model,) = (s.sizes["d_model"] for s in model.sites(site))
            value = torch.zeros(d_model, dtype=torch.float64)
            value[list(channels)] = means[start].cpu()
            edit = Replace(value)
        where = torch.tensor([row + [NOWHERE] * (width - len(row)) for row in chosen])
        out.append(edit.at(positions=where, units=list(channels)))
    return out
