"""The finished report: its data, its results, and how it prints and saves itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from actinium.core.errors import InputError
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.report import schema
from actinium.report.rules.rule import SEVERITIES, Evidence, Rule
from actinium.report.rules.table import RULES
from actinium.report.sample import Sample
from actinium.report.schema import Finding
from actinium.report.shown import sentence
from actinium.store.stored import StoredModel

if TYPE_CHECKING:
    from rich.console import RenderableType

    from actinium.report.checkup import Outcome

__all__ = ["FORMATS", "NAMES", "Report", "judge"]

FORMATS = ("html", "json", "md")
NAMES = {"html": "report.html", "json": "report.json", "md": "report.md"}


@dataclass(eq=False, repr=False)
class Report:
    """A check-up.

    Attributes:
        document: everything in it, as the JSON file holds it.
        results: the Result of each measurement that is done, by its name.
        files: the files that were written, the HTML first.
    """

    document: schema.Document
    results: dict[str, Result]
    files: list[Path] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        model: Model,
        sample: Sample,
        outcomes: Sequence[Outcome],
        *,
        source: Any,
        seed: int,
        interrupted: bool,
        said: Sequence[str] = (),
    ) -> Self:
        """Put together what was measured.

        Args:
            model, sample: what was read, and with what.
            outcomes: of the measurements.
            source: what the model was loaded from.
            seed: of the draw.
            interrupted: whether Ctrl-C ended it.
            said: what was said while the model was loaded.
        """
        results = {o.measurement.name: o.result for o in outcomes if o.result is not None}
        loading = f"ac.load({_argument(source)})"
        if isinstance(model, StoredModel):
            loading = f"ac.store.StoredModel(ac.store.open({str(source)!r}))"
        setup = f"import actinium as ac\n\nmodel = {loading}\ninputs = {sample.call}\n"
        record = provenance(model, sample.inputs, seed)
        document = schema.Document(
            state="interrupted" if interrupted else "complete",
            model=model_facts(model, said),
            data=data_facts(sample, record["inputs"]),
            versions=record["versions"],
            seed=seed,
            setup=setup,
            findings=judge(results, model, sample, setup),
            measurements=[_measurement(o) for o in outcomes],
        )
        return cls(document, results)

    @property
    def findings(self) -> list[Finding]:
        """What stands out, the most important first."""
        return self.document.findings

    def to_json(self) -> str:
        """The report as strict JSON, see `schema.json`."""
        return self.document.to_json()

    def to_html(self) -> str:
        """The report as one HTML page that loads nothing."""
        from actinium.report.page import page

        return page(self)

    def to_markdown(self) -> str:
        """The findings and the measurements in short, as Markdown."""
        from actinium.report.markdown import markdown

        return markdown(self.document)

    def save(self, out: str | os.PathLike[str], formats: Sequence[str] = FORMATS) -> list[Path]:
        """Write `report.html`, `report.json` and `report.md`, each whole or not at all.

        Raises:
            InputError: the folder cannot be written.
        """
        folder = Path(out)
        # What takes no drawing first: should the page fail, the numbers are safe.
        makers = {"json": self.to_json, "md": self.to_markdown, "html": self.to_html}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (n for n in makers if n in formats):
                path = folder / NAMES[name]
                part = path.with_name(f".{path.name}.part")
                try:
                    part.write_text(makers[name](), encoding="utf-8")
                    part.replace(path)
                finally:
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to the folder {str(out)!r}: {error.strerror}") from error
        self.files = [folder / NAMES[name] for name in FORMATS if name in formats]
        return self.files

    def __repr__(self) -> str:
        worst = self.findings[0].severity if self.findings else "nothing stands out"
        return f"Report({self.document.model.name}: {len(self.findings)} findings, {worst})"

    def _repr_html_(self) -> str:
        return self.to_html()

    def __rich__(self) -> RenderableType:
        from actinium.report.terminal import summary

        return summary(self)


def _argument(source: Any) -> str:
    if isinstance(source, os.PathLike):
        return repr(os.fspath(source))
    return repr(source) if isinstance(source, str) else "module"


def model_facts(model: Model, said: Sequence[str] = ()) -> schema.ModelFacts:
    """The header of the report."""
    return schema.ModelFacts(
        name=model.name,
        module=type(model.module).__name__,
        kind=model.kind,
        family=model.family.name if model.family else None,
        parameters=sum(p.numel() for p in model.module.parameters()),
        layers=model.n_layers,
        d_model=model.d_model,
        heads=model.n_heads,
        context=model.context,
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        fingerprint=model.fingerprint(),
        notes=list(said),
    )


def data_facts(sample: Sample, fingerprint: str) -> schema.DataFacts:
    """What the model was read with."""
    return schema.DataFacts(
        source=sample.source,
        kind=sample.kind,  # type: ignore[arg-type]
        used=sample.used,
        available=sample.available,
        rows=sample.rows,
        tokens=sample.tokens,
        fingerprint=fingerprint,
        notes=sample.notes,
    )


def _measurement(outcome: Outcome) -> schema.Measurement:
    measurement, result = outcome.measurement, outcome.result
    data = result.data if result is not None else None
    return schema.Measurement(
        name=measurement.name,
        title=measurement.title,
        state=outcome.state,  # type: ignore[arg-type]
        reason=outcome.reason,
        method=result.method if result is not None else None,
        paper=result.paper if result is not None else None,
        rows=outcome.rows,
        tokens=outcome.tokens,
        settings=result.provenance.get("settings", {}) if result is not None else {},
        notes=outcome.notes,
        coords={} if data is None else {str(k): _variable(v) for k, v in data.coords.items()},
        variables={}
        if data is None
        else {str(k): _variable(v) for k, v in data.data_vars.items() if k not in measurement.omit},
        omitted=[name for name in measurement.omit if data is not None and name in data],
    )


def _variable(array: Any) -> schema.Variable:
    return schema.Variable(dims=[str(d) for d in array.dims], values=schema.plain_values(array.values))


def judge(
    results: dict[str, Result], model: Model, sample: Sample, setup: str, rules: Sequence[Rule] = RULES
) -> list[Finding]:
    """Apply the rules; critical findings first, and in the order of the table within a severity."""
    n = sample.tokens if sample.tokens is not None else sample.rows
    evidence = Evidence(results, model.n_layers, sample.tokens is not None, n)
    findings = []
    for rule in rules:
        if rule.measurement not in results:
            continue
        for found in rule.find(results[rule.measurement], rule.limits, evidence):
            findings.append(
                Finding(
                    rule=rule.name,
                    severity=found.severity or rule.severity,  # type: ignore[arg-type]
                    what=sentence(found.what),
                    where=found.where,
                    value=schema.plain_values(float(found.value)),
                    unit=found.unit,
                    why=found.why or rule.why,
                    look=f"{setup}{found.look}\n",
                    threshold=rule.threshold,
                    source=rule.source,
                    measurement=rule.measurement,
                )
            )
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
