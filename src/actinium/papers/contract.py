"""What a reproduction says: the paper with its claim, and the evidence that was measured."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actinium.core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from rich.console import RenderableType

    from actinium.core.result import Result

__all__ = ["Evidence", "Paper", "claims_of", "verdict_of"]

Scalar = bool | int | float | str
VERDICTS = {
    True: "holds at this scale",
    False: "not shown at this scale",
    None: "cannot be judged at this scale",
}


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A published system.

    Args:
        number: place in the list of systems, from 1.
        slug: short name in lower case with hyphens.
        name: the system's common name.
        title: title of the paper.
        authors: authors, or the first of them with "et al.".
        year: year of the first public version.
        url: address of the paper.
        room: room of Actinium that holds the method.
        claim: what its reproduction examines, in one or two sentences; empty in the catalogue.
    """

    number: int
    slug: str
    title: str
    authors: str
    year: int
    url: str
    room: str
    claim: str = ""
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one run of a reproduction measured, beside what the paper claims.

    Args:
        measured: names (with units where there are any) and values; numbers are finite.
        claimed: what the paper reports, with its numbers and its scale.
        holds: whether the measured numbers show the claim; None where this scale cannot decide it.
        notes: what differs from the paper's experiment and what the reader should know.
        result: the labelled values behind the numbers.
        settings: seed, model, sample sizes: what the same numbers need again.
        paper: the paper; `actinium.papers.reproduce` fills it in.

    Raises:
        InputError: nothing was measured, a number is not finite, or `holds` is neither a bool nor None.
    """

    measured: Mapping[str, Scalar]
    claimed: str
    holds: bool | None
    notes: str = ""
    result: Result | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper: Paper | None = None

    def __post_init__(self) -> None:
        if not self.measured:
            raise InputError("evidence without a measured number")
        plain = {name: _scalar(name, value) for name, value in self.measured.items()}
        object.__setattr__(self, "measured", plain)
        holds = self.holds if self.holds is None else _scalar("holds", self.holds)
        if holds is not None and not isinstance(holds, bool):
            raise InputError(f"holds is True, False or None, not {self.holds!r}")
        object.__setattr__(self, "holds", holds)

    @property
    def verdict(self) -> str:
        """One of "holds", "not shown" and "cannot be judged", each followed by "at this scale"."""
        return VERDICTS[self.holds]

    def table(self) -> pd.DataFrame:
        """One row per measured value: columns `quantity` and `value`."""
        import pandas as pd

        return pd.DataFrame({"quantity": list(self.measured), "value": list(self.measured.values())})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the result behind the numbers.

        Raises:
            InputError: the evidence holds numbers only.
        """
        if self.result is None:
            raise InputError("this evidence holds numbers only, there is nothing to draw; see table()")
        return self.result.plot(ax=ax)

    def record(self) -> dict[str, Any]:
        """Everything but `result`, as plain values that JSON can hold."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("result", "paper")}
        paper = dataclasses.asdict(self.paper) if self.paper else None
        return facts | {"measured": dict(self.measured), "settings": dict(self.settings), "paper": paper}

    def save(self, folder: str | Path) -> Path:
        """Write `evidence.json` and, where there is a result, `result.zarr`; returns the folder.

        Raises:
            InputError: the folder cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.record(), indent=2, ensure_ascii=False, default=str)
            (folder / "evidence.json").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write to {folder}: {error.strerror}") from error
        if self.result is not None:
            self.result.save(folder / "result.zarr")
        return folder

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        colour = {True: "green", False: "yellow", None: "cyan"}[self.holds]
        parts: list[RenderableType] = []
        if self.paper:
            p = self.paper
            parts += [
                Text(f"{p.number:03d} {p.title}", style="bold"),
                Text(f"{p.authors}, {p.year}. {p.url}", style="dim"),
            ]
            parts += [Text.assemble(("examined  ", "bold"), p.claim)]
        parts.append(Text.assemble(("claimed   ", "bold"), self.claimed))
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        table.add_column("measured")
        table.add_column("value", justify="right")
        for name, value in self.measured.items():
            table.add_row(Text(name), Text(_shown(value)))
        parts += [
            Text(),
            table,
            Text(),
            Text.assemble(("verdict   ", "bold"), (self.verdict, f"bold {colour}")),
        ]
        if self.notes:
            parts.append(Text.assemble(("notes     ", "bold"), self.notes))
        if self.settings:
            parts.append(Text(", ".join(f"{k}={v}" for k, v in self.settings.items()), style="dim"))
        return Group(*parts)

    def markdown(self) -> str:
        """The evidence as a Markdown fragment: claim, table, verdict, notes and settings."""
        lines = ["| measured | value |", "|---|---:|"]
        for name, value in self.measured.items():
            cells = (text.replace("|", "\\|") for text in (name, _shown(value)))
            lines.append(f"| {' | '.join(cells)} |")
        parts = [
            f"**Claimed.** {self.claimed}",
            "\n".join(lines),
            f"**Verdict.** {self.verdict[0].upper()}{self.verdict[1:]}.",
        ]
        if self.notes:
            parts.append(f"**Notes.** {self.notes}")
        if self.settings:
            parts.append("**Settings.** " + ", ".join(f"{k} = `{v}`" for k, v in self.settings.items()))
        return "\n\n".join(parts) + "\n"


def verdict_of(parts: Mapping[str, bool | None]) -> bool | None:
    """Whether a claim of several parts holds: not where one fails, undecided where one cannot be judged."""
    if any(shown is not None and not shown for shown in parts.values()):
        return False
    return None if any(shown is None for shown in parts.values()) else True


def claims_of(parts: Mapping[str, bool | None]) -> dict[str, Scalar]:
    """The parts of a claim as rows of what was measured."""
    return {f"claim: {name}": "not judged" if shown is None else bool(shown) for name, shown in parts.items()}


def _shown(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _scalar(name: str, value: Any) -> Scalar:
    if hasattr(value, "item"):  # numpy and torch scalars
        value = value.item()
    if not isinstance(value, (bool, int, float, str)):
        raise InputError(f"measured value {name!r} is a number, a bool or a text, not {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"measured value {name!r} is {value}")
    return value
