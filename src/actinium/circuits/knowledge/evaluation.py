"""How well a change of weights edits facts: the facts themselves, other wordings, neighbours, and what follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import xarray as xr

from actinium.circuits.knowledge.drafting import check_editable
from actinium.circuits.knowledge.encoding import Prompt, PromptBatch, edit_prompt, prompt_of
from actinium.circuits.knowledge.facts import EditCase, FactEdit, Question, distinct_edits
from actinium.circuits.knowledge.weights import WeightChange
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result

__all__ = ["evaluate_edits"]

SHOWN = ("efficacy", "paraphrase", "specificity", "multihop")
MEASURES = ("efficacy", "paraphrase", "specificity", "multihop", "multihop_wordings", "hops")
_Said = tuple[list[bool], list[int]]
"""Of each prompt, whether its answer is given, and the most likely token after it."""


def evaluate_edits(
    model: Model,
    cases: FactEdit | EditCase | Iterable[FactEdit | EditCase],
    changes: WeightChange | Mapping[str, WeightChange] | None = None,
    *,
    batch_size: int = 256,
) -> Result:
    """Share of prompts that a model answers as the edits want, before changes of its weights and under each.

    An answer counts when each of its tokens is the most likely one after the prompt (greedy decoding).

    Args:
        model: a causal language model; left as it was.
        cases: edits, or cases with multi-hop questions.
        changes: what an editor returned, or {name: change} to compare several; without one the model is scored as it
            is.
        batch_size: prompts in a pass.

    Returns:
        Result over `weights` ("before", and "after" or the names), with shares (NaN where nothing was asked):
        `efficacy` (the edits' prompts give the new object), `paraphrase` (their paraphrases do), `specificity`
        (neighbours' most likely next token is that before the change), `multihop` (questions of which any wording is
        answered), `multihop_wordings` (wordings that are answered), `hops` (cases all of whose single facts are
        answered). `n` over `measure` is the number of prompts, questions or cases. `answered` (weights, question) says
        which questions are, `edited` (question) how many edits their cases have, and `by_edits` (weights, count) the
        multi-hop accuracy by that number.

    Raises:
        InputError: edits conflict, a prompt cannot be read, or a change belongs to another model or is in force.

    Source: Meng et al., 2022 (CounterFact); Zhong et al., 2023 (MQuAKE).
    """
    check_editable(model)
    table = {"after": changes} if isinstance(changes, WeightChange) else dict(changes or {})
    for name, change in table.items():
        if not isinstance(change, WeightChange) or change.model.module is not model.module or change.applied:
            raise InputError(
                f"{name}: the change is in force or made for another model; give it as the editor returned it"
            )
    if "before" in table:
        raise InputError("'before' is the model as it is; give the change another name")
    given = [cases] if isinstance(cases, FactEdit | EditCase) else list(cases)
    sheet = _Sheet(model, distinct_edits(given), [c for c in given if isinstance(c, EditCase)])
    said = {"before": sheet.answer(batch_size)}
    for name, change in table.items():
        with change:
            said[name] = sheet.answer(batch_size)
    record = provenance(model, given, changes={k: {**c.about, **c.deltas} for k, c in table.items()})
    return Result(_table(sheet, said), "evaluate_edits", "ace", record)


def _table(sheet: _Sheet, said: dict[str, _Said]) -> xr.Dataset:
    scores = [sheet.scores(one, said["before"]) for one in said.values()]
    answered = np.array([sheet.answered(one) for one in said.values()], dtype=bool)
    edited = np.array([len(c.edits) for c in sheet.cases for _ in c.questions], dtype=int)
    counts = np.unique(edited)
    return xr.Dataset(
        {
            **{m: ("weights", [s[m][0] for s in scores]) for m in MEASURES},
            "n": ("measure", [scores[0][m][1] for m in MEASURES]),
            "answered": (("weights", "question"), answered),
            "edited": ("question", edited),
            "by_edits": (("weights", "count"), _means(answered, edited, counts)),
        },
        coords={"weights": list(said), "measure": list(MEASURES), "count": counts},
        attrs={"plot": {"kind": "bar", "variables": list(SHOWN), "ylabel": "share"}},
    )


def _means(answered: np.ndarray, edited: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(weights, count) mean over the questions of each number of edits."""
    return np.array([[row[edited == k].mean() for k in counts] for row in answered]).reshape(len(answered), len(counts))


def _share(values: Sequence[bool]) -> tuple[float, int]:
    return (float(np.mean(values)) if len(values) else float("nan")), len(values)


class _Sheet:
    """All prompts of an evaluation, encoded once, and which of them belong to what."""

    def __init__(self, model: Model, edits: list[FactEdit], cases: list[EditCase]) -> None:
        self.model, self.cases = model, cases
        self.prompts: list[Prompt] = []
        self.own = [self._put(edit_prompt(model, e)) for e in edits]
        self.other = [self._ask(text, e.target_new) for e in edits for text in e.paraphrases]
        self.near = [self._ask(text) for e in edits for text in e.neighbours]
        self.questions = [[self._question(q) for q in c.questions] for c in cases]
        self.hops = [[self._question(q) for q in c.hops] for c in cases]

    def _put(self, prompt: Prompt) -> int:
        self.prompts.append(prompt)
        return len(self.prompts) - 1

    def _ask(self, text: str, answer: str | None = None) -> int:
        return self._put(prompt_of(self.model, text, answer))

    def _question(self, question: Question) -> list[list[int]]:
        """For each wording a prompt for each accepted answer."""
        return [[self._ask(text, answer) for answer in question.answers] for text in question.phrasings]

    @torch.no_grad()
    def answer(self, batch_size: int) -> _Said:
        """Run all prompts on the model as it is now."""
        right: list[bool] = []
        said: list[int] = []
        for start in range(0, len(self.prompts), batch_size):
            batch = PromptBatch(self.model, self.prompts[start : start + batch_size])
            logits = self.model.logits(batch.inputs)
            right += batch.answered(logits).tolist()
            said += logits[torch.arange(len(batch)), batch.last[:, 0]].argmax(-1).tolist()
        return right, said

    def scores(self, now: _Said, before: _Said) -> dict[str, tuple[float, int]]:
        """Share and number behind it, by measure."""
        right = now[0]
        asked = [told for each in self._told(self.questions, right) for told in each]
        facts = [[any(told) for told in each] for each in self._told(self.hops, right) if each]
        return {
            "efficacy": _share([right[i] for i in self.own]),
            "paraphrase": _share([right[i] for i in self.other]),
            "specificity": _share([now[1][i] == before[1][i] for i in self.near]),
            "multihop": _share(self.answered(now)),
            "multihop_wordings": _share([one for told in asked for one in told]),
            "hops": _share([all(each) for each in facts]),
        }

    def answered(self, now: _Said) -> list[bool]:
        """Of each question, whether any wording is answered."""
        return [any(told) for each in self._told(self.questions, now[0]) for told in each]

    @staticmethod
    def _told(asked: list[list[list[list[int]]]], right: list[bool]) -> list[list[list[bool]]]:
        """By case, question and wording, whether any accepted answer is given."""
        return [[[any(right[i] for i in one) for one in q] for q in each] for each in asked]
