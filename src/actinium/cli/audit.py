"""`actinium audit`: how easily a behaviour that guards a model is turned off, and what helps."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["audit"]


class Part(StrEnum):
    """What is audited."""

    neurons = "neurons"
    vectors = "vectors"
    approximations = "approximations"
    triggers = "triggers"


def audit(
    model: Annotated[str, typer.Argument(help="world:lm, a hub name, a folder, or file.py:factory")],
    guarded: Annotated[str | None, typer.Option(help="file of prompts that it is to decline, one per line")] = None,
    benign: Annotated[str | None, typer.Option(help="file of prompts that it is to answer")] = None,
    refusal: Annotated[list[str] | None, typer.Option(help="first words of its refusals; several with several")] = None,
    texts: Annotated[str | None, typer.Option(help="file of other texts, for perplexity")] = None,
    base: Annotated[
        str | None, typer.Option(help="a model that was not tampered with, for the search of triggers")
    ] = None,
    part: Annotated[list[Part] | None, typer.Option(help="only this part; several with several --part")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="put the prompts into the model's own chat form")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest reply that is judged")] = 16,
    min_words: Annotated[int, typer.Option(min=0, help="shorter replies are no failures under approximation")] = 10,
    randoms: Annotated[int, typer.Option(min=1, help="random controls of each kind")] = 5,
    seed: Annotated[int, typer.Option(help="of splits and controls")] = 0,
    out: Annotated[Path | None, typer.Option(help="folder for audit.json, audit.md and figures")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; cpu if absent")] = None,
) -> None:
    """Audit what the refusals of MODEL rest on, with your own prompts (none are shipped).

    Models of the small world are audited on its placeholder topics where no files are given.
    """
    from rich.console import Console
    from rich.table import Table

    from actinium.cli.folders import make_folder, read_lines
    from actinium.cli.progress import hide_weight_bars
    from actinium.core.errors import InputError
    from actinium.core.loading import load
    from actinium.guard import audit as audits

    shipped = model.startswith("world:lm")
    if (guarded is None) != (benign is None):
        raise InputError("give --guarded and --benign together")
    if not shipped and (guarded is None or texts is None or not refusal):
        raise InputError("give --guarded, --benign, --texts and --refusal: your own prompts and the model's refusals")
    if out is not None:
        make_folder(out)
    sides = None if guarded is None or benign is None else (read_lines(guarded), read_lines(benign))
    other = None if texts is None else read_lines(texts)
    hide_weight_bars()
    loaded = load(model, device=device)
    if sides is None:
        from actinium import world

        requests = [world.contrasts.requests(split) for split in ("train", "heldout")]
        sides = [t for r in requests for t in r.declined], [t for r in requests for t in r.answered]
        min_words = min(min_words, 2)
    if other is None:
        from actinium import world

        other = world.heldout_text(model.removeprefix("world:"))[::8]
    if chat:
        sides = audits.chat_prompts(loaded, sides[0]), audits.chat_prompts(loaded, sides[1])
    console = Console()
    report = audits.run_audit(
        loaded,
        *sides,
        audits.refusal_judge(starts=refusal or ["Sorry"]),
        other,
        base=None if base is None else load(base, device=device),
        parts=[p.value for p in part] if part else None,
        max_new_tokens=max_new_tokens,
        min_words=min_words,
        randoms=randoms,
        seed=seed,
        say=lambda name: console.print(f"[dim]{name} ...[/dim]"),
        progress=True,
    )
    for name, found in report.findings.items():
        table = Table("", "", box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False, title_justify="left")
        for what, value in found.items():
            shown = "not reached" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
            table.add_row(what, shown)
        console.print(f"[bold]{name}[/bold]")
        console.print(table, highlight=False, markup=False)
    if out is not None:
        report.save(out)
        typer.echo(f"saved: {out / 'audit.md'}, audit.json and figures")
