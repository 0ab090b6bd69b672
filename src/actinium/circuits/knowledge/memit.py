"""MEMIT: many facts as one least-squares change of several MLPs' down projections, with PMET's spread over layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from actinium.circuits.knowledge.covariance import KeyCovariance
from actinium.circuits.knowledge.drafting import (
    Draft,
    check_covariance,
    check_editable,
    edit_groups,
    essence_prompts,
    mean_keys,
    positions_of,
)
from actinium.circuits.knowledge.encoding import Prompt, PromptBatch
from actinium.circuits.knowledge.facts import EditCase, FactEdit, distinct_edits
from actinium.circuits.knowledge.target_vector import TargetOptimisation, target_vectors
from actinium.circuits.knowledge.weights import Down, WeightChange, check_writes, down_projections
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model

__all__ = ["SPREADS", "least_squares", "memit", "write_layers"]

SPREADS = ("linear", "sqrt")


def least_squares(residual: Tensor, keys: Tensor, covariance: Tensor, preserve: float) -> Tensor:
    """Delta = R K^T (preserve C + K K^T)^-1, which minimises preserve E|Delta k0|^2 + |Delta K - R|^2.

    Args:
        residual: R (d_model, edit).
        keys: K (unit, edit).
        covariance: C = E[k0 k0^T] (unit, unit).
        preserve: weight of the keys that are to keep their values.

    Returns:
        (d_model, unit) float64.

    Raises:
        InputError: `preserve` is not above 0.

    Source: Meng et al., 2023 (MEMIT), equations 11 to 14.
    """
    if not preserve > 0:
        raise InputError(f"preserve must be above 0, not {preserve}")
    r, k, c = residual.double(), keys.double(), covariance.double()
    return r @ torch.linalg.solve(preserve * c + k @ k.T, k).T


def write_layers(
    draft: Draft,
    downs: Sequence[Down],
    covariance: KeyCovariance,
    groups: Sequence[Sequence[Prompt]],
    at: str,
    wanted: Tensor,
    spread: str,
    preserve: float | None,
) -> None:
    """Bring the residual stream after the last of some layers to wanted vectors, a part in each layer.

    From the lowest layer up; keys and what is still missing are computed anew after each.

    Args:
        draft: where the changes go.
        downs: the layers, ascending.
        covariance: of their keys.
        groups: for each edit its prompts; keys are means over them, the stream is that of the first.
        at: "subject" or "last", the position in each prompt.
        wanted: z (edit, d_model), the stream after the last layer.
        spread: "linear" or "sqrt".
        preserve: see `memit`.
    """
    model = draft.model
    batch = PromptBatch(model, [g[0] for g in groups])
    site = f"{model.tower.prefix}blocks.{downs[-1].layer}.resid_post"
    for i, down in enumerate(downs):
        keys = mean_keys(model, down, groups, at)
        now = model.record(batch.inputs, site)[site][torch.arange(len(batch)), positions_of(batch, at)]
        missing = (wanted.double() - now.double()).T.cpu()
        left = len(downs) - i
        share = missing / (left if spread == "linear" else left**0.5)
        weight = float(len(keys)) if preserve is None else preserve
        draft.add(down, least_squares(share, keys, covariance[down.layer], weight))


def check_spread(spread: str) -> None:
    """Refuse an unknown rule. Raises UnknownNameError."""
    if spread not in SPREADS:
        raise UnknownNameError(unknown("spread", spread, SPREADS))


def memit(
    model: Model,
    edits: FactEdit | EditCase | Iterable[FactEdit | EditCase],
    covariance: KeyCovariance,
    layers: Sequence[int],
    *,
    spread: str = "linear",
    preserve: float | None = None,
    contexts: Sequence[str] = (),
    essence: str | None = "{} is a",
    average_tokens: bool = False,
    optimisation: TargetOptimisation | None = None,
) -> WeightChange:
    """Edit facts together, by changes of the down projections of several layers.

    For each edit a vector is found that, added to the residual stream after the last of the layers at the subject's
    last token, makes the model say the new object. The layers, from the lowest up, then each write a part of it.

    Args:
        model: a causal language model; it is left as it was.
        edits: the facts.
        covariance: of the layers' keys.
        layers: the blocks.
        spread: part of what is missing that a layer writes with n layers to go, itself included: "linear" 1 / n, or
            "sqrt" 1 / sqrt(n) (PMET's; the rest of PMET is not here).
        preserve: weight of the keys that are to keep their values; by default the number of units, so that a key like
            any other is written by half (15000 for the 16384 units of GPT-J in the authors' code).
        contexts: texts put before the prompt, besides the prompt alone.
        essence: prompt about the subject in general, of which what follows the subject is to stay; None for none.
        average_tokens: allow objects of several tokens, whose log-probabilities are averaged.
        optimisation: how the vectors are found.

    Returns:
        The change, not in force: `with change: ...` or `change.apply()`.

    Raises:
        InputError: edits conflict; an object has several tokens; the covariance is missing or singular; a layer does
            not exist, or what its MLP gives is not added to the residual stream as it is.
        UnknownNameError: there is no such spread.

    Source: Meng et al., 2023 (MEMIT), section 4; Li et al., 2024 (PMET; the spread).
    """
    check_editable(model)
    check_spread(spread)
    wanted, downs = distinct_edits(edits), down_projections(model, layers)
    check_covariance(covariance, downs)
    groups = edit_groups(model, wanted, contexts, average_tokens)
    general = essence_prompts(model, wanted, essence)
    check_writes(model, downs, PromptBatch(model, [g[0] for g in groups]).inputs)
    site = f"{model.tower.prefix}blocks.{downs[-1].layer}.resid_post"
    with Draft(model) as draft:
        found = target_vectors(model, site, groups, essence=general, how=optimisation)
        write_layers(draft, downs, covariance, groups, "subject", found.initial + found.delta, spread, preserve)
        about = {"method": "memit", "layers": [d.layer for d in downs], "spread": spread, "edits": len(wanted)}
        return draft.change(about)
