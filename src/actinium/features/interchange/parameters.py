"""Parameters on their way from and to other libraries' files: read, checked, and rewritten to compute the same."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, LoadError
from actinium.features.dictionaries.dictionary import Dictionary
from actinium.features.dictionaries.rules import BatchTopK, Gated, JumpReLU, TopK

__all__ = [
    "fill",
    "only",
    "portable",
    "read_json",
    "read_tensors",
    "read_torch",
    "sparse_count",
    "subtract_bias",
    "thresholds",
    "whole",
    "write_folder",
]

AnyDictionary = TypeVar("AnyDictionary", bound=Dictionary)


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a JSON file.

    Raises:
        LoadError: it is missing, damaged, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read {path}: {error}") from None
    if not isinstance(found, dict):
        raise LoadError(f"{path} holds no settings by name")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in float32.

    Raises:
        LoadError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise LoadError(f"cannot read {path}: {error}") from None


def read_torch(path: Path) -> dict[str, Any]:
    """What a file of `torch.save` holds by name, if it is tensors and plain values alone.

    Raises:
        LoadError: it is missing or damaged, or would have to be unpickled.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise LoadError(
            f"{path} holds more than tensors, and nothing is unpickled here; save its state_dict alone, "
            "or as safetensors, with the library that wrote it"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise LoadError(f"cannot read {path}: {error}") from None
    if not isinstance(found, Mapping):
        raise LoadError(f"{path} holds no tensors by name, but a {type(found).__name__}")
    return dict(found)


def whole(settings: Mapping[str, Any], name: str, path: Path) -> int:
    """A setting that is a whole number of 1 or more.

    Raises:
        LoadError: it is missing or something else.
    """
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LoadError(f"{path}: {name} must be a whole number of 1 or more, not {value!r}")
    return value


def sparse_count(k: Any, d_sae: int, path: Path) -> int:
    """The number of active latents.

    Raises:
        LoadError: it is none, or larger than the number of latents.
    """
    if isinstance(k, bool) or not isinstance(k, int | float) or not 1 <= k <= d_sae or k != int(k):
        raise LoadError(f"{path}: k must be a whole number from 1 to the {d_sae} latents, not {k!r}")
    return int(k)


def only(tensors: Mapping[str, Tensor], wanted: Iterable[str], path: Path, optional: Iterable[str] = ()) -> None:
    """Check the names of tensors.

    Raises:
        LoadError: one is missing, or there is another one.
    """
    wanted, optional = set(wanted), set(optional)
    missing, other = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted - optional)
    if missing or other:
        raise LoadError(
            f"{path} has the wrong parameters: {', '.join(missing) or 'none'} missing, "
            f"{', '.join(other) or 'none'} unexpected"
        )


def fill(dictionary: AnyDictionary, path: Path, **tensors: Tensor) -> AnyDictionary:
    """Give a built dictionary its parameters, by its own names and those of its rule.

    Raises:
        LoadError: a shape is not that of the settings, or a number is not finite.
    """
    with torch.no_grad():
        for name, value in tensors.items():
            owners = (dictionary.rule, dictionary)
            held = next(h for h in (getattr(o, name, None) for o in owners) if isinstance(h, Tensor))
            if value.shape != held.shape:
                raise LoadError(f"{path}: {name} is {tuple(value.shape)}, and the settings make it {tuple(held.shape)}")
            held.copy_(value)
            if not bool(torch.isfinite(held).all()):
                raise LoadError(f"{path}: {name} holds numbers that are not finite")
    return dictionary.eval()


def norm_setting(W_dec: Tensor, ranked: bool = False) -> str:
    """The `decoder_norm` of rows (d_sae, d): "unit", else "free"; where latents are ranked, free norms would weight the
    ranks, which only Actinium and SAELens know, so that they are "ignored"."""
    if W_dec.ndim == 2 and bool(((W_dec.norm(dim=1) - 1).abs() < 1e-4).all()):
        return "unit"
    return "ignored" if ranked else "free"


