"""Output signatures: all that a language model shows of itself without its activations, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.fitted import opened, write_fitted
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.core.progress import shown

__all__ = ["OutputSignature", "load_signatures", "output_signatures", "save_signatures"]

KIND = "list of output signatures"
# A row whose log-probabilities differ by no more than this share of their size has no shape: its z-scores are 0.
FLAT = 1e-6
# How far a probability that an interface has rounded may lie above what is possible.
ROUNDING = 1e-3
FIELDS = ("tds", "atp", "rank", "mean", "std", "expected", "spread")


@dataclass(frozen=True, eq=False)
class OutputSignature:
    """The distributions that a model gave at N steps, without the names of the tokens, and what occurred.

    Make one with `from_logits`, `from_topk` or, for texts, `output_signatures`.

    Attributes:
        tds: (N, K) log-probabilities of the K most likely tokens of each step, falling (token distribution sequence).
        atp: (N,) log-probability of the token that occurred (actual token probability), in nats.
        rank: (N,) int64, how many tokens were more likely than the one that occurred; 0 for the most likely. Where
            the vocabulary is cut to K and the token is not among them, K.
        mean, std: (N,) of all log-probabilities of a step, each token counted once; std is the unbiased one. Of the K
            known ones in a partial signature.
        expected, spread: (N,) mean and standard deviation of log p under p itself (-expected is the entropy); None in
            a partial signature.
        vocab_size: V, tokens that the model knows.
        partial: whether only the K most likely tokens were known.

    Source: Bar-Shalom et al., 2025, section 3 (the signature); Zhang et al., 2024 (mean and deviation under p).
    """

    tds: Tensor
    atp: Tensor
    rank: Tensor
    mean: Tensor
    std: Tensor
    expected: Tensor | None
    spread: Tensor | None
    vocab_size: int
    partial: bool = False

    def __len__(self) -> int:
        return len(self.atp)

    @classmethod
    def from_logits(
        cls, logits: Any, token_ids: Any, *, shift: bool = True, keep: int | None = None
    ) -> OutputSignature:
        """The signature of one sequence.

        Args:
            logits: (N, V) before or after a log-softmax.
            token_ids: (N,) the tokens.
            shift: whether row i of the logits is about token i + 1, as when a text is read: the first token and the
                last row are then not used. Without it row i is about token i, as for the steps of a generation (of
                `generate(..., output_logits=True)`; its `scores` may have been cut to the most likely tokens).
            keep: most likely tokens to keep of each row; all by default. Moments are always those of the whole row.

        Raises:
            InputError: the shapes do not fit, there is nothing to score, or a value is not finite.
        """
        rows, ids = torch.as_tensor(logits).detach(), torch.as_tensor(token_ids)
        if rows.ndim != 2 or ids.shape != rows.shape[:1] or not rows.is_floating_point() or ids.is_floating_point():
            raise InputError(
                f"expected logits (N, V) and N token ids, got {tuple(rows.shape)} ({rows.dtype}) and "
                f"{tuple(ids.shape)} ({ids.dtype})"
            )
        if shift:
            rows, ids = rows[:-1], ids[1:]
        if not len(rows):
            raise InputError("no token is left to score" + (": the first one has no logits before it" if shift else ""))
        vocab_size = rows.shape[1]
        if vocab_size < 2 or int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
            raise InputError(f"token ids must be from 0 to {vocab_size - 1}, got {int(ids.min())} to {int(ids.max())}")
        if keep is not None and keep < 1:
            raise InputError(f"keep must be at least 1, got {keep}")
        _finite(rows, "logits")
        logp = torch.log_softmax(rows if rows.dtype == torch.float64 else rows.float(), -1)
        atp = logp.gather(1, ids.long()[:, None].to(logp.device))[:, 0]
        p = logp.exp()
        expected = (p * logp).sum(-1)
        spread = (p * (logp - expected[:, None]) ** 2).sum(-1).sqrt()
        tds = logp.topk(min(keep or vocab_size, vocab_size)).values
        # Equal probabilities share the first place, as a search for the value in the sorted row gives it.
        rank = (logp > atp[:, None]).sum(-1)
        found = (tds, atp, rank, logp.mean(-1), logp.std(-1), expected, spread)
        return cls(*(t.cpu() for t in found), vocab_size)

    @classmethod
    def from_topk(cls, logprobs: Any, token_logprobs: Any, vocab_size: int) -> OutputSignature:
        """The partial signature of one sequence, from an interface that gives the most likely tokens only.

        Args:
            logprobs: (N, K) log-probabilities of the K most likely tokens of each step, in any order.
            token_logprobs: (N,) log-probability of the token that occurred, among these or not.
            vocab_size: tokens that the model knows, V >= K.

        Raises:
            InputError: the shapes do not fit, a value is not finite, or the numbers are no log-probabilities.
        """
        rows, atp = torch.as_tensor(logprobs).detach().cpu(), torch.as_tensor(token_logprobs).detach().cpu()
        if rows.ndim != 2 or atp.shape != rows.shape[:1] or not rows.numel() or rows.shape[1] < 2:
            raise InputError(
                f"expected log-probabilities (N, K) with K >= 2 and (N,), got {tuple(rows.shape)} and "
                f"{tuple(atp.shape)}"
            )
        rows, atp = (t if t.dtype == torch.float64 else t.float() for t in (rows, atp))
        if rows.shape[1] > vocab_size:
            raise InputError(f"{rows.shape[1]} most likely tokens of a vocabulary of {vocab_size}")
        _finite(rows, "log-probabilities")
        _finite(atp, "log-probabilities")
        if bool((rows.exp().sum(-1) > 1 + ROUNDING).any()):
            raise InputError("the probabilities of a step sum to more than 1; pass log-probabilities, not logits")
        tds = rows.sort(descending=True).values
        if bool((atp > tds[:, 0] + ROUNDING).any()):
            raise InputError("a token that occurred is more likely than the most likely token of its step")
        rank = (tds > atp[:, None]).sum(-1)
        return cls(tds, atp, rank, tds.mean(-1), tds.std(-1), None, None, int(vocab_size), partial=True)

    def normalised(self) -> tuple[Tensor, Tensor]:
        """(N, K) tds and (N,) atp as z-scores of the whole row; 0 where a row is flat."""
        flat = self.std <= FLAT * self.mean.abs().clamp_min(1.0)
        scale = torch.where(flat, torch.inf, self.std)
        return (self.tds - self.mean[:, None]) / scale[:, None], (self.atp - self.mean) / scale

    def features(self, k: int = 1000, n_max: int = 100) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the networks read: cut and padded to one size.

        Args:
            k: most likely tokens; columns beyond the vocabulary are 0.
            n_max: steps; rows behind the last are 0, and their rank is V - 1.

        Returns:
            (n_max, k) normalised tds, (n_max,) normalised atp, (n_max,) int64 rank, (n_max,) bool, True on real steps.

        Raises:
            InputError: fewer than k tokens were kept of a larger vocabulary.
        """
        if k < 1 or n_max < 1:
            raise InputError(f"expected k >= 1 and n_max >= 1, got {k} and {n_max}")
        if self.tds.shape[1] < min(k, self.vocab_size):
            raise InputError(
                f"k is {k}, but this signature holds the {self.tds.shape[1]} most likely of {self.vocab_size} tokens; "
                f"set k={self.tds.shape[1]} or keep more"
            )
        n = min(len(self), n_max)
        tds, atp = self.normalised()
        wide = tds.new_zeros(n_max, k)
        wide[:n, : tds.shape[1]] = tds[:n, :k]
        long, rank = atp.new_zeros(n_max), torch.full((n_max,), self.vocab_size - 1)
        long[:n], rank[:n] = atp[:n], self.rank[:n]
        return wide, long, rank, torch.arange(n_max) < n

    def steps(self, chosen: slice) -> OutputSignature:
        """The signature of some of the steps.

        Raises:
            InputError: none is chosen.
        """
        parts = {name: getattr(self, name) for name in FIELDS}
        parts = {name: None if t is None else t[chosen] for name, t in parts.items()}
        if not len(parts["atp"]):
            raise InputError(f"no step is chosen; the signature has {len(self)}")
        return OutputSignature(**parts, vocab_size=self.vocab_size, partial=self.partial)

    def __repr__(self) -> str:
        kind = "partial, " if self.partial else ""
        return f"OutputSignature({kind}{len(self)} steps, {self.tds.shape[1]} of {self.vocab_size} tokens)"


