"""dictionary_learning's folders: config.json and ae.pt, whose weights are read without unpickling anything else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown
from actinium.features.dictionaries.architectures import (
    BatchTopKSAE,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    ReLUSAE,
    TopKSAE,
)
from actinium.features.dictionaries.crosscoder import Crosscoder
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.rules import BatchTopK, Gated, JumpReLU, ReLU, TopK
from actinium.features.interchange.parameters import (
    active_count,
    fill,
    norm_setting,
    only,
    parameters,
    portable,
    read_json,
    read_torch,
    sparse_count,
    subtract_bias,
    thresholds,
    write_folder,
)

__all__ = ["read_dictionary_learning", "write_dictionary_learning"]

NAME = "dictionary_learning"
SETTINGS, WEIGHTS = "config.json", "ae.pt"
LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
SAME = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
NAMES: Mapping[str, Mapping[str, str]] = {
    "AutoEncoder": LINEAR | {"bias": "b_dec"},
    "AutoEncoderNew": LINEAR | {"decoder.bias": "b_dec"},
    "GatedAutoEncoder": {
        "encoder.weight": "W_enc",
        "decoder.weight": "W_dec",
        "decoder_bias": "b_dec",
        "gate_bias": "b_gate",
        "mag_bias": "b_mag",
        "r_mag": "r_mag",
    },
    "JumpReluAutoEncoder": SAME | {"threshold": "theta"},
    "AutoEncoderTopK": LINEAR | {"b_dec": "b_dec"},
    "BatchTopKSAE": LINEAR | {"b_dec": "b_dec"},
    "MatryoshkaBatchTopKSAE": SAME,
}
"""Its classes, and the parameters of each by Actinium's names; matrices with a dot in the name are transposed."""
COUNTED = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")


def read_dictionary_learning(path: str | os.PathLike[str]) -> Dictionary:
    """The dictionary in a folder that dictionary_learning wrote.

    Weights are taken as they stand; its own loader folds free decoder norms of an `AutoEncoder`, as
    `fold_decoder_norm` does. A BatchTopK dictionary without a threshold keeps the largest latents of a batch, where
    dictionary_learning keeps all positive ones. config.json is in `about["metadata"]`.

    Raises:
        LoadError: a file is missing or damaged or holds more than tensors, or shapes do not fit.
        UnknownNameError: it is another class.
    """
    folder = Path(path)
    settings, file = read_json(folder / SETTINGS), folder / WEIGHTS
    trainer = settings.get("trainer")
    if not isinstance(trainer, dict) or "dict_class" not in trainer:
        raise LoadError(f"{folder / SETTINGS} does not name the class of the dictionary")
    kind = trainer["dict_class"]
    if kind not in NAMES:
        raise UnknownNameError(unknown("class of dictionary_learning", kind, NAMES))
    found = read_torch(file)
    if not all(isinstance(value, Tensor) for value in found.values()):
        raise LoadError(f"{file} is no state_dict; it may be the backup of a run that is not finished")
    extra = {"k", "threshold"} if kind in COUNTED else set()
    only(found, NAMES[kind], file, extra | ({"group_sizes"} if kind == "MatryoshkaBatchTopKSAE" else set()))
    for name in NAMES[kind]:
        if name.endswith(".weight") and found[name].ndim != 2:
            raise LoadError(f"{file}: {name} is {tuple(found[name].shape)}, and a matrix is expected")
    own = {
        ours: found[theirs].float().T if theirs.endswith(".weight") else found[theirs].float()
        for theirs, ours in NAMES[kind].items()
    }
    if own["W_enc"].ndim != 2 or own["W_enc"].numel() == 0:
        raise LoadError(f"{file}: the encoder is {tuple(own['W_enc'].shape)}, and a matrix is expected")
    d_in, d_sae = own["W_enc"].shape
    for name, size in (("activation_dim", d_in), ("dict_size", d_sae)):
        if trainer.get(name, size) != size:
            raise LoadError(f"{folder / SETTINGS}: {name} is {trainer[name]}, and the weights make it {size}")
    made = fill(_empty(kind, found, trainer, d_sae, own["W_dec"], file).build(d_in), file, **own)
    made.about = {"format": NAME, "metadata": settings, "model": trainer.get("lm_name"), "site": _site(trainer)}
    threshold = float(found.get("threshold", torch.tensor(-1.0)).float()) if kind in COUNTED else -1.0
    if kind == "AutoEncoderTopK" and threshold >= 0:
        made.about["threshold"] = threshold
    if isinstance(made.rule, BatchTopK):
        made.rule.running.fill_(threshold)
    return made


