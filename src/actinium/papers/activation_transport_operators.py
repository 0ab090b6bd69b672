"""Szablewski and Masiak, 2025: linear maps that carry the residual stream of one layer to a later one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import actinium as ac
from actinium.core.errors import InputError
from actinium.core.result import Result
from actinium.papers.contract import Evidence, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    112,
    claim=(
        "A linear map predicts the residual stream of a later layer from that of an earlier one, better than the "
        "earlier stream itself does; what it carries, of the whole stream and of single features, falls with the "
        "distance between the layers; and one layer on, putting it in place costs the model little."
    ),
)
CLAIMED = (
    "Gemma 2 2B, layers 5 to 13, distances 1 to 8: features that are carried over have a high R2 and new ones do not; "
    "most linear transport is over short distances and in earlier layers; replacing the stream raises perplexity "
    "little."
)
NEAR, FAR = 1, 3
# Zeroing the stream must raise the loss more than this many times as much as transporting it.
CHEAPER = 3.0
TOP_TOKENS, COMPONENTS = 64, 16
LINES = (("ceiling", "ceiling"), ("feature_r2", "features"))
KINDS = ("city", "country", "job", "pet")


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Fit ridge operators between layers one and three apart, score features, and put operators in place.

    For each seed (texts) and each layer l examined: the ceiling and the mean R2 of features must be higher for
    distance 1 than for 3; ridge must have a higher R2 than the identity at both; and on held-out texts the rise of the
    loss with T h + b in place of the next layer's stream must be less than a third of that with zero. The claim
    holds if all do in all seeds and layers.

    Args:
        seed: the first seed of the texts.
        model: a causal language model with a tokenizer and at least 4 blocks; the shipped `world:lm` by default.
        quick: 3 seeds, 300 texts and 3 layers, instead of 5 seeds, 1500 texts and all layers.

    Raises:
        InputError: the model does not predict the next token, or has fewer than 4 blocks.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm" or model.n_layers < FAR + 1:
        raise InputError(f"this experiment needs a causal language model of {FAR + 1} blocks or more, not {model.name}")
    last = model.n_layers - FAR
    layers = sorted({0, last // 2, last}) if quick else list(range(last + 1))
    seeds = range(seed, seed + (3 if quick else 5))
    found = [_one(model, s, layers, 300 if quick else 1500) for s in seeds]
    data = xr.concat(found, dim="seed").assign_coords(seed=list(seeds))
    mean = data.mean("seed")
    near, far = data.sel(distance=NEAR), data.sel(distance=FAR)
    parts = {
        "the ceiling falls with distance": bool((near["ceiling"] > far["ceiling"]).all()),
        "the R2 of features falls with distance": bool((near["feature_r2"] > far["feature_r2"]).all()),
        "ridge is above the identity": bool((data["r2"] > data["identity_r2"]).all()),
        "transporting is cheaper than zeroing": bool((data["zero_rise"] > CHEAPER * data["operator_rise"]).all()),
    }
    measured: dict[str, Any] = {"model": model.name, "rows per fit": int(data["rows"].min())}
    for name, label in (("ceiling", "ceiling"), ("r2", "R2, ridge"), ("identity_r2", "R2, identity")):
        for distance in (NEAR, FAR):
            measured[f"{label}, distance {distance}"] = float(mean[name].sel(distance=distance).mean())
    for group in data["group"].values:
        for distance in (NEAR, FAR):
            value = mean["group_r2"].sel(group=group, distance=distance).mean()
            measured[f"R2 of {group}, distance {distance}"] = float(value)
    for name in ("operator", "identity", "null", "zero"):
        measured[f"rise of the loss, {name} (nats)"] = float(mean[f"{name}_rise"].mean())
    measured["dim_lin, distance 1"] = float(mean["dim_lin"].sel(distance=NEAR).mean())
    measured[f"ceiling at distance 1, layer {layers[0]}"] = float(mean["ceiling"].sel(distance=NEAR)[0])
    measured[f"ceiling at distance 1, layer {layers[-1]}"] = float(mean["ceiling"].sel(distance=NEAR)[-1])
    measured |= {f"claim: {name}": value for name, value in parts.items()}
    lines = {
        f"{what}, distance {d}": mean[name].sel(distance=d, drop=True) for d in (NEAR, FAR) for name, what in LINES
    }
    drawn = xr.Dataset(lines, attrs={"plot": {"kind": "line", "variables": list(lines), "ylabel": "R2"}})
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "The features are known directions in place of a sparse autoencoder's: unembedding rows of the most "
            f"frequent {TOP_TOKENS} tokens, {COMPONENTS} principal components of the later layer, and for world:lm "
            "differences of means between tokens of a kind and all others. R2 on held-out texts, first tokens left "
            "out; ceilings of the training texts. That transport falls with depth is not part of what is judged: at "
            "layer 0 the stream is the embedding alone, from which attention takes the model furthest. Texts are "
            "drawn from the mixture that world:lm is trained on; for another model they are foreign."
        ),
        result=Result(drawn, "linear transport", PAPER.slug),
        settings={"seeds": f"{seeds[0]}-{seeds[-1]}", "model": model.name, "layers": str(layers)},
    )


def _one(model: Any, seed: int, layers: list[int], count: int) -> xr.Dataset:
    """All measures of one draw of texts, by layer and distance."""
    documents = ac.world.corpus.documents(random.Random(f"transport {seed}"), count)
    texts = [document.text for document in documents]
    cut = count * 5 // 7
    entered = sorted({layer + step for layer in layers for step in (0, NEAR, FAR)})
    # What enters a layer is what leaves the one below; only the last one's output is no layer's input.
    name_of = {i: f"blocks.{i}.resid_pre" if i < model.n_layers else f"blocks.{i - 1}.resid_post" for i in entered}
    train, test = (model.record(part, list(name_of.values())) for part in (texts[:cut], texts[cut:]))
    shape = (len(layers), 2)
    single = ("ceiling", "dim_lin", "r2", "identity_r2", "feature_r2")
    values = {name: np.zeros(shape) for name in single}
    rises = {name: np.zeros(len(layers)) for name in ("operator", "identity", "null", "zero")}
    groups: list[str] = []
    by_group = []
    rows = 0
    for i, layer in enumerate(layers):
        for j, distance in enumerate((NEAR, FAR)):
            ends = name_of[layer], name_of[layer + distance]
            x, y = ac.circuits.transport_pairs(train, *ends)
            x_test, y_test = ac.circuits.transport_pairs(test, *ends)
            rows = len(x)
            op = ac.circuits.TransportOperator().fit(x, y)
            same = ac.circuits.TransportOperator("identity").fit(x, y)
            ceiling = ac.circuits.cca_ceiling(x, y)
            decoder, of = _features(model, train, y)
            scores = ac.circuits.feature_transport_scores(op, x_test, y_test, decoder)["r2"].values
            groups = list(dict.fromkeys(of))
            by_group.append([np.mean(scores[np.array(of) == g]) for g in groups])
            values["ceiling"][i, j] = float(ceiling["ceiling"][-1])
            values["dim_lin"][i, j] = float(ceiling["dim_lin"])
            values["r2"][i, j] = op.score(x_test, y_test)
            values["identity_r2"][i, j] = same.score(x_test, y_test)
            values["feature_r2"][i, j] = float(scores.mean())
            if distance == NEAR:
                loss = ac.circuits.transport_loss(model, op, texts[cut : cut + 24], *ends)["rise"]
                for name in rises:
                    rises[name][i] = float(loss.sel(run=name))
    data: dict[str, Any] = {name: (("layer", "distance"), value) for name, value in values.items()}
    data |= {f"{name}_rise": (("layer",), value) for name, value in rises.items()}
    data["group_r2"] = (("layer", "distance", "group"), np.array(by_group).reshape(*shape, -1))
    data["rows"] = ((), rows)
    return xr.Dataset(data, coords={"layer": layers, "distance": [NEAR, FAR], "group": groups})


def _features(model: Any, train: Any, y: Tensor) -> tuple[Tensor, list[str]]:
    """Directions of the later layer (feature, d) and the group of each."""
    ids = train.tokens[train.mask & (train.mask.int().cumsum(1) > 1)]
    frequent = torch.bincount(ids).argsort(descending=True)[:TOP_TOKENS]
    unembedding = model.module.get_output_embeddings().weight.detach()[frequent].double()
    parts = [(unembedding, "unembedding rows"), (ac.circuits.pca_directions(y, COMPONENTS), "principal components")]
    concepts = []
    for kind in KINDS:
        words = model.tokenizer([f" {w}" for w in ac.world.lexicon.ENTITIES[kind]], add_special_tokens=False)[
            "input_ids"
        ]
        whole = torch.tensor([w[0] for w in words if len(w) == 1 and w[0] != model.tokenizer.unk_token_id])
        of = torch.isin(ids, whole)
        if len(whole) == len(words) and 0 < int(of.sum()) < len(of):
            concepts.append(ac.circuits.mean_difference(y, of))
    if concepts:
        parts.append((torch.stack(concepts), "kinds of words"))
    return torch.cat([p for p, _ in parts]), [group for p, group in parts for _ in range(len(p))]
