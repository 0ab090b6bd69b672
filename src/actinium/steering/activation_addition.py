"""ActAdd: steer with two short prompts, whose difference at each token position is added to the start of a text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from actinium.core.edit import Edit
from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown
from actinium.core.finite_output import finite_output
from actinium.core.fitted import opened, write_fitted
from actinium.core.inputs import Tokens, tokenize
from actinium.core.model import Model
from actinium.steering.add_at_tokens import PLACEMENTS, AddAtTokens, first_token, token_rows, too_short
from actinium.steering.held_out import text_marks
from actinium.steering.operators import Strength, as_strength

__all__ = ["MODES", "ActivationAddition", "prompt_difference"]

KIND = "activation addition"
MODES = {
    "overlay": "added to the text's own tokens",
    "pad": "added to pad tokens that are put in front of the text",
    "pad_remove": "as pad; what the model says at the pad tokens is left out of the logits",
}
"""Name -> what the vectors are added to."""


@dataclass(frozen=True, eq=False)
class ActivationAddition:
    """The difference of two prompts at each of their tokens, added to a text while it is read.

    It is added in the pass over the prompt alone: later tokens feel it through attention. Make one with `from_prompts`.

    Args:
        vectors: h_A, (n, d), finite, not all zero, kept in float32.
        site: where it was read and is added, for example "blocks.6.resid_pre".
        strength: c, a number or (batch,).
        placement: "front", "mid" or "back"; "front" counts from each text's first token, <bos> where it has one.
        mode: a key of `MODES`; the two that pad go with "front".
        pad_id: token that "pad" and "pad_remove" put in front of texts.
        made: what is known of how it was made, in values that JSON can hold.

    Raises:
        InputError: vectors that are not finite (n, d) or all zero, or arguments that do not go together.
        UnknownNameError: there is no such placement or mode.

    Source: Turner et al., 2023, Activation Addition.
    """

    vectors: Tensor
    site: str
    strength: Strength = 1.0
    placement: str = "front"
    mode: str = "overlay"
    pad_id: int | None = None
    made: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = token_rows(self.vectors).detach().cpu().float().clone()
        if not bool((rows != 0).any()):
            raise InputError("the difference of the two prompts is zero: it would change nothing")
        object.__setattr__(self, "vectors", rows)
        object.__setattr__(self, "strength", as_strength(self.strength, "ActivationAddition"))
        object.__setattr__(self, "made", dict(self.made))
        if self.placement not in PLACEMENTS:
            raise UnknownNameError(unknown("placement", str(self.placement), PLACEMENTS))
        if self.mode not in MODES:
            raise UnknownNameError(unknown("mode", str(self.mode), MODES))
        if self.mode != "overlay" and (self.placement != "front" or self.pad_id is None):
            raise InputError(f"mode {self.mode!r} puts pad tokens in front: it needs placement 'front' and a pad_id")

    @classmethod
    def from_prompts(
        cls,
        model: Model,
        plus: Any,
        minus: Any = None,
        *,
        site: str,
        strength: Strength = 1.0,
        placement: str = "front",
        mode: str = "overlay",
        pad: str | int = " ",
    ) -> Self:
        """Read two prompts.

        Args:
            model: the model.
            plus: a text, or token ids (n,), that shows what is wanted.
            minus: one that shows the opposite; without it `plus` alone is added (weaker in the paper).
            site: a site with positions; the paper's is "blocks.{i}.resid_pre".
            strength, placement, mode: see the class.
            pad: what the shorter prompt is filled up with on the right: one token, as text or id.

        Raises:
            InputError: see `prompt_difference` and the class.
            SiteError: the site does not exist.
        """
        vectors = prompt_difference(model, plus, minus, site=site, pad=pad)
        pad_id = _pad_id(model, pad) if mode in MODES and mode != "overlay" else None
        texts = [side for side in (plus, minus) if isinstance(side, str)]
        made: dict[str, Any] = {"model": model.fingerprint(), "name": model.name, "texts": text_marks(texts)}
        made |= {"plus": _plain(plus), "minus": _plain(minus)}
        return cls(vectors, model.sites(site)[0].name, strength, placement, mode, pad_id, made)

    def __len__(self) -> int:
        """Number n of token positions."""
        return len(self.vectors)

    def __mul__(self, factor: Strength) -> ActivationAddition:
        """Times a number, or (batch,) with one for each row."""
        return replace(self, strength=self.strength * factor)

    __rmul__ = __mul__

    def __neg__(self) -> ActivationAddition:
        """Towards the other prompt."""
        return self * -1.0

    def random_like(self, seed: int = 0) -> ActivationAddition:
        """Random vectors, each as long as the one at its position: the control."""
        draw = torch.randn(self.vectors.shape, generator=torch.Generator().manual_seed(seed))
        sizes = self.vectors.norm(dim=1, keepdim=True)
        return replace(self, vectors=draw / draw.norm(dim=1, keepdim=True) * sizes, made={**self.made, "random": seed})

    def restricted_to(self, units: Sequence[int] | slice) -> ActivationAddition:
        """Zero outside some dimensions of the site.

        Raises:
            InputError: there is no such dimension, or nothing is left.
        """
        kept = torch.zeros_like(self.vectors)
        try:
            chosen = units if isinstance(units, slice) else [int(u) for u in units]
            kept[:, chosen] = self.vectors[:, chosen]
        except IndexError:
            raise InputError(f"the vectors have dimensions 0 to {self.vectors.shape[1] - 1}, not {units}") from None
        return replace(self, vectors=kept)

    def check(self, model: Model, transfer: bool = False) -> None:
        """Refuse a model that it does not fit.

        Raises:
            InputError: it was made for another model, or a width differs.
            SiteError: the site does not exist.
        """
        self.edits()[self.site].check(model.sites(self.site)[0])
        made = self.made.get("model")
        if made and not transfer and made != model.fingerprint():
            raise InputError(
                f"this addition was made on {self.made.get('name', 'another model')}, whose weights are not those of"
                f" {model.name}; pass transfer=True to use it all the same"
            )

    def edits(self) -> dict[str, Edit]:
        """{site: edit} for `model.edit` and `model.replay`."""
        return {self.site: AddAtTokens(self.vectors, self.strength, self.placement)}

    def prepared(self, model: Model, inputs: Any) -> Tokens:
        """The tokens to run: those of the inputs, with pad tokens in front where the mode puts them there.

        In modes "pad" and "pad_remove" so many pad tokens are put before a text, behind its <bos> where it has one,
        that none of its own words is added to.

        Raises:
            InputError: the inputs are no text or tokens, or one has fewer tokens than the addition.
        """
        tokens = model.prepare(inputs).tokens
        if tokens is None:
            raise InputError("an activation addition needs texts or tokens")
        if self.mode != "overlay":
            tokens = self._padded(model, tokens)
        length = tokens.mask.sum(1)
        if bool((length < len(self)).any()):
            row = int((length < len(self)).nonzero()[0])
            raise InputError(too_short(row, int(length[row]), len(self)))
        return tokens

    def logits(self, model: Model, inputs: Any, *, transfer: bool = False) -> Tensor:
        """(batch, pos, d_vocab) with the addition; in mode "pad_remove" those of the text's own tokens.

        Raises:
            InputError: as `prepared` and `check`.
        """
        tokens = self.prepared(model, inputs)
        with self.apply(model, transfer=transfer):
            out = model.logits(tokens)
        if self.mode != "pad_remove":
            return out
        kept = self._own(model, tokens)
        return out[kept].view(len(out), -1, out.shape[-1])

    def generate(self, model: Model, inputs: Any, *, transfer: bool = False, **options: Any) -> Any:
        """Continue texts with the addition; arguments and answer are those of `model.generate`.

        Raises:
            InputError: as `prepared` and `check`.
        """
        tokens = self.prepared(model, _left(model, inputs))
        with self.apply(model, transfer=transfer):
            out = model.generate(tokens, **options)
        if isinstance(inputs, Tensor | Tokens) or not isinstance(out, Tensor):
            return out
        new = model.tokenizer.batch_decode(out[:, tokens.ids.shape[1] :], skip_special_tokens=True)
        return new[0] if isinstance(inputs, str) else new

    @contextmanager
    def apply(self, model: Model, *, transfer: bool = False) -> Iterator[Model]:
        """Add in every call of the model while the block lasts. Blocks may be nested: their additions sum.

        In modes "pad" and "pad_remove" the block needs the tokens that `prepared` gives.

        Args:
            model: the model.
            transfer: allow an addition that was made on another model.

        Raises:
            InputError: as `check`; while running, activations that the strength made NaN or infinite.
        """
        self.check(model, transfer)
        with model.edit([*self.edits().items(), *finite_output(model)]):
            yield model

    def relative_norm(self, model: Model, inputs: Any) -> Tensor:
        """|c h_A| / |h| at each token that is added to, (batch, n): how large the addition is for the model.

        Raises:
            InputError: as `prepared`, or there are strengths for another number of texts.
        """
        tokens = self.prepared(model, inputs)
        strength = torch.as_tensor(self.strength).abs().float()
        if strength.ndim and len(strength) != len(tokens):
            raise InputError(f"{len(strength)} strengths for {len(tokens)} texts")
        h = model.record(tokens, self.site)[self.site].detach().cpu().float()
        length = tokens.mask.sum(1)
        start = tokens.mask.int().argmax(1) + first_token(length, len(self), self.placement)
        at = start[:, None] + torch.arange(len(self))
        sizes = h[torch.arange(len(h))[:, None], at].norm(dim=-1)
        ratio: Tensor = strength.view(-1, 1) * self.vectors.norm(dim=1) / sizes.clamp_min(1e-30)
        return ratio

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one safetensors file.

        Raises:
            InputError: it cannot be written, or `made` holds what JSON cannot.
        """
        tensors = {"vectors": self.vectors}
        if isinstance(self.strength, Tensor):
            tensors["strength"] = self.strength
        names = ("site", "placement", "mode", "pad_id", "made")
        settings = {name: getattr(self, name) for name in names}
        if not isinstance(self.strength, Tensor):
            settings["strength"] = self.strength
        return write_fitted(path, KIND, tensors, settings)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged, or holds something else.
        """
        with opened(path, KIND) as (about, tensors):
            try:
                return cls(**{**tensors, **about["settings"]})
            except UnknownNameError as error:
                raise LoadError(f"the {KIND} in {path} is damaged: {error}") from None

    def _padded(self, model: Model, tokens: Tokens) -> Tokens:
        start, count = self._pads(model, tokens)
        at = tokens.mask.int().argmax(1) + start
        assert self.pad_id is not None
        fill = tokens.ids.new_full((count,), self.pad_id)
        rows = [torch.cat([ids[:a], fill, ids[a:]]) for ids, a in zip(tokens.ids, at.tolist(), strict=True)]
        real = fill.new_ones(count, dtype=torch.bool)
        masks = [torch.cat([mask[:a], real, mask[a:]]) for mask, a in zip(tokens.mask, at.tolist(), strict=True)]
        return Tokens(torch.stack(rows), torch.stack(masks), tokens.rows)

    def _pads(self, model: Model, tokens: Tokens) -> tuple[int, int]:
        """Tokens of each text before the pads (its <bos>), and number of pads."""
        bos = getattr(model.tokenizer, "bos_token_id", None)
        first = tokens.ids[torch.arange(len(tokens)), tokens.mask.int().argmax(1)]
        start = int(bos is not None and bool((first == bos).all()))
        return start, len(self) - start

    def _own(self, model: Model, padded: Tokens) -> Tensor:
        """(batch, pos) bool, False at the pad tokens that `prepared` put in."""
        start, count = self._pads(model, padded)
        column = torch.arange(padded.ids.shape[1]) - padded.mask.int().argmax(1)[:, None]
        return (column < start) | (column >= start + count)


def prompt_difference(model: Model, plus: Any, minus: Any = None, *, site: str, pad: str | int = " ") -> Tensor:
    """h_A (n, d) = h(plus) - h(minus), token by token, the shorter prompt filled up on the right with pad tokens.

    Both prompts are read as they stand, pad tokens included, none of them masked. Where both start with the same
    token (<bos>) the first row is zero in a causal model.

    Args:
        model: the model.
        plus: a text, or token ids (n,).
        minus: the other one; without it h(plus) itself is given.
        site: a site of dimensions (batch, pos, d).
        pad: one token, as text or id; by default a space. A tokenizer that has none needs another.

    Returns:
        (n, d) float32, n the tokens of the longer prompt.

    Raises:
        InputError: a prompt is empty or too long, the pad is not one token, the site has no positions, activations
            are not finite, or the two prompts are the same.
        SiteError: the site does not exist.

    Source: Turner et al., 2023, section 3.
    """
    found = model.sites(site)
    if len(found) != 1 or found[0].dims[:2] != ("batch", "pos") or len(found[0].dims) != 3:
        raise InputError(f"{site!r} means {len(found)} sites; an activation addition needs one of (batch, pos, d)")
    sides = [_ids(model, plus, "plus")] + ([] if minus is None else [_ids(model, minus, "minus")])
    if len(sides) == 2 and sides[0] == sides[1]:
        raise InputError("the two prompts are the same: their difference is zero")
    longest = max(map(len, sides))
    if any(len(side) < longest for side in sides):
        fill = _pad_id(model, pad)
        sides = [side + [fill] * (longest - len(side)) for side in sides]
        if len(sides) == 2 and sides[0] == sides[1]:
            raise InputError("the two prompts are the same once padded: their difference is zero")
    h = model.record(torch.tensor(sides), found[0].name)[found[0].name].detach().cpu().float()
    return token_rows(h[0] if minus is None else h[0] - h[1])


def _ids(model: Model, prompt: Any, what: str) -> list[int]:
    if isinstance(prompt, str) and not prompt.strip():
        raise InputError(f"the {what} prompt is empty")
    tokens = model.prepare(prompt if isinstance(prompt, str) else torch.as_tensor(prompt)).tokens
    if tokens is None or len(tokens) != 1:
        raise InputError(f"the {what} prompt is one text or token ids (n,) that fit the context of {model.name}")
    ids: list[int] = tokens.ids[0].tolist()
    return ids


def _pad_id(model: Model, pad: str | int) -> int:
    if isinstance(pad, int) and not isinstance(pad, bool):
        return pad
    if model.tokenizer is None:
        raise InputError("without a tokenizer the pad is a token id: pass pad=...")
    # Tokenizers put a space of their own before a text, so the pad is read behind a word.
    alone, followed = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", f"a{pad}"))
    new = followed[len(alone) :]
    if followed[: len(alone)] != alone or len(new) != 1 or new[0] == model.tokenizer.unk_token_id:
        raise InputError(
            f"{pad!r} is not one token of the tokenizer of {model.name}; pass pad= with one that is, as text or id"
        )
    return int(new[0])


def _plain(prompt: Any) -> Any:
    return prompt if isinstance(prompt, str) or prompt is None else torch.as_tensor(prompt).tolist()


def _left(model: Model, inputs: Any) -> Any:
    """Texts as tokens padded on the left, as generation needs them."""
    if isinstance(inputs, Tensor | Tokens):
        return inputs
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    return tokenize(model.tokenizer, texts, model.context, "left", window=False)
