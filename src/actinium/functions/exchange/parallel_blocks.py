"""Depth to width: pairs of blocks that follow each other become pairs side by side, as grafts of whole blocks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.functions.exchange.graft_calls import Select, read_of, submodules
from actinium.functions.exchange.grafting import Graft

__all__ = ["BlockPair", "LowRank", "ParallelPair", "parallelize_blocks"]


class BlockPair(nn.Module):
    """Two blocks, the second on what the first gives back.

    Args:
        first: the earlier block, of the residual stream to the residual stream.
        second: the later block.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the second block gives back."""
        x = read_of(args, kwargs, "a block")
        new = _stream(self.first(*args, **kwargs))
        put = [new if a is x else a for a in args]
        return self.second(*put, **{k: new if v is x else v for k, v in kwargs.items()})


class ParallelPair(BlockPair):
    """Two blocks side by side: x + M [b1(x) - x, b2(x) - x], where M starts as the sum of the two.

    Args:
        first: the earlier block.
        second: the later block.
        width: D of the residual stream.

    Source: Chandrasegaran, Poli et al., 2025, section 5 (depth to width).
    """

    def __init__(self, first: nn.Module, second: nn.Module, width: int) -> None:
        super().__init__(first, second)
        self.merge = nn.Linear(2 * width, width)
        with torch.no_grad():
            assert self.merge.bias is not None
            self.merge.weight.copy_(torch.eye(width).repeat(1, 2))
            self.merge.bias.zero_()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The merged residual stream, in the layout that the second block gives it."""
        x = read_of(args, kwargs, "a block")
        output = self.second(*args, **kwargs)
        ours, theirs = _stream(self.first(*args, **kwargs)), _stream(output)
        merged = x + self.merge(torch.cat([ours - x, theirs - x], dim=-1))
        return merged if isinstance(output, Tensor) else (merged, *output[1:])


class LowRank(nn.Module):
    """A linear map whose own weights stay, plus one of low rank: W x + b + B A x, B starting at zero.

    Args:
        linear: the map.
        rank: of what is added.

    Raises:
        InputError: a rank that is not above 0.

    Source: Hu et al., 2021, equation 3.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        if rank < 1:
            raise InputError(f"a rank must be above 0, got {rank}")
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        return self.linear(x) + x @ self.down.mT @ self.up.mT


def parallelize_blocks(
    model: nn.Module | Model,
    blocks: str,
    width: int,
    pairs: Sequence[int] | None = None,
    rank: int | None = None,
    select: Select = None,
    seed: int = 0,
) -> Graft:
    """A graft that puts pairs of blocks side by side; `distill` fits each to the output of the pair.

    Args:
        model: the network, which stays as it is. It runs through all blocks of its list, whatever their number.
        blocks: name of the `nn.ModuleList`.
        width: D of the residual stream.
        pairs: indices of the first block of each pair; by default 0, 2, 4, …
        rank: train adapters of this rank on the linear maps of the blocks, whose weights stay; None trains all weights.
        select: which item of a block's output is the residual stream, where it is no tensor.
        seed: of the adapters and of the order of the batches.

    Returns:
        a Graft of a copy of the network in which each pair is one block, with the same outputs.

    Raises:
        InputError: the blocks are no list, or pairs overlap or leave it.
        SiteError: there is no such module.
    """
    wrapped = model if isinstance(model, Model) else None
    module = copy.deepcopy(wrapped.module if wrapped is not None else model)
    stack = submodules(module, [blocks])[blocks]
    if not isinstance(stack, nn.ModuleList):
        raise InputError(f"{blocks} is {type(stack).__name__}, expected a ModuleList of blocks")
    starts = sorted(range(0, len(stack) - 1, 2) if pairs is None else pairs)
    inside = all(0 <= i < len(stack) - 1 for i in starts)
    if not starts or not inside or any(b - a < 2 for a, b in pairwise(starts)):
        raise InputError(f"pairs start at indices from 0 to {len(stack) - 2} that are two apart or more, got {starts}")
    merged: list[nn.Module] = []
    sites: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for i, block in enumerate(stack):
            if i in starts:
                copies = copy.deepcopy([block, stack[i + 1]])
                if rank is not None:
                    for each in copies:
                        _adapt(each, rank)
                sites[f"{blocks}.{len(merged)}"] = ParallelPair(copies[0], copies[1], width)
                merged.append(BlockPair(block, stack[i + 1]))
            elif i - 1 not in starts:
                merged.append(block)
    module.set_submodule(blocks, nn.ModuleList(merged))
    paired = Model(module, wrapped.tokenizer, wrapped.processor, wrapped.name) if wrapped is not None else module
    return Graft(paired, sites, select, seed)


def _adapt(block: nn.Module, rank: int) -> None:
    """Freeze a block but for adapters on its linear maps."""
    block.requires_grad_(False)
    linear = {name: part for name, part in block.named_modules() if isinstance(part, nn.Linear)}
    for name, part in linear.items():
        block.set_submodule(name, LowRank(part, rank))


def _stream(output: Any) -> Tensor:
    """The residual stream that a block gives back, alone or before other things."""
    return output if isinstance(output, Tensor) else output[0]
