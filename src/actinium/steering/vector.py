"""A steering vector: a direction for each site, with how it was made, and its arithmetic."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from actinium.core.errors import InputError, LoadError, UnknownNameError, unknown
from actinium.core.fitted import read_fitted, write_fitted
from actinium.core.model import Model
from actinium.core.sites import select

__all__ = ["SteeringVector", "compose"]

KIND = "steering vector"


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction at each of some sites, to be added to activations or removed from them.

    Args:
        directions: {site: (d,)}, finite, kept in float32; the length counts.
        method: how it was found.
        made: what else is known of how it was made, in values that JSON can hold; `model` is the fingerprint of the
            model and `name` its name.

    Raises:
        InputError: there is no site, or a value is no finite vector, or all of them are zero.
    """

    directions: Mapping[str, Tensor]
    method: str = "given"
    made: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.directions:
            raise InputError("a steering vector needs a direction at one site or more")
        found = {site: _vector(value, site) for site, value in self.directions.items()}
        if not any(bool((v != 0).any()) for v in found.values()):
            raise InputError("the steering vector is zero at every site: it would change nothing")
        object.__setattr__(self, "directions", found)
        object.__setattr__(self, "made", dict(self.made))

    @property
    def sites(self) -> list[str]:
        """Names of its sites."""
        return list(self.directions)

    @property
    def norms(self) -> dict[str, float]:
        """Length of the direction at each site."""
        return {site: float(v.norm()) for site, v in self.directions.items()}

    def __getitem__(self, site: str) -> Tensor:
        """The direction at a site, (d,) float32.

        Raises:
            UnknownNameError: there is none.
        """
        if site not in self.directions:
            raise UnknownNameError(unknown("direction at the site", site, self.directions))
        return self.directions[site]

    def __contains__(self, site: object) -> bool:
        return site in self.directions

    def __len__(self) -> int:
        return len(self.directions)

    def __repr__(self) -> str:
        first, *rest = self.directions.items()
        sites = first[0] if not rest else f"{first[0]} and {len(rest)} more sites"
        return f"SteeringVector({self.method}, d {len(first[1])}, {sites})"

    # Arithmetic -----------------------------------------------------------------------------------------------

    def only(self, sites: str | Sequence[str]) -> SteeringVector:
        """The vector at some of its sites.

        Args:
            sites: names and patterns.

        Raises:
            SiteError: one matches none of its sites.
        """
        patterns = [sites] if isinstance(sites, str) else list(sites)
        names = dict.fromkeys(name for one in patterns for name in select(one, self.directions, len(self.directions)))
        return SteeringVector({name: self[name] for name in names}, self.method, self.made)

    def __add__(self, other: SteeringVector) -> SteeringVector:
        """Sum at every site that one of them has."""
        return self._joined(other, 1.0)

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        """Difference at every site that one of them has."""
        return self._joined(other, -1.0)

    def __mul__(self, factor: float) -> SteeringVector:
        """Each direction times a number.

        Raises:
            InputError: the factor is zero or not finite.
        """
        return self._each(lambda v: v * _number(factor), self.method)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> SteeringVector:
        """Each direction divided by a number."""
        return self._each(lambda v: v / _number(divisor), self.method)

    def __neg__(self) -> SteeringVector:
        """The opposite directions."""
        return self * -1.0

    def normalize(
        self, norm: float | Mapping[str, float] | SteeringVector | Sequence[SteeringVector] = 1.0
    ) -> SteeringVector:
        """The same directions with other lengths.

        Args:
            norm: a length, one for each site, a vector whose lengths are taken, or several, of which the mean lengths
                are taken: with the vectors of all behaviours, this one among them, one strength means the same for
                each (Rimsky et al., 2024). A direction that is zero stays.

        Raises:
            InputError: a length is not above 0, or there is no vector.
            UnknownNameError: there is no length for a site.
        """
        if isinstance(norm, Sequence):
            if not norm or not all(isinstance(one, SteeringVector) for one in norm):
                raise InputError("give one steering vector or more whose mean lengths are taken")
            shared = [site for site in norm[0].sites if all(site in one for one in norm)]
            norm = {site: sum(one.norms[site] for one in norm) / len(norm) for site in shared}
        wanted = norm.norms if isinstance(norm, SteeringVector) else norm
        out = {}
        for site, v in self.directions.items():
            if isinstance(wanted, Mapping) and site not in wanted:
                raise UnknownNameError(unknown("length for the site", site, wanted))
            size = wanted[site] if isinstance(wanted, Mapping) else wanted
            if bool((v != 0).any()):
                if not size > 0:
                    raise InputError(f"{site}: a length must be above 0, not {size}")
                v = v * (size / v.norm())
            out[site] = v
        return SteeringVector(out, self.method, self.made)

    def orthogonalize(self, *others: SteeringVector) -> SteeringVector:
        """What is left of each direction outside the span of other vectors' at the same site.

        Raises:
            InputError: nothing is left anywhere, or widths differ.
        """
        out = {}
        for site, v in self.directions.items():
            given = [o[site].double() for o in others if site in o and bool((o[site] != 0).any())]
            if any(g.shape != v.shape for g in given):
                raise InputError(f"{site}: vectors of other widths than {len(v)} cannot be taken out")
            if given:
                basis, sizes, _ = torch.linalg.svd(torch.stack([g / g.norm() for g in given], 1), full_matrices=False)
                basis = basis[:, sizes > sizes.max() * 1e-6]
                left = v.double() - basis @ (basis.T @ v.double())
                # What rounding leaves of a vector that lies in the span is no direction.
                v = torch.zeros_like(v) if left.norm() <= 1e-6 * v.norm() else left.to(v)
            out[site] = v
        return SteeringVector(out, self.method, self.made)

    def cosine(self, other: SteeringVector) -> dict[str, float]:
        """Cosine with another vector at every site that both have; NaN where one is zero.

        Raises:
            InputError: they share no site, or widths differ.
        """
        shared = [site for site in self.directions if site in other]
        if not shared:
            raise InputError(f"the vectors share no site: {self.sites} and {other.sites}")
        return {site: _cosine(self[site], other[site], site) for site in shared}

    def random_like(self, seed: int = 0) -> SteeringVector:
        """Random directions of the same lengths: the control."""
        random = torch.Generator().manual_seed(seed)
        out = {}
        for site, v in self.directions.items():
            draw = torch.randn(len(v), generator=random)
            out[site] = draw * (v.norm() / draw.norm())
        return SteeringVector(out, "random", {**self.made, "seed": seed, "like": self.method})

    def _each(self, function: Callable[[Tensor], Tensor], method: str) -> SteeringVector:
        return SteeringVector({site: function(v) for site, v in self.directions.items()}, method, self.made)

    def _joined(self, other: SteeringVector, sign: float) -> SteeringVector:
        if not isinstance(other, SteeringVector):
            raise InputError(f"only a steering vector can be added to one, not {type(other).__name__}")
        mine, its = self.made.get("model"), other.made.get("model")
        if mine and its and mine != its:
            raise InputError("the two vectors were made for different models; their spaces are not the same")
        out = dict(self.directions)
        for site, v in other.directions.items():
            if site in out and out[site].shape != v.shape:
                raise InputError(f"{site}: widths {len(out[site])} and {len(v)} differ")
            out[site] = out[site] + sign * v if site in out else sign * v
        kept = {k: v for k, v in self.made.items() if other.made.get(k) == v}
        if "texts" in self.made and "texts" in other.made:
            # Prompts that made one of them are not held out of the sum.
            kept["texts"] = list(dict.fromkeys([*self.made["texts"], *other.made["texts"]]))
        return SteeringVector(out, f"{self.method} {'+' if sign > 0 else '-'} {other.method}", kept)

    # Use ------------------------------------------------------------------------------------------------------

    def check(self, model: Model, transfer: bool = False) -> None:
        """Refuse a model that the vector does not fit.

        Args:
            model: that is to be steered.
            transfer: whether the model may be another one than that which the vector was made on.

        Raises:
            InputError: it was made for another model, or a width differs.
            SiteError: a site does not exist.
        """
        for site, v in self.directions.items():
            known = model.sites(site)[0]
            size = known.sizes.get(known.dims[-1]) if known.dims else None
            if size is not None and size != len(v):
                raise InputError(f"{site} of {model.name} is {size} wide; the steering vector has {len(v)} entries")
        made = self.made.get("model")
        if made and not transfer and made != model.fingerprint():
            name = self.made.get("name", "another model")
            raise InputError(
                f"this steering vector was made on {name}, whose weights are not those of {model.name}; pass"
                " transfer=True to steer with it all the same"
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one safetensors file.

        Raises:
            InputError: it cannot be written, or `made` holds what JSON cannot.
        """
        settings = {"method": self.method, "made": dict(self.made)}
        return write_fitted(path, KIND, dict(self.directions), settings, sites=self.sites)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            LoadError: the file is missing, damaged, or holds something else.
        """
        about, tensors = read_fitted(path, KIND)
        try:
            return cls({site: tensors[site] for site in about["sites"]}, **about["settings"])
        except (KeyError, TypeError, InputError) as error:
            raise LoadError(f"the {KIND} in {path} is damaged: {error}") from None


def compose(vectors: Sequence[SteeringVector], weights: Sequence[float] | None = None) -> SteeringVector:
    """Sum of several vectors, each times its weight.

    Args:
        vectors: one or more, of one model.
        weights: as many; 1 each by default.

    Raises:
        InputError: there is none, numbers differ, or the vectors do not fit each other.
    """
    if not vectors:
        raise InputError("no vectors to compose")
    given = [1.0] * len(vectors) if weights is None else list(weights)
    if len(given) != len(vectors):
        raise InputError(f"{len(given)} weights for {len(vectors)} vectors")
    total = vectors[0] * given[0]
    for one, weight in zip(vectors[1:], given[1:], strict=True):
        total = total + one * weight
    return total


def _vector(value: object, site: str) -> Tensor:
    given = value if isinstance(value, Tensor) else torch.as_tensor(value)
    if given.ndim != 1 or not len(given):
        raise InputError(f"{site}: a direction is a vector (d,), not of shape {tuple(given.shape)}")
    out = given.detach().cpu().float().clone()
    if not bool(torch.isfinite(out).all()):
        raise InputError(f"{site}: the direction holds NaN or infinite values")
    return out


def _number(value: float) -> float:
    number = float(value)
    if not number or number != number or number in (float("inf"), float("-inf")):
        raise InputError(f"a steering vector can be multiplied with a finite number other than 0, not {value}")
    return number


def _cosine(a: Tensor, b: Tensor, site: str) -> float:
    if a.shape != b.shape:
        raise InputError(f"{site}: widths {len(a)} and {len(b)} differ")
    size = a.double().norm() * b.double().norm()
    return float(a.double() @ b.double() / size) if size > 0 else float("nan")
