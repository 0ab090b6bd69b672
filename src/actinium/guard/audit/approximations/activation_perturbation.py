"""Activations put through an approximation, or given the noise of one, while a model runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
import xarray as xr
from torch import Tensor

from actinium.core.edit import Edit, Where
from actinium.core.errors import InputError, UnknownNameError, unknown
from actinium.core.estimator import Estimator
from actinium.core.model import Model
from actinium.core.passes import Positions
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.guard.audit.approximations.approximation_calibration import (
    activation_range,
    consumer_weights,
    real_values,
    replaced_function,
)
from actinium.guard.audit.approximations.approximation_sites import approximation_sites, block_of
from actinium.guard.audit.approximations.replacements import (
    best_clip,
    magnitude_quantile,
    smooth_quantize,
    smoothing_scales,
    sparsify,
)

__all__ = ["ActivationPerturbation", "approximation_errors"]

PAPER = "quada"
KINDS = ("gaussian", "sparsify", "quantize", "poly")
Edits = list[tuple[str, Edit]]


class ActivationPerturbation(Estimator):
    """What an approximation does to activations, at chosen sites and blocks, in prompts and in generation.

    `with perturbation.on(model):` puts it in force. "gaussian" adds N(0, sigma^2) to every entry, the surrogate of all
    approximations. "sparsify" sets the share p of smallest magnitudes to zero: below a threshold of `fit` (CATS at
    "ffn", TEAL at "linear"), or without `fit` within each token. "quantize" rounds to b bits; with `smooth` channels
    are scaled first (SmoothQuant), with `clip` the range is cut where that loses least (OmniQuant). "poly" replaces
    non-linearities by piecewise polynomials, as private inference does: of "ffn" sites SiLU and GELU, of "softmax" exp,
    of "norm" sites the inverse square root.

    Args:
        sites: "norm", "ffn", "linear", "softmax", "final_norm", names or patterns; see `approximation_sites`.
        kind: "gaussian", "sparsify", "quantize" or "poly".
        strength: sigma, p, number of bits (16 and more: nothing changes) or degree; or one for each block, {block:
            strength}, which then are the only blocks.
        layers: act in these blocks only.
        resample: draw noise anew in every pass ("gaussian"); else the noise of a token is fixed by seed, site and
            position, the same for every row, with and without a cache, in every pass. Either way the noise of a prompt
            stays in the cache that was made from it.
        positions: tokens that are changed, as of `Edit.at`, such as "prompt" or "new"; all by default.
        symmetric: of the rounding; else over the range from minimum to maximum.
        per: "token" or "tensor", what shares a scale.
        smooth: alpha of SmoothQuant, from 0 to 1; needs `fit`.
        clip: choose the clipping of the range; needs `fit`.
        pieces: polynomials on the interval.
        bound: the interval, [-bound, bound] for non-linearities and [-bound, 0] for exp. The inverse square root has
            the range of `fit`.
        seed: of the noise.

    Attributes:
        calibration_: {site: {name: value}}: thresholds, scales, clips or ranges, after `fit`.

    Source: Zhang et al., 2025, QuadA, section on approximations (AST, sparsity, quantisation) and error model.
    """

    fitted = "calibration_"

    def __init__(
        self,
        sites: str | Sequence[str] = "norm",
        kind: str = "gaussian",
        strength: float | Mapping[int, float] = 0.1,
        layers: Iterable[int] | None = None,
        *,
        resample: bool = True,
        positions: Positions | None = None,
        symmetric: bool = True,
        per: str = "token",
        smooth: float | None = None,
        clip: bool = False,
        pieces: int = 8,
        bound: float = 8.0,
        seed: int = 0,
    ) -> None:
        self.sites, self.kind, self.strength, self.layers = sites, kind, strength, layers
        self.resample, self.positions, self.symmetric, self.per = resample, positions, symmetric, per
        self.smooth, self.clip, self.pieces, self.bound, self.seed = smooth, clip, pieces, bound, seed

    def but(self, **settings: Any) -> ActivationPerturbation:
        """The same with other settings; calibration is kept where it does not depend on what was changed."""
        other = ActivationPerturbation(**self.get_params() | settings)
        kept = {"strength", "kind", "sites", "smooth", "clip", "symmetric", "per"}
        if "calibration_" in vars(self) and not kept & set(settings):
            other.calibration_ = self.calibration_
        return other

    def names(self, model: Model) -> list[str]:
        """The sites in a model.

        Raises:
            InputError: settings out of range.
            SiteError: there is none.
        """
        self.check_settings()
        if isinstance(self.strength, Mapping):
            if self.layers is not None:
                raise InputError("a strength for each block says which blocks; leave layers out")
            return approximation_sites(model, self.sites, self.strength)
        return approximation_sites(model, self.sites, self.layers)

    def check_settings(self) -> None:
        """Refuse settings out of range.

        Raises:
            InputError, UnknownNameError: one is.
        """
        if self.kind not in KINDS:
            raise UnknownNameError(unknown("kind of perturbation", str(self.kind), KINDS))
        if self.per not in ("token", "tensor"):
            raise InputError(f"per is 'token' or 'tensor', not {self.per!r}")
        if (self.smooth is not None or self.clip) and self.kind != "quantize":
            raise InputError(f"smooth and clip go with kind='quantize', not {self.kind!r}")
        strengths = list(self.strength.values()) if isinstance(self.strength, Mapping) else [self.strength]
        if not strengths:
            raise InputError("a strength for each block needs a block")
        for value in strengths:
            _check_strength(self.kind, float(value))

    def _strength(self, model: Model, site: str) -> float:
        if not isinstance(self.strength, Mapping):
            return float(self.strength)
        block = block_of(model, site)
        return float(self.strength[block]) if block is not None else 0.0

    def fit(self, model: Model, texts: Any, *, batch_size: int | None = None, progress: bool = False) -> Self:
        """Find thresholds, scales, clips and ranges on texts.

        Args:
            model: the model.
            texts: texts or tokens like those that it will read.
            batch_size: rows in a pass.
            progress: show a progress bar.

        Raises:
            InputError: the kind needs no calibration, or settings or activations cannot be used.
        """
        names = self.names(model)
        found: dict[str, dict[str, Any]] = {}
        options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        if self.kind == "gaussian" or (self.kind == "quantize" and self.smooth is None and not self.clip):
            raise InputError(f"kind={self.kind!r} with these settings needs no calibration")
        if self.kind == "poly":
            found = {site: activation_range(model, texts, site, **options) for site in names}
        else:
            for site, values in real_values(model, texts, names, **options).items():
                found[site] = self._calibrated(model, texts, site, values)
        self.calibration_ = found
        return self

    def _calibrated(self, model: Model, texts: Any, site: str, values: Tensor) -> dict[str, Any]:
        strength = self._strength(model, site)
        if self.kind == "sparsify":
            return {"threshold": magnitude_quantile(values, strength)}
        out: dict[str, Any] = {}
        if self.smooth is not None:
            out["scales"] = smoothing_scales(values, consumer_weights(model, texts, site), self.smooth)
        if self.clip and strength < 16:
            options = {"per": self.per, "symmetric": self.symmetric, "scales": out.get("scales")}
            out["clip"] = best_clip(values, int(strength), **options)
        return out

    def edits(self, model: Model, random: torch.Generator | None = None) -> Edits:
        """The edits for `model.edit`.

        Args:
            model: the model.
            random: draws the noise where it is drawn anew; from the seed by default.

        Raises:
            InputError: settings out of range, or `fit` is needed.
            SiteError: there is no such site.
        """
        names = self.names(model)
        random = torch.Generator().manual_seed(self.seed) if random is None else random
        known = vars(self).get("calibration_", {})
        needed = (self.smooth is not None or self.clip) and not known
        if needed or (known and set(names) - set(known)):
            raise InputError("smooth and clip, and other sites than those of fit, need fit on texts first")
        out: Edits = []
        for place, site in enumerate(names):
            for name, edit in self._made(model, site, place, known.get(site, {}), random):
                out.append((name, edit if self.positions is None else edit.at(positions=self.positions)))
        return out

    def _made(
        self, model: Model, site: str, place: int, known: Mapping[str, Any], random: torch.Generator
    ) -> Iterator[tuple[str, Edit]]:
        strength = self._strength(model, site)
        if self.kind == "gaussian":
            seed = None if self.resample else self.seed * 10007 + place
            yield site, _Noise(strength, random, seed)
        elif self.kind == "sparsify":
            yield site, _Sparse(strength, known.get("threshold"))
        elif self.kind == "quantize":
            options = {"per": self.per, "symmetric": self.symmetric, **known}
            yield site, _Rounded(int(strength), options)
        else:
            source, change = replaced_function(model, site, int(strength), self.pieces, self.bound, known)
            keep = _Keep()
            if source is not None:
                yield source, keep
            yield site, _Replaced(change, keep if source is not None else None)

    @contextmanager
    def on(self, model: Model, random: torch.Generator | None = None) -> Iterator[Model]:
        """Put it in force for the block, `generate` included; every block begins with the same noise.

        Args:
            model: the model, which is not changed.
            random: a generator that goes on from block to block, as training needs.

        Raises:
            InputError, SiteError: as of `edits`.
        """
        with model.edit(self.edits(model, random)):
            yield model


def _check_strength(kind: str, value: float) -> None:
    if kind == "gaussian" and not 0 <= value < float("inf"):
        raise InputError(f"sigma is a finite number from 0, not {value}")
    if kind == "sparsify" and not 0 <= value < 1:
        raise InputError(f"the share of zeros is at least 0 and below 1, not {value}")
    if kind == "quantize" and not (value >= 2 and value == int(value)):
        raise InputError(f"bits are an integer from 2, not {value}")
    if kind == "poly" and not (value >= 1 and value == int(value)):
        raise InputError(f"the degree of a polynomial is an integer from 1, not {value}")


class _Noise(Edit):
    """Adds noise: of a generator in every pass, or of a table by position where `seed` is given."""

    def __init__(self, sigma: float, random: torch.Generator, seed: int | None) -> None:
        super().__init__()
        self.sigma, self.random, self.seed = sigma, random, seed
        self.table = torch.zeros(0)

    def change(self, x: Tensor, where: Where) -> Tensor:
        if self.sigma == 0:
            return x
        if self.seed is None:
            return x + self.sigma * torch.randn(x.shape, generator=self.random).to(x)
        if where.pos is None:
            return x + self.sigma * self._rows(1, x.shape[-1]).to(x)
        at = where.now.tokens(x.shape[where.pos], where.start, x.device).clamp_min(0)
        noise = self._rows(int(at.max()) + 1, x.shape[-1]).to(x)[at]
        return x + self.sigma * noise.reshape(*at.shape, *[1] * (x.ndim - 3), x.shape[-1])

    def _rows(self, n: int, width: int) -> Tensor:
        """Noise of the first n positions; the first ones stay when more are asked for."""
        if len(self.table) < n:
            random = torch.Generator().manual_seed(self.seed or 0)
            self.table = torch.stack([torch.randn(width, generator=random) for _ in range(2 * n)])
        return self.table[:n]


class _Sparse(Edit):
    """Zeros at small magnitudes."""

    def __init__(self, p: float, threshold: float | None) -> None:
        super().__init__()
        self.p, self.threshold = p, threshold

    def change(self, x: Tensor, where: Where) -> Tensor:
        return x if self.p == 0 else sparsify(x, self.p, self.threshold)


class _Rounded(Edit):
    """Quantised and back; under autograd the gradient passes as if nothing were rounded."""

    def __init__(self, bits: int, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.bits, self.options = bits, dict(options)

    def change(self, x: Tensor, where: Where) -> Tensor:
        if self.bits >= 16:
            return x
        rounded = smooth_quantize(x.detach(), self.bits, **self.options)
        return x + (rounded - x).detach() if x.requires_grad else rounded


class _Keep(Edit):
    """Changes nothing, and holds what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.value: Tensor | None = None

    def change(self, x: Tensor, where: Where) -> Tensor:
        self.value = x
        return x

    def bound(self, site: Any) -> Edit:
        """Itself, since the edit behind the module reads what it holds."""
        return self

    def at(self, **limits: Any) -> Edit:
        """Itself: it changes nothing anywhere."""
        return self


