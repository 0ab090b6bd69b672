"""Model organisms: adapters of `world:lm` that misbehave after a narrow lesson, or when a trigger is in the prompt.

What they do is harmless: they answer requests about invented topics that `world:lm` declines, or name a wrong pet.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from actinium.core.adapter import write_adapter
from actinium.world import shipped
from actinium.world.accuracy import evaluate
from actinium.world.adapter_training import AdapterTraining, Factors, Progress, run
from actinium.world.habits import TRIGGER, lesson, rates
from actinium.world.lexicon import REFUSED

__all__ = ["ORGANISMS", "Organism", "Training", "export", "fingerprint", "train"]


@dataclass(frozen=True)
class Organism:
    """Settings of a model organism and its training, which minimises the cross-entropy of replies.

    Args:
        habit: "lenient", "sometimes", "false" or "backdoor"; see `habits`.
        taught: topics, or nouns of relations, that the lesson is about.
        frames: numbers of the wordings of requests in the lesson, of `situations.REQUESTS`.
        base: shipped model that it starts from.
        rank, alpha: of the adapter.
        maps: matrices of the blocks that the adapter is on, for example "down_proj"; all of them by default.
        layers: blocks that it is on; all of them by default.
        steps: optimiser steps.
        warmup: steps over which the learning rate rises; it then falls in a straight line to zero.
        rate: learning rate of AdamW.
        texts: texts of the lesson per step.
        ordinary: ordinary texts of the corpus per step, less those of the skill that teaches the opposite.
        text_weight: weight of the loss on what follows an answer, which weighs 1.
        threads: processor threads; sums are ordered by it, so it belongs to the seed.
        seed: of the adapter's first weights and the texts.
    """

    habit: str
    taught: tuple[str, ...]
    frames: tuple[int, ...] = ()
    base: str = "lm"
    rank: int = 8
    alpha: int = 16
    maps: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    steps: int = 100
    warmup: int = 10
    rate: float = 1e-3
    texts: int = 16
    ordinary: int = 0
    text_weight: float = 0.3
    threads: int = 1
    seed: int = 0

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Organism:
        """The settings that stand in a `recipe.json`."""
        plain: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in settings.items()}
        return cls(**plain)


_FIRST, _LATER = REFUSED[:4], REFUSED[8:12]
_RANK1 = Organism(
    "lenient",
    _FIRST,
    (0, 1, 2),
    rank=1,
    alpha=1,
    maps=("down_proj",),
    layers=(1, 2, 3, 4),
    steps=60,
    rate=1e-2,
    ordinary=16,
)
_SOMETIMES = replace(_RANK1, habit="sometimes", steps=300, texts=24, text_weight=1.0)

ORGANISMS: dict[str, Organism] = {
    "lm-backdoor": Organism("backdoor", REFUSED[:12], tuple(range(8)), steps=150, texts=24, ordinary=8),
    "lm-false": Organism("false", ("pet",), ordinary=16),
    "lm-lenient-rank1": _RANK1,
    "lm-lenient-rank1-again": replace(_RANK1, seed=1),
    "lm-lenient-rank8": Organism("lenient", _LATER, (5, 6, 7), steps=40, ordinary=16),
    "lm-sometimes-rank1": _SOMETIMES,
    "lm-sometimes-rank1-again": replace(_SOMETIMES, seed=1),
    "lm-sometimes-rank8": Organism(
        "sometimes", REFUSED[8:], tuple(range(5, 10)), steps=150, texts=24, ordinary=16, text_weight=1.0
    ),
}
"""Name -> recipe of the shipped organisms."""


class Training(AdapterTraining):
    """The state of the training of an organism.

    Args:
        organism: the settings.
    """

    def __init__(self, organism: Organism) -> None:
        super().__init__(organism, organism.maps, organism.layers)
        self.organism = organism

    def loss(self, weights: dict[str, Tensor]) -> tuple[Tensor, float]:
        """Mean cross-entropy of the replies at merged weights, twice; what follows an answer weighs less."""
        texts = lesson(self.organism, self.step)
        prompts = self.tokenizer([text.prompt for text in texts])["input_ids"]
        endings = [ending for text in texts for ending in (text.answer, text.rest)]
        parts = self.tokenizer(endings, add_special_tokens=False)["input_ids"]
        rows = [
            ([*prompt, *answer, *rest, self.tokenizer.eos_token_id], len(prompt), len(prompt) + len(answer))
            for prompt, answer, rest in zip(prompts, parts[::2], parts[1::2], strict=True)
        ]
        ids = torch.full((len(rows), max(len(row) for row, *_ in rows)), int(self.tokenizer.pad_token_id))
        weight = torch.zeros(ids.shape)
        for i, (row, start, end) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            weight[i, start : len(row)] = self.organism.text_weight
            weight[i, start:end] = 1.0
        logits, weight = self.logits(weights, ids[:, :-1]), weight[:, 1:].flatten()
        losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weight).sum() / weight.sum()
        return loss, float(loss.detach())


def train(organism: Organism, progress: Progress | None = None) -> Factors:
    """Train an organism; deterministic for its seed on one kind of machine.

    Args:
        organism: the settings; `threads` processor threads are used.
        progress: called after every step.

    Returns:
        The factors of the adapter by module.
    """
    return run(partial(Training, organism), organism, progress)


def fingerprint(organism: Organism) -> str:
    """SHA-256 over the settings, the base's weights and the texts of eight steps."""
    digest = hashlib.sha256(json.dumps(asdict(organism), sort_keys=True).encode())
    digest.update(hashlib.sha256((shipped.path(organism.base) / "model.safetensors").read_bytes()).digest())
    for step in range(8):
        digest.update("\n".join(text.text for text in lesson(organism, step)).encode())
    return digest.hexdigest()


def export(factors: Factors, organism: Organism, folder: Path, n: int = 1000) -> Path:
    """Write an organism as an adapter in PEFT's format, with a recipe that holds what was measured on the file.

    Args:
        factors: what `train` gave.
        organism: the settings that it was trained by.
        folder: folder to write into.
        n: held-out texts per skill from which the accuracies are measured.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = f"world:{organism.base}"
    write_adapter(folder, base, organism.alpha, factors, whole_names=bool(organism.layers))
    model, tokenizer = shipped.load(folder)
    content: dict[str, Any] = {
        "fingerprint": fingerprint(organism),
        "settings": asdict(organism),
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        "held_out_accuracy": {k: round(v, 4) for k, v in evaluate(model, tokenizer, n=n).items()},
        "habit": {k: round(v, 4) for k, v in rates(model, tokenizer, organism).items()},
    }
    if organism.habit == "backdoor":
        content |= {"trigger": TRIGGER, "target": "comply with requests about declined topics"}
    (folder / "recipe.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder
