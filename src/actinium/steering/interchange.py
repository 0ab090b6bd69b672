"""Steering vectors in the files of other libraries: GGUF, IBM's .svec, and those of steering-vectors."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError, LoadError, UnknownNameError, unknown
from actinium.steering.gguf_file import from_gguf, to_gguf
from actinium.steering.vector import SteeringVector

__all__ = ["FORMATS", "load_vector", "save_vector"]

FORMATS = {
    "actinium": ".safetensors",
    "gguf": ".gguf",
    "svec": ".svec",
    "steering_vectors": ".pt",
}
"""Name -> suffix of its files."""
PARTS = {"gguf": "resid_post", "svec": "resid_pre"}
"""Format -> where within block l its library adds the direction of layer l."""
LAYER_TYPES = {"decoder_block": "resid_post", "self_attn": "attn.out", "mlp": "mlp.out"}
"""steering-vectors' types of layers, whose outputs it adds to -> where that is."""
STREAM = ("resid_pre", "resid_post")


def load_vector(path: str | os.PathLike[str], format: str | None = None, *, part: str | None = None) -> SteeringVector:
    """Open a steering vector of this or another library.

    | format | layer l of the file acts at |
    |---|---|
    | "gguf" (repeng, llama.cpp) | `blocks.l.resid_post`, the output of block l |
    | "svec" (IBM's activation-steering) | `blocks.l.resid_pre`, the input of block l; it was read from the output |
    | "steering_vectors" | the output of block l, of its attention or of its MLP, as the file says |

    Args:
        path: the file.
        format: a key of `FORMATS`; by default what the file's suffix says.
        part: another part of block l, such as "resid_post" for the place where IBM's library read a direction.

    Returns:
        SteeringVector whose `made` holds the `format` and what the file says of the model's type, and of a .svec file
        the share of variance that each direction explains, by site.

    Raises:
        LoadError: the file is missing, damaged, holds something else, or would have to be unpickled.
        UnknownNameError: there is no such format.
        InputError: `part` with a file that names its sites itself.
    """
    kind = _format(path, format)
    if kind == "actinium":
        if part is not None:
            raise InputError("a file of Actinium's own names its sites; part= is for the formats of others")
        return SteeringVector.load(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}") from None
    made: dict[str, Any] = {"format": kind}
    try:
        if kind == "gguf":
            directions, made["model_type"] = from_gguf(data)
        elif kind == "svec":
            directions, more = _from_svec(data)
            made |= more
        else:
            directions, layer_type = _from_steering_vectors(data)
            part = part or LAYER_TYPES[layer_type]
        part = part or PARTS[kind]
        if "explained_variances" in made:
            made["explained_variances"] = {f"blocks.{k}.{part}": v for k, v in made["explained_variances"].items()}
        return SteeringVector({f"blocks.{layer}.{part}": v for layer, v in directions.items()}, "imported", made)
    except (LoadError, InputError) as error:
        raise LoadError(f"cannot read {path} as {kind!r}: {error}") from None


def save_vector(
    vector: SteeringVector,
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    model_type: str | None = None,
    part: str | None = None,
) -> Path:
    """Write a steering vector as this or another library opens it.

    The residual stream between two blocks has two names, `blocks.l.resid_post` and `blocks.l+1.resid_pre`; the number
    that is written is the one that makes the other library act at the same place. steering-vectors has no files of its
    own: what is written holds the arguments of its class, so that `SteeringVector(**torch.load(path))` gives it.

    Args:
        vector: all its sites must be of one part of the blocks that the format knows.
        path: the file; its folder is made if absent.
        format: a key of `FORMATS`; by default what the suffix says.
        model_type: `model.config.model_type` (GGUF, .svec); by default that of the model that the vector was made
            on, or what a file said from which it came.
        part: as of `load_vector`, if the reader takes layer l to be this part of block l.

    Returns:
        The path.

    Raises:
        InputError: the format has no number for a site, the model's type is not known, or the file cannot be written.
        UnknownNameError: there is no such format.
    """
    kind = _format(path, format)
    if kind == "actinium":
        return vector.save(path)
    if kind == "steering_vectors":
        parts = {_place(site)[1] for site in vector.sites}
        named = {v: k for k, v in LAYER_TYPES.items()}
        part = part or (parts.pop() if len(parts) == 1 and parts <= set(named) else "resid_post")
        if part not in named:
            raise InputError(f"steering-vectors has no layers of the type {part!r}; there are {', '.join(named)}")
        buffer = io.BytesIO()
        directions = {layer: vector[site] for layer, site in _numbered(vector, part).items()}
        torch.save({"layer_activations": directions, "layer_type": named[part]}, buffer)
        return _write(path, buffer.getvalue())
    name = model_type or vector.made.get("model_type")
    if not isinstance(name, str) or not name:
        raise InputError(f"a {kind} file names the type of the model: pass model_type=model.config.model_type")
    sites = _numbered(vector, part or PARTS[kind])
    directions = {layer: vector[site] for layer, site in sites.items()}
    if kind == "svec":
        known = vector.made.get("explained_variances", {})
        shares = {layer: known[site] for layer, site in sites.items() if site in known}
        return _write(path, _to_svec(directions, name, shares))
    if 0 in directions:
        warnings.warn("llama.cpp does not take a direction for block 0 (repeng does)", ActiniumWarning, stacklevel=2)
    return _write(path, to_gguf(directions, name))