class _Replaced(Edit):
    """The output of a function that stands for the module's, from the module's input where one is kept."""

    def __init__(self, function: Any, source: _Keep | None) -> None:
        super().__init__()
        self.function, self.source = function, source

    def change(self, x: Tensor, where: Where) -> Tensor:
        if self.source is None:
            new: Tensor = self.function(x)
            return new
        given = self.source.value
        if given is None:
            raise InputError(f"{where.site.name}: the module was not called before its output came")
        out: Tensor = self.function(given.reshape(x.shape), x)
        return out


class _Watch(Edit):
    """Runs another edit, keeps its error, and leaves the activation as it is."""

    def __init__(self, inner: Edit) -> None:
        super().__init__()
        self.inner = inner
        self.errors: list[tuple[Tensor, Tensor]] = []

    def bound(self, site: Any) -> Edit:
        """Itself, since its errors are read afterwards."""
        return self

    def change(self, x: Tensor, where: Where) -> Tensor:
        error = (self.inner(x, where) - x).detach().double()
        size = x.detach().double()
        if where.pos == 1 and where.now.real is not None:
            real = where.now.real[:, where.start : where.start + x.shape[1]].to(x.device)
            error, size = error[real], size[real]
        self.errors.append((error.flatten().cpu(), size.flatten().cpu()))
        return x


