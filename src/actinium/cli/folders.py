"""Folders that commands write to, and files that they read."""

from __future__ import annotations

from pathlib import Path

from actinium.core.errors import InputError

__all__ = ["make_folder", "read_lines"]


def make_folder(path: Path) -> Path:
    """Make a folder before the work starts whose results go there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {str(path)!r}: {error.strerror}") from None
    return path


def read_lines(path: str) -> list[str]:
    """The lines of a file of text that are not empty.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read texts from {path}: {error}") from None
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise InputError(f"{path} holds no text")
    return texts
