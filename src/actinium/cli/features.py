"""`actinium features`: the latents of a dictionary, each with its top contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["features"]


def features(
    path: Annotated[str, typer.Argument(help="sae.safetensors, or a folder of SAELens, sparsify, dictionary_learning")],
    model: Annotated[str | None, typer.Option(help="world:lm, ...; the dictionary's own by default")] = None,
    at: Annotated[str | None, typer.Option(help="site; the dictionary's own by default")] = None,
    data: Annotated[str | None, typer.Option(help="file of text; held-out text of a world model if absent")] = None,
    latent: Annotated[list[int] | None, typer.Option(help="which; the strongest if absent")] = None,
    top: Annotated[int, typer.Option(min=1, help="how many of the strongest")] = 10,
    contexts: Annotated[int, typer.Option(min=1, help="contexts of each")] = 5,
    out: Annotated[Path | None, typer.Option(help="folder for features.json and features.html")] = None,
) -> None:
    """Show where the latents of the dictionary in PATH are active, and which tokens they promote."""
    from rich.console import Console
    from rich.table import Table

    from actinium.cli.folders import make_folder
    from actinium.cli.progress import hide_weight_bars
    from actinium.core.errors import InputError
    from actinium.core.loading import load
    from actinium.features import Browser, load_dictionary

    if out is not None:
        make_folder(out)
    dictionary = load_dictionary(path)
    name, site = model or dictionary.about.get("model"), at or dictionary.about.get("site")
    if not isinstance(name, str) or not isinstance(site, str):
        raise InputError("this dictionary does not say what it belongs to: give --model and --at")
    texts = _texts(name, data)
    hide_weight_bars()
    browser = Browser(load(name), site, dictionary, texts, k=contexts, progress=True)
    chosen = latent or browser.strongest(top)
    table = Table("latent", "density", "largest", "active at", "promotes", box=None, pad_edge=False)
    for row in browser.table(chosen).itertuples(index=False):
        table.add_row(str(row[0]), f"{row[1]:.2%}", f"{row[2]:.3g}", row[3], row[4])
    silent = int((browser.density == 0).sum())
    console = Console()
    console.print(f"{dictionary.d_sae:,} latents at {site} of {name}, {silent:,} silent here", highlight=False)
    console.print(table, highlight=False, markup=False)
    if out is not None:
        browser.save(out, chosen)
        typer.echo(f"saved: {out / 'features.html'}, features.json")


def _texts(name: str, data: str | None) -> list[str]:
    """Lines of a file, or what a shipped model has not read."""
    from actinium.cli.folders import read_lines
    from actinium.core.errors import InputError

    if data is None:
        if not name.startswith("world:"):
            raise InputError("give --data, a file of text that the model reads")
        from actinium import world

        return world.heldout_text(name.removeprefix("world:"))
    return read_lines(data)
