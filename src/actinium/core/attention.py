"""Inside attention: queries, keys, values, scores and pattern of unmodified modules.

Models that use transformers' attention interface get an attention function of ours registered beside the library's
(and the matching mask function): it hands over q, k and v, calls the library's own function for the result, and
runs the module's eager mathematics only for scores and pattern. Models with attention code of their own (GPT-J,
BLOOM, Falcon, MPT) are watched at their products and softmax by a torch function mode.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from actinium.core import taps
from actinium.core.errors import InputError
from actinium.core.taps import Tap

__all__ = [
    "OperationsWatch",
    "SoftmaxWatch",
    "eager_function",
    "install",
    "library_attention",
    "supply",
    "watched",
]

PREFIX = "actinium_"
PARTS = ("q", "k", "v", "scores", "pattern")
SOFTMAX = {torch.softmax, F.softmax, Tensor.softmax}
PRODUCTS = {
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.bmm,
    Tensor.bmm,
    torch.baddbmm,
    Tensor.baddbmm,
}


def eager_function(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The plain mathematics that a module's own source file defines.

    Raises:
        InputError: if it defines none.
    """
    for cls in type(module).__mro__:
        found = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise InputError(f"{type(module).__name__} has no eager attention; its scores and pattern cannot be read")


class SoftmaxWatch(TorchFunctionMode):
    """Hands the input and the output of the first softmax within the block to the points of one module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.seen, self.changed = module, False, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in SOFTMAX and not self.seen:
            self.seen = True
            scores = taps.dispatch((id(self.module), "attentionscores"), args[0])
            before = func(scores, *args[1:], **kwargs)
            pattern = taps.dispatch((id(self.module), "attentionpattern"), before)
            self.changed = _differs(scores, args[0]) or _differs(pattern, before)
            return pattern
        return func(*args, **kwargs)


def _differs(new: Tensor, old: Tensor) -> bool:
    """Whether an edit did anything; under autograd one that kept the values may still carry a gradient."""
    return new is not old and (torch.is_grad_enabled() or not torch.equal(new, old))


class SuppliedAttention(threading.local):
    """A function that takes over every attention call of this thread (used by replay), or None."""

    def __init__(self) -> None:
        self.function: Callable[..., tuple[Tensor, Tensor | None]] | None = None


supplied = SuppliedAttention()


@contextmanager
def supply(function: Callable[..., tuple[Tensor, Tensor | None]] | None) -> Iterator[None]:
    """Let `function` take over every attention call of this thread through the interface (None: nobody)."""
    before, supplied.function = supplied.function, function
    try:
        yield
    finally:
        supplied.function = before


def library_attention(name: str, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The library's own attention function of this name, called for a module."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    run = eager_function(module) if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    result: tuple[Tensor, Tensor | None] = run(module, *args, **kwargs)
    return result


def _explicit_mask(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: Any) -> Tensor | None:
    """An additive mask for the eager mathematics, which knows no causal flag and no bool mask."""
    n, m = query.shape[2], key.shape[2]
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if mask is None:
        if not causal or n == 1:
            return None
        # Without a mask there is no earlier column; keys beyond the queries are a static cache's, not yet filled.
        mask = torch.ones(n, m, dtype=torch.bool, device=query.device).tril()[None, None]
    if mask.dtype == torch.bool:
        # Eager code takes the softmax in float32, where the lowest float64 would be minus infinity.
        low = max(torch.finfo(query.dtype).min, torch.finfo(torch.float32).min)
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, low)
    return mask


def _handed(module: nn.Module, part: str, value: Tensor) -> Tensor:
    """Hand over (batch, head, pos, d_head) in the site's layout (batch, pos, head, d_head)."""
    key = (id(module), "attention" + part)
    if not any(taps.live(key)):
        return value
    seen = value.transpose(1, 2)
    new = taps.dispatch(key, seen)
    return value if new is seen else new.transpose(1, 2)


