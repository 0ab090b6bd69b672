"""Prompts that measure a vector are others than the texts that made it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actinium.core.errors import InputError

__all__ = ["check_held_out", "text_marks"]


def text_marks(texts: Any) -> list[str]:
    """Short fingerprints of texts, and of each without its last word, which may be the answer to a prompt.

    Of "Question: … (A)" both "Question: …" and "Question: … (" are marked. What is not text leaves no mark.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        return []
    found = dict.fromkeys(
        _mark(part) for text in texts if isinstance(text, str) for part in _parts(text) if part.strip()
    )
    return list(found)


def check_held_out(prompts: Iterable[str], made: Mapping[str, Any], made_from: Sequence[str] | None = None) -> str:
    """Refuse prompts that a vector was made from.

    Args:
        prompts: texts to measure on.
        made: of a vector; `texts` are the fingerprints of its texts, where it has them.
        made_from: the texts themselves.

    Returns:
        What provenance says of it: whether anything is known of the texts.

    Raises:
        InputError: a prompt is among the texts, or is one of them without its last word.
    """
    known = {*made.get("texts", ()), *text_marks(made_from)}
    for text in prompts:
        if _mark(text) in known:
            raise InputError(
                f"the prompt {text!r} also made the vector; measure on held-out prompts, which stand in no pair"
            )
    return "checked" if known else "not checked: the texts that made the vector are not known"


def _parts(text: str) -> list[str]:
    return [text, *text.rstrip().rsplit(maxsplit=1)[:-1], re.sub(r"\w+\W*$", "", text)]


def _mark(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]
