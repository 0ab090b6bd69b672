"""Activation analysis for neural networks: record, measure, explain and edit what happens inside a model."""

import importlib as _importlib
from typing import Any as _Any

import lazy_loader as _lazy

__version__ = "0.1.0"

# The names are listed once, in __init__.pyi: type checkers read them there, and so does the lazy loader.
_attribute, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)


def __getattr__(name: str) -> _Any:
    # The lazy loader knows attributes of modules; these are modules of a room.
    if name in ("edits", "errors", "metrics", "reducers"):
        return _importlib.import_module(f"{__name__}.core.{name}")
    return _attribute(name)