def watched(original: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Our attention function around the library's `original`."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        def library(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
            return library_attention(original, module, q, k, v, attention_mask, **kwargs)

        if supplied.function is not None:
            return supplied.function(module, query, key, value, attention_mask, library_name=original, **kwargs)
        query, key, value = (_handed(module, p, t) for p, t in (("q", query), ("k", key), ("v", value)))
        wants = [taps.live((id(module), "attention" + p)) for p in ("scores", "pattern")]
        if not any(map(any, wants)):
            return library(query, key, value)
        if original == "eager":
            with SoftmaxWatch(module):
                return library(query, key, value)
        mask = _explicit_mask(module, query, key, attention_mask, kwargs)
        with SoftmaxWatch(module) as watch:
            out = eager_function(module)(module, query, key, value, mask, **kwargs)
        # Only an edit that changed something may change the result: else the library's kernel decides, bit for bit.
        return out if watch.changed else library(query, key, value)

    return attention


_registered: set[str] = set()
_register_lock = threading.Lock()


def registered(original: str) -> str:
    """The name of our attention function around a library implementation, registered on first use."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    name = PREFIX + original
    with _register_lock:
        if name not in _registered:
            AttentionInterface.register(name, watched(original))
            if original in ALL_MASK_ATTENTION_FUNCTIONS:
                AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[original])
            _registered.add(name)
    return name


def _set(config: Any, name: str) -> None:
    """Set the implementation of one configuration, past the setter that also rewrites its sub-configurations."""
    config._attn_implementation_internal = name


def switch(root: nn.Module) -> Callable[[], None]:
    """Send every attention call of a model through our function; returns how to put it back."""
    configs: dict[int, Any] = {}
    for module in root.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            configs.setdefault(id(config), config)
    before = [(c, c._attn_implementation) for c in configs.values()]
    before = [(c, name) for c, name in before if name is not None and not name.startswith(PREFIX)]
    for config, name in before:
        _set(config, registered(name))

    def back() -> None:
        for config, name in before:
            _set(config, name)

    return back


class OperationsWatch(TorchFunctionMode):
    """Finds q, k, v, scores and pattern in attention code of a model's own, by its products and its softmax.

    Args:
        module: the attention module; the mode is in force while its forward runs.
        heads: number of query heads.
    """

    def __init__(self, module: nn.Module, heads: int) -> None:
        super().__init__()
        self.module, self.heads, self.stage = module, heads, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._fused(args, kwargs)
        if func in SOFTMAX and self.stage == 1:
            self.stage = 2
            scores = self._dispatch("scores", args[0], heads_first=True)
            return self._dispatch("pattern", func(scores, *args[1:], **kwargs), heads_first=True)
        if func in PRODUCTS:
            return self._product(func, args, kwargs)
        return func(*args, **kwargs)

    def _product(self, func: Any, args: Any, kwargs: Any) -> Any:
        named = "batch1" in kwargs
        left, right = (kwargs["batch1"], kwargs["batch2"]) if named else (args[-2], args[-1])
        # A linear map written as a product has a matrix on its right; attention's products have batches on both sides.
        if not isinstance(right, Tensor) or right.ndim < 3 or self.stage > 2:
            return func(*args, **kwargs)
        if self.stage == 0:
            self.stage = 1
            left = self._dispatch("q", left)
            right = self._dispatch("k", right.transpose(-1, -2)).transpose(-1, -2)
        elif self.stage == 2:
            self.stage = 3
            right = self._dispatch("v", right)
        if named:
            return func(*args, **{**kwargs, "batch1": left, "batch2": right})
        return func(*args[:-2], left, right, **kwargs)

    def _fused(self, args: Any, kwargs: Any) -> Tensor:
        module = self.module
        query, key, value = (self._dispatch(p, t) for p, t in zip("qkv", args[:3], strict=True))
        rest = {
            **dict(zip(("attn_mask", "dropout_p", "is_causal", "scale"), args[3:], strict=False)),
            **kwargs,
        }
        wants = [taps.live((id(module), "attention" + p)) for p in ("scores", "pattern")]
        out = F.scaled_dot_product_attention(query, key, value, **rest)
        if not any(map(any, wants)):
            return out
        mask = rest.get("attn_mask")
        n, m = query.shape[-2], key.shape[-2]
        if rest.get("is_causal"):
            mask = torch.ones(n, m, dtype=torch.bool, device=query.device).tril()
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(query.dtype).min)
        scale = rest.get("scale") or query.shape[-1] ** -0.5
        scores = query @ key.transpose(-1, -2) * scale
        first = scores if mask is None else scores + mask
        scores = self._dispatch("scores", first, heads_first=True)
        before = scores.float().softmax(-1).to(value.dtype)
        pattern = self._dispatch("pattern", before, heads_first=True)
        return pattern @ value if _differs(scores, first) or _differs(pattern, before) else out

    def _dispatch(self, part: str, value: Tensor, heads_first: bool = False) -> Tensor:
        key = (id(self.module), "attention" + part)
        if not any(taps.live(key)):
            return value
        shape = value.shape
        seen = value.reshape(-1, self.heads, *shape[-2:]) if value.ndim == 3 else value
        seen = seen if heads_first else seen.transpose(1, 2)
        new = taps.dispatch(key, seen)
        if new is seen:
            return value
        return (new if heads_first else new.transpose(1, 2)).reshape(shape)


class _Open(threading.local):
    def __init__(self) -> None:
        self.watches: list[OperationsWatch] = []


_open = _Open()


def open_watches() -> int:
    """Number of attention modules of models with code of their own that are being computed in this thread."""
    return len(_open.watches)


def close_watches(keep: int) -> None:
    """End the watches beyond the first `keep`: those of modules that a pass left by an exception."""
    while len(_open.watches) > keep:
        _open.watches.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]


def install(tap: Tap, root: nn.Module, calls: str, heads: int) -> Callable[[], None]:
    """Watch one attention module; returns how to remove the watch.

    Args:
        tap: the point wanted.
        root: the whole model.
        calls: "interface" or "operations", as in the family's row.
        heads: number of query heads.
    """
    if calls == "interface":
        here = taps.board(root)
        key = (id(root), "attention implementation")
        here.acquire(key, lambda: switch(root))
        return lambda: here.release(key)

    def before(module: nn.Module, args: Any) -> None:
        # Entered at each call, not once for the block: only the attention module's own operations concern it. A thread
        # that wants nothing here must not enter: the hooks may be gone before its pass is through.
        if not any(any(taps.live((id(module), "attention" + part))) for part in PARTS):
            return
        watch = OperationsWatch(module, heads)
        watch.__enter__()  # type: ignore[no-untyped-call]
        _open.watches.append(watch)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if _open.watches and _open.watches[-1].module is module:
            close_watches(open_watches() - 1)

    here = taps.board(root)
    key = (id(tap.module), "operations")

    def watch() -> Callable[[], None]:
        handles = [
            tap.module.register_forward_pre_hook(before),
            tap.module.register_forward_hook(after, always_call=True),
        ]

        def remove() -> None:
            for handle in handles:
                handle.remove()

        return remove

    here.acquire(key, watch)
    return lambda: here.release(key)
