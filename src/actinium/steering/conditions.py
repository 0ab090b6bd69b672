"""What a condition is: scores of a prompt's activations, and a threshold that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actinium.core.errors import InputError, SiteError, UnknownNameError, unknown
from actinium.core.model import Model
from actinium.probes.positions import activations_at
from actinium.steering.vector import SteeringVector

__all__ = ["Condition", "ProbeCondition", "VectorCondition", "condition_scores", "fire_when_of"]

Floats = NDArray[np.float64]
READS = {"mean": "the mean over the prompt's tokens", "last": "the prompt's last token"}
SCORES = {
    "cast": "cos(h, tanh(c c^T h / c^T c)), which does not know on which side of the plane across c h lies",
    "projection": "cos(h, c), signed",
}
FIRES = ("above", "below")
COMPARATORS = {"larger": "below", "smaller": "above"}


def condition_scores(activations: Any, direction: Any, score: str = "cast") -> Tensor:
    """How far activations lie along a direction.

    Args:
        activations: (n, d).
        direction: c, (d,).
        score: a key of `SCORES`.

    Returns:
        (n,) float64, from -1 to 1; 0 where an activation or its projection is zero.

    Raises:
        InputError: shapes do not fit.
        UnknownNameError: there is no such score.

    Source: Lee et al., 2024, CAST, section 3 ("cast").
    """
    if score not in SCORES:
        raise UnknownNameError(unknown("score", str(score), SCORES))
    h, c = torch.as_tensor(activations).detach().cpu().double(), torch.as_tensor(direction).detach().cpu().double()
    if h.ndim != 2 or c.ndim != 1 or h.shape[1] != len(c):
        raise InputError(f"activations of shape {tuple(h.shape)} do not fit a direction of {tuple(c.shape)}")
    along = h @ c
    other = c.expand_as(h) if score == "projection" else torch.tanh((along / (c @ c))[:, None] * c)
    size = h.norm(dim=1) * other.norm(dim=1)
    return torch.where(size > 0, (h * other).sum(1) / size.clamp_min(1e-300), torch.zeros_like(size))


def fire_when_of(comparator: str) -> str:
    """`fire_when` for the comparator of IBM's activation-steering, which says what the threshold is.

    Args:
        comparator: "larger" (the threshold is larger than the score) or "smaller".

    Raises:
        UnknownNameError: there is no such comparator.
    """
    if comparator not in COMPARATORS:
        raise UnknownNameError(unknown("comparator", str(comparator), COMPARATORS))
    return COMPARATORS[comparator]


class Condition:
    """Base of conditions: a score at each of some sites, and a side of a threshold on which the condition holds.

    It holds for a prompt as soon as it holds at one of its sites. A subclass defines `score_at`.

    Args:
        sites: names of sites with dimensions (batch, pos, d).
        threshold: one for all sites, or one for each.
        fire_when: "above": where the score is larger than the threshold; "below": where it is smaller.
        read: "mean" or "last": what of a prompt is scored. Padding never counts.
    """

    def __init__(self, sites: Sequence[str], threshold: float | Mapping[str, float], fire_when: str, read: str) -> None:
        if fire_when not in FIRES:
            raise UnknownNameError(unknown("side of the threshold", str(fire_when), FIRES))
        if read not in READS:
            raise UnknownNameError(unknown("reading", str(read), READS))
        if not sites:
            raise InputError("a condition needs one site or more")
        self.sites, self.fire_when, self.read = list(sites), fire_when, read
        if isinstance(threshold, Mapping):
            for site in self.sites:
                if site not in threshold:
                    raise UnknownNameError(unknown("threshold for the site", site, threshold))
            self.thresholds = {site: float(threshold[site]) for site in self.sites}
        else:
            self.thresholds = dict.fromkeys(self.sites, float(threshold))
        for site, value in self.thresholds.items():
            if not np.isfinite(value):
                raise InputError(f"{site}: the threshold must be finite, not {value}")

    def score_at(self, site: str, activations: Tensor) -> Tensor:
        """Scores (n,) of activations (n, d) at a site."""
        raise TypeError(f"{type(self).__name__} must define score_at()")

    def holds_at(self, site: str, scores: Tensor) -> Tensor:
        """Whether scores (n,) lie on the side of the threshold on which the condition holds: (n,) bool."""
        limit = self.thresholds[site]
        return scores > limit if self.fire_when == "above" else scores < limit

    def holds(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Whether the condition holds at one site or more: (n,) bool, of {site: (n,)}."""
        return torch.stack([self.holds_at(site, values) for site, values in scores.items()]).any(0)

    def scores(self, model: Model, prompts: Any, *, batch_size: int = 64, progress: bool = False) -> dict[str, Tensor]:
        """Scores of prompts: {site: (n,)}.

        Raises:
            InputError: the condition does not fit the model.
            SiteError: a site does not exist.
        """
        self.check(model)
        place = "mean" if self.read == "mean" else -1
        found = activations_at(model, prompts, self.sites, {self.read: place}, batch_size=batch_size, progress=progress)
        return {site: self.score_at(site, values) for (site, _), values in found.items()}

    def check(self, model: Model, transfer: bool = False) -> None:
        """Refuse a model that does not have the sites.

        Args:
            model: that is to be read.
            transfer: whether it may be another one than that which the condition was made on.

        Raises:
            InputError: a site is not one of (batch, pos, d) or is not called by its own name, or sites belong to
                several towers.
            SiteError: a site does not exist.
        """
        found = [model.sites(site)[0] for site in self.sites]
        for site, name in zip(found, self.sites, strict=True):
            if site.name != name:
                raise InputError(f"a condition names each of its sites in full: {site.name!r}, not {name!r}")
            if len(site.dims) != 3 or site.dims[:2] != ("batch", "pos"):
                raise InputError(
                    f"a condition reads sites of (batch, pos, d), such as 'blocks.3.resid_post'; {site.name} has"
                    f" {site.dims or 'no named dimensions'}"
                )
        if len({site.stack for site in found}) > 1:
            raise InputError("the sites of one condition belong to one tower; combine two conditions by a rule")

    def __repr__(self) -> str:
        sign = ">" if self.fire_when == "above" else "<"
        limits = ", ".join(f"{site} {sign} {limit:.6g}" for site, limit in self.thresholds.items())
        return f"{type(self).__name__}({limits}; {self.read})"


class VectorCondition(Condition):
    """Holds where a prompt's activations lie along (or away from) a direction.

    Args:
        vector: the direction at each site; sites at which it is zero are left out.
        threshold: from -1 to 1; one for all sites, or {site: threshold}. With score "cast" it is small, as the cosine
            of a mean state with a narrow direction is: search for it with `find_condition_point`.
        fire_when: "above" or "below" the threshold.
        score: "cast", the paper's, or "projection", the signed cosine. Where the activations of some prompts lie along
            the direction and of others against it, only the signed one tells them apart.
        read: "mean" or "last".

    Raises:
        InputError: a threshold lies outside [-1, 1].
        UnknownNameError: there is no such score, side or reading, or a site has no threshold.

    Source: Lee et al., 2024, CAST.
    """

    def __init__(
        self,
        vector: SteeringVector,
        threshold: float | Mapping[str, float],
        fire_when: str = "above",
        *,
        score: str = "cast",
        read: str = "mean",
    ) -> None:
        if not isinstance(vector, SteeringVector):
            raise InputError(f"the condition's vector must be a SteeringVector, not {type(vector).__name__}")
        if score not in SCORES:
            raise UnknownNameError(unknown("score", str(score), SCORES))
        kept = [site for site, v in vector.directions.items() if bool((v != 0).any())]
        super().__init__(kept, threshold, fire_when, read)
        for site, value in self.thresholds.items():
            if not -1 <= value <= 1:
                raise InputError(f"{site}: the score is a cosine, so its threshold lies from -1 to 1, not at {value}")
        self.vector, self.score = vector, score

    def score_at(self, site: str, activations: Tensor) -> Tensor:
        """Scores (n,) of activations (n, d) at a site."""
        return condition_scores(activations, self.vector[site], self.score)

    def check(self, model: Model, transfer: bool = False) -> None:
        """Refuse a model that the vector does not fit.

        Args:
            model: that is to be read.
            transfer: whether it may be another one than that which the vector was made on.

        Raises:
            InputError: it was made for another model, or a width differs.
            SiteError: a site does not exist.
        """
        super().check(model, transfer)
        self.vector.check(model, transfer)


class ProbeCondition(Condition):
    """Holds where a probe says so.

    Args:
        probe: a fitted probe with `predict_proba` or `decision_function`, or a function of activations (n, d) float32
            that gives scores or bools (n,); or {site: one of these}.
        site: where it reads; left out where the probes come by site.
        threshold: of the probability (0.5 by default), of the decision function (0 by default) or of the function's
            scores (which have no default; bools need none).
        fire_when: "above" or "below" the threshold.
        read: "mean" or "last": what the probe was fitted on.
        label: of probes that tell more than two labels, the one whose probability or decision counts.

    Raises:
        InputError: something that is no probe, no site, or no threshold where one is needed.
        UnknownNameError: there is no such side or reading.
    """

    def __init__(
        self,
        probe: Any,
        site: str | None = None,
        threshold: float | Mapping[str, float] | None = None,
        fire_when: str = "above",
        *,
        read: str = "last",
        label: Any = None,
    ) -> None:
        if isinstance(probe, Mapping) == (site is not None):
            raise InputError("give a probe and its site, or {site: probe}")
        self.probes: dict[str, Any] = dict(probe) if isinstance(probe, Mapping) else {str(site): probe}
        for name, one in self.probes.items():
            if not (hasattr(one, "predict_proba") or hasattr(one, "decision_function") or callable(one)):
                raise InputError(
                    f"{name}: a probe has predict_proba or decision_function, or is a function, unlike a"
                    f" {type(one).__name__}"
                )
        if threshold is None:
            threshold = {name: 0.0 if _by_decision(one) else 0.5 for name, one in self.probes.items()}
        self.label = label
        super().__init__(list(self.probes), threshold, fire_when, read)

    def score_at(self, site: str, activations: Tensor) -> Tensor:
        """Scores (n,) of activations (n, d) at a site.

        Raises:
            InputError: the probe gives something else than one number for each row, or a label is needed.
        """
        probe, rows = self.probes[site], activations.detach().cpu().float()
        ask: Callable[[Any], Any] = probe
        if hasattr(probe, "predict_proba"):
            ask = probe.predict_proba
        elif _by_decision(probe):
            ask = probe.decision_function
        given = ask(rows)
        values = torch.as_tensor(given).detach().cpu().double()
        if values.ndim == 2:
            values = values[:, self._column(probe, values.shape[1], site)]
        if values.shape != rows.shape[:1]:
            raise InputError(f"{site}: the probe gave {tuple(values.shape)} for {len(rows)} rows, not one number each")
        if bool(torch.isnan(values).any()):
            raise InputError(f"{site}: the probe gave NaN")
        return values

    def _column(self, probe: Any, n: int, site: str) -> int:
        if self.label is None:
            if n != 2:
                raise InputError(f"{site}: the probe tells {n} labels; say which with label=")
            return 1
        labels = list(getattr(probe, "classes_", range(n)))
        if self.label not in labels:
            raise UnknownNameError(unknown("label", str(self.label), [str(one) for one in labels]))
        return labels.index(self.label)


def _by_decision(probe: Any) -> bool:
    return hasattr(probe, "decision_function") and not hasattr(probe, "predict_proba")


def order_of(model: Model, site: str) -> int:
    """Place of a site in the order in which a pass computes them.

    Raises:
        SiteError: it is no standard site.
    """
    name = model.sites(site)[0].name
    try:
        return list(model.anatomy.sites).index(name)
    except ValueError:
        raise SiteError(f"{name} has no known place among the blocks; use a standard site") from None
