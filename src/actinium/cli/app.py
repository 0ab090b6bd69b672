"""The commands, and what happens to an error or an interrupt on the way out."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from actinium import __version__
from actinium.cli import (
    audit,
    circuit,
    edit_fact,
    features,
    functions,
    papers,
    patch,
    record,
    scan,
    sites,
    steer,
    train,
    world,
)
from actinium.core.errors import ActiniumError, ActiniumWarning

__all__ = ["app", "main"]

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count


def complain(label: str, message: str, colour: str) -> None:
    """One line on the error stream: a coloured label and, if there is one, the message."""
    typer.secho(label, fg=colour, bold=True, nl=not message, err=True)
    if message:
        typer.echo(f": {message}", err=True)


class Commands(TyperGroup):
    """Turns the errors that Actinium raises on purpose into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit 2 on an `ActiniumError`, 130 on Ctrl-C.

        Whoever keeps partial results on Ctrl-C says so in the `KeyboardInterrupt` that it raises again.
        """
        show = warnings.showwarning

        def say(message: Any, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, ActiniumWarning):
                complain("warning", str(message), typer.colors.YELLOW)
            else:
                show(message, category, *rest)

        warnings.showwarning = say
        try:
            return super().invoke(ctx)
        except ActiniumError as error:
            if ctx.obj["debug"]:
                import traceback

                traceback.print_exc()
            complain("error", str(error), typer.colors.RED)
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt as interrupt:
            complain("interrupted", str(interrupt), typer.colors.YELLOW)
            raise typer.Exit(INTERRUPTED) from interrupt
        finally:
            warnings.showwarning = show


app = typer.Typer(
    name="actinium",
    cls=Commands,
    help="Activation analysis for neural networks: record, measure, explain and edit activations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"actinium {__version__}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that stand before the command."""
    ctx.obj = {"debug": debug}


app.command("scan")(scan.scan)
app.command("sites")(sites.sites)
app.command("record")(record.record)
app.add_typer(record.app, name="store")
app.command("patch")(patch.patch)
app.command("circuit")(circuit.circuit)
app.command("edit-fact")(edit_fact.edit_fact)
app.command("papers")(papers.papers)
app.command("reproduce")(papers.reproduce)
app.add_typer(train.app, name="train")
app.command("features")(features.features)
app.add_typer(functions.app, name="functions")
app.add_typer(steer.app, name="steer")
app.command("audit")(audit.audit)
app.add_typer(world.app, name="world")


def main() -> None:
    """Run the command line."""
    app()
