"""What editors share: prompts of edits behind contexts, mean keys, and weights that change for the time of the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from actinium.circuits.knowledge.covariance import KeyCovariance
from actinium.circuits.knowledge.encoding import Prompt, PromptBatch, edit_prompt, prompt_of
from actinium.circuits.knowledge.facts import FactEdit
from actinium.circuits.knowledge.weights import Down, WeightChange
from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = [
    "Draft",
    "check_covariance",
    "check_editable",
    "check_length",
    "edit_groups",
    "essence_prompts",
    "mean_keys",
    "positions_of",
]


def check_editable(model: Model) -> None:
    """Refuse a model that does not predict the next token, with an InputError."""
    if model.kind != "causal-lm":
        raise InputError(f"{model.name} is a {model.kind}; editing facts needs a causal language model")


def check_covariance(covariance: Any, downs: Sequence[Down]) -> None:
    """Refuse a covariance that is missing, singular, or of another model.

    Raises:
        InputError: it is one of these.
    """
    if not isinstance(covariance, KeyCovariance):
        raise InputError(
            f"the covariance of the keys is missing (got {type(covariance).__name__}); make it with "
            "key_covariance(model, texts) from texts like those that the model was trained on"
        )
    for down in downs:
        units = len(covariance[down.layer])
        if units != down.weight.shape[0]:
            raise InputError(f"layer {down.layer} has {down.weight.shape[0]} units, its covariance {units}")


def check_length(prompts: Sequence[Prompt], average_tokens: bool) -> None:
    """Refuse objects of several tokens where they are not to be averaged.

    Raises:
        InputError: an object has several tokens.
    """
    long = next((p for p in prompts if len(p.target) > 1), None)
    if long is not None and not average_tokens:
        raise InputError(
            f"a new object has {len(long.target)} tokens; average_tokens=True edits the mean of their log-probabilities"
        )


def edit_groups(
    model: Model, edits: Sequence[FactEdit], contexts: Sequence[str], average_tokens: bool
) -> list[list[Prompt]]:
    """For each edit its prompt, alone and behind each context."""
    if isinstance(contexts, str):
        raise InputError("contexts are several texts: pass a list")
    groups = [[edit_prompt(model, edit, context) for context in ("", *contexts)] for edit in edits]
    check_length([p for g in groups for p in g], average_tokens)
    return groups


def essence_prompts(model: Model, edits: Sequence[FactEdit], essence: str | None) -> list[Prompt]:
    """The prompt about each subject in general, such as "{} is a"; none for None."""
    if essence is None:
        return []
    if "{}" not in essence:
        raise InputError(f"the essence prompt needs {{}} in the place of the subject: {essence!r}")
    start = essence.index("{}")
    return [prompt_of(model, essence.replace("{}", e.subject, 1), end=start + len(e.subject)) for e in edits]


def positions_of(batch: PromptBatch, at: str) -> Tensor:
    """(row,) positions: "subject" or "last"."""
    return (batch.last if at == "last" else batch.subject)[:, 0]


def mean_keys(model: Model, down: Down, groups: Sequence[Sequence[Prompt]], at: str) -> Tensor:
    """Key of each edit, averaged over its prompts, (unit, edit) float64 on the CPU."""
    batch = PromptBatch(model, [p for g in groups for p in g])
    values = model.record(batch.inputs, down.site)[down.site]
    each = values[torch.arange(len(batch)), positions_of(batch, at)].double().cpu()
    return torch.stack([part.mean(0) for part in each.split([len(g) for g in groups])], 1)


class Draft:
    """Changes of down projections that are in force within the block and taken back at its end.

    Args:
        model: the model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.deltas: dict[str, Tensor] = {}
        self._steps: list[WeightChange] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for step in reversed(self._steps):
            step.revert()

    def add(self, down: Down, change: Tensor) -> None:
        """Put a change (d_model, unit) of one layer in force.

        Raises:
            InputError: it is not finite.
        """
        if not bool(change.isfinite().all()):
            raise InputError(f"the change of layer {down.layer} is not finite")
        kind = torch.promote_types(down.weight.dtype, torch.float32)
        delta = down.delta(change).to(down.weight.device, kind).contiguous()
        self._steps.append(WeightChange(self.model, {down.name: delta}).apply())
        self.deltas[down.name] = self.deltas[down.name] + delta if down.name in self.deltas else delta

    def change(self, about: Mapping[str, Any]) -> WeightChange:
        """All changes together, not in force."""
        return WeightChange(self.model, self.deltas, about)
