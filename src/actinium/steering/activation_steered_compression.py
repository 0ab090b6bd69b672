"""Activation-steered compression (ASC): shorter reasoning by one vector, added at the token that is predicted from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import ActiniumWarning, InputError
from actinium.core.estimator import Estimator
from actinium.core.inputs import Tokens, tokenize
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.probes.positions import activations_at
from actinium.steering.application import steer
from actinium.steering.held_out import check_held_out, text_marks
from actinium.steering.kl_bound import kl_bounded_strength, measured_kl
from actinium.steering.property_deltas import end_tokens
from actinium.steering.vector import SteeringVector

__all__ = ["ActivationSteeredCompression", "length_sweep"]

PAPER = "asc"
READ = ("last", "mean_rationale")
# Share of pairs whose concise text may be as long as the verbose one before it is said.
UNSHORTENED = 0.2


class ActivationSteeredCompression(Estimator):
    """A vector from verbose to concise reasoning: v = mean [h(q + concise) - h(q + verbose)].

    The vector is read and added at one site, unless told otherwise. Whether it shortens must be measured on other
    questions, see `length_sweep`; files do not tell the sign.

    Args:
        site: one site, such as "blocks.3.resid_post".
        token: what is read of each rationale: "last" token, or "mean_rationale", the mean over its tokens. The last
            token is often the same punctuation in both, which carries less.
        read_at: another site where the vector is read, of the same width; "blocks.3.resid_pre" beside the site
            "blocks.3.resid_post" is what the authors' program does.

    Attributes:
        vector_: `SteeringVector`.
        stability_: cosine between the vectors of two random halves of the pairs (drawn with a fixed seed).

    Source: Azizi, Potraghloo and Pedram, 2025.
    """

    fitted = "vector_"
    vector_: SteeringVector
    stability_: float

    def __init__(self, site: str, token: str = "last", read_at: str | None = None) -> None:
        self.site, self.token, self.read_at = site, token, read_at

    def fit(
        self,
        model: Model,
        problems: Sequence[str],
        concise: Sequence[str],
        verbose: Sequence[str],
        *,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Self:
        """Find the vector.

        Args:
            model: a causal language model with a tokenizer.
            problems: questions, up to where the model begins to reason.
            concise, verbose: two rationales of each, which follow it without a space of their own.
            batch_size: texts in a pass.
            progress: show a progress bar.

        Raises:
            InputError: numbers differ, there are fewer than two, a rationale is empty, no concise one is shorter, or
                the token setting is unknown, or a problem with its rationale is longer than the context.
            SiteError: the site does not exist.
        """
        if self.token not in READ:
            raise InputError(f"token must be one of {', '.join(READ)}, not {self.token!r}")
        sizes = (len(problems), len(concise), len(verbose))
        if len(set(sizes)) != 1 or sizes[0] < 2:
            raise InputError(f"give two problems or more, each with both rationales; got {sizes}")
        read_at = self.site if self.read_at is None else self.read_at
        for pattern in (read_at, self.site):
            found = model.sites(pattern)
            if len(found) != 1:
                raise InputError(f"{pattern!r} means {len(found)} sites; one is needed")
        lengths = [
            [self._size(model, *text) for text in zip(problems, side, strict=True)] for side in (concise, verbose)
        ]
        unshortened = float(np.mean(np.array(lengths[0]) >= np.array(lengths[1])))
        if unshortened == 1:
            raise InputError("no concise rationale is shorter than its verbose one; are they exchanged?")
        if unshortened > UNSHORTENED:
            warnings.warn(f"{unshortened:.0%} of the concise rationales are not shorter", ActiniumWarning, stacklevel=2)
        rows = []
        for side, sizes_of in zip((concise, verbose), lengths, strict=True):
            texts = [q + r for q, r in zip(problems, side, strict=True)]
            place: Any = -1
            if self.token == "mean_rationale":
                mask = model.to_tokens(texts).mask
                ends, columns = mask.cumsum(1), mask.sum(1, keepdim=True)
                place = mask & (ends > columns - torch.tensor(sizes_of)[:, None])
            options = {"batch_size": batch_size, "progress": progress}
            (values,) = activations_at(model, texts, read_at, {"read": place}, **options).values()
            rows.append(values.double())
        difference = rows[0] - rows[1]
        made = {"model": model.fingerprint(), "name": model.name, "pairs": len(difference), "token": self.token}
        made["texts"] = text_marks(list(problems))
        vector = SteeringVector({found[0].name: difference.mean(0)}, "verbose to concise", made)
        vector.check(model)
        self.vector_ = vector
        # In the given order even and odd pairs may be of different kinds.
        order = torch.randperm(len(difference), generator=torch.Generator().manual_seed(0))
        halves = difference[order[::2]].mean(0), difference[order[1::2]].mean(0)
        self.stability_ = float(torch.nn.functional.cosine_similarity(*halves, dim=0))
        return self

    @staticmethod
    def _size(model: Model, problem: str, rationale: str) -> int:
        """Tokens that a rationale adds to its problem; alone it may be cut otherwise than behind it."""
        whole, start = (
            tokenize(model.tokenizer, [text], model.context, window=False).ids.shape[1]
            for text in (problem + rationale, problem)
        )
        if whole <= start:
            raise InputError("a rationale is empty")
        return whole - start

    @property
    def direction(self) -> Tensor:
        """The vector (d,).

        Raises:
            InputError: not fitted.
        """
        self.check_fitted()
        return self.vector_[self.vector_.sites[0]]

    def coefficient(self, model: Model, contexts: Any, epsilon: float = 0.05, bound: str = "second_order") -> float:
        """The strength that moves the next token by `epsilon` nats on average; bound "exact" bisects.

        Args:
            model: the model.
            contexts: calibration texts, for example questions with the start of their reasoning.
            epsilon: budget in nats.
            bound: "second_order", "hoeffding", "spectral" (see `steering.kl_bounded_coefficient`), or "exact".
        """
        exact = bound == "exact"
        closed = "second_order" if exact else bound
        return kl_bounded_strength(
            model, self.vector_.sites[0], self.direction, contexts, epsilon, bound=closed, exact=exact
        )

    @contextmanager
    def apply(self, model: Model, strength: float | Tensor = 1.0, *, transfer: bool = False) -> Iterator[Model]:
        """Steer while the block lasts, at the prompt's last token and at every new one."""
        self.check_fitted()
        with steer(model, self.vector_, strength, positions="last", transfer=transfer):
            yield model

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the vector to one safetensors file, which `SteeringVector.load` reads, too."""
        self.check_fitted()
        made = {**self.vector_.made, "asc": {**self.get_params(), "stability": self.stability_}}
        return SteeringVector(self.vector_.directions, self.vector_.method, made).save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            LoadError, InputError: the file is missing, damaged, or holds another vector.
        """
        vector = SteeringVector.load(path)
        made = dict(vector.made)
        settings = made.pop("asc", None)
        if settings is None:
            raise InputError(f"{path} holds a steering vector that is not of activation-steered compression")
        stability = settings.pop("stability")
        out = cls(**settings)
        out.vector_, out.stability_ = SteeringVector(vector.directions, vector.method, made), stability
        return out


