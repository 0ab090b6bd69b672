"""sparsify's folders, one for each place in a model: cfg.json and sae.safetensors."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown
from actinium.features.dictionaries.architectures import TopKSAE
from actinium.features.dictionaries.crosscoder import Crosscoder
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.rules import TopK
from actinium.features.dictionaries.transcoder import SkipTranscoder, Transcoder
from actinium.features.interchange.parameters import (
    active_count,
    fill,
    norm_setting,
    only,
    parameters,
    portable,
    read_json,
    read_tensors,
    sparse_count,
    subtract_bias,
    whole,
    write_folder,
)

__all__ = ["read_sparsify", "write_sparsify"]

NAME = "sparsify"
SETTINGS, WEIGHTS = "cfg.json", "sae.safetensors"


def read_sparsify(path: str | os.PathLike[str]) -> Dictionary:
    """The dictionary in a folder of one place ("layers.10") that sparsify wrote.

    An autoencoder with a linear path beside its latents is a `SkipTranscoder` here, whose target is its input. The
    settings are in `about["metadata"]`. Latents and reconstruction are those of sparsify's `encode` and `decode`: its
    `forward` reconstructs with 4 k latents if `multi_topk` is set.

    Raises:
        LoadError: a file is missing or damaged, or shapes do not fit.
        UnknownNameError: latents are found by another rule than TopK.
    """
    folder = Path(path)
    settings, file = read_json(folder / SETTINGS), folder / WEIGHTS
    activation = settings.get("activation", "topk")
    if activation != "topk":
        raise UnknownNameError(unknown("activation of sparsify's that is computed here", activation, ("topk",)))
    if settings.get("signed", False):
        raise LoadError(f"{folder / SETTINGS}: latents of both signs are not computed here")
    d_in = whole(settings, "d_in", folder / SETTINGS)
    if settings.get("num_latents"):
        d_sae = whole(settings, "num_latents", folder / SETTINGS)
    else:
        d_sae = d_in * whole(settings, "expansion_factor", folder / SETTINGS)
    k = sparse_count(settings.get("k"), d_sae, folder / SETTINGS)
    transcodes, skips = bool(settings.get("transcode", False)), bool(settings.get("skip_connection", False))
    found = read_tensors(file)
    only(found, ["encoder.weight", "encoder.bias", "W_dec", "b_dec"] + ["W_skip"] * skips, file)
    own: dict[str, Tensor] = {name: found[name] for name in ("W_dec", "b_dec", "W_skip") if name in found}
    if found["encoder.weight"].shape != (d_sae, d_in):
        raise LoadError(f"{file}: encoder.weight is {tuple(found['encoder.weight'].shape)}, not {(d_sae, d_in)}")
    own |= {"W_enc": found["encoder.weight"].T, "b_enc": found["encoder.bias"]}
    norm = norm_setting(own["W_dec"], ranked=True)
    made: Dictionary
    if not transcodes and not skips:
        made = fill(TopKSAE(d_sae, k, decoder_norm=norm).build(d_in), file, **own)
    else:
        if not transcodes and own["b_dec"].shape == (d_in,):
            own["b_enc"] = (own["b_enc"].double() - own["b_dec"].double() @ own["W_enc"].double()).float()
        kind = SkipTranscoder if skips else Transcoder
        made = fill(kind(d_sae, "topk", {"k": k}, decoder_norm=norm).build(d_in), file, **own)
    made.about = {"format": NAME, "metadata": settings, "site": _site(folder.name)}
    return made


def write_sparsify(dictionary: Dictionary, path: str | os.PathLike[str]) -> Path:
    """Write a folder that sparsify opens; name it as it names places, such as "layers.10".

    Constants of the input's normalisation and free norms are folded, as by `write_saelens`.

    Raises:
        InputError: it is no TopK autoencoder or transcoder, normalises each row, or input and output differ in width.
    """
    dictionary.check_fitted()
    if isinstance(dictionary, Crosscoder) or not isinstance(dictionary.rule, TopK):
        raise InputError(
            f"sparsify has TopK autoencoders and transcoders, not a {type(dictionary).__name__} of "
            f"{type(dictionary.rule).__name__} latents"
        )
    if dictionary.normalize in ("norm", "layer_norm"):
        raise InputError(f"sparsify does not normalise rows, and this dictionary does: {dictionary.normalize}")
    if dictionary.d_in != dictionary.d_out:
        raise InputError(
            f"sparsify's transcoders keep the width, and this one maps {dictionary.d_in} to {dictionary.d_out}"
        )
    transcodes = not dictionary.autoencodes
    made = subtract_bias(portable(dictionary, fold_norms=True), True)
    kept = parameters(made)
    tensors = {"encoder.weight": kept["W_enc"].T.contiguous(), "encoder.bias": kept["b_enc"]}
    tensors |= {name: kept[name] for name in ("W_dec", "b_dec", "W_skip") if name in kept}
    about = dictionary.about
    settings: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": max(1, round(made.d_sae / made.d_in)),
        "normalize_decoder": dictionary.decoder_norm == "unit",
        # Set, it would have sparsify reconstruct with 4 k latents, after training as well.
        "multi_topk": False,
    }
    settings |= dict(about.get("metadata") or {}) if about.get("format") == NAME else {}
    settings |= {
        "num_latents": made.d_sae,
        "k": active_count(made),
        "skip_connection": bool(getattr(made, "skips", False)),
        "transcode": transcodes,
        "d_in": made.d_in,
    }
    return write_folder(path, WEIGHTS, tensors, SETTINGS, settings)


def _site(place: str) -> str | None:
    """The site of a module that sparsify names from the base model: a block's output, or its MLP's."""
    found = re.fullmatch(r"(?:layers|h)\.(\d+)(\.mlp)?", place)
    return f"blocks.{found[1]}.{'mlp.out' if found[2] else 'resid_post'}" if found else None
