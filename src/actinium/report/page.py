"""The report as one HTML page: styles and figures inside, nothing to load."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actinium.report.figures import svg
from actinium.report.measurements import MEASUREMENTS, SIGNAL
from actinium.report.schema import Document, Finding, Measurement
from actinium.report.shown import number, sample_line, sentence

if TYPE_CHECKING:
    from actinium.core.result import Result
    from actinium.report.document import Report

__all__ = ["page"]

STYLE = Path(__file__).with_name("page.css")
SIDE_BY_SIDE = 3  # entries of another dimension that become columns of one table
MOST_ROWS = 200  # of a table in the page; the JSON has all
ABOUT = {m.name: m.about for m in (*MEASUREMENTS, SIGNAL)}


def page(report: Report) -> str:
    """The whole page."""
    document = report.document
    title = f"Check-up of {document.model.name}"
    topics = [m for m in document.measurements if m.state == "done"]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>",
        _header(document),
        f"<h2>Findings</h2>{_findings(document)}",
        "<h2>Measurements</h2><nav>",
        *(f'<a href="#{m.name}">{escape(m.title)}</a>' for m in topics),
        "</nav>",
        *(_topic(m, report.results[m.name]) for m in topics),
        _left_out(document),
        _footer(document),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _header(document: Document) -> str:
    model, data = document.model, document.data
    cells = {"architecture": model.family or model.module, "kind": model.kind, "parameters": f"{model.parameters:,}"}
    if model.layers:
        cells |= {"blocks": str(model.layers), "width": str(model.d_model), "heads": str(model.heads)}
    if model.context:
        cells["context"] = f"{model.context:,}"
    cells["run in"] = f"{model.dtype}, {model.device}"
    prediction = next((m for m in document.measurements if m.name == "prediction" and m.state == "done"), None)
    if prediction is not None:
        cells["loss on this text"] = f"{number(prediction.variables['loss'].values)} nats"
        cells["perplexity"] = number(prediction.variables["perplexity"].values)
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in cells.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in [*model.notes, *data.notes])
    banner = ""
    if document.state == "interrupted":
        done = sum(m.state == "done" for m in document.measurements)
        banner = (
            f'<p class="banner"><b>Interrupted.</b> {done} of {len(document.measurements)} measurements were made '
            "before; the rest is missing.</p>"
        )
    return (
        f'<p class="eyebrow">Actinium check-up</p><h1>{escape(model.name)}</h1>'
        f'<p class="soft">{escape(sentence(sample_line(document)))}</p><dl class="facts">{facts}</dl>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + banner
    )


def _findings(document: Document) -> str:
    if not document.findings:
        return '<p class="finding note">Nothing stands out by the rules of docs/scan.md.</p>'
    return "\n".join(map(_finding, document.findings))


def _finding(finding: Finding) -> str:
    rule = f"{finding.rule}: {finding.threshold} ({finding.source})"
    return (
        f'<article class="finding {finding.severity}"><div class="row"><div class="lead">'
        f'<span class="tag">{finding.severity}</span><h3>{escape(finding.what)}</h3>'
        f'<div class="where">{escape(finding.where)}</div></div>'
        f'<div class="size"><div class="big">{escape(number(finding.value))}</div>'
        f'<div class="soft">{escape(finding.unit)}</div></div></div>'
        f"<p>{escape(finding.why)}</p>"
        f"<details><summary>Look closer</summary><pre>{escape(finding.look.strip())}</pre>"
        f'<p class="soft">Rule {escape(rule)}. '
        f'See <a href="#{finding.measurement}">the measurement</a>.</p></details></article>'
    )


def _topic(measurement: Measurement, result: Result) -> str:
    parts = [f'<section class="topic" id="{measurement.name}"><h3>{escape(measurement.title)}</h3>']
    parts.append(f'<p class="soft">{escape(ABOUT[measurement.name])}</p>')
    parts += [f'<p class="soft">Note: {escape(note)}</p>' for note in measurement.notes]
    parts.append(_figure(measurement.name, result))
    parts.append(_plainly(measurement))
    single = [(n, v.values) for n, v in measurement.variables.items() if not v.dims]
    if single:
        cells = (f"{escape(n.replace('_', ' '))} <b>{escape(number(v))}</b>" for n, v in single)
        parts.append(f'<p class="numbers">{" &#183; ".join(cells)}</p>')
    table = _table(measurement)
    read = f"{measurement.rows:,} rows" + (f", {measurement.tokens:,} tokens" if measurement.tokens else "")
    method = f"{measurement.method}, {read}"
    if table:
        parts.append(f"<details><summary>Numbers ({escape(method)})</summary><div class=scroll>{table}</div></details>")
    else:
        parts.append(f'<p class="soft">{escape(method)}</p>')
    return "".join(parts) + "</section>"


def _plainly(measurement: Measurement) -> str:
    """One sentence where there is nothing to draw because nothing is wrong."""
    values = {n: v.values for n, v in measurement.variables.items()}
    said = ""
    if measurement.name == "finite":
        sites = len(values["nan"])  # type: ignore[arg-type]
        bad = sum(map(bool, values["nan"])) + sum(map(bool, values["inf"]))  # type: ignore[arg-type]
        said = "" if bad or values["weight_nan"] else f"None at {sites} sites, none in the weights."
    elif measurement.name == "dead" and not any(values["quiet"]):  # type: ignore[arg-type]
        everywhere = all(f is None or f == 1 for row in values["frequency"] for f in row)  # type: ignore
        said = "No unit is ever exactly zero, and none is quiet." if everywhere else ""
    elif measurement.name == "saturated" and not any(values["saturated"]):  # type: ignore[arg-type]
        said = "No unit is."
    elif measurement.name == "zeros" and not any(values["sparsity"]):  # type: ignore[arg-type]
        said = "No output of a non-linearity is exactly zero."
    return f"<p>{said}</p>" if said else ""


def _figure(name: str, result: Result) -> str:
    try:
        return svg(name, result) or ""
    except Exception as error:  # numbers that were hours in the making must not be lost to a drawing
        return f'<p class="warning tag">The figure could not be drawn: {escape(f"{type(error).__name__}: {error}")}</p>'


def _columns(measurement: Measurement, dim: str) -> dict[str, list[Any]]:
    """The variables along `dim`; one with a short dimension before it gives a column for each of its entries."""
    columns: dict[str, list[Any]] = {}
    for name, variable in measurement.variables.items():
        values: Any = variable.values
        if variable.dims == [dim]:
            columns[name] = values
        elif len(variable.dims) == 2 and variable.dims[1] == dim and len(values) <= SIDE_BY_SIDE:
            other = measurement.coords.get(variable.dims[0])
            labels: Any = other.values if other is not None else range(len(values))
            columns |= {f"{name}, {variable.dims[0]} {label}": row for label, row in zip(labels, values, strict=True)}
    return columns


def _table(measurement: Measurement) -> str:
    """What was measured along the depth, one row for each layer."""
    dims = [d for v in measurement.variables.values() for d in v.dims]
    dim = next((d for d in ("layer", "site", "class", *dims) if d in dims), None)
    columns = _columns(measurement, dim) if dim is not None else {}
    if dim is None or not columns:
        return ""
    length = len(next(iter(columns.values())))
    labels: Any = measurement.coords[dim].values if dim in measurement.coords else range(length)
    head = "".join(f"<th>{escape(c)}</th>" for c in (dim, *columns))
    rows = []
    for i in range(min(length, MOST_ROWS)):
        cells = [labels[i], *(values[i] for values in columns.values())]
        rows.append("<tr>" + "".join(f"<td>{escape(number(c))}</td>" for c in cells) + "</tr>")
    more = f"<p class=soft>{length - MOST_ROWS} more in the JSON file</p>" if length > MOST_ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>{more}"


def _left_out(document: Document) -> str:
    rows = [m for m in document.measurements if m.state != "done"]
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{escape(m.title)}</td><td class=text>{m.state}</td><td class=text>{escape(m.reason or '')}</td></tr>"
        for m in rows
    )
    return f'<h2>Not measured</h2><section class="topic"><div class="scroll"><table>{body}</table></div></section>'


def _footer(document: Document) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in document.versions.items() if version)
    return (
        f"<footer><p>These inputs again:</p><pre>{escape(document.setup.strip())}</pre>"
        f"<p>Model {document.model.fingerprint[:16]}, input {document.data.fingerprint[:16]}, seed {document.seed}; "
        f"{escape(versions)}. Every number is in report.json; rules, limits and sources are in docs/scan.md.</p>"
        "</footer>"
    )
