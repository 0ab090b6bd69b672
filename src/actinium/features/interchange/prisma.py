"""Prisma's folders: config.json and one file of weights, which is read only if it holds tensors alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from actinium.core.errors import LoadError, UnknownNameError, unknown
from actinium.features.dictionaries.architectures import GatedSAE, ReLUSAE, TopKSAE
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.transcoder import SkipTranscoder, Transcoder
from actinium.features.interchange.parameters import (
    fill,
    norm_setting,
    only,
    read_json,
    read_torch,
    sparse_count,
    whole,
)
from actinium.features.interchange.places import site_of

__all__ = ["read_prisma", "weights_of"]

NAME = "prisma"
SETTINGS = "config.json"
ARCHITECTURES = ("standard", "gated")
ACTIVATIONS = ("relu", "topk")
NORMALISATIONS: Mapping[str, str] = {"none": "none", "constant_norm_rescale": "norm", "layer_norm": "layer_norm"}


def read_prisma(path: str | os.PathLike[str]) -> Dictionary:
    """The dictionary in a folder of Prisma (ViT-Prisma), or in its file of weights with config.json beside it.

    The bias that a transcoder of Prisma's subtracts from its input is folded into the encoder's. config.json is in
    `about["metadata"]`.

    Raises:
        LoadError: a file is missing or damaged, or holds more than tensors, as files of `save_model` do, which hold a
            pickled configuration; shapes do not fit; or a transcoder normalises its rows.
        UnknownNameError: it is another architecture, activation or normalisation.
    """
    given = Path(path)
    file = weights_of(given) if given.is_dir() else given
    settings = read_json(file.parent / SETTINGS)
    found = read_torch(file)
    found = found["state_dict"] if isinstance(found.get("state_dict"), Mapping) else found
    if not all(isinstance(value, Tensor) for value in found.values()):
        raise LoadError(f"{file} holds more than tensors by name")
    tensors = {name: value.float() for name, value in found.items()}
    how = settings.get("normalize_activations") or "none"
    activation = settings.get("activation_fn_str", "relu")
    architecture = settings.get("architecture", "standard")
    for what, value, known in (
        ("architecture of Prisma's", architecture, ARCHITECTURES),
        ("activation of Prisma's", activation, ACTIVATIONS),
        ("normalisation of activations", how, NORMALISATIONS),
    ):
        if value not in known:
            raise UnknownNameError(unknown(what, value, known))
    make = _transcoder if settings.get("is_transcoder", False) else _autoencoder
    made = make(settings, activation, NORMALISATIONS[how], tensors, file)
    hook = f"blocks.{settings.get('hook_point_layer')}.{settings.get('layer_subtype')}"
    made.about = {"format": NAME, "metadata": settings, "model": settings.get("model_name"), "site": site_of(hook)}
    return made


def weights_of(folder: Path) -> Path:
    """The one file of weights in a folder; sparsity of features is kept in others.

    Raises:
        LoadError: there is none, or there are several.
    """
    found = [f for f in sorted(folder.glob("*.pt")) if not f.stem.endswith("log_feature_sparsity")]
    if len(found) != 1:
        raise LoadError(f"{folder} holds {len(found)} files of weights (.pt): name one of them")
    return found[0]


def _sizes(settings: Mapping[str, Any], file: Path) -> tuple[int, int]:
    d_in = whole(settings, "d_in", file.parent / SETTINGS)
    return d_in, d_in * whole(settings, "expansion_factor", file.parent / SETTINGS)


def _count(settings: Mapping[str, Any], d_sae: int, file: Path) -> int:
    return sparse_count((settings.get("activation_fn_kwargs") or {}).get("k"), d_sae, file.parent / SETTINGS)


def _autoencoder(
    settings: Mapping[str, Any], activation: str, normalize: str, tensors: dict[str, Tensor], file: Path
) -> Dictionary:
    d_in, d_sae = _sizes(settings, file)
    gated = settings.get("architecture") == "gated"
    own = ("b_gate", "b_mag", "r_mag") if gated else ("b_enc",)
    only(tensors, ("W_enc", "W_dec", "b_dec", *own), file, ("b_enc",))
    given: dict[str, Any] = {
        "normalize": normalize,
        "decoder_norm": norm_setting(tensors["W_dec"], ranked=activation == "topk"),
    }
    made: Dictionary
    if gated:
        if activation != "relu":
            raise LoadError(f"{file.parent / SETTINGS}: gated latents are those of ReLU here, not of {activation}")
        # The encoder has a bias there that nothing uses.
        tensors.pop("b_enc", None)
        made = GatedSAE(d_sae, **given)
    elif activation == "topk":
        made = TopKSAE(d_sae, _count(settings, d_sae, file), **given)
    else:
        made = ReLUSAE(d_sae, **given)
    return fill(made.build(d_in), file, **tensors)


def _transcoder(
    settings: Mapping[str, Any], activation: str, normalize: str, tensors: dict[str, Tensor], file: Path
) -> Dictionary:
    d_in, d_sae = _sizes(settings, file)
    if normalize != "none":
        raise LoadError(
            f"{file.parent / SETTINGS}: a transcoder of Prisma's gives its output its input's norms, which is "
            "not computed here"
        )
    skips = "W_skip" in tensors
    only(tensors, ("W_enc", "W_dec", "b_enc", "b_dec", "b_dec_out"), file, ("W_skip",))
    if tensors["W_enc"].shape != (d_in, d_sae) or tensors["b_dec"].shape != (d_in,):
        raise LoadError(f"{file}: the encoder is not that of {d_in} inputs and {d_sae} latents")
    shift = tensors["b_dec"].double() @ tensors["W_enc"].double()
    tensors["b_enc"] = (tensors["b_enc"].double() - shift).float()
    tensors["b_dec"] = tensors.pop("b_dec_out")
    details = {"k": _count(settings, d_sae, file)} if activation == "topk" else {}
    norm = norm_setting(tensors["W_dec"], ranked=activation == "topk")
    made = (SkipTranscoder if skips else Transcoder)(d_sae, activation, details, decoder_norm=norm)
    return fill(made.build(d_in, whole(settings, "d_out", file.parent / SETTINGS)), file, **tensors)
