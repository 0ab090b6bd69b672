"""Texts for the check-up: documents from a file, and windows of tokens that fit the model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from actinium.core.errors import InputError
from actinium.core.inputs import Tokens, pad
from actinium.core.model import Model

__all__ = ["Windows", "documents", "neutral_text", "read_text", "window_tokens", "windows"]

MOST_BYTES = 32 * 2**20  # read of a text file; a larger one is read up to here, and the report says so
LONGEST = 512  # tokens in one row, also where the context is longer
NEUTRAL = Path(__file__).with_name("neutral.txt")


@dataclass(frozen=True)
class Windows:
    """Rows of tokens and where they come from.

    Attributes:
        tokens: the rows, padded on the right.
        used, available: documents taken, documents there are.
        notes: what a reader of the report has to know.
    """

    tokens: Tokens
    used: int
    available: int
    notes: list[str]


def neutral_text() -> list[str]:
    """Paragraphs of plain English that come with the package, for models that nothing else is given for."""
    return documents(NEUTRAL.read_text(encoding="utf-8"))


def read_text(path: Path) -> tuple[list[str], list[str]]:
    """The documents of a UTF-8 file, and notes on how they were read.

    Raises:
        InputError: no such file, not readable, not UTF-8, or nothing but white space.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read the text file {str(path)!r}: {error.strerror}") from None
    notes = []
    if len(data) > MOST_BYTES:
        data = data[:MOST_BYTES].rpartition(b"\n")[0] or data[:MOST_BYTES]
        notes.append(f"only the first {MOST_BYTES // 2**20} MiB of the file were read")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not (notes and error.start > len(data) - 4):  # the cut went through the last character
            raise InputError(f"{str(path)!r} is not UTF-8 text (byte {error.start}: {error.reason})") from None
        text = data[: error.start].decode("utf-8-sig")
    found = documents(text)
    if not found:
        raise InputError(f"the text file {str(path)!r} is empty")
    return found, notes


def documents(text: str) -> list[str]:
    """The documents of a text: paragraphs where blank lines separate them, else lines."""
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    if "" not in lines:
        return lines
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line:
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return ["\n".join(paragraph) for paragraph in paragraphs]


def window_tokens(context: int | None) -> int:
    """Tokens in a row: the context, at most `LONGEST`."""
    return min(context or LONGEST, LONGEST)


def windows(model: Model, texts: Sequence[str], most_tokens: int, seed: int) -> Windows:
    """Tokenise documents drawn at random until there are `most_tokens`, cut where they are longer than a row.

    The rows are in the order of the documents. Every window is read on its own, without what went before it; one
    of a single token, at the end of a document, is left out, for it predicts nothing.

    Raises:
        InputError: no tokenizer, an entry that is no text, or not two tokens in any document.
    """
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer, so it cannot read text; pass data=<token ids (.npy)>")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {i} is a {type(text).__name__}, expected a str")
    full = [i for i, text in enumerate(texts) if text.strip()]
    if not full:
        raise InputError("all texts are empty")
    order = random.Random(seed).sample(full, len(full))
    width, total = window_tokens(model.context), 0
    rows: list[tuple[int, int, list[int]]] = []
    cut, short, taken = set(), 0, 0
    for start in range(0, len(order), 64):
        if total >= most_tokens:
            break
        chunk = order[start : start + 64]
        for i, ids in zip(chunk, _encode(model.tokenizer, [texts[i] for i in chunk]), strict=True):
            if total >= most_tokens:
                break
            taken += 1
            short += len(ids) < 2
            for first in range(0, len(ids), width):
                piece = ids[first : first + width]
                if first:
                    cut.add(i)
                if len(piece) < 2 or total >= most_tokens:
                    continue
                rows.append((i, first, piece))
                total += len(piece)
    if not rows:
        raise InputError(f"the tokenizer of {model.name} makes fewer than two tokens of each text")
    return _gathered(model, sorted(rows), len(texts), _notes(model, cut, short, taken, len(texts), width))


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]


def _notes(model: Model, cut: set[int], short: int, taken: int, available: int, width: int) -> list[str]:
    notes = []
    if cut:
        why = f"the context of {model.name}" if model.context == width else "the longest row the check-up reads"
        verb = "document was" if len(cut) == 1 else "documents were"
        notes.append(f"{len(cut)} {verb} longer than {width} tokens ({why}) and cut into windows")
    if short:
        notes.append(f"{short} documents with fewer than two tokens were left out")
    if taken < available:
        notes.append(f"{taken} of {available} documents were drawn at random to stay within the limit on tokens")
    return notes


def _gathered(model: Model, rows: list[tuple[int, int, list[int]]], available: int, notes: list[str]) -> Windows:
    tokenizer = model.tokenizer
    fill = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    ids, mask = pad([piece for _, _, piece in rows], fill)
    tokens = Tokens(ids, mask, torch.tensor([i for i, _, _ in rows]))
    return Windows(tokens, len({i for i, _, _ in rows}), available, notes)
