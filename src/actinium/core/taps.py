"""The points of a module where activations are read and written, and the hooks behind them.

A `Program` is what one `with` block wants: edits and readers by point. Programs live on a stack of their own in each
thread, so that two threads, two models or nested blocks never see each other's edits. Hooks are shared and counted:
the first program that needs a module's hook installs it, the last one removes it. A hook runs all edits of the
thread's programs in the order in which they were entered, then all readers.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.passes import Generation, Pass, read_pass

__all__ = [
    "Action",
    "Board",
    "Program",
    "Tap",
    "board",
    "current_pass",
    "dispatch",
    "live",
    "running",
    "state",
]

Kind = Literal["output", "input", "stream", "logits", "attention"]
Key = tuple[int, str]
CHECKPOINTING = "gradient_checkpointing"
Action = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True, eq=False)
class Tap:
    """How one site is reached.

    Attributes:
        module: the module hooked.
        kind: "output" or "input" of the module (its first tensor), "stream": its input, written in place because
            the residual stream beside the module holds the same tensor, "logits": the model's output, "attention":
            within the attention computation.
        part: q, k, v, scores or pattern, for "attention".
        root: the module that receives the tower's mask and cache.
        heads: number of heads that the last dimension holds side by side, 0 if it is not split.
        half: 0 or 1 where the site is one half of the last dimension.
        sequence: whether the site has positions (some modules see (batch * pos, d)).
        copies: copy on reading, because the model changes the tensor in place afterwards.
    """

    module: nn.Module
    kind: Kind
    part: str = ""
    root: nn.Module | None = None
    heads: int = 0
    half: int | None = None
    sequence: bool = True
    copies: bool = False

    @property
    def key(self) -> Key:
        """Module and kind of hook."""
        return id(self.module), self.kind + self.part

    def view(self, raw: Tensor, batch: int) -> Tensor:
        """The tensor in the site's layout; shares memory with `raw` where it can."""
        if self.half is not None:
            raw = raw.chunk(2, -1)[self.half]
        if self.sequence and raw.ndim == 2 and batch and raw.shape[0] % batch == 0:
            raw = raw.reshape(batch, -1, raw.shape[-1])
        return raw.reshape(*raw.shape[:-1], self.heads, -1) if self.heads else raw

    def unview(self, new: Tensor, raw: Tensor) -> Tensor:
        """Bring a new value back to the module's layout."""
        if self.half is None:
            return new if new.shape == raw.shape else new.reshape(raw.shape)
        parts = list(raw.chunk(2, -1))
        parts[self.half] = new.reshape(parts[self.half].shape)
        return torch.cat(parts, -1)


class Program:
    """What one block wants done at which points.

    Args:
        stop: end the forward pass (by `Finished`) as soon as `pending` is empty.
    """

    def __init__(self, stop: bool = False) -> None:
        self.on_pass: Callable[[nn.Module, Pass], None] | None = None
        self.edits: dict[Key, list[Action]] = {}
        self.readers: dict[Key, list[Action]] = {}
        self.modules: dict[Key, Tap] = {}
        self.calls: dict[Key, int] = {}
        self.pending: set[Any] = set()
        self.stop = stop

    def add(self, tap: Tap, action: Action, reader: bool = False) -> None:
        """Run `action` at `tap`: it gets the module's tensor, and an edit returns the new one."""
        (self.readers if reader else self.edits).setdefault(tap.key, []).append(action)
        self.modules.setdefault(tap.key, tap)


