"""Which published systems there are, which of them are done, and how to run one."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.papers.contract import Evidence, Paper

if TYPE_CHECKING:
    from actinium.core.model import Model

__all__ = ["catalogue", "find", "is_done", "module_name", "paper", "reproduce", "row"]

FOLDER = Path(__file__).parent


@functools.cache
def catalogue() -> tuple[Paper, ...]:
    """All published systems in the order of their numbers, with an empty `claim`."""
    rows = json.loads((FOLDER / "registry.json").read_text(encoding="utf-8"))
    return tuple(Paper(**fields) for fields in rows)


def module_name(entry: Paper) -> str:
    """Name of the module in `actinium.papers` that reproduces the system, whether it exists or not."""
    return entry.slug.replace("-", "_").lower()


def is_done(entry: Paper) -> bool:
    """Whether a reproduction exists (the test suite runs every one that does)."""
    return (FOLDER / f"{module_name(entry)}.py").is_file()


def row(entry: Paper) -> dict[str, object]:
    """The row of `actinium papers --json`: the paper's facts and its state, `done` or `planned`."""
    facts = dataclasses.asdict(entry)
    del facts["claim"]
    return facts | {"state": "done" if is_done(entry) else "planned"}


def find(key: str | int) -> Paper:
    """The system with a number or a slug.

    Args:
        key: a number (73, "073"), a slug ("patching-best-practices") or both ("073-patching-best-practices").

    Raises:
        UnknownNameError: no system has this number or slug.
    """
    name = str(key).strip().lower().replace("_", "-")
    number, _, rest = name.partition("-")
    for entry in catalogue():
        same_number = number.isdigit() and int(number) == entry.number
        if name == entry.slug.lower() or (same_number and rest in ("", entry.slug.lower())):
            return entry
    if name.isdigit():
        raise UnknownNameError(f"no paper {name}; the numbers are 1 to {len(catalogue())}")
    raise UnknownNameError(unknown("paper", name, [entry.slug for entry in catalogue()]))


def paper(key: str | int, claim: str) -> Paper:
    """The system with a number or a slug, together with the claim that its reproduction examines."""
    return dataclasses.replace(find(key), claim=claim)


def reproduce(key: str | int, seed: int = 0, model: Model | str | None = None, quick: bool = True) -> Evidence:
    """Run the experiment of one published system.

    Args:
        key: number or slug of the system.
        seed: seed of everything random in the experiment.
        model: a model, or what `actinium.load` takes; None for the experiment's own.
        quick: small sample (seconds) instead of the full one.

    Raises:
        UnknownNameError: no system has this number or slug.
        InputError: the system is planned and has no experiment yet.
    """
    entry = find(key)
    if not is_done(entry):
        done = ", ".join(e.slug for e in catalogue() if is_done(e)) or "none"
        raise InputError(f"{entry.number:03d} {entry.slug} is planned and has no experiment yet; done are: {done}")
    module = importlib.import_module(f"actinium.papers.{module_name(entry)}")
    if isinstance(model, str):
        from actinium.core.loading import load

        model = load(model)
    evidence: Evidence = module.reproduce(seed=seed, model=model, quick=quick)
    return dataclasses.replace(evidence, paper=module.PAPER)
