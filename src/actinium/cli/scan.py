"""`actinium scan`: the check-up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["scan"]


def scan(
    model: Annotated[str | None, typer.Argument(help="world:lm, a hub name, a folder, or file.py:factory")] = None,
    store: Annotated[str | None, typer.Option(help="instead of MODEL, a store of its activations")] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="text file, a document per line (or per paragraph, if blank lines part them)"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="folder of images, or a .npy or .npz file of images, token ids or floats"),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="digits, or a name that the datasets library loads")] = None,
    out: Annotated[Path, typer.Option(help="folder of the report")] = Path("actinium-report"),
    format: Annotated[str, typer.Option(help="what to write, separated by commas")] = "html,json,md",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the model's own if absent")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="most tokens, images or rows to read; by cost if absent")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the draw where there are more")] = 0,
    signal: Annotated[bool, typer.Option("--signal", help="how the signal propagates with depth, too")] = False,
) -> None:
    """Check up on the activations of MODEL, or of a store: print what stands out, and write a report."""
    from rich.console import Console

    from actinium.cli.progress import hide_weight_bars
    from actinium.report import checkup

    hide_weight_bars()
    formats = [name.strip() for name in format.split(",") if name.strip()]
    source = {"text": text, "data": data, "dataset": dataset}
    try:
        found = checkup.scan(
            model, store=store, **source, out=out, formats=formats, device=device, limit=limit, seed=seed, signal=signal
        )
    except checkup.Interrupted as stopped:
        Console().print(stopped.report)
        raise
    Console().print(found)
