"""What a classifier says far from its data: the affine pieces of ReLU networks, and an audit along rays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from actinium.core.errors import InputError
from actinium.core.intervals import area_under_roc
from actinium.core.model import Model
from actinium.core.progress import shown
from actinium.core.provenance import provenance
from actinium.core.result import Result
from actinium.core.rows import as_examples, as_rows
from actinium.signal.uncertainty_metrics import METRICS, OF_SEVERAL, UncertaintyMetrics, warn_unless_piecewise

__all__ = ["ReluRegion", "far_field_audit", "feature_scaling_audit", "relu_region"]

PAPER = "know-your-limits"
RADII = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
FACTORS = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
DISTANCES = ("mahalanobis", "nearest")
PAIRS = 2**22
"""Distances that are held at once."""
# Edges of the pieces of piecewise affine activations.
KINKS: dict[type[nn.Module], Callable[[Any], tuple[float, ...]]] = {
    nn.ReLU: lambda m: (0.0,),
    nn.LeakyReLU: lambda m: (0.0,),
    nn.PReLU: lambda m: (0.0,),
    nn.ReLU6: lambda m: (0.0, 6.0),
    nn.Hardtanh: lambda m: (m.min_val, m.max_val),
    nn.Threshold: lambda m: (m.threshold,),
}
Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ReluRegion:
    """The affine maps that a network is around some points: f(x) = slope x + offset.

    Attributes:
        slope: V (n, C, d).
        offset: a (n, C).
        pattern: (n, units) which piece each activation is on, 0 below its first kink.
    """

    slope: Tensor
    offset: Tensor
    pattern: Tensor


def _pattern(module: nn.Module, x: Tensor) -> Tensor:
    """(n, units) pieces of all activations that are modules, in the order in which they run."""
    seen: list[Tensor] = []

    def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        edges = torch.tensor(KINKS[type(layer)](layer), dtype=args[0].dtype, device=args[0].device)
        # A kink itself belongs to the piece below it: ReLU's derivative at 0 is 0.
        seen.append(torch.bucketize(args[0].detach().flatten(1).contiguous(), edges).to(torch.int8))

    # Before anything is overwritten in place.
    handles = [m.register_forward_pre_hook(hook) for m in module.modules() if type(m) in KINKS]
    try:
        with torch.no_grad():
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        kinds = ", ".join(kind.__name__ for kind in KINKS)
        raise InputError(f"{type(module).__name__} has no piecewise affine activation that is a module ({kinds})")
    return torch.cat(seen, 1)


def relu_region(module: nn.Module, x: Any) -> ReluRegion:
    """Slope and offset of a piecewise affine network at each input, and the piece it lies on.

    Args:
        module: a network of affine layers and ReLUs (or others of their kind) that are modules, in evaluation mode;
            from (n, ...) to (n, C).
        x: (n, ...) inputs, of the network's type; V has their entries in one row.

    Raises:
        InputError: no such activation, inputs that are not finite, or outputs of another shape.

    Source: Ulmer and Cina, 2021, section 4; Arora et al., 2018.
    """
    given = as_examples(x)
    UncertaintyMetrics(module)
    pattern = _pattern(module, given)
    given = given.clone().requires_grad_()
    with torch.enable_grad():
        out = module(given)
        if out.ndim != 2 or len(out) != len(given):
            raise InputError(f"expected outputs (n, C), got {tuple(out.shape)}")
        slopes = [
            torch.autograd.grad(out[:, c].sum(), given, retain_graph=True, materialize_grads=True)[0].flatten(1)
            for c in range(out.shape[1])
        ]
    slope = torch.stack(slopes, 1)
    offset = out.detach() - torch.einsum("ncd,nd->nc", slope, given.detach().flatten(1))
    return ReluRegion(slope, offset, pattern)


def far_field_audit(
    predict: Predict,
    data: Any,
    *,
    held_out: Any = None,
    radii: Sequence[float] = RADII,
    unit: float | None = None,
    directions: int = 200,
    confidence: float = 0.99,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Follow rays out of the data and see what a classifier's uncertainty says there.

    Args:
        predict: from (n, d) to logits (n, C) or (K, n, C); a module, `EnsemblePredictor` and the like.
        data: training inputs (n, d), in the type that the classifier takes; float64 shows limits furthest.
        held_out: in-distribution inputs that the far points are told from; `data` by default.
        radii: distances from the data's mean, in units.
        unit: length of a unit; by default the largest distance of a row of `data` from the mean.
        directions: random rays.
        confidence: what counts as confident.
        seed: of the rays.
        progress: show a progress bar.

    Returns:
        Result over metric and radius: `auroc`, the area under the ROC curve of telling the far points from `held_out`
        (1: all far points are more uncertain; below 0.5: they are judged more certain); `score` and `gradient`, medians
        of the score and of the norm of its gradient. Over radius: `confident`, share of far points whose most probable
        class has a mean probability above `confidence`; `affine_tail`, share of rays that lie on the same affine piece
        here and at the largest radius (NaN without activations that are modules); `limit_agrees`, share of rays (and
        members) whose class here is the one that the slope of the logits at the largest radius predicts. The metrics
        `mahalanobis` and `nearest`, distances from `data`, stand beside those of the classifier; they have no
        `gradient`. `data.attrs["verdict"]` says it in words.

    Raises:
        InputError: data that are no finite rows or have no spread, radii that are not positive, or as
            `UncertaintyMetrics`.

    Source: Ulmer and Cina, 2021, sections 4 and 5.
    """
    metrics = UncertaintyMetrics(predict)
    rows = as_rows(data, "data", flat=False)
    inside = rows if held_out is None else as_rows(held_out, "held_out", rows.shape[1], flat=False, dtype=rows.dtype)
    radii = sorted(float(r) for r in radii)
    if not radii or radii[0] <= 0 or not np.isfinite(radii).all() or directions < 1:
        raise InputError(f"expected positive radii and one direction or more, got {radii}, {directions}")
    centre = rows.mean(0)
    size = float((rows - centre).norm(dim=1).max()) if unit is None else float(unit)
    if not size > 0:
        raise InputError("the data have no spread: all rows are equal")
    warn_unless_piecewise(predict)
    rays = torch.randn(directions, rows.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rays = (rays / rays.norm(dim=1, keepdim=True)).to(rows)
    names, base = _base_scores(metrics, rows, inside)
    every = [*names, *DISTANCES]
    table = {name: np.full((len(every), len(radii)), np.nan) for name in ("auroc", "score", "gradient")}
    lines: dict[str, list[float]] = {"confident": [], "affine_tail": [], "limit_agrees": []}
    last = centre + radii[-1] * size * rays
    limit, tail = _limit_classes(predict, last, rays), _try_pattern(predict, last)
    for j, radius in enumerate(shown(radii, "radii", progress)):
        far = centre + radius * size * rays
        found = _scores(metrics, names, rows, far)
        for i, name in enumerate(every):
            table["auroc"][i, j] = _auroc(base[name], found[name])
            table["score"][i, j] = float(found[name].median())
            if name in names:
                table["gradient"][i, j] = float(metrics.gradient_norm(name, far).median())
        with torch.no_grad():
            log_p = metrics.log_probabilities(far)
        lines["confident"].append(float((log_p.exp().mean(0).max(-1).values > confidence).double().mean()))
        lines["limit_agrees"].append(float((log_p.argmax(-1) == limit).double().mean()))
        here = _try_pattern(predict, far)
        lines["affine_tail"].append(
            np.nan if tail is None or here is None else float((here == tail).all(1).double().mean())
        )
    data_set = xr.Dataset(
        {n: (("metric", "radius"), v) for n, v in table.items()} | {n: ("radius", v) for n, v in lines.items()},
        {"metric": every, "radius": radii},
        {"verdict": _verdict(table["auroc"], every, radii), "unit": size, "plot": {"x": "radius"}},
    )
    settings = {"radii": radii, "unit": size, "directions": directions, "confidence": confidence}
    record = provenance(_as_model(predict), [rows, inside], seed, **settings)
    return Result(data_set, "far_field_audit", PAPER, record)


def feature_scaling_audit(
    predict: Predict,
    data: Any,
    *,
    held_out: Any = None,
    factors: Sequence[float] = FACTORS,
    confidence: float = 0.99,
) -> Result:
    """Multiply one feature of tabular inputs after another, and see whether the classifier notices.

    Args:
        predict, data, held_out, confidence: as `far_field_audit`. The rows of `held_out` are those that are changed.
        factors: of the feature.

    Returns:
        Result over feature and factor: `confident`, share of changed rows above `confidence`; over metric, feature and
        factor: `auroc` of telling them from the unchanged rows.

    Raises:
        InputError: as `far_field_audit`.

    Source: Ulmer and Cina, 2021, section 5.
    """
    metrics = UncertaintyMetrics(predict)
    rows = as_rows(data, "data", flat=False)
    inside = rows if held_out is None else as_rows(held_out, "held_out", rows.shape[1], flat=False, dtype=rows.dtype)
    values = [float(f) for f in factors]
    if not values or not np.isfinite(values).all():
        raise InputError(f"factors are finite numbers, one or more, not {values}")
    names, base = _base_scores(metrics, rows, inside)
    every = [*names, *DISTANCES]
    auroc = np.full((len(every), rows.shape[1], len(values)), np.nan)
    sure = np.full((rows.shape[1], len(values)), np.nan)
    for feature in range(rows.shape[1]):
        for j, factor in enumerate(values):
            changed = inside.clone()
            changed[:, feature] *= factor
            found = _scores(metrics, names, rows, changed)
            auroc[:, feature, j] = [_auroc(base[name], found[name]) for name in every]
            with torch.no_grad():
                top = metrics.log_probabilities(changed).exp().mean(0).max(-1).values
            sure[feature, j] = float((top > confidence).double().mean())
    data_set = xr.Dataset(
        {"confident": (("feature", "factor"), sure), "auroc": (("metric", "feature", "factor"), auroc)},
        {"metric": every, "feature": np.arange(rows.shape[1]), "factor": values},
        {"plot": {"x": "factor"}},
    )
    record = provenance(_as_model(predict), [rows, inside], factors=values, confidence=confidence)
    return Result(data_set, "feature_scaling_audit", PAPER, record)


def _as_model(predict: Any) -> Model | None:
    return Model(predict) if isinstance(predict, nn.Module) else None


def _base_scores(metrics: UncertaintyMetrics, rows: Tensor, inside: Tensor) -> tuple[list[str], dict[str, Tensor]]:
    """The metrics that this classifier has, and all scores inside the data."""
    with torch.no_grad():
        several = len(metrics.log_probabilities(inside[:1])) > 1
    names = [name for name in METRICS if several or name not in OF_SEVERAL]
    return names, _scores(metrics, names, rows, inside)


def _scores(metrics: UncertaintyMetrics, names: list[str], rows: Tensor, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        log_p = metrics.log_probabilities(x)
        found = {name: metrics.of(name, log_p) for name in names}
    return found | {"mahalanobis": _mahalanobis(rows, x), "nearest": _nearest(rows, x)}


def _auroc(inside: Tensor, far: Tensor) -> float:
    scores = torch.cat([inside, far]).cpu().numpy()
    return area_under_roc(scores, np.arange(len(scores)) >= len(inside))


def _mahalanobis(rows: Tensor, x: Tensor) -> Tensor:
    """Distance from the mean of the data in their own spread; directions without spread count by the smallest that is
    told from rounding."""
    known, asked = rows.double(), x.double()
    centred = known - known.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(known))
    values = values.clamp(min=float(values.max()) * 1e-12)
    return (((asked - known.mean(0)) @ vectors).square() / values).sum(1).sqrt()


def _nearest(rows: Tensor, x: Tensor) -> Tensor:
    """Distance from the nearest other row of the data (a row of the data itself is no neighbour of its own)."""
    found = []
    for some in x.double().split(max(1, PAIRS // len(rows))):
        distances = torch.cdist(some, rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
        found.append(distances.masked_fill_(distances == 0, torch.inf).min(1).values)
    return torch.cat(found).nan_to_num(posinf=0.0)


def _limit_classes(predict: Predict, far: Tensor, rays: Tensor) -> Tensor:
    """(K, n) class of the largest slope of its logit along the ray, where the ray has left all kinks."""
    given = far.clone().requires_grad_()
    with torch.enable_grad():
        out = predict(given)
        out = out if out.ndim == 3 else out[None]
        slopes = [
            torch.autograd.grad(out[k, :, c].sum(), given, retain_graph=True, materialize_grads=True)[0]
            for k in range(out.shape[0])
            for c in range(out.shape[2])
        ]
    slope = (torch.stack(slopes) * rays).sum(-1).view(out.shape[0], out.shape[2], -1).transpose(1, 2)
    return torch.cat([torch.zeros_like(slope), slope], -1).argmax(-1) if slope.shape[-1] == 1 else slope.argmax(-1)


def _try_pattern(predict: Any, x: Tensor) -> Tensor | None:
    known = isinstance(predict, nn.Module) and any(type(m) in KINKS for m in predict.modules())
    return _pattern(predict, x) if known else None


def _verdict(auroc: np.ndarray, names: list[str], radii: list[float]) -> str:
    told: dict[str, list[str]] = {}
    for name, row in zip(names, auroc, strict=True):
        words = f"does not tell far points from the data at radius {radii[-1]:g}"
        if row.min() >= 0.95:
            words = "tells far points from the data at every radius"
        elif row[-1] < 0.5:
            words = f"judges far points more certain than the data at radius {radii[-1]:g}"
        elif row[-1] >= 0.95:
            words = f"tells far points from the data at radius {radii[-1]:g}, but not at every radius"
        told.setdefault(words, []).append(name)
    return "; ".join(f"{', '.join(group)}: {words}" for words, group in told.items())
