"""The same inputs under many small changes, computing only what each change reaches.

What lies before a change need not be computed again: not the blocks below it and, in a causal model, not the
positions before it. `replay` walks the unmodified blocks upward once. At each block the variants that change
something there join those that changed something below; keys and values of earlier positions come from the recorded
base run; only the logits that are read are computed. Where an architecture does not allow it, whole blocks are
replayed (`tiling`), and failing that the whole model runs for each variant (`plain`): the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from actinium.core import attention, taps
from actinium.core.edits import Edit, Fn, Where, as_edits
from actinium.core.errors import InputError
from actinium.core.inputs import Inputs
from actinium.core.passes import Pass, check_positions
from actinium.core.sites import Site
from actinium.core.taps import Program, Tap

if TYPE_CHECKING:
    from actinium.core.model import Model

__all__ = ["Base", "Change", "Variant", "plain", "replay", "tail"]

Reader = Callable[[Tensor], Tensor]
# What a replayed base run may differ from the model's own by, before the plain sweep is used instead.
TOLERANCE = 1e-4
# Most numbers that the residual streams of the variants in flight may hold.
IN_FLIGHT = 2**27


@dataclass(frozen=True, eq=False)
class Change:
    """One edit of a variant at one site, at one call of its module."""

    site: Site
    tap: Tap
    edit: Edit
    call: int | None = None


@dataclass(eq=False)
class Variant:
    """One set of changes.

    Attributes:
        index: place in the answer.
        changes: in the order in which they apply.
        start: the first block that must run (the number of blocks: none).
        column: the first column that changes.
        entry: the changes of the stream that enters `start`; the rest lie within blocks.
    """

    index: int
    changes: list[Change]
    start: int = 0
    column: int = 0
    entry: list[Change] = field(default_factory=list)
    inside: dict[int, list[Change]] = field(default_factory=dict)


@dataclass(eq=False)
class Base:
    """The recorded run that the variants start from.

    Attributes:
        hidden: the stream that enters each block, and last the one that leaves the last: (batch, pos, d_model).
        calls: the other positional and keyword arguments of each block.
        attention: by attention module: keys, values, mask, keyword arguments, library's name.
        columns: (batch, k) columns whose logits are read.
        logits: (batch, k, d_vocab) of the run itself at those columns.
        now: the pass.
    """

    hidden: list[Tensor]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    attention: dict[int, tuple[Tensor, Tensor, Tensor | None, dict[str, Any], str]]
    columns: Tensor
    logits: Tensor
    now: Pass


def replay(
    model: Model,
    inputs: Any,
    variants: Sequence[Mapping[str, Any]],
    *,
    read: int | Sequence[int] = -1,
    metric: Reader | None = None,
    progress: bool = False,
) -> Tensor:
    """Logits of the same inputs under each variant.

    Args:
        model: a language model (others run the plain sweep).
        inputs: texts or tokens, as in `Model.record`.
        variants: each {site or pattern: edit or edits}.
        read: the token position whose logits are wanted, or several (-1: each text's last token).
        metric: called with logits (n, batch, d_vocab) (several positions: (n, batch, k, d_vocab)) of n variants at
            a time; its values (n, …) are returned instead, so that the logits of a long sweep need not be kept.
        progress: show a progress bar.
    Returns:
        (variant, batch, d_vocab), with several positions (variant, batch, k, d_vocab), or the metric's values.
    Raises:
        InputError, SiteError: if an edit does not fit its site, a position does not exist, or there are no variants.
    """
    ready = model.prepare(inputs)
    planned = _planned(model, variants)
    finish = _finisher(read, metric)
    columns = _columns(ready, read)
    with torch.no_grad(), model.eagerly():
        if not _replayable(model, ready, planned):
            return _plain(model, ready, planned, columns, finish, progress)
        base = record_base(model, ready, columns)
        engine = _engine(model, base)
        if engine is None:
            return _plain(model, ready, planned, columns, finish, progress)
        _place(planned, base, model.n_layers, engine.positions)
        return _sweep(engine, planned, base, finish, progress)


def plain(
    model: Model, inputs: Any, variants: Sequence[Mapping[str, Any]], *, read: int | Sequence[int] = -1
) -> Tensor:
    """The plain sweep: one edited forward pass for each variant. What `replay` is checked against."""
    ready = model.prepare(inputs)
    with torch.no_grad():
        return _plain(model, ready, _planned(model, variants), _columns(ready, read), _finisher(read, None), False)


def tail(model: Model, resid: Tensor) -> Tensor:
    """Final norm and unembedding of a residual stream (…, d_model) -> (…, d_vocab).

    Raises:
        InputError: if the model has no unembedding that we know.
    """
    tower = model.tower
    if resid.shape[-1] != tower.d_model:
        raise InputError(f"unembed: expected (…, {tower.d_model}), not {tuple(resid.shape)}")
    norm = tower.part(tower.stack.final_norm)
    head = getattr(model.module, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        raise InputError(f"{model.name} has no unembedding")
    x = norm(resid) if norm is not None else resid
    width = getattr(head, "in_features", x.shape[-1])
    between = tower.part("decoder.project_out") if model.config.model_type == "opt" else None
    x = between(x) if between is not None else x
    predictions = getattr(getattr(model.module, "cls", None), "predictions", None)
    if predictions is not None:
        x = predictions.transform(x)
    if getattr(model.config, "scale_decoder_outputs", False):
        x = x * model.d_model**-0.5
    if x.shape[-1] != width:
        raise InputError(f"{model.name}: what stands between its blocks and its unembedding is not known here")
    logits: Tensor = head(x)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


# Planning -----------------------------------------------------------------------------------------------------


def _planned(model: Model, variants: Sequence[Mapping[str, Any]]) -> list[Variant]:
    if not len(variants):
        raise InputError("replay: no variants given")
    out = []
    resolved: dict[str, list[tuple[Site, Tap, int | None]]] = {}
    for i, given in enumerate(variants):
        changes = []
        for name, edit in as_edits(given):
            if name not in resolved:
                resolved[name] = model.resolve(name)
            for site, tap, call in resolved[name]:
                changes.append(Change(site, tap, edit.bound(site), call))
        out.append(Variant(i, changes))
    return out


def _finisher(read: int | Sequence[int], metric: Reader | None) -> Reader:
    def finish(logits: Tensor) -> Tensor:
        logits = logits[:, :, 0] if isinstance(read, int) else logits
        return logits if metric is None else metric(logits)

    return finish


def _columns(ready: Inputs, read: int | Sequence[int]) -> Tensor:
    """(batch, k) columns of the tokens whose logits are read."""
    check_positions(read)
    if ready.tokens is None:
        raise InputError("replay needs tokens; for other inputs use `with model.edit(...)`")
    mask = ready.tokens.mask
    wanted = torch.as_tensor([read] if isinstance(read, int) else list(read))
    length, left = mask.sum(1, keepdim=True), mask.int().argmax(1, keepdim=True)
    token = torch.where(wanted < 0, wanted + length, wanted.expand(len(mask), -1))
    if bool(((token < 0) | (token >= length)).any()):
        raise InputError(
            f"read: position {read} does not exist in every text (shortest has {int(length.min())} tokens)"
        )
    return token + left


def _replayable(model: Model, ready: Inputs, planned: list[Variant]) -> bool:
    inside = all(c.call is None and c.site.layer is not None and c.site.stack == "" for v in planned for c in v.changes)
    one_tower = len(model.anatomy.towers) == 1 and model.kind == "causal-lm"
    return inside and one_tower and not taps.state.programs and not model.module.training and ready.size > 0


def _place(planned: list[Variant], base: Base, n_layers: int, by_position: bool) -> None:
    """Find the first block and the first column of each variant."""
    n = base.hidden[0].shape[1]
    for variant in planned:
        firsts = [n]
        for change in variant.changes:
            layer, part = int(change.site.layer or 0), change.site.part
            if part in ("resid_pre", "resid_post"):
                entry = layer + (part == "resid_post")
                variant.inside.setdefault(entry, []).append(change)
            else:
                variant.inside.setdefault(layer, []).append(change)
            firsts.append(_first_column(change, base, n) if by_position else 0)
        for changes in variant.inside.values():
            # The output of the block below is changed before what this block takes from it.
            changes.sort(key=lambda c: c.site.part != "resid_post")
        variant.start = min(variant.inside) if variant.inside else n_layers
        variant.column = min(firsts)
        at_entry = variant.inside.get(variant.start, [])
        # A change of the entering stream applies before anything within the block; one that follows an inner change
        # of the block below must not be moved, so entries are taken only at the variant's first block.
        variant.entry = [c for c in at_entry if c.site.part.startswith("resid_p")]
        rest = [c for c in at_entry if not c.site.part.startswith("resid_p")]
        if rest:
            variant.inside[variant.start] = rest
        else:
            variant.inside.pop(variant.start, None)


def _first_column(change: Change, base: Base, n: int) -> int:
    # A function may look at every position, so it is given all of them.
    if change.edit.positions is None or isinstance(change.edit, Fn):
        return 0
    chosen = base.now.selected(change.edit.positions, n, 0, torch.device("cpu")).any(0)
    return int(chosen.int().argmax()) if bool(chosen.any()) else n


# Running ------------------------------------------------------------------------------------------------------


def record_base(model: Model, ready: Inputs, columns: Tensor) -> Base:
    """Run the inputs once and keep what the variants will need."""
    tower = model.tower
    hidden: list[Tensor] = []
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    seen: dict[int, tuple[Tensor, Tensor, Tensor | None, dict[str, Any], str]] = {}
    passes: list[Pass] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden.append(args[0] if args else kwargs["hidden_states"])
        calls.append((args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        value = taps.first_tensor(output)
        assert value is not None
        hidden.append(value)

    def keep(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kw: Any) -> Any:
        name = kw.pop("library_name")
        seen[id(module)] = (k, v, mask, kw, name)
        return attention.library_attention(name, module, q, k, v, mask, **kw)

    program = Program()
    for change in _attention_taps(model):
        program.modules[change.key] = change
    handles = [b.register_forward_pre_hook(before, with_kwargs=True) for b in tower.blocks]
    handles.append(tower.blocks[-1].register_forward_hook(after))
    try:
        with model.running(program, lambda _, now: passes.append(now)), attention.supply(keep):
            _, args, kwargs = next(ready.batches(None, model.device))
            output = model.module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    columns = columns.to(model.device)
    logits = output.logits.gather(1, columns[:, :, None].expand(-1, -1, output.logits.shape[-1]))
    now = passes[-1]
    return Base(
        hidden, calls, seen, columns, logits, Pass(now.batch, 0, now.columns, now.left, now.prompt, real=now.real)
    )


def _attention_taps(model: Model) -> list[Tap]:
    """One point for each attention module that goes through the library's interface."""
    if model.tower.stack.calls != "interface":
        return []
    return [t for n, t in model.anatomy.taps.items() if n.endswith(".attn.q")]


class Engine:
    """How variants are run. `positions` says whether earlier positions are left out."""

    positions = False

    def __init__(self, model: Model, base: Base) -> None:
        self.model, self.base = model, base

    def run(self, variants: list[Variant], tick: Callable[[], None]) -> Tensor:
        """(variant, batch, k, d_vocab)."""
        raise TypeError(f"{type(self).__name__} must define run()")

    def entered(self, variant: Variant) -> Tensor:
        """The changed stream that enters the variant's first block, from its first column: (batch, n, d_model)."""
        x = self.base.hidden[variant.start][:, variant.column :]
        for change in variant.entry:
            x = change.edit(x, Where(change.site, self.base.now, variant.column))
        return x


def _engine(model: Model, base: Base) -> Engine | None:
    """The fastest engine whose replay of the unchanged run gives the model's own logits, or None."""
    from actinium.core.packing import PackingEngine
    from actinium.core.tiling import TilingEngine

    known: dict[str, bool] = model.__dict__.setdefault("_engines", {})
    scale = float(base.logits.abs().max()) + 1.0
    for cls in (PackingEngine, TilingEngine):
        engine: Engine = cls(model, base)
        if cls is PackingEngine and not base.attention:
            continue
        key = f"{cls.__name__} {sorted({a[4] for a in base.attention.values()})}"
        if key not in known:
            half = base.hidden[0].shape[1] // 2 if engine.positions else 0
            try:
                out = engine.run([Variant(0, [], 0, half)], lambda: None)[0]
                known[key] = bool((out - base.logits).abs().max() <= TOLERANCE * scale)
            except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError):
                # Blocks that cannot be run this way (their arguments are of a kind we do not know) run the plain way.
                known[key] = False
        if known[key]:
            return engine
    return None


