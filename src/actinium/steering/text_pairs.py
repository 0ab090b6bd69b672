"""Pairs of texts to make a vector from: the same or other prompts with endings that show a behaviour, or do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actinium.core.chat import chat_text
from actinium.core.errors import InputError

__all__ = ["contrast_texts"]


def contrast_texts(
    positive: Sequence[str],
    negative: Sequence[str] | None = None,
    endings: Sequence[str | tuple[str, str]] = (),
    *,
    chat: Any = None,
    system: str | tuple[str, str] | None = None,
    reply_next: bool = False,
) -> tuple[list[str], list[str]]:
    """Each pair of prompts with each ending: texts for `extract`, partner beside partner.

    For a behaviour the prompts are the same on both sides and the endings differ, as do openings of replies that refuse
    and that comply (read them with `position="suffix"`); for a condition the prompts differ and need no endings (read
    them with `position="mean"`); two personas are prompts, or messages of the system, that differ before the same
    endings.

    Args:
        positive: prompts with the property.
        negative: as many without it; by default the same ones.
        endings: what follows each prompt: one text for both sides, or (positive, negative).
        chat: a model or tokenizer whose chat template goes around each prompt, as the user's message.
        system: a message of the system before it, for both sides or (positive, negative).
        reply_next: let the template begin the assistant's reply, so that endings stand in it; the paper's program does
            not.

    Returns:
        Positive and negative texts, each list as long as the prompts times the endings, ending by ending.

    Raises:
        InputError: no prompts, numbers that differ, a text that is empty, both sides the same, or no chat template
            where one is needed.

    Source: Lee et al., 2024, CAST (pairs of prompts and suffixes).
    """
    for given, what in ((positive, "positive"), (negative, "negative"), (endings, "endings")):
        if isinstance(given, str):
            raise InputError(f"{what}: give a list, not one text")
    sides = [list(positive), list(positive if negative is None else negative)]
    if not sides[0] or len(sides[0]) != len(sides[1]):
        raise InputError(f"give one pair of prompts or more, got {len(sides[0])} and {len(sides[1])}")
    if chat is None and (system is not None or reply_next):
        raise InputError("a system's message and the start of a reply belong to a chat template: pass chat=model")
    pairs = [(e, e) if isinstance(e, str) else tuple(e) for e in endings]
    if any(len(pair) != 2 or not all(isinstance(e, str) and e.strip() for e in pair) for pair in pairs):
        raise InputError("an ending is a text that is not empty, or (positive, negative)")
    before = (system, system) if system is None or isinstance(system, str) else tuple(system)
    if len(before) != 2:
        raise InputError(f"a system's message is one text, or (positive, negative); got {len(before)}")
    if chat is not None:
        sides = [[_message(chat, text, told, reply_next) for text in s] for s, told in zip(sides, before, strict=True)]
    up, down = ([text + pair[i] for pair in pairs or [("", "")] for text in sides[i]] for i in range(2))
    if up == down:
        raise InputError("positive and negative texts are the same; give other prompts, endings or messages")
    return up, down


def _message(chat: Any, text: str, system: str | None, reply_next: bool) -> str:
    told = [] if system is None else [{"role": "system", "content": system}]
    return chat_text(chat, [*told, {"role": "user", "content": text}], reply_next)
