"""Value vectors of MLP units that write a direction: which units they are, what they write, and shifting them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.edits import Add, Edit, Replace, Scale
from actinium.core.errors import InputError, SiteError, UnknownNameError, unknown
from actinium.core.inputs import Tokens
from actinium.core.maps import weight_after
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result

__all__ = ["activation_drop", "concept_value_vectors", "predicting_activations", "shift_neurons", "value_vectors"]

KEEP = ("all", "positive")
PAPER = "toxic-vectors-dual-multilinguality"
Neurons = Sequence[tuple[int, int]]


def value_vectors(model: Model, layer: int) -> Tensor:
    """What each unit of an MLP writes for an activation of 1: (d_mlp, d_model).

    Raises:
        SiteError: the block has no MLP units that can be read.
        InputError: they do not enter one linear map.
    """
    return weight_after(model, f"blocks.{layer}.mlp.post").T


def concept_value_vectors(
    model: Model,
    direction: Tensor,
    *,
    top: int = 100,
    prompts: Any = None,
    new_tokens: int = 20,
    keep: str = "positive",
    words: int = 8,
) -> Result:
    """The units of all MLPs whose value vectors point most along a direction of the residual stream.

    Args:
        model: a decoder whose MLPs are known.
        direction: (d_model,), for example the weights of a probe.
        top: candidates by cosine.
        prompts: texts or tokens to be continued greedily; without them no activations are measured and all candidates
            are kept.
        new_tokens: generated for each prompt; activations are averaged over the positions that predict them.
        keep: "positive" (candidates with a positive mean activation, the actual sources) or "all".
        words: tokens named for each unit, those whose logits its value vector raises most (through the final norm).

    Returns:
        Result over unit, in order of cosine: `cosine`, `mean_activation` (with prompts), `words`; coordinates `layer`
        and `neuron`. `candidates` is their number before the choice.

    Raises:
        InputError: the direction is not finite, zero or of another width; `top` or `new_tokens` is below 1.
        UnknownNameError: there is no such choice.
        SiteError: the model has no MLP units that can be read.

    Source: Li et al., 2024, sections 4.1 and 4.2.
    """
    if keep not in KEEP:
        raise UnknownNameError(unknown("choice of units", keep, KEEP))
    if top < 1 or new_tokens < 1:
        raise InputError(f"top and new_tokens must be at least 1, not {top} and {new_tokens}")
    if not model.has("blocks.*.mlp.post"):
        raise SiteError(f"{model.name} has no MLP units that can be read")
    wanted = torch.as_tensor(direction).detach().double().cpu()
    if wanted.shape != (model.d_model,) or not bool(torch.isfinite(wanted).all()) or not float(wanted.norm()):
        raise InputError(f"expected a direction ({model.d_model},), finite and not zero, not {tuple(wanted.shape)}")
    layers = [int(site.layer or 0) for site in model.sites("blocks.*.mlp.post")]
    vectors = [value_vectors(model, layer).detach().double().cpu() for layer in layers]
    cosines = torch.stack([v @ wanted / (v.norm(dim=1) * wanted.norm()).clamp_min(1e-30) for v in vectors])
    best = cosines.flatten().topk(min(top, cosines.numel()))
    width = cosines.shape[1]
    units = [(layers[int(i) // width], int(i) % width) for i in best.indices]
    order = {layer: row for row, layer in enumerate(layers)}
    data: dict[str, Any] = {"cosine": (("unit",), best.values.numpy())}
    chosen = np.ones(len(units), dtype=bool)
    if prompts is not None:
        means = predicting_activations(model, prompts, new_tokens)
        own = np.array([float(means[order[layer], neuron]) for layer, neuron in units])
        data["mean_activation"] = (("unit",), own)
        chosen = own > 0 if keep == "positive" else chosen
    read = [" ".join(_raised(model, vectors[order[layer]][neuron], words)) for layer, neuron in units]
    data["words"] = (("unit",), np.array(read, dtype=object))
    coords = {
        "unit": [f"{layer}.{neuron}" for layer, neuron in units],
        "layer": ("unit", [layer for layer, _ in units]),
        "neuron": ("unit", [neuron for _, neuron in units]),
    }
    dataset = xr.Dataset(data, coords=coords).isel(unit=chosen)
    dataset["candidates"] = ((), len(units))
    dataset.attrs["plot"] = {"kind": "bar", "variables": ["cosine"]}
    settings = {"top": top, "keep": keep, "new_tokens": new_tokens, "direction": wanted}
    given = None if prompts is None else dict(model.prepare(prompts).arguments)
    return Result(dataset, "concept_value_vectors", PAPER, provenance(model, given, **settings))


def _raised(model: Model, vector: Tensor, words: int) -> list[str]:
    """The tokens whose logits a direction of the stream raises most."""
    with torch.no_grad():
        logits = model.unembed(vector.to(model.device, model.dtype)[None])[0]
        logits = logits - model.unembed(torch.zeros_like(vector, dtype=model.dtype, device=model.device)[None])[0]
    ids = logits.topk(words).indices
    return [str(int(i)) for i in ids] if model.tokenizer is None else [w.strip() for w in model.to_str_tokens(ids)]


def predicting_activations(model: Model, prompts: Any, new_tokens: int = 20) -> Tensor:
    """Mean activation (layer, d_mlp) of every MLP unit at the positions that predict greedily generated tokens.

    These are the last position of each prompt and those of the new tokens but the last.

    Args:
        model: a model that generates.
        prompts: texts or tokens (batch, pos).
        new_tokens: generated for each.

    Raises:
        InputError: the model cannot generate, or there are no prompts.

    Source: Li et al., 2024, section 4.2.
    """
    tokens = _tokens(model, prompts)
    length = tokens.mask.sum(1)
    with torch.no_grad(), model.recording("blocks.*.mlp.post") as rec:
        out = model.generate(tokens, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
    places = torch.arange(out.shape[1] - 1)
    start = tokens.ids.shape[1] - 1
    if int(length.min()) < 1:
        raise InputError("a prompt is empty")
    wanted = (places >= start) & (places < start + new_tokens)
    return torch.stack([rec[name][:, wanted[: rec[name].shape[1]]].double().mean((0, 1)).cpu() for name in rec.sites])


def _tokens(model: Model, prompts: Any) -> Tokens:
    if isinstance(prompts, Tokens):
        return prompts
    if isinstance(prompts, Tensor):
        return Tokens(prompts, torch.ones_like(prompts, dtype=torch.bool), torch.arange(len(prompts)))
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise InputError("no prompts given")
    return model.to_tokens(texts)


@contextmanager
def shift_neurons(
    model: Model,
    neurons: Neurons,
    *,
    delta: float | None = None,
    scale: float | None = None,
    value: float | None = None,
) -> Iterator[Model]:
    """Change the activations of single MLP units for the block, at every position, `generate` included.

    In a gated MLP the product of gate and linear branch is changed.

    Args:
        model: the model.
        neurons: pairs of layer and unit.
        delta: what is added to them.
        scale: what they are multiplied with.
        value: what they are set to. One of the three is given.

    Raises:
        InputError: none or several of them are given, there are no units, or a unit does not exist.

    Source: Li et al., 2024, section 4.3.
    """
    given = [v for v in (delta, scale, value) if v is not None]
    if len(given) != 1:
        raise InputError("give one of delta, scale and value")
    edit: Edit = (
        Add(torch.tensor(delta))
        if delta is not None
        else Replace(torch.tensor(value))
        if value is not None
        else Scale(scale)
    )  # type: ignore[arg-type]
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in neurons:
        by_layer.setdefault(int(layer), []).append(int(neuron))
    if not by_layer:
        raise InputError("no units given; pass pairs of layer and unit")
    with model.edit({f"blocks.{layer}.mlp.post": edit.at(units=units) for layer, units in by_layer.items()}):
        yield model


def activation_drop(
    before: Model, after: Model, prompts: Mapping[str, Any], neurons: Neurons, new_tokens: int = 20
) -> Result:
    """Mean activation of units before and after tuning, for each group of prompts (such as languages).

    Args:
        before, after: models of one architecture.
        prompts: {group: texts or tokens}, continued by each model.
        neurons: pairs of layer and unit.
        new_tokens: as in `predicting_activations`.

    Returns:
        Result over group and unit: `before`, `after`, `drop`; and over unit `cosine`, of its value vectors in the two
        models.

    Raises:
        InputError: there are no groups or units, a unit does not exist, or the models differ in shape.

    Source: Li et al., 2024, section 4.4.
    """
    if not prompts or not neurons:
        raise InputError("groups of prompts and units are needed")
    if (before.n_layers, before.d_model) != (after.n_layers, after.d_model):
        raise InputError(f"{before.name} and {after.name} differ in shape, so their units are not the same")
    pairs = [_unit(before, layer, neuron) for layer, neuron in neurons]
    found = {
        name: np.array([[float(m[layer, unit]) for layer, unit in pairs] for m in _means(model, prompts, new_tokens)])
        for name, model in (("before", before), ("after", after))
    }
    cosines = [
        float(torch.cosine_similarity(*(value_vectors(m, layer)[unit].double() for m in (before, after)), dim=0))
        for layer, unit in pairs
    ]
    data = {name: (("group", "unit"), value) for name, value in found.items()}
    data["drop"] = (("group", "unit"), found["before"] - found["after"])
    dataset = xr.Dataset(
        data | {"cosine": (("unit",), cosines)},
        coords={"group": list(prompts), "unit": [f"{layer}.{unit}" for layer, unit in pairs]},
        attrs={"plot": {"variables": ["drop"]}},
    )
    about = provenance(after, None, before=before.fingerprint(), new_tokens=new_tokens)
    return Result(dataset, "activation_drop", PAPER, about)


def _means(model: Model, prompts: Mapping[str, Any], new_tokens: int) -> list[Tensor]:
    return [predicting_activations(model, given, new_tokens) for given in prompts.values()]


def _unit(model: Model, layer: int, neuron: int) -> tuple[int, int]:
    """The unit, if it exists."""
    if not 0 <= layer < model.n_layers or not 0 <= neuron < len(value_vectors(model, layer)):
        raise InputError(f"there is no unit {neuron} in layer {layer} of {model.name}")
    return layer, neuron