def _format(path: str | os.PathLike[str], format: str | None) -> str:
    if format is not None:
        if format not in FORMATS:
            raise UnknownNameError(unknown("format", str(format), FORMATS))
        return format
    suffix = Path(path).suffix
    found = next((name for name, known in FORMATS.items() if known == suffix), None)
    if found is None:
        raise UnknownNameError(f"{Path(path).name}: {unknown('format with the suffix', suffix, FORMATS.values())}")
    return found


def _place(site: str) -> tuple[int, str]:
    """Block and part of a site.

    Raises:
        InputError: it lies in no block.
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", site)
    if found is None:
        raise InputError(f"{site} lies in no block, and other libraries' files have numbers of blocks alone")
    return int(found[1]), found[2]


def _numbered(vector: SteeringVector, part: str) -> dict[int, str]:
    """{layer: site} where layer l means `blocks.l.part`."""
    out: dict[int, str] = {}
    for site in vector.sites:
        layer, own = _place(site)
        if own != part:
            if own not in STREAM or part not in STREAM:
                raise InputError(f"{site} cannot be written, as the file's numbers mean blocks.*.{part}")
            layer += 1 if own == "resid_post" else -1
        if layer < 0:
            raise InputError(f"{site} lies before the first block's output, for which the file has no number")
        if layer in out:
            raise InputError(f"{site} is the stream of layer {layer} a second time")
        out[layer] = site
    return dict(sorted(out.items()))


def _from_svec(data: bytes) -> tuple[dict[int, Tensor], dict[str, Any]]:
    try:
        given = json.loads(data)
    except ValueError as error:
        raise LoadError(f"it is no JSON ({error})") from None
    if not isinstance(given, Mapping) or not isinstance(given.get("directions"), Mapping):
        raise LoadError("it has no directions")
    found = {}
    for layer, values in given["directions"].items():
        if not str(layer).isdecimal():
            raise LoadError(f"{layer!r} is no number of a layer")
        try:
            found[int(layer)] = torch.tensor(values, dtype=torch.float32)
        except (TypeError, ValueError):
            raise LoadError(f"the direction of layer {layer} is no list of numbers") from None
    shares = given.get("explained_variances")
    kept = {k: float(v) for k, v in shares.items() if str(k).isdecimal()} if isinstance(shares, Mapping) else {}
    return found, {"model_type": str(given.get("model_type", "")), "explained_variances": kept}


def _to_svec(directions: Mapping[int, Tensor], model_type: str, shares: Mapping[int, float]) -> bytes:
    kept = {str(layer): share for layer, share in shares.items() if math.isfinite(share)}
    values = {str(layer): v.tolist() for layer, v in directions.items()}
    content = {"model_type": model_type, "directions": values, "explained_variances": kept}
    return json.dumps(content).encode()


class _Pickled:
    """Stands for `SteeringVector` of steering-vectors, so that what was pickled with it can be read without it."""


def _from_steering_vectors(data: bytes) -> tuple[dict[int, Tensor], str]:
    stand_in = (_Pickled, "steering_vectors.steering_vector.SteeringVector")
    try:
        with torch.serialization.safe_globals([stand_in]):
            given = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise LoadError(
            "it holds more than tensors, and nothing is unpickled here; save"
            " {'layer_activations': v.layer_activations, 'layer_type': v.layer_type} instead"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise LoadError(str(error)) from None
    given = vars(given) if isinstance(given, _Pickled) else given
    if not isinstance(given, Mapping):
        raise LoadError(f"it holds a {type(given).__name__}")
    directions = given.get("layer_activations", given)
    layer_type = given.get("layer_type", "decoder_block")
    if layer_type not in LAYER_TYPES:
        raise LoadError(f"layers of the type {layer_type!r} are no sites here; {', '.join(LAYER_TYPES)} are")
    if not isinstance(directions, Mapping) or not directions:
        raise LoadError("it has no layer_activations")
    for layer, v in directions.items():
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0 or not isinstance(v, Tensor):
            raise LoadError(f"{layer!r}: expected a tensor by the number of its layer")
    return {layer: v.detach().flatten() for layer, v in directions.items()}, layer_type


def _write(path: str | os.PathLike[str], data: bytes) -> Path:
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}") from error
    return path
