"""Where a store lies: a folder, or any address that fsspec knows, with writes that appear only whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actinium.core.errors import InputError, MissingExtraError, StoreError

__all__ = ["Address", "explained"]


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn a failure of the file system into a `StoreError` that says what to do.

    Raises:
        StoreError: for every `OSError` of the block but those that are Actinium's own.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "no space left; free some and run the same call again, it goes on where it stopped"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = f"not permitted ({reason})"
        raise StoreError(f"cannot {what}: {reason}") from error


class Address:
    """A folder for the files of a store.

    Args:
        where: a path, or an address such as "s3://bucket/folder" or "memory://name".
        options: what fsspec's file system takes (keys, an endpoint).

    Attributes:
        text: the address as text.
        local: the folder, or None if it is not on this machine's file system.

    Raises:
        InputError: an empty or unknown address.
        MissingExtraError: the package behind the protocol is not installed.
    """

    def __init__(self, where: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> None:
        self.text, self.options = os.fspath(where), dict(options or {})
        if not self.text.strip():
            raise InputError("the path of the store is empty")
        self.local: Path | None = None
        if "://" not in self.text:
            self.local = Path(self.text).expanduser().absolute()
            return
        try:
            import fsspec
        except ImportError:
            raise MissingExtraError("fsspec", "store") from None
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.text, **self.options)
        except ImportError as error:
            raise MissingExtraError(
                f"the package for {self.text.partition(':')[0]} addresses ({error})", "s3"
            ) from error
        except ValueError as error:
            raise InputError(f"cannot read the address {self.text!r}: {error}") from None
        if "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)):
            self.local = Path(self._root)

    def __repr__(self) -> str:
        return self.text

    def _name(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def exists(self, name: str = "") -> bool:
        """Whether a file or the folder itself is there."""
        with explained(f"look at {self.text}"):
            if self.local is not None:
                return (self.local / name).exists()
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self._name(name)))

    def empty(self) -> bool:
        """Whether nothing lies at the address."""
        with explained(f"look at {self.text}"):
            if self.local is not None:
                return not self.local.exists() or (self.local.is_dir() and not any(self.local.iterdir()))
            self._fs.invalidate_cache()
            return not self._fs.exists(self._root) or not self._fs.ls(self._root, detail=False)

    def names(self) -> list[str]:
        """Names of what lies directly in the folder."""
        with explained(f"look at {self.text}"):
            if self.local is not None:
                return [p.name for p in self.local.iterdir()] if self.local.is_dir() else []
            self._fs.invalidate_cache()
            found = self._fs.ls(self._root, detail=False) if self._fs.exists(self._root) else []
            return [path.rstrip("/").rsplit("/", 1)[-1] for path in found]

    def read(self, name: str) -> bytes:
        """The whole file."""
        with explained(f"read {self.text}/{name}"):
            if self.local is not None:
                return (self.local / name).read_bytes()
            return bytes(self._fs.cat_file(self._name(name)))

    def ranges(self, name: str, spans: list[tuple[int, int]]) -> list[bytes]:
        """Parts (start, stop) of a file that is not local, several at a time."""
        with explained(f"read {self.text}/{name}"):
            path = self._name(name)
            found = self._fs.cat_ranges([path] * len(spans), [a for a, _ in spans], [b for _, b in spans])
            return [bytes(part) for part in found]

    def write(self, name: str, data: bytes) -> None:
        """Write a file that appears only whole: under another name first, flushed to the disk, then renamed."""
        with self.staged(name) as path:
            path.write_bytes(data)

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """A local file to write; at the end of the block it takes its place, on an error it is removed."""
        with explained(f"write {self.text}/{name}"):
            if self.local is not None:
                target = self.local / name
                target.parent.mkdir(parents=True, exist_ok=True)
                # Several workers may write one name (a block that is done again), so each has a name of its own.
                path = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
            else:
                path = Path(tempfile.mkdtemp(prefix="actinium-")) / Path(name).name
            try:
                yield path
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
                if self.local is not None:
                    path.replace(target)
                    _flush(target.parent)
                else:
                    self._fs.makedirs(os.path.dirname(self._name(name)), exist_ok=True)
                    self._fs.put_file(str(path), self._name(name))  # an object appears only when it is whole
            finally:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                if self.local is None:
                    shutil.rmtree(path.parent, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed writers have left unfinished."""
        if self.local is not None and self.local.is_dir():
            for path in self.local.rglob("*.partial"):
                path.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with explained(f"remove {self.text}/{name}"):
            if self.local is not None:
                (self.local / name).unlink(missing_ok=True)
            elif self._fs.exists(self._name(name)):
                self._fs.rm_file(self._name(name))

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that must not exist yet (not local); False if it does."""
        if self._fs.exists(self._name(name)):
            return False
        try:
            self._fs.pipe_file(self._name(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def free(self) -> int | None:
        """Bytes left on a local disk, else None."""
        if self.local is None:
            return None
        place = self.local
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free


def _flush(folder: Path) -> None:
    """Make a rename survive a loss of power."""
    with contextlib.suppress(OSError):  # not every system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
