"""A block's attention and MLP run by themselves, each head's queries, keys and values from an input of their own.

The modules are those of the model, called as the model called them. Projections are linear, so the output of each is
replaced by the one put together from every head's own normed input; what stands behind it (norms of queries and keys,
rotary positions, kernel, mask) runs as it is, and the pass ends where the heads' outputs are known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from actinium.circuits.graph.layout import Layout
from actinium.circuits.graph.projections import BlockProjections
from actinium.core import taps
from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.taps import Program, Tap
from actinium.core.tiling import tiled

__all__ = ["BlockRun", "Calls", "block_runs", "record_calls"]


class _Reached(BaseException):
    """Leaves a module as soon as the wanted tensor is known."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


@dataclass(eq=False)
class Calls:
    """What a run over some rows gave the modules that are called again.

    Attributes:
        start: (row, pos, d_model) the stream that enters the first block.
        logits: (row, d_vocab) after the last token.
        given: by module, positional and named arguments, and where its hidden input stands among them.
        projected: by projection, its output (row, pos, units).
        rows: number of rows.
    """

    start: Tensor
    logits: Tensor
    given: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any], int | str]]
    projected: dict[nn.Module, Tensor]
    rows: int
    _tiled: dict[tuple[nn.Module, int], tuple[list[Any], dict[str, Any]]] = field(default_factory=dict)

    def arguments(self, module: nn.Module, hidden: Tensor, times: int, untiled: tuple[str, ...]) -> Any:
        """The arguments for `times` copies of the rows with another hidden input."""
        args, kwargs, place = self.given[module]
        if (module, times) not in self._tiled:
            for old in [key for key in self._tiled if key[0] is module]:
                del self._tiled[old]
            many = {k: v if k in untiled else tiled(v, self.rows, times) for k, v in kwargs.items()}
            self._tiled[module, times] = [tiled(a, self.rows, times) for a in args], many
        listed, named = self._tiled[module, times]
        listed, named = list(listed), dict(named)
        if isinstance(place, int):
            listed[place] = hidden
        else:
            named[place] = hidden
        return listed, named


