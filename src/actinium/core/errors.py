"""One hierarchy of errors. A message says what was wrong, what was expected, and the nearest right spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ActiniumError",
    "ActiniumWarning",
    "InputError",
    "LoadError",
    "MissingExtraError",
    "SiteError",
    "StoreError",
    "UnknownNameError",
    "nearest",
    "unknown",
]


class ActiniumError(Exception):
    """Base of every error that Actinium raises on purpose."""


class ActiniumWarning(UserWarning):
    """Something the user should know that does not stop the work."""


class InputError(ActiniumError, ValueError):
    """An argument has a wrong value, shape or type, or holds no data."""


class LoadError(ActiniumError, OSError):
    """A model, a tokenizer or a file cannot be read."""


class StoreError(LoadError):
    """A store of activations cannot be read or written, is damaged, or belongs to another model."""


class UnknownNameError(ActiniumError, LookupError):
    """A name is not among those that exist."""


class SiteError(UnknownNameError):
    """An activation site does not exist in this model."""


class MissingExtraError(ActiniumError, ImportError):
    """An optional dependency is not installed.

    Args:
        package: the package that is missing.
        extra: the extra of Actinium that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'actinium[{extra}]'")
        self.package, self.extra = package, extra


def nearest(name: str, options: Iterable[str], n: int = 3) -> list[str]:
    """The spellings among `options` that are closest to `name`, best first (none if nothing is close)."""
    return difflib.get_close_matches(name, list(dict.fromkeys(options)), n=n, cutoff=0.5)


def unknown(what: str, name: str, options: Iterable[str]) -> str:
    """The sentence for a name that does not exist: the nearest spellings, else the first of what exists."""
    options = list(options)
    close = nearest(name, options)
    if close:
        return f"no {what} {name!r}; did you mean {' or '.join(repr(c) for c in close)}?"
    shown = ", ".join(repr(o) for o in options[:12]) + (", ..." if len(options) > 12 else "")
    return f"no {what} {name!r}; there are: {shown or 'none'}"
