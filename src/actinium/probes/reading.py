"""Reading vectors: one direction for each site, from texts that show a state and texts that do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.intervals import wilson
from actinium.core.model import Model
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.probes.rows import tensor_of
from actinium.probes.site_vectors import SiteVectors, check_pairs, site_activations

__all__ = [
    "ContrastReadingVector",
    "PCAContrastVector",
    "PCAReadingVector",
    "ReadingVector",
    "RepEReader",
    "pair_accuracy",
]

Floats = NDArray[np.float64]
PAPER = "repe-reasoning"
METHODS = ("pca", "cluster_mean", "random")
BLOCKS = "blocks.*.resid_post"


class ReadingVector(SiteVectors):
    """The mean activation of texts that show a state: c = mean H(P+).

    It is dominated by what all texts have in common (massive entries among them) unless a general mean is subtracted.

    Args:
        sites: names and patterns.
        position: of the token that is read (0 first, -1 last), or "mean".

    Attributes:
        directions_: {site: (d,)}.
        means_: {site: (d,)} of the fitted texts.

    Source: Højer, Jarvis and Heinrich, 2025 (reading vector).
    """

    saved_as = "reading vector"
    pairs = False

    def __init__(self, sites: str | Sequence[str] = BLOCKS, position: int | str = -1) -> None:
        self.sites, self.position = sites, position

    def fit(
        self,
        source: Model | None,
        positive: Any,
        negative: Any = None,
        *,
        general: Any = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Self:
        """Find the vectors; as of the other vectors, but that there are no negative texts.

        Args:
            source, positive, negative, batch_size, progress: as of `ContrastReadingVector.fit`; `negative` is refused.
            general: texts or activations of any number, whose mean is subtracted.

        Raises:
            InputError, SiteError: as there.
        """
        super().fit(source, positive, negative, batch_size=batch_size, progress=progress)
        if general is not None:
            options = {"batch_size": batch_size, "progress": progress}
            for site, rows in site_activations(source, general, self.sites, self.position, **options).items():
                self.directions_[site] = self.directions_[site] - tensor_of(rows.mean(0))
        return self

    def _found(self, positive: Floats, negative: Floats | None) -> Floats:
        return positive.mean(0)


class PCAReadingVector(SiteVectors):
    """The first principal component of the activations of texts that show a state, towards their mean.

    Args:
        sites, position: as in `ReadingVector`.

    Source: Højer, Jarvis and Heinrich, 2025 (library: PCA reading).
    """

    saved_as = "PCA reading vector"
    pairs = False

    def __init__(self, sites: str | Sequence[str] = BLOCKS, position: int | str = -1) -> None:
        self.sites, self.position = sites, position

    def _found(self, positive: Floats, negative: Floats | None) -> Floats:
        axis = _first_component(positive, centred=True)
        return axis if positive.mean(0) @ axis >= 0 else -axis


class ContrastReadingVector(SiteVectors):
    """The mean difference of paired activations: c = mean [H(P+) - H(P-)].

    Args:
        sites, position: as in `ReadingVector`.

    Attributes:
        directions_: {site: (d,)}.
        means_: {site: (d,)} of all fitted texts.

    Source: Højer, Jarvis and Heinrich, 2025 (contrastive reading vector).
    """

    saved_as = "contrast reading vector"

    def __init__(self, sites: str | Sequence[str] = BLOCKS, position: int | str = -1) -> None:
        self.sites, self.position = sites, position

    def _found(self, positive: Floats, negative: Floats | None) -> Floats:
        return positive.mean(0) - negative.mean(0)  # type: ignore[union-attr]


class PCAContrastVector(SiteVectors):
    """The first principal component of paired differences H(P+) - H(P-), turned so that their mean lies along it.

    Centred differences of one fixed order lose their mean, which is what the contrast is about; without centring the
    component keeps it.

    Args:
        sites, position: as in `ReadingVector`.
        centred: subtract the mean difference first, as the paper's library does.
        standardise: multiply the unit vector by the norm of the mean difference.

    Source: Højer, Jarvis and Heinrich, 2025 (PCA); Vogel, 2024, repeng (`pca_diff` centred; `pca_center` is
    the component of differences that are not).
    """

    saved_as = "PCA contrast vector"

    def __init__(
        self,
        sites: str | Sequence[str] = BLOCKS,
        position: int | str = -1,
        *,
        centred: bool = True,
        standardise: bool = False,
    ) -> None:
        self.sites, self.position, self.centred, self.standardise = sites, position, centred, standardise

    def _found(self, positive: Floats, negative: Floats | None) -> Floats:
        difference = positive - negative  # type: ignore[operator]
        axis = _first_component(difference, self.centred)
        mean = difference.mean(0)
        axis = axis if mean @ axis >= 0 else -axis
        return axis * np.linalg.norm(mean) if self.standardise else axis


class RepEReader(SiteVectors):
    """Representation reading: a direction from pairs whose order is shuffled, so that only its sign needs labels.

    Args:
        sites, position: as in `ReadingVector`.
        method: "pca" (first principal component of the shuffled differences, their mean subtracted), "cluster_mean"
            (difference of the two kinds' means), or "random".
        seed: of the shuffling and of "random".

    Attributes:
        directions_: {site: (d,)} unit vectors; most positive texts score above their partners.
        means_: {site: (d,)} of all fitted texts.

    Source: Zou et al., 2023, Representation Engineering, section 3.1 (linear artificial tomography).
    """

    saved_as = "representation reader"

    def __init__(
        self, sites: str | Sequence[str] = BLOCKS, position: int | str = -1, *, method: str = "pca", seed: int = 0
    ) -> None:
        self.sites, self.position, self.method, self.seed = sites, position, method, seed

    def _check(self) -> None:
        super()._check()
        if self.method not in METHODS:
            raise UnknownNameError(unknown("method", str(self.method), METHODS))

    def _found(self, positive: Floats, negative: Floats | None) -> Floats:
        difference = positive - negative  # type: ignore[operator]
        random = np.random.default_rng(self.seed)
        if self.method == "cluster_mean":
            axis = difference.mean(0)
        elif self.method == "random":
            axis = random.normal(size=difference.shape[1])
        else:
            axis = _first_component(difference * random.choice([-1.0, 1.0], size=(len(difference), 1)), centred=True)
        size = np.linalg.norm(axis)
        if not size > 1e-12:
            return axis
        votes = np.sign(difference @ axis).sum()
        # A tie of the pairs is decided by how far they lie apart.
        turned = votes < 0 or (votes == 0 and difference.mean(0) @ axis < 0)
        return (-axis if turned else axis) / size


def pair_accuracy(
    vectors: SiteVectors | Mapping[str, SiteVectors],
    source: Model | None,
    positive: Any,
    negative: Any,
    *,
    level: float = 0.95,
    batch_size: int = 64,
    progress: bool = False,
) -> Result:
    """How often a positive text scores above its partner, by site.

    Args:
        vectors: fitted vectors, or several by name, of the same sites and position.
        source: the model; None where activations are given.
        positive, negative: pairs of texts, best ones that `fit` has not seen; or activations, as in `fit`.
        level: coverage of the intervals.
        batch_size: texts in a pass.
        progress: show a progress bar.

    Returns:
        Result over site (and vector, where several are given): `accuracy`, ties one half, with its Wilson interval
        `low` and `high`; and `gap`, the mean difference of scores in units of its standard deviation (NaN where it
        does not vary).

    Raises:
        InputError: vectors are not fitted or differ in their sites, or the texts do not fit.

    Source: Zou et al., 2023, section 3.1; Højer, Jarvis and Heinrich, 2025.
    """
    named = dict(vectors) if isinstance(vectors, Mapping) else {"": vectors}
    if not named:
        raise InputError("no vectors given")
    for one in named.values():
        one.check_fitted()
    first = next(iter(named.values()))
    sites = list(first.directions_)
    if any(list(one.directions_) != sites or one.position != first.position for one in named.values()):
        raise InputError("vectors that are compared must have the same sites and position")
    options = {"batch_size": batch_size, "progress": progress}
    up = site_activations(source, positive, sites, first.position, **options)
    down = site_activations(source, negative, sites, first.position, **options)
    check_pairs(up, down)
    shape = (len(sites), len(named))
    table = {name: np.zeros(shape) for name in ("accuracy", "low", "high", "gap")}
    for i, site in enumerate(sites):
        for j, one in enumerate(named.values()):
            gap = one.score_samples(up[site], site) - one.score_samples(down[site], site)
            share = float(((gap > 0) + 0.5 * (gap == 0)).mean())
            low, high = wilson(share, len(gap), level)
            spread = gap.std()
            values = (share, low, high, gap.mean() / spread if spread > 0 else np.nan)
            for name, value in zip(table, values, strict=True):
                table[name][i, j] = value
    several = isinstance(vectors, Mapping)
    dims = ("site", "vector") if several else ("site",)
    data = {name: (dims, values if several else values[:, 0]) for name, values in table.items()}
    coords: dict[str, Any] = {"site": sites} | ({"vector": list(named)} if several else {})
    record = provenance(source, [up[s] for s in sites] + [down[s] for s in sites], sites=sites, level=level)
    hints = {"plot": {"variables": ["accuracy"]}}
    return Result(xr.Dataset(data, coords=coords, attrs=hints), "pair_accuracy", PAPER, record)


def _first_component(rows: Floats, centred: bool) -> Floats:
    """Unit direction of largest variance, or of largest second moment."""
    if len(rows) < 2:
        raise InputError(f"principal components need two texts or pairs, got {len(rows)}")
    values = rows - rows.mean(0) if centred else rows
    if not np.abs(values).max() > 1e-12:
        raise InputError("all texts or pairs are alike: there is no principal component")
    return np.linalg.svd(values, full_matrices=False)[2][0]