class Finished(BaseException):
    """Leaves a forward pass whose last wanted activation has been read. Never reaches a user."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program


class _State(threading.local):
    def __init__(self) -> None:
        self.programs: list[Program] = []
        self.passes: dict[int, Pass] = {}
        self.row_start = 0
        self.rows = 0
        self.generation: Generation | None = None


state = _State()


def recomputing() -> bool:
    """Whether a backward pass is running in this thread (a checkpointed block is being computed again)."""
    return torch._C._current_graph_task_id() != -1


def live(key: Key) -> tuple[bool, bool]:
    """Whether any program of this thread reads, and whether any edits, at a point."""
    programs = state.programs
    return any(key in p.readers for p in programs), any(key in p.edits for p in programs)


def current_pass(root: nn.Module | None) -> Pass:
    """The pass in flight of a tower; an unknown one where the tower was entered past its root."""
    return state.passes.get(id(root)) or Pass(row_start=state.row_start, rows=state.rows)


def dispatch(key: Key, value: Tensor, in_place: bool = False) -> Tensor:
    """Run this thread's edits, then its readers, at a point.

    Raises:
        Finished: if a program that stops early has now read everything.
    """
    programs = state.programs
    new = value
    for program in programs:
        for action in program.edits.get(key, ()):
            # Written in place, so what the edit saves for backward must not be the tensor it overwrites.
            out = action(new.clone() if in_place and new is value else new)
            new = new if out is None else out
    if in_place and new is not value:
        value.copy_(new)
        new = value
    if recomputing():
        return new
    for program in programs:
        if key in program.readers:
            for action in program.readers[key]:
                action(new)
        if key in program.modules:
            program.calls[key] = program.calls.get(key, 0) + 1
    for program in programs:
        wanted = program.stop and not program.pending and key in program.readers
        if wanted and sum(bool(p.readers) for p in programs) == 1:
            raise Finished(program)
    return new


def first_tensor(value: Any) -> Tensor | None:
    """The first floating-point tensor in a tensor, tuple, list, dict or dataclass, depth first."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() or value.is_complex() else None
    if isinstance(value, dict):
        children: Sequence[Any] = list(value.values())
    elif isinstance(value, tuple | list):
        children = value
    elif is_dataclass(value) and not isinstance(value, type):
        children = [getattr(value, f.name) for f in fields(value)]
    else:
        return None
    return next((t for t in map(first_tensor, children) if t is not None), None)


