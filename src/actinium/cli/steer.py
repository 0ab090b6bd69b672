"""`actinium steer`: make a steering vector, apply it, choose its layer and strength, write it into weights."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from actinium.steering.vector import SteeringVector

__all__ = ["app"]

app = typer.Typer(
    help="Steer a model: make a vector, apply it, sweep layers and strengths, bake.", no_args_is_help=True
)

MODEL = typer.Argument(help="world:lm, a hub name, a folder, or file.py:factory")
VECTOR = typer.Argument(
    help="file of a steering vector, as `actinium steer make` writes it; .gguf, .svec and .pt are those of others"
)
DEVICE = typer.Option(help="cpu, cuda, cuda:1, mps; cpu if absent")


class Positions(StrEnum):
    """Which tokens are steered."""

    all = "all"
    prompt = "prompt"
    new = "new"
    last = "last"


class Operator(StrEnum):
    """What steering does to an activation."""

    add = "add"
    preserve_norm = "preserve_norm"
    piecewise = "piecewise"
    ablate = "ablate"
    ablate_and_add = "ablate_and_add"


OPERATOR = typer.Option(help="add; preserve_norm; piecewise; ablate (no strength); ablate_and_add")
POSITIONS = typer.Option(help="all; prompt; new, the tokens behind it; last, the prompt's last token and the new ones")


@app.command()
def make(
    model: Annotated[str, MODEL],
    out: Annotated[Path, typer.Option(help="file to write: v.safetensors, or v.gguf, v.svec, v.pt for others")],
    positive: Annotated[str | None, typer.Option(help="file of texts with the property, one per line")] = None,
    negative: Annotated[str | None, typer.Option(help="file of their partners without it, line by line")] = None,
    contrast: Annotated[
        str | None, typer.Option(help="pairs of the small world instead: refusal, gladness, ...")
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="pairs of --contrast")] = 64,
    at: Annotated[list[str], typer.Option(help="site or pattern; several with several --at")] = ["blocks.*.resid_post"],  # noqa: B006
    method: Annotated[str, typer.Option(help="mean_difference, pca_pairwise, logistic, lda, ...")] = "mean_difference",
    position: Annotated[str, typer.Option(help="token that is read: -1, 0, ..., mean, or suffix")] = "-1",
    unit: Annotated[bool, typer.Option("--unit", help="give every direction unit length")] = False,
    seed: Annotated[int, typer.Option(help="of the methods that draw, and of --contrast")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="texts in a pass")] = 64,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Find a steering vector of MODEL from pairs of texts."""
    from rich.console import Console
    from rich.table import Table

    from actinium import steering
    from actinium.cli.progress import hide_weight_bars
    from actinium.core.loading import load
    from actinium.steering.interchange import FORMATS, save_vector

    pairs = _pairs(positive, negative, contrast, n, seed)
    place: Any = int(position) if re.fullmatch(r"-?\d+", position) else position
    hide_weight_bars()
    loaded = load(model, device=device)
    options = {"method": method, "position": place, "unit": unit, "seed": seed, "batch_size": batch_size}
    vector = steering.extract(loaded, *pairs, at, **options, progress=True)
    sizes = steering.relative_strength(loaded, vector, pairs[0])
    save_vector(vector, out, None if out.suffix in FORMATS.values() else "actinium")
    table = Table("site", "length", "of an activation", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for site, size in vector.norms.items():
        table.add_row(site, f"{size:.3g}", f"{sizes[site]:.0%}")
    Console().print(table, highlight=False)
    typer.echo(f"saved: {out} ({method}, {len(pairs[0])} pairs)")


@app.command()
def apply(
    model: Annotated[str, MODEL],
    vector: Annotated[Path, VECTOR],
    prompt: Annotated[list[str], typer.Argument(help="texts to go on from")],
    strength: Annotated[list[float], typer.Option(help="one or several, each shown beside plain text")] = [1.0],  # noqa: B006
    at: Annotated[list[str] | None, typer.Option(help="sites among those of the vector; all if absent")] = None,
    operator: Annotated[Operator, OPERATOR] = Operator.add,
    positions: Annotated[Positions, POSITIONS] = Positions.all,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="length of the new text")] = 30,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 for the likeliest token")] = 0.0,
    seed: Annotated[int, typer.Option(help="of sampling")] = 0,
    transfer: Annotated[bool, typer.Option("--transfer", help="allow a vector of another model")] = False,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Let MODEL go on from prompts with and without a steering vector."""
    import torch
    from rich.console import Console

    from actinium import steering
    from actinium.cli.progress import hide_weight_bars
    from actinium.core.loading import load

    hide_weight_bars()
    loaded, found = load(model, device=device), _vector(vector)
    found.check(loaded, transfer)
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
    if temperature > 0:
        sampling["temperature"] = temperature
    steered = {"operator": operator.value, "positions": positions.value, "sites": at, "transfer": transfer}
    console = Console()
    for text in prompt:
        console.print(f"[bold]{_plain(text)}[/bold]", highlight=False)
        torch.manual_seed(seed)
        console.print(f"  {'plain':>8}  {_plain(loaded.generate(text, **sampling))}", highlight=False)
        for value in strength:
            torch.manual_seed(seed)
            with steering.steer(loaded, found, value, **steered):
                console.print(f"  {value:>8g}  {_plain(loaded.generate(text, **sampling))}", highlight=False)


@app.command()
def sweep(
    model: Annotated[str, MODEL],
    vector: Annotated[Path, VECTOR],
    prompts: Annotated[str, typer.Option(help="file of held-out prompts to go on from, one per line")],
    match: Annotated[str, typer.Option(help="regular expression: a new text in which it is found is a success")],
    strengths: Annotated[str, typer.Option(help="numbers with commas between them")] = "-2,-1,1,2",
    at: Annotated[list[str] | None, typer.Option(help="sites among those of the vector; all if absent")] = None,
    texts: Annotated[str | None, typer.Option(help="file of other texts, whose perplexity should stay")] = None,
    operator: Annotated[Operator, OPERATOR] = Operator.add,
    positions: Annotated[Positions, POSITIONS] = Positions.all,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="length of the new texts")] = 20,
    max_kl: Annotated[float | None, typer.Option(help="limit of the best cell: mean KL of the next token")] = None,
    max_perplexity: Annotated[float | None, typer.Option(help="limit of the best cell: perplexity ratio")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="rows in a pass")] = 64,
    rows: Annotated[int, typer.Option(min=1, help="rows of the table")] = 10,
    out: Annotated[Path | None, typer.Option(help="folder for sweep.zarr and sweep.svg; goes on if stopped")] = None,
    transfer: Annotated[bool, typer.Option("--transfer", help="allow a vector of another model")] = False,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Steer MODEL at each site and strength, and say where it works best at what cost."""
    from rich.console import Console
    from rich.table import Table

    from actinium import steering
    from actinium.cli.folders import make_folder, read_lines
    from actinium.cli.progress import hide_weight_bars
    from actinium.core.errors import InputError
    from actinium.core.loading import load

    try:
        numbers = [float(s) for s in strengths.split(",")]
    except ValueError as error:
        raise InputError(f"--strengths takes numbers with commas between them: {error}") from None
    judge = steering.Matches(match)
    asked = read_lines(prompts)
    others = None if texts is None else read_lines(texts)
    if max_perplexity is not None and others is None:
        raise InputError("--max-perplexity needs --texts, whose perplexity is measured")
    if out is not None:
        make_folder(out)
    hide_weight_bars()
    loaded, made = load(model, device=device), _vector(vector)
    found = steering.sweep(
        loaded,
        made,
        numbers,
        sites=at,
        prompts=asked,
        judge=judge,
        texts=others,
        operator=operator.value,
        positions=positions.value,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        transfer=transfer,
        path=None if out is None else out / "sweep.jsonl",
        progress=True,
    )
    front = found.pareto().head(rows)
    table = Table(*front.columns, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for row in front.itertuples(index=False):
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row))
    console = Console()
    console.print("of these none is better in one column without being worse in another:", highlight=False)
    console.print(table, highlight=False)
    limits = {"kl": max_kl, "perplexity_ratio": max_perplexity}
    best = found.best(at_most={k: v for k, v in limits.items() if v is not None})
    success = float(best["success"])
    console.print(f"best: {best.site}, strength {best.strength:g}, success {success:.0%}", highlight=False)
    if out is not None:
        found.save(out / "sweep.zarr")
        found.plot().figure.savefig(out / "sweep.svg", bbox_inches="tight")
        typer.echo(f"saved: {out / 'sweep.zarr'}, sweep.svg")


