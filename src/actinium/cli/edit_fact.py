"""`actinium edit-fact`: a checkpoint in which one fact has another object."""

from __future__ import annotations

import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from actinium.circuits.knowledge.facts import FactEdit
    from actinium.core.model import Model

__all__ = ["edit_fact"]


class Editor(StrEnum):
    """How the weights are changed."""

    rome = "rome"
    memit = "memit"
    ace = "ace"


def edit_fact(
    model: Annotated[str, typer.Argument(help="world:lm, a hub name, or a folder")],
    prompt: Annotated[str, typer.Option(help="statement up to the object, with the subject or {} in it")],
    subject: Annotated[str, typer.Option(help="the subject, as the prompt writes it")],
    target: Annotated[str, typer.Option(help="the new object")],
    out: Annotated[Path, typer.Option(help="folder for the edited model, in Hugging Face format")],
    method: Annotated[Editor, typer.Option(help="how the weights are changed")] = Editor.memit,
    texts: Annotated[
        Path | None, typer.Option(help="file with a text like those of training in each line; not for world:lm")
    ] = None,
    layer: Annotated[list[int] | None, typer.Option(help="block to change; several with several --layer")] = None,
    multihop: Annotated[
        list[str] | None, typer.Option(help="'prompt=answer' that follows from the new fact, for ace; several times")
    ] = None,
    ridge: Annotated[float, typer.Option(min=0.0, help="added to the covariance where texts are few")] = 0.0,
    average_tokens: Annotated[bool, typer.Option(help="allow an object of several tokens")] = False,
) -> None:
    """Make MODEL say another object of a fact, and write the edited model to a folder.

    Without --layer, blocks are chosen by neuron attribution of the prompts: those whose MLP units activate the units
    that write the object. The value stage of ace always takes those whose units write it.
    """
    from rich.console import Console
    from rich.table import Table

    from actinium.circuits import FactEdit, evaluate_edits
    from actinium.cli.progress import hide_weight_bars
    from actinium.core.errors import ActiniumWarning, InputError
    from actinium.core.loading import load

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already; choose another folder")
    pairs = [tuple(part.strip() for part in text.rpartition("=")[::2]) for text in multihop or []]
    fact = FactEdit(prompt, subject, target, multihop_prompts=tuple(pairs))
    if method is Editor.rome and len(layer or ()) > 1:
        raise InputError(f"rome changes one block, not {len(layer or ())}")
    if pairs and method is not Editor.ace:
        raise InputError(f"only ace uses multi-hop prompts, not {method}")
    hide_weight_bars()
    loaded = load(model)
    if not hasattr(loaded.module, "save_pretrained"):
        raise InputError(f"{model} is no model of transformers, so there is no format to write it in")
    change = _change(loaded, fact, method, _texts(model, texts), layer, ridge, average_tokens)
    scores = evaluate_edits(loaded, fact, change)["efficacy"]
    with change:
        loaded.module.save_pretrained(out)
        loaded.tokenizer.save_pretrained(out)
    if float(scores[1]) < 1:
        message = "the edited model does not say the new object; try other blocks, or another --method"
        warnings.warn(message, ActiniumWarning, stacklevel=2)
    table = Table("fact", "new object before", "after", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_row(f"{fact.text} {target.strip()}", *("yes" if float(s) == 1 else "no" for s in scores.values))
    console = Console()
    console.print(table)
    console.print(f"{method} changed {', '.join(change.deltas)}", soft_wrap=True)
    console.print(f"wrote {out}", soft_wrap=True)


def _texts(model: str, file: Path | None) -> list[str]:
    """Texts for the covariance of the keys."""
    from actinium.core.errors import InputError, LoadError

    if file is None:
        if not model.startswith("world:"):
            raise InputError(
                "--texts: the editors need texts like those that the model was trained on, one in each line"
            )
        from actinium.world import heldout_text

        found: list[str] = heldout_text(model.removeprefix("world:"))
        return found
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot read {str(file)!r}: {error}") from None
    if not lines:
        raise InputError(f"{file} holds no text")
    return lines


def _change(
    model: Model, fact: FactEdit, method: Editor, texts: list[str], layers: Any, ridge: float, average_tokens: bool
) -> Any:
    from actinium.circuits import ACE, best_window, key_covariance, memit, neuron_attribution, rome

    value: Any = "auto"
    query: Any = layers or "auto"
    prompts = [fact.text, *(q.phrasings[0] for q in fact.multihop_prompts)]
    size = 1 if method is Editor.rome else 3

    def chosen(kind: str) -> list[int]:
        scores = neuron_attribution(model, prompts, kind=kind)["layer_score"].values
        return best_window(scores.tolist(), size)

    if query == "auto":
        query = chosen("query")
    if method is Editor.ace:
        value = chosen("value")
    covariance = key_covariance(model, texts, sorted({*query, *(value if method is Editor.ace else ())}), ridge=ridge)
    if method is Editor.ace:
        return ACE(value, query, average_tokens=average_tokens).fit(model, fact, covariance).change_
    if method is Editor.rome:
        return rome(model, fact, covariance, query[0], average_tokens=average_tokens)
    return memit(model, fact, covariance, query, average_tokens=average_tokens)