def swap(value: Any, old: Tensor, new: Tensor) -> Any:
    """The same structure with `old` replaced by `new`."""
    if value is old:
        return new
    if isinstance(value, dict):
        for key in list(value):
            replaced = swap(value[key], old, new)
            if replaced is not value[key]:
                value[key] = replaced
        return value
    if isinstance(value, tuple | list):
        items = [new if v is old else v if isinstance(v, Tensor) else swap(v, old, new) for v in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            child = getattr(value, f.name)
            replaced = swap(child, old, new)
            if replaced is not child:
                object.__setattr__(value, f.name, replaced)
    return value


def _on_output(tap: Tap) -> Callable[..., Any]:
    key, logits = tap.key, tap.kind == "logits"

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        value = getattr(output, "logits", None) if logits else None
        value = value if isinstance(value, Tensor) else first_tensor(output)
        if value is None:
            return None
        new = dispatch(key, value)
        return None if new is value else swap(output, value, new)

    return hook


def _on_input(tap: Tap) -> Callable[..., Any]:
    key, in_place = tap.key, tap.kind == "stream"

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = first_tensor(args)
        if value is None:
            value = kwargs.get("hidden_states")
            value = value if isinstance(value, Tensor) else first_tensor(kwargs)
        if value is None:
            return None
        new = dispatch(key, value, in_place)
        return None if new is value else (swap(args, value, new), swap(dict(kwargs), value, new))

    return hook


class Board:
    """The hooks of one module, shared by all programs of all threads, with a count of who needs each."""

    def __init__(self, root: nn.Module) -> None:
        self._root = weakref.ref(root)
        self._lock = threading.RLock()
        self._counts: dict[Key, int] = {}
        self._removers: dict[Key, Callable[[], None]] = {}

    def acquire(self, key: Key, install: Callable[[], Callable[[], None]]) -> None:
        """Count one more user of a hook; the first one runs `install`, which returns how to remove it."""
        with self._lock:
            if not self._counts.get(key):
                self._removers[key] = install()
            self._counts[key] = self._counts.get(key, 0) + 1

    def release(self, key: Key) -> None:
        """Count one user less; the last one removes the hook."""
        with self._lock:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
                self._removers.pop(key)()

    def holds(self, key: Key) -> bool:
        """Whether anyone needs this hook now."""
        return key in self._counts

    @property
    def hooks(self) -> int:
        """Number of hooks installed now."""
        return len(self._removers)


_boards: weakref.WeakKeyDictionary[nn.Module, Board] = weakref.WeakKeyDictionary()
_boards_lock = threading.Lock()


def board(root: nn.Module) -> Board:
    """The board of a module (one for each module, however many `Model`s wrap it)."""
    with _boards_lock:
        if root not in _boards:
            _boards[root] = Board(root)
        return _boards[root]


def _pass_hook(whole: bool) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if recomputing():
            return None
        if whole:
            for program in state.programs:
                program.calls.clear()
        before = state.passes.get(id(module))
        now = read_pass(module, args, kwargs, before, state.row_start, state.rows, state.generation)
        state.passes[id(module)] = now
        for program in state.programs:
            if whole and program.on_pass is not None:
                program.on_pass(module, now)
        # `generate` asks for the last position's logits only; who reads or edits logits wants them all.
        if whole and kwargs.get("logits_to_keep") and any(live((id(module), "logits"))):
            return args, {**kwargs, "logits_to_keep": 0}
        return None

    return hook


def _install(tap: Tap) -> Callable[[], None]:
    if tap.kind in ("output", "logits"):
        return tap.module.register_forward_hook(_on_output(tap)).remove
    return tap.module.register_forward_pre_hook(_on_input(tap), with_kwargs=True).remove


def _checkpointed(root: nn.Module, program: Program, here: Board) -> list[nn.Module]:
    """The gradient-checkpointed modules that hold an edited point.

    They would run again in a backward pass, perhaps after the block has ended, and then without the edit: while it is
    in force they keep their activations instead.
    """
    if not root.training or not program.edits:
        return []
    edited = {program.modules[key].module for key in program.edits}
    layers = [m for m in root.modules() if getattr(m, CHECKPOINTING, False) or here.holds((id(m), CHECKPOINTING))]
    return [m for m in layers if any(inner in edited for inner in m.modules())]


def _without_checkpointing(layer: nn.Module) -> Callable[[], None]:
    setattr(layer, CHECKPOINTING, False)

    def back() -> None:
        setattr(layer, CHECKPOINTING, True)

    return back


@contextmanager
def running(
    root: nn.Module,
    program: Program,
    roots: Sequence[nn.Module],
    attention: Callable[[Tap], Callable[[], None]],
) -> Iterator[None]:
    """Put a program in force in this thread, with all hooks it needs; all is undone however the block ends.

    Args:
        root: the whole module.
        program: what to do.
        roots: the modules that receive masks and caches.
        attention: installs the watch over one attention module and returns how to remove it.
    """
    here, held = board(root), []
    mine = state.programs
    try:
        for module in dict.fromkeys((root, *roots)):
            key = (id(module), "pass")
            whole = module is root

            def watch(module: nn.Module = module, whole: bool = whole) -> Callable[[], None]:
                return module.register_forward_pre_hook(_pass_hook(whole), with_kwargs=True).remove

            here.acquire(key, watch)
            held.append(key)
        for layer in _checkpointed(root, program, here):
            key = (id(layer), CHECKPOINTING)
            here.acquire(key, partial(_without_checkpointing, layer))
            held.append(key)
        for key, tap in program.modules.items():

            def install(tap: Tap = tap) -> Callable[[], None]:
                return attention(tap) if tap.kind == "attention" else _install(tap)

            here.acquire(key, install)
            held.append(key)
        mine.append(program)
        yield
    finally:
        if program in mine:
            mine.remove(program)
        for key in held:
            here.release(key)
        if not mine:
            state.passes.clear()


def need_tensor(value: Any, name: str) -> Tensor:
    """Refuse a point where no tensor passed.

    Raises:
        InputError: if `value` is not a tensor.
    """
    if not isinstance(value, Tensor):
        raise InputError(f"{name}: no tensor passed here (the module returned {type(value).__name__})")
    return value
