"""SAELens's folders: cfg.json and sae_weights.safetensors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError, LoadError, UnknownNameError, unknown
from actinium.features.dictionaries.architectures import GatedSAE, JumpReLUSAE, ReLUSAE, TopKSAE
from actinium.features.dictionaries.crosscoder import Crosscoder
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.rules import BatchTopK, Gated, JumpReLU, ReLU, TopK
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
    thresholds,
    whole,
    write_folder,
)
from actinium.features.interchange.places import hook_of, site_of

__all__ = ["read_saelens", "write_saelens"]

NAME = "saelens"
SETTINGS, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = ("standard", "gated", "topk", "jumprelu", *TRANSCODERS)
NORMALISATIONS: Mapping[str, str] = {
    "none": "none",
    "expected_average_only_in": "none",
    "constant_norm_rescale": "norm",
    "layer_norm": "layer_norm",
}
STRUCTURE = {
    "activation_fn",
    "activation_fn_kwargs",
    "activation_fn_str",
    "apply_b_dec_to_input",
    "architecture",
    "d_in",
    "d_out",
    "d_sae",
    "device",
    "dtype",
    "expansion_factor",
    "finetuning_scaling_factor",
    "k",
    "metadata",
    "normalize_activations",
    "rescale_acts_by_decoder_norm",
    "reshape_activations",
}
"""Settings that say what is computed; what else stands beside them in files from before version 6 is metadata."""
RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "hook_point_layer": "hook_layer"}
FORMAT_VERSION = "6.0.0"
"""The first release with the settings as they are written here."""


def read_saelens(path: str | os.PathLike[str]) -> Dictionary:
    """The dictionary in a folder that SAELens wrote, of any version.

    What the folder says of the model and the place in it is in `about`: "metadata" as it stands, "model", and "site"
    where Actinium has one. Where `about["reshape_activations"]` is "hook_z", rows are the heads' z side by side.

    Raises:
        LoadError: a file is missing or damaged, shapes do not fit, or something is asked for that is not computed here.
        UnknownNameError: it is another architecture or normalisation.
    """
    folder = Path(path)
    settings = _modern(read_json(folder / SETTINGS))
    file = folder / WEIGHTS
    tensors = _tensors(read_tensors(file), file)
    architecture, how = settings["architecture"], settings["normalize_activations"]
    if architecture not in ARCHITECTURES:
        raise UnknownNameError(unknown("SAELens architecture", architecture, ARCHITECTURES))
    if how not in NORMALISATIONS:
        raise UnknownNameError(unknown("normalisation of activations", how, NORMALISATIONS))
    d_in = whole(settings, "d_in", folder / SETTINGS)
    d_sae = whole(settings, "d_sae", folder / SETTINGS)
    if architecture in TRANSCODERS:
        if settings["apply_b_dec_to_input"]:
            raise LoadError(f"{folder / SETTINGS}: a transcoder cannot subtract its decoder's bias from another input")
        made = _transcoder(architecture, d_in, whole(settings, "d_out", folder / SETTINGS), d_sae, how, tensors, file)
    else:
        made = _autoencoder(settings, d_in, d_sae, tensors, file)
    if how == "expected_average_only_in":
        _fold_scale(made, folder)
    metadata = settings["metadata"]
    hook = metadata.get("hook_name")
    made.about = {"format": NAME, "metadata": metadata, "model": metadata.get("model_name"), "site": site_of(hook)}
    if settings["reshape_activations"] != "none":
        made.about["reshape_activations"] = settings["reshape_activations"]
    return made


def write_saelens(dictionary: Dictionary, path: str | os.PathLike[str]) -> Path:
    """Write a folder that SAELens opens.

    BatchTopK and Matryoshka dictionaries become JumpReLU ones, as SAELens itself writes them, and constants of the
    input's normalisation are folded into the weights. A TopK dictionary with free norms has them folded, so that its
    latents are larger by them.

    Raises:
        InputError: SAELens has no such architecture, or the dictionary was not trained.
    """
    architecture = _architecture(dictionary)
    made = portable(dictionary, fold_norms=isinstance(dictionary.rule, TopK))
    tensors = parameters(made)
    if isinstance(dictionary.rule, BatchTopK | JumpReLU):
        tensors["threshold"] = thresholds(dictionary)
    theirs = {ours: name for name, ours in NORMALISATIONS.items() if name != "expected_average_only_in"}
    settings: dict[str, Any] = {
        "architecture": architecture,
        "d_in": made.d_in,
        "d_sae": made.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": bool(made.apply_b_dec and made.autoencodes),
        "normalize_activations": theirs[made.normalize],
    }
    if architecture in TRANSCODERS:
        settings["d_out"] = made.d_out
    if architecture == "topk":
        settings |= {"k": active_count(made), "rescale_acts_by_decoder_norm": False}
    settings["metadata"] = _metadata(dictionary.about)
    hook = settings["metadata"].get("hook_name")
    reshaped = "hook_z" if str(hook).endswith(".hook_z") and made.autoencodes else "none"
    if dictionary.about.get("format") == NAME:
        reshaped = dictionary.about.get("reshape_activations", "none")
    settings["reshape_activations"] = reshaped
    return write_folder(path, WEIGHTS, tensors, SETTINGS, settings)


# Reading


def _modern(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as version 6 has them, from those of any version."""
    found = {RENAMED.get(name, name): value for name, value in settings.items()}
    metadata = found.get("metadata")
    if not isinstance(metadata, dict):
        # Before version 6 everything stood side by side, and the activation was named apart from the architecture.
        metadata = {name: value for name, value in found.items() if name not in STRUCTURE}
    activation = found.get("activation_fn", found.get("activation_fn_str", "relu"))
    if activation not in ("relu", "topk"):
        raise LoadError(f"latents by {activation!r} are not computed here, but by 'relu' and 'topk'")
    details = found.get("activation_fn_kwargs") or {}
    made = {"architecture": "standard", "apply_b_dec_to_input": True, "d_out": found.get("d_in")} | found
    if activation == "topk":
        made |= {"architecture": "topk", "k": details.get("k", found.get("k"))}
    how = found.get("normalize_activations")
    if how is None or isinstance(how, bool):
        how = "expected_average_only_in" if how else "none"
    if found.get("d_sae") is None and "expansion_factor" in found:
        made["d_sae"] = whole(found, "expansion_factor", Path(SETTINGS)) * whole(found, "d_in", Path(SETTINGS))
    old = "hook_z" if "hook_z" in str(metadata.get("hook_name")) and "metadata" not in found else "none"
    reshaped = found.get("reshape_activations", old)
    return made | {"metadata": metadata, "normalize_activations": how, "reshape_activations": reshaped}


