"""Where the numbers of a training run go: the console, a JSONL file, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actinium.core.errors import MissingExtraError

__all__ = ["Logs"]


class Logs:
    """Writers of the logs that were asked for.

    Args:
        logs: names.
        folder: of files.
        settings: of the run, kept beside it where a log can.

    Raises:
        MissingExtraError: a log's package is not installed.
    """

    def __init__(self, logs: tuple[str, ...], folder: str | None, settings: Mapping[str, Any]) -> None:
        self.console = "console" in logs
        self.file: Path | None = None
        self.board: Any = None
        self.run: Any = None
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        if "jsonl" in logs and folder is not None:
            self.file = Path(folder) / "metrics.jsonl"
        if "tensorboard" in logs:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise MissingExtraError("tensorboard", "tensorboard") from None
            self.board = SummaryWriter(folder)
        if "wandb" in logs:
            try:
                import wandb
            except ImportError:
                raise MissingExtraError("wandb", "wandb") from None
            self.run = wandb.init(project="actinium", dir=folder, config=dict(settings))

    def write(self, step: int, numbers: Mapping[str, float], say: Any) -> None:
        """One entry.

        Args:
            step: of the run.
            numbers: by name.
            say: prints a line on the console without breaking a progress bar.
        """
        if self.console:
            say(f"{step:>7}  " + "  ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"step": step, **numbers}) + "\n")
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
        if self.run is not None:
            self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        """End them."""
        if self.board is not None:
            self.board.close()
        if self.run is not None:
            self.run.finish()
