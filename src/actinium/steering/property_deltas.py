"""What a property does to activations at each step of an answer: one vector for each site and step."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from actinium.core.errors import InputError, LoadError
from actinium.core.fitted import read_fitted, write_fitted
from actinium.core.inputs import tokenize
from actinium.core.model import Model
from actinium.core.progress import shown

__all__ = ["PropertyDeltas", "fit_property"]

KIND = "property deltas"
HEADS = "blocks.*.attn.z"


@dataclass(frozen=True, eq=False)
class PropertyDeltas:
    """Mean activation with a property minus without it, by site and step.

    Attributes:
        deltas: {site: (T, …)} float32; step 0 is at the prompt's last token.
        counts: (2, T), answers with and without the property that were still going on at each step. Late steps rest on
            few of them.
        fingerprint: of the model.
    """

    deltas: Mapping[str, Tensor]
    counts: Tensor
    fingerprint: str = ""

    def __post_init__(self) -> None:
        lengths = {len(v) for v in self.deltas.values()}
        if not self.deltas or len(lengths) != 1 or 0 in lengths:
            raise InputError(f"every site needs the same number of steps, one or more, not {sorted(lengths)}")
        if not all(bool(torch.isfinite(v).all()) for v in self.deltas.values()):
            raise InputError("the deltas hold NaN or infinite values")

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(next(iter(self.deltas.values())))

    def __neg__(self) -> PropertyDeltas:
        """The opposite property."""
        return PropertyDeltas({k: -v for k, v in self.deltas.items()}, self.counts.flip(0), self.fingerprint)

    def first(self, steps: int) -> PropertyDeltas:
        """Only the first steps.

        Raises:
            InputError: there are not so many.
        """
        if not 1 <= steps <= self.steps:
            raise InputError(f"steps must be between 1 and {self.steps}, not {steps}")
        return PropertyDeltas({k: v[:steps] for k, v in self.deltas.items()}, self.counts[:, :steps], self.fingerprint)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one safetensors file."""
        tensors = {f"delta:{k}": v for k, v in self.deltas.items()} | {"counts": self.counts}
        return write_fitted(path, KIND, tensors, {"fingerprint": self.fingerprint}, sites=list(self.deltas))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged, or holds something else.
        """
        about, tensors = read_fitted(path, KIND)
        try:
            deltas = {site: tensors[f"delta:{site}"] for site in about["sites"]}
            return cls(deltas, tensors["counts"], **about["settings"])
        except (KeyError, TypeError, InputError) as error:
            raise LoadError(f"the {KIND} in {path} are damaged: {error}") from None


def fit_property(
    model: Model,
    plus_prompts: Sequence[str],
    minus_prompts: Sequence[str],
    steps: int = 30,
    sites: str | Sequence[str] = HEADS,
    *,
    stop: Sequence[str] = (),
    batch_size: int = 32,
    progress: bool = False,
) -> PropertyDeltas:
    """Let the model answer prompts with and without a property, and take the difference of its activations by step.

    Args:
        model: a causal language model with a tokenizer.
        plus_prompts: prompts whose examples show the property, so that the answer will have it.
        minus_prompts: prompts whose examples show its opposite.
        steps: tokens of the answers, T.
        sites: what is read at the last position of each step; what each head writes, before the output projection, in
            the paper. Any site with positions will do, but vectors of other sites are not interchangeable.
        stop: tokens that end an answer beside the end-of-text token, such as " Question".
        batch_size: prompts in one generation.
        progress: show a progress bar.

    Raises:
        InputError: no prompts, or no answer goes on to a step: give fewer steps.
        SiteError: a site does not exist.

    Source: Scalena, Sarti and Nissim, 2024, section 3.
    """
    if steps < 1:
        raise InputError(f"steps must be 1 or more, not {steps}")
    for texts, what in ((plus_prompts, "plus"), (minus_prompts, "minus")):
        if isinstance(texts, str) or not len(texts):
            raise InputError(f"{what} prompts: give a list of one text or more")
    names = [s.name for s in model.sites(sites)]
    for site in model.sites(sites):
        if site.dims[:2] != ("batch", "pos"):
            raise InputError(f"{site.name} has dimensions {site.dims}; activations at tokens are needed")
    ends = end_tokens(model, stop)
    sides = [_means(model, list(p), steps, names, ends, batch_size, progress) for p in (plus_prompts, minus_prompts)]
    counts = torch.stack([count for _, count in sides])
    if bool((counts == 0).any()):
        possible = int((counts > 0).all(0).int().cumprod(0).sum())
        raise InputError(f"no answer of one side goes on to step {possible}; give steps={possible}")
    deltas = {site: (sides[0][0][site] - sides[1][0][site]).float() for site in names}
    return PropertyDeltas(deltas, counts, model.fingerprint())


def end_tokens(model: Model, stop: Sequence[str]) -> set[int]:
    """Ids of the tokens that end an answer: the end of text, what else ends the model's generation, words of one token.

    Raises:
        InputError: the model has no tokenizer, or a word is not one token.
    """
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise InputError("this model has no tokenizer, and prompts are texts")
    found = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    # Chat models end a turn and a text with different tokens.
    ends = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
    found |= {int(one) for one in ([] if ends is None else [ends] if isinstance(ends, int) else ends)}
    for word in stop:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(f"a stop is one token; {word!r} has {len(ids)}")
        found.add(int(ids[0]))
    return found


def _means(
    model: Model, prompts: list[str], steps: int, sites: list[str], ends: set[int], batch_size: int, progress: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Mean (T, …) float64 by site, and how many answers each step had (T,)."""
    totals: dict[str, Any] = dict.fromkeys(sites, 0.0)
    counts = torch.zeros(steps, dtype=torch.long)
    starts = shown(range(0, len(prompts), batch_size), "answering", progress)
    for start in starts:
        tokens = tokenize(model.tokenizer, prompts[start : start + batch_size], model.context, "left", window=False)
        n = tokens.ids.shape[1]
        with model.recording(sites) as rec:
            ids = model.generate(tokens, max_new_tokens=steps, do_sample=False)
        new = ids[:, n:].cpu()
        over = torch.stack([new == e for e in ends]).any(0) if ends else torch.zeros_like(new, dtype=torch.bool)
        # Step i reads the token before the i-th new one: the answer must not have ended there.
        alive = torch.cat([torch.ones(len(new), 1, dtype=torch.bool), over.int().cumsum(1)[:, :-1] == 0], 1)
        alive = alive[:, : new.shape[1]]
        counts[: alive.shape[1]] += alive.sum(0)
        for site in sites:
            rows = rec[site][:, n - 1 : n - 1 + alive.shape[1]].double().cpu()
            weight = alive.view(*alive.shape, *[1] * (rows.ndim - 2))
            part = torch.where(weight, rows, 0.0).sum(0)
            whole = part.new_zeros(steps, *part.shape[1:])
            whole[: len(part)] = part
            totals[site] = totals[site] + whole
    return {s: t / counts.clamp_min(1).view(-1, *[1] * (t.ndim - 1)) for s, t in totals.items()}, counts
