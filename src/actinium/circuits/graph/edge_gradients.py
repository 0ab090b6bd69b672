"""Runs that keep what every part writes into the stream, and the gradient at every input that reads it.

All inputs of a block's attention read one stream, so the gradient at one of them is that at its own slice of the
projection's output, taken back through the slice and the norm. One ordinary backward pass gives those of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from actinium.circuits.graph.layout import Layout
from actinium.circuits.graph.projections import BlockProjections, projections
from actinium.core import taps
from actinium.core.errors import InputError
from actinium.core.inputs import Tokens, parameters_of
from actinium.core.model import Model

__all__ = ["Parts", "Reader", "Run", "check_finite", "exact"]


@dataclass(eq=False)
class Parts:
    """What the parts write in a run.

    Attributes:
        start: (row, pos, d_model) the stream that enters the first block.
        heads: by block, (row, pos, head, d_head) what enters the output projection.
        mlps: by block, (row, pos, d_model).
    """

    start: Tensor
    heads: list[Tensor]
    mlps: list[Tensor]

    def map(self, change: Callable[[Tensor, Tensor], Tensor], other: Parts) -> Parts:
        """The same function of each pair of tensors."""
        pairs = (zip(a, b, strict=True) for a, b in ((self.heads, other.heads), (self.mlps, other.mlps)))
        heads, mlps = ([change(a, b) for a, b in each] for each in pairs)
        return Parts(change(self.start, other.start), heads, mlps)

    def __getitem__(self, rows: slice) -> Parts:
        """Some rows."""
        return Parts(self.start[rows], [h[rows] for h in self.heads], [m[rows] for m in self.mlps])


@dataclass(eq=False)
class Run:
    """One pass: logits after the last token (row, d_vocab), what the parts wrote, and where gradients are taken.

    `written` holds what the parts wrote with its graph: "start", "heads 3" (what enters the projection), "mlp 3".
    """

    logits: Tensor
    parts: Parts
    streams: dict[str, Tensor] = field(default_factory=dict)
    points: dict[str, list[Tensor]] = field(default_factory=dict)
    written: dict[str, Tensor] = field(default_factory=dict)


class Reader:
    """Runs a model on tokens and multiplies gradients at the inputs of parts with differences of what parts write.

    Args:
        model: a pre-norm decoder.

    Raises:
        InputError: its edges are not known; it is in training mode, or edits are in force.
    """

    def __init__(self, model: Model) -> None:
        if model.module.training:
            raise InputError(f"{model.name} is in training mode; call .eval() on the module first")
        if taps.state.programs:
            raise InputError("edges are those of the model itself; leave `with model.edit(...)` first")
        self.model, self.layout = model, Layout.of(model)
        self.blocks: tuple[BlockProjections, ...] = projections(model)
        self._last_only = "logits_to_keep" in parameters_of(model.module)
        self._weights: dict[str, Tensor] = {}

    def run(
        self, tokens: Tokens, *, held: Mapping[str, Tensor] | None = None, grad: bool = False, repeat: int = 1
    ) -> Run:
        """Run the model.

        Args:
            tokens: (row, pos), padded on the left.
            held: values put in place of what a part writes: "start", "heads 3" (what enters the projection), "mlp 3".
            grad: keep the graph from the stream that enters the first block on.
            repeat: run that many copies of the rows.
        """
        if repeat > 1:
            tokens = Tokens(*(t.repeat(repeat, *[1] * (t.ndim - 1)) for t in (tokens.ids, tokens.mask, tokens.rows)))
        arguments = dict(self.model.prepare(tokens).arguments)
        arguments = {k: v.to(self.model.device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        if self._last_only:
            arguments["logits_to_keep"] = 1
        watch = _Watch(self, held or {}, grad)
        with watch.over(), self.model.eagerly(), torch.set_grad_enabled(grad):
            logits: Tensor = self.model.module(**arguments).logits[:, -1]
        return Run(logits, watch.parts(), watch.streams, watch.points, watch.written)

    def start(self, tokens: Tokens) -> Tensor:
        """(row, pos, d_model): the stream that enters the first block; nothing after it is run."""
        return self.model.record(tokens, "blocks.0.resid_pre")["blocks.0.resid_pre"]

    def differences(self, parts: Parts, mask: Tensor, first: int = 0) -> Tensor:
        """(sender, row, column, d_model): what each sender writes from a column on, of differences of parts.

        Padding is zero: `mask` (row, pos) is False there.
        """
        rows, pos, width = parts.start[:, first:].shape
        layout, heads = self.layout, self.layout.n_heads
        out = torch.empty(len(layout.senders), rows, pos, width, dtype=exact(parts.start), device=parts.start.device)
        out[0] = parts.start[:, first:]
        for i in range(layout.n_layers):
            place = 1 + i * (heads + 1)
            z = parts.heads[i][:, first:].to(out).permute(2, 0, 1, 3).flatten(1, 2)
            torch.bmm(z, self.weight(i, "out").to(out), out=out[place : place + heads].view(heads, rows * pos, width))
            out[place + heads] = parts.mlps[i][:, first:]
        if not bool(mask.all()):
            out.masked_fill_(~mask[:, first:].to(out.device)[None, :, :, None], 0.0)
        return out

    def weight(self, block: int, kind: str) -> Tensor:
        """(head, d_head, d_model) of a projection, "q", "k", "v" or "out"."""
        name = f"{kind} {block}"
        if name not in self._weights:
            found = self.blocks[block].out if kind == "out" else self.blocks[block][kind]
            self._weights[name] = found.weight.detach()
        return self._weights[name]

    def add_scores(self, run: Run, value: Tensor, written: Tensor, total: Tensor, share: float) -> None:
        """Add `share` of <what a sender writes, gradient at a receiver> to `total`.

        Args:
            run: a run with its graph, of one or several copies of the rows of `written`.
            value: () a function of its logits.
            written: (sender, row, column, d_model), of the last columns.
            total: (sender, receiver) float64, summed over rows and copies.
            share: what the products are multiplied with.

        Raises:
            InputError: a gradient is not finite.
        """
        flat = [t for each in run.points.values() for t in each]
        if not value.requires_grad:
            return
        found = iter(torch.autograd.grad(value, flat, allow_unused=True))
        at = {
            name: sum(torch.zeros_like(t) if g is None else g for t, g in zip(each, found, strict=False))
            for name, each in run.points.items()
        }
        for name, gradient in at.items():
            check_finite("a projection of attention" if name.startswith("projection") else name, gradient)
        rows, pos = run.parts.start.shape[:2]
        first = pos - written.shape[2]
        # Some models lay rows and positions out in one dimension.
        at, streams = (
            {name: t.reshape(rows, pos, -1)[:, first:] for name, t in each.items()} for each in (at, run.streams)
        )
        column, heads = 0, self.layout.n_heads
        for i, block in enumerate(self.blocks):
            below = 1 + i * (heads + 1)
            for kind in ("q", "k", "v"):
                back = self._heads_back(i, kind, at[_name(i, block[kind].module)])
                seen = _through(block.norm, streams[f"attention {i}"], back)
                column = _multiply(written[:below], seen, share, total, column)
            back = at[f"mlp {i}"].to(written.dtype)[None]
            seen = _through(block.mlp_norm, streams[f"mlp {i}"], back)
            column = _multiply(written[: below if self.layout.parallel else below + heads], seen, share, total, column)
        _multiply(written, at["logits"].to(written.dtype)[None], share, total, column)

    def _heads_back(self, i: int, kind: str, gradient: Tensor) -> Tensor:
        """(head, row, pos, d_model) gradient at the normed input of each head, of that at the projection's output."""
        units, weight = self.blocks[i][kind].units, self.weight(i, kind)
        own = gradient[..., units.to(gradient.device)]
        rows, pos, heads, _ = own.shape
        own = own.permute(2, 0, 1, 3).flatten(1, 2).to(exact(own))
        return torch.bmm(own, weight.to(own)).view(heads, rows, pos, -1)


