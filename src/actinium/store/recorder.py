"""The activations of a block of windows as rows, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from actinium.core.errors import InputError, SiteError
from actinium.core.inputs import Tokens
from actinium.core.model import Model
from actinium.store.manifest import Layout, StoredSite
from actinium.store.windows import Block, Special

__all__ = ["Recorder", "as_rows"]


class Recorder:
    """Runs a model over windows.

    Args:
        model: the model.
        at: sites or patterns.
        layout: how windows are made and how many are in a pass.
    """

    def __init__(self, model: Model, at: Any, layout: Layout) -> None:
        self.model, self.at, self.layout = model, at, layout
        self.special = Special.of(model.tokenizer)
        self.per_window = 1

    def trial(self, block: Block, dtype: str) -> tuple[list[StoredSite], int]:
        """The sites with the shapes of their rows, and the rows of one window, from one pass over one window.

        Raises:
            SiteError: a site has no rows, or the sites do not have the same rows.
            InputError: the model cannot read the windows.
        """
        values, keep = self._pass(block, self._keep(block), 0, 1)
        found, sites, counts = [], [], {}
        for name, (value, dims) in values.items():
            rows, names = as_rows(value, dims, keep, name)
            found.append(rows)
            counts[name] = len(rows)
            sites.append(StoredSite(name=name, dims=names, shape=list(rows.shape[1:]), dtype=dtype))  # type: ignore[arg-type]
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name}: {count}" for name, count in counts.items())
            raise SiteError(f"these sites have different rows for one window ({told}); make a store for each kind")
        self.per_window = len(found[0])
        return sites, self.per_window

    def rows(self, block: Block) -> int:
        """Rows that a block will give (for images and arrays, once `trial` has told how many each has)."""
        keep = self._keep(block)
        return self.per_window * block.windows if keep is None else int(keep.sum())

    def _keep(self, block: Block) -> Tensor | None:
        return None if block.ids is None else block.kept(self.special, self.layout.exclude_special)

    def batches(self, block: Block) -> Iterator[list[Tensor]]:
        """The rows of each pass over a block, for each site: tensors (rows, …) on the CPU.

        A pass ends with its block, so that a block gives the same numbers whatever ran before it.
        """
        whole = self._keep(block)
        for start in range(0, block.windows, self.layout.batch_size):
            values, keep = self._pass(block, whole, start, start + self.layout.batch_size)
            out = [as_rows(value, dims, keep, name)[0] for name, (value, dims) in values.items()]
            yield [_to_host(rows) for rows in out]

    def _pass(
        self, block: Block, whole: Tensor | None, start: int, stop: int
    ) -> tuple[dict[str, tuple[Tensor, tuple[str, ...]]], Tensor | None]:
        if block.ids is not None and block.mask is not None and whole is not None:
            mask = block.mask[start:stop]
            # Only the last window can be shorter when they are packed; padding alone is not computed.
            width = int(mask.sum(1).max())
            mask = mask[:, :width]
            inputs: Any = Tokens(block.ids[start:stop, :width], mask, torch.arange(len(mask)))
            keep = whole[start:stop, :width]
        else:
            items = block.items[start:stop]
            inputs, keep = (torch.stack(items) if isinstance(items[0], Tensor) else items), None
            if isinstance(inputs, Tensor):
                inputs = inputs.to(self.model.dtype)
        recording = self.model.record(inputs, self.at)
        return {name: (recording[name], recording.dims[name]) for name in recording}, keep


def as_rows(value: Tensor, dims: tuple[str, ...], keep: Tensor | None, name: str) -> tuple[Tensor, list[str]]:
    """Lay a site's tensor out as rows (rows, …) and name the dimensions of a row.

    Args:
        value: (batch, pos, …), (batch, channel, height, width) or (batch, feature).
        dims: names of its dimensions.
        keep: (batch, pos) bool, the tokens that are wanted; None for all positions.
        name: of the site, for messages.

    Raises:
        SiteError: the site's size depends on the length of the text (patterns and scores).
        InputError: it holds no floating-point numbers.
    """
    if {"query", "key", "key_pos"} & set(dims) or not dims or dims[0] != "batch":
        raise SiteError(
            f"{name} has the dimensions {', '.join(dims)}: what it holds for a token depends on the length of the "
            "text, so it has no rows of one size; record it with model.record"
        )
    if not value.is_floating_point():
        raise InputError(f"{name} holds {value.dtype}, not floating-point numbers")
    if dims == ("batch", "channel", "height", "width"):
        return value.permute(0, 2, 3, 1).flatten(0, 2), ["channel"]
    if len(dims) > 2 and (dims[1] == "pos" or keep is not None):
        names = list(dims[2:])
        if keep is None:
            return value.flatten(0, 1), names
        if value.shape[:2] != keep.shape:
            raise SiteError(f"{name} has {tuple(value.shape[:2])} positions for {tuple(keep.shape)} tokens")
        if bool(keep.all()):
            return value.flatten(0, 1), names
        return value[keep.to(value.device)], names
    if keep is not None:
        raise SiteError(f"{name} has the dimensions {', '.join(dims)}: none of them is that of the tokens")
    if value.ndim == 1:
        value, dims = value[:, None], (*dims, "feature")
    return value, list(dims[1:])


def _to_host(rows: Tensor) -> Tensor:
    """A copy in pinned memory that is under way while the next pass runs; CPU tensors as they are."""
    if rows.device.type != "cuda":
        return rows.cpu()
    pinned = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    pinned.copy_(rows, non_blocking=True)
    return pinned
