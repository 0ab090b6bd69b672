"""Tigges et al., 2023: sentiment is one direction of the residual stream, and is summarised at punctuation."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    63,
    claim=(
        "In a language model of a small world sentiment is one direction of the residual stream that methods with and "
        "without labels agree on; removing it costs most of the accuracy above chance, which random directions do not, "
        "and removing it at punctuation alone costs a clear part."
    ),
)
CLAIMED = (
    "In GPT-2, Pythia and StableLM one direction, on which K-means, PCA, logistic regression, mean difference and "
    "alignment search agree (cosines up to about 0.9), captures sentiment; ablating it costs 76 % of the above-chance "
    "accuracy on the Stanford Sentiment Treebank, and ablating it at commas alone 36 %."
)
# As the card of the paper sets them for a small trained model.
AGREED, HELD_OUT, LOST, RANDOM, SUMMARISED = 0.9, 0.9, 0.7, 0.1, 0.15
SITES = "blocks.*.resid_post"
PUNCTUATION = {",", "."}
METHODS = ("mean_diff", "k_means", "logistic", "pca")


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Find directions at adjectives of training prompts, and patch and ablate them in held-out ones.

    In each seed half of the adjectives are used to find directions at every layer; the layer is the one at which
    exchanging the mean difference at all positions flips the answers of training prompts most. The claim holds if in
    every seed (1) K-means and mean difference have an absolute cosine above 0.9, (2) the mean difference puts more
    than 0.9 of the held-out adjectives on their side, (3) its mean ablation at all positions of held-out prompts
    costs more than 0.7 of the accuracy above chance, (4) none of 10 random directions costs as much as 0.1, and (5)
    ablating at commas and full stops alone, along the mean difference found there in the layer where exchanging it
    flips training prompts most, costs more than 0.15. An answer is right if the mean logit of the feelings of its
    side is the larger one.

    Args:
        seed: the first of the seeds of prompts and of the choice of adjectives.
        model: a causal language model with a tokenizer; the shipped `world:lm` by default.
        quick: 2 seeds with 64 prompts instead of 5 with 128, and alignment search on 16 pairs instead of 64.

    Raises:
        InputError: the model does not predict the next token, or its tokenizer does not fit the words.
    """
    model = ac.load("world:lm") if model is None else model
    if model.kind != "causal-lm":
        raise InputError(f"this experiment needs a causal language model, not {model.name}")
    seeds = range(seed, seed + (2 if quick else 5))
    runs = [_one(model, s, quick) for s in seeds]
    names = [name for name in runs[0] if name not in ("layers", "agreement")]
    measured: dict[str, Any] = {"model": model.name}
    measured |= {name: float(np.mean([run[name] for run in runs])) for name in names}
    least = {name: min(run[name] for run in runs) for name in names}
    measured["lost to the worst random direction, largest of the seeds"] = max(run[RANDOM_LOST] for run in runs)
    measured["lost by ablation, smallest of the seeds"] = least[ALL_LOST]
    measured["lost by ablation at punctuation, smallest of the seeds"] = least[PUNCTUATION_LOST]
    parts = {
        "K-means agrees with the mean difference": least["|cosine| of mean_diff and k_means"] > AGREED,
        "held-out adjectives lie on their side": least["held-out adjectives on their side"] > HELD_OUT,
        "ablation costs most of the accuracy": least[ALL_LOST] > LOST,
        "random directions do not": max(run[RANDOM_LOST] for run in runs) < RANDOM,
        "ablation at punctuation costs a clear part": least[PUNCTUATION_LOST] > SUMMARISED,
    }
    measured |= claims_of(parts)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Means over seeds. Prompts of the shipped world ('The film was dull, I hated it. I felt'), where feelings "
            "follow the judgement within a few tokens; the paper's effect of commas grows with the distance, which "
            "these prompts do not have. Effects are of exchanging the direction with that of the flipped prompt "
            "(1 a full flip). 'Carried' exchanges keys and values of punctuation alone. Films, plays and reviews of "
            "the Stanford Sentiment Treebank are not in this world."
        ),
        result=runs[0]["agreement"],
        settings={
            "seeds": f"{seeds[0]}-{seeds[-1]}",
            "model": model.name,
            "prompts": 64 if quick else 128,
            "layers, all positions": ", ".join(run["layers"][0] for run in runs),
            "layers, punctuation": ", ".join(run["layers"][1] for run in runs),
        },
    )


ALL_LOST = "lost by ablation at all positions"
PUNCTUATION_LOST = "lost by ablation at punctuation"
RANDOM_LOST = "lost to the worst of 10 random directions"


