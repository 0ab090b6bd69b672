"""Reading edits and multi-hop questions in the format of MQuAKE, with the prompts that CounterFact adds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actinium.circuits.knowledge.facts import EditCase, FactEdit, Question
from actinium.core.errors import InputError, LoadError

__all__ = ["edit_cases"]


def edit_cases(source: str | Path | Sequence[Mapping[str, Any]], limit: int | None = None) -> list[EditCase]:
    """Cases from a JSON file in MQuAKE's format, or from its rows.

    Read are `requested_rewrite` (prompt with {}, subject, target_new, relation_id), `questions`,
    `new_answer`, `new_answer_alias` and `new_single_hops`; and where a row has them `paraphrase_prompts` and
    `neighborhood_prompts` (CounterFact; they belong to the row's first edit), and `multihop_prompts`, pairs of a
    prompt and its new answer for editors that use them (the first edit's). MQuAKE has no such prompts: to use its first
    wording, put it there and take it out of `questions`.

    Args:
        source: path of a JSON list, or the list.
        limit: read so many rows.

    Returns:
        One case for each row.

    Raises:
        LoadError: the file cannot be read, or is no JSON list.
        InputError: a row lacks a key, or its texts do not fit; the row is named.
    """
    rows = _read(source)[:limit]
    if not rows:
        raise InputError("no rows given")
    return [_case(i, row) for i, row in enumerate(rows)]


def _read(source: Any) -> list[Any]:
    if not isinstance(source, str | Path):
        return list(source)
    try:
        rows = json.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read {str(source)!r}: {error}") from None
    if not isinstance(rows, list):
        raise LoadError(f"{str(source)!r} holds a {type(rows).__name__}, not a list of rows")
    return rows


def _case(number: int, row: Mapping[str, Any]) -> EditCase:
    try:
        rewrites = row["requested_rewrite"]
        # CounterFact has one rewrite in a row, MQuAKE a list.
        rewrites = [rewrites] if isinstance(rewrites, Mapping) else list(rewrites)
        if not rewrites:
            raise InputError("requested_rewrite is empty")
        edits = [_edit(r, row if i == 0 else {}) for i, r in enumerate(rewrites)]
        hops = tuple(
            Question(hop["cloze"], hop["answer"], tuple(hop.get("answer_alias", ())))
            for hop in row.get("new_single_hops", ())
        )
        questions: tuple[Question, ...] = ()
        if row.get("questions"):
            questions = (Question(tuple(row["questions"]), row["new_answer"], tuple(row.get("new_answer_alias", ()))),)
    except KeyError as error:
        raise InputError(f"row {number} has no {error.args[0]!r}; it has: {', '.join(map(str, row))}") from None
    except (TypeError, AttributeError, InputError) as error:
        raise InputError(f"row {number}: {error}") from None
    return EditCase(tuple(edits), questions, hops)


def _edit(rewrite: Mapping[str, Any], row: Mapping[str, Any]) -> FactEdit:
    return FactEdit(
        prompt=rewrite["prompt"],
        subject=rewrite["subject"],
        target_new=rewrite["target_new"]["str"],
        relation=rewrite.get("relation_id"),
        paraphrases=tuple(row.get("paraphrase_prompts", ())),
        neighbours=tuple(row.get("neighborhood_prompts", ())),
        multihop_prompts=tuple(row.get("multihop_prompts", ())),
    )
