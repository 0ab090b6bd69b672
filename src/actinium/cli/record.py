"""`actinium record` and `actinium store`: activations on disk."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["app", "record"]

app = typer.Typer(help="Look at a store of activations, and check it.", no_args_is_help=True)

Where = Annotated[str, typer.Argument(metavar="PATH", help="folder or address of the store")]


def record(
    model: Annotated[str, typer.Argument(help="world:lm, a hub name, a folder, or file.py:factory")],
    data: Annotated[str, typer.Option(help="file of text, JSONL, Parquet or .npy; folder of such files or of images")],
    at: Annotated[list[str], typer.Option(help="site or pattern; several with several --at")],
    out: Annotated[str, typer.Option(help="folder or address of the store")],
    dtype: Annotated[str, typer.Option(help="float16, bfloat16, float32 or int8")] = "float16",
    context: Annotated[int, typer.Option(min=2, help="tokens in a window")] = 512,
    batch_size: Annotated[int | None, typer.Option(min=1, help="windows in a pass")] = None,
    shard_mb: Annotated[float, typer.Option(help="most megabytes of one shard of a site")] = 256,
    packing: Annotated[str, typer.Option(help="pack (full windows) or pad (a document begins a window)")] = "pack",
    column: Annotated[str | None, typer.Option(help="column of a table that holds the documents")] = None,
    exclude_special: Annotated[bool, typer.Option(help="leave out the rows of special tokens")] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="stop after so many tokens")] = None,
    engine: Annotated[str, typer.Option(help="local or ray")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="models that work at once, with ray")] = 2,
    resume: Annotated[bool, typer.Option(help="go on with a store that is there")] = True,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, auto; cpu if absent")] = None,
    model_dtype: Annotated[str | None, typer.Option(help="type of the weights")] = None,
) -> None:
    """Run MODEL over data and keep the activations of some sites on disk."""
    from rich.console import Console

    from actinium.cli.progress import hide_weight_bars
    from actinium.core.loading import load
    from actinium.store import create

    hide_weight_bars()
    made = create(
        out,
        load(model, device=device, dtype=model_dtype),
        data,
        at,
        dtype=dtype,
        context=context,
        batch_size=batch_size,
        shard_mb=shard_mb,
        resume=resume,
        packing=packing,
        column=column,
        exclude_special=exclude_special,
        max_tokens=max_tokens,
        engine=engine,
        workers=workers,
    )
    Console().print(f"{len(made):,} rows of {len(made.sites)} site{'s'[: len(made.sites) > 1]}: {out}")


@app.command("show")
def show(path: Where) -> None:
    """What a store holds."""
    from rich.console import Console
    from rich.table import Table

    from actinium.store import Store

    store = Store(path)
    origin, layout = store.manifest.origin, store.manifest.layout
    console = Console()
    state = "complete" if store.complete else "not finished: the same `actinium record` goes on"
    console.print(f"{len(store):,} rows in {len(store.manifest.shards)} shards, {state}")
    console.print(f"model {origin.model['name']} ({origin.model['fingerprint'][:12]}), data {origin.data['name']}")
    if layout.context:
        console.print(f"windows of {layout.context} tokens ({layout.packing})")
    table = Table("site", "row", "type", "bytes", "rounding error")
    errors = store.rounding_error
    for i, site in enumerate(store.manifest.sites):
        size = sum(shard.sites[i].bytes for shard in store.manifest.shards)
        row = " x ".join(f"{n} {d}" for n, d in zip(site.shape, site.dims, strict=True))
        error = f"{errors[site.name]:.2%}" if site.name in errors else ""
        table.add_row(site.name, row, site.dtype, f"{size:,}", error)
    console.print(table)


@app.command("verify")
def verify(path: Where) -> None:
    """Compare every file with the checksums of the manifest; exit 1 if one is missing or damaged."""
    from actinium.store import Store

    store = Store(path)
    found = store.verify(progress=True)
    for line in found:
        typer.echo(line)
    files = sum(len(shard.sites) + 1 for shard in store.manifest.shards)
    typer.echo(f"{files - len(found)} of {files} files are as they were written")
    if found:
        raise typer.Exit(1)


@app.command("top")
def top(
    path: Where,
    site: Annotated[str, typer.Argument(help="site in the store")],
    unit: Annotated[int, typer.Argument(help="number of the unit")],
    k: Annotated[int, typer.Option(min=1, help="how many")] = 10,
) -> None:
    """The tokens at which a unit is largest, in their contexts."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from actinium.store import Store

    table = Table("value", "document", "position", "context")
    for row in Store(path).top(site, unit, k).itertuples():
        table.add_row(f"{row.value:.4g}", str(row.document), str(row.position), escape(str(row.context)))
    Console().print(table)
