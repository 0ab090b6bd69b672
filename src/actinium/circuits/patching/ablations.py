"""What is put in the place of an activation that is taken away."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actinium.core.edits import Add, Edit, ProjectOut
from actinium.core.errors import InputError, SiteError, unknown
from actinium.core.inputs import Tokens
from actinium.core.task import Task

__all__ = ["ABLATIONS", "ActivationNoise", "Directional", "all_prompts"]

ABLATIONS = ("resample", "zero", "mean", "gaussian")
"""Ablations that need no more than their name."""


def all_prompts(tasks: Iterable[Task]) -> Tokens:
    """Clean and corrupt prompts of all tasks, padded on the left: a reference that tells none of them apart."""
    parts = [task.prompts(corrupt) for task in tasks for corrupt in (False, True)]
    width = max(part.mask.shape[1] for part in parts)
    ids, mask = (
        torch.cat([torch.nn.functional.pad(t, (width - t.shape[1], 0)) for t in tensors])
        for tensors in ([p.ids for p in parts], [p.mask for p in parts])
    )
    return Tokens(ids, mask, torch.arange(len(ids)))


@dataclass(frozen=True, eq=False)
class ActivationNoise:
    """Gaussian noise on the activation itself.

    Args:
        k: standard deviation of the noise in units of `sigma`, above 0.
        sigma: "auto" (standard deviation of the site's own activations over the prompts run together, one for
            each unit), or a number.
        draws: independent draws; metrics are averaged over them.

    Raises:
        InputError: `k` or `sigma` is not above 0, or there is no draw.
    """

    k: float = 1.0
    sigma: float | str = "auto"
    draws: int = 5

    def __post_init__(self) -> None:
        if not self.k > 0:
            raise InputError(f"noise of k = {self.k} leaves the run as it is; k must be above 0")
        if self.sigma != "auto" and (isinstance(self.sigma, str) or not self.sigma > 0):
            raise InputError(f"sigma must be 'auto' or a number above 0, not {self.sigma!r}")
        if self.draws < 1:
            raise InputError(f"draws must be at least 1, not {self.draws}")

    def edit(self, site: str, own: Tensor, real: Tensor | None, place: tuple[slice, int], seed: int) -> Edit:
        """The noise at a site.

        Args:
            site: its name, which has noise of its own.
            own: the site's activations (batch, ...).
            real: (batch, pos) bool, False on padding; None where the site has no positions.
            place: the rows of the task that the batch holds, and how many there are; batches do not change a draw.
            seed: of the draw.
        """
        if isinstance(self.sigma, str):
            values = own.flatten(0, -2) if real is None else own[real].flatten(0, -2)
            sigma: Any = values.float().std(0, correction=0).to(own)
        else:
            sigma = self.sigma
        rows, total = place
        # Generators on the CPU use 32 bits of a seed.
        random = torch.Generator().manual_seed(zlib.crc32(f"{site} {seed}".encode()))
        return Add(torch.randn((total, *own.shape[1:]), generator=random)[rows].to(own) * self.k * sigma)


@dataclass(frozen=True, eq=False)
class Directional:
    """The part of an activation that lies in the span of given directions is removed.

    Args:
        directions: (d,) or (k, d) for every site, or {site: (d,) or (k, d)}; of any length, not all zero.

    Source: Arditi et al., 2024, equation 4 (directional ablation).
    """

    directions: Tensor | Mapping[str, Tensor]

    def edit(self, site: str) -> Edit:
        """The projection at a site.

        Raises:
            SiteError: no direction is given for the site.
        """
        if not isinstance(self.directions, Mapping):
            return ProjectOut(self.directions)
        if site not in self.directions:
            raise SiteError(unknown("direction for the site", site, self.directions))
        return ProjectOut(self.directions[site])
