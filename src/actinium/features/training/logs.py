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
        done: steps that a run which goes on has behind it; what a file says of later ones is written again.

    Raises:
        MissingExtraError: a log's package is not installed.
    """

    def __init__(self, logs: tuple[str, ...], folder: str | None, settings: Mapping[str, Any], done: int = 0) -> None:
        self.console = "console" in logs
        self.file: Path | None = None
        self.board: Any = None
        self.run: Any = None
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        if "jsonl" in logs and folder is not None:
            self.file = Path(folder) / "metrics.jsonl"
            _cut(self.file, done)
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


def _cut(path: Path, done: int) -> None:
    """Drop the lines of later steps, and one that was not written to its end."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break
        if entry.get("step", 0) <= done:
            kept.append(line)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)
