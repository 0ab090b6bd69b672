"""How numbers and facts are written, alike in the terminal, in HTML and in Markdown."""

from __future__ import annotations

from typing import Any

from actinium.report.schema import Document

__all__ = ["facts", "number", "sample_line", "sentence"]


def number(value: Any) -> str:
    """A number with three significant digits, no exponent where it can be read without."""
    if value is None:
        return "not a number"
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e9):
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e6:
        digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
        return f"{value:,.{digits}f}"
    return f"{value:.2e}"


def sentence(text: str) -> str:
    """The text with a capital first letter, and the rest as it is."""
    return text[:1].upper() + text[1:]


def facts(document: Document) -> str:
    """The model in one line."""
    model = document.model
    parts = [model.module, model.kind]
    if model.layers:
        parts.append(f"{model.layers} blocks, width {model.d_model}, {model.heads} heads")
    parts.append(f"{model.parameters:,} parameters")
    parts.append(f"{model.dtype} on {model.device}")
    return " - ".join(parts)


def sample_line(document: Document) -> str:
    """What was read, in one line."""
    data = document.data
    noun = {"text": "documents", "images": "images", "arrays": "rows"}[data.kind]
    tokens = f", {data.tokens:,} tokens" if data.tokens is not None else ""
    return f"read with {data.source}: {data.used:,} of {data.available:,} {noun}{tokens}"
