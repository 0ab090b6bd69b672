"""`actinium world`: the models of the small world that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["app"]

app = typer.Typer(help="The small trained models that come with the package.", no_args_is_help=True)

TRAINABLE = ("lm",)


def _known(name: str) -> str:
    from actinium.core.errors import UnknownNameError, unknown

    if name not in TRAINABLE:
        raise UnknownNameError(unknown("recipe of the world", name, TRAINABLE))
    return name


def _table(title: str, measured: dict[str, float], declared: dict[str, float]) -> Table:
    from rich.table import Table

    table = Table(title=title)
    table.add_column("skill")
    table.add_column("accuracy", justify="right")
    table.add_column("declared", justify="right")
    for skill, value in measured.items():
        table.add_row(skill, f"{value:.3f}", f"{declared[skill]:.3f}" if skill in declared else "-")
    return table


@app.command("list")
def list_models() -> None:
    """List the models that come with the package."""
    from actinium.world import shipped

    for name in shipped.names():
        folder = shipped.path(name)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        typer.echo(f"world:{name}  {size:.1f} MB  recipe {shipped.recipe(name)['fingerprint'][:12]}")


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="Which model: lm.")],
    out: Annotated[Path, typer.Option(help="Folder to write; a killed run continues from it.")] = Path("world-lm"),
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and of the text.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; the recipe's by default.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Held-out texts per skill, measured at the end.")] = 1000,
) -> None:
    """Train a model by its recipe and write it as a Hugging Face folder."""
    _known(name)
    import json
    import shutil
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from actinium.core.errors import InputError
    from actinium.world import shipped
    from actinium.world import train as training
    from actinium.world.recipe import Recipe

    recipe = replace(Recipe(), seed=seed)
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    checkpoints = out / "checkpoints"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {str(out)!r}: {error.strerror}") from None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=recipe.steps)
        model, tokenizer = training.train(
            recipe,
            checkpoints,
            lambda step, loss: progress.update(bar, completed=step, description=f"loss {loss:.3f}"),
        )
    shipped.export(model, tokenizer, recipe, out, n)
    shutil.rmtree(checkpoints)
    content = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    Console().print(_table("held-out accuracy", content["held_out_accuracy"], {}))
    typer.echo(f"wrote {out}")


@app.command()
def evaluate(
    name: Annotated[str, typer.Argument(help="A shipped model (lm), or a folder that `train` wrote.")],
    n: Annotated[int, typer.Option(min=1, help="Held-out texts per skill.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
) -> None:
    """Measure the held-out accuracy of each skill, beside what the recipe declares."""
    import json

    from rich.console import Console

    from actinium.world import shipped
    from actinium.world.accuracy import evaluate as measure

    folder = Path(name) if (Path(name) / "config.json").is_file() else shipped.path(name)
    model, tokenizer = shipped.load(folder)
    measured = measure(model, tokenizer, n, seed)
    file = folder / "recipe.json"
    declared = json.loads(file.read_text(encoding="utf-8"))["held_out_accuracy"] if file.is_file() else {}
    Console().print(_table(f"held-out accuracy of {name}", measured, declared))
