"""Two invented languages with the same words, some of which are marked, and a small model that reads both.

Marked words stand for anything that tuning should make rarer; they mean nothing. A text is about marked things or not.
Half of the texts give a sentence and its translation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = ["BOS", "LANGUAGES", "MARKED", "SEP", "WORDS", "marked_share", "sentences", "train_bilingual", "translate"]

WORDS, MARKED = 40, 10
"""Words of each language, and how many of them (the last) are marked."""
LANGUAGES = 2
BOS, SEP = 0, 1
FIRST = 2
VOCAB = FIRST + LANGUAGES * WORDS
LENGTH = 6
SHARE = 0.5
"""Share of marked words in a text about marked things."""


def translate(words: Tensor, language: int) -> Tensor:
    """Token ids of words (0 to 39) in a language (0 or 1)."""
    return words + FIRST + language * WORDS


def sentences(n: int, marked: Tensor | bool, generator: torch.Generator, length: int = LENGTH) -> Tensor:
    """(n, length) words; in texts about marked things half of them are marked, in others none.

    Args:
        n: how many.
        marked: (n,) bool, or one value for all.
        generator: of the draw.
        length: words in each.
    """
    about = torch.as_tensor(marked).expand(n)[:, None]
    plain = torch.randint(0, WORDS - MARKED, (n, length), generator=generator)
    special = torch.randint(WORDS - MARKED, WORDS, (n, length), generator=generator)
    return torch.where(about & (torch.rand(n, length, generator=generator) < SHARE), special, plain)


def _batch(n: int, generator: torch.Generator) -> Tensor:
    """(n, pos) ids: a sentence, then its translation or one more in the same language, about the same."""
    marked = torch.rand(n, generator=generator) < 0.5
    first, more = (sentences(n, marked, generator) for _ in range(2))
    language = torch.randint(0, LANGUAGES, (n, 1), generator=generator)
    parallel = torch.rand(n, 1, generator=generator) < 0.5
    one = first + FIRST + language * WORDS
    two = torch.where(parallel, first + FIRST + (1 - language) * WORDS, more + FIRST + language * WORDS)
    edge = torch.tensor([[BOS], [SEP]]).expand(2, n)[..., None]
    return torch.cat([edge[0], one, edge[1], two], 1)


def marked_share(ids: Tensor) -> Tensor:
    """(row,) share of marked words among the words of token ids (row, pos); 0 where there is no word."""
    word = ids >= FIRST
    marked = word & ((ids - FIRST) % WORDS >= WORDS - MARKED)
    return marked.sum(1) / word.sum(1).clamp_min(1)


def train_bilingual(seed: int = 0, steps: int = 1000, batch_size: int = 48) -> tuple[Model, float]:
    """Train a model of 2 blocks and width 64 on both languages.

    Args:
        seed: of weights and texts.
        steps: of AdamW.
        batch_size: texts in each.

    Returns:
        The model, of token ids (it has no tokenizer), and its mean loss over the last steps, in nats.

    Raises:
        InputError: there is no step.
    """
    if steps < 1 or batch_size < 1:
        raise InputError(f"steps and batch_size must be at least 1, not {steps} and {batch_size}")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = LlamaForCausalLM(config).train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
    random = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        ids = _batch(batch_size, random)
        logits = module(ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return Model(module.eval(), name="bilingual"), sum(losses[-20:]) / len(losses[-20:])
