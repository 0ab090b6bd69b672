"""The check-up: measure, judge, write the report."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from actinium.core.errors import ActiniumError, ActiniumWarning, InputError, unknown
from actinium.core.evaluation import evaluating
from actinium.core.loading import load
from actinium.core.model import Model
from actinium.core.result import Result
from actinium.report.document import FORMATS, NAMES, Report
from actinium.report.measurements import MEASUREMENTS, SIGNAL, STORED, Measurement, Plan
from actinium.report.sample import Sample, check_source, of_store, read
from actinium.store.store import Store
from actinium.store.stored import StoredModel

__all__ = ["Interrupted", "Outcome", "check_folder", "scan"]

PACKAGE = Path(__file__).resolve().parents[1]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during the check-up; `report` holds what was measured before."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class Outcome:
    """What became of one measurement.

    Attributes:
        state: "done", "not applicable", "failed" or "not run".
        result: what it found, if it is done.
        reason: why it is not.
        rows, tokens: of the input that it read.
        notes: warnings raised meanwhile.
    """

    def __init__(self, measurement: Measurement) -> None:
        self.measurement, self.state = measurement, "not run"
        self.result: Result | None = None
        self.reason: str | None = "the check-up was interrupted"
        self.rows: int | None = None
        self.tokens: int | None = None
        self.notes: list[str] = []


def scan(
    model: Any = None,
    *,
    store: str | os.PathLike[str] | Store | None = None,
    text: str | os.PathLike[str] | Sequence[str] | None = None,
    data: Any = None,
    dataset: str | None = None,
    out: str | os.PathLike[str] | None = "actinium-report",
    formats: Sequence[str] = FORMATS,
    device: str | torch.device | None = None,
    limit: int | None = None,
    seed: int = 0,
    signal: bool = False,
    progress: bool = True,
) -> Report:
    """Check up on a model's activations and write a report.

    Args:
        model: what `ac.load` takes, or a Model.
        store: instead of a model, a store of its activations (see `ac.store`): what can be measured without running
            the model is.
        text, data, dataset: what to read it with, one of them at most; see `actinium.report.read`.
        out: folder of the report; None writes nothing.
        formats: "html", "json", "md".
        device: where to run; by default where the model is.
        limit: most tokens, images or rows to read; by default from what a pass costs.
        seed: of the draw of documents or images where there are more.
        signal: measure how the signal propagates, too (`ac.signal.signal_propagation_plot`).
        progress: show a progress bar.

    Returns:
        the report; `report.findings`, the most important first, `report.results` by measurement, `report.files`.

    Raises:
        InputError: bad input, refused before anything is measured: no such file, empty text, an input that the
            model does not take, a folder that cannot be written.
        LoadError: the model cannot be loaded.
        Interrupted: on Ctrl-C once something was measured; the report is written with what there is, and is in
            `.report`.
    """
    _check_formats(formats)
    _check_store(model, store, (text, data, dataset, device))
    check_source(text, data, dataset)
    folder = check_folder(out, formats) if out is not None else None
    loaded, said = (StoredModel(_opened(store)), []) if store is not None else _loaded(model, device)
    # Dropout and batch statistics stand still.
    with evaluating(loaded.module):
        sample = (
            of_store(loaded, limit)
            if isinstance(loaded, StoredModel)
            else read(loaded, text=text, data=data, dataset=dataset, limit=limit, seed=seed)
        )
        outcomes = [Outcome(measurement) for measurement in (*MEASUREMENTS, *([SIGNAL] if signal else []))]
        stopped = not _measure_all(outcomes, loaded, sample, progress)
        source = model if store is None else getattr(store, "address", store)
        report = Report.of(loaded, sample, outcomes, source=source, seed=seed, interrupted=stopped, said=said)
    done = sum(outcome.state == "done" for outcome in outcomes)
    if stopped and not done:
        raise KeyboardInterrupt("nothing was measured yet, so there is no report")
    if folder is not None:
        report.save(folder, formats)
    if stopped:
        kept = f"{done} of {len(outcomes)} measurements are kept"
        where = f" in {report.files[0]}" if report.files else ""
        raise Interrupted(kept + where, report)
    return report


def _check_store(model: Any, store: Any, other: tuple[Any, ...]) -> None:
    if (model is None) == (store is None):
        raise InputError("give a model, or a store of its activations")
    if store is not None and any(value is not None for value in other):
        raise InputError("a store holds its own data; text, data, dataset and device are for a model")


def _opened(store: str | os.PathLike[str] | Store) -> Store:
    return store if isinstance(store, Store) else Store(store)


def _loaded(source: Any, device: str | torch.device | None) -> tuple[Model, list[str]]:
    """The model, and what was said while it was loaded (weights that are missing in the file, for example)."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        model = load(source, device=device)
    for warning in heard:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model, _said(heard)