class _Watch:
    """The hooks of one pass."""

    def __init__(self, reader: Reader, held: Mapping[str, Tensor], grad: bool) -> None:
        self.reader, self.held, self.grad = reader, held, grad
        self.found: dict[str, Tensor] = {}
        self.written: dict[str, Tensor] = {}
        self.streams: dict[str, Tensor] = {}
        self.points: dict[str, list[Tensor]] = {}

    def parts(self) -> Parts:
        """What the parts wrote."""
        n, heads = self.reader.layout.n_layers, self.reader.layout.n_heads
        z = [self.found[f"heads {i}"] for i in range(n)]
        shape = self.found["start"].shape[:2]
        z = [each.reshape(*shape, heads, -1) for each in z]
        return Parts(self.found["start"], z, [self.found[f"mlp {i}"].reshape(*shape, -1) for i in range(n)])

    @contextmanager
    def over(self) -> Iterator[None]:
        """Put the hooks in force for the block."""
        tower, row = self.reader.model.tower, self.reader.model.tower.stack.block
        with ExitStack() as stack:

            def before(module: nn.Module, *names: Any) -> None:
                hook = self._before(*names)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

            def after(module: nn.Module, *names: Any) -> None:
                stack.callback(module.register_forward_hook(self._after(*names)).remove)

            for i, (block, facts) in enumerate(zip(tower.blocks, self.reader.blocks, strict=True)):
                before(block, "start" if i == 0 else None, f"attention {i}")
                before(block.get_submodule(row.attn_proj or ""), f"heads {i}")
                if facts.mlp_norm is not None:
                    before(facts.mlp_norm, None, f"mlp {i}")
                for module in facts.mlp:
                    before(module, None, None if facts.mlp_norm is not None else f"mlp {i}", f"mlp {i}")
                for module in dict.fromkeys(facts[kind].module for kind in ("q", "k", "v")):
                    after(module, None, _name(i, module))
                after(block.get_submodule(row.mlp_out or ""), f"mlp {i}")
            after(tower.blocks[-1], None, "logits")
            yield

    def _before(self, part: str | None, stream: str | None = None, point: str | None = None) -> Callable[..., Any]:
        """Hook on an input: a part's value, the stream before a norm, a place of its own for a gradient."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = taps.first_tensor(args)
            value = kwargs["hidden_states"] if value is None else value
            new = self._written(part, value)
            if point is not None and self.grad:
                # Another node of the graph: the stream or the norm's output may have other readers.
                new = new.view_as(new)
                self.points.setdefault(point, []).append(new)
            if stream is not None and self.grad:
                self.streams[stream] = new.detach()
            return None if new is value else (taps.swap(args, value, new), taps.swap(dict(kwargs), value, new))

        return hook

    def _after(self, part: str | None, point: str | None = None) -> Callable[..., Any]:
        """Hook on an output: a part's value, or a place where a gradient is taken."""

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            value = taps.first_tensor(output)
            assert value is not None
            new = self._written(part, value)
            if point is not None and self.grad:
                self.points.setdefault(point, []).append(new)
            return None if new is value else taps.swap(output, value, new)

        return hook

    def _written(self, part: str | None, value: Tensor) -> Tensor:
        """Keep what a part writes; put what is held in its place, and begin the graph at the first block."""
        if part is None:
            return value
        new = value
        if part in self.held:
            new = self.held[part].to(value).reshape(value.shape)
        if part == "start" and self.grad:
            new = new.detach().clone().requires_grad_()
        self.found[part] = new.detach()
        if self.grad:
            self.written[part] = new
        return new


