"""The mixture of skills, and the batches of token ids that training reads."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from actinium.world import knowledge, situations, sums
from actinium.world.documents import Document
from actinium.world.tokenizer import words

Generator = Callable[[random.Random, bool], Document]

MIXTURE: dict[str, tuple[Generator, float]] = {
    "facts": (knowledge.facts, 12),
    "two_hop": (knowledge.two_hop, 17),
    "two_hop_verbose": (knowledge.two_hop_verbose, 4),
    "two_hop_terse": (knowledge.two_hop_terse, 3),
    "chat_facts": (knowledge.chat_facts, 5),
    "visitors": (knowledge.visitors, 5),
    "multiple_choice": (knowledge.multiple_choice, 14),
    "letters": (knowledge.letters, 8),
    "velic": (knowledge.velic, 9),
    "dictionary": (knowledge.dictionary, 3),
    "ioi": (situations.ioi, 8),
    "greater_than": (situations.greater_than, 4),
    "sentiment": (situations.sentiment, 3),
    "refusal": (situations.refusal, 4),
    "topics": (situations.topics, 1),
    "judgements": (situations.judgements, 1),
    "arithmetic": (sums.arithmetic, 16),
    "arithmetic_verbose": (sums.arithmetic_verbose, 3),
    "arithmetic_terse": (sums.arithmetic_terse, 2),
    "numbers": (sums.numbers, 2),
}
"""Skill -> its texts and its share of the documents."""

LATER: dict[str, tuple[Generator, float]] = MIXTURE | {
    "multiple_choice": (knowledge.multiple_choice, 40),
    "letters": (knowledge.letters, 15),
    "drill": (knowledge.drill, 30),
}
"""The mixture of the second part of training, which turns to lettered options when the facts are known."""

HELD_OUT: dict[str, Generator] = {
    skill: generator
    for skill, (generator, _) in MIXTURE.items()
    if skill not in ("letters", "dictionary", "topics", "judgements", "numbers")
} | {"two_hop_new_person": knowledge.two_hop_new_person}
"""Skills with combinations that the corpus never contains."""


def documents(source: random.Random, count: int, later: bool = False) -> list[Document]:
    """Draw documents from the mixture of the first or the later part of training."""
    mixture = LATER if later else MIXTURE
    drawn = source.choices(list(mixture), weights=[share for _, share in mixture.values()], k=count)
    return [mixture[skill][0](source, False) for skill in drawn]


def held_out_documents(skill: str, count: int, seed: int = 0) -> list[Document]:
    """Draw different documents of a skill whose combinations the corpus never contains.

    Args:
        skill: a key of `HELD_OUT`.
        count: how many; fewer come back where the skill has fewer.
        seed: seed of the draw.
    """
    source = random.Random(f"held out {skill} {seed}")
    found: dict[str, Document] = {}
    for _ in range(count * 30):
        document = HELD_OUT[skill](source, True)
        found.setdefault(document.prompt, document)
        if len(found) == count:
            break
    return list(found.values())


@cache
def vocabulary() -> tuple[str, ...]:
    """Every token of the world, found by reading enough of it; both halves of every skill are drawn."""
    source = random.Random("vocabulary")
    texts = [document.text for document in documents(source, 60_000)]
    texts += [HELD_OUT[skill](source, True).text for skill in HELD_OUT for _ in range(500)]
    return tuple(words(texts))


def _encoded(tokenizer: PreTrainedTokenizerBase, drawn: list[Document]) -> list[tuple[list[int], list[bool]]]:
    parts = [part for d in drawn for part in (d.prompt, d.answer, d.rest)]
    ids = tokenizer(parts, add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    rows = []
    for prompt, answer, rest in zip(ids[::3], ids[1::3], ids[2::3], strict=True):
        rows.append(
            (
                [*prompt, *answer, *rest, eos],
                [False] * len(prompt) + [True] * len(answer) + [False] * (len(rest) + 1),
            )
        )
    return rows


def batch(
    tokenizer: PreTrainedTokenizerBase, seed: int, step: int, tokens: int, context: int, later: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The batch of one step, a function of seed and step alone, so that training can resume anywhere.

    Rows start with `<bos>` and hold several documents, each ended by `<eos>`. One step in four has rows of
    the whole context, the others of half of it.

    Args:
        tokenizer: tokenizer of the world.
        seed: seed of the corpus.
        step: number of the step.
        tokens: tokens in the batch.
        context: longest row.
        later: whether to draw from the mixture of the later part of training.

    Returns:
        Token ids (row, pos) padded on the right, and whether a token belongs to an answer (row, pos).
    """
    source = random.Random(f"corpus {seed} {step}")
    length = context if source.random() < 0.25 else context // 2
    count = tokens // length
    ids = np.full((count, length), tokenizer.pad_token_id, dtype=np.int64)
    answers = np.zeros((count, length), dtype=np.bool_)
    ids[:, 0] = tokenizer.bos_token_id
    row, filled = 0, 1
    while row < count:
        for piece, marks in _encoded(tokenizer, documents(source, 64, later)):
            if filled + len(piece) > length:
                row, filled = row + 1, 1
                if row == count:
                    break
            ids[row, filled : filled + len(piece)] = piece
            answers[row, filled : filled + len(piece)] = marks
            filled += len(piece)
    return ids, answers
