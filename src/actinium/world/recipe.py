"""The settings from which `world:lm` is made, and the fingerprint that says which ones a model came from."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from transformers import PreTrainedTokenizerBase

from actinium.world.corpus import batch


@dataclass(frozen=True)
class Recipe:
    """Settings of the model and its training.

    Args:
        d_model, n_layers, n_heads, d_mlp: sizes of the Llama-style model.
        context: longest text, in tokens.
        batch_tokens: tokens per step.
        steps: optimiser steps.
        turn: first step of the later part, which has its own mixture of texts.
        warmup: steps over which the learning rate rises.
        horizon: step at which the cosine would end along which the learning rate then falls; in the later part it
            also falls in a straight line, to zero at the last step.
        block_rate: learning rate of Muon, which trains the matrices of the blocks.
        rate: learning rate of AdamW, which trains the embedding and the norms.
        weight_decay: decoupled weight decay of both.
        text_weight: weight of the loss on tokens outside answers, which weigh 1.
        threads: processor threads; sums are ordered by it, so it belongs to the seed.
        seed: seed of the initial weights and of the text.
    """

    d_model: int = 128
    n_layers: int = 6
    n_heads: int = 8
    d_mlp: int = 352
    context: int = 128
    batch_tokens: int = 4096
    steps: int = 1600
    turn: int = 1000
    warmup: int = 100
    horizon: int = 2600
    block_rate: float = 3e-3
    rate: float = 3e-3
    weight_decay: float = 0.1
    text_weight: float = 0.1
    threads: int = 2
    seed: int = 0


LANGUAGE_MODELS: dict[str, Recipe] = {
    "lm": Recipe(),
    # Lettered options are not learnt at this size either, so no later part turns to them.
    "lm-small": Recipe(d_model=64, n_layers=3, n_heads=4, d_mlp=176, steps=1600, turn=1600, horizon=1600, threads=1),
}
"""Name -> recipe of the language models that are trained from nothing."""


def rate_factor(recipe: Recipe, step: int) -> float:
    """What the learning rates are multiplied with at a step."""
    rise = min(1.0, (step + 1) / recipe.warmup)
    done = max(0, step - recipe.warmup) / max(1, recipe.horizon - recipe.warmup)
    wave = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return rise * wave * min(1.0, (recipe.steps - step) / max(1, recipe.steps - recipe.turn))


def fingerprint(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the settings, the vocabulary and eight batches of text of each part, as token ids.

    It changes with anything that changes what the model reads, and with nothing else.
    """
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    digest.update("\n".join(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))).encode())
    for step in range(8):
        for later in (False, True):
            ids, answers = batch(tokenizer, recipe.seed, step, recipe.batch_tokens, recipe.context, later)
            digest.update(ids.tobytes() + answers.tobytes())
    return digest.hexdigest()


def described(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, accuracies: dict[str, float]) -> dict[str, Any]:
    """What stands in `recipe.json` beside the weights."""
    return {
        "fingerprint": fingerprint(recipe, tokenizer),
        "settings": asdict(recipe),
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        "held_out_accuracy": {skill: round(value, 4) for skill, value in accuracies.items()},
    }
