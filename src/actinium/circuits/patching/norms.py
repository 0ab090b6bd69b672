"""The scale by which a norm divides, found inside unmodified modules, and held or made a constant.

A norm is run a second time with its square root (or the library's fused function) watched: what comes out of it is the
scale. Hooks are shared between threads and counted; what they do belongs to the thread that entered the block.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from actinium.core import taps
from actinium.core.errors import InputError
from actinium.core.model import Model

__all__ = ["NormScales", "ScaleWatch", "hides_its_scale", "is_norm", "norms_of"]

ROOTS = {torch.rsqrt, Tensor.rsqrt, torch.sqrt, Tensor.sqrt}
POWERS = {torch.pow, Tensor.pow, Tensor.__pow__}
NOT_NORMS = ("batchnorm", "instancenorm", "localresponsenorm")
"""Linear in evaluation mode, or not over features."""


class ScaleWatch(TorchFunctionMode):
    """Gives the scale of a norm that runs within the block to a function, and goes on with what comes back.

    Args:
        change: from the scale that multiplies (1 / sqrt(var + eps)), or the root by which is divided, to what is to be
            used in its place; of the same shape.

    Attributes:
        seen: number of scales.
    """

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change, self.seen = change, 0

    def _changed(self, scale: Tensor) -> Tensor:
        self.seen += 1
        return self.change(scale)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ROOTS or (func in POWERS and _exponent(args, kwargs) in (0.5, -0.5)):
            return self._changed(func(*args, **kwargs))
        if func is F.layer_norm:
            return self._layer_norm(*args, **kwargs)
        if func is F.rms_norm:
            return self._rms_norm(*args, **kwargs)
        if func is F.group_norm:
            return self._group_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _layer_norm(self, x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        dims = tuple(range(-len(shape), 0))
        centred = _wide(x) - _wide(x).mean(dims, keepdim=True)
        return _affine(centred * self._scale(centred, dims, eps), weight, bias).to(x.dtype)

    def _rms_norm(self, x: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        wide = _wide(x)
        return _affine(wide * self._scale(wide, tuple(range(-len(shape), 0)), eps), weight, None).to(x.dtype)

    def _group_norm(self, x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        wide = _wide(x).reshape(len(x), groups, -1)
        centred = wide - wide.mean(-1, keepdim=True)
        y = (centred * self._scale(centred, (-1,), eps)).reshape(x.shape)
        over = (-1, *[1] * (x.ndim - 2))
        weight, bias = (None if p is None else p.view(over) for p in (weight, bias))
        return _affine(y, weight, bias).to(x.dtype)

    def _scale(self, centred: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
        return self._changed(torch.rsqrt(centred.pow(2).mean(dims, keepdim=True) + eps))


def _exponent(args: Any, kwargs: Any) -> Any:
    given = args[1] if len(args) > 1 else kwargs.get("exponent")
    return given if isinstance(given, int | float) else None


def _wide(x: Tensor) -> Tensor:
    # As the library's kernels do.
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def is_norm(module: nn.Module) -> bool:
    """Whether a module without children divides by the spread of its input, going by its class."""
    name = type(module).__name__.lower()
    named = "norm" in name and not any(word in name for word in NOT_NORMS)
    return not any(module.children()) and (named or isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm))


def norms_of(root: nn.Module) -> dict[str, nn.Module]:
    """The norms of a module by their path."""
    return {path: module for path, module in root.named_modules() if is_norm(module)}


def hides_its_scale(module: nn.Module) -> bool:
    """Whether a norm computes its scale where it cannot be seen, found by running it on random numbers."""
    weight = next(module.parameters(), next(module.buffers(), None))
    shape = getattr(module, "normalized_shape", None) or (weight.shape if weight is not None else (8,))
    size = (2, *shape) if not isinstance(module, nn.GroupNorm) else (2, module.num_channels, 4)
    like = torch.zeros(()) if weight is None else weight
    probe = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(like)
    with torch.no_grad(), ScaleWatch(lambda scale: scale) as watch:
        try:
            module.forward(probe)
        except (TypeError, RuntimeError):
            # It takes other arguments than one tensor of its width.
            return True
    return not watch.seen


class _State(threading.local):
    def __init__(self) -> None:
        self.holding: list[NormScales] = []


_state = _State()


class NormScales:
    """Keeps the scale of every norm in one run of a model, and holds the norms of other runs at it.

    Args:
        model: the model.

    Raises:
        InputError: the model has no norm, or one whose scale cannot be seen.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.norms = model, norms_of(model.module)
        self.kept: dict[int, list[Tensor]] = {}
        self.calls: dict[int, int] = {}
        self.keeping = False
        if not self.norms:
            raise InputError(f"{model.name} has no norm whose scale could be held")
        hidden = [path for path, module in self.norms.items() if hides_its_scale(module)]
        if hidden:
            raise InputError(
                f"the scale of {hidden[0]} ({type(self.norms[hidden[0]]).__name__}) cannot be seen from outside"
            )

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Keep the scales of the run within the block."""
        self.kept.clear()
        with self._in_force(keeping=True):
            yield

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Use the kept scales in the run within the block, which has the same inputs' shape."""
        with self._in_force(keeping=False):
            yield

    @contextmanager
    def _in_force(self, keeping: bool) -> Iterator[None]:
        self.keeping = keeping
        self.calls.clear()
        board, held = taps.board(self.model.module), []
        try:
            with self.model.eagerly():
                for module in self.norms.values():
                    key = (id(module), "norm scale")
                    board.acquire(key, partial(_install, module))
                    held.append(key)
                _state.holding.append(self)
                yield
        finally:
            if self in _state.holding:
                _state.holding.remove(self)
            for key in held:
                board.release(key)

    def run(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The norm's output with its scale kept or held; None where there is nothing to change."""
        place = id(module)
        if self.keeping:
            with ScaleWatch(lambda scale: self._put(place, scale)):
                module.forward(*args, **kwargs)
            return None
        with ScaleWatch(lambda scale: self._take(place, scale)):
            return module.forward(*args, **kwargs)

    def _put(self, place: int, scale: Tensor) -> Tensor:
        self.kept.setdefault(place, []).append(scale.detach())
        return scale

    def _take(self, place: int, scale: Tensor) -> Tensor:
        kept, at = self.kept[place], self.calls.get(place, 0)
        self.calls[place] = at + 1
        # A second pass of the same inputs begins again at the first call.
        return kept[at % len(kept)]


def _install(module: nn.Module) -> Callable[[], None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        holding = [h for h in _state.holding if any(m is module for m in h.norms.values())]
        return holding[-1].run(module, args, kwargs) if holding else None

    # Before hooks that read or edit the norm's output.
    return module.register_forward_hook(hook, prepend=True, with_kwargs=True).remove
