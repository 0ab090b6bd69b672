"""The function that a larger one is built upon, by name, as a module, or as a callable."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from actinium.core.errors import InputError

__all__ = ["base_function"]


def base_function(base: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A callable for a name of the catalogue, or the callable that was given.

    Raises:
        InputError: it is neither.
        UnknownNameError: the catalogue has no such function.
    """
    if isinstance(base, str):
        # Tables of the catalogue import modules that import this one.
        from actinium.functions.registry import get

        return get(base)
    if not callable(base):
        raise InputError(f"base is a name of the catalogue or a callable, not {base!r}")
    return base
