"""A steering vector found by gradients through the model: the one that makes wanted continuations likely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.edits import Add
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens, pad
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.steering.vector import SteeringVector

__all__ = ["optimise"]


def optimise(
    model: Model,
    prompts: Sequence[str],
    wanted: Sequence[str],
    unwanted: Sequence[str] | None = None,
    site: str = "blocks.0.resid_post",
    *,
    norm: float | None = None,
    steps: int = 100,
    rate: float = 0.1,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> SteeringVector:
    """Find the vector that, added at a site at every token, makes continuations likely and others unlikely.

    Minimises -log p(wanted) - log(1 - p(unwanted)) per prompt by Adam, the second term for each whole continuation.

    Args:
        model: a causal language model with a tokenizer.
        prompts: texts.
        wanted: continuation of each.
        unwanted: continuations of each that should become unlikely; none by default.
        site: one site of width d, such as "blocks.3.resid_post".
        norm: largest length of the vector, to which it is brought back after each step; none by default.
        steps, rate: of Adam.
        batch_size: prompts in a step.
        seed: of the first vector (of length 1e-3) and of the batches.
        progress: show a progress bar.

    Returns:
        SteeringVector with `made["loss"]`, that of the last step.

    Raises:
        InputError: numbers differ, there is none, a continuation is empty or too long, a number is out of range, or
            the loss became NaN.

    Source: Subramani, Suresh and Peters, 2022, Extracting Latent Steering Vectors; Dunefsky and Cohan, 2025
        (promotion and suppression).
    """
    if not prompts or len(wanted) != len(prompts) or (unwanted is not None and len(unwanted) != len(prompts)):
        raise InputError("give one wanted (and one unwanted) continuation for each of one prompt or more")
    if steps < 1 or not rate > 0 or batch_size < 1 or (norm is not None and not norm > 0):
        raise InputError(f"steps, rate, batch_size and norm must be above 0: {steps}, {rate}, {batch_size}, {norm}")
    found = model.sites(site)
    if len(found) != 1 or found[0].dims[1:2] != ("pos",) or found[0].sizes.get(found[0].dims[-1]) is None:
        raise InputError(f"{site!r} must mean one site with positions and a known width")
    if model.tokenizer is None:
        raise InputError("this model has no tokenizer, and texts are needed")
    sides = [_joined(model, prompts, wanted)] + ([] if unwanted is None else [_joined(model, prompts, unwanted)])
    width = found[0].sizes[found[0].dims[-1]]
    random = torch.Generator().manual_seed(seed)
    start = torch.randn(width, generator=random)
    vector = (start * (1e-3 / start.norm())).to(model.device).requires_grad_()
    optimiser = torch.optim.Adam([vector], lr=rate)
    turns = shown(range(steps), "optimising the vector", progress)
    loss = vector.new_zeros(())
    frozen = [p for p in model.module.parameters() if p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(False)
        for _ in turns:
            rows = torch.randperm(len(prompts), generator=random)[:batch_size]
            with model.edit({found[0].name: Add(vector)}):
                scores = [_logprob(model, tokens[rows], spans[rows]) for tokens, spans in sides]
            loss = -scores[0].mean()
            if len(scores) == 2:
                # log(1 - p) loses its gradient at p = 1 by rounding.
                loss = loss - torch.log(-torch.expm1(scores[1].clamp(max=-1e-6))).mean()
            if not bool(torch.isfinite(loss.detach())):
                raise InputError("the loss became NaN or infinite; lower the rate or limit the norm")
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                size = float(vector.norm())
                if norm is not None and size > norm:
                    vector.mul_(norm / size)
    finally:
        for p in frozen:
            p.requires_grad_(True)
    made = {"model": model.fingerprint(), "name": model.name, "prompts": len(prompts), "steps": steps, "seed": seed}
    return SteeringVector(
        {found[0].name: vector.detach()}, "optimised", {**made, "loss": round(float(loss.detach()), 6)}
    )


def _joined(model: Model, prompts: Sequence[str], continuations: Sequence[str]) -> tuple[Tokens, Tensor]:
    """Prompts with their continuations, padded on the right, and which tokens are the continuation's (n, pos)."""
    tokenizer: Any = model.tokenizer
    rows, lengths = [], []
    for prompt, more in zip(prompts, continuations, strict=True):
        first = list(tokenizer(prompt)["input_ids"])
        second = list(tokenizer(more, add_special_tokens=False)["input_ids"])
        if not second:
            raise InputError("a continuation is empty")
        rows.append(first + second)
        lengths.append(len(second))
    longest = max(map(len, rows))
    if longest > (model.context or math.inf):
        raise InputError(f"a prompt with its continuation has {longest} tokens; the context holds {model.context}")
    ids, mask = pad(rows, getattr(tokenizer, "pad_token_id", None) or 0, "right")
    ends = mask.sum(1)
    columns = torch.arange(ids.shape[1])[None]
    spans = (columns >= (ends - torch.tensor(lengths))[:, None]) & (columns < ends[:, None])
    return Tokens(ids, mask, torch.arange(len(ids))), spans


def _logprob(model: Model, tokens: Tokens, spans: Tensor) -> Tensor:
    """Log probability (n,) of each row's span, in nats."""
    logits = model.logits(tokens)[:, :-1].float()
    ids = tokens.ids.to(logits.device)
    each = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
    return (each * spans[:, 1:].to(each)).sum(1)