def _sweep(engine: Engine, planned: list[Variant], base: Base, finish: Reader, progress: bool) -> Tensor:
    out: list[Tensor | None] = [None] * len(planned)
    changed = []
    for variant in planned:
        same = not variant.inside and torch.equal(
            engine.entered(variant), base.hidden[variant.start][:, variant.column :]
        )
        if same:
            out[variant.index] = finish(base.logits[None])[0]
        else:
            changed.append(variant)
    n, width = base.hidden[0].shape[1], base.hidden[0].shape[-1]
    slabs: list[list[Variant]] = [[]]
    load = 0
    for variant in sorted(changed, key=lambda v: v.start):
        cost = base.now.batch * (n - variant.column) * width + base.logits.numel()
        if slabs[-1] and load + cost > IN_FLIGHT:
            slabs.append([])
            load = 0
        slabs[-1].append(variant)
        load += cost
    with _bar(progress, sum(len(base.calls) - s[0].start + 1 for s in slabs if s)) as tick:
        for slab in slabs:
            if not slab:
                continue
            for variant, value in zip(slab, finish(engine.run(slab, tick)), strict=True):
                out[variant.index] = value
    return torch.stack([o for o in out if o is not None])


class _bar:
    """A Rich progress bar, or nothing."""

    def __init__(self, shown: bool, total: int) -> None:
        self.total, self.shown = total, shown
        self.progress: Any = None

    def __enter__(self) -> Callable[[], None]:
        if not self.shown:
            return lambda: None
        from rich.progress import Progress

        self.progress = bar = Progress(transient=True)
        bar.start()
        task = bar.add_task("replay", total=self.total)
        return lambda: bar.advance(task)

    def __exit__(self, *exc: object) -> None:
        if self.progress is not None:
            self.progress.stop()


def _plain(
    model: Model, ready: Inputs, planned: list[Variant], columns: Tensor, finish: Reader, progress: bool
) -> Tensor:
    columns = columns.to(model.device)
    out = []
    with _bar(progress, len(planned)) as tick:
        for variant in planned:
            with model.edit(
                [(c.site.name + (f"#{c.call}" if c.call is not None else ""), c.edit) for c in variant.changes]
            ):
                logits = model.logits(ready)
            if logits.ndim != 3:
                raise InputError(f"{model.name} gives one answer for each input, not one for each position")
            out.append(finish(logits.gather(1, columns[:, :, None].expand(-1, -1, logits.shape[-1]))[None])[0])
            tick()
    return torch.stack(out)
