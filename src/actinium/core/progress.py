"""A progress bar around the steps of a loop, for whoever asks for one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

__all__ = ["shown"]

T = TypeVar("T")


def shown(steps: Iterable[T], what: str, progress: bool) -> Iterable[T]:
    """The steps, under a bar named `what` that goes away at the end where `progress` asks for one."""
    if not progress:
        return steps
    from rich.progress import track

    return track(steps, description=what, transient=True)
