"""How the induction score of a head depends on how many tokens are repeated before the place where it looks back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from actinium.core.errors import InputError, SiteError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.features.attention_attribution import PAPER

__all__ = ["prefix_induction"]


def prefix_induction(
    model: Model, prefixes: Sequence[int] = tuple(range(1, 11)), *, n: int = 32, length: int = 24, seed: int = 0
) -> Result:
    """Induction score by length p of the repeated prefix: "a b c d ... x b c" for p = 2, looking back at d.

    Different random tokens, then others of which the last p are the p tokens up to a place drawn for each row. The
    score is the attention from the last token to the token after the first occurrence of the prefix; rows differ
    between lengths in nothing but what is repeated. Long-prefix induction heads have scores that rise with p.

    Args:
        model: a causal language model with attention patterns.
        prefixes: lengths p, each 1 or more.
        n: rows.
        length: different tokens before the repetition, more than the longest prefix.
        seed: of tokens and places.

    Returns:
        Result: `induction` over prefix, layer and head, means over rows, and `rise` over layer and head, the score at
        the longest prefix minus that at the shortest.

    Raises:
        SiteError: there are no attention patterns.
        InputError: a number is out of range; the sequences do not fit the context or the vocabulary.

    Source: Kissane et al., 2024, long-prefix and short-prefix induction.
    """
    lengths = [int(p) for p in prefixes]
    if not lengths or min(lengths) < 1 or n < 1 or length <= max(lengths):
        raise InputError(f"prefixes are 1 or more and shorter than length, n is 1 or more: {lengths}, {length}, {n}")
    if model.kind != "causal-lm" or not model.has("blocks.*.attn.pattern"):
        raise SiteError(f"{model.name} has no attention patterns of a causal language model")
    ids, keys = _rows(model, lengths, n, length, seed)
    scores = []
    for rows in ids:
        rec = model.record(rows, "blocks.*.attn.pattern", batch_size=16)
        last = rec.stack("blocks.*.attn.pattern")[:, :, :, -1].double().cpu()  # (layer, row, head, source)
        index = keys.view(1, -1, 1, 1).expand(*last.shape[:3], 1)
        scores.append(last.gather(3, index)[..., 0].mean(1))
    values = torch.stack(scores)
    order = np.argsort(lengths)
    rise = values[order[-1]] - values[order[0]]
    data = xr.Dataset(
        {
            "induction": (("prefix", "layer", "head"), values.numpy()),
            "rise": (("layer", "head"), rise.numpy()),
        },
        coords={"prefix": lengths, "layer": np.arange(values.shape[1]), "head": np.arange(values.shape[2])},
        attrs={"plot": {"variables": ["rise"]}},
    )
    about = provenance(model, ids, seed, prefixes=lengths, n=n, length=length)
    return Result(data, "prefix_induction", PAPER, about)


def _rows(model: Model, lengths: list[int], n: int, length: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """For each length (n, pos) ids, and (n,) the place of the token after the prefix's first occurrence."""
    longest, size = max(lengths), getattr(model.config, "vocab_size", None)
    if not isinstance(size, int):
        raise InputError(f"the size of the vocabulary of {model.name} is not known")
    tokenizer = model.tokenizer
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    special = {i for name in names if isinstance(i := getattr(model.config, name, None), int)}
    start: list[int] = []
    if tokenizer is not None:
        special = set(tokenizer.all_special_ids)
        size = min(size, len(tokenizer))
    bos = getattr(tokenizer if tokenizer is not None else model.config, "bos_token_id", None)
    if isinstance(bos, int):
        start = [bos]
    words = torch.tensor([i for i in range(size) if i not in special])
    if len(words) < length + longest:
        raise InputError(f"{length + longest} different tokens are needed, and the vocabulary has {len(words)}")
    if model.context is not None and len(start) + length + longest > model.context:
        raise InputError(f"{length} and {longest} tokens do not fit the context of {model.context}")
    random = torch.Generator().manual_seed(seed)
    drawn = torch.stack([words[torch.randperm(len(words), generator=random)[: length + longest]] for _ in range(n)])
    # The prefix ends at `end`, and the token after it is still one of the first `length`.
    end = torch.randint(longest - 1, length - 1, (n,), generator=random)
    found = []
    for p in lengths:
        repeated = drawn.gather(1, end[:, None] + torch.arange(1 - p, 1)[None])
        found.append(torch.cat([torch.tensor(start).long().expand(n, -1), drawn[:, :-p], repeated], 1))
    return found, end + 1 + len(start)
