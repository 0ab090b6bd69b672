"""The rows of a model's real tokens, with the words they stand at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = ["TokenRows", "token_rows"]


@dataclass(frozen=True, eq=False)
class TokenRows:
    """One row for each token that was read.

    Attributes:
        values: (n, d) activations.
        words: (n,) the tokens as text.
        ids: (n,) their numbers.
        text: (n,) the text that each comes from.
        position: (n,) its position in the text, counted from 0.
    """

    values: Tensor
    words: list[str]
    ids: Tensor
    text: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def by_text(self) -> list[Tensor]:
        """The rows (tokens, d) of each text, in the order of the texts; texts without rows are left out."""
        return [self.values[self.text == i] for i in self.text.unique()]


def token_rows(
    model: Model, inputs: Any, site: str, *, skip_special: bool = True, batch_size: int | None = 64
) -> TokenRows:
    """Record a site at every real token, by default without the special ones.

    The token that begins every text has activations hundreds of times as large as the others in many models; a
    factorisation would spend features on it.

    Args:
        model: a language model.
        inputs: texts or tokens.
        site: one site with positions, such as "blocks.3.mlp.post"; heads are laid side by side.
        skip_special: leave out the tokenizer's special tokens; without a tokenizer, the first token of each text.
        batch_size: texts in a pass.

    Raises:
        InputError: several sites, a site without positions, or no token left.
        SiteError: the site does not exist.
    """
    rec = model.record(inputs, site, batch_size=batch_size)
    if len(rec) != 1:
        raise InputError(f"{site!r} means {len(rec)} sites; rows belong to one")
    (name,) = rec.sites
    if rec.tokens is None or rec.mask is None or rec.dims[name][:2] != ("batch", "pos"):
        raise InputError(f"{name}: rows for tokens need token inputs and a site with dimensions batch and pos")
    real = rec.mask.cpu()
    position = real.long().cumsum(1) - 1
    special = getattr(model.tokenizer, "all_special_ids", None)
    if skip_special:
        real = real & (~torch.isin(rec.tokens.cpu(), torch.tensor(special)) if special else position > 0)
    if not bool(real.any()):
        raise InputError("no token is left: every one is special or padding")
    ids = rec.tokens.cpu()[real]
    words = model.to_str_tokens(ids) if model.tokenizer is not None else [str(int(i)) for i in ids]
    text = rec.rows.cpu()[:, None].expand_as(real)[real] if rec.rows is not None else real.nonzero()[:, 0]
    return TokenRows(rec[name].flatten(2)[real.to(rec[name].device)], words, ids, text, position[real])
