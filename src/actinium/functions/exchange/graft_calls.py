"""What an operator inside of a network is called with, and what it gives back: the data of a graft."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError, SiteError, unknown
from actinium.core.model import Model
from actinium.core.progress import shown

__all__ = ["OperatorCall", "record_calls"]

Select = int | str | None


@dataclass(frozen=True)
class OperatorCall:
    """One call of an operator.

    Attributes:
        args: positional arguments, tensors detached.
        kwargs: arguments by name, tensors detached.
        h: the tensor among them that the operator reads.
        y: the tensor of the output that the network uses.
        layout: of the output: None for a tensor, its length for a tuple or list, its keys for a mapping.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    h: Tensor
    y: Tensor
    layout: int | tuple[str, ...] | None

    def with_h(self, h: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with another tensor in the place of h."""

        def put(value: Any) -> Any:
            return h if value is self.h else value

        return tuple(map(put, self.args)), {k: put(v) for k, v in self.kwargs.items()}


def read_of(args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Tensor:
    """The tensor that an operator reads: the first of numbers by position, `hidden_states`, or the only one by name.

    Raises:
        InputError: there is none, or it is not clear which.
    """
    floats = [a for a in args if _floats(a)]
    if floats:
        return floats[0]
    named = {k: v for k, v in kwargs.items() if _floats(v)}
    if "hidden_states" in named:
        return named["hidden_states"]
    if len(named) != 1:
        raise InputError(f"{name} is called with the tensors {sorted(named) or 'none'}: it is not clear which it reads")
    return next(iter(named.values()))


def chosen(output: Any, select: Select, name: str) -> tuple[Tensor, int | tuple[str, ...] | None]:
    """The tensor of an output that `select` names, and the output's layout.

    Raises:
        InputError: a `select` is missing, too much, or names nothing.
    """
    if isinstance(output, Tensor):
        if select is not None:
            raise InputError(f"{name} returns a tensor, there is nothing to select {select!r} from")
        return output, None
    if isinstance(output, Mapping):
        keys: Any = tuple(output)
        fits = isinstance(select, str) and select in keys
        has, layout = f"the keys {list(keys)}", keys
    elif isinstance(output, tuple | list):
        fits = isinstance(select, int) and 0 <= select < len(output)
        has, layout = f"{len(output)} items", len(output)
    else:
        raise InputError(f"{name} returns {type(output).__name__}, not a tensor, a tuple or a mapping")
    if not fits:
        said = "select says" if select is not None else "give select, which says"
        raise InputError(f"{name} returns a {type(output).__name__} of {has}: {said} which of them is its output")
    value = output[select]
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: what select {select!r} names is {type(value).__name__}, not a tensor")
    return value, layout


def packed(y: Tensor, select: Select, layout: int | tuple[str, ...] | None) -> Any:
    """An output of that layout with y where `select` says and None elsewhere."""
    if layout is None:
        return y
    if isinstance(layout, int):
        return tuple(y if i == select else None for i in range(layout))
    return {key: y if key == select else None for key in layout}


def submodules(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Parts of a network by name.

    Raises:
        InputError: no name is given.
        SiteError: there is no such module.
    """
    known = dict(module.named_modules())
    names = list(names)
    if not names:
        raise InputError("no site is given")
    for name in names:
        if not name or name not in known:
            raise SiteError(unknown("module", name, [n for n in known if n]))
    return {name: known[name] for name in names}


def run(model: nn.Module | Model, batch: Any) -> Any:
    """One forward pass: a mapping by name, a tuple by position, texts by a `Model`, anything else as it is."""
    module = model.module if isinstance(model, Model) else model
    if isinstance(model, Model) and (isinstance(batch, str) or (isinstance(batch, list) and batch)):
        return model(batch)
    # A cache would be filled by the first call, and belongs to no operator that is called again later.
    cache = {"use_cache": False} if getattr(getattr(module, "config", None), "use_cache", None) else {}
    if isinstance(batch, Mapping):
        return module(**{**cache, **batch})
    return module(*batch, **cache) if isinstance(batch, tuple) else module(batch, **cache)


@torch.no_grad()
def record_calls(
    model: nn.Module | Model,
    names: Sequence[str],
    batches: Iterable[Any],
    select: Mapping[str, Select] | Select = None,
    *,
    progress: bool = False,
) -> dict[str, list[OperatorCall]]:
    """Run a network and keep what the named operators read and give back, in the network's own precision.

    Args:
        model: the network, deterministic as it stands.
        names: names of modules, each called once in a forward pass.
        batches: inputs of the network: a tensor, a tuple of arguments, a mapping of them; with a `Model` texts too.
        select: which item of an output that is no tensor is meant, for all modules or by name.
        progress: show a progress bar.

    Returns:
        by module the calls, one for each batch.

    Raises:
        InputError: no batches, dropout or batch statistics in training, a module that is not called once, or an output
            that is not clear or not finite.
        SiteError: there is no such module.
    """
    module = model.module if isinstance(model, Model) else model
    parts = submodules(module, names)
    check_still(module)
    select = select if isinstance(select, Mapping) else dict.fromkeys(parts, select)
    strange = [name for name in select if name not in parts]
    if strange:
        raise SiteError(unknown("site in select", strange[0], parts))
    calls: dict[str, list[OperatorCall]] = {name: [] for name in parts}
    for number, batch in enumerate(shown(batches, "recording", progress)):
        with _watched(parts, lambda name, call: calls[name].append(call), select):
            run(model, batch)
        for name, made in calls.items():
            if len(made) != number + 1:
                raise InputError(f"{name} is called {len(made) - number} times in a forward pass, expected once")
    if not next(iter(calls.values())):
        raise InputError("there are no batches to record")
    return calls


@contextmanager
def _watched(
    parts: Mapping[str, nn.Module], keep: Callable[[str, OperatorCall], None], select: Mapping[str, Select]
) -> Iterator[None]:
    def hook(name: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            h = read_of(args, kwargs, name)
            y, layout = chosen(output, select.get(name), name)
            if not bool(y.isfinite().all()):
                raise InputError(f"the output of {name} holds NaN or infinite values")
            # Networks may write into what they handed over, as a residual that is added in place does.
            kept = h.detach().clone()
            before = OperatorCall(args, kwargs, h, y.detach().clone(), layout)
            keep(name, OperatorCall(*before.with_h(kept), kept, before.y, layout))

        return after

    handles = [part.register_forward_hook(hook(name), with_kwargs=True) for name, part in parts.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_still(module: nn.Module) -> None:
    """Refuse a network that gives another output each time, or changes when it runs.

    Raises:
        InputError: a part that is in training has dropout or batch statistics.
    """
    for name, part in module.named_modules():
        if not part.training:
            continue
        drops = [k for k, v in vars(part).items() if "drop" in k and isinstance(v, float) and v > 0]
        if drops or (isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0):
            raise InputError(f"{name or 'the network'} drops out in training: call .eval() before it is read")
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats:
            raise InputError(f"{name or 'the network'} counts statistics in training: call .eval() before it is read")


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
