"""What a transferred logit difference does, and measures of reasoning with several samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.steering.logit_delta import LogitDeltaTransfer

__all__ = ["delta_similarity", "majority_at_k", "pass_at_k", "path_coverage", "recovery_rate"]

PAPER = "rast"


@torch.no_grad()
def path_coverage(
    transfer: LogitDeltaTransfer, reference: Model, prompts: Sequence[str], max_new_tokens: int = 32
) -> Result:
    """How far the base already walks the path of a tuned large model, and how far it does with the difference.

    The reference writes greedily; at each of its tokens, given everything before, the base and the base with the
    difference predict.

    Args:
        transfer: base, pairs and strengths.
        reference: the large model tuned itself, or another one whose path is wanted.
        prompts: texts.
        max_new_tokens: length of the path.

    Returns:
        Result over what ("base", "transferred"): `coverage`, the share of the reference's tokens that are the
        likeliest; `kl`, mean KL(reference || what) per token in nats; and `tokens`, how many there are.

    Raises:
        InputError: no prompts, or the reference writes nothing.

    Source: Ouyang et al., 2025 (path coverage).
    """
    whole, new = _paths(transfer, reference, prompts, max_new_tokens)
    size = min(transfer.shared, int(reference.config.vocab_size))
    truth = _part(reference.logits(whole), size)
    rows = {"base": transfer.base.logits(whole), "transferred": transfer.logits(whole)}
    wanted = whole.ids[:, 1:][new]
    q = truth[:, :-1][new].log_softmax(-1)
    coverage, apart = [], []
    for logits in rows.values():
        part = _part(logits, size)[:, :-1][new]
        coverage.append(float((part.argmax(-1).cpu() == wanted).double().mean()))
        apart.append(float((q.exp() * (q - part.log_softmax(-1).to(q))).sum(-1).mean()))
    data = {"coverage": ("what", coverage), "kl": ("what", apart)}
    record = provenance(transfer.base, list(prompts), strengths=transfer.strengths, max_new_tokens=max_new_tokens)
    attrs = {"plot": {"variables": ["coverage"]}, "tokens": len(wanted)}
    return Result(xr.Dataset(data, {"what": list(rows)}, attrs), "path_coverage", PAPER, record)


@torch.no_grad()
def delta_similarity(small: tuple[Model, Model], large: tuple[Model, Model], inputs: Any) -> Tensor:
    """Cosine of what tuning did to a small and to a large model's logits, (batch, pos), NaN on padding.

    The mean over the vocabulary is taken out of each difference first, since it changes no probability.

    Args:
        small, large: (tuned, before) of each size, of one vocabulary.
        inputs: texts or tokens.

    Source: Ouyang et al., 2025 (similarity of logit differences).
    """
    one = LogitDeltaTransfer(small[1], small, truncate=True).deltas(inputs)[0]
    other = LogitDeltaTransfer(large[1], large, truncate=True).deltas(inputs)[0].to(one)
    size = min(one.shape[-1], other.shape[-1])
    parts = [d[..., :size] - d[..., :size].mean(-1, keepdim=True) for d in (one, other)]
    cosine = torch.nn.functional.cosine_similarity(parts[0], parts[1], dim=-1)
    tokens = small[1].prepare(inputs).tokens
    if tokens is None:
        raise InputError("texts or tokens are needed")
    return torch.where(tokens.mask.to(cosine.device), cosine, torch.nan)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of k samples is right, from c right ones among n: 1 - C(n - c, k) / C(n, k).

    Raises:
        InputError: the numbers do not fit.

    Source: Chen et al., 2021, Evaluating Large Language Models Trained on Code, equation 1.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise InputError(f"0 <= c <= n and 1 <= k <= n are needed, got n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def majority_at_k(answers: Sequence[Hashable], right: Hashable, k: int) -> bool:
    """Whether the most frequent of the first k answers is right; of several the one that came first counts.

    Raises:
        InputError: there are fewer than k answers.
    """
    if not 1 <= k <= len(answers):
        raise InputError(f"k must be between 1 and the {len(answers)} answers, not {k}")
    return Counter(answers[:k]).most_common(1)[0][0] == right


def recovery_rate(found: float, base: float, tuned: float) -> float:
    """(found - base) / (tuned - base): the share of a tuned model's gain that was reached; NaN where there is none."""
    return (found - base) / (tuned - base) if tuned != base else float(np.nan)


def _paths(transfer: LogitDeltaTransfer, reference: Model, prompts: Sequence[str], most: int) -> tuple[Tokens, Tensor]:
    """Prompts with what the reference writes, and which predicted tokens are its own (batch, pos - 1)."""
    if isinstance(prompts, str) or not len(prompts):
        raise InputError("give a list of prompts")
    tokenizer: Any = reference.tokenizer
    if tokenizer is None:
        raise InputError("the reference has no tokenizer")
    rows, starts = [], []
    for prompt in prompts:
        ids = reference.to_tokens(prompt).ids
        out = reference.generate(ids, max_new_tokens=most, do_sample=False)[0].tolist()
        end = tokenizer.eos_token_id
        new = out[ids.shape[1] :]
        new = new[: new.index(end) + 1] if end in new else new
        rows.append([*ids[0].tolist(), *new])
        starts.append(ids.shape[1])
    width = max(map(len, rows))
    whole = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        whole[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
    new_tokens = mask & (torch.arange(width)[None] >= torch.tensor(starts)[:, None])
    if not bool(new_tokens.any()):
        raise InputError("the reference writes nothing")
    return Tokens(whole, mask, torch.arange(len(rows))), new_tokens[:, 1:]


def _part(logits: Tensor, size: int) -> Tensor:
    return logits[..., :size].double()
