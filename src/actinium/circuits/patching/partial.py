"""What is kept of a sweep that was stopped: the effects found so far, and a file from which it goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from actinium.core.errors import InputError, LoadError

if TYPE_CHECKING:
    from actinium.core.result import Result

__all__ = ["Interrupted", "Ledger"]

FORMAT = 1


class Interrupted(KeyboardInterrupt):
    """A sweep or a search was stopped.

    Attributes:
        partial: of a sweep the effects of what was finished, of all nodes over fewer rows, or NaN at nodes not
            reached; of ACDC the graph so far.
    """

    def __init__(self, message: str, partial: Result | None = None) -> None:
        super().__init__(message)
        self.partial = partial


class Ledger:
    """Values of finished patches in a file, so that a stopped sweep loses nothing.

    Args:
        path: the file; made if absent.
        key: fingerprint of all that the values depend on.
        shape: (draw, set, row).

    Raises:
        InputError: the file belongs to another sweep.
        LoadError: the file is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], key: str, shape: tuple[int, int, int]) -> None:
        self.path, self.key = Path(path), key
        self.values = torch.full(shape, torch.nan, dtype=torch.float64)
        if self.path.exists():
            self._read(shape)
        elif not self.path.parent.is_dir():
            raise InputError(f"cannot keep a sweep in {self.path}: there is no folder {self.path.parent}")

    def _read(self, shape: tuple[int, int, int]) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                note, values = file.metadata() or {}, file.get_tensor("patched")
        except (SafetensorError, OSError) as error:
            raise LoadError(f"cannot read the sweep {self.path}: {error}") from None
        if note.get("format") != str(FORMAT) or note.get("sweep") != self.key or tuple(values.shape) != shape:
            raise InputError(
                f"{self.path} holds another sweep (other model, prompts, nodes or settings); choose another file"
            )
        self.values = values

    def known(self, draw: int, rows: slice) -> Tensor:
        """(set, row) values found before, NaN where there is none."""
        return self.values[draw][:, rows]

    def keep(self, draw: int, rows: slice, sets: list[int], values: Tensor) -> None:
        """Add (set, row) values and write the file; it is replaced whole."""
        from safetensors.torch import save_file

        self.values[draw, sets, rows] = values
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            save_file({"patched": self.values}, part, metadata={"format": str(FORMAT), "sweep": self.key})
            part.replace(self.path)
        except OSError as error:
            raise InputError(f"cannot write the sweep to {self.path}: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)
