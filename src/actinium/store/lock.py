"""One writer at a time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from actinium.core.errors import StoreError
from actinium.store.address import Address, explained

__all__ = ["NAME", "SILENT", "writing"]

NAME = "writer.lock"
SILENT = 600.0  # seconds after which a writer that gave no sign of life counts as dead (addresses that are not local)


@contextmanager
def writing(address: Address) -> Iterator[Callable[[], None]]:
    """Be the only writer at an address for the block, which gets a function that says that it is still alive.

    On a local disk the lock goes with the process, however that ends. Elsewhere it is a file with the time of the
    last sign of life.

    Raises:
        StoreError: another writer is at work; it says which.
    """
    if address.local is not None:
        yield from _local(address.local)
    else:
        yield from _remote(address)


def _who() -> dict[str, str | float]:
    return {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}


def _local(folder: Path) -> Iterator[Callable[[], None]]:
    file = _locked(folder)
    try:
        file.seek(0)
        file.truncate()
        file.write(json.dumps(_who()))
        file.flush()
        yield lambda: None
        (folder / NAME).unlink(missing_ok=True)
    finally:
        file.close()


def _locked(folder: Path) -> TextIO:
    """The lock file, locked."""
    import fcntl

    while True:
        with explained(f"write to {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / NAME).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                raise StoreError(_busy(folder, file.read())) from None
        except OSError:
            return file  # a network folder without locks
        # A writer that has just finished has removed the file that was opened here: others would lock a new one.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), (folder / NAME).stat()):
                return file
        file.close()


def _remote(address: Address) -> Iterator[Callable[[], None]]:
    mine = uuid.uuid4().hex

    def signed() -> bytes:
        return json.dumps({**_who(), "id": mine}).encode()

    with explained(f"write to {address}"):
        if not address.create(NAME, signed()):
            held = address.read(NAME)
            if time.time() - _time(held) < SILENT:
                raise StoreError(_busy(address, held.decode(errors="replace")))
            address.write(NAME, signed())
    said = time.time()

    def alive() -> None:
        nonlocal said
        if time.time() - said < SILENT / 10:
            return
        if json.loads(address.read(NAME)).get("id") != mine:
            raise StoreError(f"another writer has taken over {address}; this one stops")
        address.write(NAME, signed())
        said = time.time()

    try:
        yield alive
    finally:
        address.remove(NAME)


def _time(held: bytes) -> float:
    try:
        return float(json.loads(held)["time"])
    except (ValueError, KeyError, TypeError):
        return 0.0


def _busy(where: object, held: str) -> str:
    try:
        who = json.loads(held)
        told = f"process {who['process']} on {who['host']}"
        ago = f", last heard of {time.time() - float(who['time']):.0f} s ago"
    except (ValueError, KeyError, TypeError):
        told, ago = "another process", ""
    return (
        f"{where} is being written by {told}{ago}; wait until it is done or stop it. If it is dead, its place is "
        f"free {SILENT:.0f} s after its last sign of life (on a local disk at once)"
    )
