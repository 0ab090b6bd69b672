"""ROME: one fact as a rank-one change of one MLP's down projection."""

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
)
from actinium.circuits.knowledge.encoding import PromptBatch
from actinium.circuits.knowledge.facts import EditCase, FactEdit, distinct_edits
from actinium.circuits.knowledge.target_vector import TargetOptimisation, target_vectors
from actinium.circuits.knowledge.weights import Down, WeightChange, check_writes
from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = ["rank_one", "rome"]


def rank_one(weight: Tensor, key: Tensor, value: Tensor, inverse_key: Tensor) -> Tensor:
    """The change of a weight after which it gives `value` for `key`, and as before for keys q with q^T C^-1 k = 0.

    (v* - W k) (C^-1 k)^T / (k^T C^-1 k).

    Args:
        weight: W (d_model, unit).
        key: k (unit,).
        value: v* (d_model,).
        inverse_key: C^-1 k (unit,).

    Returns:
        (d_model, unit) float64.

    Raises:
        InputError: k^T C^-1 k is not above 0.

    Source: Meng et al., 2022, equation 2.
    """
    w, k, v, u = (t.double() for t in (weight, key, value, inverse_key))
    strength = torch.dot(k, u)
    if not float(strength) > 0:
        raise InputError("the key is zero, so no change of the weight reaches it")
    return torch.outer(v - w @ k, u) / strength


def rome(
    model: Model,
    edits: FactEdit | EditCase | Iterable[FactEdit | EditCase],
    covariance: KeyCovariance,
    layer: int,
    *,
    contexts: Sequence[str] = (),
    essence: str | None = "{} is a",
    average_tokens: bool = False,
    optimisation: TargetOptimisation | None = None,
) -> WeightChange:
    """Edit facts one after the other, each by a rank-one change of one down projection.

    The key is the mean over the contexts of the MLP's activations at the subject's last token. The value is what the
    projection gives for it, plus a vector that makes the model say the new object. Values are those of the unedited
    model, so that none undoes what an edit before it did to other subjects.

    Args:
        model: a causal language model; it is left as it was.
        edits: the facts.
        covariance: of the layer's keys.
        layer: the block.
        contexts: texts put before the prompt, besides the prompt alone.
        essence: prompt about the subject in general, of which what follows the subject is to stay; None for none.
        average_tokens: allow objects of several tokens, whose log-probabilities are averaged.
        optimisation: how the vectors are found; by default with a clamp of 4, as in the authors' code for GPT-J.

    Returns:
        The change, not in force: `with change: ...` or `change.apply()`.

    Raises:
        InputError: edits conflict; an object has several tokens; the covariance is missing or singular; the layer does
            not exist, or what its MLP gives is not added to the residual stream as it is.

    Source: Meng et al., 2022, section 3.
    """
    check_editable(model)
    wanted, down = distinct_edits(edits), Down(model, layer)
    check_covariance(covariance, [down])
    how = optimisation or TargetOptimisation(clamp=4.0)
    groups = edit_groups(model, wanted, contexts, average_tokens)
    general = essence_prompts(model, wanted, essence)
    check_writes(model, [down], PromptBatch(model, [g[0] for g in groups]).inputs)
    found = target_vectors(model, f"{model.tower.prefix}blocks.{layer}.mlp.out", groups, essence=general, how=how)
    keys = mean_keys(model, down, groups, "subject")
    values = (down.weight.T.double().cpu() @ keys + found.delta.T.double().cpu()).unbind(1)
    with Draft(model) as draft:
        for group, value in zip(groups, values, strict=True):
            key = mean_keys(model, down, [group], "subject")[:, 0]
            draft.add(down, rank_one(down.weight.T.cpu(), key, value, covariance.solve(layer, key)))
        return draft.change({"method": "rome", "layer": layer, "edits": len(wanted)})