def _one(model: Any, seed: int, quick: bool) -> dict[str, Any]:
    """Directions, their agreement and their effects, in one seed."""
    n = 64 if quick else 128
    train = ac.world.tasks.sentiment(model, n=n, seed=seed, split="train")
    test = ac.world.tasks.sentiment(model, n=n, seed=seed)
    sides = _sides(model)
    words = ac.world.lexicon.POSITIVE + ac.world.lexicon.NEGATIVE
    fitted = {w for kind in (words[:16], words[16:]) for w in random.Random(f"{seed} {kind[0]}").sample(kind, 8)}
    spots = {name: _tokens(model, train, names) for name, names in (("fit", fitted), ("held", set(words) - fitted))}
    stops = _tokens(model, train, PUNCTUATION)
    rec = model.record(train.prompts(), SITES)

    adjectives = {site: _at(rec[site], spots["fit"], train, sides) for site in rec.sites}
    means = {site: ac.probes.find_direction(*adjectives[site]) for site in rec.sites}
    layer = _strongest(model, train, means, sides, None)
    x, y = adjectives[layer]
    found = {m: ac.probes.find_direction(x, y, m, seed) for m in METHODS}
    pairs = 16 if quick else 64
    found["das"] = ac.probes.patching_direction(
        model, train[:pairs], layer, sides=sides, lr=0.02, epochs=8, batch_size=8, seed=seed
    )
    agreement = ac.probes.direction_agreement(found | {"random": ac.probes.find_direction(x, y, "random", seed)})
    out: dict[str, Any] = {
        f"|cosine| of mean_diff and {m}": float(agreement["cosine"].sel(direction="mean_diff", other=m))
        for m in ("k_means", "logistic", "pca", "das", "random")
    }
    held = _at(rec[layer], spots["held"], train, sides)
    out["held-out adjectives on their side"] = found["mean_diff"].score(*held)
    for m in (*METHODS, "das"):
        patched = ac.probes.directional_patch(model, test, found[m], layer, sides=sides)
        out[f"effect of exchanging, {m}"] = float(patched["effect"])
    lost = ac.probes.direction_effect(model, test, found["mean_diff"], layer, sides=sides, random=10, seed=seed)
    out["accuracy"] = float(lost["clean"])
    out[ALL_LOST] = float(lost["lost_above_chance"])
    out[RANDOM_LOST] = float(lost["random_lost"].max())

    ends = {site: ac.probes.find_direction(*_at(rec[site], stops, train, sides)) for site in rec.sites}
    place = _strongest(model, train, ends, sides, PUNCTUATION)
    at_stops = ac.probes.direction_effect(
        model, test, ends[place], place, tokens=PUNCTUATION, sides=sides, random=10, seed=seed
    )
    out[PUNCTUATION_LOST] = float(at_stops["lost_above_chance"])
    out["lost at punctuation to the worst of 10 random directions"] = float(at_stops["random_lost"].max())
    summary = ac.probes.summarization_score(model, test, ends[place], place, neutral=PUNCTUATION, sides=sides)
    out["effect of exchanging at punctuation"] = float(summary["neutral"])
    out["effect of exchanging at the valenced words"] = float(summary["valenced"])
    out["effect carried by keys and values of punctuation"] = float(summary["carried"])
    return out | {"layers": (layer.split(".")[1], place.split(".")[1]), "agreement": agreement}


def _sides(model: Any) -> tuple[list[int], list[int]]:
    """Token ids of glad and of sad feelings that the tokenizer keeps whole."""
    sides = []
    for words in (ac.world.lexicon.GLAD, ac.world.lexicon.SAD):
        ids = model.tokenizer([f" {w}" for w in words], add_special_tokens=False)["input_ids"]
        sides.append([i[0] for i in ids if len(i) == 1 and i[0] != model.tokenizer.unk_token_id])
    return sides[0], sides[1]


def _tokens(model: Any, task: Any, words: set[str]) -> list[tuple[int, int]]:
    """Row and column of each token of a class in the clean prompts."""
    found = []
    for row in range(len(task)):
        start = int(task.mask[row].int().argmax())
        found += [(row, start + i) for i, token in enumerate(task.tokens(row)) if token.strip() in words]
    if not found:
        raise InputError("the prompts hold none of the words")
    return found


def _at(values: Tensor, spots: list[tuple[int, int]], task: Any, sides: Any) -> tuple[Tensor, Tensor]:
    """Activations at the tokens, and whether their prompts are glad."""
    rows, columns = torch.tensor(spots).T
    glad = torch.isin(task.answer_ids, torch.tensor(sides[0]))
    return values[rows, columns], glad[rows]


def _strongest(model: Any, task: Any, directions: dict[str, Any], sides: Any, tokens: set[str] | None) -> str:
    """The site where exchanging its direction flips the answers most."""
    effects = {
        site: float(ac.probes.directional_patch(model, task, d, site, tokens=tokens, sides=sides)["effect"])
        for site, d in directions.items()
    }
    return max(effects, key=lambda site: effects[site])
