"""Corrupting text for pre-training: single tokens or spans are masked, or spans become sentinels as in T5."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from actinium.core.errors import InputError

__all__ = ["mask_tokens", "span_corruption"]

MASKINGS = ("iid", "span")


def mask_tokens(
    tokens: Tensor,
    mask: Tensor,
    mask_id: int,
    vocabulary: tuple[int, int],
    *,
    rate: float = 0.15,
    keep: float = 0.1,
    random: float = 0.1,
    masking: str = "iid",
    span_length: int = 3,
    source: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Mask some tokens.

    Args:
        tokens: ids (batch, pos).
        mask: (batch, pos) bool, False on padding.
        mask_id, vocabulary, rate, keep, random, masking, span_length: as in `MetroPretrainer`.
        source: of the random numbers.

    Returns:
        ids with the mask token (or the same, or a random one), and (batch, pos) bool: which were chosen.

    Raises:
        InputError: shapes or shares do not fit, or no token or every token is chosen.
    """
    low, high = vocabulary
    if tokens.ndim != 2 or tokens.is_floating_point() or mask.shape != tokens.shape or not tokens.numel():
        raise InputError(
            f"expected ids and mask (batch, pos), got {tokens.dtype} {tuple(tokens.shape)}, {tuple(mask.shape)}"
        )
    if not 0 < rate < 1 or keep < 0 or random < 0 or keep + random > 1 or masking not in MASKINGS or span_length < 1:
        raise InputError(
            "rate is between 0 and 1, keep + random at most 1, masking 'iid' or 'span', span_length positive"
        )
    if not 0 <= low < high:
        raise InputError(f"vocabulary is (low, high) with 0 <= low < high, got {vocabulary}")
    may = mask & (tokens >= low) & (tokens < high)

    def drawn() -> Tensor:
        return torch.rand(tokens.shape, generator=source).to(tokens.device)

    if masking == "iid":
        chosen = (drawn() < rate) & may
    else:
        # A token stays where none of the last span_length places starts a span: (1 - p)^length = 1 - rate.
        starts = (drawn() < 1 - (1 - rate) ** (1 / span_length)).float()
        spread = functional.max_pool1d(functional.pad(starts, (span_length - 1, 0))[:, None], span_length, 1)[:, 0]
        chosen = (spread > 0) & may
    if not bool(chosen.any()) or bool((chosen == mask)[mask].all()):
        raise InputError(f"{'every' if bool(chosen.any()) else 'no'} token of this batch is masked; use larger batches")
    kind = drawn()
    noise = torch.randint(low, high, tokens.shape, generator=source).to(tokens.device)
    text = torch.where(chosen & (kind >= keep + random), mask_id, tokens)
    return torch.where(chosen & (kind >= keep) & (kind < keep + random), noise, text), chosen


def span_corruption(
    tokens: Tensor,
    sentinels: tuple[int, ...],
    *,
    rate: float = 0.15,
    span_length: int = 3,
    pad_id: int = 0,
    source: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """T5's objective, to compare with: each span is replaced by a sentinel, and the target lists what was there.

    Args:
        tokens: ids (batch, pos) without padding.
        sentinels: one more than a row has spans.
        rate: share of the tokens in spans.
        span_length: of each span; the last one may be shorter.
        pad_id: fills rows.
        source: of the random numbers.

    Returns:
        `input_ids`, `attention_mask` and `labels` (-100 where there is none), for an encoder-decoder.

    Raises:
        InputError: shapes do not fit, or there are too few sentinels or too many spans.

    Source: Raffel et al., 2020, section 3.1.4, with spans of one length.
    """
    if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel() or not 0 < rate < 1 or span_length < 1:
        raise InputError(f"expected ids (batch, pos), a rate between 0 and 1 and span_length >= 1, got {tokens.shape}")
    length = tokens.shape[1]
    gone = max(1, round(rate * length))
    spans = -(-gone // span_length)
    if len(sentinels) < spans + 1 or length - gone < spans:
        raise InputError(f"{spans} spans in {length} tokens need {spans + 1} sentinels and a token before each span")
    lengths = [span_length] * (spans - 1) + [gone - span_length * (spans - 1)]
    inputs, targets = [], []
    for row in tokens.tolist():
        # Each span follows a kept token: their places among the kept ones are drawn without repetition.
        after = (torch.randperm(length - gone, generator=source)[:spans] + 1).sort().values.tolist()
        left, right, at = [], [], 0
        for i, (place, size) in enumerate(zip(after, lengths, strict=True)):
            start = place + sum(lengths[:i])
            left += [*row[at:start], sentinels[i]]
            right += [sentinels[i], *row[start : start + size]]
            at = start + size
        inputs.append(torch.tensor(left + row[at:]))
        targets.append(torch.tensor([*right, sentinels[spans]]))
    ids = nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=pad_id)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in inputs], batch_first=True)
    labels = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
    return {k: v.to(tokens.device) for k, v in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))}