def portable(dictionary: Dictionary, fold_norms: bool = False) -> Dictionary:
    """A copy whose constants are in its weights.

    Args:
        dictionary: a fitted one.
        fold_norms: take decoder norms that weight ranks into the encoder; latents grow by them.

    Raises:
        InputError: it is not fitted, or holds numbers that are not finite.
    """
    dictionary.check_fitted()
    for name, value in dictionary.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{name} of this {type(dictionary).__name__} holds numbers that are not finite")
    made = copy.deepcopy(dictionary).cpu().float()
    if fold_norms and made.decoder_norm == "free":
        made.fold_decoder_norm()
    return made.fold_input_scale()


def subtract_bias(dictionary: Dictionary, subtract: bool) -> Dictionary:
    """Have the decoder's bias subtracted from the input, or not, with the encoder's biases changed to match."""
    if dictionary.apply_b_dec == subtract or not dictionary.autoencodes:
        return dictionary
    with torch.no_grad():
        moved = dictionary.b_dec.double() @ dictionary.W_enc.double()
        moved = moved if subtract else -moved
        rule = dictionary.rule
        if isinstance(rule, Gated):
            b_gate, b_mag, r_mag = (rule.get_parameter(name) for name in ("b_gate", "b_mag", "r_mag"))
            b_gate.copy_(b_gate.double() + moved)
            b_mag.copy_(b_mag.double() + r_mag.double().exp() * moved)
        elif dictionary.b_enc is None:
            dictionary.b_enc = nn.Parameter(moved.float())
        else:
            dictionary.b_enc.copy_(dictionary.b_enc.double() + moved)
    dictionary.apply_b_dec = subtract
    return dictionary


def thresholds(dictionary: Dictionary) -> Tensor:
    """(d_sae,) above which each latent is active.

    Raises:
        InputError: a BatchTopK dictionary was not trained, or the rule has no thresholds.
    """
    rule = dictionary.rule
    if isinstance(rule, BatchTopK):
        if rule.threshold is None:
            raise InputError("a BatchTopK dictionary has a threshold only after training")
        norms = dictionary.weights_of_latents().detach()
        return (rule.running.to(norms) / norms).expand(dictionary.d_sae).cpu().float().clone()
    if isinstance(rule, JumpReLU):
        return rule.threshold.cpu().float().clone()
    raise InputError(f"{type(rule).__name__} latents have no thresholds")


def parameters(dictionary: Dictionary) -> dict[str, Tensor]:
    """The parameters of a `portable` dictionary by the field's names; all but gated ones have a bias of the encoder."""
    made: dict[str, Tensor] = {"W_enc": dictionary.W_enc, "W_dec": dictionary.W_dec, "b_dec": dictionary.b_dec}
    rule = dictionary.rule
    if isinstance(rule, Gated):
        made |= {name: rule.get_parameter(name) for name in ("b_gate", "b_mag", "r_mag")}
    else:
        made["b_enc"] = dictionary.W_enc.new_zeros(dictionary.d_sae) if dictionary.b_enc is None else dictionary.b_enc
    if getattr(dictionary, "skips", False):
        made["W_skip"] = dictionary.get_parameter("W_skip")
    return {name: value.detach().contiguous().clone() for name, value in made.items()}


def write_folder(
    path: str | os.PathLike[str], weights: str, tensors: Mapping[str, Tensor], settings: str, values: Mapping[str, Any]
) -> Path:
    """Write a folder of one file of tensors (safetensors, or of `torch.save` where the name ends in .pt) and one of
    settings, each whole or not at all.

    Raises:
        InputError: the folder cannot be written, or the settings are nothing that JSON can hold.
    """
    from safetensors.torch import save_file

    folder = Path(path)
    try:
        text = json.dumps(dict(values), indent=2)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{weights}.partial"
        if weights.endswith(".pt"):
            torch.save(dict(tensors), partial)
        else:
            save_file(dict(tensors), partial)
        partial.replace(folder / weights)
        partial = folder / f"{settings}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / settings)
    except TypeError as error:
        raise InputError(f"what is known about this dictionary cannot be saved: {error}") from None
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    return folder


def active_count(dictionary: Dictionary) -> int:
    """k of a dictionary whose rule is TopK.

    Raises:
        InputError: it is another rule.
    """
    if not isinstance(dictionary.rule, TopK):
        raise InputError(f"{type(dictionary.rule).__name__} latents have no fixed number")
    return dictionary.rule.k  # type: ignore[return-value]