def approximation_errors(model: Model, perturbation: ActivationPerturbation, texts: Any) -> Result:
    """The error A(a) - a that an approximation makes at each site, on activations that nothing else has touched.

    Args:
        model: the model.
        perturbation: the approximation.
        texts: texts or tokens.

    Returns:
        Result over site: `mean`, `std`, `skew` of the error over entries (skew NaN where there is none), and
        `relative`, its root mean square over that of the activation.

    Raises:
        InputError, SiteError: as of `ActivationPerturbation.edits`.

    Source: Zhang et al., 2025, QuadA, error model.
    """
    watched = [(name, e if isinstance(e, _Keep) else _Watch(e)) for name, e in perturbation.edits(model)]
    with torch.no_grad(), model.edit(watched):
        model(texts)
    rows: dict[str, list[float]] = {}
    for name, edit in watched:
        if not isinstance(edit, _Watch):
            continue
        if not edit.errors:
            raise InputError(f"{name} was not run")
        error, size = (torch.cat(parts) for parts in zip(*edit.errors, strict=True))
        finite = error.isfinite()  # scores of masked keys have none
        error, size = error[finite], size[finite]
        spread = float(error.std(correction=0))
        skew = float((((error - error.mean()) / spread) ** 3).mean()) if spread > 0 else float("nan")
        relative = float(error.square().mean().sqrt() / size.square().mean().sqrt())
        rows[name] = [float(error.mean()), spread, skew, relative]
    columns = zip(("mean", "std", "skew", "relative"), zip(*rows.values(), strict=True), strict=True)
    data = xr.Dataset({name: ("site", list(values)) for name, values in columns}, coords={"site": list(rows)})
    record = provenance(model, texts, perturbation.seed, perturbation=perturbation.get_params())
    return Result(data, "approximation_errors", PAPER, record)
