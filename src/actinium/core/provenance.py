"""What a result depends on, as a JSON-able record: two runs with the same record give the same numbers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from importlib import metadata
from os import PathLike
from typing import Any

__all__ = ["fingerprint", "plain", "provenance"]


def provenance(model: Any = None, inputs: Any = None, seed: int | None = None, **settings: Any) -> dict[str, Any]:
    """The record of what was run on what: no clock and no machine names, so equal runs have equal records.

    Args:
        model: a Model; its name, device type, dtype and `fingerprint()` are noted.
        inputs: text, texts, tokens, tensors, arrays or mappings of these; their SHA-256 is noted.
        seed: the seed of whatever was random.
        settings: everything else that changes the numbers.

    Returns:
        a dict of plain JSON values.
    """
    record: dict[str, Any] = {
        "versions": {package: _version(package) for package in ("actinium", "torch", "transformers")},
        "seed": seed,
        "settings": plain(settings),
    }
    if model is not None:
        record["model"] = {
            "name": str(model.name),
            "fingerprint": str(model.fingerprint()),
            "device": str(model.device).partition(":")[0],
            "dtype": str(model.dtype),
        }
    if inputs is not None:
        record["inputs"] = fingerprint(inputs)
    return record


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def fingerprint(value: Any) -> str:
    """SHA-256 of text, numbers, tensors, arrays, mappings, sequences and dataclasses of these.

    Raises:
        TypeError: the value holds something whose content cannot be read.
    """
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Write `value` into the digest, each part with its type and length so that parts cannot run together."""
    if isinstance(value, str | bytes | int | float | bool | PathLike) or value is None:
        data = value if isinstance(value, bytes) else str(value).encode()
        digest.update(f"{type(value).__name__}:{len(data)}:".encode() + data)
    elif hasattr(value, "__array__") or hasattr(value, "detach"):
        kind, data = _bytes_of(value)
        digest.update(f"array:{kind}:{len(data)}:".encode())
        digest.update(data)
    elif isinstance(value, Mapping):
        digest.update(f"mapping:{len(value)}:".encode())
        for key in sorted(value, key=str):
            _feed(digest, str(key))
            _feed(digest, value[key])
    elif is_dataclass(value) and not isinstance(value, type):
        _feed(digest, {field.name: getattr(value, field.name) for field in fields(value)})
    elif isinstance(value, Sequence | Set):
        items = sorted(value, key=str) if isinstance(value, Set) else value
        digest.update(f"sequence:{len(value)}:".encode())
        for item in items:
            _feed(digest, item)
    else:
        raise TypeError(f"cannot take the fingerprint of a {type(value).__name__}")


def _bytes_of(value: Any) -> tuple[str, Any]:
    """Type and shape, and the content, of a tensor or an array."""
    if hasattr(value, "detach"):
        import torch

        flat = value.detach().cpu().contiguous()
        return f"{flat.dtype}{tuple(flat.shape)}".removeprefix("torch."), flat.flatten().view(torch.uint8).numpy().data
    import numpy as np

    array = np.ascontiguousarray(value)
    if array.dtype.hasobject:
        raise TypeError("cannot take the fingerprint of an array of Python objects")
    return f"{array.dtype}{array.shape}", array.tobytes()


def plain(value: Any) -> Any:
    """`value` as JSON: arrays become their fingerprint, infinities text, everything else its name."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "__array__") or hasattr(value, "detach"):
        return plain(value.item()) if getattr(value, "ndim", None) == 0 else f"sha256:{fingerprint(value)}"
    if isinstance(value, Set):
        return sorted((plain(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    if isinstance(value, PathLike):
        return str(value)
    return getattr(value, "__qualname__", None) or f"{type(value).__module__}.{type(value).__qualname__}"
