"""Tasks of repetition, which fit language models that know no word of the small world."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.task import Task, encode_pair

__all__ = ["repeated_names", "repeated_tokens"]

# Short, common and mostly one token.
PEOPLE = (
    *("Lily", "Tim", "Timmy", "Tom", "Ben", "Sam", "Max", "Mia", "Lucy", "Anna", "Sara", "Mary", "John", "Paul"),
    *("James", "Peter", "David", "Alice", "Mark", "Jack"),
)
FRAMES = (
    "There was a boy named {name}. He was happy. One day,",
    "Once upon a time, there was a little girl named {name}. One day,",
    "There was a child named {name}. The child was happy. One day,",
)


def repeated_names(
    model: Model, n: int = 64, seed: int = 0, names: Sequence[str] = PEOPLE, frames: Sequence[str] = FRAMES
) -> Task:
    """A story that has named its hero and is about to again: "... a boy named Tim. One day," -> Tim.

    The corrupt prompt has another name.

    Args:
        model: a model with a tokenizer, or a tokenizer.
        n: most rows; there are as many as the names that the tokenizer keeps whole allow.
        seed: of their choice.
        names: the names.
        frames: texts with one place {name}.

    Returns:
        The task.

    Raises:
        InputError: the tokenizer keeps no two of the names whole.
    """
    if n < 1:
        raise InputError(f"a task needs at least one row, got n={n}")
    tokenizer: Any = model if hasattr(model, "convert_ids_to_tokens") else model.tokenizer
    if tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer, and a task is made of texts")
    rows = [(frame, *pair) for frame, pair in product(frames, permutations(names, 2))]
    random.Random(seed).shuffle(rows)
    kept: list[tuple[str, str, str, str]] = []
    for frame, name, other in rows:
        row = (frame.format(name=name), frame.format(name=other), f" {name}", f" {other}")
        try:
            encode_pair(tokenizer, *row)
        except InputError:
            continue
        kept.append(row)
        if len(kept) == n:
            break
    if not kept:
        raise InputError(f"this tokenizer keeps no two of the names whole: {', '.join(names)}")
    columns = [list(column) for column in zip(*kept, strict=True)]
    return Task.from_prompts(tokenizer, *columns, name="repeated_names")


def repeated_tokens(model: Model, n: int = 64, length: int = 8, seed: int = 0) -> Task:
    """Different random tokens, then the same again up to one that is to come: "a b c d a b" -> c.

    The corrupt prompt has another token in the place of the answer, which is then the answer.

    Args:
        model: a language model; where its tokenizer has words with a space before them, tokens are drawn from those.
        n: number of rows.
        length: tokens before the repetition, 3 or more.
        seed: of the draw.

    Returns:
        The task; prompts start with the model's BOS token if it has one.

    Raises:
        InputError: there are no rows, the sequence is too short or too long for the context, or the vocabulary is too
            small.

    Source: Olsson et al., 2022 (induction heads).
    """
    if n < 1:
        raise InputError(f"a task needs at least one row, got n={n}")
    if length < 3:
        raise InputError(f"a sequence to repeat has 3 tokens or more, not {length}")
    start = start_ids(model)
    if model.context is not None and 2 * length + len(start) > model.context:
        raise InputError(f"twice {length} tokens do not fit the context of {model.context}")
    words = word_ids(model, length + 1)
    generator = torch.Generator().manual_seed(seed)
    # Where the repetition ends is the same in all rows, so that positions mean the same.
    stop = length // 2
    clean, corrupt = [], []
    for _ in range(n):
        drawn = words[torch.randperm(len(words), generator=generator)[: length + 1]].tolist()
        first, other = drawn[:length], drawn[length]
        changed = [*first[:stop], other, *first[stop + 1 :]]
        clean.append([*start, *first, *first[:stop]])
        corrupt.append([*start, *changed, *first[:stop]])
    ids = [torch.tensor(rows) for rows in (clean, corrupt)]
    place = len(start) + stop
    answers, wrong = ids[0][:, place], ids[1][:, place]
    return Task.from_ids(ids[0], ids[1], answers, wrong, model=model, name="repeated_tokens")


def start_ids(model: Model) -> list[int]:
    """The BOS token that prompts of a model start with, or nothing."""
    for owner in (model.tokenizer, model.config):
        found = getattr(owner, "bos_token_id", None)
        if isinstance(found, int):
            return [found]
    return []


def word_ids(model: Model, least: int) -> Tensor:
    """Ids of words with a space before them, or where there are too few of all tokens that are not special."""
    size = getattr(model.config, "vocab_size", None)
    tokenizer: Any = model.tokenizer
    if not isinstance(size, int):
        raise InputError(f"the size of the vocabulary of {model.name} is not known")
    if tokenizer is None:
        special = {
            v for k in ("bos", "eos", "pad") if isinstance(v := getattr(model.config, f"{k}_token_id", None), int)
        }
        ids = [i for i in range(size) if i not in special]
    else:
        ids = [i for i in range(min(size, len(tokenizer))) if i not in set(tokenizer.all_special_ids)]
        spaced = [i for i, t in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True) if _is_word(t)]
        ids = spaced if len(spaced) >= 4 * least else ids
    if len(ids) < least:
        raise InputError(f"the vocabulary has {len(ids)} tokens that can be used; the task needs {least}")
    return torch.tensor(ids)


def _is_word(token: str) -> bool:
    # The marks that tokenizers put for a space before a word.
    return len(token) > 3 and token[0] in "\u2581\u0120 " and token[1:].isalpha()
