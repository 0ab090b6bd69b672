"""`actinium scan`: the check-up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["scan"]


def scan(
    model: Annotated[str, typer.Argument(help="world:lm, a hub name, a folder, or file.py:factory")],
    text: Annotated[Path | None, typer.Option(help="text file to read the model with")] = None,
    data: Annotated[Path | None, typer.Option(help="folder of images to read the model with")] = None,
    dataset: Annotated[str | None, typer.Option(help="name of a dataset to read the model with")] = None,
    out: Annotated[Path, typer.Option(help="folder of the report")] = Path("actinium-report"),
    format: Annotated[str, typer.Option(help="what to write, separated by commas")] = "html,json,md",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the model's own if absent")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="most tokens, images or rows to read")] = None,
    seed: Annotated[int, typer.Option(help="seed of the draw where there are more")] = 0,
) -> None:
    """Check up on the activations of MODEL: print what stands out, and write a report."""
    from rich.console import Console

    from actinium import report
    from actinium.cli.progress import hide_weight_bars

    hide_weight_bars()
    formats = [name.strip() for name in format.split(",") if name.strip()]
    source = {"text": text, "data": data, "dataset": dataset}
    found = report.scan(model, **source, out=out, formats=formats, device=device, limit=limit, seed=seed)
    Console().print(found)
