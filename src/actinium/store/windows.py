"""From documents to the windows that the model reads, in blocks that become one shard each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.store.documents import Documents
from actinium.store.manifest import Cursor, Layout

__all__ = ["Block", "Special", "blocks"]

AT_ONCE = 256  # documents that are tokenised together


@dataclass(frozen=True)
class Special:
    """What a tokenizer puts around texts.

    Attributes:
        first: the token that it puts before every text, or None.
        end: the token that parts documents, or None.
        fill: the token that stands on padding.
        all: every special token.
    """

    first: int | None
    end: int | None
    fill: int
    all: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any) -> Special:
        """Read it off a Hugging Face tokenizer (None: token ids come as they are)."""
        if tokenizer is None:
            return cls(None, None, 0, frozenset())
        plain, dressed = (list(tokenizer("a", add_special_tokens=s)["input_ids"]) for s in (False, True))
        has_first = len(dressed) > len(plain) and dressed[0] == tokenizer.bos_token_id
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        fill = pad if pad is not None else end if end is not None else 0
        return cls(tokenizer.bos_token_id if has_first else None, end, fill, frozenset(tokenizer.all_special_ids))


@dataclass
class Block:
    """The windows of one shard.

    Attributes:
        number: of the shard.
        next: where the next block begins.
        ids: (window, pos) token ids, or None for images and arrays.
        mask: (window, pos) bool, False on padding.
        documents, positions: (window, pos) the document of each token, and its place in the document's tokens
            (-1 for a first token that only stands there because every window begins with one).
        items: images or array rows, one for each window, else empty.
        first_document: the document of the first window (for images and arrays).
        first_window, first_row: numbers of the first window and the first row in the store.
    """

    number: int
    next: Cursor
    ids: Tensor | None = None
    mask: Tensor | None = None
    documents: Tensor | None = None
    positions: Tensor | None = None
    items: list[Any] = field(default_factory=list)
    first_document: int = 0
    first_window: int = 0
    first_row: int = 0

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.items) if self.ids is None else len(self.ids)

    def kept(self, special: Special, exclude: bool) -> Tensor:
        """(window, pos) bool: the positions whose activations are stored."""
        if self.ids is None or self.mask is None:
            raise InputError("these windows hold no tokens")
        if not exclude or not special.all:
            return self.mask
        return self.mask & ~torch.isin(self.ids, torch.tensor(sorted(special.all)))


_Token = tuple[int, int, int]  # id, document, position
_Window = tuple[list[_Token], Cursor]  # tokens, and where the next window begins


def blocks(
    documents: Documents,
    tokenizer: Any,
    layout: Layout,
    start: Cursor = Cursor(document=0),  # noqa: B008 - frozen
    number: int = 0,
    taken: int = 0,
    skipped: Callable[[int], None] | None = None,
) -> Iterator[Block]:
    """Cut documents into windows, and windows into blocks.

    "pad" cuts each document into windows of its own, padded on the right. "pack" lets documents follow each other,
    parted by the tokenizer's end-of-text token, so that every window but the last is full; each begins with the
    first token that the tokenizer gives a text, if it gives one.

    Args:
        documents: the data.
        tokenizer: for texts.
        layout: the sizes.
        start: where the first block begins.
        number: its number.
        taken: tokens (images, rows) before it, for `layout.max_tokens`.
        skipped: is told the number of each document without text.

    Raises:
        InputError: a document has no text that the tokenizer knows, or token ids are not in the vocabulary.
    """
    if documents.kind in ("images", "arrays"):
        yield from _item_blocks(documents, layout, start, number, taken)
        return
    special = Special.of(tokenizer if documents.kind == "text" else None)
    fill = Special.of(tokenizer).fill if tokenizer is not None else 0
    tokenised = _tokenised(documents, tokenizer, start.document, skipped)
    cut = _packed if layout.packing == "pack" else _padded
    found = _limited(cut(tokenised, special, layout.context, start), layout.max_tokens, taken)
    while chunk := list(itertools.islice(found, layout.windows_per_shard)):
        yield _gathered(chunk, fill, number, layout.windows_per_shard)
        number += 1


def _item_blocks(documents: Documents, layout: Layout, start: Cursor, number: int, taken: int) -> Iterator[Block]:
    limit = None if layout.max_tokens is None else max(0, layout.max_tokens - taken)
    items = itertools.islice(documents.read(start.document), limit)
    first = start.document
    while chunk := list(itertools.islice(items, layout.windows_per_shard)):
        last = first + len(chunk)
        yield Block(number, Cursor(document=last), items=chunk, first_document=first, first_window=first)
        number, first = number + 1, last


def _tokenised(
    documents: Documents, tokenizer: Any, start: int, skipped: Callable[[int], None] | None
) -> Iterator[tuple[int, list[int]]]:
    """Number and token ids of each document that has any, without special tokens for texts."""
    stream = enumerate(documents.read(start), start)
    while chunk := list(itertools.islice(stream, AT_ONCE)):
        if documents.kind == "tokens":
            yield from ((i, ids.tolist()) for i, ids in chunk)
            continue
        full = [(i, text) for i, text in chunk if text.strip()]
        if skipped is not None:
            for i in sorted({i for i, _ in chunk} - {i for i, _ in full}):
                skipped(i)
        if not full:
            continue
        encoded = tokenizer([text for _, text in full], add_special_tokens=False, verbose=False)["input_ids"]
        yield from ((i, list(ids)) for (i, _), ids in zip(full, encoded, strict=True) if len(ids))


def _padded(
    tokenised: Iterator[tuple[int, list[int]]], special: Special, context: int, start: Cursor
) -> Iterator[_Window]:
    lead = special.first is not None
    step = context - lead
    for document, ids in tokenised:
        first = start.token if document == start.document else 0
        for at in range(first, len(ids), step):
            piece = ids[at : at + step]
            window = [(token, document, at + i) for i, token in enumerate(piece)]
            if special.first is not None:
                window.insert(0, (special.first, document, -1))
            done = at + step >= len(ids)
            yield window, Cursor(document=document + 1) if done else Cursor(document=document, token=at + step)


def _packed(
    tokenised: Iterator[tuple[int, list[int]]], special: Special, context: int, start: Cursor
) -> Iterator[_Window]:
    held: list[_Token] = []
    for document, ids in tokenised:
        if special.end is not None:
            ids = [*ids, special.end]
        at = start.token if document == start.document else 0
        while at < len(ids):
            if not held and special.first is not None:
                held.append((special.first, document, -1))
            piece = ids[at : at + context - len(held)]
            held += [(token, document, at + i) for i, token in enumerate(piece)]
            at += len(piece)
            if len(held) == context:
                # A document that ends with the window leaves nothing; the next begins with the one after it.
                rest = Cursor(document=document, token=at) if at < len(ids) else Cursor(document=document + 1)
                yield held, rest
                held = []
    if held and (special.first is None or len(held) > 1):
        yield held, Cursor(document=held[-1][1] + 1)


def _limited(windows: Iterator[_Window], most: int | None, taken: int) -> Iterator[_Window]:
    """Windows until there are so many tokens; the last one is cut."""
    for window, after in windows:
        if most is not None and taken + len(window) >= most:
            cut = window[: most - taken]
            if cut:
                yield cut, after
            return
        taken += len(window)
        yield window, after


def _gathered(chunk: list[_Window], fill: int, number: int, per_shard: int) -> Block:
    longest = max(len(window) for window, _ in chunk)
    table = torch.full((3, len(chunk), longest), -1, dtype=torch.long)
    table[0] = fill
    mask = torch.zeros(len(chunk), longest, dtype=torch.bool)
    for row, (window, _) in enumerate(chunk):
        table[:, row, : len(window)] = torch.tensor(window).T
        mask[row, : len(window)] = True
    ids, documents, positions = table
    return Block(number, chunk[-1][1], ids, mask, documents, positions, first_window=number * per_shard)
