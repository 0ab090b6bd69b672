"""Streaming largest values, with the place and the tokens they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from actinium.core.errors import InputError
from actinium.core.reducing import Context, feature_rows

__all__ = ["TopEntries", "TopK", "TopKResult"]


@dataclass(frozen=True)
class TopEntries:
    """Values with the place they come from; unused slots hold NaN and -1.

    Attributes:
        values, features, rows, positions, tokens: all of one shape. Positions count real tokens from 0;
            tokens are ids.
        contexts: that shape + (2 * context + 1,): token ids around the place, -1 outside the text.
    """

    values: Tensor
    features: Tensor
    rows: Tensor
    positions: Tensor
    tokens: Tensor
    contexts: Tensor


@dataclass(frozen=True)
class TopKResult:
    """The largest values of each feature (features, k) and of all features together (k,), largest first."""

    per_feature: TopEntries
    overall: TopEntries
    nan: int
    inf: int


class TopK:
    """The k largest values of each feature and overall, with row, position, token and the tokens around.

    Args:
        k: how many to keep per feature.
        by: "value" for the largest, "abs" for the largest magnitudes (signs are kept).
        context: how many tokens to keep on either side.
    """

    wants_context: ClassVar[bool] = True

    def __init__(self, k: int = 10, by: str = "value", context: int = 8) -> None:
        if k < 1 or context < 0:
            raise InputError(f"TopK needs k >= 1 and context >= 0, got k={k}, context={context}")
        if by not in ("value", "abs"):
            raise InputError(f'TopK(by=...) is "value" or "abs", got {by!r}')
        self.k, self.by, self.context = k, by, context
        self.nan = self.inf = 0
        self._values: Tensor | None = None  # (features, <= k), with the place of each in _places
        self._places = torch.zeros(0)

    def _key(self, values: Tensor) -> Tensor:
        key = values.abs() if self.by == "abs" else values
        return torch.where(values.isfinite(), key, -torch.inf)

    def update(self, values: Tensor, context: Context) -> None:
        """Take in the tensor of a site, with its context."""
        rows, which, at = feature_rows(values.detach().float(), context)
        self.nan += int(rows.isnan().sum())
        self.inf += int(rows.isinf().sum())
        if len(rows) == 0:
            return
        index = self._key(rows).topk(min(self.k, len(rows)), dim=0).indices.T  # (features, k)
        new = rows.T.gather(1, index)
        places = self._place(which[index], at[index], context)
        if self._values is not None:
            new, places = torch.cat([self._values, new], 1), torch.cat([self._places, places], 1)
        order = self._key(new).argsort(dim=1, descending=True, stable=True)[:, : self.k]
        self._values = new.gather(1, order)
        self._places = places.gather(1, order[..., None].expand(-1, -1, places.shape[-1]))

    def _place(self, which: Tensor, at: Tensor, context: Context) -> Tensor:
        """Row, position and surrounding token ids (features, k, 3 + 2 * context) of entries of this batch."""
        device = which.device
        row = context.rows.to(device)[which]
        span = torch.arange(-self.context, self.context + 1, device=device)
        around = torch.full((*which.shape, len(span)), -1, device=device)
        position, tokens, mask = at, context.tokens, context.mask
        if mask is not None and "pos" in context.dims:
            position = (mask.to(device).cumsum(1) - 1)[which, at]
        if tokens is not None and "pos" in context.dims:
            tokens = tokens.to(device)
            places = at[..., None] + span
            inside = (places >= 0) & (places < tokens.shape[1])
            places = places.clamp(0, tokens.shape[1] - 1)
            if mask is not None:
                inside &= mask.to(device)[which[..., None], places]
            around = torch.where(inside, tokens[which[..., None], places], -1)
        return torch.cat([row[..., None], position[..., None], around], -1)

    def merge(self, other: TopK) -> Self:
        """Take in what another reducer has seen."""
        if (other.k, other.by, other.context) != (self.k, self.by, self.context):
            raise InputError("only TopK reducers with the same settings can be merged")
        self.nan, self.inf = self.nan + other.nan, self.inf + other.inf
        if other._values is None or self._values is None:
            if self._values is None:
                self._values, self._places = other._values, other._places
            return self
        values = torch.cat([self._values, other._values], 1)
        order = self._key(values).argsort(dim=1, descending=True, stable=True)[:, : self.k]
        places = torch.cat([self._places, other._places], 1)
        self._values = values.gather(1, order)
        self._places = places.gather(1, order[..., None].expand(-1, -1, places.shape[-1]))
        return self

    def result(self) -> TopKResult:
        """The kept entries; an entry that was not finite leaves its slot unused."""
        if self._values is None:
            raise InputError("no values were recorded")
        short = self.k - self._values.shape[1]
        values = torch.nn.functional.pad(self._values, (0, short), value=torch.nan)
        places = torch.nn.functional.pad(self._places, (0, 0, 0, short), value=-1)
        unused = ~values.isfinite()
        values = torch.where(unused, torch.nan, values)
        places = torch.where(unused[..., None], -1, places)
        features = torch.arange(len(values), device=values.device)[:, None].expand_as(values)
        centre = 2 + self.context
        fields = (values, features, places[..., 0], places[..., 1], places[..., centre], places[..., 2:])
        best = self._key(values.flatten()).topk(self.k).indices
        overall = TopEntries(*(field.flatten(0, 1)[best] for field in fields))
        return TopKResult(TopEntries(*fields), overall, self.nan, self.inf)