def _tensors(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Parameters by the names of version 6."""
    if "scaling_factor" in tensors and bool((tensors.pop("scaling_factor") != 1).any()):
        raise LoadError(f"{file} has factors of its latents from fine-tuning, which are not computed here")
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    return tensors


def _autoencoder(
    settings: Mapping[str, Any], d_in: int, d_sae: int, tensors: dict[str, Tensor], file: Path
) -> Dictionary:
    architecture = settings["architecture"]
    own = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(architecture, ("b_enc",))
    only(tensors, ("W_enc", "W_dec", "b_dec", *own), file)
    given: dict[str, Any] = {
        "normalize": NORMALISATIONS[settings["normalize_activations"]],
        "apply_b_dec": bool(settings["apply_b_dec_to_input"]),
        "decoder_norm": norm_setting(tensors["W_dec"]),
    }
    made: Dictionary
    if architecture == "gated":
        made = GatedSAE(d_sae, **given)
    elif architecture == "jumprelu":
        tensors["theta"] = tensors.pop("threshold")
        made = JumpReLUSAE(d_sae, **given)
    elif architecture == "topk":
        if settings.get("rescale_acts_by_decoder_norm", False):
            tensors = _fold_norms(tensors, file)
        given["decoder_norm"] = norm_setting(tensors["W_dec"], ranked=True)
        made = TopKSAE(d_sae, sparse_count(settings.get("k"), d_sae, file.parent / SETTINGS), **given)
    else:
        made = ReLUSAE(d_sae, **given)
    return fill(made.build(d_in), file, **tensors)


def _fold_norms(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Weights with decoder rows of unit norm, in place of latents that are multiplied and divided by the norms."""
    norms = tensors["W_dec"].norm(dim=1)
    if tensors["W_enc"].shape[-1] != len(norms) or tensors["b_enc"].shape != norms.shape:
        raise LoadError(f"{file}: encoder and decoder do not have the same number of latents")
    if bool((norms - 1).abs().max() < 1e-6):
        return tensors
    norms = norms.clamp_min(1e-8)
    folded = {"W_enc": tensors["W_enc"] * norms, "b_enc": tensors["b_enc"] * norms}
    return tensors | folded | {"W_dec": tensors["W_dec"] / norms[:, None]}


def _transcoder(
    architecture: str, d_in: int, d_out: int, d_sae: int, how: str, tensors: dict[str, Tensor], file: Path
) -> Dictionary:
    skips, jumps = "skip" in architecture, architecture.startswith("jumprelu")
    own = ["threshold"] * jumps + ["W_skip"] * skips
    only(tensors, ("W_enc", "W_dec", "b_enc", "b_dec", *own), file)
    if skips and NORMALISATIONS[how] != "none":
        raise LoadError(f"{file}: what skips past the latents is not normalised there, and is here: {how} is refused")
    if jumps:
        tensors["theta"] = tensors.pop("threshold")
    kind = SkipTranscoder if skips else Transcoder
    norm = norm_setting(tensors["W_dec"])
    made = kind(d_sae, "jumprelu" if jumps else "relu", normalize=NORMALISATIONS[how], decoder_norm=norm)
    return fill(made.build(d_in, d_out), file, **tensors)


def _fold_scale(made: Dictionary, folder: Path) -> None:
    """Fold the number by which inputs were multiplied in training, if it is still beside the weights."""
    scale = read_json(folder / SCALER).get("scaling_factor") if (folder / SCALER).is_file() else None
    if scale is None:
        warnings.warn(
            f"{folder} was trained on activations times sqrt(d) / mean norm, and does not say whether the weights hold "
            "that number; if they do not: dictionary.normalize = 'mean_norm'; dictionary.measure_scale(rows); "
            "dictionary.fold_input_scale()",
            ActiniumWarning,
            stacklevel=4,
        )
        return
    if not scale > 0 or scale == float("inf"):
        raise LoadError(f"{folder / SCALER}: the scaling factor must be a number above 0, not {scale!r}")
    made.normalize = "mean_norm"
    with torch.no_grad():
        made.scale.fill_(scale)
    made.fold_input_scale()


# Writing


def _architecture(dictionary: Dictionary) -> str:
    """SAELens's name of what a dictionary computes."""
    dictionary.check_fitted()
    rule = dictionary.rule
    if isinstance(dictionary, Crosscoder):
        raise InputError("SAELens has no crosscoders")
    if isinstance(dictionary, Transcoder):
        if not isinstance(rule, ReLU | JumpReLU | BatchTopK):
            raise InputError(f"SAELens has transcoders of ReLU and JumpReLU latents, not of {type(rule).__name__}")
        if dictionary.skips and dictionary.normalize in ("norm", "layer_norm"):
            raise InputError("SAELens's transcoders skip with the input as it is: this one normalises each row of it")
        return ("" if isinstance(rule, ReLU) else "jumprelu_") + ("skip_" if dictionary.skips else "") + "transcoder"
    names = {ReLU: "standard", Gated: "gated", TopK: "topk", JumpReLU: "jumprelu", BatchTopK: "jumprelu"}
    return names[type(rule)]


def _metadata(about: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the model, as SAELens keeps it."""
    kept = dict(about.get("metadata") or {}) if about.get("format") == NAME else {}
    if about.get("model") is not None:
        kept.setdefault("model_name", about["model"])
    if hook_of(about.get("site")) is not None:
        kept.setdefault("hook_name", hook_of(about["site"]))
    version = str(kept.get("sae_lens_version") or FORMAT_VERSION)
    if not version.split(".")[0].isdigit() or int(version.split(".")[0]) < int(FORMAT_VERSION.split(".")[0]):
        # Settings of an older version are looked for beside each other, and these are not.
        if kept.get("sae_lens_training_version") is None:
            kept["sae_lens_training_version"] = version
        version = FORMAT_VERSION
    return kept | {"sae_lens_version": version}
