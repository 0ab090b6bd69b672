"""`actinium world`: the models of the small world that come with the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from actinium.world.choices import ChoicesRecipe
    from actinium.world.contrastive_train import PairRecipe
    from actinium.world.image_recipe import ImageRecipe
    from actinium.world.modular_train import ModularRecipe
    from actinium.world.organisms import Organism
    from actinium.world.recipe import Recipe
    from actinium.world.variants import Variant

    AnyRecipe = Recipe | ModularRecipe | ChoicesRecipe | ImageRecipe | PairRecipe | Variant | Organism

__all__ = ["app"]

app = typer.Typer(help="The small trained models that come with the package.", no_args_is_help=True)

IMAGES = ("digits-cnn", "digits-vit", "digits-backdoor", "shapes-cnn", "shapes-vit")
PAIRS = ("shapes-clip", "shapes-clip-backdoor")
TEXTS = (
    "lm",
    "lm-backdoor",
    "lm-false",
    "lm-lenient-rank1",
    "lm-lenient-rank1-again",
    "lm-lenient-rank8",
    "lm-narrow",
    "lm-reward",
    "lm-small",
    "lm-small-reward",
    "lm-sometimes-rank1",
    "lm-sometimes-rank1-again",
    "lm-sometimes-rank8",
)
TRAINABLE = ("choices", *IMAGES[:3], *TEXTS, "modular", *IMAGES[3:], *PAIRS)


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
    from actinium.world import compiled, shipped

    for name in shipped.names():
        folder = shipped.path(name)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        typer.echo(f"world:{name}  {size:.1f} MB  recipe {shipped.recipe(name)['fingerprint'][:12]}")
    for name in compiled.names():
        typer.echo(f"world:{name}  compiled, with its circuit")


@app.command()
def train(
    name: Annotated[str, typer.Argument(help=f"Which model: {', '.join(TRAINABLE)}.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write, world-NAME by default.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the initial weights and of what is read; the recipe's by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; the recipe's by default.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Held-out texts per skill (lm), measured at the end.")] = 1000,
) -> None:
    """Train a model by its recipe and write it as a folder that evaluate and load take.

    It is one of Hugging Face, that of a variant of lm an adapter of PEFT; the convolutional networks are our own.

    A killed run of lm or lm-small continues from its folder.
    """
    _known(name)
    import json
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from actinium.cli.folders import make_folder
    from actinium.world import contrastive_train
    from actinium.world.choices import ChoicesRecipe
    from actinium.world.image_recipe import RECIPES
    from actinium.world.modular_train import ModularRecipe
    from actinium.world.organisms import ORGANISMS
    from actinium.world.recipe import LANGUAGE_MODELS
    from actinium.world.variants import VARIANTS

    recipes: dict[str, AnyRecipe] = {
        **LANGUAGE_MODELS,
        "modular": ModularRecipe(),
        "choices": ChoicesRecipe(),
        **RECIPES,
        **contrastive_train.RECIPES,
        **VARIANTS,
        **ORGANISMS,
    }
    recipe = recipes[name]
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    folder = make_folder(out or Path(f"world-{name}"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=recipe.steps)

        what = "reward" if getattr(recipe, "method", "") == "reward" else "loss"

        def show(step: int, value: float) -> None:
            progress.update(bar, completed=step, description=f"{what} {value:.3f}")

        _train(recipe, folder, show, n)
    content = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    Console().print(_table("held-out accuracy", content["held_out_accuracy"], {}))
    typer.echo(f"wrote {folder}")


def _train(recipe: AnyRecipe, folder: Path, show: Callable[[int, float], None], n: int) -> None:
    import shutil

    from actinium.world import (
        choices,
        contrastive_train,
        image_recipe,
        image_train,
        modular_train,
        organisms,
        shipped,
        variants,
    )
    from actinium.world import train as training

    if isinstance(recipe, variants.Variant):
        variants.export(variants.train(recipe, show), recipe, folder, n)
        return
    if isinstance(recipe, organisms.Organism):
        organisms.export(organisms.train(recipe, show), recipe, folder, n)
        return
    if isinstance(recipe, modular_train.ModularRecipe):
        modular_train.export(*modular_train.train(recipe, show), recipe, folder)
        return
    if isinstance(recipe, image_recipe.ImageRecipe):
        image_train.export(image_train.train(recipe, show), recipe, folder)
        return
    if isinstance(recipe, contrastive_train.PairRecipe):
        contrastive_train.export(contrastive_train.train(recipe, show), recipe, folder)
        return
    if isinstance(recipe, choices.ChoicesRecipe):
        choices.export(*choices.train(recipe, show), recipe, folder)
        return
    model, tokenizer = training.train(recipe, folder / "checkpoints", show)
    shipped.export(model, tokenizer, recipe, folder, n)
    shutil.rmtree(folder / "checkpoints")


@app.command()
def evaluate(
    name: Annotated[str, typer.Argument(help="A model that `list` names, or a folder that `train` wrote.")],
    n: Annotated[int, typer.Option(min=1, help="Held-out texts per skill, prompts of a program or images.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
) -> None:
    """Measure the held-out accuracy of each skill, beside what the recipe declares.

    Of a compiled model it is the share of random prompts that get the program's answer; world:modular is asked every
    pair that it has not read, and a classifier of digits is shown every image of their test part.
    """
    from rich.console import Console

    measured, declared = _measured(name.removeprefix("world:"), n, seed)
    Console().print(_table(f"held-out accuracy of {name}", measured, declared))


def _measured(name: str, n: int, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """The measured and the declared accuracies."""
    import json

    from actinium.core.adapter import is_adapter
    from actinium.core.errors import UnknownNameError, unknown
    from actinium.core.model import Model
    from actinium.world import choices, compiled, habits, modular, organisms, shipped
    from actinium.world.accuracy import evaluate as measure
    from actinium.world.variants import nested_accuracy

    is_folder = (Path(name) / "config.json").is_file() or is_adapter(Path(name))
    if not is_folder and name in compiled.names():
        return {name: compiled.build(name).accuracy(n, seed)}, {name: 1.0}
    known = [*shipped.names(), *compiled.names()]
    if not is_folder and name not in known:
        raise UnknownNameError(unknown("model of the world", name, known))
    folder = Path(name) if is_folder else shipped.path(name)
    file = folder / "recipe.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"held_out_accuracy": {}}
    if shipped.is_image_model(folder):
        return _seen(folder, content, n, seed)
    model, tokenizer = shipped.load(folder)
    declared: dict[str, float] = content["held_out_accuracy"]
    if "modular" in declared:
        settings = content["settings"]
        found = modular.accuracy(Model(model), "heldout", settings["train_share"], settings["seed"])
        return {"modular": found}, declared
    if "usual" in declared:
        return {kind: choices.accuracy(Model(model), kind, n, seed) for kind in declared}, declared
    measured = measure(model, tokenizer, n, seed)
    if "nested_accuracy" in content:
        measured |= {f"nested, {part}": value for part, value in nested_accuracy(model, tokenizer).items()}
        declared |= {f"nested, {part}": value for part, value in content["nested_accuracy"].items()}
    if "habit" in content:
        measured |= habits.rates(model, tokenizer, organisms.Organism.from_settings(content["settings"]))
        declared |= content["habit"]
    return measured, declared


def _seen(folder: Path, content: dict[str, Any], n: int, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """The measured and the declared accuracies of an image classifier or a pair of encoders."""
    from actinium.core.errors import LoadError
    from actinium.core.loading import load
    from actinium.world import contrastive_train
    from actinium.world.image_recipe import ImageRecipe
    from actinium.world.image_train import accuracies

    if "settings" not in content:
        raise LoadError(f"{folder} has no recipe.json, which says what images its classifier is for")
    settings, declared = content["settings"], content["held_out_accuracy"]
    if "vision" in settings["network"]:
        pair = contrastive_train.PairRecipe.from_settings(settings)
        return contrastive_train.accuracies(load(folder).module, pair, n, seed), declared
    return accuracies(load(folder).module, ImageRecipe.from_settings(settings), n, seed), declared
