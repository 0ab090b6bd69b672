"""Reading activations: once over inputs, or around any call of the model, generation included."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from actinium.core import taps
from actinium.core.collector import Collector, blank, dims_of, even, longer
from actinium.core.errors import InputError, SiteError
from actinium.core.inputs import Inputs
from actinium.core.passes import Pass, Positions, check_positions
from actinium.core.recording import Recording
from actinium.core.reducing import Context, feature_rows
from actinium.core.sites import Site
from actinium.core.taps import Finished, Program, Tap

if TYPE_CHECKING:
    from actinium.core.model import Model

__all__ = ["record", "recording"]


class _Session:
    """The sites, collectors and program of one recording."""

    def __init__(self, model: Model, at: Any, change: Callable[[Tensor], Tensor], stop: bool) -> None:
        self.model = model
        self.program = Program(stop=stop)
        self.collectors: list[Collector] = []
        for site, tap, call in model.resolve(at):
            collector = Collector(site, tap, self.program, call, change)
            self.collectors.append(collector)
            self.program.add(tap, collector, reader=True)

    def restart(self) -> None:
        """Expect every site again."""
        self.program.pending.update(self.collectors)

    def missing(self) -> None:
        """Refuse a pass in which a site was never reached.

        Raises:
            SiteError: naming the sites and how often their modules ran.
        """
        for c in self.collectors:
            if not c.groups:
                times = self.program.calls.get(c.tap.key, 0)
                if c.call is not None and times:
                    raise SiteError(f"{c.site.name}#{c.call}: this module ran {times} times; calls count from #0")
                raise SiteError(f"{c.site.name}: this module did not run in the forward pass")


def _converter(grad: bool, device: Any, dtype: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    def change(value: Tensor) -> Tensor:
        value = value if grad else value.detach()
        return value.to(device=device, dtype=dtype) if device is not None or dtype is not None else value

    return change


def _copying(tap: Tap, site: Site) -> bool:
    # A module of which we know nothing may be followed by one that works in place (ReLU(inplace=True)).
    return tap.copies or site.name.startswith("module")


def _name(collector: Collector, call: int, calls: int) -> str:
    if collector.call is not None:
        return f"{collector.site.name}#{collector.call}"
    return f"{collector.site.name}#{call}" if calls > 1 else collector.site.name


def record(
    model: Model,
    inputs: Inputs,
    at: Any,
    *,
    positions: Positions | None = None,
    reduce: Any = None,
    grad: bool = False,
    device: Any = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Recording:
    """See `Model.record`."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    if positions is not None:
        check_positions(positions)
        _check_lengths(positions, inputs)
    session = _Session(model, at, _converter(grad, device, dtype), stop=True)
    for collector in session.collectors:
        collector.positions = positions
        if _copying(collector.tap, collector.site) and not grad:
            inner = collector.change
            collector.change = lambda v, inner=inner: inner(v).clone()  # type: ignore[misc]
    reducers = _reducers(reduce, session.collectors)
    pieces: dict[str, list[Tensor]] = {}
    sites: dict[str, Site] = {}
    with model.running(session.program), nullcontext() if grad else torch.no_grad():
        for start, args, kwargs in _progress(inputs, batch_size, model.device, progress):
            taps.state.row_start, taps.state.rows = start, inputs.size
            session.restart()
            try:
                model.module(*args, **kwargs)
            except Finished as finished:
                if finished.program is not session.program:
                    raise
            finally:
                taps.state.row_start = taps.state.rows = 0
            session.missing()
            _collect(session.collectors, pieces, sites, reducers, inputs, start, positions)
    return _finish(model, inputs, pieces, sites, reducers, positions)


