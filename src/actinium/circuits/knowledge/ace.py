"""ACE: facts edited in the layers whose units write the answer and in those whose units activate them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from actinium.circuits.knowledge.covariance import KeyCovariance
from actinium.circuits.knowledge.drafting import (
    Draft,
    check_covariance,
    check_editable,
    check_length,
    edit_groups,
    essence_prompts,
)
from actinium.circuits.knowledge.encoding import Prompt, PromptBatch, prompt_of
from actinium.circuits.knowledge.facts import EditCase, FactEdit, distinct_edits, place_of
from actinium.circuits.knowledge.memit import check_spread, write_layers
from actinium.circuits.knowledge.neuron_attribution import best_window, neuron_attribution
from actinium.circuits.knowledge.target_vector import TargetOptimisation, target_vectors
from actinium.circuits.knowledge.weights import Down, WeightChange, check_writes, down_projections
from actinium.core.errors import InputError, LoadError
from actinium.core.estimator import Estimator
from actinium.core.model import Model

__all__ = ["ACE"]

Layers = Sequence[int] | str | None
# Prompts whose attributions choose the layers.
PROMPTS = 32


class ACE(Estimator):
    """Attribution-controlled editing, in two stages.

    The value stage changes deep MLPs at the last token of the edits' prompts and of their multi-hop prompts, so that
    the new answers are written there. The query stage changes earlier MLPs at the last token of the subject, so that
    the stream becomes one from which both kinds of prompts are answered anew (multi-hop prompts that name the subject).
    Vectors of both stages are found in the unedited model; keys and what is missing are computed anew in each layer.

    Args:
        value_layers: blocks of the value stage; "auto" for the `n_value` neighbouring ones whose MLP units have the
            highest value scores; None leaves the stage out.
        query_layers: blocks of the query stage; "auto" for the `n_query` neighbouring ones whose MLP units have the
            highest query scores; None leaves the stage out.
        n_value, n_query: numbers of layers of "auto".
        spread, preserve: see `memit`.
        essence: prompt about the subject in general, for the query stage; None for none.
        average_tokens: allow answers of several tokens, whose log-probabilities are averaged.
        optimisation: how the vectors are found.

    Attributes:
        value_layers_, query_layers_: the layers that were changed.
        change_: the change of weights, not in force.

    Source: Yang et al., 2025, with neuron attribution of Yu and Ananiadou, 2024. The paper's page leaves open where the
        value stage takes its keys and what the query stage aims at; both are as described above.
    """

    fitted = "change_"

    def __init__(
        self,
        value_layers: Layers = "auto",
        query_layers: Layers = "auto",
        *,
        n_value: int = 3,
        n_query: int = 3,
        spread: str = "sqrt",
        preserve: float | None = None,
        essence: str | None = "{} is a",
        average_tokens: bool = False,
        optimisation: TargetOptimisation | None = None,
    ) -> None:
        self.value_layers, self.query_layers = value_layers, query_layers
        self.n_value, self.n_query = n_value, n_query
        self.spread, self.preserve, self.essence = spread, preserve, essence
        self.average_tokens, self.optimisation = average_tokens, optimisation

    def fit(
        self,
        model: Model,
        edits: FactEdit | EditCase | Iterable[FactEdit | EditCase],
        covariance: KeyCovariance,
        contexts: Sequence[str] = (),
    ) -> Self:
        """Find the change of weights.

        Args:
            model: a causal language model; it is left as it was.
            edits: the facts, with their multi-hop prompts.
            covariance: of the keys of the layers.
            contexts: texts put before the prompts, besides the prompts alone.

        Returns:
            The estimator; `with ace.change_: ...` runs the edited model.

        Raises:
            InputError: both stages are left out; edits conflict; an answer has several tokens; the covariance is
                missing or singular; a layer does not exist, or what its MLP gives is not added as it is.
            UnknownNameError: there is no such spread.
        """
        check_editable(model)
        check_spread(self.spread)
        wanted = distinct_edits(edits)
        value, query = self._layers(model, wanted)
        check_covariance(covariance, [*value, *query])
        groups = edit_groups(model, wanted, contexts, self.average_tokens)
        check_writes(model, [*value, *query], PromptBatch(model, [g[0] for g in groups]).inputs)
        said = [_multihop(model, e, contexts) for e in wanted]
        check_length([p for each in said for group in each for p in group], self.average_tokens)
        general = essence_prompts(model, wanted, self.essence)
        written = [group for own, others in zip(groups, said, strict=True) for group in (own, *others)]
        asked = [
            own + [p for group in others for p in group if p.subject is not None]
            for own, others in zip(groups, said, strict=True)
        ]
        wanted_value = self._vectors(model, value, written, "last", None)
        wanted_query = self._vectors(model, query, asked, "subject", general)
        with Draft(model) as draft:
            for downs, stage, at, vectors in (
                (value, written, "last", wanted_value),
                (query, groups, "subject", wanted_query),
            ):
                if downs:
                    write_layers(draft, downs, covariance, stage, at, vectors, self.spread, self.preserve)
            self.value_layers_, self.query_layers_ = [d.layer for d in value], [d.layer for d in query]
            layers = {"value_layers": self.value_layers_, "query_layers": self.query_layers_}
            self.change_: WeightChange = draft.change({"method": "ace", **layers, "edits": len(wanted)})
        return self

    def save(self, folder: str | Path) -> Path:
        """Write `ace.json` (hyper-parameters, layers) and `change.safetensors`; returns the folder.

        Raises:
            InputError: `fit` was not called.
        """
        self.check_fitted()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.change_.save(folder / "change.safetensors")
        how = self.optimisation
        note = {
            "params": {**self.get_params(), "optimisation": None if how is None else asdict(how)},
            "value_layers": self.value_layers_,
            "query_layers": self.query_layers_,
        }
        (folder / "ace.json").write_text(json.dumps(note, indent=1, sort_keys=True), encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path, model: Model) -> Self:
        """Read what `save` wrote, for the model that it was made for.

        Raises:
            LoadError: the folder is not a saved ACE.
            InputError: the model has other parameters.
        """
        try:
            note = json.loads((Path(folder) / "ace.json").read_text(encoding="utf-8"))
            params = note["params"]
            how = params.pop("optimisation")
            out = cls(**params, optimisation=None if how is None else TargetOptimisation(**how))
            out.value_layers_, out.query_layers_ = note["value_layers"], note["query_layers"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LoadError(f"{folder} is not a saved ACE: {error}") from None
        out.change_ = WeightChange.load(Path(folder) / "change.safetensors", model)
        return out

    def _vectors(
        self, model: Model, downs: list[Down], groups: list[list[Prompt]], at: str, general: list[Prompt] | None
    ) -> Tensor:
        """The stream (edit, d_model) after the last of some layers that gives the new answers."""
        if not downs:
            return torch.zeros(0)
        site = f"{model.tower.prefix}blocks.{downs[-1].layer}.resid_post"
        found = target_vectors(model, site, groups, at, general, self.optimisation)
        return found.initial + found.delta

    def _layers(self, model: Model, edits: list[FactEdit]) -> tuple[list[Down], list[Down]]:
        if self.value_layers is None and self.query_layers is None:
            raise InputError("both stages are left out, so nothing would be edited")
        texts = [t for e in edits for t in (*(q.phrasings[0] for q in e.multihop_prompts), e.text)][:PROMPTS]
        found = []
        for kind, given, size in (
            ("value", self.value_layers, self.n_value),
            ("query", self.query_layers, self.n_query),
        ):
            if isinstance(given, str):
                if given != "auto":
                    raise InputError(f'{kind}_layers is "auto", None or layers, not {given!r}')
                scores = neuron_attribution(model, texts, kind=kind)["layer_score"].values
                given = best_window(scores.tolist(), size)
            found.append([] if given is None else down_projections(model, given))
        return found[0], found[1]


def _multihop(model: Model, edit: FactEdit, contexts: Sequence[str]) -> list[list[Prompt]]:
    """For each multi-hop prompt of an edit its first wording with the new answer, alone and behind each context."""
    out = []
    for question in edit.multihop_prompts:
        text = question.phrasings[0]
        end = place_of(edit.subject, text)
        starts = ["", *(f"{context} " for context in contexts)]
        out.append(
            [
                prompt_of(model, start + text, question.answer, None if end is None else end + len(start))
                for start in starts
            ]
        )
    return out
