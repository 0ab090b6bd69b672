"""RAST: what tuning did to a small model's logits, added to those of a large one at every step of decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.inputs import Tokens, tokenize
from actinium.core.model import Model
from actinium.steering.cached_logits import CachedLogits

__all__ = ["DeltaLogitsProcessor", "LogitDeltaTransfer"]

Pair = tuple[Model, Model]


class LogitDeltaTransfer:
    """z = z_base + sum_k strength_k (z_tuned_k - z_small_k): a large model decodes as if it had been tuned.

    In probabilities: p_base times (p_tuned / p_small)^strength, normalised. No activation is changed; it stands here
    to be compared with steering. Every step costs a pass of each model.

    Args:
        base: the large model.
        experts: a pair (tuned small model, the small model it was tuned from), or several.
        strengths: one for each pair.
        truncate: vocabularies may differ in length, as padded ones of one family do: the shared part is used and the
            rest gets probability 0.

    Raises:
        InputError: no pair, strengths that do not fit or are not finite, models that are no causal language models,
            tokenizers or chat templates that differ, or vocabularies of other lengths without `truncate`.

    Source: Ouyang et al., 2025, RAST; Liu et al., 2024, proxy tuning.
    """

    def __init__(
        self,
        base: Model,
        experts: Pair | Sequence[Pair],
        strengths: float | Sequence[float] = 1.0,
        *,
        truncate: bool = False,
    ) -> None:
        alone = isinstance(experts, tuple) and len(experts) > 0 and isinstance(experts[0], Model)
        pairs: list[Any] = [experts] if alone else list(experts)
        given = [strengths] * len(pairs) if isinstance(strengths, int | float) else list(strengths)
        if not pairs or any(not isinstance(p, tuple) or len(p) != 2 for p in pairs) or len(given) != len(pairs):
            raise InputError(
                f"give one pair (tuned, small) or more, and a strength for each; got {len(given)} strengths"
            )
        if not all(math.isfinite(s) for s in given):
            raise InputError(f"strengths must be finite: {given}")
        self.base, self.pairs, self.strengths = base, [(p[0], p[1]) for p in pairs], [float(s) for s in given]
        models = [base, *(m for pair in self.pairs for m in pair)]
        for model in models:
            if model.kind != "causal-lm":
                raise InputError(
                    f"{model.name} is a {model.kind}; logits are transferred between causal language models"
                )
        sizes = [int(m.config.vocab_size) for m in models]
        if len(set(sizes)) > 1 and not truncate:
            raise InputError(f"vocabularies have {sizes} tokens; pass truncate=True to use the shared part")
        self.shared = min(sizes)
        for model in models[1:]:
            _check_tokenizers(base, model, self.shared)

    @property
    def parameters(self) -> int:
        """Number of parameters of all models together: what has to be held in memory."""
        models = {id(m): m for m in [self.base, *(m for pair in self.pairs for m in pair)]}
        return sum(p.numel() for m in models.values() for p in m.module.parameters())

    def combine(self, base: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        """Logits (…, d_vocab) float32 of the base and the pairs' differences put together.

        Args:
            base: raw logits of the base (…, d_vocab).
            deltas: z_tuned - z_small of each pair (…, shared or more).
        """
        out = base.float().clone()
        for strength, delta in zip(self.strengths, deltas, strict=True):
            out[..., : self.shared] += strength * delta[..., : self.shared].to(out.device)
        out[..., self.shared :] = -torch.inf
        return out

    def logits(self, inputs: Any) -> Tensor:
        """(batch, pos, d_vocab) float32 at every position."""
        return self.combine(self.base.logits(inputs), self.deltas(inputs))

    def deltas(self, inputs: Any) -> list[Tensor]:
        """z_tuned - z_small of each pair, (batch, pos, shared) float32."""
        out = []
        for tuned, small in self.pairs:
            one, other = (m.logits(inputs)[..., : self.shared].float() for m in (tuned, small))
            out.append(one - other.to(one.device))
        return out

    def generate(self, inputs: Any, **options: Any) -> Any:
        """Continue texts with the base's own `generate`; every model keeps a cache.

        The sum is taken on raw logits, before temperature and nucleus. (A repetition penalty of transformers acts on
        the base's logits first.)

        Args:
            inputs: a text, a list of texts, or token ids (batch, pos).
            **options: those of `transformers.GenerationMixin.generate`.
        """
        if isinstance(inputs, Tensor):
            mask = torch.ones_like(inputs, dtype=torch.bool)
        elif isinstance(inputs, Tokens):
            mask = inputs.mask
        else:
            texts = [inputs] if isinstance(inputs, str) else list(inputs)
            mask = tokenize(self.base.tokenizer, texts, self.base.context, "left", window=False).mask
        processor = DeltaLogitsProcessor(self, mask)
        mine = list(options.pop("logits_processor", None) or [])
        return self.base.generate(inputs, logits_processor=[processor, *mine], **options)


class DeltaLogitsProcessor:
    """A `LogitsProcessor` of transformers that adds the pairs' differences; for one call of `generate`.

    Args:
        transfer: the models and strengths.
        mask: (batch, pos) bool of the prompts, False on padding.
    """

    def __init__(self, transfer: LogitDeltaTransfer, mask: Tensor) -> None:
        self.transfer, self.mask = transfer, mask.bool()
        self.runs = [tuple(CachedLogits(m) for m in pair) for pair in transfer.pairs]

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, d_vocab) with the differences added."""
        rows, columns = input_ids.shape
        if rows % len(self.mask):
            raise InputError(f"{rows} sequences do not come from {len(self.mask)} prompts")
        mask = self.mask.to(input_ids.device).repeat_interleave(rows // len(self.mask), 0)
        mask = torch.nn.functional.pad(mask, (0, columns - mask.shape[1]), value=True)
        deltas = []
        for tuned, small in self.runs:
            one, other = (run(input_ids, mask).float() for run in (tuned, small))
            size = self.transfer.shared
            deltas.append(one[..., :size] - other[..., :size].to(one.device))
        out = self.transfer.combine(scores, deltas)
        # Beam search gives log probabilities and compares them between rows: those of the sum must be some, too.
        whole = scores.float().logsumexp(-1, keepdim=True).abs() < 1e-3
        return torch.where(whole, out - out.logsumexp(-1, keepdim=True), out)


def _check_tokenizers(base: Model, other: Model, shared: int) -> None:
    """Refuse two models whose token ids below `shared` do not mean the same."""
    one, two = base.tokenizer, other.tokenizer
    if one is None or two is None:
        return
    known = {i: t for t, i in one.get_vocab().items() if i < shared}
    theirs = {i: t for t, i in two.get_vocab().items() if i < shared}
    if known != theirs:
        wrong = next(i for i in sorted({*known, *theirs}) if known.get(i) != theirs.get(i))
        raise InputError(
            f"token {wrong} is {known.get(wrong)!r} in {base.name} and {theirs.get(wrong)!r} in {other.name}; logits"
            " can be transferred only where token ids mean the same"
        )
    if getattr(one, "chat_template", None) != getattr(two, "chat_template", None):
        raise InputError(
            f"{base.name} and {other.name} have different chat templates: they would read different prompts"
        )