def _check_lengths(positions: Positions, inputs: Inputs) -> None:
    if inputs.tokens is None or isinstance(positions, slice | str):
        return
    lengths = inputs.tokens.mask.sum(1)
    wanted = (
        positions
        if isinstance(positions, Tensor)
        else torch.as_tensor(positions if isinstance(positions, int) else list(positions))
    )
    if wanted.ndim == 2 and wanted.shape[0] != len(lengths):
        raise InputError(f"positions: {wanted.shape[0]} rows for {len(lengths)} texts")
    per_row = wanted.reshape(len(lengths) if wanted.ndim == 2 else 1, -1)
    bad = ((per_row >= lengths[:, None]) | (per_row < -lengths[:, None])).any(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise InputError(f"positions: text {row} has {int(lengths[row])} tokens; {positions} is outside")


def _progress(inputs: Inputs, batch_size: int | None, device: torch.device, shown: bool) -> Iterator[Any]:
    batches = inputs.batches(batch_size, device)
    if not shown:
        yield from batches
        return
    from rich.progress import track

    total = -(-inputs.size // (batch_size or inputs.size))
    yield from track(batches, description="recording", total=total, transient=True)


def _reducers(reduce: Any, collectors: list[Collector]) -> dict[Collector, dict[str, Any]] | None:
    return None if reduce is None else {c: collect_reducers(reduce) for c in collectors}


def collect_reducers(reduce: Any) -> dict[str, Any]:
    """Fresh copies of a reducer (under the name "") or of each of {name: reducer}.

    Raises:
        InputError: one that is no reducer.
    """
    table = dict(reduce) if isinstance(reduce, Mapping) else {"": reduce}
    for name, one in table.items():
        made = one() if inspect.isclass(one) else one
        if not callable(getattr(made, "update", None)) or not callable(getattr(made, "result", None)):
            raise InputError(f"reduce{name and f'[{name!r}]'}: a reducer has update() and result(), {one!r} has not")
    return {name: one() if inspect.isclass(one) else copy.deepcopy(one) for name, one in table.items()}


def _collect(
    collectors: list[Collector],
    pieces: dict[str, list[Tensor]],
    sites: dict[str, Site],
    reducers: dict[Collector, dict[str, Any]] | None,
    inputs: Inputs,
    start: int,
    positions: Positions | None,
) -> None:
    for collector in collectors:
        calls = sorted(collector.groups)
        for call in calls:
            name, site = _name(collector, call, len(calls)), collector.site
            (value,) = collector.take(call)
            stop = start + value.shape[0] if value.ndim else start
            mask = tokens = None
            # The tokens are those of the text tower: a decoder or a vision tower has positions of its own.
            if inputs.tokens is not None and positions is None and site.stack in ("", "encoder", "text"):
                mask, tokens = inputs.tokens.mask[start:stop], inputs.tokens.ids[start:stop]
                if not bool(mask.all()):
                    value = blank(value, mask, site)
            sites[name] = site
            if reducers is None:
                pieces.setdefault(name, []).append(value)
                continue
            pieces.setdefault(name, [])
            context = Context(dims_of(site, value), mask, tokens, torch.arange(start, stop), site.name)
            for one in reducers[collector].values():
                update_reducer(one, value, context)


def update_reducer(reducer: Any, value: Tensor, context: Context) -> None:
    """Give a reducer the tensor of a site: with its context if it wants that, else its rows."""
    if getattr(reducer, "wants_context", False):
        reducer.update(value, context)
        return
    reducer.update(feature_rows(value, context)[0])


def _finish(
    model: Model,
    inputs: Inputs,
    pieces: dict[str, list[Tensor]],
    sites: dict[str, Site],
    reducers: dict[Collector, dict[str, Any]] | None,
    positions: Positions | None,
) -> Recording:
    tokens = inputs.tokens
    values: dict[str, Any] = {}
    dims: dict[str, tuple[str, ...]] = {}
    if reducers is not None:
        for collector, made in reducers.items():
            results = {name: one.result() for name, one in made.items()}
            values[collector.site.name] = results[""] if list(results) == [""] else results
            dims[collector.site.name] = collector.site.dims
    else:
        for name, parts in pieces.items():
            parts = even(parts, sites[name])
            values[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
            dims[name] = dims_of(sites[name], values[name])
    return Recording(
        values,
        dims,
        tokens.ids if tokens and positions is None else None,
        tokens.mask if tokens and positions is None else None,
        tokens.rows if tokens else torch.arange(inputs.size),
        None if tokens is None else _words(model, tokens.ids, tokens.mask),
        model.n_layers,
    )


def _words(model: Model, ids: Tensor, mask: Tensor) -> Callable[[], list[list[str]]] | None:
    if model.tokenizer is None:
        return None
    return lambda: [model.to_str_tokens(row[real]) for row, real in zip(ids, mask, strict=True)]


@contextmanager
def recording(
    model: Model,
    at: Any,
    *,
    grad: bool = False,
    device: Any = None,
    dtype: torch.dtype | None = None,
    stop: bool = False,
) -> Iterator[Recording]:
    """See `Model.recording`."""
    session = _Session(model, at, _converter(grad, device, dtype), stop=stop)
    for collector in session.collectors:
        inner = collector.change
        collector.change = lambda v, inner=inner: inner(v) if grad else inner(v).clone()  # type: ignore[misc]
    if stop:
        session.restart()
    ids = _TokenWatch(model)
    rec = Recording({}, {}, n_layers=model.n_layers)
    try:
        with model.running(session.program, ids.watch()):
            yield rec
    except Finished as finished:
        if finished.program is not session.program:
            raise
    finally:
        rec.tokens, rec.mask = ids.result()
        for collector in session.collectors:
            calls = sorted(collector.groups)
            for call in calls:
                parts = even(collector.take(call), collector.site)
                name = _name(collector, call, len(calls))
                value = parts[0] if len(parts) == 1 else torch.cat(parts)
                if rec.mask is not None and not bool(rec.mask.all()):
                    value = blank(value, rec.mask, collector.site)
                rec.values[name] = value
                rec.dims[name] = dims_of(collector.site, value)
        if rec.tokens is not None:
            rec.rows = torch.arange(len(rec.tokens))
            if rec.mask is not None:
                rec.words = _words(model, rec.tokens, rec.mask)


class _TokenWatch:
    """Remembers the token ids and the mask of each pass of the whole model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        # Ids, mask, and the column of the first id: above 0 where a cache was filled before the block began.
        self.groups: list[tuple[list[Tensor], Tensor | None, int]] = []

    def watch(self) -> Callable[[nn.Module, Pass], None]:
        def seen(module: nn.Module, now: Pass) -> None:
            ids = now.arguments.get("input_ids")
            if not isinstance(ids, Tensor) or ids.ndim != 2:
                return
            mask = now.arguments.get("attention_mask")
            mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
            if now.again and self.groups:
                self.groups[-1] = ([], mask, 0)
            elif not now.start or not self.groups:
                self.groups.append(([], mask, now.start))
            pieces, known, first = self.groups[-1]
            if known is not None and (mask is None or mask.shape[1] < known.shape[1]):
                mask = known  # a state-space model is told of the new columns only
            have = first + sum(p.shape[1] for p in pieces)
            if have > now.start:
                kept = torch.cat(pieces, 1)[:, : now.start - first]
                pieces[:] = [kept]
            pieces.append(ids.detach().cpu())
            self.groups[-1] = (pieces, mask, first)

        return seen

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        if not self.groups:
            return None, None
        ids = [torch.cat(pieces, 1) for pieces, _, _ in self.groups]
        masks = []
        for i, (_, mask, first) in zip(ids, self.groups, strict=True):
            whole = torch.ones_like(i, dtype=torch.bool)
            if mask is not None and mask.shape[0] == i.shape[0]:
                n = min(mask.shape[1] - first, i.shape[1])
                whole[:, :n] = mask[:, first : first + n].bool().cpu()
            masks.append(whole)
        size = max(i.shape[1] for i in ids)
        long = [longer(i, 1, size, 0) for i in ids]
        return torch.cat(long), torch.cat([longer(m, 1, size, 0) for m in masks])