def _said(heard: Sequence[warnings.WarningMessage]) -> list[str]:
    """What this package said among the warnings."""
    return [str(w.message) for w in heard if issubclass(w.category, ActiniumWarning)]


def _check_formats(formats: Sequence[str]) -> None:
    if isinstance(formats, str) or not formats:
        raise InputError(f"formats is a list with some of {', '.join(FORMATS)}, not {formats!r}")
    for name in formats:
        if name not in FORMATS:
            raise InputError(unknown("format", str(name), FORMATS))


def check_folder(out: str | os.PathLike[str], formats: Sequence[str] = FORMATS) -> Path:
    """Make sure that the folder of the report can be written.

    Raises:
        InputError: it cannot be made, is a file, is read-only, or holds a folder where a file has to go.
    """
    folder = Path(out)
    for name in formats:
        if (folder / NAMES[name]).is_dir():
            raise InputError(f"cannot write {str(folder / NAMES[name])!r}: it is a folder")
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    probe = folder / ".actinium-writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write to the folder {str(out)!r}: {error.strerror}") from None
    for path in made:  # the report makes it again; nothing is left behind if the input is refused later
        path.rmdir()
    return folder


def _measure_all(outcomes: list[Outcome], model: Model, sample: Sample, progress: bool) -> bool:
    """Run the measurements one after the other; False if Ctrl-C stopped it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress)
    results: dict[str, Result] = {}
    try:
        with bar:
            task = bar.add_task("measuring", total=len(outcomes))
            for outcome in outcomes:
                bar.update(task, description=outcome.measurement.title)
                _measure(outcome, model, sample, results)
                if outcome.result is not None:
                    results[outcome.measurement.name] = outcome.result
                bar.advance(task)
    except KeyboardInterrupt:
        return False
    return True


def _measure(outcome: Outcome, model: Model, sample: Sample, results: dict[str, Result]) -> None:
    """Run one measurement. What it cannot do is a reason in the report, never the end of the check-up."""
    measurement = outcome.measurement
    if isinstance(model, StoredModel) and measurement.name not in STORED:
        outcome.state, outcome.reason = "not applicable", "it runs the model, and a store holds activations only"
        return
    reason = measurement.unfit(model, sample)
    if reason is not None:
        outcome.state, outcome.reason = "not applicable", reason
        return
    plan = Plan(model, sample, measurement.passes(model, sample), measurement.least, results)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found = measurement.run(plan)
        except ActiniumError as error:
            outcome.state, outcome.reason = "not applicable", str(error)
            return
        except Exception as error:  # a bug in one measurement must not cost the others; it is in the report
            outcome.state, outcome.reason = "failed", _blame(error)
            return
    outcome.state, outcome.reason, outcome.result = "done", None, found
    outcome.rows, outcome.tokens = len(plan.inputs), plan.tokens
    outcome.notes = _said(heard)


def _blame(error: Exception) -> str:
    """The error, and the last line of this package that it went through."""
    place, trace = "", error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            place = f" (actinium/{path.relative_to(PACKAGE).as_posix()}, line {trace.tb_lineno})"
        trace = trace.tb_next
    message = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {message}{place}"
