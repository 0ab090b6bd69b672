"""Files of prompt pairs: JSONL or CSV with the columns clean, corrupt, answer, wrong, and optionally joined."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actinium.core.errors import InputError

__all__ = ["COLUMNS", "Row", "read_rows"]

COLUMNS = ("clean", "corrupt", "answer", "wrong")
Row = tuple[str, str, str, str, bool]
"""Clean, corrupt, answer, wrong, joined."""


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Read the rows of a file.

    Args:
        path: the file; `.csv` is read as CSV with a header line, others as one JSON object per line.

    Returns:
        Where each row stands, for messages, and the rows.

    Raises:
        InputError: the file is missing, empty or malformed; the message names the line.
    """
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from None
    found = list(_read_csv(path, text) if path.suffix.lower() == ".csv" else _read_jsonl(path, text))
    if not found:
        raise InputError(f"{path}: the file holds no rows")
    places = [f"{path}, line {line}" for line, _ in found]
    return places, [_row(place, values) for place, (_, values) in zip(places, found, strict=True)]


def _read_jsonl(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {line}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(values, dict):
            raise InputError(f"{path}, line {line}: expected an object with the keys {', '.join(COLUMNS)}")
        yield line, values


def _read_csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
    if missing:
        raise InputError(f"{path}, line 1: the header lacks {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    for values in reader:
        yield reader.line_num, values


def _row(place: str, values: dict[str, Any]) -> Row:
    for column in COLUMNS:
        if not isinstance(values.get(column), str):
            raise InputError(f"{place}: {column!r} must be a text, got {values.get(column)!r}")
    joined = values.get("joined", False)
    said = {"true": True, "1": True, "false": False, "0": False, "": False, "none": False}.get(str(joined).lower())
    if said is None:
        raise InputError(f"{place}: 'joined' must be true or false, got {joined!r}")
    clean, corrupt, answer, wrong = (str(values[column]) for column in COLUMNS)
    return clean, corrupt, answer, wrong, said
