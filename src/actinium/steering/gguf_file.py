"""Control vectors in GGUF: the files of repeng and llama.cpp, version 3, little-endian."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import LoadError

__all__ = ["from_gguf", "to_gguf"]

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
ARCHITECTURE = "controlvector"
HINT, COUNT = f"{ARCHITECTURE}.model_hint", f"{ARCHITECTURE}.layer_count"
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT32, STRING, ARRAY = 4, 8, 9
FLOATS = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 28: np.dtype("<f8")}
FLOAT32 = 0
LONGEST = 1 << 24
"""Bytes or entries that a string, a list or a direction has at most; a larger number is that of a damaged file."""


def to_gguf(directions: Mapping[int, Tensor], model_type: str) -> bytes:
    """The file of some directions, byte by byte as repeng 0.4 writes it.

    Args:
        directions: {layer: (d,)}.
        model_type: `model_type` of the model's configuration.
    """
    kept = [(layer, v.detach().cpu().float().numpy().astype("<f4")) for layer, v in directions.items()]
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(kept), 3))
    for key, value in (("general.architecture", ARCHITECTURE), (HINT, model_type)):
        out += _text(key) + struct.pack("<I", STRING) + _text(value)
    out += _text(COUNT) + struct.pack("<II", UINT32, len(kept))
    place = 0
    for layer, v in kept:
        out += _text(f"direction.{layer}") + struct.pack("<IQIQ", 1, len(v), FLOAT32, place)
        place += _up(v.nbytes)
    out += bytes(_up(len(out)) - len(out))
    for _, v in kept:
        out += v.tobytes() + bytes(_up(v.nbytes) - v.nbytes)
    return bytes(out)


def from_gguf(data: bytes) -> tuple[dict[int, Tensor], str]:
    """Directions {layer: (d,)} float32, and the model's type ("" where the file does not say).

    Raises:
        LoadError: it is no such file, or damaged.
    """
    reader = _Reader(data)
    if reader.take(4) != MAGIC:
        raise LoadError("it is no GGUF file")
    (version,) = reader.numbers("I")
    if version not in VERSIONS:
        raise LoadError(f"GGUF of version {version} is not read; versions {VERSIONS[0]} and {VERSIONS[1]} are")
    tensors, keys = reader.numbers("QQ")
    about = {}
    for _ in range(min(keys, LONGEST)):
        key = reader.text()
        about[key] = reader.value(reader.numbers("I")[0])
    architecture = about.get("general.architecture", ARCHITECTURE)
    if architecture != ARCHITECTURE:
        raise LoadError(f"the file holds {architecture!r}, no control vector")
    infos = []
    for _ in range(min(tensors, LONGEST)):
        name = reader.text()
        (dims,) = reader.numbers("I")
        if dims > 4:
            raise LoadError(f"{name} has {dims} dimensions")
        infos.append((name, reader.numbers("Q" * dims), *reader.numbers("IQ")))
    alignment = about.get("general.alignment", ALIGNMENT)
    if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1:
        raise LoadError(f"alignment {alignment!r} is none")
    start = -(-reader.at // alignment) * alignment
    found = {}
    for name, shape, kind, offset in infos:
        if name.startswith("direction."):
            layer = name.removeprefix("direction.")
            if not layer.isdecimal():
                raise LoadError(f"{name!r} names no layer")
            found[int(layer)] = _direction(data, name, shape, kind, start + offset)
    hint = about.get(HINT, "")
    return found, hint if isinstance(hint, str) else ""


def _direction(data: bytes, name: str, shape: tuple[int, ...], kind: int, start: int) -> Tensor:
    if len(shape) != 1 or not 0 < shape[0] <= LONGEST:
        raise LoadError(f"{name} has the shape {shape}, which is no vector's")
    if kind not in FLOATS:
        raise LoadError(f"{name} is of GGUF's type {kind}; float16, float32 and float64 are read")
    part = data[start : start + shape[0] * FLOATS[kind].itemsize]
    if len(part) < shape[0] * FLOATS[kind].itemsize:
        raise LoadError(f"the file ends within {name}")
    return torch.from_numpy(np.frombuffer(part, FLOATS[kind]).astype(np.float32))


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Reader:
    """What stands one after the other in a file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        part = self.data[self.at : self.at + size]
        if len(part) < size:
            raise LoadError("the file ends too early")
        self.at += size
        return part

    def numbers(self, kinds: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{kinds}", self.take(struct.calcsize(f"<{kinds}")))

    def text(self) -> str:
        (size,) = self.numbers("Q")
        if size > LONGEST:
            raise LoadError(f"a name of {size} bytes is none")
        return self.take(size).decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.numbers(NUMBERS[kind])[0]
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise LoadError(f"a value of the unknown type {kind}")
        inner, size = self.numbers("IQ")
        if size > LONGEST or inner == ARRAY:
            raise LoadError(f"a list of {size} values of type {inner} is not read")
        return [self.value(inner) for _ in range(size)]
