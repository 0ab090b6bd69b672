"""Drawing the rows of a task: words that a tokenizer keeps whole, different rows, and pairs that fit it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.task import Task, encode_pair

__all__ = ["SPLITS", "Row", "collect", "is_held", "tokenizer_of", "whole_words"]

Row = tuple[str, str, str, str]
"""Clean prompt, corrupt prompt, answer and wrong answer; answers as they continue the prompt."""

SPLITS = ("heldout", "train")
PATIENCE = 2000
"""Draws without a new row after which a task is taken to have no more."""


def tokenizer_of(model: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or the argument itself if it is one.

    Raises:
        InputError: there is none.
    """
    found = model if hasattr(model, "convert_ids_to_tokens") else getattr(model, "tokenizer", None)
    if found is None:
        raise InputError("a task is made of texts: give a model that has a tokenizer, or a tokenizer")
    result: PreTrainedTokenizerBase = found
    return result


def is_held(split: str, *more: str) -> bool:
    """Whether a split is one of unseen combinations.

    Raises:
        UnknownNameError: there is no such split.
    """
    if split not in (*SPLITS, *more):
        raise UnknownNameError(unknown("split", split, (*SPLITS, *more)))
    return split != "train"


def whole_words(tokenizer: PreTrainedTokenizerBase, words: tuple[str, ...], what: str, least: int = 2) -> list[str]:
    """The words that are one known token after a space; refused when fewer than `least` are."""
    ids = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    kept = [w for w, i in zip(words, ids, strict=True) if len(i) == 1 and i[0] != tokenizer.unk_token_id]
    if len(kept) < least:
        split = [word for word in words if word not in kept]
        raise InputError(
            f"this tokenizer has no single token for these {what}: {', '.join(split[:12])}"
            f"{', ...' if len(split) > 12 else ''}; the task needs at least {least} such {what}"
        )
    return kept


def collect(
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    draw: Callable[[random.Random], Row | None],
    n: int,
    seed: int,
) -> Task:
    """Draw different rows until `n` of them fit the tokenizer."""
    if n < 1:
        raise InputError(f"a task needs at least one row, got n={n}")
    source = random.Random(f"task {name} {seed}")
    rows: dict[tuple[str, str], Row] = {}
    reason, idle = "no fitting words", 0
    while idle < PATIENCE:
        idle += 1
        row = draw(source)
        if row is None or row[:2] in rows:
            continue
        try:
            encode_pair(tokenizer, *row)
        except InputError as error:
            reason = str(error)
            continue
        rows[row[0], row[1]] = row
        idle = 0
        if len(rows) == n:
            columns = zip(*rows.values(), strict=True)
            # Answers are written as they continue the prompt, with their space where there is one.
            return Task.from_prompts(tokenizer, *map(list, columns), name=name, joined=True)
    if rows:
        raise InputError(f"the task {name!r} has {len(rows)} different rows for this tokenizer and split, not {n}")
    raise InputError(f"this tokenizer does not fit the task {name!r}: {reason}")
