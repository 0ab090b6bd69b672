"""What a sweep over sites and strengths found: its Pareto front, and the best cell under a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.result import Result

__all__ = ["Choice", "Sweep"]

COSTS = ("perplexity_ratio", "worst_accuracy_lost", "text_kl", "kl")
"""Measures that count as costs where a sweep has them, in the order in which one is chosen by default."""


class Choice(Result):
    """One cell of a sweep, with the rule that chose it in `provenance["rule"]`."""

    @property
    def site(self) -> str:
        """Where to steer."""
        return str(self.data.coords["site"].item())

    @property
    def strength(self) -> float:
        """How strongly."""
        return float(self.data.coords["strength"])


class Sweep(Result):
    """Measures over site and strength; the score comes first."""

    def pareto(self, score: str | None = None, costs: Sequence[str] | None = None) -> pd.DataFrame:
        """The cells of which no other has a score as high at costs as low, with one of them better.

        Args:
            score: a measure; the first one by default.
            costs: measures of which less is better; of those of `COSTS` that were measured the first two by default.

        Returns:
            one row per cell, by falling score: site, strength, score and costs. Strength 0 stands at one site alone.

        Raises:
            UnknownNameError: there is no such measure.
            InputError: there is no cost, or no finished cell.
        """
        name, cells = self._cells(score)
        # The unsteered model is the same at every site.
        cells = cells[(cells["strength"] != 0) | (cells["site"] == cells["site"].iloc[0])].reset_index(drop=True)
        chosen = [c for c in COSTS if c in cells][:2] if costs is None else list(costs)
        for cost in chosen:
            self._known(cost, cells)
        if not chosen:
            raise InputError("no cost was measured; pass texts, tasks or prompts to the sweep")
        values = cells[[*chosen]].to_numpy()
        gain = cells[name].to_numpy()
        kept = []
        for i in range(len(cells)):
            as_good = (gain >= gain[i]) & (values <= values[i]).all(1)
            better = (gain > gain[i]) | (values < values[i]).any(1)
            kept.append(not bool((as_good & better).any()))
        front: pd.DataFrame = cells.loc[kept, ["site", "strength", name, *chosen]]
        return front.sort_values(name, ascending=False, kind="stable", ignore_index=True)

    def best(
        self,
        score: str | None = None,
        *,
        at_most: Mapping[str, float] | None = None,
        at_least: Mapping[str, float] | None = None,
    ) -> Choice:
        """The cell with the highest score among those within limits; of equal ones the weakest.

        Args:
            score: a measure; the first one by default.
            at_most: {measure: limit}, for example {"perplexity_ratio": 1.1}.
            at_least: {measure: limit}, for example {"entropy": 1.0}.

        Returns:
            Choice, whose provenance holds the rule.

        Raises:
            UnknownNameError: there is no such measure.
            InputError: no cell is within the limits; the message says how near they come.
        """
        name, cells = self._cells(score)
        inside = np.ones(len(cells), dtype=bool)
        for limits, sign in ((at_most, 1.0), (at_least, -1.0)):
            for measure, limit in (limits or {}).items():
                self._known(measure, cells)
                within = (sign * cells[measure] <= sign * limit).to_numpy()
                if not within.any():
                    near = float((sign * cells[measure]).min() * sign)
                    word = "at most" if sign > 0 else "at least"
                    raise InputError(f"no cell has {measure} of {word} {limit:g}; the nearest has {near:.4g}")
                inside &= within
        if not inside.any():
            raise InputError("no cell is within all limits at once; see pareto()")
        allowed = cells[inside]
        top = allowed[allowed[name] >= allowed[name].max()]
        row = top.iloc[int(top["relative_norm"].to_numpy().argmin())]
        rule = {"highest": name, "at_most": dict(at_most or {}), "at_least": dict(at_least or {})}
        data = self.data.sel(site=row["site"], strength=row["strength"]).drop_attrs()
        return Choice(data, "best", self.paper, {**self.provenance, "rule": rule})

    def _cells(self, score: str | None) -> tuple[str, pd.DataFrame]:
        """The score's name, and one row for each finished cell with its measures."""
        grid = self.data.drop_vars([v for v in self.data.data_vars if self.data[v].dims != ("site", "strength")])
        flat = grid.drop_vars([c for c in grid.coords if c not in ("site", "strength")])
        cells = flat.to_dataframe().reset_index()
        name = str(next(iter(grid.data_vars))) if score is None else score
        self._known(name, cells)
        cells = cells[cells[name].notna()]
        if not len(cells):
            raise InputError("no cell of this sweep is finished")
        return name, cells.reset_index(drop=True)

    def _known(self, name: str, cells: pd.DataFrame) -> None:
        measures = [c for c in cells.columns if c not in ("site", "strength")]
        if name not in measures:
            raise UnknownNameError(unknown("measure of this sweep", name, measures))
