"""Lan et al., 2024: features of sparse autoencoders of two models lie alike if both learnt the same language."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import actinium as ac
from actinium.core.errors import InputError
from actinium.papers.contract import Evidence, claims_of, verdict_of
from actinium.papers.registry import paper

__all__ = ["PAPER", "reproduce"]

PAPER = paper(
    60,
    claim=(
        "Of two transformers trained from different seeds on one language, matched features of sparse autoencoders lie "
        "more alike (SVCCA, RSA) than shuffled pairs do, more than with a model of another language, and hardly at all "
        "with an untrained model."
    ),
)
CLAIMED = (
    "SVCCA and RSA of matched SAE features are well above those of unmatched ones for the residual streams of Pythia "
    "70m and 160m and of Gemma 1 2B and 2 2B, most in middle layers; concept subspaces are often more alike than the "
    "whole."
)
MEASURES = ("svcca", "rsa")
# Set before anything was measured: level of the tests, and the excess over the null, as a share of that of two seeds,
# below which an untrained model is near the null.
LEVEL, NEAR = 0.05, 0.25
# The language: classes of words that follow each other by a Markov chain, words drawn by the topic of the sentence.
CLASSES, WORDS, TOPICS, FOLLOW, LENGTH = 12, 8, 4, 3, 24
BOS, STOP = 0, 1
WIDTH, BLOCKS, MIDDLE = 32, 3, 1
EXPANSION, ACTIVE = 8, 8
PAIRS = (("A", "B"), ("A", "other"), ("A", "untrained"))


def reproduce(seed: int = 0, model: Any = None, quick: bool = True) -> Evidence:
    """Train tiny transformers and dictionaries, match features by correlation, and compare their directions.

    A and B learn one language from different seeds, `other` learns a language of the same words in other classes and
    another order, `untrained` has its first weights. All read the same 200 sentences of A's language; a TopK
    autoencoder of eight times the width is trained on each residual stream after the middle block. Pairs are one to
    one, correlate above 0.1 with ten common activations, share a top token and have no junk among their five. In every
    draw (1) SVCCA and RSA of A and B have p < 0.05 against 100 shuffled pairings, (2) both are above those of A and
    `other`, (3) the excess over the null of A and `untrained` is below a quarter of that of A and B, and (4) of the
    concepts (three groups of four classes) with ten pairs more than half have p < 0.05 in RSA.

    Args:
        seed: first seed of languages, models and dictionaries.
        model: none, for the experiment trains its own.
        quick: one draw of models instead of three, and without the comparison of every layer with every other.

    Raises:
        InputError: a model is given.
    """
    if model is not None:
        raise InputError(
            "this experiment trains its own models; for two of yours call ac.compare.match_features_by_correlation and "
            "ac.compare.feature_space_similarity"
        )
    draws = [_draw(s) for s in range(seed, seed + (1 if quick else 3))]
    measured: dict[str, Any] = {}
    for name in ("A", "B", "other", "untrained"):
        measured[f"loss on A's language, {name} (nats)"] = _mean(d["loss"][name] for d in draws)
    measured["variance explained by the dictionaries"] = _mean(v for d in draws for v in d["explained"].values())
    for pair in PAIRS:
        title = " and ".join(pair)
        found = [d["compared"][pair] for d in draws]
        measured[f"{title}: matched pairs"] = _mean(float(f["pairs"]) for f in found)
        measured[f"{title}: mean correlation"] = _mean(d["correlation"][pair] for d in draws)
        for measure in MEASURES:
            for value in ("score", "null_mean", "p"):
                name = f"{title}: {measure}, {value.replace('_', ' ')}"
                measured[name] = _mean(float(f[value].sel(measure=measure)) for f in found)
            measured[f"{title}: {measure}, score over the null"] = _mean(_excess(f, measure) for f in found)
    concepts = [p for d in draws for p in d["concepts"]]
    measured["concepts with ten pairs"] = len(concepts)
    measured["concepts more alike than shuffled (RSA)"] = sum(p < LEVEL for p in concepts)
    parts = _parts(draws, concepts)
    if not quick:
        measured |= _layers(draws[0])
    measured |= claims_of(parts)
    return Evidence(
        measured=measured,
        claimed=CLAIMED,
        holds=verdict_of(parts),
        notes=(
            "Models of three blocks and width 32 on sentences of 98 words; the paper's are language models of the same "
            "texts with published autoencoders. SVCCA compares the share of the variance with 99 %, which the paper's "
            "program does not, and p counts the score itself. Pairs of models have different numbers of matched "
            "features, and SVCCA alone is larger the fewer there are: the score over the null is what can be compared."
        ),
        result=_figure(draws[0]),
        settings={"first seed": seed, "draws": len(draws), "width": WIDTH, "latents": EXPANSION * WIDTH, "k": ACTIVE},
    )


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _excess(result: Any, measure: str) -> float:
    chosen = result.data.sel(measure=measure)
    return float(chosen["score"] - chosen["null_mean"])


def _parts(draws: list[dict[str, Any]], concepts: list[float]) -> dict[str, bool | None]:
    """Whether each part of the claim shows in every draw."""

    def every(test: Any) -> bool:
        return all(test(d["compared"], measure) for d in draws for measure in MEASURES)

    same, other, untrained = PAIRS
    return {
        "two seeds are more alike than shuffled pairs": every(lambda c, m: float(c[same]["p"].sel(measure=m)) < LEVEL),
        "another language is less alike": every(
            lambda c, m: float(c[same]["score"].sel(measure=m)) > float(c[other]["score"].sel(measure=m))
        ),
        "an untrained model is near the null": every(
            lambda c, m: _excess(c[untrained], m) < NEAR * _excess(c[same], m)
        ),
        "concepts are alike": sum(p < LEVEL for p in concepts) > len(concepts) / 2 if concepts else None,
    }


class _Language:
    """Sentences of words in classes; the words are the same in every language, their classes are not."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        order = torch.randperm(CLASSES * WORDS, generator=self.random)
        self.words = order.view(CLASSES, WORDS) + 2
        following = torch.rand(CLASSES, CLASSES, generator=self.random).argsort(1)[:, :FOLLOW]
        chances = torch.rand(CLASSES, FOLLOW, generator=self.random) + 0.2
        self.steps = torch.zeros(CLASSES, CLASSES).scatter(1, following, chances)
        # Each topic prefers two of the eight words of every class.
        favoured = torch.arange(WORDS) // (WORDS // TOPICS) == torch.arange(TOPICS)[:, None]
        self.chances = torch.where(favoured, 0.4, 0.2 / (WORDS - 2))

    def sentences(self, count: int) -> Tensor:
        """(count, LENGTH + 2) token ids, from the beginning to the full stop."""
        now = torch.randint(CLASSES, (count,), generator=self.random)
        topic = torch.randint(TOPICS, (count,), generator=self.random)
        ids = [torch.full((count,), BOS)]
        for _ in range(LENGTH):
            word = torch.multinomial(self.chances[topic], 1, generator=self.random)[:, 0]
            ids.append(self.words[now, word])
            now = torch.multinomial(self.steps[now], 1, generator=self.random)[:, 0]
        return torch.stack([*ids, torch.full((count,), STOP)], 1)

    def concepts(self) -> list[list[str]]:
        """The words of three groups of classes."""
        return [[str(int(w)) for w in group.flatten()] for group in self.words.split(CLASSES // 3)]


def _model(seed: int) -> ac.Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": BLOCKS}
        words = {"num_attention_heads": 4, "vocab_size": CLASSES * WORDS + 2, "max_position_embeddings": LENGTH + 2}
        module = LlamaForCausalLM(LlamaConfig(**sizes, **words, bos_token_id=BOS, eos_token_id=STOP))
    return ac.Model(module.eval(), name=f"seed {seed}")


def _trained(seed: int, language: _Language) -> ac.Model:
    model = _model(seed)
    optimiser = torch.optim.AdamW(model.module.parameters(), lr=4e-3, weight_decay=0.01)
    steps = 160
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(steps):
        optimiser.zero_grad()
        model.loss(language.sentences(32)).backward()
        optimiser.step()
        schedule.step()
    return model


def _draw(seed: int) -> dict[str, Any]:
    """Models, dictionaries and comparisons of one seed."""
    first, second = _Language(1000 + seed), _Language(2000 + seed)
    models = {
        "A": _trained(10 * seed, first),
        "B": _trained(10 * seed + 1, first),
        "other": _trained(10 * seed + 2, second),
        "untrained": _model(10 * seed + 3),
    }
    ids = first.sentences(200)
    read = {name: _dictionary(model, ids, MIDDLE, seed) for name, model in models.items()}
    with torch.no_grad():
        losses = {name: float(model.loss(ids)) for name, model in models.items()}
    compared, correlation = {}, {}
    for pair in PAIRS:
        matches = _matches(*(read[name] for name in pair))
        compared[pair] = _similarity(*(read[name] for name in pair), matches, MEASURES, seed)
        correlation[pair] = float(matches["correlation"].mean())
    kinds = [_matches(read["A"], read["B"], words) for words in first.concepts()]
    concepts = [_similarity(read["A"], read["B"], m, ["rsa"], seed) for m in kinds if m["a"].size >= 10]
    return {
        "models": models,
        "ids": ids,
        "seed": seed,
        "loss": losses,
        "explained": {name: r["explained"] for name, r in read.items()},
        "compared": compared,
        "correlation": correlation,
        "concepts": [float(found["p"][0]) for found in concepts],
    }


def _dictionary(model: ac.Model, ids: Tensor, layer: int, seed: int) -> dict[str, Any]:
    """Directions, activations on the sentences (without their first token) and top tokens of a trained dictionary."""
    site = f"blocks.{layer}.resid_post"
    rows = ac.features.token_rows(model, ids, site).values
    sae = ac.features.TopKSAE(EXPANSION * WIDTH, k=ACTIVE, b_dec_init="mean", seed=seed)
    sae.fit(rows, batch_size=256, rows=200 * 256, seed=seed)
    codes = sae.transform(rows)
    tokens = [str(int(i)) for i in ids[:, 1:].flatten()]
    return {
        "directions": sae.W_dec.detach(),
        "codes": codes,
        "tokens": ac.compare.top_tokens(codes, tokens),
        "explained": sae.score(rows),
    }


def _matches(a: dict[str, Any], b: dict[str, Any], keywords: list[str] | None = None) -> Any:
    found = ac.compare.match_features_by_correlation(a["codes"], b["codes"], one_to_one=True)
    return ac.compare.filter_matches(found, a["tokens"], b["tokens"], junk=[str(STOP)], keywords=keywords)


def _similarity(a: dict[str, Any], b: dict[str, Any], matches: Any, measures: Any, seed: int) -> Any:
    directions = a["directions"], b["directions"]
    return ac.compare.feature_space_similarity(*directions, matches, measures, n_perm=100, seed=seed)


def _layers(draw: dict[str, Any]) -> dict[str, float]:
    """SVCCA of every layer of A with every layer of B."""
    read = {
        (name, layer): _dictionary(draw["models"][name], draw["ids"], layer, draw["seed"])
        for name in ("A", "B")
        for layer in range(BLOCKS)
    }
    out = {}
    for i in range(BLOCKS):
        for j in range(BLOCKS):
            pair = read["A", i], read["B", j]
            found = _similarity(*pair, _matches(*pair), ["svcca"], draw["seed"])
            out[f"svcca, layer {i} of A and {j} of B"] = float(found["score"][0])
    return out


def _figure(draw: dict[str, Any]) -> Any:
    """Scores and nulls of each pair of models."""
    names = [" and ".join(pair) for pair in PAIRS]
    found = [draw["compared"][pair] for pair in PAIRS]
    data = {
        f"{measure}, {title}": (("models",), np.array([float(f[value].sel(measure=measure)) for f in found]))
        for measure in MEASURES
        for value, title in (("score", "matched"), ("null_mean", "shuffled"))
    }
    hints = {"plot": {"kind": "bar", "variables": list(data), "ylabel": "similarity"}}
    return ac.Result(xr.Dataset(data, {"models": names}, hints), "feature_space_similarity", "sae-universality")
