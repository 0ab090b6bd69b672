"""What a fitted estimator leaves on disk: one safetensors file whose metadata hold its settings as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from actinium.core.errors import InputError, LoadError
from actinium.core.estimator import Estimator

__all__ = ["SavedEstimator", "State", "below", "opened", "prefixed", "read_fitted", "write_fitted"]

FORMAT = 1
KEY = "actinium.fitted"
State = tuple[dict[str, Tensor], dict[str, Any]]
"""Fitted tensors, and fitted values that JSON can hold."""


def write_fitted(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **more: Any
) -> Path:
    """Write a fitted estimator to one file, whole or not at all.

    Args:
        path: the file; its folder is made if absent.
        kind: what it is, such as "transport operator".
        tensors: fitted ones.
        settings: arguments of the constructor, in values that JSON can hold.
        **more: fitted values that JSON can hold.

    Returns:
        The path.

    Raises:
        InputError: a setting cannot be written as JSON, or the file cannot be written.
    """
    from safetensors.torch import save_file

    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        text = json.dumps({"format": FORMAT, "kind": kind, "settings": dict(settings), **more})
    except TypeError as error:
        raise InputError(f"the settings of this {kind} cannot be saved: {error}") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, partial, metadata={KEY: text})
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}") from error
    return path


def read_fitted(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_fitted` wrote: the plain values (`settings` among them) and the tensors.

    Raises:
        LoadError: the file is missing, damaged, or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise LoadError(f"cannot read the {kind} {path}: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("kind") != kind:
        raise LoadError(f"{path} is no {kind} of format {FORMAT}")
    return about, tensors


@contextmanager
def opened(path: str | os.PathLike[str], kind: str) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """What `read_fitted` gives, in a block that takes it up: what does not fit there is a damaged file.

    Raises:
        LoadError: the file is missing, damaged, or holds something else.
    """
    about, tensors = read_fitted(path, kind)
    try:
        yield about, tensors
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise LoadError(f"the {kind} in {path} is damaged or does not fit: {error}") from None


def prefixed(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of one part, such as the weights of a network, under "name." and their own names."""
    return {f"{name}.{key}": value for key, value in tensors.items()}


def below(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a file's tensors that `prefixed` put under a name, under their own ones."""
    start = f"{name}."
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}


class SavedEstimator(Estimator):
    """An estimator that is kept in one file: a subclass says what it has found, and takes it up again.

    `saved_as` says what the file holds, in words; by default it is the name of the class.
    """

    saved_as: str = ""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write settings and fitted values to one safetensors file.

        Raises:
            InputError: `fit` was not called, a setting is no plain value, or the file cannot be written.
        """
        self.check_fitted()
        tensors, values = self._state()
        return write_fitted(path, self.saved_as or type(self).__name__, tensors, self._settings(), **values)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged, or holds something else.
        """
        return cls._loaded(path)

    @classmethod
    def _loaded(cls, path: str | os.PathLike[str], *absent: Any) -> Self:
        """`load`, given the first arguments of the constructor where the file does not hold them."""
        # Weights of a network that is built here are drawn only to be replaced: the caller's random numbers stay.
        with opened(path, cls.saved_as or cls.__name__) as (about, tensors), torch.random.fork_rng(devices=[]):
            out = cls(*absent, **about["settings"])
            out._restore(tensors, about)
        return out

    def _settings(self) -> dict[str, Any]:
        """Arguments of the constructor, in values that JSON can hold."""
        return self.get_params()

    def _state(self) -> State:
        """What was found."""
        raise TypeError(f"{type(self).__name__} must define _state()")

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Take up what `_state` gave."""
        raise TypeError(f"{type(self).__name__} must define _restore()")
