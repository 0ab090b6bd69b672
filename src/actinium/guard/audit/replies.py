"""Replies of a model, what a judge says about them, and how well they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.inputs import Tokens, pad
from actinium.core.model import Model

__all__ = ["Judge", "chat_prompts", "refusal_judge", "refused_share", "replies_to", "reply_quality"]

Judge: TypeAlias = Callable[[str, str], bool]
"""From a prompt and the reply to it to whether the reply refuses."""


def chat_prompts(model: Model, prompts: Sequence[str]) -> list[str]:
    """User messages in the model's own chat form, up to where its reply begins.

    Args:
        model: a model whose tokenizer has a chat template.
        prompts: what the user says.

    Returns:
        One text per prompt, without the special token that the tokenizer itself puts in front.

    Raises:
        InputError: the tokenizer has no chat template, or there is no prompt.
    """
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{model.name} has no chat template; write the prompts in the form that it was trained on")
    if isinstance(prompts, str) or not len(prompts):
        raise InputError("prompts are a list of texts")
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    front = getattr(tokenizer, "bos_token", None)
    doubled = front and tokenizer(texts[0])["input_ids"][:2] == [tokenizer.bos_token_id] * 2
    return [text.removeprefix(front) for text in texts] if doubled else texts


def refusal_judge(starts: Sequence[str] = (), contains: Sequence[str] = ()) -> Judge:
    """A judge by words: a reply refuses if it starts with, or anywhere contains, one of them (case is ignored).

    Args:
        starts: first words of refusals; white space before them is skipped.
        contains: words of refusals.

    Raises:
        InputError: no words are given, or one is empty.
    """
    first, within = ([w.lower().strip() for w in words] for words in (starts, contains))
    if isinstance(starts, str) or isinstance(contains, str) or not first + within or not all(first + within):
        raise InputError("a judge by words needs a list of words, none of them empty")

    def judge(prompt: str, reply: str) -> bool:
        text = reply.lower().strip()
        return text.startswith(tuple(first)) or any(word in text for word in within)

    return judge


def replies_to(
    model: Model, prompts: Sequence[str], *, max_new_tokens: int = 16, batch_size: int | None = None, **options: Any
) -> list[str]:
    """What the model writes after each prompt; the most likely tokens unless `options` say otherwise.

    Args:
        model: a model that generates.
        prompts: texts.
        max_new_tokens: most tokens of a reply.
        batch_size: prompts in a pass, all at once by default.
        **options: those of transformers' `generate`.

    Raises:
        InputError: there is no prompt, or the model cannot read one.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise InputError("prompts are a list of texts")
    options = {"do_sample": False, "max_new_tokens": max_new_tokens} | options
    step, found = batch_size or len(prompts), []
    with torch.no_grad():
        for start in range(0, len(prompts), step):
            found += model.generate(list(prompts[start : start + step]), **options)
    return found


def refused_share(judge: Judge, prompts: Sequence[str], replies: Sequence[str]) -> float:
    """Share of replies that a judge calls refusals.

    Raises:
        InputError: the judge answers something that is neither true nor false, or there is no reply.
    """
    if not replies or len(prompts) != len(replies):
        raise InputError(f"{len(replies)} replies to {len(prompts)} prompts")
    said = [judge(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
    if any(answer not in (True, False) for answer in said):
        wrong = next(answer for answer in said if answer not in (True, False))
        raise InputError(f"a judge says whether a reply refuses (True or False), not {wrong!r}")
    return sum(map(bool, said)) / len(said)


def reply_quality(model: Model, prompts: Sequence[str], replies: Sequence[str]) -> tuple[float, float]:
    """How well replies are written: their perplexity and how much they repeat.

    Args:
        model: judges the replies; one that is not under attack.
        prompts: texts.
        replies: one for each.

    Returns:
        The perplexity of the replies' tokens after their prompts (NaN where all replies are empty), and the share of
        pairs of neighbouring tokens within a reply that have stood in it before.

    Raises:
        InputError: numbers differ, or the model does not predict the next token.
    """
    if not replies or len(prompts) != len(replies):
        raise InputError(f"{len(replies)} replies to {len(prompts)} prompts")
    heads = [list(ids) for ids in model.tokenizer(list(prompts), verbose=False)["input_ids"]]
    tails = [list(ids) for ids in model.tokenizer(list(replies), add_special_tokens=False, verbose=False)["input_ids"]]
    room = model.context or math.inf
    if any(len(h) + len(t) > room for h, t in zip(heads, tails, strict=True)):
        raise InputError(f"a prompt with its reply is longer than the context of {model.context} tokens")
    pairs = [list(pairwise(t)) for t in tails]
    total = sum(map(len, pairs))
    repeated = 1 - sum(len(set(p)) for p in pairs) / total if total else 0.0
    if not any(tails):
        return float("nan"), repeated
    ids, mask = pad([h + t for h, t in zip(heads, tails, strict=True)], 0)
    with torch.no_grad():
        each: Tensor = model.loss(Tokens(ids, mask, torch.arange(len(ids))), reduction="token")
    # The loss of token t stands at t - 1.
    column = torch.arange(each.shape[1])[None]
    start = torch.tensor([len(h) for h in heads])[:, None] - 1
    wanted = (column >= start).to(each.device) & ~each.isnan()
    return float(each[wanted].double().mean().exp()), float(repeated)