def length_sweep(
    model: Model,
    vector: SteeringVector,
    prompts: Sequence[str],
    strengths: Sequence[float],
    judge: Callable[[int, str], bool],
    *,
    max_new_tokens: int = 128,
    contexts: Sequence[str] | None = None,
    batch_size: int = 32,
    progress: bool = False,
    **sampling: Any,
) -> Result:
    """How long replies are, and how often right, at each strength of a vector.

    Args:
        model: a causal language model with a tokenizer.
        vector: at one site, such as `ActivationSteeredCompression.vector_`; added at the prompt's last token and at
            every new one.
        prompts: questions that did not make the vector.
        strengths: of steering; 0 is added as the baseline where it is missing.
        judge: called with the number of a prompt and its reply; says whether the reply is right.
        max_new_tokens: longest reply; longer ones are cut and counted as truncated.
        contexts: texts behind which the divergence of the next token is measured, for example questions with the
            start of their reasoning; the prompts by default, though their next token is often certain.
        batch_size: replies in one generation; strengths share it.
        progress: show a progress bar.
        **sampling: of `generate`; greedy by default.

    Returns:
        Result over strength: `tokens` (mean), `tokens_median`, `compression` (1 - tokens / tokens at strength 0),
        `accuracy`, `truncated` (shares), `kl` (mean KL(plain || steered) of the next token behind the contexts, nats).

    Raises:
        InputError: no prompts or strengths, one that is not finite, a vector at several sites, or a prompt that also
            made it.

    Source: Azizi, Potraghloo and Pedram, 2025 (their measures).
    """
    if len(vector) != 1:
        raise InputError(f"the vector has {len(vector)} sites; one is steered: use vector.only(site)")
    if isinstance(prompts, str) or not len(prompts) or not len(strengths):
        raise InputError("give a list of prompts and one strength or more")
    if not np.isfinite(list(strengths)).all():
        raise InputError(f"strengths must be finite: {list(strengths)}")
    held = check_held_out(prompts, vector.made)
    (site,) = vector.sites
    places = list(prompts if contexts is None else contexts)
    every = sorted({0.0, *map(float, strengths)})
    # Strengths share batches, each with its own rows.
    jobs = [(strength, i) for strength in every for i in range(len(prompts))]
    replies: list[tuple[str, int, bool]] = []
    starts = shown(range(0, len(jobs), batch_size), "generating", progress)
    for start in starts:
        some = jobs[start : start + batch_size]
        with steer(model, vector, torch.tensor([strength for strength, _ in some]), positions="last"):
            replies += _replies(model, [prompts[i] for _, i in some], max_new_tokens, sampling)
    tables = []
    for turn, strength in enumerate(every):
        own = replies[turn * len(prompts) : (turn + 1) * len(prompts)]
        right = [bool(judge(i, text)) for i, (text, _, _) in enumerate(own)]
        sizes, cut = [size for _, size, _ in own], [not ended for _, _, ended in own]
        divergence = measured_kl(model, site, vector[site], places, strength) if strength else 0.0
        tables.append((np.mean(sizes), np.median(sizes), np.mean(right), np.mean(cut), divergence))
    columns = np.array(tables, dtype=float).T
    names = ("tokens", "tokens_median", "accuracy", "truncated", "kl")
    data = {name: ("strength", values) for name, values in zip(names, columns, strict=True)}
    data["compression"] = ("strength", 1 - columns[0] / columns[0][every.index(0.0)])
    record = provenance(model, list(prompts), strengths=every, max_new_tokens=max_new_tokens, held_out=held, **sampling)
    hints = {"plot": {"variables": ["compression", "accuracy"]}}
    return Result(xr.Dataset(data, coords={"strength": every}, attrs=hints), "length_sweep", PAPER, record)


def _replies(model: Model, prompts: list[str], most: int, sampling: dict[str, Any]) -> Iterator[tuple[str, int, bool]]:
    """Text, number of tokens (the end token not counted), and whether it ended, of each reply."""
    tokenizer: Any = model.tokenizer
    tokens: Tokens = tokenize(tokenizer, prompts, model.context, "left", window=False)
    options = {"do_sample": False, **sampling, "max_new_tokens": most}
    whole = model.generate(tokens, **options)
    ends = end_tokens(model, ())
    for row in whole[:, tokens.ids.shape[1] :].tolist():
        size = next((i for i, token in enumerate(row) if token in ends), len(row))
        yield tokenizer.decode(row[:size], skip_special_tokens=True), size, size < len(row)
