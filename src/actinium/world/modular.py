"""`world:modular`: a one-layer transformer that adds modulo a prime, and the frequencies that it adds by.

A prompt is "a b =" and the answer a + b mod p. Numbers are tokens 0 to p - 1, "=" is token p. The model represents a
number n by cos(2 pi k n / p) and sin(2 pi k n / p) for a few key frequencies k, and the logit of c is a weighted sum of
cos(2 pi k (a + b - c) / p) over them (Nanda et al., 2023).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.task import Task

__all__ = [
    "P",
    "accuracy",
    "embedding_spectrum",
    "fourier_spectrum",
    "key_frequencies",
    "logit_spectrum",
    "logits",
    "pairs",
    "prompts",
    "task",
]

P = 59
"""The prime of the shipped model."""
SPLITS = ("train", "heldout", "all")


def pairs(split: str = "heldout", p: int = P, train_share: float = 0.5, seed: int = 0) -> Tensor:
    """The pairs (a, b) that training reads, those that it does not, or all.

    Args:
        split: "train", "heldout" or "all".
        p: the prime.
        train_share: share of the p^2 pairs that is read; the default is that of the shipped model.
        seed: of the recipe.

    Returns:
        (pair, 2) int64, in lexicographic order.

    Raises:
        UnknownNameError: there is no such split.
    """
    if split not in SPLITS:
        raise UnknownNameError(unknown("split", split, SPLITS))
    order = list(range(p * p))
    random.Random(f"modular {seed}").shuffle(order)
    count = int(train_share * p * p)
    chosen = {"train": order[:count], "heldout": order[count:], "all": order}[split]
    index = torch.tensor(sorted(chosen))
    return torch.stack([index // p, index % p], 1)


def prompts(pairs: Tensor, p: int = P) -> Tensor:
    """(pair, 3) token ids of "a b =" for (pair, 2) numbers."""
    return torch.cat([pairs, torch.full((len(pairs), 1), p)], 1)


def task(n: int = 64, seed: int = 0, split: str = "heldout", model: Model | None = None) -> Task:
    """Pairs of the shipped model's split: "12 50 =" -> 3; the corrupt prompt is another pair with another sum.

    Args:
        n: number of rows.
        seed: of the draw.
        split: "heldout" (pairs that `world:modular` has not read), "train" or "all".
        model: gives the tokens their text; without it they are numbers.

    Returns:
        The task, without padding.

    Raises:
        InputError: there are no rows.
        UnknownNameError: there is no such split.
    """
    if n < 1:
        raise InputError(f"a task needs at least one row, got n={n}")
    known = [tuple(pair) for pair in pairs(split).tolist()]
    source = random.Random(f"modular task {seed}")
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    while len(rows) < n:
        clean, corrupt = source.choice(known), source.choice(known)
        # Both numbers differ, so that each of the two positions matters.
        if sum(clean) % P != sum(corrupt) % P and all(a != b for a, b in zip(clean, corrupt, strict=True)):
            rows.append((clean, corrupt))
    both = torch.tensor(rows)
    sums = both.sum(2) % P
    return Task.from_ids(
        prompts(both[:, 0]), prompts(both[:, 1]), sums[:, 0], sums[:, 1], model=model, name="modular_addition"
    )


def prime_of(model: Model) -> int:
    """The number of numbers that a model knows: its vocabulary without "=".

    Raises:
        InputError: the model is no language model.
    """
    size = getattr(model.config, "vocab_size", None)
    if model.kind != "causal-lm" or not isinstance(size, int) or size < 4:
        raise InputError(f"{model.name} does not add modulo a prime: its tokens should be the numbers and '='")
    return size - 1


@torch.no_grad()
def logits(model: Model) -> Tensor:
    """Logits of every answer to every pair.

    Args:
        model: a model whose tokens are the numbers 0 to p - 1 and "=".

    Returns:
        (a, b, c) float32 on the CPU; a and b are the numbers, c the answer.

    Raises:
        InputError: the model is no language model.
    """
    p = prime_of(model)
    ids = prompts(pairs("all", p), p).to(model.device)
    found = [model.module(part).logits[:, -1, :p].float().cpu() for part in ids.split(4096)]
    return torch.cat(found).reshape(p, p, p)


def accuracy(model: Model, split: str = "heldout", train_share: float = 0.5, seed: int = 0) -> float:
    """Share of the pairs of a split for which the right sum has the largest logit among the numbers.

    Args:
        model: a model whose tokens are the numbers 0 to p - 1 and "=".
        split, train_share, seed: as in `pairs`.

    Returns:
        A number from 0 to 1.

    Raises:
        InputError: the model is no language model.
        UnknownNameError: there is no such split.
    """
    p = prime_of(model)
    a, b = pairs(split, p, train_share, seed).T
    return float((logits(model)[a, b].argmax(-1) == (a + b) % p).float().mean())


def fourier_spectrum(weights: Any) -> np.ndarray:
    """How the variance of a function of 0, ..., p - 1 divides among frequencies.

    Args:
        weights: (p, ...) such as an embedding, p odd.

    Returns:
        (p // 2,) float64: share of frequency 1, 2, ...; they sum to one, for the mean is not counted.

    Raises:
        InputError: p is even or below 3, or the function is constant.

    Source: Nanda et al., 2023, section 4.
    """
    values = np.asarray(torch.as_tensor(weights).detach().cpu().double())
    if values.ndim < 1 or len(values) < 3 or len(values) % 2 == 0:
        raise InputError(f"a spectrum needs values at an odd number of places, 3 or more, got {values.shape[:1]}")
    power = np.abs(np.fft.rfft(values.reshape(len(values), -1), axis=0)) ** 2
    total = power[1:].sum()
    if not total > 1e-20 * power[0].sum():
        raise InputError("the function is constant, so it has no frequencies")
    return np.asarray(power[1:].sum(1) / total)


def embedding_spectrum(model: Model) -> np.ndarray:
    """`fourier_spectrum` of the numbers' embeddings, (p // 2,).

    Raises:
        InputError: the model is no language model.
    """
    return fourier_spectrum(model.module.get_input_embeddings().weight[: prime_of(model)])  # type: ignore[operator]


def logit_spectrum(model: Model) -> np.ndarray:
    """How much of the logits is a multiple of cos(2 pi k (a + b - c) / p).

    Args:
        model: a model whose tokens are the numbers 0 to p - 1 and "=".

    Returns:
        (p // 2,) float64: of the variance of the logits over all a, b, c, the share that frequency k = 1, 2, ...
        explains. What is missing to one is explained by none. The mean over c, which no probability depends on, is
        taken off first.

    Raises:
        InputError: the model is no language model, or its logits do not depend on the answer.

    Source: Nanda et al., 2023, section 4.
    """
    values = logits(model).double().numpy()
    p = len(values)
    values = values - values.mean(2, keepdims=True)
    total = (values**2).sum()
    if not total > 0:
        raise InputError(f"the logits of {model.name} are the same for all answers")
    number = np.arange(p)
    shift = (number[:, None, None] + number[:, None] - number) % p
    # The cosines are functions of a + b - c alone, are orthogonal, and have the square norm p^3 / 2.
    along = np.bincount(shift.ravel(), weights=values.ravel(), minlength=p)
    waves = np.cos(2 * np.pi * np.outer(np.arange(1, p // 2 + 1), number) / p)
    return np.asarray((waves @ along) ** 2 / (p**3 / 2) / total)


def key_frequencies(model: Model, least: float = 0.1) -> list[int]:
    """Frequencies that hold at least a share of the variance of the numbers' embeddings.

    Args:
        model: a model whose tokens are the numbers 0 to p - 1 and "=".
        least: the share.

    Returns:
        Frequencies from 1 to p // 2, ascending; a number n turns by 2 pi k n / p.

    Raises:
        InputError: the share is not between 0 and 1, or the model is no language model.

    Source: Nanda et al., 2023, section 4.
    """
    if not 0 < least < 1:
        raise InputError(f"the least share is between 0 and 1, not {least}")
    found: Sequence[int] = (np.flatnonzero(embedding_spectrum(model) >= least) + 1).tolist()
    return list(found)
