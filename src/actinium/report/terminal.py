"""The report in a terminal: what stands out, in a short table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from actinium.report.shown import facts, number, sample_line

if TYPE_CHECKING:
    from actinium.report.document import Report

__all__ = ["summary"]

COLOURS = {"critical": "bold red", "warning": "yellow", "opportunity": "green", "note": "cyan"}


def summary(report: Report) -> RenderableType:
    """Model, sample, findings, what could not be measured, and where the report is."""
    document = report.document
    parts: list[RenderableType] = [
        Text(document.model.name, style="bold"),
        Text(facts(document), style="dim"),
        Text(sample_line(document), style="dim"),
    ]
    parts += [Text(f"  {note}", style="dim") for note in [*document.model.notes, *document.data.notes]]
    parts.append(Text())
    parts.append(_findings(report))
    if document.findings:
        parts += [
            Text("Look closer, after these lines:", style="bold"),
            Syntax(document.setup.strip(), "python", background_color="default"),
            Text(),
        ]
    failed = [m for m in document.measurements if m.state == "failed"]
    if failed:
        parts.append(Text("These measurements failed; please report it:", style="bold red"))
        parts += [Text(f"  {m.title}: {m.reason}") for m in failed]
        parts.append(Text())
    skipped = [m.title for m in document.measurements if m.state == "not applicable"]
    if skipped:
        parts.append(Text(f"not applicable here: {', '.join(skipped)}", style="dim"))
    missing = [m.title for m in document.measurements if m.state == "not run"]
    if missing:
        parts.append(Text(f"interrupted before: {', '.join(missing)}", style="yellow"))
    if report.files:
        parts.append(Text.assemble(("report: ", "bold"), str(report.files[0])))
    return Group(*parts)


def _findings(report: Report) -> RenderableType:
    if not report.findings:
        return Text("Nothing stands out by the rules of docs/scan.md.\n")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 1, 0), expand=True)
    table.add_column(justify="right", width=2)
    table.add_column(ratio=1)
    for n, finding in enumerate(report.findings, 1):
        look = finding.look.removeprefix(report.document.setup).strip()
        table.add_row(
            Text(str(n), style="dim"),
            Group(
                Text.assemble(
                    (finding.severity, COLOURS[finding.severity]), "  ", (finding.what, "bold"), overflow="fold"
                ),
                Text.assemble(("where    ", "dim"), finding.where),
                Text.assemble(("how big  ", "dim"), f"{number(finding.value)} {finding.unit}"),
                Text.assemble(("why      ", "dim"), finding.why),
                Syntax(look, "python", background_color="default", word_wrap=True),
            ),
        )
    return table
