"""What long work has found so far, in a file from which it goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actinium.core.errors import InputError, LoadError

__all__ = ["Journal"]


class Journal:
    """Rows of finished work: a file of JSON lines, the first of which says what the work is.

    A row is written when its part of the work is done. A last line without an end is one whose writing was cut off: its
    part counts as not done, and it is taken away.

    Args:
        path: the file, made with its folders if absent; None keeps the rows in memory alone.
        kind: of work, such as "search", for messages.
        head: everything that the rows depend on. A file with another head is refused.

    Attributes:
        rows: those that the file held, then those that were added.

    Raises:
        InputError: the file cannot be written.
        LoadError: the file cannot be read, is damaged, or belongs to other work.
    """

    def __init__(self, path: str | os.PathLike[str] | None, kind: str, head: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.kind = kind
        self.rows: list[dict[str, Any]] = []
        if self.path is None:
            return
        lines = self._read(self.path)
        if not lines:
            self._append(head)
            return
        # Tuples come back as lists.
        wanted = json.loads(json.dumps(head))
        if lines[0] != wanted:
            other = ", ".join(key for key in wanted if lines[0].get(key) != wanted[key]) or "head"
            raise LoadError(f"{self.path} belongs to another {kind} (different {other}); choose another file")
        self.rows = lines[1:]

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row.

        Raises:
            InputError: the file cannot be written.
        """
        if self.path is not None:
            self._append(row)
        self.rows.append(dict(row))

    def _read(self, path: Path) -> list[dict[str, Any]]:
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            whole = text[: text.rfind("\n") + 1]
            lines = [json.loads(line) for line in whole.splitlines()]
        except (OSError, ValueError) as error:
            raise LoadError(f"{path} is no file of a {self.kind}, or is damaged: {error}") from None
        if not all(isinstance(line, dict) for line in lines) or (text and not lines):
            raise LoadError(f"{path} is no file of a {self.kind}, or is damaged")
        if whole != text:
            part = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                part.write_text(whole, encoding="utf-8")
                part.replace(path)
            except OSError as error:
                raise InputError(f"cannot write to {path}: {error.strerror}") from error
            finally:
                part.unlink(missing_ok=True)
        return lines

    def _append(self, row: Mapping[str, Any]) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror}") from error
