"""`actinium papers` and `actinium reproduce`: the published systems and their experiments."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from actinium.core.errors import UnknownNameError, unknown

__all__ = ["papers", "reproduce"]

WIDE = 120  # characters; below it, the slug has to do for the name


class State(StrEnum):
    """Whether a system can be reproduced."""

    done = "done"
    planned = "planned"


def papers(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per system.")] = False,
    room: Annotated[str | None, typer.Option(help="Only the systems of one room, such as circuits.")] = None,
    state: Annotated[State | None, typer.Option(help="Only the systems in one state.")] = None,
) -> None:
    """List the published systems: done ones run with `actinium reproduce`, planned ones are to come."""
    from actinium.papers import registry

    rows = [registry.row(entry) for entry in registry.catalogue()]
    rooms = sorted({str(row["room"]) for row in rows})
    if room is not None and room not in rooms:
        raise UnknownNameError(unknown("room", room, rooms))
    shown = [row for row in rows if room in (None, row["room"]) and state in (None, row["state"])]
    if as_json:
        typer.echo(json.dumps(shown, indent=1, ensure_ascii=False))
        return

    from rich.console import Console
    from rich.table import Table

    console = Console()
    columns = ["number", "slug", "year", "room", "state"]
    if console.width >= WIDE:
        columns.insert(2, "name")
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for row in shown:
        cells = row | {"number": f"{row['number']:03d}"}
        style = "" if row["state"] == State.done else "dim"
        table.add_row(*(str(cells[column]) for column in columns), style=style)
    console.print(table)
    done = sum(row["state"] == State.done for row in shown)
    console.print(f"{len(shown)} systems, {done} done")


def reproduce(
    paper: Annotated[str, typer.Argument(help="number or slug: 73, 073, patching-best-practices")],
    model: Annotated[str | None, typer.Option(help="another model than the experiment's own")] = None,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Run at full size instead of the quick one.")] = False,
    out: Annotated[Path | None, typer.Option(help="folder for evidence.json and result.zarr")] = None,
) -> None:
    """Run the experiment of one published system and show what it claims beside what was measured."""
    from rich.console import Console

    from actinium.cli.progress import hide_weight_bars
    from actinium.papers import registry

    hide_weight_bars()
    evidence = registry.reproduce(paper, seed=seed, model=model, quick=not full)
    console = Console()
    console.print(evidence)
    if out is not None:
        typer.echo(f"saved: {evidence.save(out)}")
