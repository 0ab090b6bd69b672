"""Write the generated pages: one per room from its docstrings, one per reproduced paper from a real run."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from actinium.papers import Evidence, Paper, catalogue, registry, reproduce

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "src" / "actinium"
ROOMS = ("core", "world", "measure", "circuits", "report", "papers")


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
    """The modules of a room that name public things, each with its docstrings."""
    parts = [f"# actinium.{room}"]
    reproductions = {registry.module_name(entry) for entry in catalogue()} if room == "papers" else set()
    for path in sorted((PACKAGE / room).glob("*.py")):
        if path.stem == "__init__" or path.stem.startswith("_") or path.stem in reproductions:
            continue
        names = public_names(path)
        if names:
            parts.append(f"## {path.stem}\n\n{module_docstring(path)}")
            parts += [f"::: actinium.{room}.{path.stem}.{name}" for name in names]
    return "\n\n".join(parts) + "\n"


def public_names(path: Path) -> list[str]:
    """The functions and classes that a module defines without a leading underscore, in its order."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = (node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
    return [node.name for node in named if not node.name.startswith("_") and ast.get_docstring(node)]


def module_docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


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
