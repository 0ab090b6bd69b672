"""A vector for each site: read from texts or given activations, projected on, added by edits, saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.edits import Add, Edit
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.fitted import SavedEstimator, State
from actinium.core.model import Model
from actinium.core.recording import Recording
from actinium.core.sites import select
from actinium.probes.positions import activations_at, as_places, pick
from actinium.probes.rows import as_rows, tensor_of

__all__ = ["SiteVectors", "check_pairs", "site_activations"]

Floats = NDArray[np.float64]


class SiteVectors(SavedEstimator):
    """What all reading vectors share: a vector for each site, projections, edits and files.

    A subclass says what it is `saved_as`, and finds the vector of one site in `_found`.
    """

    fitted = "directions_"
    pairs = True
    sites: str | Sequence[str]
    position: Any

    def fit(
        self, source: Model | None, positive: Any, negative: Any = None, *, batch_size: int = 64, progress: bool = False
    ) -> Self:
        """Find the vectors.

        Args:
            source: the model that reads the texts; None where activations are given.
            positive: texts that show the state (for example question and right answer); or activations, as a
                Recording or {site: (n, d)}.
            negative: as many that do not, each the partner of the positive one in its place.
            batch_size: texts in a pass.
            progress: show a progress bar.

        Raises:
            InputError: negatives are missing or not wanted, numbers differ, there are too few, or a vector is zero.
            SiteError: a site does not exist.
        """
        self._check()
        if self.pairs and negative is None:
            raise InputError(f"{type(self).__name__} contrasts two kinds of texts: give negative ones, too")
        if not self.pairs and negative is not None:
            raise InputError(f"{type(self).__name__} reads one kind of texts; to contrast two take another vector")
        options = {"batch_size": batch_size, "progress": progress}
        up = site_activations(source, positive, self.sites, self.position, **options)
        down = None if negative is None else site_activations(source, negative, self.sites, self.position, **options)
        if down is not None:
            check_pairs(up, down)
        self.directions_ = {}
        self.means_ = {}
        for site, rows in up.items():
            other = None if down is None else down[site]
            vector = self._found(rows, other)
            if not np.linalg.norm(vector) > 1e-12:
                raise InputError(f"{site}: the vector is zero; the two kinds of texts do not differ there")
            self.directions_[site] = tensor_of(vector)
            self.means_[site] = tensor_of((rows if other is None else np.concatenate([rows, other])).mean(0))
        return self

    def _check(self) -> None:
        as_places(self.position)

    def _found(self, positive: Floats, negative: Floats | None) -> Floats:
        raise TypeError(f"{type(self).__name__} must define _found()")

    def __getitem__(self, site: str) -> Tensor:
        """The vector of a site, (d,) float64.

        Raises:
            InputError: not fitted.
            UnknownNameError: there is none for the site.
        """
        self.check_fitted()
        if site not in self.directions_:
            raise UnknownNameError(unknown("vector for the site", site, self.directions_))
        return self.directions_[site]

    def score_samples(self, activations: Any, site: str) -> Floats:
        """Reading scores (n,) = (x - mean) . r / |r| of activations (n, d); the mean is that of all fitted texts.

        Raises:
            InputError: not fitted, or the activations do not fit.
            UnknownNameError: there is no vector for the site.
        """
        r = self[site].numpy()
        rows = as_rows(activations, site, len(r))
        return (rows - self.means_[site].numpy()) @ (r / np.linalg.norm(r))

    def edits(self, scale: float = 1.0, sites: str | Sequence[str] | None = None) -> dict[str, Edit]:
        """Edits for `model.edit` that add `scale` times the vector at its site, at every position.

        Args:
            scale: strength; below 0 for the other way.
            sites: names, all fitted ones by default.

        Raises:
            InputError: not fitted.
            UnknownNameError: there is no vector for a site.
        """
        self.check_fitted()
        names = list(self.directions_) if sites is None else [sites] if isinstance(sites, str) else list(sites)
        return {name: Add(self[name].float(), scale) for name in names}

    def _state(self) -> State:
        tensors = {f"direction:{name}": v for name, v in self.directions_.items()}
        tensors |= {f"mean:{name}": v for name, v in self.means_.items()}
        return tensors, {"names": list(self.directions_)}

    def _restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        self.directions_ = {name: tensors[f"direction:{name}"] for name in about["names"]}
        self.means_ = {name: tensors[f"mean:{name}"] for name in about["names"]}


def site_activations(
    source: Model | None, given: Any, sites: str | Sequence[str], position: Any, *, batch_size: int, progress: bool
) -> dict[str, Floats]:
    """Activations (n, d) by site."""
    (label,) = as_places(position)
    if source is None:
        if isinstance(given, Recording):
            patterns = [sites] if isinstance(sites, str) else list(sites)
            names = [name for one in patterns for name in select(one, given.values, given.n_layers)]
            return {name: as_rows(pick(given[name], given.mask, position, name), name) for name in names}
        if not isinstance(given, Mapping) or not given:
            raise InputError("without a model give activations: a Recording or {site: (n, d)}")
        patterns = [sites] if isinstance(sites, str) else list(sites)
        names = [name for one in patterns for name in select(one, given, 0)]
        return {name: as_rows(given[name], name) for name in names}
    if isinstance(given, Sequence) and not isinstance(given, str) and not len(given):
        raise InputError("no texts given")
    found = activations_at(source, given, sites, {label: position}, batch_size=batch_size, progress=progress)
    return {site: as_rows(values, site) for (site, _), values in found.items()}


def check_pairs(up: Mapping[str, Floats], down: Mapping[str, Floats]) -> None:
    """Refuse two kinds of activations that are no pairs: other sites, or other shapes."""
    for site, rows in up.items():
        if site not in down or down[site].shape != rows.shape:
            got = down[site].shape if site in down else "nothing"
            raise InputError(f"{site}: positive texts give {rows.shape}, negative ones {got}; pairs need one shape")
