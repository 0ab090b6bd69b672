"""Words of a text by their place: which can be edited, how much attention each gets, and edits of one of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

import torch

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.guard.audit.replies import chat_prompts

__all__ = [
    "FUNCTION_WORDS",
    "chat_frame",
    "insert_word",
    "replace_word",
    "token_salience",
    "word_salience",
    "word_spans",
]

Frame: TypeAlias = Callable[[str], str]
"""From the text that is edited to the whole prompt."""
Span: TypeAlias = tuple[int, int]
WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_ARTICLES = ("a", "an", "the")
_CONJUNCTIONS = """
    and or but nor so yet for if because although though while whereas unless until since than that whether as
"""
_PREPOSITIONS = """
    of to in on at by with from into onto over under about above below between among through during before after
    against within without toward towards upon across behind beside near off out up down
"""
FUNCTION_WORDS: frozenset[str] = frozenset((*_ARTICLES, *_CONJUNCTIONS.split(), *_PREPOSITIONS.split()))
"""English articles, conjunctions and prepositions, which are not edited."""


def word_spans(text: str) -> list[Span]:
    """Of each word the first character and the one after its last; hyphens and apostrophes inside belong to it."""
    return [found.span() for found in WORD.finditer(text)]


def replace_word(text: str, span: Span, new: str) -> str:
    """The text with one word exchanged, here and nowhere else; the new one takes the old one's capital letter."""
    start, end = span
    old = text[start:end]
    return text[:start] + (new.capitalize() if old[0].isupper() and new.islower() else new) + text[end:]


def insert_word(text: str, span: Span, new: str, before: bool) -> str:
    """The text with a word before or after another one, and a space between them."""
    start, end = span
    return f"{text[:start]}{new} {text[start:]}" if before else f"{text[:end]} {new}{text[end:]}"


def chat_frame(model: Model) -> Frame:
    """The model's chat template around a user's message, or nothing where it has none."""
    if getattr(model.tokenizer, "chat_template", None):
        return lambda text: chat_prompts(model, [text])[0]
    return lambda text: text


def token_salience(model: Model, prompt: str) -> torch.Tensor:
    """Attention of the last token to each token in the first block, mean over heads: (token,), which sums to 1.

    Raises:
        SiteError: the model has no attention that we can read.
    """
    pattern = model.record(model.to_tokens(prompt), "blocks.0.attn.pattern")["blocks.0.attn.pattern"]
    salience: torch.Tensor = pattern[0, :, -1].detach().double().mean(0).cpu()
    return salience


def word_salience(model: Model, text: str, frame: Frame) -> list[float]:
    """Salience of each word of the text within its prompt: the sum over the word's tokens.

    Args:
        model: a model whose tokenizer says which characters a token stands for.
        text: what is edited.
        frame: from the text to the prompt.

    Raises:
        InputError: the frame changes the text, or the tokenizer does not know where its tokens stand.
    """
    prompt = frame(text)
    shift = _place(text, frame, prompt)
    try:
        offsets = model.tokenizer(prompt, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    except NotImplementedError:
        raise InputError("edits by word need a fast tokenizer, which knows the characters of each token") from None
    salience = token_salience(model, prompt)
    if len(salience) != len(offsets):
        raise InputError(f"a prompt is longer than the context of {model.context} tokens")
    out = []
    for start, end in word_spans(text):
        mine = [i for i, (a, b) in enumerate(offsets) if a < end + shift and b > start + shift]
        out.append(float(salience[mine].sum()))
    return out


def _place(text: str, frame: Frame, prompt: str) -> int:
    """Where the text begins in its prompt."""
    marker = "\x02"
    start = frame(marker).find(marker)
    if start < 0 or prompt[start : start + len(text)] != text:
        raise InputError("the frame must hold the text as it is, once, at one place: it changes or hides it")
    return start
