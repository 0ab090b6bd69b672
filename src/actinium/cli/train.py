"""`actinium train`: dictionaries of activations, with every setting of a training run as an option."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app", "settings_of"]

app = typer.Typer(help="Train on activations.", no_args_is_help=True)

ARCHITECTURES = {
    "topk": "TopKSAE",
    "batch_topk": "BatchTopKSAE",
    "jumprelu": "JumpReLUSAE",
    "relu": "ReLUSAE",
    "gated": "GatedSAE",
    "matryoshka": "MatryoshkaSAE",
    "transcoder": "Transcoder",
    "skip_transcoder": "SkipTranscoder",
    "crosscoder": "Crosscoder",
    "multi_layer": "MultiLayerSAE",
}


def sae(
    source: Annotated[str, typer.Argument(help="a store's folder or address; or a model, with --data")],
    at: Annotated[list[str], typer.Option(help="site; of a transcoder input and output, with two --at")],
    out: Annotated[Path, typer.Option(help="folder for sae.safetensors, metrics.jsonl and checkpoints")],
    architecture: Annotated[str, typer.Option(help=", ".join(ARCHITECTURES))] = "topk",
    d_sae: Annotated[int | None, typer.Option(min=1, help="latents; 8 times the width if absent")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a setting of the architecture, such as k=32 or l1=0.5")
    ] = None,
    data: Annotated[str | None, typer.Option(help="what a model reads: a file of text, a line a document")] = None,
    **options: Any,
) -> None:
    """Train a sparse dictionary on the activations of SOURCE, and say how good it is.

    Stopped with Ctrl-C it goes on where it was when the same command is given again.
    """
    from rich.console import Console

    from actinium import features
    from actinium.cli.folders import make_folder
    from actinium.core.errors import UnknownNameError, unknown
    from actinium.features.training.data import source_of

    if architecture not in ARCHITECTURES:
        raise UnknownNameError(unknown("architecture", architecture, ARCHITECTURES))
    settings = settings_of(set_ or [])
    read, texts = _read(source, data)
    width = source_of(read, at, texts).widths
    size = 8 * width[0] if d_sae is None else d_sae
    made = _made(getattr(features, ARCHITECTURES[architecture]), size, width, settings)
    made.about = {"model": source, "site": at[0] if len(at) == 1 else list(at)}
    make_folder(out)
    given = {name: value for name, value in options.items() if value is not None}
    given["logs"] = tuple(given.get("logs") or ("jsonl",))
    config = features.TrainConfig(**{**given, "folder": str(out)})
    log = features.train([made], read, sites=at, texts=texts, config=config, progress=True)
    made.save(out / "sae.safetensors")
    log.save(out / "training.zarr")
    last = {str(name): float(values[0, -1]) for name, values in log.data.data_vars.items()}
    Console().print(f"{made.d_sae:,} latents of {width[0]} numbers, {made.rows_:,} rows", highlight=False)
    Console().print(", ".join(f"{name} {value:.4g}" for name, value in last.items()), highlight=False)
    typer.echo(f"saved: {out / 'sae.safetensors'}, training.zarr")


def settings_of(given: list[str]) -> dict[str, Any]:
    """Settings from words like "k=32": numbers, true, false, none, lists in JSON, else text.

    Raises:
        InputError: there is no "=".
    """
    import json

    from actinium.core.errors import InputError

    found: dict[str, Any] = {}
    for word in given:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise InputError(f"expected --set NAME=VALUE, not {word!r}")
        try:
            found[name.strip()] = json.loads(value.lower() if value.lower() in ("true", "false") else value)
        except json.JSONDecodeError:
            found[name.strip()] = None if value.lower() == "none" else value
    return found


def _read(source: str, data: str | None) -> tuple[Any, Any]:
    """The store, or the model with the texts that it reads."""
    from actinium.cli.folders import read_lines
    from actinium.cli.progress import hide_weight_bars
    from actinium.core.loading import load
    from actinium.store import Store

    if data is None:
        return Store(source), None
    texts = read_lines(data)
    hide_weight_bars()
    return load(source), texts


def _made(kind: Any, d_sae: int, widths: list[int], settings: dict[str, Any]) -> Any:
    """A dictionary of these settings; those that it does not have itself are its activation's."""
    from actinium.core.errors import InputError, UnknownNameError, unknown

    known = kind._names()
    first: dict[str, Any] = {"d_sae": d_sae} if "d_sae" in known else {}
    if kind.__name__ == "Crosscoder":
        first["widths"] = widths
    if kind.__name__ == "MatryoshkaSAE":
        first["widths"] = settings.pop("widths", None) or [d_sae // 8, d_sae // 4, d_sae // 2, d_sae]
    if "settings" in known:
        own = {k: settings.pop(k) for k in list(settings) if k not in known}
        first["settings"] = own or None
    for name in settings:
        if name not in known:
            raise UnknownNameError(unknown(f"setting of {kind.__name__}", name, known))
    try:
        return kind(**first, **settings)
    except TypeError as error:
        raise InputError(f"{kind.__name__}: {error}") from None


def _with_training_settings(command: Any) -> Any:
    """The command with an option for each field of `TrainConfig`, its words taken from there."""
    from actinium.features.training.config import TrainConfig

    said = dict(re.findall(r"^ {8}([a-z_, ]+): (.*(?:\n {12}.*)*)", TrainConfig.__doc__ or "", flags=re.M))
    words = {name.strip(): " ".join(text.split()) for names, text in said.items() for name in names.split(",")}
    hints = typing.get_type_hints(TrainConfig)
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for field in dataclasses.fields(TrainConfig):
        if field.name == "folder":
            continue
        kind, default = hints[field.name], field.default
        if typing.get_origin(kind) is tuple and typing.get_args(kind)[-1] is Ellipsis:
            kind, default = list[str] | None, None
        option = typer.Option(help=words.get(field.name, ""))
        own.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
            )
        )
    command.__signature__ = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own])
    command.__annotations__ = {p.name: p.annotation for p in own}
    return command


app.command("sae")(_with_training_settings(sae))


@app.callback()
def main() -> None:
    """Train on activations."""
