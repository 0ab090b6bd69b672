"""The report as Markdown: findings, and what was measured."""

from __future__ import annotations

from actinium.report.schema import Document
from actinium.report.shown import facts, number, sample_line, sentence

__all__ = ["markdown"]


def markdown(document: Document) -> str:
    """The findings with the lines to look closer, and a table of the measurements."""
    parts = [f"# Check-up of {_cell(document.model.name)}", facts(document), sentence(sample_line(document)) + "."]
    if document.state == "interrupted":
        parts.append("**Interrupted: only a part was measured.**")
    notes = [*document.model.notes, *document.data.notes]
    parts += ["\n".join(f"- {_cell(note)}" for note in notes)] if notes else []
    parts.append("## Findings")
    if not document.findings:
        parts.append("Nothing stands out by the rules of docs/scan.md.")
    for n, finding in enumerate(document.findings, 1):
        parts += [
            f"### {n}. {_cell(finding.what)} ({finding.severity})",
            f"- where: {_cell(finding.where)}\n- how big: {number(finding.value)} {finding.unit}\n"
            f"- why it matters: {finding.why}\n- rule: `{finding.rule}`: {finding.threshold} ({finding.source})",
            f"```python\n{finding.look.strip()}\n```",
        ]
    parts.append("## Measurements")
    rows = ["| measurement | state | rows | tokens |", "|---|---|---:|---:|"]
    for m in document.measurements:
        state = m.state if m.reason is None else f"{m.state}: {_cell(m.reason)}"
        rows.append(f"| {m.title} | {state} | {_count(m.rows)} | {_count(m.tokens)} |")
    parts.append("\n".join(rows))
    versions = ", ".join(f"{name} {version}" for name, version in document.versions.items() if version)
    parts.append(
        f"Model {document.model.fingerprint[:16]}, input {document.data.fingerprint[:16]}, seed "
        f"{document.seed}; {versions}."
    )
    return "\n\n".join(parts) + "\n"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _cell(text: str) -> str:
    """Text that stays in its cell or heading."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
