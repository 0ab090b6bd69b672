"""What a fitted estimator leaves on disk: one safetensors file whose metadata hold its settings as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from actinium.core.errors import InputError, LoadError

__all__ = ["read_fitted", "write_fitted"]

FORMAT = 1
KEY = "actinium.fitted"


def write_fitted(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **more: Any
) -> Path:
    """Write a fitted estimator to one file, whole or not at all.

    Args:
        path: the file; its folder is made if absent.
        kind: what it is, such as "transport operator".
        tensors: fitted ones.
        settings: arguments of the constructor, in values that JSON can hold.
        **more: fitted values that JSON can hold.

    Returns:
        The path.

    Raises:
        InputError: a setting cannot be written as JSON, or the file cannot be written.
    """
    from safetensors.torch import save_file

    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        text = json.dumps({"format": FORMAT, "kind": kind, "settings": dict(settings), **more})
    except TypeError as error:
        raise InputError(f"the settings of this {kind} cannot be saved: {error}") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, partial, metadata={KEY: text})
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}") from error
    return path


def read_fitted(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_fitted` wrote: the plain values (`settings` among them) and the tensors.

    Raises:
        LoadError: the file is missing, damaged, or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise LoadError(f"cannot read the {kind} {path}: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("kind") != kind:
        raise LoadError(f"{path} is no {kind} of format {FORMAT}")
    return about, tensors
