"""The table of ratios, on the screen and as a page of the documentation."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import actinium
from benchmarks.paired import Row
from benchmarks.peers import LENS, NNSIGHT, version_of
from benchmarks.settings import Settings, parser, read

__all__ = ["alone", "show", "write"]

COLUMNS = ("what", "peer", "ratio", "goal", "met?")
HEAD = """# Benchmarks

Written by `make bench`. A ratio is the median over paired runs that take turns in one process, with the 10th and 90th
percentile of the paired ratios in brackets. Before anything is timed, all sides are shown to compute the same numbers.
The model has {model} with random weights.
"""


def alone(rows: Callable[[Settings], list[Row]], description: str | None) -> None:
    """Run one benchmark and print its table."""
    settings = read(vars(parser(description or "").parse_args()))
    show(rows(settings))


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table)


def write(rows: Sequence[Row], settings: Settings) -> Path:
    """Write the page with what it was measured on."""
    model = "a tiny shape" if settings.tiny else "GPT-2 small's shape"
    lines = [HEAD.format(model=model), f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _surroundings(settings).items()]
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return settings.out


def _cells(row: Row) -> tuple[str, ...]:
    return row.what, row.peer, str(row.ratio), str(row.goal or ""), row.met


def _surroundings(settings: Settings) -> dict[str, str]:
    clock = {"wall": "wall time", "cpu": "processor time of the process"}[settings.clock]
    return {
        "date": settings.date,
        "chip": _chip(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "clock": clock,
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "actinium": actinium.__version__,
        **{name: version(name) for name in ("torch", "transformers")},
        **{name: version_of(name) for name in (LENS, NNSIGHT)},
    }


def _chip() -> str:
    """The processor's name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