def _finite(values: Tensor, what: str) -> None:
    bad = ~torch.isfinite(values).reshape(len(values), -1).all(1)
    if bool(bad.any()):
        raise InputError(f"{what}: row {int(bad.nonzero()[0])} holds NaN or infinite values")


@torch.no_grad()
def output_signatures(
    model: Model,
    inputs: Any,
    *,
    keep: int | None = 1000,
    start: Sequence[int] | int = 1,
    batch_size: int = 32,
    progress: bool = False,
) -> list[OutputSignature]:
    """Signatures of texts that a causal language model reads, one for each.

    Args:
        model: the model.
        inputs: texts or tokens; padding is left out.
        keep: most likely tokens to keep of each step, None for all.
        start: first token that is scored, from 1, one for all or one for each text. To examine an answer, give the
            number of tokens of its prompt. The first token is never scored: a begin-of-text token that the tokenizer
            sets is not, and without one neither is the first word.
        batch_size: texts in a pass.
        progress: show a progress bar.

    Raises:
        InputError: the model is no causal language model, a text is longer than its context or has nothing to score.
    """
    if model.kind != "causal-lm":
        raise InputError(f"{model.name} is a {model.kind}; output signatures need a causal language model")
    tokens = model.prepare(inputs).tokens
    if tokens is None:
        raise InputError("output signatures need texts or tokens")
    if len(tokens.rows.unique()) != len(tokens):
        raise InputError(f"a text is longer than the model's context of {model.context} tokens; cut it first")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    starts = [start] * len(tokens) if isinstance(start, int) else list(start)
    lengths = tokens.mask.sum(1).tolist()
    if len(starts) != len(tokens):
        raise InputError(f"{len(starts)} starts were given for {len(tokens)} texts")
    for i, (first, length) in enumerate(zip(starts, lengths, strict=True)):
        if not 1 <= first < length:
            raise InputError(f"text {i} has {length} tokens; scoring starts at 1 to {length - 1}, not {first}")
    found: list[OutputSignature] = []
    for begin in shown(range(0, len(tokens), batch_size), "output signatures", progress):
        part: Tokens = tokens[slice(begin, begin + batch_size)]
        logits = model.logits(part)
        for row, ids, mask in zip(logits, part.ids, part.mask, strict=True):
            one = OutputSignature.from_logits(row[mask.to(row.device)], ids[mask], keep=keep)
            found.append(one.steps(slice(starts[len(found)] - 1, None)))
    return found


