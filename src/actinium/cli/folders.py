"""Folders that commands write to."""

from __future__ import annotations

from pathlib import Path

from actinium.core.errors import InputError

__all__ = ["make_folder"]


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
