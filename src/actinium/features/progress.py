"""A progress bar around the steps of a fit, for whoever asks for one."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["steps"]


def steps(count: int, what: str, shown: bool) -> Iterable[int]:
    """The numbers from 0 to `count` - 1, with a bar named `what` that goes away at the end if `shown`."""
    if not shown:
        return range(count)
    from rich.progress import track

    return track(range(count), description=what, transient=True)
