"""What a sweep has found so far, in a file from which it goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from actinium.core.errors import InputError, LoadError

__all__ = ["SweepFile"]

FORMAT = 1


class SweepFile:
    """Measures of finished cells (site, strength), one line of JSON each.

    Args:
        path: the file; made with the first cell if absent. None keeps the cells in memory alone.
        key: fingerprint of all that the measures depend on, but for sites and strengths, which may be added.

    Raises:
        InputError: the file belongs to another sweep, or its folder does not exist.
        LoadError: the file is damaged.
    """

    def __init__(self, path: str | os.PathLike[str] | None, key: str) -> None:
        self.path = None if path is None else Path(path)
        self.key = key
        self.cells: dict[tuple[str, float], dict[str, float]] = {}
        if self.path is None:
            return
        if self.path.exists():
            self._read(self.path)
        elif not self.path.parent.is_dir():
            raise InputError(f"cannot keep a sweep in {self.path}: there is no folder {self.path.parent}")

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            head = json.loads(lines[0])
            rows = [json.loads(line) for line in lines[1:]]
            cells = {(row["site"], float(row["strength"])): dict(row["values"]) for row in rows}
            note = (head["format"], head["sweep"])
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise LoadError(f"cannot read the sweep {path}: {error}") from None
        if note != (FORMAT, self.key):
            raise InputError(
                f"{path} holds another sweep (other model, vector, prompts or settings); choose another file"
            )
        self.cells = cells

    def keep(self, found: Mapping[tuple[str, float], dict[str, float]]) -> None:
        """Add cells, and write the file anew; it is replaced whole."""
        self.cells |= found
        if self.path is not None:
            self._write()

    def _write(self) -> None:
        assert self.path is not None
        rows = [{"format": FORMAT, "sweep": self.key}]
        rows += [{"site": s, "strength": c, "values": v} for (s, c), v in self.cells.items()]
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            part.replace(self.path)
        except OSError as error:
            raise InputError(f"cannot write the sweep to {self.path}: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)