@app.command()
def bake(
    model: Annotated[str, MODEL],
    vector: Annotated[Path, VECTOR],
    out: Annotated[Path, typer.Option(help="folder of the new checkpoint")],
    strength: Annotated[float, typer.Option(help="of the addition")] = 1.0,
    at: Annotated[list[str] | None, typer.Option(help="sites among those of the vector; all if absent")] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="remove the direction from all that is written, instead of adding it")
    ] = False,
    transfer: Annotated[bool, typer.Option("--transfer", help="allow a vector of another model")] = False,
) -> None:
    """Write a steering vector into the weights of MODEL, as a checkpoint that plain transformers reads."""
    import torch

    from actinium import steering
    from actinium.cli.folders import make_folder
    from actinium.cli.progress import hide_weight_bars
    from actinium.core.errors import InputError
    from actinium.core.loading import load

    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} exists and is not empty; choose another folder")
    hide_weight_bars()
    loaded, found = load(model), _vector(vector)
    found.check(loaded, transfer)
    chosen: SteeringVector = found if at is None else found.only(at)
    if ablate:
        edits = steering.ablation_edits(loaded, torch.stack(list(chosen.directions.values())))
    else:
        edits = steering.steering_edits(chosen, strength)
    baked: Any = steering.bake(loaded, edits)
    make_folder(out)
    baked.module.save_pretrained(out)
    if baked.tokenizer is not None:
        baked.tokenizer.save_pretrained(out)
    typer.echo(f"saved: {out}, whose logits are those of the steered model")


def _vector(path: Path) -> SteeringVector:
    """The vector of a file, of this library or another."""
    from actinium.steering.interchange import FORMATS, load_vector

    # A suffix that no format has is a name like any other.
    return load_vector(path, None if path.suffix in FORMATS.values() else "actinium")


def _pairs(
    positive: str | None, negative: str | None, contrast: str | None, n: int, seed: int
) -> tuple[list[str], list[str]]:
    """The texts of both sides."""
    from actinium.cli.folders import read_lines
    from actinium.core.errors import InputError

    if (contrast is None) == (positive is None and negative is None):
        raise InputError("give --positive and --negative, or --contrast")
    if contrast is not None:
        from actinium import world

        found = world.contrasts.contrast(contrast, n, seed)
        return found.positive, found.negative
    if positive is None or negative is None:
        raise InputError("both --positive and --negative are needed")
    return read_lines(positive), read_lines(negative)


def _plain(text: str) -> str:
    """Text as the console shows it, without reading marks in it."""
    from rich.markup import escape

    return escape(text.replace("\n", " "))
