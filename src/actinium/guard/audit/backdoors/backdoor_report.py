"""What an examination for a backdoor found: the class, the trigger, where it acts, and what its removal changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from actinium.core.fitted import opened, write_fitted
from actinium.core.result import Result
from actinium.guard.audit.backdoors.trigger_inversion import InvertedTrigger

__all__ = ["BackdoorReport"]

KIND = "backdoor report"


@dataclass(frozen=True, eq=False)
class BackdoorReport:
    """Findings of `InverTune`.

    Args:
        target: number of the class that the backdoor calls for.
        trigger: mask and trigger that were found for it.
        clean, patched: shares (class,) of clean images, and of those with a universal patch, that go to each class;
            empty where the target was given.
        candidates: by tried class, sum of its mask in pixels and success of its trigger.
        impacts: by site, how much the trigger moves it.
        neurons: by aligned site, a mask (...) bool.
        before, after: clean accuracy ("CA"), success of the found trigger ("ASR, found trigger") and of a known one
            ("ASR"), as far as they could be measured, before and after the tuning.
        classes: names of the classes.
        provenance: see `actinium.core.provenance`.
    """

    target: int
    trigger: InvertedTrigger
    clean: Tensor
    patched: Tensor
    candidates: dict[int, tuple[float, float]]
    impacts: dict[str, float]
    neurons: dict[str, Tensor]
    before: dict[str, float]
    after: dict[str, float]
    classes: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """One row per measure: before, after and their difference."""
        frame = pd.DataFrame({"before": self.before, "after": self.after})
        frame["change"] = frame["after"] - frame["before"]
        return frame.rename_axis("measure").reset_index()

    def scores(self) -> pd.DataFrame:
        """One row per class: shares of clean and patched images in percent, and mask and success if it was tried."""
        rows = []
        for k, name in enumerate(self.classes):
            row: dict[str, Any] = {"class": k, "name": name}
            if len(self.clean):
                clean, patched = 100 * float(self.clean[k]), 100 * float(self.patched[k])
                row |= {"clean %": clean, "patched %": patched, "increase %": patched - clean}
            if k in self.candidates:
                row |= {"mask, pixels": self.candidates[k][0], "success": self.candidates[k][1]}
            rows.append(row)
        return pd.DataFrame(rows)

    def result(self) -> Result:
        """The layers' impacts and numbers of aligned neurons, to draw and save."""
        sites = list(self.impacts)
        counts = [int(self.neurons[s].sum()) if s in self.neurons else 0 for s in sites]
        data = xr.Dataset(
            {"impact": ("site", list(self.impacts.values())), "aligned": ("site", np.array(counts))},
            {"site": sites},
            {"plot": {"variables": ["impact"], "ylabel": "relative change by the trigger"}},
        )
        return Result(data, "InverTune", "invertune", dict(self.provenance))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to one safetensors file.

        Raises:
            InputError: the file cannot be written.
        """
        neurons = {f"neurons.{i}": mask for i, mask in enumerate(self.neurons.values())}
        own = {"mask": self.trigger.mask, "trigger": self.trigger.trigger, "losses": self.trigger.losses}
        shares = {"clean": self.clean, "patched": self.patched}
        return write_fitted(
            path,
            KIND,
            own | shares | neurons,
            {},
            target=self.target,
            success=self.trigger.success,
            candidates=[[k, *values] for k, values in self.candidates.items()],
            impacts=self.impacts,
            aligned=list(self.neurons),
            before=self.before,
            after=self.after,
            classes=list(self.classes),
            provenance=dict(self.provenance),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BackdoorReport:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged, or holds something else.
        """
        with opened(path, KIND) as (about, held):
            own = (held["mask"], held["trigger"], about["success"], held["losses"])
            return cls(
                about["target"],
                InvertedTrigger(about["target"], *own),
                held["clean"],
                held["patched"],
                {int(k): (size, success) for k, size, success in about["candidates"]},
                about["impacts"],
                {site: held[f"neurons.{i}"].to(torch.bool) for i, site in enumerate(about["aligned"])},
                about["before"],
                about["after"],
                tuple(about["classes"]),
                about["provenance"],
            )