def write_dictionary_learning(dictionary: Dictionary, path: str | os.PathLike[str]) -> Path:
    """Write a folder that dictionary_learning opens.

    Constants of the input's normalisation and norms that weight ranks are folded, as by `write_saelens`; whether the
    decoder's bias is subtracted from the input is up to the class there, and the encoder's bias is changed to match.

    Raises:
        InputError: dictionary_learning has no such architecture.
    """
    kind = _kind(dictionary)
    rule = dictionary.rule
    made = portable(dictionary, fold_norms=isinstance(rule, TopK | BatchTopK))
    made = subtract_bias(made, kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"))
    kept = parameters(made)
    if isinstance(rule, JumpReLU):
        kept["theta"] = thresholds(dictionary)
    tensors = {
        theirs: kept[ours].T.contiguous() if theirs.endswith(".weight") else kept[ours]
        for theirs, ours in NAMES[kind].items()
    }
    about = dictionary.about
    settings = dict(about.get("metadata") or {}) if about.get("format") == NAME else {}
    trainer = {"lm_name": about.get("model"), "layer": _layer(about.get("site"))} | dict(settings.get("trainer") or {})
    trainer |= {"dict_class": kind, "activation_dim": made.d_in, "dict_size": made.d_sae}
    if kind in COUNTED:
        trainer["k"] = active_count(made) if isinstance(rule, TopK) else _whole_k(rule.k)
        tensors["k"] = torch.tensor(trainer["k"], dtype=torch.int)
        threshold = float(rule.running) if isinstance(rule, BatchTopK) else about.get("threshold", -1.0)
        tensors["threshold"] = torch.tensor(threshold, dtype=torch.float32)
    if isinstance(dictionary, MatryoshkaSAE):
        widths = list(dictionary.widths)
        trainer["group_sizes"] = [b - a for a, b in zip([0, *widths[:-1]], widths, strict=True)]
        tensors["group_sizes"] = torch.tensor(trainer["group_sizes"])
    return write_folder(path, WEIGHTS, tensors, SETTINGS, settings | {"trainer": trainer})


def _empty(
    kind: str, found: Mapping[str, Tensor], trainer: Mapping[str, Any], d_sae: int, W_dec: Tensor, file: Path
) -> Dictionary:
    """A dictionary of the settings, not built yet."""
    norm = norm_setting(W_dec, ranked=kind in COUNTED)
    if kind in ("AutoEncoder", "AutoEncoderNew"):
        return ReLUSAE(d_sae, apply_b_dec=kind == "AutoEncoder", decoder_norm=norm)
    if kind == "GatedAutoEncoder":
        return GatedSAE(d_sae, decoder_norm=norm)
    if kind == "JumpReluAutoEncoder":
        return JumpReLUSAE(d_sae, apply_b_dec=False, decoder_norm=norm)
    k = sparse_count(int(found["k"]) if "k" in found else trainer.get("k"), d_sae, file)
    if kind == "AutoEncoderTopK":
        return TopKSAE(d_sae, k, decoder_norm=norm)
    if kind == "BatchTopKSAE":
        return BatchTopKSAE(d_sae, k, decoder_norm=norm)
    sizes = found["group_sizes"].flatten().tolist() if "group_sizes" in found else trainer.get("group_sizes")
    if not sizes or min(sizes) < 1 or sum(sizes) != d_sae:
        raise LoadError(f"{file}: groups of {sizes} latents do not make up {d_sae}")
    widths = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return MatryoshkaSAE(widths, k, mean=True, decoder_norm=norm)


def _kind(dictionary: Dictionary) -> str:
    """The class of what a dictionary computes."""
    dictionary.check_fitted()
    if not dictionary.autoencodes or isinstance(dictionary, Crosscoder):
        raise InputError(f"dictionary_learning has no {type(dictionary).__name__}")
    if dictionary.normalize in ("norm", "layer_norm"):
        raise InputError(
            f"dictionary_learning does not normalise rows, and this dictionary does: {dictionary.normalize}"
        )
    rule = dictionary.rule
    if isinstance(rule, ReLU):
        return "AutoEncoder" if dictionary.apply_b_dec else "AutoEncoderNew"
    if isinstance(rule, BatchTopK):
        return "MatryoshkaBatchTopKSAE" if isinstance(dictionary, MatryoshkaSAE) else "BatchTopKSAE"
    return {Gated: "GatedAutoEncoder", JumpReLU: "JumpReluAutoEncoder", TopK: "AutoEncoderTopK"}[type(rule)]


def _whole_k(k: float | None) -> int:
    if k is None or k != int(k):
        raise InputError(f"dictionary_learning's k is a whole number, and this one is {k}")
    return int(k)


def _site(trainer: Mapping[str, Any]) -> str | None:
    """The site, where the name of the module says that it is a block's output."""
    found = re.fullmatch(r"resid_post_layer_(\d+)", str(trainer.get("submodule_name")))
    return f"blocks.{found[1]}.resid_post" if found else None


def _layer(site: object) -> int | None:
    found = re.match(r"blocks\.(\d+)\.", site) if isinstance(site, str) else None
    return int(found[1]) if found else None
