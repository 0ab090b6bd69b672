"""`actinium sites`: what can be read or written in a model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from actinium.core.sites import Site

__all__ = ["sites"]


def sites(
    model: Annotated[str, typer.Argument(help="world:lm, a hub name, a folder, or file.py:factory")],
    pattern: Annotated[str, typer.Argument(help="site pattern, such as 'blocks.4-8.attn.*'")] = "**",
    every: Annotated[bool, typer.Option("--all", help="One row per layer instead of one per kind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per site.")] = False,
) -> None:
    """List the sites of MODEL with their named dimensions and known sizes."""
    import actinium as ac
    from actinium.cli.progress import hide_weight_bars

    hide_weight_bars()
    loaded = ac.load(model)
    found = loaded.sites(pattern)
    if as_json:
        rows = [
            {"name": s.name, "dims": list(s.dims), "sizes": dict(s.sizes), "layer": s.layer, "part": s.part}
            for s in found
        ]
        typer.echo(json.dumps(rows, indent=1))
        return

    from rich.console import Console
    from rich.table import Table

    family = loaded.family.name if loaded.family else "no known family"
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("site", "dimensions", "sizes"):
        table.add_column(heading)
    for name, site in [(s.name, s) for s in found] if every else fold(found):
        sizes = " ".join(f"{dim}={size}" for dim, size in site.sizes.items())
        table.add_row(name, " ".join(site.dims), sizes)
    console = Console()
    console.print(
        f"{loaded.name}: {loaded.kind}, {family}, {loaded.n_layers} layers, {len(found)} sites",
        markup=False,
        soft_wrap=True,
    )
    console.print(table)


def fold(found: Iterable[Site]) -> list[tuple[str, Site]]:
    """Sites that differ in the layer only, as one row: its name for all layers, and the first of them."""
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in found:
        shape = (site.dims, tuple(site.sizes.items()))
        key = (site.part, *shape) if site.layer is not None else (site.name,)
        groups.setdefault(key, []).append(site)
    rows = []
    for group in groups.values():
        first, layers = group[0], [s.layer for s in group if s.layer is not None]
        name = first.name
        if len(layers) > 1:
            name = name.replace(f".{layers[0]}.", f".{spans(layers)}.", 1)
        rows.append((name, first))
    return rows


def spans(layers: list[int]) -> str:
    """Layer numbers as the site language writes them: `0-5`, or `{0,2,4}` where they have gaps."""
    if layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return "{" + ",".join(map(str, layers)) + "}"