def record_calls(model: Model, inputs: Any, blocks: tuple[BlockRun, ...], keep: int) -> Calls:
    """Run the model once and keep how the parts of its blocks are called.

    Args:
        model, inputs: what is run.
        blocks: the blocks of the model.
        keep: number of first columns of which the projections' outputs are kept.
    """
    given: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any], int | str]] = {}
    projected: dict[nn.Module, Tensor] = {}
    start: list[Tensor] = []

    def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        place: int | str = next((i for i, a in enumerate(args) if taps.first_tensor(a) is not None), "hidden_states")
        rest = {k: v for k, v in kwargs.items() if k != place}
        given[module] = tuple(None if i == place else a for i, a in enumerate(args)), rest, place

    def first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        start.append((args[0] if args else kwargs["hidden_states"]).clone())

    def left(module: nn.Module, args: Any, output: Tensor) -> None:
        projected[module] = output[:, :keep].clone()

    handles = [model.tower.blocks[0].register_forward_pre_hook(first, with_kwargs=True)]
    for block in blocks:
        for module in dict.fromkeys((block.attention, block.mlp_root)):
            handles.append(module.register_forward_pre_hook(entered, with_kwargs=True))
        handles += [module.register_forward_hook(left) for module in block.units]
    try:
        with torch.no_grad(), model.eagerly():
            logits = model.logits(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Calls(start[0], logits[:, -1].clone(), given, projected, len(logits))


@dataclass(eq=False)
class BlockRun:
    """One block of a model.

    Attributes:
        norm, mlp_norm: what stands between the stream and attention, and the MLP; None where nothing does.
        attention, out: the attention module and its output projection.
        mlp_root: the smallest module that holds the whole MLP.
        readers: the modules within it that read the normed stream.
        mlp_out: the module whose output the MLP adds to the stream.
        weight: (receiver, d_model, d_head) of queries, keys and values, in the layout's order.
        bias: (receiver, 1, d_head), None where there is none.
        units: by projection, the entry of (receiver * d_head) that each of its output units is.
        out_weight: (head, d_head, d_model).
        out_bias: (d_model,), None where there is none.
        untiled: names of arguments without a batch dimension.
    """

    norm: nn.Module | None
    mlp_norm: nn.Module | None
    attention: nn.Module
    out: nn.Module
    mlp_root: nn.Module
    readers: tuple[nn.Module, ...]
    mlp_out: nn.Module
    weight: Tensor
    bias: Tensor | None
    units: dict[nn.Module, Tensor | slice]
    out_weight: Tensor
    out_bias: Tensor | None
    untiled: tuple[str, ...]
    _now: dict[nn.Module, Tensor] = field(default_factory=dict)

    def add_to(self, program: Program) -> None:
        """Put the points into a program that must be in force around `project`, `heads` and `mlp`."""
        for module in self.units:
            # Its own output is not needed, so it is given no rows.
            program.add(Tap(module, "input"), lambda value, m=module: value[:0] if m in self._now else None)
            program.add(Tap(module, "output"), lambda value, m=module: self._now.get(m))
        program.add(Tap(self.out, "input"), self._leave_with(self.out))
        if self.direct:
            return
        for module in self.readers:
            program.add(Tap(module, "input"), lambda value, m=module: self._now.get(m))
        program.add(Tap(self.mlp_out, "output"), self._leave_with(self.mlp_out))

    def _leave_with(self, module: nn.Module) -> Callable[[Tensor], Tensor | None]:
        def leave(value: Tensor) -> Tensor | None:
            if module in self._now:
                raise _Reached(value)
            return None

        return leave

    @property
    def direct(self) -> bool:
        """Whether the MLP is one module from its normed input to its output."""
        return self.readers == (self.mlp_root,) and self.mlp_out is self.mlp_root

    def project(self, x: Tensor, receivers: Tensor | slice) -> Tensor:
        """(receiver, n, d_model) streams -> (receiver, n, d_head) queries, keys or values."""
        dtype = self.weight.dtype
        seen = x.to(dtype) if self.norm is None else self.norm(x.to(dtype))
        weight = self.weight[receivers]
        return torch.bmm(seen, weight) if self.bias is None else torch.baddbmm(self.bias[receivers], seen, weight)

    def heads(self, y: Tensor, calls: Calls, times: int, pos: int) -> Tensor:
        """Outputs of all heads before the output projection.

        Args:
            y: (receiver, times * row * n, d_head) of the last n columns; before them stands what `calls` holds.
            calls: how attention was called.
            times: copies of the rows.
            pos: number of columns.
        Returns:
            (times * row, pos, head, d_head).
        """
        rows, flat = times * calls.rows, y.transpose(0, 1).flatten(1)
        for module, units in self.units.items():
            new, before = flat[:, units].view(rows, -1, calls.projected[module].shape[-1]), calls.projected[module]
            self._now[module] = torch.cat([before.repeat(times, 1, 1), new], 1) if before.shape[1] else new
        self._now[self.out] = y
        unused = y.new_zeros(()).expand(rows, pos, self.weight.shape[1])
        args, kwargs = calls.arguments(self.attention, unused, times, self.untiled)
        z = self._reach(self.attention, args, kwargs)
        return z.reshape(rows, pos, self.out_weight.shape[0], -1)

    def written(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        """(n, head, d_head) -> (head, n, d_model): what each head adds to the stream."""
        return torch.bmm(z.transpose(0, 1).to(dtype), self.out_weight.to(dtype))

    def mlp(self, x: Tensor, calls: Calls, times: int) -> Tensor:
        """(times * row, n, d_model) -> the same: what the MLP adds to the stream."""
        seen = x.to(self.weight.dtype)
        seen = seen if self.mlp_norm is None else self.mlp_norm(seen)
        if self.direct:
            args, kwargs = calls.arguments(self.mlp_root, seen, times, self.untiled)
            value = taps.first_tensor(self.mlp_root(*args, **kwargs))
            assert value is not None
            return value
        self._now.update(dict.fromkeys((*self.readers, self.mlp_out), seen))
        hidden = seen
        if self.mlp_root not in self.readers:
            # The whole block is called for its MLP; what its attention makes of nothing is not looked at.
            hidden = seen.new_zeros(()).expand(calls.start.repeat(times, 1, 1).shape)
        args, kwargs = calls.arguments(self.mlp_root, hidden, times, self.untiled)
        return self._reach(self.mlp_root, args, kwargs).reshape(x.shape)

    def _reach(self, module: nn.Module, args: Any, kwargs: Any) -> Tensor:
        try:
            module(*args, **kwargs)
        except _Reached as found:
            return found.value
        finally:
            self._now.clear()
        raise InputError(f"{type(module).__name__} did not come to the point where its output is read")


def block_runs(model: Model, layout: Layout, facts: tuple[BlockProjections, ...]) -> tuple[BlockRun, ...]:
    """All blocks of a model.

    Raises:
        InputError: queries, keys and values differ in width, or a projection has units that belong to no head.
    """
    return tuple(
        _block_run(model, layout, block, found, i)
        for i, (block, found) in enumerate(zip(model.tower.blocks, facts, strict=True))
    )


def _block_run(model: Model, layout: Layout, block: nn.Module, facts: BlockProjections, number: int) -> BlockRun:
    row, maps = model.tower.stack.block, [facts[kind] for kind in ("q", "k", "v")]
    weights = [m.weight.detach() for m in maps]
    counts = [layout.n_heads, layout.kv_heads, layout.kv_heads]
    if len({w.shape[1] for w in weights}) > 1 or [len(w) for w in weights] != counts:
        raise InputError(f"block {number} of {model.name}: queries, keys and values have heads of different widths")
    weight = torch.cat(weights).transpose(1, 2).contiguous()
    biases = [m.bias for m in maps]
    bias = None
    if any(b is not None for b in biases):
        bias = torch.cat([w.new_zeros(w.shape[:2]) if b is None else b for b, w in zip(biases, weights, strict=True)])
        bias = bias.detach()[:, None]
    mlp_out = block.get_submodule(row.mlp_out or "")
    return BlockRun(
        norm=facts.norm,
        mlp_norm=facts.mlp_norm,
        attention=block.get_submodule(row.attn or ""),
        out=facts.out.module,
        mlp_root=_holder(block, (*facts.mlp, mlp_out)),
        readers=facts.mlp,
        mlp_out=mlp_out,
        weight=weight,
        bias=bias,
        units=_units(model, facts, number, weight.device),
        out_weight=facts.out.weight.detach().contiguous(),
        out_bias=None if facts.out.bias is None else facts.out.bias.detach(),
        untiled=model.tower.stack.untiled,
    )


def _holder(block: nn.Module, parts: tuple[nn.Module, ...]) -> nn.Module:
    """The smallest module that holds all parts: one of them, or the block."""
    for part in parts:
        if all(other in set(part.modules()) for other in parts):
            return part
    return block


def _units(model: Model, facts: BlockProjections, number: int, device: torch.device) -> dict[nn.Module, Tensor | slice]:
    """Where each output unit of each projection stands in (receiver * d_head)."""
    places: dict[nn.Module, dict[int, int]] = {}
    at = 0
    for kind in ("q", "k", "v"):
        for unit in facts[kind].units.flatten().tolist():
            places.setdefault(facts[kind].module, {})[unit] = at
            at += 1
    out: dict[nn.Module, Tensor | slice] = {}
    for module, found in places.items():
        order = [found[unit] for unit in sorted(found)]
        if sorted(found) != list(range(len(found))) or len(found) != _width(module):
            raise InputError(f"block {number} of {model.name}: a projection has units that belong to no head")
        run = list(range(order[0], order[0] + len(order)))
        out[module] = slice(order[0], order[0] + len(order)) if order == run else torch.tensor(order, device=device)
    return out


def _width(module: nn.Module) -> int:
    shape = module.weight.shape
    return int(shape[1] if type(module).__name__ == "Conv1D" else shape[0])
