"""What each attention head looks at: entropy, sinks, the previous token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.inputs import Inputs
from actinium.core.model import Model
from actinium.core.reducers import Context
from actinium.core.result import Result
from actinium.measure.streaming import Layers, as_result, choose, ready, stream

__all__ = ["attention_entropy", "attention_summary", "received_attention"]

# Bytes of attention patterns held at the same time.
MEMORY = 1 << 29
FIELDS = ("entropy", "relative_entropy", "first", "sink", "previous", "diagonal")


def attention_entropy(pattern: Tensor) -> Tensor:
    """Entropy of each query's attention, in nats.

    Args:
        pattern: probabilities (..., query, key).

    Returns:
        (..., query), from 0 (one key) to the logarithm of the number of keys.
    """
    return torch.special.entr(pattern.double()).sum(-1)


def received_attention(pattern: Tensor, causal: bool = True) -> tuple[Tensor, Tensor]:
    """Mean attention that each key gets from the queries that can see it.

    Args:
        pattern: probabilities (..., query, key) of one sequence without padding.
        causal: queries see only keys up to themselves; a query's attention to itself as the first token is
            left out, because it has no choice.

    Returns:
        (..., key) mean, and (key,) number of queries behind it.

    Source: Gu et al., 2025, When attention sink emerges in language models.
    """
    q, k = pattern.shape[-2:]
    visible = torch.ones(q, k, device=pattern.device, dtype=torch.bool)
    if causal:
        visible = visible.tril()
        visible[0] = False
    seen = visible.sum(0)
    received = torch.where(visible, pattern.double(), 0.0).sum(-2) / seen.clamp(min=1)
    return received, seen


class _Heads:
    """Sums over queries of what each head does, and the tokens that are sinks."""

    wants_context: ClassVar[bool] = True

    def __init__(self, causal: bool, threshold: float, min_queries: int) -> None:
        self.causal, self.threshold, self.min_queries = causal, threshold, min_queries
        self.sums: dict[str, Tensor] = {}
        self.queries = self.bad = self.sequences = 0
        self.sinks: Counter[tuple[int, int]] = Counter()

    def update(self, values: Tensor, context: Context) -> None:
        for row, pattern in enumerate(values.detach()):
            tokens = None if context.tokens is None else context.tokens[row]
            if context.mask is not None and context.mask.shape[1] == pattern.shape[-1]:
                real = context.mask[row].to(pattern.device)
                pattern = pattern[:, real][:, :, real]
                tokens = tokens[real.to(tokens.device)] if tokens is not None else None
            if not bool(pattern.isfinite().all()):
                self.bad += 1
            elif pattern.shape[1] > 1:
                self._sequence(pattern.double(), tokens)

    def _sequence(self, pattern: Tensor, tokens: Tensor | None) -> None:
        n = pattern.shape[-1]
        start = 1 if self.causal else 0
        used = pattern[:, start:]
        visible = torch.arange(start + 1, n + 1, device=pattern.device) if self.causal else pattern.new_full((n,), n)
        entropy = attention_entropy(used)
        received, seen = received_attention(pattern, self.causal)
        sink = (received > self.threshold) & (seen >= min(self.min_queries, n - start))
        found = {
            "entropy": entropy.sum(-1),
            "relative_entropy": (entropy / visible.double().log()).sum(-1),
            "first": used[..., 0].sum(-1),
            "sink": (used * sink[:, None, :]).sum((-1, -2)),
            "previous": pattern.diagonal(-1, -2, -1).sum(-1),
            "diagonal": used.diagonal(start, -2, -1).sum(-1),
        }
        self.sums = {k: self.sums[k] + v if self.sums else v for k, v in found.items()}
        self.queries += n - start
        self.sequences += 1
        for position in sink.any(0).nonzero().flatten().tolist():
            token = -1 if tokens is None else int(tokens[position])
            self.sinks[token, position] += int(sink[:, position].sum())

    def result(self) -> tuple[dict[str, Tensor], Counter[tuple[int, int]], int, int]:
        if not self.queries:
            raise InputError("attention needs sequences of two positions or more with finite patterns")
        means = {name: (value / self.queries).cpu() for name, value in self.sums.items()}
        return means, self.sinks, self.sequences, self.bad


def attention_summary(
    model: Model,
    inputs: Any,
    at: str | Sequence[str] | None = None,
    *,
    threshold: float = 0.3,
    min_queries: int = 8,
    batch_size: int | None = 8,
    progress: bool = False,
) -> Result:
    """Entropy, sinks and local attention of every head, averaged over queries.

    In a causal model the first query, which can only see itself, is left out.

    Args:
        model: the model.
        inputs: texts, tokens or images.
        at: sites `...attn.pattern`; those of every block by default.
        threshold: a key is a sink of a head when it gets more than this mean attention ...
        min_queries: ... from at least this many queries (or all, in shorter sequences).
        batch_size: rows per pass; patterns take batch * head * query * key numbers.
        progress: show a progress bar.

    Returns:
        by layer and head, between 0 and 1: `sink` (attention that goes to sink keys), `first` (to the first
        token), `previous` (to the token before), `diagonal` (to itself), `relative_entropy` (over that of even
        attention); `entropy` in nats. By sink, the commonest first: `sink_token`, `sink_position`, `sink_heads`
        (mean number of heads for which it is one, over sequences, all layers together).

    Raises:
        InputError, SiteError: no attention, or no sequence of two positions.

    Source: Gu et al., 2025 (sinks, threshold 0.3); Xiao et al., 2024 (attention to the first token).
    """
    if not 0 < threshold < 1 or min_queries < 1:
        raise InputError(f"expected 0 < threshold < 1 and min_queries >= 1, got {threshold} and {min_queries}")
    inputs, layers = ready(model, inputs), choose(model, "attn.pattern", at)
    _only_patterns(model, layers)
    causal = model.tower.stack.causal
    heads = _Heads(causal, threshold, min_queries)
    found = stream(model, inputs, layers, heads, batch_size, progress, _at_once(model, inputs, batch_size))
    two = (layers.dim, "head")
    variables: dict[str, Any] = {
        name: (two, torch.stack([means[name] for means, *_ in found]).numpy())
        for name in sorted(FIELDS, key=lambda name: name != "sink")
    }
    sinks: Counter[tuple[int, int]] = sum((counts for _, counts, *_ in found), Counter())
    common = sinks.most_common(50)
    sequences = max(1, found[0][2])
    names = [_token(model, token) for (token, _), _ in common]
    variables["sink_token"] = (("sink_rank",), np.array(names, dtype=str))
    variables["sink_position"] = (("sink_rank",), np.array([p for (_, p), _ in common], dtype=int))
    variables["sink_heads"] = (("sink_rank",), np.array([n / sequences for _, n in common], dtype=float))
    variables["skipped"] = ((), max(bad for *_, bad in found))
    return as_result(
        model,
        inputs,
        "attention_summary",
        variables,
        layers.coords,
        at=layers.names,
        threshold=threshold,
        min_queries=min_queries,
    )


def _at_once(model: Model, inputs: Inputs, batch_size: int | None) -> int | None:
    """How many layers' patterns fit in memory; further layers are read in another pass."""
    if inputs.tokens is None:
        return None
    rows, length = inputs.tokens.ids.shape
    size = 4 * min(rows, batch_size or rows) * max(1, model.n_heads) * length**2
    return max(1, MEMORY // size)


def _only_patterns(model: Model, layers: Layers) -> None:
    wrong = [s.name for s in model.sites(layers.names) if not s.part.endswith("pattern")]
    if wrong:
        raise InputError(f"attention_summary reads '...attn.pattern' sites, not {', '.join(wrong)}")


def _token(model: Model, token: int) -> str:
    if token < 0:
        return ""
    return model.to_str_tokens([token])[0] if model.tokenizer is not None else str(token)
