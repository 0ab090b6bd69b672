"""Write the generated pages: one per room from its docstrings, one per reproduced paper from a real run."""

from __future__ import annotations

import importlib
import pkgutil
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

import actinium
from actinium.papers import Evidence, Paper, catalogue, registry, reproduce

DOCS = Path(__file__).parent
ROOMS = (
    "core",
    "store",
    "world",
    "measure",
    "signal",
    "functions",
    "circuits",
    "features",
    "probes",
    "steering",
    "compare",
    "guard",
    "applications",
    "report",
    "papers",
)


def main() -> None:
    """Write `docs/api` and `docs/papers` anew."""
    for folder in (DOCS / "api", DOCS / "papers"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    for room in ROOMS:
        (DOCS / "api" / f"{room}.md").write_text(api_page(room), encoding="utf-8")
    done = [entry for entry in catalogue() if registry.is_done(entry)]
    for entry in done:
        print(f"running {entry.number:03d} {entry.slug}")
        write_paper(entry, reproduce(entry.number))
    (DOCS / "papers" / "index.md").write_text(papers_page(), encoding="utf-8")


def api_page(room: str) -> str:
    """What a room hands on, by the module that defines it, each with its docstring."""
    # The core has no names of its own to hand on: the package itself does that.
    package = actinium if room == "core" else importlib.import_module(f"actinium.{room}")
    modules = handed_on(package)
    parts = [f"# actinium.{room}"]
    for module, names in sorted(modules.items()):
        parts.append(f"## {module.rpartition('.')[2]}\n\n{importlib.import_module(module).__doc__}")
        parts += [f"::: {module}.{name}" for name in dict.fromkeys(names)]
    return "\n\n".join(parts) + "\n"


def handed_on(package: ModuleType) -> dict[str, list[str]]:
    """The names that a package hands on, by the module that defines them; those of its sub-rooms as well."""
    modules: dict[str, list[str]] = {}
    for name in package.__all__:
        found = getattr(package, name)
        if name in ("core", *ROOMS):
            continue
        if not isinstance(found, ModuleType):
            module, own = home_of(package, name, found)
            modules.setdefault(module, []).append(own)
        elif hasattr(found, "__path__") and hasattr(found, "__all__"):
            for module, names in handed_on(found).items():
                modules.setdefault(module, []).extend(names)
        else:
            modules[found.__name__] = public_names(found)
    return modules


def home_of(package: ModuleType, name: str, found: Any) -> tuple[str, str]:
    """The module that defines what a room hands on, and its name there; a constant does not know its module."""
    if isinstance(getattr(found, "__module__", None), str) and isinstance(getattr(found, "__name__", None), str):
        return found.__module__, found.__name__
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if name in getattr(importlib.import_module(info.name), "__all__", ()):
            return info.name, name
    raise LookupError(f"no module of {package.__name__} has {name} in its __all__")


def public_names(module: ModuleType) -> list[str]:
    """The functions and classes of `__all__`, or those that the module defines."""
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    names = getattr(module, "__all__", defined)
    return [name for name in names if callable(getattr(module, name)) and not name.startswith("_")]


def write_paper(entry: Paper, evidence: Evidence) -> None:
    """One page with the claim, the evidence and, where there is a result, its figure."""
    assert evidence.paper is not None
    source = f"[{entry.title}]({entry.url}). {entry.authors}, {entry.year}."
    parts = [
        f"# {entry.number:03d} {entry.name}",
        source,
        f"**Examined.** {evidence.paper.claim}",
        evidence.markdown(),
    ]
    if evidence.result is not None:
        figure = Figure(figsize=(7, 4), layout="constrained")
        evidence.plot(figure.add_subplot())
        figure.savefig(DOCS / "papers" / f"{entry.slug}.svg")
        parts.append(f"![{entry.name}]({entry.slug}.svg)")
    parts.append(f"Run it again: `actinium reproduce {entry.number:03d}`")
    (DOCS / "papers" / f"{entry.slug}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def papers_page() -> str:
    """All systems with their state; done ones link to their page."""
    lines = ["# Papers", "", "| | system | paper | year | room | state |", "|---|---|---|---|---|---|"]
    for entry in catalogue():
        done = registry.is_done(entry)
        name = f"[{entry.name}]({entry.slug}.md)" if done else entry.name
        cells = (f"{entry.number:03d}", name, f"[{entry.title}]({entry.url})", str(entry.year), entry.room)
        lines.append("| " + " | ".join((*cells, "done" if done else "planned")) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
