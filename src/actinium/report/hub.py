"""Datasets by name, through the `datasets` library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError, MissingExtraError, nearest

__all__ = ["check", "images", "texts"]

SPLITS = ("test", "validation", "train")
FIRST = 2000  # documents read of a dataset, from its beginning


def check(name: str, built_in: Sequence[str]) -> None:
    """Refuse a dataset name that cannot be looked up.

    Raises:
        InputError: an empty name.
        MissingExtraError: the `datasets` library is not installed.
    """
    if not name.strip():
        raise InputError(f"the dataset's name is empty; built in: {', '.join(built_in)}")
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        near = nearest(name, built_in)
        missing = MissingExtraError("datasets", "hub")
        hint = f"did you mean {near[0]!r}? " if near else f"built in: {', '.join(built_in)}. "
        missing.msg = f"no built-in dataset {name!r}; {hint}For datasets of the hub: {missing}"
        raise missing from error


def texts(name: str) -> tuple[list[str], str]:
    """Texts of a dataset (its column `text`, else its first column of texts), and a note on what was read.

    Raises:
        InputError: it cannot be loaded, or holds no texts.
    """
    rows, note = _rows(name, FIRST)
    columns = sorted((k for k, v in rows[0].items() if isinstance(v, str)), key=lambda k: k != "text")
    if not columns:
        raise InputError(f"the dataset {name!r} holds no texts; its columns are {', '.join(rows[0])}")
    return [row[columns[0]] for row in rows if row[columns[0]].strip()], note


def images(name: str, most: int) -> tuple[list[Tensor], str]:
    """Images of a dataset as (3, height, width) from 0 to 1 (its first column of them), and a note.

    Raises:
        InputError: it cannot be loaded, or holds no images.
    """
    rows, note = _rows(name, most)
    columns = [k for k, v in rows[0].items() if hasattr(v, "convert")]
    if not columns:
        raise InputError(f"the dataset {name!r} holds no images; its columns are {', '.join(rows[0])}")
    pixels = (np.asarray(row[columns[0]].convert("RGB")) for row in rows)
    return [torch.from_numpy(p.copy()).permute(2, 0, 1).float() / 255 for p in pixels], note


def _rows(name: str, most: int) -> tuple[list[dict[str, Any]], str]:
    import datasets

    try:
        splits = datasets.load_dataset(name, streaming=True)
        split = next((s for s in SPLITS if s in splits), next(iter(splits)))
        rows = list(splits[split].take(most))
    except Exception as error:  # the library raises whatever its backends raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot load the dataset {name!r}: {reason}") from error
    if not rows:
        raise InputError(f"the dataset {name!r} is empty")
    return rows, f"read from the first {len(rows)} entries of its split {split!r}"
