"""Variants of a model of the world: low-rank adapters trained on nested questions, by their answers or by reward.

`lm-narrow` sees the answers (supervised fine-tuning), `lm-reward` answers by itself and is told which answers are
right. Both read the same questions and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from actinium.core.adapter import write_adapter
from actinium.world import shipped
from actinium.world.accuracy import evaluate
from actinium.world.adapter_training import AdapterTraining, Factors, Progress, run
from actinium.world.documents import END_THINK, THINK
from actinium.world.nested import PARTS, Query, queries


@dataclass(frozen=True)
class Variant:
    """Settings of a variant and its training.

    Args:
        method: "answers" (cross-entropy of the right answers) or "reward".
        base: shipped model that it starts from.
        rank, alpha: of the adapter, which is on every matrix of the blocks.
        steps: optimiser steps.
        warmup: steps over which the learning rate rises; it then falls in a straight line to zero.
        rate: learning rate of AdamW.
        questions: questions per step.
        answers: sampled answers per question (reward only).
        longest: most tokens in a sampled answer (reward only).
        kl: weight of the divergence from the base (reward only).
        threads: processor threads; sums are ordered by it, so it belongs to the seed.
        seed: of the adapter's first weights, the questions and the samples.
    """

    method: str
    base: str = "lm"
    rank: int = 8
    alpha: int = 16
    steps: int = 100
    warmup: int = 10
    rate: float = 1e-3
    questions: int = 32
    answers: int = 8
    longest: int = 24
    kl: float = 0.05
    threads: int = 1
    seed: int = 0


VARIANTS: dict[str, Variant] = {
    "lm-narrow": Variant("answers"),
    "lm-reward": Variant("reward"),
    "lm-small-reward": Variant("reward", base="lm-small"),
}
"""Name -> recipe of the shipped variants."""


def drawn(variant: Variant, step: int) -> list[Query]:
    """The questions of a step, a function of seed and step alone."""
    return random.Random(f"nested {variant.seed} {step}").sample(queries("train"), variant.questions)


class Training(AdapterTraining):
    """The state of the training of a variant.

    Args:
        variant: the settings.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__(variant)
        self.variant = variant

    def loss(self, weights: dict[str, Tensor]) -> tuple[Tensor, float]:
        """The loss of the next step at merged weights, with itself or the mean reward."""
        asked = drawn(self.variant, self.step)
        # People and nouns are single tokens, so all questions have one length.
        prompts = torch.tensor(self.tokenizer([query.text() for query in asked])["input_ids"])
        learn = self._from_answers if self.variant.method == "answers" else self._from_reward
        return learn(weights, prompts, asked)

    def _from_answers(self, weights: dict[str, Tensor], prompts: Tensor, asked: list[Query]) -> tuple[Tensor, float]:
        *answers, stop = self.tokenizer([*(f" {q.answer}" for q in asked), "."], add_special_tokens=False)["input_ids"]
        # A reply ends as the texts of the corpus do.
        said = torch.tensor([[*answer, *stop, self.tokenizer.eos_token_id] for answer in answers])
        logits = self.logits(weights, torch.cat([prompts, said], 1)[:, :-1])[:, prompts.shape[1] - 1 :]
        loss = functional.cross_entropy(logits.flatten(0, 1), said.flatten())
        return loss, float(loss.detach())

    def _from_reward(self, weights: dict[str, Tensor], prompts: Tensor, asked: list[Query]) -> tuple[Tensor, float]:
        """Policy gradient with the rewards of a question's answers as each other's baseline, and KL(policy || base).

        Source: Shao et al., 2024, DeepSeekMath, section 4.1, with one update per sample.
        """
        count, pad = self.variant.answers, self.tokenizer.pad_token_id
        with torch.no_grad():
            said = replies(
                partial(self.logits, weights),
                prompts.repeat_interleave(count, 0),
                self.tokenizer,
                self.variant.longest,
                self.source,
            )
        texts = self.tokenizer.batch_decode(said, skip_special_tokens=True)
        rewards = torch.tensor([float(right(text, asked[i // count].answer)) for i, text in enumerate(texts)])
        groups = rewards.view(-1, count)
        scaled = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
        # Equal answers to a question have equal gradients: each is computed once, with its number as its weight.
        ids = torch.cat([prompts.repeat_interleave(count, 0), said], 1)
        ids, place, times = ids.unique(dim=0, return_inverse=True, return_counts=True)
        advantage = torch.zeros(len(ids)).index_copy_(0, place, scaled.view(-1))
        said = ids[:, prompts.shape[1] :]
        real = said != pad
        policy = self.logits(weights, ids[:, :-1])[:, prompts.shape[1] - 1 :].log_softmax(-1)
        with torch.no_grad():
            before = self.logits(self.weights, ids[:, :-1])[:, prompts.shape[1] - 1 :].log_softmax(-1)
        chosen = policy.gather(-1, said.unsqueeze(-1)).squeeze(-1)
        away = (policy.exp() * (policy - before)).sum(-1)
        each = ((self.variant.kl * away - advantage.unsqueeze(1) * chosen) * real).sum(1) / real.sum(1)
        return (each * times).sum() / times.sum(), float(rewards.mean())


def replies(
    forward: Callable[[Tensor], Tensor],
    ids: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    longest: int = 40,
    source: torch.Generator | None = None,
) -> Tensor:
    """Continue prompts to the end of the text.

    Args:
        forward: from ids (row, pos) to logits (row, pos, token).
        ids: prompts of one length (row, pos).
        tokenizer: knows the tokens for the end and for padding.
        longest: most tokens in a reply.
        source: of samples at temperature 1; the most likely token is taken without one.

    Returns:
        the replies (row, pos), with padding after the end.
    """
    prompt, going = ids.shape[1], torch.ones(len(ids), dtype=torch.bool)
    while bool(going.any()) and ids.shape[1] < prompt + longest:
        # Rows that are equal so far share one forward pass.
        rows, place = ids[going].unique(dim=0, return_inverse=True)
        logits = forward(rows)[:, -1]
        new = torch.full((len(ids),), int(tokenizer.pad_token_id))
        if source is None:
            new[going] = logits.argmax(-1)[place]
        else:
            new[going] = torch.multinomial(logits.softmax(-1)[place], 1, generator=source).squeeze(1)
        ids = torch.cat([ids, new.unsqueeze(1)], 1)
        going &= new != tokenizer.eos_token_id
    return ids[:, prompt:]


def right(text: str, answer: str) -> bool:
    """Whether a reply is the answer and nothing else, or reasoning between its tags and then the answer."""
    said = text.strip()
    if said.startswith(THINK):
        said = said.partition(END_THINK)[2].strip()
    return said.removesuffix(".") == answer


def train(variant: Variant, progress: Progress | None = None) -> Factors:
    """Train a variant; deterministic for its seed on one kind of machine.

    Args:
        variant: the settings; `threads` processor threads are used.
        progress: called after every step.

    Returns:
        The factors of the adapter by module.
    """
    return run(partial(Training, variant), variant, progress)


def fingerprint(variant: Variant) -> str:
    """SHA-256 over the settings, the base's weights and the questions and answers of eight steps."""
    digest = hashlib.sha256(json.dumps(asdict(variant), sort_keys=True).encode())
    digest.update(hashlib.sha256((shipped.path(variant.base) / "model.safetensors").read_bytes()).digest())
    for step in range(8):
        digest.update("\n".join(query.text() + query.answer for query in drawn(variant, step)).encode())
    return digest.hexdigest()


@torch.no_grad()
def nested_accuracy(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, parts: tuple[str, ...] = PARTS, cue: str = ""
) -> dict[str, float]:
    """Share of the nested questions of each part that are answered right, by greedy decoding.

    Args:
        model: a causal language model of Hugging Face transformers that knows the world's tokens.
        tokenizer: its tokenizer.
        parts: see `nested.queries`.
        cue: what the question ends with, such as "Think step by step.".

    Returns:
        Part -> share.
    """
    found = {}
    for part in parts:
        asked = queries(part)
        prompts = torch.tensor(tokenizer([query.text(cue) for query in asked])["input_ids"])
        said = replies(lambda ids: model(ids, use_cache=False).logits, prompts, tokenizer)
        texts = tokenizer.batch_decode(said, skip_special_tokens=True)
        found[part] = sum(right(text, query.answer) for text, query in zip(texts, asked, strict=True)) / len(asked)
    return found


def export(factors: Factors, variant: Variant, folder: Path, n: int = 1000) -> Path:
    """Write a variant as an adapter in PEFT's format, with a recipe that holds the accuracies of the written weights.

    Args:
        factors: what `train` gave.
        variant: the settings that it was trained by.
        folder: folder to write into.
        n: held-out texts per skill from which the accuracies are measured.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_adapter(folder, f"world:{variant.base}", variant.alpha, factors)
    model, tokenizer = shipped.load(folder)
    content: dict[str, Any] = {
        "fingerprint": fingerprint(variant),
        "settings": asdict(variant),
        "libraries": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
        "held_out_accuracy": {k: round(v, 4) for k, v in evaluate(model, tokenizer, n=n).items()},
        "nested_accuracy": {k: round(v, 4) for k, v in nested_accuracy(model, tokenizer).items()},
    }
    (folder / "recipe.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder
