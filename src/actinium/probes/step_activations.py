"""One activation per layer for each step or statement behind its prompt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError, SiteError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.core.progress import shown

__all__ = ["POOLS", "step_activations"]

POOLS = ("last", "claim", "mean")


def step_activations(
    model: Model,
    prompts: Sequence[str],
    steps: Sequence[str],
    at: Any = None,
    pool: str = "last",
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Activations of texts at the end of prompts, site by site.

    Args:
        model: a causal language model with a tokenizer.
        prompts: what stands before each step, such as the puzzle and the steps before it.
        steps: the texts to read.
        at: sites with one vector for each position; None for the input of the first block and the residual stream after
            each block.
        pool: "last" token (often the full stop), last token of the "claim" (the last one that holds a letter or digit),
            or "mean" over the step's tokens.
        batch_size: texts in a pass.
        progress: show a progress bar.

    Returns:
        For each site (step, d) float32 on the CPU.

    Raises:
        InputError: no steps, one prompt for each is not given, a text is longer than the model's context, or a step
            adds no tokens to its prompt.
        SiteError: a site does not exist, or does not hold one vector for each position.
        UnknownNameError: no such pool.
    """
    if pool not in POOLS:
        raise UnknownNameError(unknown("pool", str(pool), POOLS))
    if not steps or len(prompts) != len(steps):
        raise InputError(f"one prompt is needed for each step; got {len(prompts)} prompts and {len(steps)} steps")
    names = _sites(model, at)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in shown(range(0, len(steps), batch_size), "reading steps", progress):
        rows = slice(start, start + batch_size)
        weights, tokens = _weights(model, prompts[rows], steps[rows], pool)
        recorded = model.record(tokens, names)
        for name in names:
            values = recorded[name].float().cpu()
            parts[name].append(torch.einsum("np,npd->nd", weights, values))
    return {name: torch.cat(part) for name, part in parts.items()}


def _sites(model: Model, at: Any) -> list[str]:
    """Names of the sites to read."""
    sites = model.sites(["blocks.0.resid_pre", "blocks.*.resid_post"] if at is None else at)
    for site in sites:
        if len(site.dims) != 3 or site.dims[:2] != ("batch", "pos"):
            raise SiteError(
                f"{site.name} has dimensions {' '.join(site.dims) or 'unknown'}; expected batch pos and one"
            )
    return [site.name for site in sites]


def _weights(model: Model, prompts: Sequence[str], steps: Sequence[str], pool: str) -> tuple[Tensor, Any]:
    """Share of each token in the step's activation, (step, pos), and the tokens."""
    texts = [prompt + step for prompt, step in zip(prompts, steps, strict=True)]
    inputs = model.prepare(texts)
    tokens = inputs.tokens
    if tokens is None or len(tokens) != len(texts):
        raise InputError(f"a text is longer than the model's context of {model.context} tokens")
    weights = torch.zeros(tokens.ids.shape)
    for row, (prompt, step) in enumerate(zip(prompts, steps, strict=True)):
        real = tokens.mask[row].nonzero()[:, 0]
        ids = tokens.ids[row, real].tolist()
        before = model.tokenizer(prompt, verbose=False)["input_ids"] if prompt else []
        # A token may reach across the boundary; it counts to the step.
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, ids, strict=False)))
        own = real[shared:]
        if not len(own):
            raise InputError(f"step {row} adds no tokens to its prompt: {step!r}")
        if pool == "mean":
            weights[row, own] = 1 / len(own)
            continue
        place = len(own) - 1
        if pool == "claim":
            said = [any(c.isalnum() for c in model.tokenizer.decode([i])) for i in ids[shared:]]
            if not any(said):
                raise InputError(f"step {row} holds no letter or digit: {step!r}")
            place = max(i for i, word in enumerate(said) if word)
        weights[row, own[place]] = 1.0
    return weights, tokens