def save_signatures(path: str | Path, signatures: Sequence[OutputSignature], half: bool = True) -> Path:
    """Write signatures to one safetensors file.

    Args:
        path: the file.
        signatures: all whole or all partial, with the same number of kept tokens.
        half: keep the distributions as float16, as the published code does.

    Raises:
        InputError: there are none, or they are not of one kind.
    """
    one_kind(signatures)
    kept = {s.tds.shape[1] for s in signatures}
    if len(kept) > 1:
        raise InputError(f"signatures of one file keep the same number of tokens, got {sorted(kept)}")
    names = [name for name in FIELDS if getattr(signatures[0], name) is not None]
    tensors = {name: torch.cat([getattr(s, name) for s in signatures]) for name in names}
    if half:
        tensors["tds"] = tensors["tds"].half()
    settings = {"lengths": [len(s) for s in signatures], "vocab_sizes": [s.vocab_size for s in signatures]}
    return write_fitted(path, KIND, tensors, settings, partial=signatures[0].partial)


def load_signatures(path: str | Path) -> list[OutputSignature]:
    """Read what `save_signatures` wrote.

    Raises:
        LoadError: the file is missing, damaged, or holds something else.
    """
    with opened(path, KIND) as (about, tensors):
        lengths, sizes = about["settings"]["lengths"], about["settings"]["vocab_sizes"]
        tensors["tds"] = tensors["tds"].to(tensors["atp"].dtype)
        parts = {name: tensors[name].split(lengths) if name in tensors else [None] * len(lengths) for name in FIELDS}
        rows = zip(*(parts[name] for name in FIELDS), sizes, strict=True)
        return [OutputSignature(*row, partial=about["partial"]) for row in rows]


def one_kind(signatures: Sequence[OutputSignature]) -> None:
    """Refuse what is no list of signatures, and whole ones beside partial ones.

    Raises:
        InputError: so it is.
    """
    if isinstance(signatures, OutputSignature) or not len(signatures):
        raise InputError("expected a list of output signatures with at least one in it")
    for i, one in enumerate(signatures):
        if not isinstance(one, OutputSignature):
            raise InputError(f"entry {i} is a {type(one).__name__}, not an OutputSignature")
    if len({one.partial for one in signatures}) > 1:
        raise InputError("whole and partial signatures have different moments and cannot be mixed")