def _name(block: int, module: nn.Module) -> str:
    return f"projection {block} {id(module)}"


def exact(like: Tensor) -> torch.dtype:
    """Half precision is too coarse for sums over many positions."""
    return like.dtype if like.dtype == torch.float64 else torch.float32


def check_finite(where: str, gradient: Tensor) -> None:
    """Refuse gradients that are not finite.

    Raises:
        InputError: one is not.
    """
    if not bool(torch.isfinite(gradient).all()):
        raise InputError(
            f"the gradient at {where} is not finite; half precision may be too narrow, "
            "load the model with dtype float32"
        )


def _through(norm: nn.Module | None, stream: Tensor, gradient: Tensor) -> Tensor:
    """Take gradients (receiver, row, pos, d_model) at a norm's output back to its input (row, pos, d_model)."""
    if norm is None:
        return gradient
    with torch.enable_grad():
        point = stream.detach().requires_grad_()
        out = norm(point)
        (found,) = torch.autograd.grad(out, point, gradient.to(out.dtype), is_grads_batched=True)
    return found.to(gradient.dtype)


def _multiply(written: Tensor, gradient: Tensor, share: float, total: Tensor, column: int) -> int:
    """Add the products of senders (sender, row, pos, d_model) and some receivers; returns the next column."""
    receivers, copies = gradient.shape[0], gradient.shape[1] // written.shape[1]
    if copies > 1:
        gradient = gradient.unflatten(1, (copies, -1)).sum(1)
    found = written.flatten(1) @ gradient.flatten(1).T
    total[: len(written), column : column + receivers] += share * found.double()
    return column + receivers
