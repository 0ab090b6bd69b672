"""Held-out accuracy of a model of the world, skill by skill."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from actinium.world.corpus import HELD_OUT, held_out_documents
from actinium.world.documents import Document

NOT_LEARNT: tuple[str, ...] = ("multiple_choice",)
"""Skills that `world:lm` was taught and does not have: it picks letters at chance."""
PARTLY: tuple[str, ...] = ("two_hop_new_person",)
"""Skills that `world:lm` has on unseen combinations in most cases, but fewer than nine in ten."""
GENERALISES: tuple[str, ...] = tuple(skill for skill in HELD_OUT if skill not in NOT_LEARNT + PARTLY)
"""Skills that `world:lm` has on unseen combinations, at least nine times in ten."""


@torch.no_grad()
def correct(model: Any, tokenizer: PreTrainedTokenizerBase, documents: list[Document]) -> list[bool]:
    """Whether greedy decoding of each prompt gives the answer.

    An answer of several tokens counts when every one of its tokens is the most likely continuation of the
    prompt and the answer before it, which is when greedy decoding writes exactly this answer. Where a
    document accepts several words, any of them counts.

    Args:
        model: a causal language model of Hugging Face transformers.
        tokenizer: its tokenizer.
        documents: what to ask.

    Returns:
        One truth value per document.
    """
    prompts = tokenizer([d.prompt for d in documents])["input_ids"]
    answers = tokenizer([d.answer for d in documents], add_special_tokens=False)["input_ids"]
    order = sorted(range(len(documents)), key=lambda i: len(prompts[i]) + len(answers[i]))
    right = [False] * len(documents)
    for start in range(0, len(order), 128):
        rows = order[start : start + 128]
        longest = max(len(prompts[i]) + len(answers[i]) for i in rows)
        ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
        for row, i in enumerate(rows):
            ids[row, : len(prompts[i]) + len(answers[i])] = torch.tensor(prompts[i] + answers[i])
        # Rows are padded on the right, where a causal model does not look.
        best = model(ids.to(model.device), use_cache=False).logits.argmax(-1).cpu()
        for row, i in enumerate(rows):
            first = len(prompts[i]) - 1
            said = best[row, first : first + len(answers[i])].tolist()
            if documents[i].accept:
                allowed = tokenizer([f" {w}" for w in documents[i].accept], add_special_tokens=False)["input_ids"]
                right[i] = [said[0]] in allowed
            else:
                right[i] = said == answers[i]
    return right


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    n: int = 1000,
    seed: int = 0,
    skills: list[str] | None = None,
) -> dict[str, float]:
    """Held-out accuracy per skill, by greedy decoding.

    Args:
        model: a causal language model of Hugging Face transformers that knows the world's tokens.
        tokenizer: its tokenizer.
        n: documents per skill, at most; skills with fewer held-out combinations use all that are found.
        seed: seed of the draw.
        skills: which skills; all by default.

    Returns:
        Skill -> share of the held-out documents that are answered correctly.
    """
    result = {}
    for skill in skills or list(HELD_OUT):
        right = correct(model, tokenizer, held_out_documents(skill, n, seed))
        result[skill] = sum(right) / len(right)
    return result
