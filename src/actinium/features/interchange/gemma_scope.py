"""Gemma Scope's parameters: params.npz of the first release, params.safetensors of the second."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import LoadError
from actinium.features.dictionaries.architectures import JumpReLUSAE
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.transcoder import SkipTranscoder, Transcoder
from actinium.features.interchange.parameters import fill, norm_setting, only, read_json, read_tensors

__all__ = ["read_gemma_scope"]

NAME = "gemma_scope"
FILES = ("params.npz", "params.safetensors")
SKIP = "affine_skip_connection"


def read_gemma_scope(path: str | os.PathLike[str]) -> Dictionary:
    """The JumpReLU dictionary in a folder of Gemma Scope, or in one of its files.

    The decoder's bias is not subtracted from the input, so that an autoencoder and a transcoder of the same width hold
    the same parameters: both are a `JumpReLUSAE` here. Of other widths, or with a linear path beside the latents, it is
    a transcoder. Settings of the second release (config.json) are in `about["metadata"]`.

    Raises:
        LoadError: a file is missing or damaged or holds more than arrays, or shapes do not fit.
    """
    given = Path(path)
    file = given if given.is_file() else next((f for f in (given / n for n in FILES) if f.is_file()), given / FILES[0])
    found = {_name(name): value for name, value in _arrays(file).items()}
    only(found, ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"), file, (SKIP,))
    if any(found[name].ndim != 2 or found[name].numel() == 0 for name in ("W_enc", "W_dec")):
        raise LoadError(f"{file}: encoder and decoder must be matrices (one layer at a time)")
    (d_in, d_sae), d_out = found["W_enc"].shape, found["W_dec"].shape[1]
    found["theta"] = found.pop("threshold")
    norm = norm_setting(found["W_dec"])
    made: Dictionary
    if SKIP in found:
        found["W_skip"] = found.pop(SKIP).T
        made = SkipTranscoder(d_sae, "jumprelu", decoder_norm=norm)
    elif d_in != d_out:
        made = Transcoder(d_sae, "jumprelu", decoder_norm=norm)
    else:
        made = JumpReLUSAE(d_sae, apply_b_dec=False, decoder_norm=norm)
    made = fill(made.build(d_in, d_out), file, **found)
    settings = file.parent / "config.json"
    made.about = {"format": NAME, "metadata": read_json(settings) if settings.is_file() else {}}
    made.about["model"] = made.about["metadata"].get("model_name")
    return made


def _arrays(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".npz":
        return read_tensors(file)
    try:
        with np.load(file, allow_pickle=False) as held:
            return {name: torch.from_numpy(np.asarray(held[name], dtype=np.float32)) for name in held.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise LoadError(f"cannot read {file}: {error}") from None


def _name(theirs: str) -> str:
    """Matrices are written with a capital in one release and without in the other."""
    return "W_" + theirs[2:] if theirs.startswith("w_") else theirs
